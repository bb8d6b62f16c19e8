"""Loss curves such as 1B-parameter runs have, and scores of them computed apart from `analysis`.

Nothing here imports the project: what the tests compare with is the definition of ATLAS.md in plain NumPy.
"""

import itertools

import numpy as np
import pandas as pd

PARAMS = 1_012_400_000
STEP = 512 * 2048
LANGUAGES = ("de", "en", "es", "hi", "zh")


def alone(language, tokens):
    """Loss of a model of one language after so many tokens."""
    place = LANGUAGES.index(language)
    return 1.6 + 0.1 * place + (900 + 150 * place) / np.asarray(tokens, dtype=float) ** (0.32 + 0.003 * place)


def worths(seed):
    """τ of every ordered (target, source): most are worth a little more or less than nothing, one never catches up."""
    rng = np.random.default_rng([seed, 1])
    found = {pair: rng.normal(0.05, 0.2) for pair in itertools.permutations(LANGUAGES, 2)}
    return {pair: float(np.clip(tau, -0.3, 0.7)) for pair, tau in found.items()} | {("hi", "zh"): -0.8}


def score(tau):
    """The score that τ gives: the pair needs 2/(1+τ) of the tokens that the language alone has."""
    return 2 - 2 / (1 + tau)


def curves(seed, checkpoint=0.008, run=0.006, repeats=2):
    """Runs to 42B tokens alone (`repeats` of each) and 84B in pairs, 20 to 60 evaluations at steps of their own."""
    rng, tau, rows = np.random.default_rng(seed), worths(seed), []
    mixtures = [((name,), 42e9, again) for name in LANGUAGES for again in range(repeats)]
    mixtures += [(pair, 84e9, 0) for pair in itertools.combinations(LANGUAGES, 2)]
    for languages, most, again in mixtures:
        last, count = int(most / STEP), int(rng.integers(20, 61))
        evenly = np.linspace(last / count, last, count)
        steps = np.unique(
            (evenly if rng.random() < 0.5 else np.geomspace(last / 40, last, count)).astype(int)
        )
        shift = {name: rng.normal(0, run) for name in languages}
        for name in languages:
            others = [other for other in languages if other != name]
            worth = (1 + tau[name, others[0]]) / 2 if others else 1.0
            noise = rng.normal(0, checkpoint, len(steps))
            for step, loss in zip(
                steps, alone(name, steps * STEP * worth) + shift[name] + noise, strict=True
            ):
                rows.append(("-".join([*languages, str(again)]), "+".join(languages), step, name, loss))
    table = pd.DataFrame(rows, columns=["run", "languages", "step", "language", "loss"])
    return table.assign(tokens=table["step"] * STEP, params=PARAMS), tau


def falling(values):
    """The non-increasing sequence nearest to values, by pooling neighbours that rise."""
    blocks = []
    for value in values:
        blocks.append([value, 1])
        while len(blocks) > 1 and blocks[-1][0] > blocks[-2][0]:
            mean, size = blocks.pop()
            total = blocks[-1][1] + size
            blocks[-1] = [(blocks[-1][0] * blocks[-1][1] + mean * size) / total, total]
    return np.concatenate([np.full(size, mean) for mean, size in blocks])


def by_definition(table, target, source, d):
    """−(σ(L_t(d)) − 2d)/d by pooled neighbours and straight lines in log tokens; None where never reached."""
    pair = "+".join(sorted((target, source)))
    curve = {}
    for languages in (target, pair):
        rows = table[(table["languages"] == languages) & (table["language"] == target)].sort_values("tokens")
        curve[languages] = np.log(rows["tokens"].to_numpy(float)), falling(rows["loss"].to_numpy(float))
    wanted = np.interp(np.log(d), *curve[target])
    x, y = curve[pair]
    if wanted < y[-1]:
        return None
    right = int(np.argmax(y <= wanted))
    share = (y[right - 1] - wanted) / (y[right - 1] - y[right])
    return -(np.exp(x[right - 1] + share * (x[right] - x[right - 1])) - 2 * d) / d
