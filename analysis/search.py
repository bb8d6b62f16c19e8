"""The global optimum: a grid over the nonlinear parameters, the linear ones solved, the best polished together."""

import dataclasses
import itertools
from types import SimpleNamespace
from typing import Any

import numpy as np
from scipy.optimize import nnls
from scipy.stats import qmc

from analysis.engine import minimise
from analysis.problem import Problem
from mscale.errors import MscaleError

GRID = 6  # points a nonlinear parameter gets when there are at most two
STARTS = 64  # otherwise: points of a Sobol sequence
POLISHED = 12  # starts that are polished
ENOUGH = 3000  # rows on which starts are compared; the best go on to all of them
FINAL = 3


def starts(problem: Problem, seed: int) -> np.ndarray:
    """Starts (S, P), best first."""
    problem = sample(problem)
    which = problem.held["parameters"]
    nonlinear = [index for index, q in enumerate(which) if not q.linear]
    ranges = np.array([np.log(q.start) if q.log else q.start for q in which], float).reshape(-1, 2)
    if len(nonlinear) <= 2:
        axes = [np.linspace(ranges[index, 0], ranges[index, 1], GRID) for index in nonlinear]
        points = np.array(list(itertools.product(*axes)), float).reshape(GRID ** len(axes), len(axes))
    else:
        unit = qmc.Sobol(len(nonlinear), seed=seed).random(STARTS)
        low, high = ranges[nonlinear].T
        points = low + unit * (high - low)
    theta = np.tile(ranges.mean(axis=1), (len(points), 1))
    theta[:, nonlinear] = points
    theta = np.clip(theta, problem.lower, problem.upper)
    _solve_linear(problem, theta, [index for index, q in enumerate(which) if q.linear])
    value = problem.objective(theta)
    if problem.law.constraint is not None:
        value[(problem.constraint(theta) <= 0).any(axis=1)] = np.inf
    order = np.argsort(np.where(np.isfinite(value), value, np.inf), kind="stable")
    return theta[order[np.isfinite(value[order])]]


def _solve_linear(problem: Problem, theta: np.ndarray, linear: list[int]) -> None:
    """Fills the linear parameters of every start, in place: the prediction is Σ_j c_j·f_j(nonlinear)."""
    if not linear:
        return
    designs, known = _designs(problem, theta, linear)
    scale = np.sqrt(problem.weight) / (problem.y if problem.law.residual == "log" else 1.0)
    positive = np.array([problem.held["parameters"][index].log for index in linear])
    bounded = np.array([problem.held["parameters"][index].bounds[0] >= 0 for index in linear])
    least = 1e-3 * np.abs(problem.y).mean()
    for b in range(len(theta)):
        target = (problem.y - known[b]) * scale
        design = designs[b] * scale[:, None]
        if not np.isfinite(design).all():
            continue
        if bounded.all():
            solved = nnls(design, target, maxiter=100 * len(linear))[0]
            solved = np.where(positive, np.maximum(solved, least), solved)
        else:
            solved = np.linalg.lstsq(design, target, rcond=None)[0]
            solved = np.where(positive, np.maximum(solved, least), solved)
        theta[b, linear] = np.where(positive, np.log(np.where(positive, solved, 1.0)), solved)
    np.clip(theta, problem.lower, problem.upper, out=theta)


def _designs(problem: Problem, theta: np.ndarray, linear: list[int]) -> tuple[np.ndarray, np.ndarray]:
    """(S, n, linear) what each linear parameter multiplies, and (S, n) what is known without them."""
    law, B, n = problem.law, len(theta), len(problem.y)
    designs, known = np.zeros((B, n, len(linear))), np.zeros((B, n))
    local_linear = [i for i, q in enumerate(law.parameters) if q.linear]
    place = {index: position for position, index in enumerate(linear)}
    for cell in problem.cells:
        local = problem.locals(theta, cell)
        x = problem.variables(cell)
        for i in local_linear:
            probe = local.copy()
            probe[:, i] = 0.0 if problem.logs[i] else 1.0
            natural = problem.natural(probe)
            for other in local_linear:
                if other != i:
                    natural[:, other] = 0.0
            p = SimpleNamespace(**{q.name: natural[:, j, None] for j, q in enumerate(law.parameters)})
            with np.errstate(all="ignore"):
                column = np.broadcast_to(law.predict(p, x), (B, cell.rows.stop - cell.rows.start))
            at = [index for index in np.flatnonzero(cell.select[i]) if int(index) in place]
            if at and cell.select[i, at[0]] == 1.0:
                designs[:, cell.rows, place[int(at[0])]] += column
            else:
                amount = np.exp(local[:, i]) if problem.logs[i] else local[:, i]
                known[:, cell.rows] += column * amount[:, None]
    return designs, known


def polish(problem: Problem, theta: np.ndarray) -> tuple[Problem, np.ndarray, dict[str, Any]]:
    """The best minimum (P,) from the best starts, and how many of them agree on it.

    Also the problem with its barrier set, where the law has a constraint.

    Raises:
      MscaleError: nothing finite was found.
    """
    if not len(theta):
        raise MscaleError("no start gives finite predictions: check the units of the columns")
    theta = theta[:POLISHED]
    small = sample(problem)
    if small is not problem:
        _, found, agreement = _polish(small, theta)
        problem, found, last = _polish(problem, found[:FINAL])
        return problem, found[0], {**agreement, "converged": last["converged"]}
    problem, found, agreement = _polish(problem, theta)
    return problem, found[0], agreement


def sample(problem: Problem) -> Problem:
    """The problem on whole groups, about `ENOUGH` rows, spread evenly; itself if it has not many more."""
    every = len(problem.y) // ENOUGH
    return problem if every < 2 else problem.subset(problem.group % every == 0)


def _polish(problem: Problem, theta: np.ndarray) -> tuple[Problem, np.ndarray, dict[str, Any]]:
    """As `polish`, with the optima of all starts, best first."""
    if problem.law.constraint is not None:
        scale = float(np.median(problem.objective(theta))) / len(problem.y)
        wide = dataclasses.replace(problem, barrier=1e-4 * scale)
        theta = minimise(wide, theta, iterations=60, tolerance=1e-6).theta
        scale = float(np.min(problem.objective(theta))) / len(problem.y)
        problem = dataclasses.replace(problem, barrier=1e-7 * scale)
    found = minimise(problem, theta)
    order = np.argsort(found.objective, kind="stable")
    low = found.objective[order[0]]
    if not np.isfinite(low):
        raise MscaleError("the fit did not find a finite optimum: check the units of the columns")
    return (
        problem,
        found.theta[order],
        {
            "starts": len(theta),
            "agreeing": int((found.objective <= low + 1e-6 * abs(low) + 1e-15).sum()),
            "converged": bool(found.converged[order[0]]),
        },
    )
