"""Which mixture to run, at which size, on how many tokens.

From the fitted ATLAS laws (`allocation`), counting what data there is and how repeats fade.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from analysis.fitting.result import Fit
from analysis.planning import allocation
from analysis.planning.allocation import Allocation, Laws
from analysis.planning.answer import STUDY, Answer, check_positive, check_range
from analysis.study.results import need_fit
from analysis.text import count, few, signed, span
from analysis.uncertainty.delta_method import delta_interval, gradient
from analysis.uncertainty.posterior import draws, local_posterior
from mscale.errors import MscaleError, nearest

# Draws that the loss is averaged over, and draws that are each optimised on their own to see how far rates move.
AVERAGED, REDONE = 32, 20
ALONE = "bilingual τ do not simply add: mixtures unlike any that was run are the law's word alone"
ADVISED = 12  # draws that a report's advice is averaged over


@dataclass(frozen=True)
class Aim:
    """What a mixture is for: targets and their weights (T,) or the worst of them, FLOPs, data (tokens by language)."""

    targets: tuple[str, ...]
    weights: np.ndarray
    worst: bool
    flops: float
    params: float | None
    limits: Mapping[str, float]

    def best(self, laws: Laws, **given: Any) -> Allocation:
        """The best allocation under these laws (`given`: rates, near)."""
        return allocation.best_allocation(
            laws, self.flops, self.weights, worst=self.worst, params=self.params, **given
        )

    def loss(self, fit: Fit, theta: np.ndarray, at: Allocation) -> np.ndarray:
        """(R,) what is minimised, at draws theta (R, P)."""
        losses = allocation.laws_of(fit, theta, self.targets, self.limits).loss(
            at.rates, at.params, at.tokens
        )
        return allocation.objective(losses, self.weights, self.worst)


def mixture(
    targets: Sequence[str],
    flops: float,
    results: Mapping[str, Any],
    *,
    weights: Sequence[float] | None = None,
    worst: bool = False,
    params: float | None = None,
    unique: Mapping[str, float] | None = None,
) -> Answer:
    """The mixture, size and tokens that minimise the targets' loss at a compute budget, beside what people use.

    Args:
      weights: of the targets' losses, equal by default. worst: minimise the worst target's loss in their place.
      params: hold the size. unique: tokens that there are of a language, in place of what the study records.

    Raises:
      MscaleError: no fitted ATLAS law, or none of a target; weights that do not match the targets; a budget that
        the study's sizes say nothing of.
    """
    if len(set(targets)) < len(targets):
        raise MscaleError(f"plan mixture: a target is named twice: {', '.join(targets)}")
    if weights is not None and (
        len(weights) != len(targets) or not all(0 <= one < np.inf for one in weights) or sum(weights) <= 0
    ):
        shown = ", ".join(f"{one:g}" for one in weights)
        raise MscaleError(
            f"plan mixture: --weights {shown}: {len(targets)} targets need as many weights, none negative, not all zero"
        )
    check_positive("plan mixture", flops=flops, params=params)
    fit = need_fit(results, "atlas", "mixture")
    shares = np.ones(len(targets)) if weights is None else np.asarray(weights, dtype=float)
    aim = Aim(tuple(targets), shares, worst, flops, params, data_limits(results, unique, fit))
    theta = np.concatenate([fit.theta[None], draws(fit, AVERAGED)])
    laws = allocation.laws_of(fit, theta, targets, aim.limits)
    best = aim.best(laws)
    level = float(results["level"])
    reasons: list[str] = []
    check_range(best.params, results, reasons)
    check_told("plan mixture", fit, laws, best, results)
    redone = [aim.best(laws.at(slice(index, index + 1)), near=best) for index in range(1, REDONE + 1)]
    rows = _rates(laws, best, redone, level)
    compared = _compared(fit, aim, laws, best, level)
    mine = compared[0]
    size_low, size_high = np.quantile([one.params for one in redone], tails(level))
    what = "worst loss" if worst else "weighted loss"
    shown = ", ".join(f"{row['language']} {row['rate']:.0%}" for row in rows[:6] if row["rate"] > 0.005)
    text = (
        f"Train {count(best.params)} parameters ({span(size_low, size_high, count)}) on {count(best.tokens)} tokens "
        f"of {shown}: {what} {mine['loss']:.4f} ({mine['low']:.4f} to {mine['high']:.4f})."
    )
    reasons += _reasons(laws, best, compared, aim.limits, misfit(fit))
    rows = [row for row in rows if row["rate"] > 1e-3 or row["high"] > 0.01]
    title = "The same compute, each at its own best size" if params is None else "The same size and compute"
    return Answer(text, tuple(rows), STUDY, tuple(reasons), ((title, tuple(compared)),))


def advice(results: Mapping[str, Any]) -> dict[str, Any]:
    """What a report recommends: the mixture for all languages alike at the compute of the study's largest run.

    Returns: text, because, sure (see `wording.SURE`), flops, rates (records language, rate), compared (as in an answer
    of `mixture`); or the reason that there is none.
    """
    try:
        fit = need_fit(results, "atlas", "mixture")
        targets = [name for name in results["study"]["trained_languages"] if name in fit.levels]
        if lone := _at_one_size(fit, targets):
            return {
                "reason": f"{few(lone, 6)}: run at one size alone, so their loss at other sizes is not told"
            }
        rows = [row for row in results["fit_points"] if row["law"] == "atlas"]
        flops = max(6.0 * row["params"] * row["tokens"] for row in rows)
        aim = Aim(tuple(targets), np.ones(len(targets)), False, flops, None, data_limits(results, None, fit))
        laws = allocation.laws_of(
            fit, np.concatenate([fit.theta[None], draws(fit, ADVISED)]), targets, aim.limits
        )
        best = aim.best(laws, starts=2)
        check_range(best.params, results, [])
        compared = _compared(fit, aim, laws, best, float(results["level"]))
    except MscaleError as error:
        return {"reason": str(error)}
    usual = _best_rival(compared)
    if usual is None:
        return {"reason": "the law says nothing of the usual mixtures at that size"}
    # Never clear: a mixture unlike any that was run is the law's word alone.
    sure = "likely" if usual["worse_low"] > 0 and usual["worse_by"] > misfit(fit) else "unclear"
    order = [index for index in np.argsort(-best.rates, kind="stable") if best.rates[index] > 0.005]
    rates = [{"language": laws.sources[at], "rate": round(float(best.rates[at]), 4)} for at in order]
    shown = ", ".join(f"{row['language']} {row['rate']:.0%}" for row in rates[:8])
    shown += f" and {len(rates) - 8} more" if len(rates) > 8 else ""
    ends = span(usual["worse_low"], usual["worse_high"], lambda value: signed(value, 4))
    gain = f"{usual['worse_by']:.4f} nats ({ends})"
    text = f"For all languages alike, at the {count(flops)} FLOPs of the largest run: "
    size = best.params if sure == "likely" else float(usual["parameters"])
    reasons: list[str] = []
    check_range(size, results, reasons)
    if sure == "unclear":
        text += (
            f"{count(size)} parameters on {count(flops / 6 / size)} tokens, mixed as usual ({usual['mixture']}). "
            f"The law's own best, {shown}, is not surely better: by {gain}."
        )
    else:
        text += (
            f"{count(size)} parameters on {count(best.tokens)} tokens of {shown}. The best of the usual "
            f"mixtures, {usual['mixture']}, is worse by {gain}."
        )
    about = {"text": text, "because": "; ".join([*reasons, ALONE]), "sure": sure, "flops": flops}
    return {**about, "rates": rates, "compared": compared}


def data_limits(results: Mapping[str, Any], unique: Mapping[str, float] | None, fit: Fit) -> dict[str, float]:
    """Unique tokens of each language: the study's own, and what is given in their place."""
    for name, value in (unique or {}).items():
        if name not in fit.levels:
            raise MscaleError(
                f"unique tokens of {name!r}{nearest(name, fit.levels)}: the laws have no such language"
            )
        if not 0 < value < np.inf:
            raise MscaleError(f"unique tokens of {name!r}: expected a positive number, found {value}")
    return {**results["study"].get("unique_tokens", {}), **(unique or {})}


def _at_one_size(fit: Fit, targets: Sequence[str]) -> list[str]:
    """The targets whose E and A the runs do not tell apart."""
    moved = {
        name for name, moves in zip(fit.names, local_posterior(fit).in_flat_directions, strict=True) if moves
    }
    return [name for name in targets if {f"E[{name}]", f"A[{name}]"} & moved]


def untold(fit: Fit, laws: Laws, at: Allocation) -> list[str]:
    """The targets whose loss at this size the runs do not tell, since they were run at another one alone."""
    limits = dict(zip(laws.sources, laws.unique, strict=True))
    left, found = local_posterior(fit), []
    for target in _at_one_size(fit, laws.targets):

        def loss(theta: np.ndarray, target: str = target) -> np.ndarray:
            law = allocation.laws_of(fit, theta, [target], limits)
            return law.loss(at.rates, at.params, at.tokens)[:, 0]

        if not left.identifies(gradient(fit, loss)):
            found.append(target)
    return found


def check_told(what: str, fit: Fit, laws: Laws, at: Allocation, results: Mapping[str, Any]) -> None:
    """Raises MscaleError where the runs do not tell the loss of a target at this size."""
    if targets := untold(fit, laws, at):
        rows = [row for row in results["fit_points"] if row["law"] == "atlas"]
        sizes = sorted({float(row["params"]) for row in rows if row["language"] == targets[0]})
        raise MscaleError(
            f"{what}: the runs do not tell the loss on {few(targets, 8)} at {count(at.params)} parameters: "
            f"{targets[0]} was run at {' and '.join(map(count, sizes))} alone, so its E and A cannot be told apart. "
            f"Run it at other sizes too, or hold that size (--params {sizes[-1]:.0f})"
        )


def misfit(fit: Fit) -> float:
    """How far, in nats, the law typically lies from the losses that it was fitted to."""
    away = fit.problem.residuals(fit.theta[None])[0]
    return float(np.sqrt(np.mean((away * (fit.problem.y if fit.law.residual == "log" else 1.0)) ** 2)))


def tails(level: float) -> tuple[float, float]:
    return (1 - level) / 2, (1 + level) / 2


def _rates(laws: Laws, best: Allocation, redone: Sequence[Allocation], level: float) -> list[dict[str, Any]]:
    low, high = np.quantile([one.rates for one in redone], tails(level), axis=0)
    rows = []
    for index in np.argsort(-best.rates, kind="stable"):
        tokens = float(best.rates[index] * best.tokens)
        limit = float(laws.unique[index])
        rows.append(
            {
                "language": laws.sources[index],
                # A millionth is the softmax's way to say none.
                "rate": round(float(best.rates[index]), 4),
                "low": round(min(float(low[index]), float(best.rates[index])), 4),
                "high": round(max(float(high[index]), float(best.rates[index])), 4),
                "tokens": tokens,
                "epochs": tokens / limit if np.isfinite(limit) else None,
            }
        )
    return rows


def _compared(fit: Fit, aim: Aim, laws: Laws, best: Allocation, level: float) -> list[dict[str, Any]]:
    """The chosen mixture and its rivals: loss, and how much worse a rival is, each with its interval."""
    value, low, high = delta_interval(fit, lambda theta: aim.loss(fit, theta, best), level)
    rows = [{"mixture": "this one", "loss": value, "low": low, "high": high, "parameters": best.params}]
    for name, rates in allocation.rivals(laws, best.tokens).items():
        other = aim.best(laws, rates=rates)
        value = float(aim.loss(fit, fit.theta[None], other)[0])
        row: dict[str, Any] = {"mixture": name, "loss": value, "parameters": other.params}
        if np.isfinite(value):

            def worse(theta: np.ndarray, at: Allocation = other) -> np.ndarray:
                return aim.loss(fit, theta, at) - aim.loss(fit, theta, best)

            row["worse_by"], row["worse_low"], row["worse_high"] = delta_interval(fit, worse, level)
        else:
            row["loss"] = None
        rows.append(row)
    return rows


def _best_rival(compared: Sequence[Mapping[str, Any]]) -> Mapping[str, Any] | None:
    """The best of the usual mixtures that the law says something of, among those that `_compared` gives."""
    rivals = [row for row in compared[1:] if row.get("worse_by") is not None]
    return min(rivals, key=lambda row: row["worse_by"], default=None)


def _reasons(
    laws: Laws,
    best: Allocation,
    compared: Sequence[Mapping[str, Any]],
    limits: Mapping[str, float],
    missed: float,
) -> list[str]:
    reasons = []
    if near := _best_rival(compared):
        sure = "surely" if near["worse_low"] > 0 else "not surely"
        if near["worse_low"] > 0 and near["worse_by"] < missed:
            sure = f"not surely, since the law misses the losses that were run by {missed:.4f}"
        reasons.append(
            f"the best of the usual mixtures, {near['mixture']}, is worse by {near['worse_by']:.4f} nats "
            f"({near['worse_low']:.4f} to {near['worse_high']:.4f}): {sure}"
        )
    unknown = [name for name in laws.sources if name not in limits]
    if unknown:
        reasons.append(f"no limit of data is known for {', '.join(unknown)}: give it with --unique")
    again = [
        f"{name} {rate * best.tokens / limit:.1f}"
        for name, rate, limit in zip(laws.sources, best.rates, laws.unique, strict=True)
        if rate * best.tokens > 1.05 * limit
    ]
    if again:
        reasons.append(f"epochs over repeated data, whose fading the law counts: {', '.join(again)}")
    extra = [
        name
        for name, rate in zip(laws.sources, best.rates, strict=True)
        if rate > 0.01 and name not in laws.targets
    ]
    if extra:
        reasons.append(f"{', '.join(extra)} are there for what they give to the targets")
    reasons.append(ALONE)
    return reasons
