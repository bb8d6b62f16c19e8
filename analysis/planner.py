"""Decisions from a study's results (`answers.analyse`) or from the published figures, each with its interval.

Where both can answer, the study does. The published figures carry no intervals, and the answers say so. What
neither supports is refused with the fit that is missing.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from analysis import capacity, crossover, crossover_process, growth_plan, inventory, reference
from analysis.transfer import effective_transfer
from analysis.transfer_findings import main_matrix
from analysis.wording import count, few, signed, span
from mscale.errors import MscaleError, nearest

PUBLISHED = "published (Longpre et al. 2026; interval not published)"
STUDY = "this study"
PREDICTED = "this study, predicted from other pairs"
# The published runs reach from 9M to 8B parameters; a decade beyond is flagged, more is refused.
PUBLISHED_PARAMS = (9e6, 8e9)
# Of the published transfer matrix, and the most languages of a uniform mixture.
PUBLISHED_SIZE, PUBLISHED_TOKENS, PUBLISHED_LANGUAGES = 2e9, 42e9, 50


@dataclass(frozen=True)
class Answer:
    """A decision: what to do, the rows behind it, where they are from, and the reasons for and against it.

    `more`: further tables, (title, rows).
    """

    text: str
    rows: tuple[dict, ...]
    basis: str
    reasons: tuple[str, ...] = ()
    more: tuple[tuple[str, tuple[dict, ...]], ...] = ()


def languages(target: str, results: Mapping[str, Any] | None = None, *, decide: bool = True) -> Answer:
    """Sources to train together with ``target``, best first: score, interval, and the worth τ of a token.

    Scores that were measured come first, then those predicted for pairs that were not run, then the paper's.

    Args:
      decide: False where a budget decides how much of which (`co_training`): then only who helps is said.

    Raises:
      MscaleError: neither the study nor the paper has a score for the target.
    """
    rows = []
    measured = main_matrix(dict(results)) if results else []
    for row in measured:
        if row["target"] == target and row["status"] in ("measured", "bound"):
            keep = {name: row[name] for name in ("source", "score", "low", "high", "tau")}
            rows.append({**keep, "bound": row.get("bound") or "", "basis": STUDY})
    known = {reference.ALIASES.get(row["source"], row["source"]) for row in rows}
    # The basis sorts: what was measured before what is predicted, the study before the paper.
    predicted = results["transfer"].get("predicted", {}).get("cells", ()) if results else ()
    for row in predicted:
        source = reference.ALIASES.get(row["source"], row["source"])
        if row["target"] == target and source not in known:
            keep = {name: row[name] for name in ("source", "score", "low", "high")}
            tau = float(effective_transfer(row["score"]))
            rows.append({**keep, "tau": tau, "bound": "", "basis": PREDICTED})
            known.add(source)
    # Generated languages may bear the codes of natural ones, of which the paper speaks.
    generated = bool(results and results.get("truth"))
    paper = reference.published_transfer()
    paper = paper.head(0) if generated else paper
    alias = reference.ALIASES.get(target, target)
    for entry in paper[paper["target"] == alias].dropna().to_dict("records"):
        if entry["source"] not in known:
            tau = float(effective_transfer(entry["score"]))
            keep = {"source": entry["source"], "score": entry["score"], "low": None, "high": None, "tau": tau}
            rows.append({**keep, "bound": "", "basis": PUBLISHED})
    if not rows:
        names = sorted({row["target"] for row in measured} | set(paper["target"]))
        raise MscaleError(
            f"no transfer score for {target!r}{nearest(target, names)}: neither the study nor the paper "
            f"(38 languages) measured it; known: {few(names, 40)}. Run it alone and in 50/50 pairs with the candidates"
        )
    order = (STUDY, PREDICTED, PUBLISHED)
    rows.sort(key=lambda row: (order.index(row["basis"]), -row["score"]))
    best = rows[0]
    # A score without a lower end is known to help only where it is itself such an end, or the paper gives none.
    floor = best["score"] if best["basis"] == PUBLISHED or best["bound"] == "at least" else best["low"]
    said = f"{best['bound']} {signed(best['score'])}".strip()
    if best["basis"] != PUBLISHED and not best["bound"]:
        said += f" ({span(best['low'], best['high'])})"
    worth = (
        ""
        if best["tau"] is None
        else f"; a token of {best['source']} is worth {best['tau']:.2f} tokens of {target}"
    )
    told = f"Train {target} with {best['source']}"
    if not decide:
        told = f"Trained half and half with {target}, {best['source']} helps most"
    text = (
        f"{told}: score {said}{worth}."
        if floor is not None and floor > 0
        else f"No source is known to help {target}; the best is {best['source']}, {said}."
    )
    reasons = [
        "scores do not add: two sources together may give less than either promises",
        f"scores are {'published' if best['basis'] == PUBLISHED else 'of this study'}, and drift with size and budget",
    ]
    if best["basis"] == PUBLISHED:
        size, budget = count(PUBLISHED_SIZE), count(PUBLISHED_TOKENS)
        reasons.append(f"the paper measured at {size} parameters and d = {budget} tokens; yours may differ")
    elif any(row["basis"] == PUBLISHED for row in rows):
        reasons.append(f"sources the study did not run are shown as {PUBLISHED}")
    if any(row["bound"] for row in rows):
        reasons.append(
            "at most: the pair's runs never reached the loss, so its score lies below; at least: the other way"
        )
    return Answer(text, tuple(rows), best["basis"], tuple(reasons))


def expand(
    k_from: float, k_to: float, params: float, tokens: float, results: Mapping[str, Any] | None = None
) -> Answer:
    """Parameters, tokens (of all languages) and compute that keep the loss when K grows.

    From a fit also the point of least compute, where the start is not compute-optimal.

    Raises:
      MscaleError: numbers that are not positive, or a size too far from any that was measured.
    """
    check_positive("plan expand", **{"from": k_from, "to": k_to, "params": params, "tokens": tokens})
    if min(k_from, k_to) < 1:
        raise MscaleError(f"plan expand: {min(k_from, k_to):g} languages, expected 1 or more")
    ratio = k_to / k_from
    answer = results["capacity"] if results else None
    reasons = []
    if answer and answer["identified"]:
        return _expand_from_fit(k_from, ratio, params, tokens, results or {})
    growth, basis = capacity.published_growth(ratio), PUBLISHED
    if answer:
        reasons.append(f"the study's own growth is not identified: {answer['reason']}")
    _check_published(params, reasons)
    reasons += ["assumes uniform sampling and a compute-optimal start"]
    if k_to > PUBLISHED_LANGUAGES:
        reasons.append(f"the paper fitted mixtures of up to {PUBLISHED_LANGUAGES} languages: extrapolated")
    row = _grown(growth, params, tokens)
    return Answer(_grown_text(k_from, ratio, row, basis), (row,), basis, tuple(reasons))


def _grown(growth: capacity.Growth, params: float, tokens: float) -> dict[str, Any]:
    return {
        "what": "same balance of size and data",
        "parameters": params * growth.N,
        "tokens": tokens * growth.D_tot,
        "flops": 6 * params * tokens * growth.C,
        "times_parameters": growth.N,
        "times_tokens": growth.D_tot,
        "times_flops": growth.C,
    }


def _grown_text(k_from: float, ratio: float, row: dict, basis: str, interval: str = "") -> str:
    return (
        f"From {k_from:g} to {k_from * ratio:g} languages at the same loss: {count(row['parameters'])} parameters "
        f"(×{row['times_parameters']:.2f}), {count(row['tokens'])} tokens (×{row['times_tokens']:.2f}), "
        f"{count(row['flops'])} FLOPs (×{row['times_flops']:.2f}{interval}); {basis}."
    )


def _expand_from_fit(
    k_from: float, ratio: float, params: float, tokens: float, results: Mapping[str, Any]
) -> Answer:
    values = {row["name"]: row for row in results["laws"]["capacity"]["parameters"]}
    powers = tuple(values[name]["estimate"] for name in ("phi", "psi", "alpha", "beta"))
    row = _grown(capacity.growth(ratio, *powers), params, tokens)
    for name, exponent in results["capacity"].get("exponents", {}).items():
        ends = sorted(ratio ** exponent[side] for side in ("low", "high"))
        column = {"N": "times_parameters", "D_tot": "times_tokens", "C": "times_flops"}[name]
        row[f"{column}_low"], row[f"{column}_high"] = ends
    low, high = row.get("times_flops_low"), row.get("times_flops_high")
    interval = f", {low:.2f} to {high:.2f}" if low is not None else ""
    reasons = ["assumes uniform sampling; exponents are common to the languages"]
    check_range(params, results, reasons)
    ks = [point["K"] for point in results["capacity"]["points"]]
    if ks and not min(ks) <= k_from * ratio <= max(ks):
        reasons.append(
            f"{k_from * ratio:g} languages are outside the mixtures that were run, {min(ks):g} to {max(ks):g}"
        )
    rows, text = [row], _grown_text(k_from, ratio, row, STUDY, interval)
    cheapest = growth_plan.least_compute(results, k_from, ratio, params, tokens)
    if cheapest:
        rows.append(cheapest)
        reasons.append(cheapest.pop("why"))
        text += (
            f" Least compute at that loss: {count(cheapest['parameters'])} parameters, "
            f"{count(cheapest['tokens'])} tokens, {count(cheapest['flops'])} FLOPs "
            f"(×{cheapest['times_flops']:.2f}, {cheapest['times_flops_low']:.2f} to "
            f"{cheapest['times_flops_high']:.2f})."
        )
    return Answer(text, tuple(rows), STUDY, tuple(reasons))


def start(target: str, params: float, tokens: float, results: Mapping[str, Any] | None = None) -> Answer:
    """From scratch or from a multilingual checkpoint, for so many tokens of ``target`` at N ``params``.

    Raises:
      MscaleError: a size too far from any that was measured.
    """
    check_positive("plan start", params=params, tokens=tokens)
    mine = [
        row
        for row in (results["crossover"]["table"] if results else [])
        if row["language"] == target and row["status"] != "missing" and 0.5 <= row["params"] / params <= 2
    ]
    if mine:
        row = min(mine, key=lambda row: abs(np.log(row["params"] / params)))
        low, high = row["low"] or 0.0, row["high"] or np.inf
        if row["status"] == "bound":
            # Noise may hide a crossover just before a bound: its own end counts where that is nearer.
            low = min(row["low"] or row["tokens"], row["tokens"]) if row["bound"] == "at least" else 0.0
            high = np.inf if row["bound"] == "at least" else max(row["high"] or row["tokens"], row["tokens"])
        close = low < tokens < high
        what = "too close to call" if close else "from scratch" if tokens >= high else "from the checkpoint"
        others = None
        if close and row["status"] == "bound":
            others = crossover_process.between(results or {}, target, params)
            ahead = "continuing is still" if row["bound"] == "at least" else "scratch is already"
            beyond = (tokens > row["tokens"]) == (row["bound"] == "at least")
            what = f"{'not within the data' if beyond else what} ({ahead} ahead at {count(row['tokens'])})"
        gap, reasons = _gap(results or {}, row, tokens)
        if abs(np.log(row["params"] / params)) > 0.05:
            reasons.append(f"read at {count(row['params'])} parameters, the nearest size at which it was run")
        text = (
            f"{target} at {count(params)} parameters and {count(tokens)} tokens: {what}. The crossover lies "
            f"{_between(low, high)} tokens.{gap}"
        )
        if others:
            reasons.append(
                f"by the trend of the gap and the study's other crossovers it lies {_between(*others)} tokens"
            )
        shown = {name: row[name] for name in ("scale", *crossover.MEASURES)}
        return Answer(text, (shown,), STUDY, ("one multilingual checkpoint was continued", *reasons))
    if results and (read := crossover_process.between(results, target, params)):
        return _from_others(target, params, tokens, results, *read)
    reasons = []
    if results:
        reasons.append(_no_crossover(target, params, results))
    _check_published(params, reasons)
    law = float(crossover.PUBLISHED.tokens(params))
    other = float(crossover.PUBLISHED_LEGEND.tokens(params))
    table = reference.published_crossovers().set_index("language")["tokens"].astype(float)
    name = reference.ALIASES.get(target, target)
    if name in table.index:
        law, other = (
            float(published.tokens(params) / published.tokens(2e9) * table[name])
            for published in (crossover.PUBLISHED, crossover.PUBLISHED_LEGEND)
        )
        reasons.append(f"{target} itself crosses at {count(float(table[name]))} tokens at 2B parameters")
    else:
        if not inventory.describe([name]):
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
    closeness = tokens / law
    close = 0.5 < closeness < 2
    what = "too close to call" if close else "from scratch" if closeness >= 2 else "from the checkpoint"
    text = (
        f"{target} at {count(params)} parameters and {count(tokens)} tokens: {what}; the crossover is at about "
        f"{count(law)} tokens{both if ends[1] > 1.01 * ends[0] else ''}."
    )
    row = {"crossover_tokens": law, "other_constants": other, "tokens_over_crossover": closeness}
    return Answer(text, (row,), PUBLISHED, tuple(reasons))


def _from_others(
    target: str, params: float, tokens: float, results: Mapping[str, Any], low: float, high: float
) -> Answer:
    """The answer for a size or language whose crossover was not read, by a power law through those that were."""
    reasons: list[str] = [_no_crossover(target, params, results)]
    check_range(params, results, reasons)
    reasons.append(
        "read off those by a power law in N near the published exponent, languages differing by a third"
    )
    what = (
        "from scratch" if tokens >= high else "from the checkpoint" if tokens <= low else "too close to call"
    )
    text = (
        f"{target} at {count(params)} parameters and {count(tokens)} tokens: {what}. By the study's other crossovers "
        f"this one lies {_between(low, high)} tokens."
    )
    return Answer(text, ({"low": low, "high": high},), STUDY, tuple(reasons))


def _between(low: float, high: float) -> str:
    if low > 0 and np.isfinite(high):
        return f"between {count(low)} and {count(high)}"
    return span(low or None, high if np.isfinite(high) else None, count)


def _gap(results: Mapping[str, Any], row: Mapping[str, Any], tokens: float) -> tuple[str, list[str]]:
    """How close the call is: the loss from scratch minus that of continuing at so many tokens, and its interval."""
    curve = [
        point
        for point in results["crossover"].get("gaps", ())
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


def _no_crossover(target: str, params: float, results: Mapping[str, Any]) -> str:
    found = sorted(
        {
            f"{row['language']} at {count(row['params'])}"
            for row in results["crossover"]["table"]
            if row["status"] != "missing"
        }
    )
    return (
        f"the study has no crossover of {target} within a factor of two of {count(params)} parameters "
        f"({', '.join(found) or 'it has none at all'}): run it from scratch and from the checkpoint there"
    )


def check_positive(what: str, **values: float | None) -> None:
    """Raises MscaleError where a number that is given is not positive, or not a number at all."""
    for name, value in values.items():
        if value is not None and not 0 < value < np.inf:
            raise MscaleError(f"{what}: --{name} is {value:g}, expected a positive number")


def check_range(params: float, results: Mapping[str, Any], reasons: list[str]) -> None:
    """Flags a size outside the study's; raises MscaleError where it is hopelessly so."""
    low, high = results_range(results)
    if not low / 100 <= params <= high * 100:
        raise MscaleError(
            f"{count(params)} parameters are more than a hundredfold outside the study's runs, {count(low)} to "
            f"{count(high)}: its laws support no answer there; run sizes nearer to it"
        )
    if not low * 0.99 <= params <= high * 1.01:
        far = "far " if not low / 10 <= params <= high * 10 else ""
        reasons.append(
            f"{count(params)} parameters are {far}outside the study's {count(low)} to {count(high)}: extrapolated"
        )


def results_range(results: Mapping[str, Any]) -> tuple[float, float]:
    """The smallest and largest N of a study."""
    sizes = [scale["params"] for scale in results["study"]["scales"]]
    return float(min(sizes)), float(max(sizes))


def _check_published(params: float, reasons: list[str]) -> None:
    low, high = PUBLISHED_PARAMS
    if not low / 10 <= params <= high * 10:
        more = f" ({reasons[0]})" if reasons else ""
        raise MscaleError(
            f"{count(params)} parameters are more than tenfold outside the published runs ({count(low)} "
            f"to {count(high)}): "
            f"the published figures support no answer; fit your own runs{more}"
        )
    if not low <= params <= high:
        reasons.append(
            f"{count(params)} parameters are outside the published runs, {count(low)} to {count(high)}"
        )
