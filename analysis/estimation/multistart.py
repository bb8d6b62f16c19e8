"""Multistart search for the global optimum.

The predictions are linear in some parameters once the others are given (variable projection). So a grid is laid over
the nonlinear ones, the linear ones are solved by non-negative least squares at each point, and the best points are
polished by Newton's method.

Everything is batched over S studies of one design (responses y (S, n)); a fit is a batch of one.
"""

import dataclasses
import itertools

import numpy as np

from analysis.estimation.aliasing import remove_aliased
from analysis.estimation.optimize import minimise
from analysis.estimation.problem import Problem
from mscale.errors import MscaleError

_GRID_POINTS = 6  # per nonlinear parameter, where there are at most two
_SOBOL_POINTS = 64  # of a Sobol sequence, where there are more
_POLISHED_STARTS = 12  # the best, which are followed to their minimum
FEW_STARTS = 3  # polished where an optimum is nearly known


@dataclasses.dataclass(frozen=True)
class Optima:
    """The best minimum of each of S studies: theta (S, P); NaN where nothing finite was found.

    problem: with its barrier weight, where the law has a constraint. starts: how many were polished. agreeing: (S,) how
    many of them reached the lowest objective, to 1e-6 relative. converged: (S,) whether the best did.
    """

    problem: Problem
    theta: np.ndarray
    starts: int
    agreeing: np.ndarray
    converged: np.ndarray


def optima(
    problem: Problem,
    seed: int,
    y: np.ndarray | None = None,
    polished: int = _POLISHED_STARTS,
) -> Optima:
    """The global optimum of each study, from starts over the whole range of the parameters.

    y: (S, n) responses of simulated studies (None: the problem's own). polished: starts that are followed to their
    minimum.

    Raises:
      MscaleError: no study has a finite optimum.
    """
    y = problem.y[None] if y is None else y
    reduction = remove_aliased(problem)
    theta = starts(reduction.reduced, seed, y)[:, :polished]
    if not np.isfinite(theta).any():
        raise MscaleError("no start gives finite predictions: check the units of the columns")
    found = _polish(reduction.reduced, theta, y)
    return dataclasses.replace(
        found,
        problem=dataclasses.replace(problem, barrier=found.problem.barrier),
        theta=reduction.to_full(found.theta),
    )


def starts(problem: Problem, seed: int, y: np.ndarray) -> np.ndarray:
    """Starts (S, K, P) for responses y (S, n), lowest objective first; NaN where fewer than K are finite."""
    parameters = problem.fitted_parameters
    nonlinear = [index for index, q in enumerate(parameters) if not q.linear]
    ranges = problem.start_ranges
    if len(nonlinear) <= 2:
        axes = [np.linspace(ranges[index, 0], ranges[index, 1], _GRID_POINTS) for index in nonlinear]
        points = np.array(list(itertools.product(*axes)), float).reshape(_GRID_POINTS ** len(axes), len(axes))
    else:
        from scipy.stats import qmc  # here, since its import takes 0.25 s of CPU

        unit = qmc.Sobol(len(nonlinear), seed=seed).random(_SOBOL_POINTS)
        low, high = ranges[nonlinear].T
        points = low + unit * (high - low)
    theta = np.tile(ranges.mean(axis=1), (len(points), 1))
    theta[:, nonlinear] = points
    theta = np.clip(theta, problem.lower, problem.upper)
    allowed = np.ones(len(theta), bool)
    if problem.law.constraint is not None:
        allowed = np.all(problem.constraint(theta) > 0, axis=1)
    theta = solve_linear_parameters(
        problem, theta, [index for index, q in enumerate(parameters) if q.linear], y
    )
    S, K, P = theta.shape
    value = problem.objective(theta.reshape(-1, P), problem.batch(y=np.repeat(y, K, axis=0))).reshape(S, K)
    value = np.where(np.isfinite(value) & allowed, value, np.inf)
    order = np.argsort(value, axis=1, kind="stable")[:, :_POLISHED_STARTS]
    best = np.take_along_axis(theta, order[:, :, None], axis=1)
    best[~np.isfinite(np.take_along_axis(value, order, axis=1))] = np.nan
    return best


def solve_linear_parameters(
    problem: Problem, theta: np.ndarray, linear: list[int], y: np.ndarray
) -> np.ndarray:
    """Least-squares values of the linear parameters, given the nonlinear ones of K starts theta (K, P).

    The prediction is Σ_j c_j·f_j(nonlinear parameters) + constant. Parameters with a lower bound of 0 are solved by
    non-negative least squares. linear: indices of the L linear parameters. y: (S, n) responses. Returns (S, K, P).
    """
    S = len(y)
    result = np.tile(theta, (S, 1, 1))
    if not linear:
        return result
    regressors, constant, columns = _linear_model(problem, theta, linear)
    scale = np.sqrt(problem.weight) / (y if problem.law.residual == "log" else np.ones_like(y))  # (S, n)
    positive = np.array([problem.fitted_parameters[index].log for index in linear])
    bounded = bool(np.all([problem.fitted_parameters[index].bounds[0] >= 0 for index in linear]))
    smallest = 1e-3 * np.abs(y).mean(axis=1)
    usable = np.flatnonzero(np.isfinite(regressors).all(axis=(1, 2)) & np.isfinite(constant).all(axis=1))
    used = np.bincount(np.concatenate([at[at >= 0] for at in columns]), minlength=len(linear))
    # One study: all starts at once. Many studies: one start at a time, which already fills the cache.
    for chunk in [usable] if S == 1 else usable[:, None]:
        target = (y - constant[chunk, None]) * scale
        solved = np.zeros((len(chunk), S, len(linear)))
        if used.max() == 1:
            for cell, at in zip(problem.cells, columns, strict=True):
                present, rows = at >= 0, cell.rows
                solved[:, :, at[present]] = _least_squares(
                    regressors[chunk, rows][:, :, present], scale[:, rows], target[:, :, rows], bounded
                )
        else:
            design = np.zeros((len(chunk), len(problem.y), len(linear)))
            for cell, at in zip(problem.cells, columns, strict=True):
                for position in np.flatnonzero(at >= 0):
                    design[:, cell.rows, at[position]] += regressors[chunk, cell.rows, position]
            solved = _least_squares(design, scale, target, bounded)
        solved = np.where(positive, np.maximum(solved, smallest[:, None]), solved)
        solved = np.where(positive, np.log(np.where(positive, solved, 1.0)), solved)
        result[:, chunk[:, None], linear] = solved.swapaxes(0, 1)
    return np.clip(result, problem.lower, problem.upper)


def _least_squares(design: np.ndarray, scale: np.ndarray, target: np.ndarray, bounded: bool) -> np.ndarray:
    """(K, S, L) coefficients of target (K, S, n) on design (K, n, L).

    scale: (S, n) of the rows of the design (the target is scaled already). bounded: coefficients are not negative.
    """
    size = np.linalg.norm(design, axis=1)[:, None]
    size = np.where(size > 0, size, 1.0)
    design = design / size
    scaled = design[:, None] * scale[:, :, None]
    normal = np.matmul(scaled.swapaxes(2, 3), scaled)
    normal += 1e-12 * np.einsum("ksii->ks", normal)[:, :, None, None] * np.eye(design.shape[2])
    right = np.matmul(scaled.swapaxes(2, 3), target[:, :, :, None])
    solved = np.linalg.solve(normal, right)[:, :, :, 0]
    negative = np.argwhere((solved < 0).any(axis=2)) if bounded else ()
    if len(negative):
        from scipy.optimize import nnls  # here, since its import takes 0.1 s of CPU

        for k, s in negative:
            solved[k, s] = nnls(scaled[k, s], target[k, s], maxiter=100 * design.shape[2])[0]
    return solved / size


def _linear_model(
    problem: Problem, theta: np.ndarray, linear: list[int]
) -> tuple[np.ndarray, np.ndarray, list[np.ndarray]]:
    """The linear model of the predictions at starts theta (K, P).

    Returns: the regressors of the law's m linear parameters (K, n, m); the part of the predictions that is given
      (K, n), from linear parameters that are fixed; and of each cell which of the L fitted ones each is (m,), −1 for
      those that are fixed.
    """
    predicted, slopes = problem.slopes(theta)
    of_law = [index for index, q in enumerate(problem.law.parameters) if q.linear]
    local = problem.all_cell_parameters(theta)[:, :, of_law]
    logs = problem.logs[of_law]
    amount = np.where(logs, np.exp(np.where(logs, local, 0.0)), local)
    per_unit = slopes[:, of_law].swapaxes(1, 2) / np.where(logs, amount, 1.0)[:, problem.cell_of_row]
    constant = predicted.copy()
    place = np.full(problem.size, -1)
    place[linear] = np.arange(len(linear))
    columns = []
    for number, cell in enumerate(problem.cells):
        chosen = cell.selection[of_law]
        is_fitted = (chosen == 1.0).any(
            axis=1
        )  # not fixed: a row of zeros, or of the shift to the reference point
        columns.append(np.where(is_fitted, place[chosen.argmax(axis=1)], -1))
        known = columns[-1] >= 0
        contribution = per_unit[:, cell.rows][:, :, known] @ amount[:, number, known, None]
        constant[:, cell.rows] -= contribution[:, :, 0]
    return per_unit, constant, columns


def _polish(problem: Problem, theta: np.ndarray, y: np.ndarray) -> Optima:
    """The best of the minima from every start (S, K, P).

    With a constraint, a first search with a large barrier weight leads to one with a small weight.
    """
    S, K, P = theta.shape
    fill = np.where(np.isfinite(theta[:, :1]), theta[:, :1], (problem.lower + problem.upper) / 2)
    start = np.where(np.isfinite(theta), theta, fill).reshape(-1, P)
    batch = problem.batch(y=np.repeat(y, K, axis=0))
    if problem.law.constraint is not None:
        scale = float(np.median(problem.objective(start, batch))) / len(problem.y)
        wide = dataclasses.replace(problem, barrier=1e-4 * scale)
        start = minimise(wide, start, batch, iterations=60, tolerance=1e-6).theta
        least = problem.objective(start, batch).reshape(S, K).min(axis=1)
        problem = dataclasses.replace(problem, barrier=1e-7 * float(np.median(least)) / len(problem.y))
    found = minimise(problem, start, batch)
    finite = np.isfinite(theta).all(axis=2)
    value = np.where(finite, found.objective.reshape(S, K), np.inf)
    study, best = np.arange(S), value.argmin(axis=1)
    low = value[study, best, None]
    if not np.isfinite(low).any():
        raise MscaleError("the fit did not find a finite optimum: check the units of the columns")
    return Optima(
        problem,
        theta=np.where(np.isfinite(low), found.theta.reshape(S, K, P)[study, best], np.nan),
        starts=int(finite.sum(axis=1).max()),
        agreeing=(value <= low + 1e-6 * np.abs(low) + 1e-15).sum(axis=1),
        converged=found.converged.reshape(S, K)[study, best],
    )
