"""Bootstraps: groups are resampled and the fit repeated, from the optimum of the whole sample."""

import numpy as np

from analysis.estimation.optimize import Minimum, minimise
from analysis.estimation.problem import Problem


def bootstrap(problem: Problem, theta: np.ndarray, count: int, seed: int) -> np.ndarray:
    """(count, P): the fit repeated on resampled groups, all rows of a group together."""
    return refit_resampled(problem, theta, resamples(problem.groups, count, seed)[:, problem.group]).theta


def resamples(groups: int, count: int, seed: int) -> np.ndarray:
    """(count, groups): how often each group is drawn, with replacement."""
    drawn = np.random.default_rng(seed).integers(groups, size=(count, groups))
    drawn += groups * np.arange(count)[:, None]
    return np.bincount(drawn.ravel(), minlength=count * groups).reshape(count, groups).astype(float)


def refit_resampled(problem: Problem, theta: np.ndarray, times: np.ndarray) -> Minimum:
    """The optima of problems whose rows count times (B, n) as often, from the optimum theta (P,) of this one."""
    metric = problem.system(theta[None], problem.members())[3][0]
    start, members = np.tile(theta, (len(times), 1)), problem.members(times=times)
    return minimise(problem, start, members, metric=metric, damping=0.2, tolerance=1e-8)
