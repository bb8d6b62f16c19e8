"""A law refitted to F subsets of its rows in one batch, from the optimum of the fit to all rows.

Held-out folds are predicted from these refits. In the batch a subset is a mask over the rows; rows outside it have
weight 0. The search starts at the optimum and the variance ratio ρ of the fit to all rows, which are close.
One fold at a time, a report takes 22.9 s of CPU for 20 languages and not 12.8 s, and for 8 languages 15.4 s and not
9.2 s (benchmarks/report.py).
"""

import dataclasses

import numpy as np

from analysis.estimation import variance_components
from analysis.estimation.aliasing import remove_aliased
from analysis.estimation.estimate import Estimate, Priors, dispersion, prior_moments
from analysis.estimation.optimize import minimise
from analysis.estimation.problem import Batch, Problem
from analysis.estimation.specify import inactive_value, row_dependence
from analysis.estimation.sufficiency import MIN_RESIDUAL_GROUPS, require_enough_data
from analysis.estimation.variance_components import VARIANCE_INFLATION_GRID
from mscale.errors import MscaleError

_TOLERANCE_WITHOUT_PRIORS = (
    1e-5  # enough for the dispersion of residuals, which is all that this optimum gives
)


@dataclasses.dataclass(frozen=True)
class RowSubsets:
    """F subsets of a problem's rows.

    Attributes:
      row_mask: (F, n), the rows of each subset. active: (F, P), the parameters on which some row of a subset depends.
    """

    problem: Problem
    row_mask: np.ndarray
    active: np.ndarray

    @property
    def degrees_of_freedom(self) -> np.ndarray:
        """Rows less active parameters, (F,)."""
        return np.maximum(1, self.row_mask.sum(axis=1) - self.active.sum(axis=1))

    @property
    def group_weight(self) -> np.ndarray:
        """The weight of the rows in each group, (F, G)."""
        return self.problem.group_sums(self.problem.weight * self.row_mask)

    def batch(self, subset: np.ndarray, ratio: np.ndarray, precision: np.ndarray | None) -> Batch:
        """A batch of B problems: subset (B,) is their subset, ratio (B,) their ρ; precision (F, P) the priors."""
        if precision is None:
            return self.problem.batch(row_mask=self.row_mask[subset], ratio=ratio)
        return self.problem.batch(row_mask=self.row_mask[subset], ratio=ratio, precision=precision[subset])

    def ratio_grids(self) -> list[np.ndarray]:
        """The grid of ρ of each subset, as in `variance_components`; 0 alone where ρ cannot be estimated."""
        grids = []
        group_rows = self.problem.group_sums(self.row_mask.astype(float))
        for rows, weight, active in zip(group_rows, self.group_weight, self.active, strict=True):
            estimable = rows.max() > 1 and np.count_nonzero(rows) >= active.sum() + MIN_RESIDUAL_GROUPS
            grids.append((VARIANCE_INFLATION_GRID - 1.0) / weight.max() if estimable else np.zeros(1))
        return grids


def variance_inflation(problem: Problem) -> float:
    """1 + m·ρ with m the weight of the largest group."""
    return 1.0 + problem.ratio * np.bincount(problem.group, problem.weight).max()


def climb_likelihood(
    subsets: RowSubsets, theta: np.ndarray, whole: Problem, precision: np.ndarray | None
) -> tuple[np.ndarray, np.ndarray]:
    """ρ̂ (F,) that maximises the restricted likelihood of each subset, and the optima (F, P) given it.

    A hill climb on the grid of ρ from the ρ̂ of the `whole` problem, evaluating few of its values. theta (F, P): starts.
    """
    grids, reduction = subsets.ratio_grids(), remove_aliased(subsets.problem)
    subsets = dataclasses.replace(
        subsets, problem=reduction.reduced, active=subsets.active[:, reduction.kept]
    )
    precision = None if precision is None else precision[:, reduction.kept]
    theta = reduction.to_reduced(theta)
    first = int(np.argmin(np.abs(np.log(VARIANCE_INFLATION_GRID / variance_inflation(whole)))))
    best = [first if len(grid) > 1 else 0 for grid in grids]  # of each subset, an index in its grid
    # Of each subset, {index in its grid: (log likelihood, optimum)}.
    evaluated: list[dict[int, tuple[float, np.ndarray]]] = [{} for _ in grids]
    while True:
        pending = [
            (subset, at)
            for subset, grid in enumerate(grids)
            for at in (best[subset] - 1, best[subset], best[subset] + 1)
            if 0 <= at < len(grid) and at not in evaluated[subset]
        ]
        if not pending:
            optima = np.array([values[at][1] for values, at in zip(evaluated, best, strict=True)])
            ratio = np.array([grid[at] for grid, at in zip(grids, best, strict=True)])
            return ratio, reduction.to_full(optima)
        which = np.array([subset for subset, _ in pending])
        start = np.array([evaluated[s][best[s]][1] if evaluated[s] else theta[s] for s in which])
        batch = subsets.batch(which, np.array([grids[subset][at] for subset, at in pending]), precision)
        likelihoods, optima = _restricted_likelihood(subsets, start, batch, which)
        for (subset, at), likelihood, optimum in zip(pending, likelihoods, optima, strict=True):
            evaluated[subset][at] = (likelihood, optimum)
        for subset in set(which):
            values = evaluated[subset]
            best[subset] = max(values, key=lambda at: values[at][0])


def _restricted_likelihood(
    subsets: RowSubsets, theta: np.ndarray, batch: Batch, which: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """The restricted log likelihood (B,) given ρ, and the optima (B, P), of a batch of subsets `which` (B,)."""
    problem, degrees_of_freedom = subsets.problem, subsets.degrees_of_freedom[which]
    theta = minimise(problem, theta, batch, damping=1e-3).theta
    information = problem.derivatives(theta, batch)[3]
    np.einsum("bii->bi", information)[~subsets.active[which]] = 1.0
    rss = 2 * problem.objective(theta, batch)
    _, log_determinant = variance_components.pseudo_inverse(information)
    weight = subsets.group_weight[which]
    found = variance_components.restricted_likelihood(
        problem, batch.ratio, rss, log_determinant, degrees_of_freedom, weight
    )
    return found[1], theta


def refit_subsets(whole: Estimate, priors: Priors, row_mask: np.ndarray, few_groups: bool) -> list:
    """The optimum theta (P,) of each subset, row_mask (F, n), of the rows of the `whole` fit.

    Parameters on which no row of a subset depends have the value that they would have in a fit to the subset.

    Returns: for each subset theta, or the MscaleError that refuses it, or None where more parameters are aliased in the
    subset than in all rows, so that its model is another one.
    """
    problem, names = whole.problem, whole.names
    active = _active_parameters(problem, row_mask)
    inactive = np.array([inactive_value(q) for q in problem.fitted_parameters])
    found: list = [None] * len(row_mask)
    for number in range(len(row_mask)):
        try:
            _check_sufficiency(problem, names, row_mask[number], active[number], few_groups)
        except MscaleError as error:
            found[number] = error
    dropped = remove_aliased(problem).dropped
    fitted = [
        number
        for number, error in enumerate(found)
        if error is None and _same_aliasing(problem, row_mask[number], dropped)
    ]
    if fitted:
        subsets = RowSubsets(problem, row_mask[fitted], active[fitted])
        for number, theta in zip(fitted, _search(subsets, whole, priors, inactive), strict=True):
            found[number] = theta
    return found


def _active_parameters(problem: Problem, row_mask: np.ndarray) -> np.ndarray:
    """(F, P): whether some row of each subset depends on each parameter."""
    depends = row_dependence(problem.law, problem.x).T.astype(float)
    columns = np.concatenate([depends[cell.rows] @ (cell.selection != 0) for cell in problem.cells])
    return row_mask.astype(float) @ columns > 0


def _same_aliasing(problem: Problem, row_mask: np.ndarray, dropped: np.ndarray) -> bool:
    """Whether all parameters that are aliased in the subset (n,) are among those `dropped` in the whole."""
    part = problem.subset(row_mask)
    starts = [cell.rows.start for cell in part.cells]
    spans = [(np.minimum.reduceat(x, starts), np.maximum.reduceat(x, starts)) for x in part.x.values()]
    constant = any(((low == high) & (low > 0)).any() for low, high in spans)
    return not constant or bool(np.isin(remove_aliased(part).dropped, dropped).all())


def _check_sufficiency(
    problem: Problem, names: tuple[str, ...], row_mask: np.ndarray, active: np.ndarray, few_groups: bool
) -> None:
    """Raises MscaleError where the rows or groups of a subset (n,) are too few for its active parameters (P,)."""
    part = problem.subset(row_mask)
    part = dataclasses.replace(part, lower=part.lower[active], upper=part.upper[active])
    active_names = tuple(name for name, is_active in zip(names, active, strict=True) if is_active)
    require_enough_data(problem.law, part, active_names, part.groups, few_groups)


def _search(subsets: RowSubsets, whole: Estimate, priors: Priors, inactive: np.ndarray) -> np.ndarray:
    """The optima (F, P) of subsets; inactive (P,): values of parameters that are not active."""
    F = len(subsets.row_mask)
    problem, every, no_ratio = subsets.problem, np.arange(F), np.zeros(F)
    precision = None
    if priors:
        mean, unit = prior_moments(whole.names, priors)
        problem = dataclasses.replace(problem, prior=(mean, unit))
        subsets = dataclasses.replace(subsets, problem=problem)
        without_priors = subsets.batch(every, no_ratio, np.zeros_like(subsets.active, float))
        start = np.where(subsets.active, whole.theta_without_priors, inactive)
        theta = minimise(problem, start, without_priors, tolerance=_TOLERANCE_WITHOUT_PRIORS).theta
        scale = dispersion(problem, theta, without_priors, subsets.degrees_of_freedom)
        precision = scale[:, None] * unit * subsets.active
    start = np.where(subsets.active, whole.theta, inactive)
    if problem.delta is not None:
        return minimise(problem, start, subsets.batch(every, no_ratio, precision)).theta
    return climb_likelihood(subsets, start, whole.problem, precision)[1]
