"""Bootstrap of groups: groups are resampled with all their rows, and the fit repeated from the sample's optimum."""

import numpy as np

from analysis.estimation.optimize import Minimum, minimise
from analysis.estimation.problem import Problem


def bootstrap(problem: Problem, theta: np.ndarray, count: int, seed: int) -> np.ndarray:
    """(count, P): optima on resampled groups, from the optimum theta (P,) of the sample."""
    times = resamples(problem.groups, count, seed)[:, problem.group]
    return refit_resampled(problem, theta, times).theta


def resamples(groups: int, count: int, seed: int) -> np.ndarray:
    """(count, groups): how often each group is drawn, with replacement."""
    drawn = np.random.default_rng(seed).integers(groups, size=(count, groups))
    drawn += groups * np.arange(count)[:, None]
    return np.bincount(drawn.ravel(), minlength=count * groups).reshape(count, groups).astype(float)


def refit_resampled(problem: Problem, theta: np.ndarray, times: np.ndarray) -> Minimum:
    """The optima where each row counts times (B, n), from the optimum theta (P,) where each counts once."""
    metric = problem.derivatives(theta[None], problem.batch())[3][0]
    start, batch = np.tile(theta, (len(times), 1)), problem.batch(multiplicity=times)
    return minimise(problem, start, batch, metric=metric, damping=0.2, tolerance=1e-8)
