"""A law fitted again to parts of its rows, all parts together: what held-out folds are predicted from.

Every part is a member of one batch, in which rows that it lacks count nothing. Each is searched from the optimum and
the noise of the fit to all rows, which is close by.
"""

import dataclasses

import numpy as np

from analysis.build import depends, idle
from analysis.engine import minimise
from analysis.fitting import Estimate
from analysis.parts import Parts, climb
from analysis.priors import Priors, dispersion, drawn
from analysis.problem import Problem
from analysis.reduction import reduce
from analysis.sufficiency import enough
from mscale.errors import MscaleError

ALONE = 1e-5  # of the optimum without priors, of which only the dispersion of residuals is wanted


def refit(whole: Estimate, priors: Priors, kept: np.ndarray, few: bool) -> list:
    """The optima (P,) of the parts kept (F, n) of the whole's rows, or the MscaleError that says why there is none.

    Parameters on which no row of a part depends are held at the value that they have in a fit to the part. None for a
    part in which some do what others do, as they do not in the whole: it is another problem.
    """
    problem, names = whole.problem, whole.names
    active = _active(problem, kept)
    held = np.array([idle(q) for q in problem.held["parameters"]])
    found: list = [None] * len(kept)
    for number in range(len(kept)):
        try:
            _enough(problem, names, kept[number], active[number], few)
        except MscaleError as error:
            found[number] = error
    pairs = reduce(problem).drop
    fitted = [at for at, why in enumerate(found) if why is None and _alike(problem, kept[at], pairs)]
    if fitted:
        parts = Parts(problem, kept[fitted], active[fitted])
        for number, theta in zip(fitted, _search(parts, whole, priors, held), strict=True):
            found[number] = theta
    return found


def _active(problem: Problem, kept: np.ndarray) -> np.ndarray:
    touched = depends(problem.law, problem.x).T.astype(float)
    columns = np.concatenate([touched[cell.rows] @ (cell.select != 0) for cell in problem.cells])
    return kept.astype(float) @ columns > 0


def _alike(problem: Problem, kept: np.ndarray, pairs: np.ndarray) -> bool:
    """Whether in the rows kept no parameters but the pairs do only what others do."""
    part = problem.subset(kept)
    starts = [cell.rows.start for cell in part.cells]
    spans = [(np.minimum.reduceat(x, starts), np.maximum.reduceat(x, starts)) for x in part.x.values()]
    constant = any(((low == high) & (low > 0)).any() for low, high in spans)
    return not constant or bool(np.isin(reduce(part).drop, pairs).all())


def _enough(
    problem: Problem, names: tuple[str, ...], kept: np.ndarray, active: np.ndarray, few: bool
) -> None:
    part = problem.subset(kept)
    part = dataclasses.replace(part, lower=part.lower[active], upper=part.upper[active])
    mine = tuple(name for name, there in zip(names, active, strict=True) if there)
    enough(problem.law, part, mine, part.groups, few)


def _search(parts: Parts, whole: Estimate, priors: Priors, held: np.ndarray) -> np.ndarray:
    """Their optima (F, P); held (P,): of parameters that are not active."""
    F = len(parts.kept)
    problem, everyone, none = parts.problem, np.arange(F), np.zeros(F)
    precision = None
    if priors:
        mean, unit = drawn(whole.names, priors)
        problem = dataclasses.replace(problem, prior=(mean, unit))
        parts = dataclasses.replace(parts, problem=problem)
        free = parts.members(everyone, none, np.zeros_like(parts.active, float))
        start = np.where(parts.active, whole.alone, held)
        alone = minimise(problem, start, free, tolerance=ALONE).theta
        precision = dispersion(problem, alone, free, parts.freedom)[:, None] * unit * parts.active
    start = np.where(parts.active, whole.theta, held)
    if problem.delta is not None:
        return minimise(problem, start, parts.members(everyone, none, precision)).theta
    return climb(parts, start, whole.problem, precision)[1]
