"""The best mixture, size and tokens at a compute budget: `mscale plan mixture`, and the advice of a report.

The losses are those of the fitted ATLAS laws, with the unique tokens of each language and the saturation of repeated
data (`allocation`).
"""

import functools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from analysis.fitting.fit import from_json
from analysis.fitting.result import Fit
from analysis.planning import allocation
from analysis.planning.allocation import Allocation, LawDraws, Objective
from analysis.planning.answer import BASIS_STUDY, Answer, check_positive, check_study_range
from analysis.study.results import ComparedRow, MixtureAdvice, Results, StudySummary, required_fit
from analysis.text import count, first_few, span
from analysis.uncertainty.delta_method import delta_interval, gradient
from analysis.uncertainty.posterior import draws, local_posterior
from mscale.errors import MscaleError, nearest

# Posterior draws that the loss is averaged over, and draws that are optimised one by one for intervals of the rates.
AVERAGED_DRAWS, _REOPTIMISED_DRAWS = 32, 20
EXTRAPOLATION_CAVEAT = (
    "bilingual τ do not simply add: mixtures unlike any that was run are the law's word alone"
)
_ADVICE_DRAWS = 12  # the same for a report's advice


@dataclass(frozen=True)
class MixtureProblem:
    """The optimisation problem: whose losses by which laws are minimised, at which compute, with which data.

    Attributes:
      limits: unique tokens by language. params: N, or None to optimise it.
      weights: of the targets' losses, None for equal ones. worst: minimise the largest loss of the targets instead.
    """

    fit: Fit
    targets: tuple[str, ...]
    flops: float
    limits: Mapping[str, float]
    params: float | None = None
    weights: Sequence[float] | None = None
    worst: bool = False

    @property
    def objective(self) -> Objective:
        """What is minimised."""
        return Objective(
            np.ones(len(self.targets)) if self.weights is None else np.asarray(self.weights), self.worst
        )

    def laws(self, theta: np.ndarray) -> LawDraws:
        """The laws at draws theta (R, P)."""
        return allocation.law_draws(self.fit, theta, self.targets, self.limits)

    def posterior_laws(self, count: int) -> LawDraws:
        """The laws at the estimate and at `count` draws from the posterior."""
        return self.laws(np.concatenate([self.fit.theta[None], draws(self.fit, count)]))

    def best(self, laws: LawDraws, **options: Any) -> Allocation:
        """The best allocation under these laws; `options` are those of `best_allocation`."""
        return allocation.best_allocation(laws, self.flops, self.objective, params=self.params, **options)

    def loss(self, theta: np.ndarray, at: Allocation) -> np.ndarray:
        """The objective (R,) of an allocation at draws theta (R, P)."""
        return self.objective.of(self.laws(theta).loss(at.rates, at.params, at.tokens))

    def excess(self, level: float, one: Allocation, other: Allocation) -> tuple[float, float, float]:
        """By how much the objective of one allocation is larger than that of another, with its interval."""
        return delta_interval(self.fit, lambda theta: self.loss(theta, one) - self.loss(theta, other), level)


def best_mixture(
    targets: Sequence[str],
    flops: float,
    results: Results,
    *,
    weights: Sequence[float] | None = None,
    worst: bool = False,
    params: float | None = None,
    unique: Mapping[str, float] | None = None,
) -> Answer:
    """The mixture, size and tokens that minimise the targets' loss at a compute budget, compared with usual mixtures.

    Args:
      weights: of the targets' losses, equal by default. worst: minimise the largest loss of the targets instead.
      params: fix N. unique: unique tokens of languages, in place of those that the study records.

    Raises:
      MscaleError: there is no fitted ATLAS law of a target; the weights do not match the targets; the best size is too
        far outside the study's; the runs do not identify the loss of a target at that size.
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
    fit = required_fit(results, "atlas", "mixture")
    limits = unique_token_limits(results.study, unique, fit)
    problem = MixtureProblem(fit, tuple(targets), flops, limits, params, weights, worst)
    laws = problem.posterior_laws(AVERAGED_DRAWS)
    best = problem.best(laws)
    level = results.level
    reasons: list[str] = []
    check_study_range(best.params, results.study, reasons)
    check_identified("plan mixture", problem, best, results)
    single_draws = [laws.select(slice(index, index + 1)) for index in range(1, _REOPTIMISED_DRAWS + 1)]
    reoptimised = [problem.best(draw, near=best) for draw in single_draws]
    rows = _rates(laws, best, reoptimised, level)
    compared = _compared_mixtures(problem, laws, best, level)
    chosen = compared[0]
    size_low, size_high = np.quantile([one.params for one in reoptimised], tails(level))
    what = "worst loss" if worst else "weighted loss"
    shown = ", ".join(f"{row['language']} {row['rate']:.0%}" for row in rows[:6] if row["rate"] > 0.005)
    text = (
        f"Train {count(best.params)} parameters ({span(size_low, size_high, count)}) on {count(best.tokens)} tokens "
        f"of {shown}: {what} {chosen['loss']:.4f} ({chosen['low']:.4f} to {chosen['high']:.4f})."
    )
    reasons += _reasons(laws, best, compared, limits, misfit(fit))
    rows = [row for row in rows if row["rate"] > 1e-3 or row["high"] > 0.01]
    title = "The same compute, each at its own best size" if params is None else "The same size and compute"
    return Answer(text, tuple(rows), BASIS_STUDY, tuple(reasons), ((title, tuple(map(dict, compared))),))


def advice(saved: str, study: StudySummary, flops: float, level: float) -> MixtureAdvice:
    """The mixture that a report recommends: equal weights, at `flops`, the compute of the study's largest run.

    Args:
      saved: the fitted ATLAS law (`Fit.to_json`). level: of the intervals.
    """
    try:
        fit = from_json(saved)
        targets = [name for name in study.trained_languages if name in fit.levels]
        if at_one_size := _at_one_size(fit, targets):
            names = first_few(at_one_size, 6)
            raise MscaleError(f"{names}: run at one size alone, so their loss at other sizes is not told")
        limits = unique_token_limits(study, None, fit)
        problem = MixtureProblem(fit, tuple(targets), flops, limits)
        laws = problem.posterior_laws(_ADVICE_DRAWS)
        best = problem.best(laws, starts=2)
        check_study_range(best.params, study, [])
        compared = _compared_mixtures(problem, laws, best, level)
        usual = best_baseline(compared)
        if usual is None:
            raise MscaleError("the law says nothing of the usual mixtures at that size")
    except MscaleError as error:
        return MixtureAdvice(reason=str(error))
    order = [index for index in np.argsort(-best.rates, kind="stable") if best.rates[index] > 0.005]
    return MixtureAdvice(
        flops=flops,
        parameters=best.params,
        better=surely_better(usual, misfit(fit)),
        rates={laws.sources[at]: round(float(best.rates[at]), 4) for at in order},
        compared=compared,
    )


def unique_token_limits(
    study: StudySummary, unique: Mapping[str, float] | None, fit: Fit
) -> dict[str, float]:
    """Unique tokens of each language: `unique`, else those that the study records; raises MscaleError for bad ones."""
    for name, value in (unique or {}).items():
        if name not in fit.levels:
            raise MscaleError(
                f"unique tokens of {name!r}{nearest(name, fit.levels)}: the laws have no such language"
            )
        if not 0 < value < np.inf:
            raise MscaleError(f"unique tokens of {name!r}: expected a positive number, found {value}")
    return {**study.unique_tokens, **(unique or {})}


def _at_one_size(fit: Fit, targets: Sequence[str]) -> list[str]:
    """The targets whose E and A are aliased, since they were run at one size only."""
    aliased = {
        name for name, moves in zip(fit.names, local_posterior(fit).in_flat_directions, strict=True) if moves
    }
    return [name for name in targets if {f"E[{name}]", f"A[{name}]"} & aliased]


def unidentified_targets(problem: MixtureProblem, at: Allocation) -> list[str]:
    """The targets whose loss at this size the runs do not identify: they were run at one other size only."""

    def loss(theta: np.ndarray, target: str) -> np.ndarray:
        return replace(problem, targets=(target,), weights=None).loss(theta, at)

    identifiable = local_posterior(problem.fit)
    return [
        target
        for target in _at_one_size(problem.fit, problem.targets)
        if not identifiable.identifies(gradient(problem.fit, functools.partial(loss, target=target)))
    ]


def check_identified(what: str, problem: MixtureProblem, at: Allocation, results: Results) -> None:
    """Raises MscaleError where the runs do not identify the loss of a target at the size of this allocation."""
    if targets := unidentified_targets(problem, at):
        rows = [row for row in results.fit_points if row["law"] == "atlas"]
        sizes = sorted({float(row["params"]) for row in rows if row["language"] == targets[0]})
        raise MscaleError(
            f"{what}: the runs do not tell the loss on {first_few(targets, 8)} at {count(at.params)} parameters: "
            f"{targets[0]} was run at {' and '.join(map(count, sizes))} alone, so its E and A cannot be told apart. "
            f"Run it at other sizes too, or hold that size (--params {sizes[-1]:.0f})"
        )


def misfit(fit: Fit) -> float:
    """Root mean square difference, in nats, between the law and the losses that it was fitted to."""
    residuals = fit.problem.residuals(fit.theta[None])[0]
    return float(np.sqrt(np.mean((residuals * (fit.problem.y if fit.law.residual == "log" else 1.0)) ** 2)))


def tails(level: float) -> tuple[float, float]:
    """The quantiles at the ends of a central interval."""
    return (1 - level) / 2, (1 + level) / 2


def _rates(
    laws: LawDraws, best: Allocation, reoptimised: Sequence[Allocation], level: float
) -> list[dict[str, Any]]:
    """Rows of the rates, largest first, with the quantiles of the reoptimised rates as interval."""
    low, high = np.quantile([one.rates for one in reoptimised], tails(level), axis=0)
    rows = []
    for index in np.argsort(-best.rates, kind="stable"):
        tokens = float(best.rates[index] * best.tokens)
        limit = float(laws.unique[index])
        rows.append(
            {
                "language": laws.sources[index],
                # Rounded, since the softmax gives no rate of exactly 0.
                "rate": round(float(best.rates[index]), 4),
                "low": round(min(float(low[index]), float(best.rates[index])), 4),
                "high": round(max(float(high[index]), float(best.rates[index])), 4),
                "tokens": tokens,
                "epochs": tokens / limit if np.isfinite(limit) else None,
            }
        )
    return rows


def _compared_mixtures(
    problem: MixtureProblem, laws: LawDraws, best: Allocation, level: float
) -> list[ComparedRow]:
    """The chosen mixture and the usual ones: their losses, and how much worse the usual ones are, with intervals."""
    value, low, high = delta_interval(problem.fit, lambda theta: problem.loss(theta, best), level)
    rows: list[ComparedRow] = [
        {"mixture": "this one", "loss": value, "low": low, "high": high, "parameters": best.params}
    ]
    for name, rates in allocation.baseline_mixtures(laws, best.tokens).items():
        other = problem.best(laws, rates=rates)
        value = float(problem.loss(problem.fit.theta[None], other)[0])
        row: ComparedRow = {"mixture": name, "loss": None, "parameters": other.params}
        if np.isfinite(value):
            row["loss"] = value
            row["worse_by"], row["worse_low"], row["worse_high"] = problem.excess(level, other, best)
        rows.append(row)
    return rows


def surely_better(usual: ComparedRow, misfit_nats: float) -> bool:
    """Whether the best mixture beats a usual one by more than the noise and more than the law misses the losses."""
    return bool(usual["worse_low"] > 0 and usual["worse_by"] > misfit_nats)


def best_baseline(compared: Sequence[ComparedRow]) -> ComparedRow | None:
    """The best of the usual mixtures for which the law is defined, among the rows of `_compared_mixtures`."""
    usual = [row for row in compared[1:] if row.get("worse_by") is not None]
    return min(usual, key=lambda row: row["worse_by"], default=None)


def _reasons(
    laws: LawDraws,
    best: Allocation,
    compared: Sequence[ComparedRow],
    limits: Mapping[str, float],
    misfit_nats: float,
) -> list[str]:
    """Comparison with the usual mixtures, and caveats."""
    reasons = []
    if near := best_baseline(compared):
        sure = "surely" if surely_better(near, misfit_nats) else "not surely"
        if near["worse_low"] > 0 and not surely_better(near, misfit_nats):
            sure += f", since the law misses the losses that were run by {misfit_nats:.4f}"
        reasons.append(
            f"the best of the usual mixtures, {near['mixture']}, is worse by {near['worse_by']:.4f} nats "
            f"({near['worse_low']:.4f} to {near['worse_high']:.4f}): {sure}"
        )
    unknown = [name for name in laws.sources if name not in limits]
    if unknown:
        reasons.append(f"no limit of data is known for {', '.join(unknown)}: give it with --unique")
    repeated, extra = [], []
    for name, rate, limit in zip(laws.sources, best.rates, laws.unique, strict=True):
        if rate * best.tokens > 1.05 * limit:
            repeated.append(f"{name} {rate * best.tokens / limit:.1f}")
        if rate > 0.01 and name not in laws.targets:
            extra.append(name)
    if repeated:
        reasons.append(f"epochs over repeated data, whose fading the law counts: {', '.join(repeated)}")
    if extra:
        reasons.append(f"{', '.join(extra)} are there for what they give to the targets")
    reasons.append(EXTRAPOLATION_CAVEAT)
    return reasons
