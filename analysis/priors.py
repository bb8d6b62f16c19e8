"""Gaussian priors of a fit: they weigh against residuals in units of the residuals' own dispersion."""

import dataclasses
from collections.abc import Mapping

import numpy as np

from analysis.losses import huber
from analysis.problem import Members, Problem

Priors = Mapping[str, tuple[float, float]]  # {parameter, or parameter[level]: (mean, standard deviation)}


def drawn(names: tuple[str, ...], priors: Priors) -> tuple[np.ndarray, np.ndarray]:
    """Means (P,) and 1/deviation² (P,) of the parameters, 0 without a prior."""
    mean, precision = np.zeros(len(names)), np.zeros(len(names))
    for index, name in enumerate(names):
        prior = priors.get(name, priors.get(name.split("[")[0]))
        if prior is not None:
            mean[index], precision[index] = prior[0], 1.0 / prior[1] ** 2
    return mean, precision


def dispersion(problem: Problem, theta: np.ndarray, members: Members, freedom: np.ndarray) -> np.ndarray:
    """(B,) of the residuals at theta (B, P), the optima without priors; freedom (B,): rows less parameters."""
    r = problem.residuals(theta, members.y)
    pull = huber(r, problem.delta)[1]
    return np.sum(problem.weights(members) * pull * r, axis=1) / np.maximum(1, freedom)


def with_priors(problem: Problem, names: tuple[str, ...], priors: Priors, alone: np.ndarray) -> Problem:
    """The problem with priors, given its optimum without them, (P,)."""
    mean, precision = drawn(names, priors)
    freedom = np.array([len(problem.y) - problem.size])
    size = dispersion(problem, alone[None], problem.members(), freedom)
    return dataclasses.replace(problem, prior=(mean, precision * size))
