"""The global optimum: a grid over the nonlinear parameters, the linear ones solved, the best polished together.

Everything is batched over S studies of one design (responses y (S, n)); a fit is a batch of one.
"""

import dataclasses
import itertools
from types import SimpleNamespace

import numpy as np
from scipy.optimize import nnls
from scipy.stats import qmc

from analysis.estimation.aliasing import remove_aliased
from analysis.estimation.optimize import minimise
from analysis.estimation.problem import Problem
from mscale.errors import MscaleError

_GRID_POINTS = 6  # points a nonlinear parameter gets when there are at most two
_SOBOL_POINTS = 64  # otherwise: points of a Sobol sequence
_POLISHED_STARTS = 12  # starts that are polished
SUBSAMPLE_ROWS = 3000  # rows on which starts are compared; the best go on to all of them
FINAL_STARTS = 3


@dataclasses.dataclass(frozen=True)
class Optima:
    """The best minimum of each of S studies: theta (S, P); NaN where nothing finite was found.

    problem: with its barrier set, where the law has a constraint. starts: polished, of which agreeing (S,) met the
    best to 1e-6 relative; converged (S,): it settled.
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
    """The global optimum of each study, started without knowing anything of the parameters.

    polished: starts that are followed to their optimum.

    Raises:
      MscaleError: no study has a finite optimum.
    """
    y = problem.y[None] if y is None else y
    reduced = remove_aliased(problem)
    found = _optima(reduced.inner, seed, y, polished)
    if reduced.inner is problem:
        return found
    return dataclasses.replace(
        found,
        problem=dataclasses.replace(problem, barrier=found.problem.barrier),
        theta=reduced.outwards(found.theta),
    )


def _optima(problem: Problem, seed: int, y: np.ndarray, polished: int) -> Optima:
    small, rows = subsample(problem)
    theta = starts(small, seed, y[:, rows])[:, :polished]
    if not np.isfinite(theta).any():
        raise MscaleError("no start gives finite predictions: check the units of the columns")
    found = _polish(small, theta, y[:, rows])
    if small is problem:
        return dataclasses.replace(found[0], theta=found[1][:, 0])
    last = _polish(problem, found[1][:, :FINAL_STARTS], y)
    return dataclasses.replace(
        last[0], theta=last[1][:, 0], starts=found[0].starts, agreeing=found[0].agreeing
    )


def starts(problem: Problem, seed: int, y: np.ndarray) -> np.ndarray:
    """Starts (S, K, P) for responses y (S, n), best first; NaN where a study has fewer that are finite."""
    which = problem.held["parameters"]
    nonlinear = [index for index, q in enumerate(which) if not q.linear]
    ranges = np.array([np.log(q.start) if q.log else q.start for q in which], float).reshape(-1, 2)
    if len(nonlinear) <= 2:
        axes = [np.linspace(ranges[index, 0], ranges[index, 1], _GRID_POINTS) for index in nonlinear]
        points = np.array(list(itertools.product(*axes)), float).reshape(_GRID_POINTS ** len(axes), len(axes))
    else:
        unit = qmc.Sobol(len(nonlinear), seed=seed).random(_SOBOL_POINTS)
        low, high = ranges[nonlinear].T
        points = low + unit * (high - low)
    plain = np.tile(ranges.mean(axis=1), (len(points), 1))
    plain[:, nonlinear] = points
    theta = np.clip(plain, problem.lower, problem.upper)
    allowed = np.ones(len(theta), bool)
    if problem.law.constraint is not None:
        allowed = np.all(problem.constraint(theta) > 0, axis=1)
    theta = solve_linear_parameters(problem, theta, [index for index, q in enumerate(which) if q.linear], y)
    S, K, P = theta.shape
    value = problem.objective(theta.reshape(-1, P), problem.members(y=np.repeat(y, K, axis=0))).reshape(S, K)
    value = np.where(np.isfinite(value) & allowed, value, np.inf)
    order = np.argsort(value, axis=1, kind="stable")[:, :_POLISHED_STARTS]
    best = np.take_along_axis(theta, order[:, :, None], axis=1)
    best[~np.isfinite(np.take_along_axis(value, order, axis=1))] = np.nan
    return best


def solve_linear_parameters(problem: Problem, theta: np.ndarray, linear: list[int], y: np.ndarray) -> np.ndarray:
    """(S, K, P): the linear parameters of every start solved; the prediction is Σ_j c_j·f_j(nonlinear)."""
    S = len(y)
    result = np.tile(theta, (S, 1, 1))
    if not linear:
        return result
    designs, known, columns = _designs(problem, theta, linear)
    scale = np.sqrt(problem.weight) / (y if problem.law.residual == "log" else np.ones_like(y))  # (S, n)
    positive = np.array([problem.held["parameters"][index].log for index in linear])
    bounded = bool(np.all([problem.held["parameters"][index].bounds[0] >= 0 for index in linear]))
    least = 1e-3 * np.abs(y).mean(axis=1)
    good = np.flatnonzero(np.isfinite(designs).all(axis=(1, 2)) & np.isfinite(known).all(axis=1))
    used = np.bincount(np.concatenate([at[at >= 0] for at in columns]), minlength=len(linear))
    # One study is searched from all starts at once; many at once fill the cache with a single start.
    for some in [good] if S == 1 else good[:, None]:
        target = (y - known[some, None]) * scale
        solved = np.zeros((len(some), S, len(linear)))
        if used.max() == 1:
            for cell, at in zip(problem.cells, columns, strict=True):
                mine, rows = at >= 0, cell.rows
                solved[:, :, at[mine]] = _least_squares(
                    designs[some, rows][:, :, mine], scale[:, rows], target[:, :, rows], bounded
                )
        else:
            whole = np.zeros((len(some), len(problem.y), len(linear)))
            for cell, at in zip(problem.cells, columns, strict=True):
                for position in np.flatnonzero(at >= 0):
                    whole[:, cell.rows, at[position]] += designs[some, cell.rows, position]
            solved = _least_squares(whole, scale, target, bounded)
        solved = np.where(positive, np.maximum(solved, least[:, None]), solved)
        solved = np.where(positive, np.log(np.where(positive, solved, 1.0)), solved)
        result[:, some[:, None], linear] = solved.swapaxes(0, 1)
    return np.clip(result, problem.lower, problem.upper)


def _least_squares(design: np.ndarray, scale: np.ndarray, target: np.ndarray, bounded: bool) -> np.ndarray:
    """(K, S, L) least squares of target (K, S, n) on design (K, n, L), rows scaled (S, n), not negative if bounded."""
    size = np.linalg.norm(design, axis=1)[:, None]
    size = np.where(size > 0, size, 1.0)
    design = design / size
    scaled = design[:, None] * scale[:, :, None]
    normal = np.matmul(scaled.swapaxes(2, 3), scaled)
    normal += 1e-12 * np.einsum("ksii->ks", normal)[:, :, None, None] * np.eye(design.shape[2])
    right = np.matmul(scaled.swapaxes(2, 3), target[:, :, :, None])
    solved = np.linalg.solve(normal, right)[:, :, :, 0]
    if bounded:
        for k, s in np.argwhere((solved < 0).any(axis=2)):
            solved[k, s] = nnls(scaled[k, s], target[k, s], maxiter=100 * design.shape[2])[0]
    return solved / size


def _designs(
    problem: Problem, theta: np.ndarray, linear: list[int]
) -> tuple[np.ndarray, np.ndarray, list[np.ndarray]]:
    """What each of the law's linear parameters multiplies (K, n, m), what is known without them (K, n), and of each
    cell which of the fitted ones it is there (m,), −1 for none.
    """
    law, B, n = problem.law, len(theta), len(problem.y)
    local_linear = [i for i, q in enumerate(law.parameters) if q.linear]
    designs, known = np.zeros((B, n, len(local_linear))), np.zeros((B, n))
    columns = [np.full(len(local_linear), -1) for _ in problem.cells]
    place = {index: position for position, index in enumerate(linear)}
    local = problem.all_locals(theta)
    for position, i in enumerate(local_linear):
        probe = local.copy()
        probe[:, :, i] = 0.0 if problem.logs[i] else 1.0
        natural = problem.natural(probe)
        natural[:, :, [other for other in local_linear if other != i]] = 0.0
        on_rows = natural[:, problem.cell_of_row]
        p = SimpleNamespace(**{q.name: on_rows[:, :, j] for j, q in enumerate(law.parameters)})
        with np.errstate(all="ignore"):
            column = np.broadcast_to(law.predict(p, SimpleNamespace(**problem.x)), (B, n))
        for number, cell in enumerate(problem.cells):
            at = [index for index in np.flatnonzero(cell.select[i]) if int(index) in place]
            if at and cell.select[i, at[0]] == 1.0:
                designs[:, cell.rows, position] = column[:, cell.rows]
                columns[number][position] = place[int(at[0])]
            else:
                amount = np.exp(local[:, number, i]) if problem.logs[i] else local[:, number, i]
                known[:, cell.rows] += column[:, cell.rows] * amount[:, None]
    return designs, known, columns


def subsample(problem: Problem) -> tuple[Problem, np.ndarray]:
    """The problem on whole groups, about `ENOUGH` rows, spread evenly, and which rows; itself if not many more."""
    every = len(problem.y) // SUBSAMPLE_ROWS
    keep = np.ones(len(problem.y), bool) if every < 2 else problem.group % every == 0
    return (problem if every < 2 else problem.subset(keep)), keep


def _polish(problem: Problem, theta: np.ndarray, y: np.ndarray) -> tuple[Optima, np.ndarray]:
    """The optima from every start (S, K, P), best first; the first is that of the study."""
    S, K, P = theta.shape
    fill = np.where(np.isfinite(theta[:, :1]), theta[:, :1], (problem.lower + problem.upper) / 2)
    start = np.where(np.isfinite(theta), theta, fill).reshape(-1, P)
    members = problem.members(y=np.repeat(y, K, axis=0))
    if problem.law.constraint is not None:
        scale = float(np.median(problem.objective(start, members))) / len(problem.y)
        wide = dataclasses.replace(problem, barrier=1e-4 * scale)
        start = minimise(wide, start, members, iterations=60, tolerance=1e-6).theta
        least = problem.objective(start, members).reshape(S, K).min(axis=1)
        problem = dataclasses.replace(problem, barrier=1e-7 * float(np.median(least)) / len(problem.y))
    found = minimise(problem, start, members)
    value = np.where(np.isfinite(theta).all(axis=2), found.objective.reshape(S, K), np.inf)
    order = np.argsort(value, axis=1, kind="stable")
    value = np.take_along_axis(value, order, axis=1)
    low = value[:, :1]
    if not np.isfinite(low).any():
        raise MscaleError("the fit did not find a finite optimum: check the units of the columns")
    best = np.take_along_axis(found.theta.reshape(S, K, P), order[:, :, None], axis=1)
    best[~np.isfinite(value)] = np.nan
    agreeing = (value <= low + 1e-6 * np.abs(low) + 1e-15).sum(axis=1)
    converged = found.converged.reshape(S, K)[np.arange(S), order[:, 0]]
    started = int(np.isfinite(theta).all(axis=2).sum(axis=1).max())
    return Optima(problem, best, started, agreeing, converged), best
