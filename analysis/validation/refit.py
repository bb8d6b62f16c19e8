"""A law refitted to a subset of its rows, from the optimum of the fit to all rows.

Held-out folds are predicted from these refits: one search from an optimum that is close, in place of many starts.
Everything is estimated from the rows of the subset alone, the variance ratio ρ included, so R² is that of a fit of the
subset from many starts, to 3e-6. ρ could be held at its estimate from all rows, but then the held-out rows would have a
part in the weights: in five simulated studies of six languages R² was up to 0.056 higher so, and up to 0.019 lower.
"""

import dataclasses

import numpy as np

from analysis.estimation.aliasing import remove_aliased
from analysis.estimation.estimate import Estimate, Priors, with_priors
from analysis.estimation.optimize import minimise
from analysis.estimation.specify import active_parameters, inactive_values
from analysis.estimation.sufficiency import require_enough_data
from analysis.estimation.variance_components import likeliest_optimum


def refit(whole: Estimate, priors: Priors, rows: np.ndarray, few_groups: bool) -> np.ndarray | None:
    """The optimum theta (P,) of the `whole` fit's problem on the subset rows (n,) bool.

    Parameters on which no row of the subset depends have the value that they would have in a fit to the subset.

    Returns: theta, or None where more parameters are aliased in the subset than in all rows, so that its model is
    another one.

    Raises:
      MscaleError: the subset has too few rows or groups.
    """
    part = whole.problem.subset(rows)
    active = active_parameters(part)
    theta = inactive_values(part)
    problem = part.hold(active, theta)
    require_enough_data(problem, few_groups)
    if not np.isin(remove_aliased(part).dropped, remove_aliased(whole.problem).dropped).all():
        return None
    if priors:
        problem = dataclasses.replace(problem, prior=None, ratio=0.0)
        without = minimise(problem, whole.theta_without_priors[None, active], problem.batch()).theta
        problem = with_priors(problem, priors, without[0])
    start = whole.theta[None, active]
    if problem.delta is None:
        theta[active] = likeliest_optimum(problem, start[0], whole.problem.ratio)
    else:
        theta[active] = minimise(problem, start, problem.batch()).theta[0]
    return theta
