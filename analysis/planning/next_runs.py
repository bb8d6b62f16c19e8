"""The runs that would most reduce the uncertainty of a decision per FLOP: `mscale plan next`.

A decision depends on one or more numbers that follow from a fitted law. The Fisher information of a trunk is known
before it is run: from the derivatives of the law at its rows and the noise of the fit within and between trunks. So the
variance of the numbers after the run is known to first order (delta method), and runs are chosen greedily by its
reduction per FLOP (sequential c-optimal design).
"""

import itertools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from analysis.estimation.quantities import Derived
from analysis.fitting.result import Fit
from analysis.gaussian import greedy_design, posterior_covariance
from analysis.planning import next_crossover_runs
from analysis.planning.answer import BASIS_STUDY, Answer, check_positive
from analysis.planning.mixture import MixtureProblem, unidentified_targets, unique_token_limits
from analysis.study.results import Results, main_matrix, required_fit
from analysis.text import count, first_few
from analysis.transfer import pair_selection
from analysis.uncertainty.delta_method import covariance, gradient
from mscale.errors import MscaleError, nearest
from mscale.scales import training_flops

DECISIONS = ("languages", "expand", "start", "mixture", "pairs")
_DEFAULT_RUNS = 5
# Token budgets of a trunk as shares of the largest, and the share of each over which the learning rate decays.
BUDGET_SHARES = (0.25, 0.5, 1.0)
_DECAY_SHARE = 0.1


@dataclass(frozen=True)
class CandidateTrunk:
    """A trunk that could be run: its languages (sampled uniformly), N, and the tokens of its largest budget."""

    languages: tuple[str, ...]
    scale: str
    params: float
    tokens: float

    @property
    def flops(self) -> float:
        """6·N·D of the trunk without its last decay, plus those of the decay of each budget."""
        trained = (1 - _DECAY_SHARE) * self.tokens + _DECAY_SHARE * sum(BUDGET_SHARES) * self.tokens
        return training_flops(self.params, trained)

    @property
    def name(self) -> str:
        """Languages and scale, in words."""
        what = "+".join(self.languages) if len(self.languages) <= 4 else f"{len(self.languages)} languages"
        return f"{what} at {self.scale}"


def next_runs(
    decision: str,
    results: Results,
    *,
    targets: Sequence[str] = (),
    flops: float | None = None,
    params: float | None = None,
    budget: float = np.inf,
    runs: int = _DEFAULT_RUNS,
) -> Answer:
    """The runs to make next for a decision, best first, with their price and the uncertainty after each.

    Args:
      decision: which numbers are to be known better: "languages" (τ of each source for the targets), "expand" (growth
        of compute with the number of languages), "start" (the crossover of the target at N `params`, see
        `next_crossover_runs`), "mixture" (the gain of the best mixture of the targets over the uniform one, at
        `flops`), or "pairs" (all transfer scores, or those of the targets).
      budget: FLOPs of all runs together. runs: how many, at most.

    Raises:
      MscaleError: an unknown decision, the fit that it depends on is missing, or no run is within the budget.
    """
    if decision not in DECISIONS:
        raise MscaleError(
            f"plan next: no decision {decision!r}{nearest(decision, DECISIONS)}; expected {', '.join(DECISIONS)}"
        )
    check_positive(
        "plan next", flops=flops, params=params, budget=None if budget == np.inf else budget, runs=runs
    )
    if decision == "start":
        if len(targets) != 1:
            raise MscaleError("plan next --decision start: name the one language it is about with --target")
        return next_crossover_runs.next_runs_for_crossover(results, targets[0], params, budget, runs)
    if decision == "pairs":
        return _pairs(results, targets, budget, runs)
    reasons: list[str] = []
    if decision == "expand":
        fit = required_fit(results, "capacity", "plan next --decision expand")
        names, slopes = ["log compute of twice the languages"], gradient(fit, _growth(fit))[None]
    else:
        if not targets:
            raise MscaleError(
                f"plan next --decision {decision}: name the languages it is about with --target"
            )
        fit = required_fit(results, "atlas", f"plan next --decision {decision}")
        for name in targets:
            if name not in fit.levels:
                raise MscaleError(
                    f"plan next: no ATLAS law of {name!r}{nearest(name, fit.levels)}; fitted: {', '.join(fit.levels)}"
                )
        if decision == "languages":
            names, slopes = _taus(fit, targets)
        else:
            if flops is None:
                raise MscaleError("plan next --decision mixture: give the compute it is about with --flops")
            names = ["gain of the best mixture over uniform"]
            gain, reasons = _gain(fit, results, targets, flops)
            slopes = gradient(fit, gain)[None]
    candidates = _candidates(fit, results, decision, targets)
    limits = unique_token_limits(results.study, None, fit)
    rows = {run: found for run in candidates if len(found := residual_slopes(fit, run, limits))}
    answer = _answer(fit, names, slopes, rows, budget, runs)
    return replace(answer, reasons=(*reasons, *answer.reasons))


def _growth(fit: Fit) -> Callable[[np.ndarray], np.ndarray]:
    """Log growth of compute for twice the languages (capacity law), as a function of draws theta (B, P)."""
    names = list(fit.params.index)

    def log_compute(theta: np.ndarray) -> np.ndarray:
        p = dict(zip(names, fit.natural(theta).T, strict=True))
        return np.log(2) * (1 + p["phi"] / p["alpha"] + p["psi"] / p["beta"])

    return log_compute


def _taus(fit: Fit, targets: Sequence[str]) -> tuple[list[str], np.ndarray]:
    """Names of the τ of the targets, and their gradients (number of τ, P)."""
    at = [
        index
        for index, name in enumerate(fit.names)
        if name.startswith("tau") and name[name.index("[") + 1 : -1].split(",")[0] in targets
    ]
    if not at:
        raise MscaleError(
            f"plan next --decision languages: the fitted law has no τ of {', '.join(targets)} of its own: run "
            "the targets with other languages first"
        )
    return [fit.names[index] for index in at], np.eye(len(fit.names))[at]


def _gain(
    fit: Fit, results: Results, targets: Sequence[str], flops: float
) -> tuple[Callable[[np.ndarray], np.ndarray], list[str]]:
    """The gain of the best mixture over the uniform one as a function of draws theta (B, P), and caveats."""
    problem = MixtureProblem(fit, tuple(targets), flops, unique_token_limits(results.study, None, fit))
    estimate = problem.laws(fit.theta[None])
    best = problem.best(estimate)
    even = np.array([name in targets for name in estimate.sources]) / len(targets)
    uniform = problem.best(estimate, rates=even)

    def gain(theta: np.ndarray) -> np.ndarray:
        return problem.loss(theta, uniform) - problem.loss(theta, best)

    at_one_size = unidentified_targets(problem, best)
    first = (
        f"first run {first_few(at_one_size, 8)} at other sizes: run at one alone, their loss at {count(best.params)} "
        "parameters is not told, and no size can be chosen"
    )
    return gain, [first] if at_one_size else []


def _candidates(fit: Fit, results: Results, decision: str, targets: Sequence[str]) -> list[CandidateTrunk]:
    """Trunks of single languages, of pairs with the targets and of all languages, at every size of the study.

    Their largest budget is the longest run of the study at that size, or twice that.
    """
    languages = fit.levels
    if decision == "expand":
        counts = sorted({1, 2, len(languages) // 2, len(languages)} - {0})
        mixtures = [tuple(languages[:number]) for number in counts]
    else:
        pairs = {tuple(sorted((one, other))) for one in targets for other in languages if one != other}
        mixtures = [*((name,) for name in targets), *sorted(pairs), tuple(languages)]
    longest: dict[str, float] = {}
    for point in results.fit_points:
        longest[point["scale"]] = max(longest.get(point["scale"], 0.0), float(point["tokens"]))
    return [
        CandidateTrunk(mixture, scale["scale"], float(scale["params"]), longest[scale["scale"]] * times)
        for mixture, scale, times in itertools.product(dict.fromkeys(mixtures), results.study.scales, (1, 2))
        if scale["scale"] in longest
    ]


def residual_slopes(fit: Fit, trunk: CandidateTrunk, unique: Mapping[str, float]) -> np.ndarray:
    """Derivatives (rows, P) of the residuals of a trunk by theta; one row for each fitted language and budget.

    Args:
      unique: unique tokens of each language; a language that is not named has no limit.
    """
    rows = []
    sources: Mapping[str, Sequence[str]] = fit.spec.options.get("sources") or {}
    budgets = trunk.tokens * np.array(BUDGET_SHARES)
    for language in trunk.languages:
        if language not in fit.levels:
            continue
        each = budgets / len(trunk.languages)
        x = {
            "N": np.full(len(budgets), trunk.params),
            "D_t": each,
            "D": each,
            "K": np.full(len(budgets), len(trunk.languages)),
        }
        x["U_t"] = np.minimum(each, unique.get(language, np.inf))
        own_sources = list(sources.get(language, ()))
        for number, source in enumerate(own_sources, start=1):
            seen = each * (source in trunk.languages)
            x |= {f"D_{number}": seen, f"U_{number}": np.minimum(seen, unique.get(source, np.inf))}
        others = [name for name in trunk.languages if name != language and name not in own_sources]
        seen = each * len(others)
        x |= {
            "D_other": seen,
            "U_other": np.minimum(seen, sum(unique.get(name, np.inf) for name in others) or 0.0),
        }
        x = {name: x.get(name, np.zeros(len(budgets))) for name in fit.law.columns}
        block = Derived(fit.levels.index(language), fit.law.predict, x, len(budgets))
        theta = np.tile(fit.theta, (len(budgets), 1))
        value, slope, _ = fit.problem.quantity_derivatives(block, theta, np.arange(len(budgets)))
        rows.append(slope / value[:, None] if fit.law.residual == "log" else slope)
    found = np.concatenate(rows) if rows else np.zeros((0, len(fit.theta)))
    if not np.isfinite(found).all():
        raise MscaleError(
            f"plan next: the {fit.law.name} law says nothing of {trunk.name}, {count(trunk.tokens)} tokens"
        )
    return found


def _answer(
    fit: Fit,
    names: Sequence[str],
    wanted: np.ndarray,
    slopes: dict[CandidateTrunk, np.ndarray],
    budget: float,
    runs: int,
) -> Answer:
    """Chooses trunks greedily by the reduction of the summed variance of the wanted numbers per FLOP.

    Args:
      wanted: gradients (q, P) of the numbers `names`. slopes: of each candidate, see `residual_slopes`.
    """
    noise = fit.noise
    sigma2, ratio = float(noise.at_best(noise.sigma2)[0]), float(noise.ratio[noise.best[0]])

    def deviation(spread: np.ndarray) -> float:
        return float(np.sqrt(np.einsum("qi,ij,qj->", wanted, spread, wanted) / len(wanted)))

    def run_trunk(spread: np.ndarray, trunk: CandidateTrunk) -> np.ndarray:
        rows = slopes[trunk]
        return posterior_covariance(spread, rows, sigma2 * (np.eye(len(rows)) + ratio))

    def reductions(spread: np.ndarray, offered: Sequence[CandidateTrunk]) -> np.ndarray:
        after = [deviation(run_trunk(spread, trunk)) ** 2 for trunk in offered]
        return deviation(spread) ** 2 - np.array(after)

    spread = covariance(fit)
    design = greedy_design(
        spread, lambda _: list(slopes), reductions, run_trunk, lambda trunk: trunk.flops, budget
    )
    before, total = deviation(spread), 0.0
    rows: list[dict[str, Any]] = []
    for trunk, spread in itertools.islice(design, runs):
        total += trunk.flops
        rows.append(
            {
                "run": trunk.name,
                "tokens": trunk.tokens,
                "flops": trunk.flops,
                "uncertainty_before": before,
                "uncertainty_after": (before := deviation(spread)),
                "flops_so_far": total,
            }
        )
    if not rows:
        raise MscaleError(
            f"plan next: no run fits into {count(budget)} FLOPs; the cheapest takes "
            f"{count(min(run.flops for run in slopes))}"
        )
    quantity = names[0] if len(names) == 1 else f"{', '.join(names[:4])}{', …' if len(names) > 4 else ''}"
    first = rows[0]
    text = (
        f"Run {first['run']} next, {count(first['tokens'])} tokens, {count(first['flops'])} FLOPs: the standard error "
        f"of {quantity} falls from {first['uncertainty_before']:.3g} to {first['uncertainty_after']:.3g}; all "
        f"{len(rows)} runs below, {count(total)} FLOPs, bring it to {rows[-1]['uncertainty_after']:.3g}."
    )
    reasons = (
        f"from the fitted {fit.law.name} law's own slopes and noise ({len(slopes)} candidate trunks at the study's "
        "sizes and budgets, and twice those)",
        "to first order, and only as true as the law; a run is a trunk with three cooled budgets, priced at 6ND",
        "the order is greedy, by variance taken away per FLOP: the same run twice means another seed",
    )
    return Answer(text, tuple(rows), BASIS_STUDY, reasons)


def _pairs(results: Results, targets: Sequence[str], budget: float, runs: int) -> Answer:
    """The pairs to run next so that all transfer scores, or those of the targets, are known best."""
    transfer, cells = results.transfer, main_matrix(results)
    if not cells:
        raise MscaleError(
            f"plan next --decision pairs: the study has no 50/50 pair ({transfer.error or 'none was run'}): "
            "run a few, and each language alone"
        )
    languages = sorted({row["target"] for row in cells} | {row["source"] for row in cells})
    for name in targets:
        if name not in languages:
            raise MscaleError(
                f"plan next: no language {name!r}{nearest(name, languages)} among the study's pairs"
            )
    process, scores = pair_selection.pair_model_of_matrix(cells, (results.truth or {}).get("languages"))
    price = training_flops(cells[0]["params"], 2.5 * float(transfer.d))
    weight = np.array([[float(not targets or name in targets)] * len(languages) for name in languages])
    ran = pair_selection.pairs_already_run(cells)
    chosen = pair_selection.select_pairs(
        process, scores, runs, price=price, budget=budget, weight=weight, ran=ran
    )
    bounds = [f"{row['source']}→{row['target']}" for row in cells if row["status"] == "bound"]
    longer = f"; {first_few(bounds)} only bound their scores: train those pairs longer" if bounds else ""
    if not chosen:
        raise MscaleError(
            f"plan next --decision pairs: every pair was run{longer}"
            if 2 * len(ran) == len(languages) * (len(languages) - 1)
            else f"plan next: no pair fits into {count(budget)} FLOPs; one takes {count(price)}"
        )
    rows = tuple(
        {"pair": "+".join(choice.pair), "flops": price, "variance_left": choice.remaining_variance}
        for choice in chosen
    )
    first = ", ".join("+".join(choice.pair) for choice in chosen[:3])
    about = ", ".join(targets) if targets else "all"
    text = (
        f"Run {first} next ({count(price)} FLOPs each): {len(rows)} pairs leave {rows[-1]['variance_left']:.0%} of "
        f"what is not known of {about} scores before any run."
    )
    reasons = (
        "a Gaussian process over pairs: languages' own effects, what a pair has in common, related pairs",
        f"a 50/50 run of {count(2.5 * float(transfer.d))} tokens at scale {transfer.scale}, which measures both "
        "directions; languages not yet run alone need that too",
        *([longer[2:]] if bounds else []),
    )
    return Answer(text, rows, BASIS_STUDY, reasons)
