"""The runs that would most reduce the uncertainty of a decision, per FLOP.

A decision hangs on one or more numbers that follow from a fitted law. What a new trunk would add is known before it
is run: the law's slopes at its rows give its Fisher information, and the fit its noise within and between trunks.
So the variance of the numbers after the run is known too, to first order, and runs are added greedily by how much
of it they take away for their price (sequential c-optimal design).
"""

import itertools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from analysis.estimation.quantities import Derived
from analysis.fitting.result import Fit
from analysis.planning import allocation, next_crossover_runs
from analysis.planning.answer import STUDY, Answer, check_positive
from analysis.planning.mixture import data_limits, untold
from analysis.study.results import main_matrix, need_fit
from analysis.tables import languages as inventory
from analysis.text import count, few
from analysis.transfer import pair_selection
from analysis.uncertainty.delta_method import covariance, gradient
from mscale.errors import MscaleError, nearest

DECISIONS = ("languages", "expand", "start", "mixture", "pairs")
RUNS = 5
# Of a trunk with a constant rate: budgets as shares of the largest, each cooled over its last tenth.
BUDGETS = (0.25, 0.5, 1.0)
COOLED = 0.1


@dataclass(frozen=True)
class Candidate:
    """A trunk that could be run: its languages (sampled uniformly), N, the tokens of its largest budget, its price."""

    languages: tuple[str, ...]
    scale: str
    params: float
    tokens: float

    @property
    def flops(self) -> float:
        """6·N·D of the trunk up to its last decay, and of each budget's decay."""
        trained = (1 - COOLED) * self.tokens + COOLED * sum(BUDGETS) * self.tokens
        return 6 * self.params * trained

    @property
    def name(self) -> str:
        what = "+".join(self.languages) if len(self.languages) <= 4 else f"{len(self.languages)} languages"
        return f"{what} at {self.scale}"


def next_runs(
    decision: str,
    results: Mapping[str, Any],
    *,
    targets: Sequence[str] = (),
    flops: float | None = None,
    params: float | None = None,
    budget: float = np.inf,
    runs: int = RUNS,
) -> Answer:
    """The runs to make next for a decision, best first, with what each would do to its uncertainty and its price.

    Args:
      decision: "languages" (the worth τ of each source to the targets), "expand" (compute that more languages
        take), "start" (the crossover of the target at N `params`, see `crossover_plan`), "mixture" (the gain of the
        best mixture of the targets over the uniform one, at `flops`), or "pairs" (transfer scores of all pairs, of
        the targets alone where they are named).
      budget: FLOPs that the runs may take in all.

    Raises:
      MscaleError: an unknown decision, or the fit that it hangs on is missing.
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
        return next_crossover_runs.next_runs(results, targets[0], params, budget, runs)
    if decision == "pairs":
        return _pairs(results, targets, budget, runs)
    reasons: list[str] = []
    if decision == "expand":
        fit = need_fit(results, "capacity", "plan next --decision expand")
        names, slopes = ["log compute of twice the languages"], gradient(fit, _growth(fit))[None]
    else:
        if not targets:
            raise MscaleError(
                f"plan next --decision {decision}: name the languages it is about with --target"
            )
        fit = need_fit(results, "atlas", f"plan next --decision {decision}")
        for name in targets:
            if name not in fit.levels:
                raise MscaleError(
                    f"plan next: no ATLAS law of {name!r}{nearest(name, fit.levels)}; fitted: {', '.join(fit.levels)}"
                )
        if decision == "languages":
            names, slopes = _worths(fit, targets)
        else:
            if flops is None:
                raise MscaleError("plan next --decision mixture: give the compute it is about with --flops")
            names = ["gain of the best mixture over uniform"]
            gain, reasons = _gain(fit, results, targets, flops)
            slopes = gradient(fit, gain)[None]
    candidates = _candidates(fit, results, decision, targets)
    limits = data_limits(results, None, fit)
    rows = {run: found for run in candidates if len(found := slopes_of(fit, run, limits))}
    answer = _answer(fit, names, slopes, rows, budget, runs)
    return replace(answer, reasons=(*reasons, *answer.reasons))


def _growth(fit: Fit) -> Callable[[np.ndarray], np.ndarray]:
    names = list(fit.params.index)

    def log_compute(theta: np.ndarray) -> np.ndarray:
        p = dict(zip(names, fit.natural(theta).T, strict=True))
        return np.log(2) * (1 + p["phi"] / p["alpha"] + p["psi"] / p["beta"])

    return log_compute


def _worths(fit: Fit, targets: Sequence[str]) -> tuple[list[str], np.ndarray]:
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
    fit: Fit, results: Mapping[str, Any], targets: Sequence[str], flops: float
) -> tuple[Callable[[np.ndarray], np.ndarray], list[str]]:
    """What the best mixture gains over the uniform one, at θ (B, P), and what is to be said of it."""
    limits = data_limits(results, None, fit)
    here = allocation.laws_of(fit, fit.theta[None], targets, limits)
    best = allocation.best_allocation(here, flops, np.ones(len(targets)))
    even = np.array([name in targets for name in here.sources]) / len(targets)
    plain = allocation.best_allocation(here, flops, np.ones(len(targets)), rates=even)

    def gain(theta: np.ndarray) -> np.ndarray:
        laws = allocation.laws_of(fit, theta, targets, limits)
        return np.mean(
            laws.loss(plain.rates, plain.params, plain.tokens)
            - laws.loss(best.rates, best.params, best.tokens),
            axis=1,
        )

    lone = untold(fit, here, best)
    first = (
        f"first run {few(lone, 8)} at other sizes: run at one alone, their loss at {count(best.params)} parameters is "
        "not told, and no size can be chosen"
    )
    return gain, [first] if lone else []


def _candidates(
    fit: Fit, results: Mapping[str, Any], decision: str, targets: Sequence[str]
) -> list[Candidate]:
    """Trunks of one language, of pairs with the targets, and uniform ones of more, at the study's sizes.

    Their largest budget is the study's own at that size, and twice that.
    """
    languages = fit.levels
    if decision == "expand":
        counts = sorted({1, 2, len(languages) // 2, len(languages)} - {0})
        mixtures = [tuple(languages[:number]) for number in counts]
    else:
        pairs = {tuple(sorted((one, other))) for one in targets for other in languages if one != other}
        mixtures = [*((name,) for name in targets), *sorted(pairs), tuple(languages)]
    longest: dict[str, float] = {}
    for point in results["fit_points"]:
        longest[point["scale"]] = max(longest.get(point["scale"], 0.0), float(point["tokens"]))
    return [
        Candidate(mixture, scale["scale"], float(scale["params"]), longest[scale["scale"]] * times)
        for mixture, scale, times in itertools.product(
            dict.fromkeys(mixtures), results["study"]["scales"], (1, 2)
        )
        if scale["scale"] in longest
    ]


def slopes_of(fit: Fit, run: Candidate, unique: Mapping[str, float]) -> np.ndarray:
    """(rows, P): how the residual of each row of a trunk moves with θ; a row a budget and language that is fitted."""
    rows = []
    sources: Mapping[str, Sequence[str]] = fit.spec["options"].get("sources") or {}
    budgets = run.tokens * np.array(BUDGETS)
    for language in run.languages:
        if language not in fit.levels:
            continue
        each = budgets / len(run.languages)
        x = {
            "N": np.full(len(budgets), run.params),
            "D_t": each,
            "D": each,
            "K": np.full(len(budgets), len(run.languages)),
        }
        x["U_t"] = np.minimum(each, unique.get(language, np.inf))
        named = list(sources.get(language, ()))
        for number, source in enumerate(named, start=1):
            seen = each * (source in run.languages)
            x |= {f"D_{number}": seen, f"U_{number}": np.minimum(seen, unique.get(source, np.inf))}
        others = [name for name in run.languages if name != language and name not in named]
        seen = each * len(others)
        x |= {
            "D_other": seen,
            "U_other": np.minimum(seen, sum(unique.get(name, np.inf) for name in others) or 0.0),
        }
        x = {name: x.get(name, np.zeros(len(budgets))) for name in fit.law.columns}
        block = Derived(fit.levels.index(language), fit.law.predict, x, len(budgets))
        theta = np.tile(fit.theta, (len(budgets), 1))
        value, slope, _ = block.derivatives(fit.problem, theta, np.arange(len(budgets)))
        rows.append(slope / value[:, None] if fit.law.residual == "log" else slope)
    found = np.concatenate(rows) if rows else np.zeros((0, len(fit.theta)))
    if not np.isfinite(found).all():
        raise MscaleError(
            f"plan next: the {fit.law.name} law says nothing of {run.name}, {count(run.tokens)} tokens"
        )
    return found


def after(spread: np.ndarray, slopes: np.ndarray, sigma2: float, ratio: float) -> np.ndarray:
    """The covariance (P, P) once a trunk with rows `slopes` (n, P) is run.

    sigma2: variance of a row's own noise; `ratio` times it is shared by the trunk's rows.
    """
    across = slopes @ spread
    inner = across @ slopes.T + sigma2 * (np.eye(len(slopes)) + ratio)
    return spread - across.T @ np.linalg.solve(inner, across)


def _answer(
    fit: Fit,
    names: Sequence[str],
    wanted: np.ndarray,
    slopes: dict[Candidate, np.ndarray],
    budget: float,
    runs: int,
) -> Answer:
    """Greedily: the run that takes away most of the summed variance of the wanted numbers per FLOP, then the next."""
    noise = fit.noise
    sigma2, ratio = float(noise.at_best(noise.sigma2)[0]), float(noise.ratio[noise.best[0]])
    spread = covariance(fit)
    candidates = list(slopes)

    def deviation(covariance_: np.ndarray) -> float:
        return float(np.sqrt(np.einsum("qi,ij,qj->", wanted, covariance_, wanted) / len(wanted)))

    start, total, left = deviation(spread), 0.0, budget
    rows: list[dict[str, Any]] = []
    while slopes and len(rows) < runs:
        slopes = {run: value for run, value in slopes.items() if run.flops <= left}
        if not slopes:
            break
        now = deviation(spread) ** 2
        better = {run: after(spread, value, sigma2, ratio) for run, value in slopes.items()}
        best = max(better, key=lambda run: (now - deviation(better[run]) ** 2) / run.flops)
        spread, left, total = better[best], left - best.flops, total + best.flops
        rows.append(
            {
                "run": best.name,
                "tokens": best.tokens,
                "flops": best.flops,
                "uncertainty_before": float(np.sqrt(now)),
                "uncertainty_after": deviation(spread),
                "flops_so_far": total,
            }
        )
    if not rows:
        raise MscaleError(
            f"plan next: no run fits into {count(budget)} FLOPs; the cheapest takes "
            f"{count(min(run.flops for run in candidates))}"
        )
    about = names[0] if len(names) == 1 else f"{', '.join(names[:4])}{', …' if len(names) > 4 else ''}"
    first = rows[0]
    text = (
        f"Run {first['run']} next, {count(first['tokens'])} tokens, {count(first['flops'])} FLOPs: the standard error "
        f"of {about} falls from {start:.3g} to {first['uncertainty_after']:.3g}; all {len(rows)} runs below, "
        f"{count(total)} FLOPs, bring it to {rows[-1]['uncertainty_after']:.3g}."
    )
    reasons = (
        f"from the fitted {fit.law.name} law's own slopes and noise ({len(candidates)} candidate trunks at the study's "
        "sizes and budgets, and twice those)",
        "to first order, and only as true as the law; a run is a trunk with three cooled budgets, priced at 6ND",
        "the order is greedy, by variance taken away per FLOP: the same run twice means another seed",
    )
    return Answer(text, tuple(rows), STUDY, reasons)


def _pairs(results: Mapping[str, Any], targets: Sequence[str], budget: float, runs: int) -> Answer:
    """Which pairs to run next to know the scores of all."""
    transfer, cells = results["transfer"], main_matrix(dict(results))
    if not cells:
        raise MscaleError(
            f"plan next --decision pairs: the study has no 50/50 pair ({transfer.get('error') or 'none was run'}): "
            "run a few, and each language alone"
        )
    languages = sorted({row["target"] for row in cells} | {row["source"] for row in cells})
    for name in targets:
        if name not in languages:
            raise MscaleError(
                f"plan next: no language {name!r}{nearest(name, languages)} among the study's pairs"
            )
    planted = (results.get("truth") or {}).get("languages")
    process, scores = pair_selection.of_matrix(cells, lambda names: inventory.pair_features(names, planted))
    price = 6 * float(transfer["params"]) * 2.5 * float(transfer["d"])
    weight = np.array([[float(not targets or name in targets)] * len(languages) for name in languages])
    prices = {(a, b): price for a, b in itertools.combinations(languages, 2)}
    ran = pair_selection.pairs_run(cells)
    chosen = pair_selection.choose(process, scores, runs, price=prices, budget=budget, weight=weight, ran=ran)
    short = [f"{row['source']}→{row['target']}" for row in cells if row["status"] == "bound"]
    longer = f"; {few(short)} only bound their scores: train those pairs longer" if short else ""
    if not chosen:
        raise MscaleError(
            f"plan next --decision pairs: every pair was run{longer}"
            if len(ran) == len(prices)
            else f"plan next: no pair fits into {count(budget)} FLOPs; one takes {count(price)}"
        )
    rows = tuple(
        {"pair": "+".join(choice.pair), "flops": choice.price, "variance_left": choice.left}
        for choice in chosen
    )
    first = ", ".join("+".join(choice.pair) for choice in chosen[:3])
    asked = ", ".join(targets) if targets else "all"
    text = (
        f"Run {first} next ({count(price)} FLOPs each): {len(rows)} pairs leave {rows[-1]['variance_left']:.0%} of "
        f"what is not known of {asked} scores before any run."
    )
    reasons = (
        "a Gaussian process over pairs: languages' own effects, what a pair has in common, related pairs",
        f"a 50/50 run of {count(2.5 * float(transfer['d']))} tokens at scale {transfer['scale']}, which measures both "
        "directions; languages not yet run alone need that too",
        *([longer[2:]] if short else []),
    )
    return Answer(text, rows, STUDY, reasons)
