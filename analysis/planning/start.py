"""Whether to train from scratch or to continue a multilingual checkpoint: `mscale plan start`."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from analysis.crossover import crossover
from analysis.planning import gaussian_process
from analysis.planning.answer import (
    BASIS_PUBLISHED,
    BASIS_STUDY,
    Answer,
    check_positive,
    check_published_range,
    check_study_range,
)
from analysis.study.results import Results
from analysis.tables import languages as inventory
from analysis.tables import published as reference
from analysis.text import count, signed, span


def start(target: str, params: float, tokens: float, results: Results | None = None) -> Answer:
    """Whether to train from scratch or from a multilingual checkpoint, on `tokens` of `target` at N `params`.

    The answer is from the crossover of the study at a size within a factor of two, else from its other crossovers
    (`gaussian_process`), else from the published figures.

    Raises:
      MscaleError: a size too far from any that was measured.
    """
    check_positive("plan start", params=params, tokens=tokens)
    asked = f"{target} at {count(params)} parameters and {count(tokens)} tokens"
    near = [
        row
        for row in (results.crossover.table if results else [])
        if row["language"] == target and row["status"] != "missing" and 0.5 <= row["params"] / params <= 2
    ]
    if results and near:
        row = min(near, key=lambda row: abs(np.log(row["params"] / params)))
        low, high = row["low"] or 0.0, row["high"] or np.inf
        if row["status"] == "bound":
            # Noise may hide a crossover just before the bound: use the end of its interval where that is nearer.
            low = min(row["low"] or row["tokens"], row["tokens"]) if row["bound"] == "at least" else 0.0
            high = np.inf if row["bound"] == "at least" else max(row["high"] or row["tokens"], row["tokens"])
        what, others = _verdict(tokens, low, high), None
        if what == _CLOSE and row["status"] == "bound":
            others = gaussian_process.crossover_interval(results, target, params)
            ahead = "continuing is still" if row["bound"] == "at least" else "scratch is already"
            beyond = (tokens > row["tokens"]) == (row["bound"] == "at least")
            what = f"{'not within the data' if beyond else what} ({ahead} ahead at {count(row['tokens'])})"
        gap, reasons = _gap(results, row, tokens)
        if abs(np.log(row["params"] / params)) > 0.05:
            reasons.append(f"read at {count(row['params'])} parameters, the nearest size at which it was run")
        text = f"{asked}: {what}. The crossover lies {_between(low, high)} tokens.{gap}"
        if others:
            reasons.append(
                f"by the trend of the gap and the study's other crossovers it lies {_between(*others)} tokens"
            )
        shown = {name: dict(row)[name] for name in ("scale", *crossover.CROSSOVER_MEASURES)}
        return Answer(text, (shown,), BASIS_STUDY, ("one multilingual checkpoint was continued", *reasons))
    reasons = []
    if results and (read := gaussian_process.crossover_interval(results, target, params)):
        reasons.append(_no_crossover(target, params, results))
        check_study_range(params, results.study, reasons)
        reasons.append(
            "read off those by a power law in N near the published exponent, languages differing by a third"
        )
        text = (
            f"{asked}: {_verdict(tokens, *read)}. By the study's other crossovers this one lies {_between(*read)} "
            "tokens."
        )
        rows = (dict(zip(("low", "high"), read, strict=True)),)
        return Answer(text, rows, BASIS_STUDY, tuple(reasons))
    if results:
        reasons.append(_no_crossover(target, params, results))
    check_published_range(params, reasons)
    law = float(crossover.PUBLISHED_POWER_LAW.tokens(params))
    other = float(crossover.PUBLISHED_LEGEND_POWER_LAW.tokens(params))
    table = reference.published_crossovers().set_index("language")["tokens"].astype(float)
    name = reference.ISO_OF_MADLAD.get(target, target)
    if name in table.index:
        law, other = (
            float(power.tokens(params) / power.tokens(2e9) * table[name])
            for power in (crossover.PUBLISHED_POWER_LAW, crossover.PUBLISHED_LEGEND_POWER_LAW)
        )
        reasons.append(f"{target} itself crosses at {count(float(table[name]))} tokens at 2B parameters")
    else:
        if not inventory.language_metadata([name]):
            reasons.append(f"{target!r} is no code of a language known here: is it meant?")
        low, high = float(table.min()), float(table.max())
        reasons.append(
            f"{target} is none of the eight published languages, which cross from {count(low)} to {count(high)}"
        )
    reasons.append(
        "the paper prints two sets of constants; the text's are used, the legend's give the second figure"
    )
    reasons.append("with no interval published, less than a factor of two from the crossover is a close call")
    ends = sorted((law, other))
    both = f" ({count(ends[0])} to {count(ends[1])} by the paper's two sets of constants)"
    text = (
        f"{asked}: {_verdict(tokens, law / 2, law * 2)}; the crossover is at about {count(law)} tokens"
        f"{both if ends[1] > 1.01 * ends[0] else ''}."
    )
    published = {"crossover_tokens": law, "other_constants": other, "tokens_over_crossover": tokens / law}
    return Answer(text, (published,), BASIS_PUBLISHED, tuple(reasons))


_CLOSE = "too close to call"


def _verdict(tokens: float, low: float, high: float) -> str:
    """What to start from, where the crossover lies between `low` and `high` tokens."""
    return _CLOSE if low < tokens < high else "from scratch" if tokens >= high else "from the checkpoint"


def _between(low: float, high: float) -> str:
    """An interval of tokens in words; 0 and ∞ are open ends."""
    if low > 0 and np.isfinite(high):
        return f"between {count(low)} and {count(high)}"
    return span(low or None, high if np.isfinite(high) else None, count)


def _gap(results: Results, row: Mapping[str, Any], tokens: float) -> tuple[str, list[str]]:
    """A sentence on the loss from scratch minus that of continuing at `tokens`, with its interval; and caveats."""
    curve = [
        point
        for point in results.crossover.gaps
        if point["language"] == row["language"] and point["scale"] == row["scale"]
    ]
    if not curve:
        return "", []
    x = np.log([point["tokens"] for point in curve])
    at = float(np.clip(np.log(tokens), x[0], x[-1]))
    gap, low, high = (
        float(np.interp(at, x, [np.nan if point[name] is None else point[name] for point in curve]))
        for name in ("gap", "low", "high")
    )

    def nats(value: float | None) -> str:
        return signed(value, 3)

    ends = span(None if np.isnan(low) else low, None if np.isnan(high) else high, nats)
    where = f"at {count(tokens)} tokens"
    reasons = []
    if not np.exp(x[0]) * 0.99 <= tokens <= np.exp(x[-1]) * 1.01:
        where = f"at {count(float(np.exp(at)))}, the nearest tokens that both runs have,"
        reasons.append(
            f"{count(tokens)} tokens are outside the runs, {count(float(np.exp(x[0])))} to "
            f"{count(float(np.exp(x[-1])))}: nothing is extrapolated"
        )
    return f" Scratch minus continued {where} is {nats(gap)} nats ({ends}).", reasons


def _no_crossover(target: str, params: float, results: Results) -> str:
    """Says that the study has no crossover of the target near N `params`, and which ones it has."""
    found = sorted(
        {
            f"{row['language']} at {count(row['params'])}"
            for row in results.crossover.table
            if row["status"] != "missing"
        }
    )
    return (
        f"the study has no crossover of {target} within a factor of two of {count(params)} parameters "
        f"({', '.join(found) or 'it has none at all'}): run it from scratch and from the checkpoint there"
    )
