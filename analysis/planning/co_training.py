"""Co-training: how much of which other languages to train with a target, and from which share on they hurt.

While the target's own text is not exhausted, a token of another language is worth less than one of its own (τ < 1).
Other languages help once a repeated token of the target is worth less than a fresh token of theirs.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np

from analysis.planning.allocation import Allocation, LawDraws
from analysis.planning.answer import BASIS_STUDY, Answer, check_positive, check_study_range
from analysis.planning.mixture import (
    AVERAGED_DRAWS,
    MixtureProblem,
    check_identified,
    tails,
    unique_token_limits,
)
from analysis.study.results import Results, required_fit
from analysis.text import first_few, signed, span
from mscale.errors import MscaleError

SHARES = np.concatenate([[0.0], np.geomspace(0.01, 0.95, 40)])


def co_training(target: str, results: Results, flops: float, params: float | None = None) -> Answer:
    """How much of which languages to train with `target` at a compute budget, and from which share on they hurt.

    Raises:
      MscaleError: there is no fitted ATLAS law of the target, or the budget is not a positive number.
    """
    check_positive("plan languages", flops=flops, params=params)
    fit = required_fit(results, "atlas", "how much of another language helps")
    limits = unique_token_limits(results.study, None, fit)
    problem = MixtureProblem(fit, (target,), flops, limits, params)
    laws = problem.posterior_laws(AVERAGED_DRAWS)
    if len(laws.sources) < 2:
        raise MscaleError(f"the study trained {target} with no other language: there is no τ to decide from")
    own = laws.sources.index(target)
    alone = problem.best(laws, rates=np.eye(len(laws.sources))[own])
    best = problem.best(laws)
    tau = laws.tau[:, 0, :].mean(axis=0)
    order = [index for index in np.argsort(-tau, kind="stable") if index != own]
    share = 1 - float(best.rates[own])
    level = float(results.level)
    gain = problem.excess(level, alone, best)
    reasons: list[str] = []
    check_study_range(best.params, results.study, reasons)
    check_identified("plan languages", problem, best, results)
    with_own_tau = {
        name[len("tau[") : -1].split(",")[1] for name in fit.names if name.startswith(f"tau[{target},")
    }
    if sharing_tau := [name for name in laws.sources if name not in with_own_tau and name != target]:
        reasons.append(
            f"the fit tells no τ of their own of {first_few(sharing_tau, 8)}: they count alike, so which of them is "
            "arbitrary"
        )
    single = _by_share(laws, best, own, order[0])
    counts = _by_count(laws, best, own, order, share)
    partner = laws.sources[order[0]]
    if share < 0.01:
        seen = f"no limit of its own text is known, and a token of {partner} is worth"
        if np.isfinite(laws.unique[own]):
            epochs = alone.tokens / laws.unique[own]
            seen = f"its own text is seen {epochs:.1f} times, and a fresh token of {partner}, the best source, is worth"
        text = (
            f"At this budget any share of another language costs {target} more than it gives: {seen} "
            f"{tau[order[0]]:.2f} of one of its own."
        )
    else:
        picked = [index for index in order if best.rates[index] > 0.01]
        names = ", ".join(f"{laws.sources[index]} {best.rates[index]:.0%}" for index in picked)
        expected = _loss(laws, alone.rates, alone) - _loss(laws, best.rates, best)
        text = (
            f"Train {target} {best.rates[own]:.0%} with {names}: the loss is expected {expected:.4f} lower than alone "
            f"({span(gain[1], gain[2], lambda value: signed(value, 4))}"
            f"{', so not surely' if gain[1] < 0 else ''})."
        )
    if single["best"] > 0:
        too_much = (
            f"as much as {single['best']:.0%} of the tokens still helps"
            if single["best"] >= SHARES[-1]
            else f"more than {single['best']:.0%} of the tokens is too much"
        )
        worse = (
            "any share is better than none"
            if single["even"] >= 1
            else f"more than {single['even']:.0%} is worse than none"
        )
        text += f" Of {partner} alone {too_much}, and {worse}."
    hurts = next((k for k in range(1, len(counts)) if counts[k]["loss"] > counts[k - 1]["loss"] + 1e-6), None)
    if hurts is not None and share >= 0.01:
        name = counts[hurts]["added"]
        reasons.append(
            f"with {hurts} source{'s' if hurts > 1 else ''} in equal parts adding {name} makes it worse"
        )
    when = _own_exhausted(laws, own, order[0], level)
    if when:
        reasons.append(when)
    more = (
        (("More and more sources, in equal parts of the best share", tuple(counts)),) if share >= 0.01 else ()
    )
    rows = tuple(
        {
            "source": laws.sources[index],
            "tau": float(tau[index]),
            "rate": round(float(best.rates[index]), 4),
        }
        for index in order
    )
    return Answer(text, rows, BASIS_STUDY, tuple(reasons), more)


def _loss(laws: LawDraws, rates: np.ndarray, at: Allocation) -> float:
    """The mean loss over draws at these sampling rates, and the size and tokens of an allocation."""
    return float(np.mean(laws.loss(rates, at.params, at.tokens)))


def _by_share(laws: LawDraws, best: Allocation, own: int, source: int) -> dict[str, float]:
    """The best share of one source ("best"), and the smallest share beyond it that is worse than none ("even")."""
    losses = []
    for share in SHARES:
        rates = np.zeros(len(laws.sources))
        rates[own], rates[source] = 1 - share, share
        losses.append(_loss(laws, rates, best))
    at = int(np.argmin(losses))
    worse = np.flatnonzero(np.array(losses[at:]) > losses[0]) + at
    return {"best": float(SHARES[at]), "even": float(SHARES[worse[0]]) if len(worse) else 1.0}


def _by_count(
    laws: LawDraws, best: Allocation, own: int, order: Sequence[int], share: float
) -> list[dict[str, Any]]:
    """The loss with the first k of the sources in `order`, in equal parts of `share`, for every k."""
    rows = []
    for number in range(len(order) + 1):
        rates = np.zeros(len(laws.sources))
        rates[own] = 1 - share if number else 1.0
        rates[list(order[:number])] = share / number if number else 0.0
        added = laws.sources[order[number - 1]] if number else "none"
        rows.append({"sources": number, "added": added, "loss": _loss(laws, rates, best)})
    return rows


def _own_exhausted(laws: LawDraws, own: int, source: int, level: float) -> str:
    """A sentence on the epochs of the target after which a fresh token of the source is worth more: 1 + ln(1/τ)/λ."""
    tau, lambda_ = laws.tau[:, 0, source], laws.lambda_[:, 0]
    with np.errstate(divide="ignore", invalid="ignore"):
        epochs = np.where(tau > 0, 1 + np.log(1 / np.minimum(tau, 1.0)) / lambda_, np.inf)
    if not np.isfinite(epochs[0]) or lambda_[0] >= 1e3:
        return ""
    low, high = np.quantile(epochs, tails(level))
    return (
        f"fresh text of {laws.sources[source]} is worth more than repeats of {laws.targets[0]} from "
        f"{epochs[0]:.1f} epochs on ({span(low, high if np.isfinite(high) else None, lambda value: f'{value:.1f}')})"
    )
