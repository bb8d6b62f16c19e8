"""A law's estimate: the best minimum of many starts, at the most likely ratio ρ of group to row variance."""

import dataclasses
from collections.abc import Mapping
from typing import Any

import numpy as np

from analysis.estimation import multistart, variance_components
from analysis.estimation.objective import huber
from analysis.estimation.problem import Problem

Priors = Mapping[str, tuple[float, float]]  # {parameter, or parameter[level]: (mean, standard deviation)}


def with_priors(problem: Problem, priors: Priors, without: np.ndarray) -> Problem:
    """The problem with priors, whose precisions are in units of the dispersion Σ w·ψ(r)·r of the residuals.

    The dispersion (for least squares the residual variance) is that at the optimum without priors, (P,).
    """
    mean, precision = np.zeros(problem.size), np.zeros(problem.size)
    for index, name in enumerate(problem.names):
        prior = priors.get(name, priors.get(name.split("[")[0]))
        if prior is not None:
            mean[index], precision[index] = prior[0], 1.0 / prior[1] ** 2
    r = problem.residuals(without[None])[0]
    dispersion = np.sum(problem.weight * huber(r, problem.delta).psi * r) / max(1, len(r) - problem.size)
    return dataclasses.replace(problem, prior=(mean, precision * dispersion))


@dataclasses.dataclass(frozen=True)
class Estimate:
    """The optimum theta (P,) of a problem with its priors, barrier and variance ratio.

    theta_without_priors: (P,). agreement: how many starts were polished ("starts"), how many reached the optimum
    ("agreeing"), and whether it converged. noise: of least squares, None for Huber's loss.
    """

    problem: Problem
    theta: np.ndarray
    theta_without_priors: np.ndarray
    agreement: dict[str, Any] = dataclasses.field(default_factory=dict)
    noise: variance_components.GroupNoise | None = None


def estimate(problem: Problem, priors: Priors, seed: int) -> Estimate:
    """The global optimum of a problem.

    Raises:
      MscaleError: no finite optimum was found.
    """
    without = None
    if priors:
        without = multistart.optima(problem, seed, polished=multistart.FEW_STARTS).theta
        problem = with_priors(problem, priors, without[0])
    found = multistart.optima(problem, seed)
    problem, theta, noise = found.problem, found.theta[0], None
    if problem.delta is None:
        noise = _estimate_noise(problem, found.theta, seed)
        problem = dataclasses.replace(problem, ratio=float(noise.ratio[noise.best[0]]))
        theta = noise.at_best(noise.theta)[0]
    agreement = {
        "starts": found.starts,
        "agreeing": int(found.agreeing[0]),
        "converged": bool(found.converged[0]),
    }
    return Estimate(problem, theta, theta if without is None else without[0], agreement, noise)


def _estimate_noise(problem: Problem, theta: np.ndarray, seed: int) -> variance_components.GroupNoise:
    """The noise at the optimum theta (1, P), or at a better one.

    theta is the optimum at ρ = 0. At the estimated ρ another minimum may be lower, so the search is repeated there.
    """
    noise = variance_components.estimate_noise(problem, theta)
    given = dataclasses.replace(problem, ratio=float(noise.ratio[noise.best[0]]))
    if given.ratio == 0.0:
        return noise
    other = multistart.optima(given, seed, polished=multistart.FEW_STARTS).theta
    here, there = given.derivatives(
        np.concatenate([noise.at_best(noise.theta), other]), given.batch(), False
    )[0]
    return variance_components.estimate_noise(problem, other) if there < here - 1e-6 * abs(here) else noise
