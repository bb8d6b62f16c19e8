"""A law fitted again to parts of its rows, all parts together: what held-out folds are predicted from.

Every part is a member of one batch, in which rows that it lacks count nothing. Each is searched from the optimum and
the noise of the fit to all rows, which is close by.
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


@dataclasses.dataclass(frozen=True)
class Parts:
    """F parts of a problem's rows: kept (F, n) bool, active (F, P) the parameters on which some kept row depends."""

    problem: Problem
    kept: np.ndarray
    active: np.ndarray

    @property
    def freedom(self) -> np.ndarray:
        return np.maximum(1, self.kept.sum(axis=1) - self.active.sum(axis=1))

    @property
    def weight(self) -> np.ndarray:
        """(F, G) of the kept rows of each group."""
        return self.problem.group_sums(self.problem.weight * self.kept)

    def batch(self, which: np.ndarray, ratio: np.ndarray, precision: np.ndarray | None) -> Batch:
        """Members of parts which (B,) with ρ ratio (B,) and the priors of the parts, precision (F, P)."""
        given = {} if precision is None else {"precision": precision[which]}
        return self.problem.batch(row_mask=self.kept[which], ratio=ratio, **given)

    def ratios(self) -> list[np.ndarray]:
        """The values of ρ that are gone through, of each part, as `uncertainty.ratios` has them."""
        found = []
        count = self.problem.group_sums(self.kept.astype(float))
        for rows, weight, active in zip(count, self.weight, self.active, strict=True):
            told = rows.max() > 1 and np.count_nonzero(rows) >= active.sum() + MIN_RESIDUAL_GROUPS
            found.append((VARIANCE_INFLATION_GRID - 1.0) / weight.max() if told else np.zeros(1))
        return found


def sharing(problem: Problem) -> float:
    """1 + m·ρ̂, m the weight of the largest group."""
    return 1.0 + problem.ratio * np.bincount(problem.group, problem.weight).max()


def climb(
    parts: Parts, theta: np.ndarray, near: Problem, precision: np.ndarray | None
) -> tuple[np.ndarray, np.ndarray]:
    """ρ̂ (F,) and the optima (F, P) given it, from theta (F, P).

    The likelihood of ρ is climbed from the ρ̂ of a problem near, which takes a few of the values that
    `uncertainty.noise` goes through, and is that of the problem that it goes through them with.
    """
    ratios, reduction = parts.ratios(), remove_aliased(parts.problem)
    parts = dataclasses.replace(parts, problem=reduction.reduced, active=parts.active[:, reduction.kept])
    precision = None if precision is None else precision[:, reduction.kept]
    theta = reduction.to_reduced(theta)
    first = int(np.argmin(np.abs(np.log(VARIANCE_INFLATION_GRID / sharing(near)))))
    place = [first if len(ratio) > 1 else 0 for ratio in ratios]
    known: list[dict[int, tuple[float, np.ndarray]]] = [{} for _ in ratios]
    while True:
        asked = [
            (part, at)
            for part, ratio in enumerate(ratios)
            for at in (place[part] - 1, place[part], place[part] + 1)
            if 0 <= at < len(ratio) and at not in known[part]
        ]
        if not asked:
            best = np.array([of[at][1] for of, at in zip(known, place, strict=True)])
            found = np.array([ratio[at] for ratio, at in zip(ratios, place, strict=True)])
            return found, reduction.to_full(best)
        which = np.array([part for part, _ in asked])
        start = np.array([known[part][place[part]][1] if known[part] else theta[part] for part in which])
        batch = parts.batch(which, np.array([ratios[part][at] for part, at in asked]), precision)
        given = _restricted(parts, start, batch, which)
        for (part, at), likelihood, optimum in zip(asked, *given, strict=True):
            known[part][at] = (likelihood, optimum)
        for part in set(which):
            mine = known[part]
            place[part] = max(mine, key=lambda at: mine[at][0])


def _restricted(
    parts: Parts, theta: np.ndarray, batch: Batch, which: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """The restricted log likelihood (B,) given ρ of parts which (B,), and their optima (B, P), from theta (B, P)."""
    problem, freedom = parts.problem, parts.freedom[which]
    theta = minimise(problem, theta, batch, damping=1e-3).theta
    information = problem.derivatives(theta, batch)[3]
    np.einsum("bii->bi", information)[~parts.active[which]] = 1.0
    rss = 2 * problem.objective(theta, batch)
    _, log_determinant = variance_components.pseudo_inverse(information)
    weight = parts.weight[which]
    found = variance_components.restricted_likelihood(
        problem, batch.ratio, rss, log_determinant, freedom, weight
    )
    return found[1], theta


ALONE = 1e-5  # of the optimum without priors, of which only the dispersion of residuals is wanted


def refit(whole: Estimate, priors: Priors, kept: np.ndarray, few: bool) -> list:
    """The optima (P,) of the parts kept (F, n) of the whole's rows, or the MscaleError that says why there is none.

    Parameters on which no row of a part depends are held at the value that they have in a fit to the part. None for a
    part in which some do what others do, as they do not in the whole: it is another problem.
    """
    problem, names = whole.problem, whole.names
    active = _active(problem, kept)
    held = np.array([inactive_value(q) for q in problem.fitted_parameters])
    found: list = [None] * len(kept)
    for number in range(len(kept)):
        try:
            _enough(problem, names, kept[number], active[number], few)
        except MscaleError as error:
            found[number] = error
    pairs = remove_aliased(problem).dropped
    fitted = [at for at, why in enumerate(found) if why is None and _alike(problem, kept[at], pairs)]
    if fitted:
        parts = Parts(problem, kept[fitted], active[fitted])
        for number, theta in zip(fitted, _search(parts, whole, priors, held), strict=True):
            found[number] = theta
    return found


def _active(problem: Problem, kept: np.ndarray) -> np.ndarray:
    touched = row_dependence(problem.law, problem.x).T.astype(float)
    columns = np.concatenate([touched[cell.rows] @ (cell.selection != 0) for cell in problem.cells])
    return kept.astype(float) @ columns > 0


def _alike(problem: Problem, kept: np.ndarray, pairs: np.ndarray) -> bool:
    """Whether in the rows kept no parameters but the pairs do only what others do."""
    part = problem.subset(kept)
    starts = [cell.rows.start for cell in part.cells]
    spans = [(np.minimum.reduceat(x, starts), np.maximum.reduceat(x, starts)) for x in part.x.values()]
    constant = any(((low == high) & (low > 0)).any() for low, high in spans)
    return not constant or bool(np.isin(remove_aliased(part).dropped, pairs).all())


def _enough(
    problem: Problem, names: tuple[str, ...], kept: np.ndarray, active: np.ndarray, few: bool
) -> None:
    part = problem.subset(kept)
    part = dataclasses.replace(part, lower=part.lower[active], upper=part.upper[active])
    mine = tuple(name for name, there in zip(names, active, strict=True) if there)
    require_enough_data(problem.law, part, mine, part.groups, few)


def _search(parts: Parts, whole: Estimate, priors: Priors, held: np.ndarray) -> np.ndarray:
    """Their optima (F, P); held (P,): of parameters that are not active."""
    F = len(parts.kept)
    problem, everyone, none = parts.problem, np.arange(F), np.zeros(F)
    precision = None
    if priors:
        mean, unit = prior_moments(whole.names, priors)
        problem = dataclasses.replace(problem, prior=(mean, unit))
        parts = dataclasses.replace(parts, problem=problem)
        free = parts.batch(everyone, none, np.zeros_like(parts.active, float))
        start = np.where(parts.active, whole.theta_without_priors, held)
        alone = minimise(problem, start, free, tolerance=ALONE).theta
        precision = dispersion(problem, alone, free, parts.freedom)[:, None] * unit * parts.active
    start = np.where(parts.active, whole.theta, held)
    if problem.delta is not None:
        return minimise(problem, start, parts.batch(everyone, none, precision)).theta
    return climb(parts, start, whole.problem, precision)[1]
