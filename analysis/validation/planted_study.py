"""A multilingual study drawn from a known ATLAS law, in the columns of `mscale.observations`.

Six languages of three families: alone, in pairs and together, from scratch and from a checkpoint, with repeated data
and a repeated seed. The notebooks and the tests fit it and compare the results with the known parameters.
"""

import itertools
from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
import pandas as pd

from mscale.scales import training_flops

LANGUAGES = ("aka", "abo", "bek", "bil", "cut", "cim")
_FAMILY_OF_INITIAL = {"a": "west", "b": "south", "c": "east"}
PARAMS = {"nano0": 16_000, "nano1": 34_000, "nano2": 72_000, "nano3": 155_000, "nano4": 330_000}
TRUE_ALPHA, TRUE_BETA, TRUE_LAMBDA = 0.35, 0.30, 0.25
_BATCH_TOKENS = 16 * 256
_MIDDLE = "nano2"  # the scale at which all languages and pairs are run


def planted_tau(source: str, target: str) -> float:
    """τ: 0.5 within a family (same first letter), 0.08 between families, 1 of a language to itself; symmetric."""
    if source == target:
        return 1.0
    return 0.5 if source[0] == target[0] else 0.08


def _effective_tokens(tokens: float, unique: float) -> float:
    """S(D; U) of ATLAS with λ = `TRUE_LAMBDA`."""
    if unique <= 0 or tokens <= unique:
        return tokens
    return unique * (1 + (1 - np.exp(-TRUE_LAMBDA * (tokens / unique - 1))) / TRUE_LAMBDA)


def loss(
    target: str,
    params: float,
    tokens: Mapping[str, float],
    unique: Mapping[str, float],
    head_start: float = 0.0,
    worse: float = 0.0,
) -> float:
    """The loss on `target` by the planted ATLAS law, in nats.

    Args:
      tokens: of each language of the mixture. unique: unique tokens of each, unlimited where missing.
      head_start: effective tokens that a checkpoint is worth. worse: factor by which the size term grows, less 1, for a
        continued checkpoint. Together the two plant a crossover.
    """
    index = LANGUAGES.index(target)
    effective = head_start
    for source, seen in tokens.items():
        effective += planted_tau(source, target) * _effective_tokens(seen, unique.get(source, np.inf))
    effective = max(effective, 2e3)
    big_e, big_a, big_b = 1.0 + 0.05 * index, 14.0 + index, 22.0 + 2 * index
    return big_e + (1 + worse) * big_a / params**TRUE_ALPHA + big_b / effective**TRUE_BETA


@dataclass(frozen=True)
class _Trunk:
    """One trunk at constant learning rate and its decayed branches.

    total: tokens of the trunk. budgets: tokens at which a branch ends. unique: {language: unique tokens}.
    init: group of the trunk whose checkpoint it continues.
    """

    name: str
    scale: str
    mixture: str
    languages: tuple[str, ...]
    total: int
    budgets: tuple[int, ...]
    tag: str
    seed: int = 0
    unique: Mapping[str, int] = field(default_factory=dict)
    init: str | None = None

    @property
    def group(self) -> str:
        """The name of the trunk, which its branches share."""
        return f"{self.tag}-{self.name}-{self.scale}-s{self.seed}"


def make_study(
    seed: int = 0, checkpoint_noise: float = 0.002, run_noise: float = 0.003, small: bool = False
) -> tuple[pd.DataFrame, pd.DataFrame, dict]:
    """Draws the study.

    Args:
      checkpoint_noise, run_noise: standard deviations in nats, of an evaluation and of a trunk on a language.
      small: three sizes instead of five, fewer pairs.

    Returns: observations, exposure (columns as in `mscale.observations`), and the truth as in a truth.json.
    """
    rng = np.random.default_rng(seed)
    rows: list[dict] = []
    exposures: list[dict] = []
    for trunk in _trunks(small):
        observed, exposed = _draw_trunk(trunk, rng, checkpoint_noise, run_noise)
        rows += observed
        exposures += exposed
    truth = {
        "languages": {code: {"family": _FAMILY_OF_INITIAL[code[0]], "script": "Latn"} for code in LANGUAGES},
        "relatedness": {a: {b: planted_tau(b, a) for b in LANGUAGES} for a in LANGUAGES},
        "seed": seed,
        "parameters": {},
    }
    return pd.DataFrame(rows), pd.DataFrame(exposures), truth


def _trunks(small: bool) -> list[_Trunk]:
    """The trunks of the study, in the order in which their noise is drawn."""
    sizes = ["nano0", _MIDDLE, "nano4"] if small else list(PARAMS)
    first = LANGUAGES[0]
    trunks = []
    for scale in sizes:
        for language in LANGUAGES if scale == _MIDDLE else LANGUAGES[:2]:
            budgets: tuple[int, ...] = (1_000_000, 2_000_000, 4_000_000)
            trunks.append(_Trunk(language, scale, language, (language,), 4_000_000, budgets, "mono"))
    trunks.append(_Trunk(first, _MIDDLE, first, (first,), 4_000_000, (2_000_000, 4_000_000), "mono", seed=1))
    for pair in itertools.combinations(LANGUAGES, 2):
        if not small or pair[0][0] == "a":
            name = "+".join(pair)
            trunks.append(_Trunk(name, _MIDDLE, name, pair, 6_000_000, (3_000_000, 6_000_000), "pairs"))
    for count in (2, 4, 6):
        for scale in sizes[:: 1 if small else 2]:
            if count > 2 or scale != _MIDDLE:
                chosen = LANGUAGES[:count]
                name, mixture = f"uniform{count}", "+".join(chosen)
                budgets = (3_000_000, 6_000_000)
                trunks.append(_Trunk(name, scale, mixture, chosen, 6_000_000, budgets, "capacity"))
    for epochs in (4, 16):
        name, unique = f"{first}-e{epochs}", {first: 4_000_000 // epochs}
        trunks.append(
            _Trunk(name, _MIDDLE, first, (first,), 4_000_000, (4_000_000,), "repeat", unique=unique)
        )
    unimax = _Trunk("unimax", _MIDDLE, "unimax", LANGUAGES, 6_000_000, (6_000_000,), "unimax")
    trunks.append(unimax)
    for language in LANGUAGES[:3]:
        name, budgets = f"{language}-from-unimax", (2_000_000, 4_000_000)
        trunks.append(
            _Trunk(name, _MIDDLE, language, (language,), 4_000_000, budgets, "continue", init=unimax.group)
        )
    return trunks


def _draw_trunk(
    trunk: _Trunk, rng: np.random.Generator, checkpoint_noise: float, run_noise: float
) -> tuple[list[dict], list[dict]]:
    """Rows of observations and exposure of a trunk and its branches."""
    rows: list[dict] = []
    exposures: list[dict] = []
    languages, init = trunk.languages, trunk.init
    offset = {language: rng.normal(0, run_noise) for language in LANGUAGES}
    steps = trunk.total // _BATCH_TOKENS
    evaluated = sorted({int(s) for s in np.geomspace(max(steps // 60, 4), steps, 18)})
    warmup = max(steps // 20, 5)
    points = [(trunk.group, s, "warmup" if s < warmup else "stable", 0.0) for s in evaluated]
    for budget in trunk.budgets:
        stop = budget // _BATCH_TOKENS
        points += [
            (f"{trunk.group}-b{stop}", int(stop * 0.95), "decay", -0.02),
            (f"{trunk.group}-b{stop}", stop, "end", -0.05),
        ]
    for run, step, phase, shift in points:
        tokens = step * _BATCH_TOKENS
        seen = {language: tokens / len(languages) for language in languages}
        for language in languages:
            exposures.append(
                {
                    "run": run,
                    "step": step,
                    "language": language,
                    "tokens": int(seen[language]),
                    "unique_tokens": int(min(seen[language], trunk.unique.get(language, 1e12))),
                }
            )
        for target in LANGUAGES:
            head_start, worse = 0.0, 0.0
            if init:
                head_start, worse = (8e5 if target in languages else 4e5), 0.1
            value = loss(target, PARAMS[trunk.scale], seen, trunk.unique, head_start, worse)
            value += shift + offset[target] + rng.normal(0, checkpoint_noise * (0.3 if phase == "end" else 1))
            if phase == "warmup":
                value += 0.1
            params = PARAMS[trunk.scale]
            rows.append(
                {
                    "run": run, "study": "planted", "tag": trunk.tag, "group": trunk.group, "scale": trunk.scale,
                    "params": params, "params_nonembedding": int(params * 0.8), "mixture": trunk.mixture,
                    "languages": "+".join(languages), "vocabulary": "bytes", "init": init or "scratch",
                    "init_tokens": 6_000_000 // _BATCH_TOKENS * _BATCH_TOKENS if init else 0, "seed": trunk.seed,
                    "step": step, "tokens": tokens, "phase": phase, "lr": 2e-3 if phase != "end" else 0.0,
                    "language": target, "split": "valid", "target_tokens": int(seen.get(target, 0)),
                    "target_unique": int(trunk.unique.get(target, 10_000_000)) if target in languages else 0,
                    "loss": value, "loss_se": 0.004, "bits_per_byte": value / np.log(2),
                    "unigram_normalized_loss": value - 2.9, "eval_tokens": 65536, "eval_bytes": 65000,
                    "flops": float(training_flops(params, tokens)),
                }
            )  # fmt: skip
    return rows, exposures
