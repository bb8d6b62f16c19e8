"""One estimate of a law: the best of many starts, at the ratio of variances that the noise model prefers."""

import dataclasses
from collections.abc import Mapping
from typing import Any

import numpy as np

from analysis.estimation import multistart, variance_components
from analysis.estimation.objective import huber
from analysis.estimation.problem import Batch, Problem

Priors = Mapping[str, tuple[float, float]]  # {parameter, or parameter[level]: (mean, standard deviation)}


def prior_moments(names: tuple[str, ...], priors: Priors) -> tuple[np.ndarray, np.ndarray]:
    """Means (P,) and 1/deviation² (P,) of the parameters, 0 without a prior."""
    mean, precision = np.zeros(len(names)), np.zeros(len(names))
    for index, name in enumerate(names):
        prior = priors.get(name, priors.get(name.split("[")[0]))
        if prior is not None:
            mean[index], precision[index] = prior[0], 1.0 / prior[1] ** 2
    return mean, precision


def dispersion(problem: Problem, theta: np.ndarray, members: Batch, freedom: np.ndarray) -> np.ndarray:
    """(B,) of the residuals at theta (B, P), the optima without priors; freedom (B,): rows less parameters."""
    r = problem.residuals(theta, members.y)
    pull = huber(r, problem.delta)[1]
    return np.sum(problem.weights(members) * pull * r, axis=1) / np.maximum(1, freedom)


def with_priors(problem: Problem, names: tuple[str, ...], priors: Priors, alone: np.ndarray) -> Problem:
    """The problem with priors, given its optimum without them, (P,)."""
    mean, precision = prior_moments(names, priors)
    freedom = np.array([len(problem.y) - problem.size])
    size = dispersion(problem, alone[None], problem.members(), freedom)
    return dataclasses.replace(problem, prior=(mean, precision * size))


@dataclasses.dataclass(frozen=True)
class Estimate:
    """The optimum theta (P,) of a problem that has its priors, barrier and noise ratio; alone (P,): without priors."""

    names: tuple[str, ...]
    problem: Problem
    theta: np.ndarray
    alone: np.ndarray
    agreement: dict[str, Any] = dataclasses.field(default_factory=dict)
    noise: variance_components.GroupNoise | None = None


def estimate(problem: Problem, names: tuple[str, ...], priors: Priors, seed: int) -> Estimate:
    """Searches the global optimum of a problem with parameters `names`."""
    alone = None
    if priors:
        alone = multistart.optima(problem, seed, polished=multistart.FINAL_STARTS).theta
        problem = with_priors(problem, names, priors, alone[0])
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
    return Estimate(names, problem, theta, theta if alone is None else alone[0], agreement, noise)


def _estimate_noise(problem: Problem, theta: np.ndarray, seed: int) -> variance_components.GroupNoise:
    """The noise at the optimum theta (1, P), or at a better one: groups that share much may favour another."""
    noise = variance_components.estimate_noise(problem, theta)
    given = dataclasses.replace(problem, ratio=float(noise.ratio[noise.best[0]]))
    if given.ratio == 0.0:
        return noise
    other = multistart.optima(given, seed, polished=multistart.FINAL_STARTS).theta
    here, there = given.system(np.concatenate([noise.at_best(noise.theta), other]), given.members(), False)[0]
    return variance_components.estimate_noise(problem, other) if there < here - 1e-6 * abs(here) else noise
