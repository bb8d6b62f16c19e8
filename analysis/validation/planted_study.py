"""A planted study in the contract's columns: what a demo would measure if a known ATLAS law were true.

Six languages of three families; alone, in all pairs and together, from scratch and from a checkpoint, with repeated
data and a repeated seed. The notebooks and the tests plant it and ask for its law back.
"""

import itertools

import numpy as np
import pandas as pd

LANGUAGES = ("aka", "abo", "bek", "bil", "cut", "cim")
FAMILIES = {"a": "west", "b": "south", "c": "east"}
PARAMS = {"nano0": 16_000, "nano1": 34_000, "nano2": 72_000, "nano3": 155_000, "nano4": 330_000}
ALPHA, BETA, LAMBDA = 0.35, 0.30, 0.25
BATCH_TOKENS = 16 * 256


def relatedness(source: str, target: str) -> float:
    """Planted: 0.5 inside a family (same first letter), 0.08 across; symmetric."""
    if source == target:
        return 1.0
    return 0.5 if source[0] == target[0] else 0.08


def saturate(tokens: float, unique: float) -> float:
    """S(D; U) of ATLAS with the planted λ."""
    if unique <= 0 or tokens <= unique:
        return tokens
    return unique * (1 + (1 - np.exp(-LAMBDA * (tokens / unique - 1))) / LAMBDA)


def loss(
    target: str, params: float, tokens: dict, unique: dict, head_start: float = 0.0, worse: float = 0.0
) -> float:
    """The planted ATLAS law, per target language; `head_start` and `worse` plant the crossover."""
    index = LANGUAGES.index(target)
    effective = head_start
    for source, seen in tokens.items():
        effective += relatedness(source, target) * saturate(seen, unique.get(source, np.inf))
    effective = max(effective, 2e3)
    big_e, big_a, big_b = 1.0 + 0.05 * index, 14.0 + index, 22.0 + 2 * index
    return big_e + (1 + worse) * big_a / params**ALPHA + big_b / effective**BETA


def study(
    seed: int = 0, checkpoint_noise: float = 0.002, run_noise: float = 0.003, small: bool = False
) -> tuple[pd.DataFrame, pd.DataFrame, dict]:
    """Plants a study.

    Args:
      checkpoint_noise, run_noise: standard deviations in nats. small: three sizes in place of five, fewer pairs.

    Returns: observations, exposure (the contract's tables), and what truth.json would say.
    """
    rng = np.random.default_rng(seed)
    rows: list[dict] = []
    exposures: list[dict] = []
    sizes = ["nano0", "nano2", "nano4"] if small else list(PARAMS)
    middle = "nano2"

    def trunk(
        name: str,
        scale: str,
        mixture: str,
        languages: tuple[str, ...],
        total: int,
        budgets: tuple[int, ...],
        *,
        seed: int = 0,
        unique: dict[str, int] | None = None,
        init: str | None = None,
        tag: str = "",
    ) -> str:
        unique = unique or {}
        group = f"{tag}-{name}-{scale}-s{seed}"
        offset = {language: rng.normal(0, run_noise) for language in LANGUAGES}
        steps = total // BATCH_TOKENS
        at = sorted({int(s) for s in np.geomspace(max(steps // 60, 4), steps, 18)})
        warmup = max(steps // 20, 5)
        points = [(group, s, "warmup" if s < warmup else "stable", 0.0) for s in at]
        for budget in budgets:
            stop = budget // BATCH_TOKENS
            points += [
                (f"{group}-b{stop}", int(stop * 0.95), "decay", -0.02),
                (f"{group}-b{stop}", stop, "end", -0.05),
            ]
        for run, step, phase, shift in points:
            tokens = step * BATCH_TOKENS
            seen = {language: tokens / len(languages) for language in languages}
            for language in languages:
                exposures.append(
                    {
                        "run": run,
                        "step": step,
                        "language": language,
                        "tokens": int(seen[language]),
                        "unique_tokens": int(min(seen[language], unique.get(language, 1e12))),
                    }
                )
            for target in LANGUAGES:
                head, worse = (
                    (8e5, 0.10) if init and target in languages else (4e5, 0.1) if init else (0.0, 0.0)
                )
                value = loss(target, PARAMS[scale], seen, unique, head, worse)
                value += (
                    shift + offset[target] + rng.normal(0, checkpoint_noise * (0.3 if phase == "end" else 1))
                )
                if phase == "warmup":
                    value += 0.1
                rows.append(
                    {
                        "run": run, "study": "planted", "tag": tag, "group": group, "scale": scale,
                        "params": PARAMS[scale], "params_nonembedding": int(PARAMS[scale] * 0.8),
                        "mixture": mixture,
                        "languages": "+".join(languages), "vocabulary": "bytes", "init": init or "scratch",
                        "init_tokens": 6_000_000 // BATCH_TOKENS * BATCH_TOKENS if init else 0, "seed": seed,
                        "step": step, "tokens": tokens, "phase": phase, "lr": 2e-3 if phase != "end" else 0.0,
                        "language": target, "split": "valid", "target_tokens": int(seen.get(target, 0)),
                        "target_unique": int(unique.get(target, 10_000_000)) if target in languages else 0,
                        "loss": value, "loss_se": 0.004, "bits_per_byte": value / np.log(2),
                        "unigram_normalized_loss": value - 2.9, "eval_tokens": 65536, "eval_bytes": 65000,
                        "flops": 6.0 * PARAMS[scale] * tokens,
                    }
                )  # fmt: skip
        return group

    for scale in sizes:
        for language in LANGUAGES if scale == middle else LANGUAGES[:2]:
            budgets = (1_000_000, 2_000_000, 4_000_000)
            trunk(language, scale, language, (language,), 4_000_000, budgets, tag="mono")
    trunk(
        LANGUAGES[0],
        middle,
        LANGUAGES[0],
        LANGUAGES[:1],
        4_000_000,
        (2_000_000, 4_000_000),
        seed=1,
        tag="mono",
    )
    for pair in itertools.combinations(LANGUAGES, 2):
        if not small or pair[0][0] == "a":
            trunk(
                "+".join(pair), middle, "+".join(pair), pair, 6_000_000, (3_000_000, 6_000_000), tag="pairs"
            )
    for count in (2, 4, 6):
        for scale in sizes[:: 1 if small else 2]:
            if count > 2 or scale != middle:
                chosen = LANGUAGES[:count]
                trunk(
                    f"uniform{count}",
                    scale,
                    "+".join(chosen),
                    chosen,
                    6_000_000,
                    (3_000_000, 6_000_000),
                    tag="capacity",
                )
    for epochs in (4, 16):
        limit = 4_000_000 // epochs
        trunk(f"{LANGUAGES[0]}-e{epochs}", middle, LANGUAGES[0], LANGUAGES[:1], 4_000_000, (4_000_000,),
              unique={LANGUAGES[0]: limit}, tag="repeat")  # fmt: skip
    unimax = trunk("unimax", middle, "unimax", LANGUAGES, 6_000_000, (6_000_000,), tag="unimax")
    for language in LANGUAGES[:3]:
        trunk(f"{language}-from-unimax", middle, language, (language,), 4_000_000, (2_000_000, 4_000_000),
              init=unimax, tag="continue")  # fmt: skip
    truth = {
        "languages": {code: {"family": FAMILIES[code[0]], "script": "Latn"} for code in LANGUAGES},
        "relatedness": {a: {b: relatedness(b, a) for b in LANGUAGES} for a in LANGUAGES},
        "seed": seed,
        "parameters": {},
    }
    return pd.DataFrame(rows), pd.DataFrame(exposures), truth
