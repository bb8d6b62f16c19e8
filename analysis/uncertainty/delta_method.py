"""The delta method: intervals of numbers that follow from a fit, from their gradients and the fit's covariance.

Critical values are the fit's own, which count that the noise that groups share is estimated too.
"""

import dataclasses
from collections.abc import Callable

import numpy as np

from analysis.estimation.aliasing import identity_reduction
from analysis.estimation.variance_components import GroupNoise
from analysis.uncertainty.critical_values import critical_values
from analysis.uncertainty.fitted import FittedLaw
from analysis.uncertainty.posterior import FLAT_INFORMATION, local_posterior
from mscale.errors import MscaleError

ScalarFunction = Callable[[np.ndarray], np.ndarray]  # θ (B, P) in the fitted scale -> (B,)
_STEP = 0.1  # standard errors to either side for a numerical derivative; decisions are nearly linear within so few
_FLAT_STEP = (
    0.02  # largest step in parameters along flat directions, where standard errors are as wide as the bounds
)
_COVARIANCE_DRAWS = 300  # from which a covariance is estimated where there are flat directions


def covariance(fit: FittedLaw) -> np.ndarray:
    """(P, P) of θ, to first order. Along directions that the data do not determine it is limited by the bounds.

    Raises:
      MscaleError: the fit is not one of least squares.
    """
    if fit.method != "profile":
        raise MscaleError("decisions need a least-squares fit: fit with loss='squares'")
    return fit.once("covariance", lambda: _covariance(fit))


def _covariance(fit: FittedLaw) -> np.ndarray:
    noise, posterior = fit.noise, local_posterior(fit)
    sigma2 = noise.at_best(noise.sigma2)[0]
    if len(posterior.flat):
        sigma = np.full(_COVARIANCE_DRAWS, np.sqrt(sigma2))
        away = posterior.draw(sigma, np.random.default_rng(0)) - posterior.at
        return away.T @ away / _COVARIANCE_DRAWS / np.outer(posterior.jacobian, posterior.jacobian)
    found = noise.at_best(noise.inverse)[0] * sigma2
    widest = (fit.problem.upper - fit.problem.lower) / 2
    deviation = np.sqrt(np.maximum(np.diag(found), 1e-300))
    shrink = np.minimum(1.0, widest / deviation)
    return found * shrink[:, None] * shrink[None, :]


def gradient(fit: FittedLaw, function: ScalarFunction) -> np.ndarray:
    """(P,) gradient of function(θ) at the optimum, by central differences; 0 where it is not finite."""
    step = _STEP * np.sqrt(np.maximum(np.diag(covariance(fit)), 1e-300))
    step = np.clip(step, 1e-7, np.where(local_posterior(fit).in_flat_directions, _FLAT_STEP, np.inf))
    up = np.minimum(fit.theta + step, fit.problem.upper)
    down = np.maximum(fit.theta - step, fit.problem.lower)
    P = len(fit.theta)
    theta = np.tile(fit.theta, (2 * P, 1))
    theta[np.arange(P), np.arange(P)] = up
    theta[np.arange(P, 2 * P), np.arange(P)] = down
    values = function(theta)
    found = (values[:P] - values[P:]) / np.maximum(up - down, 1e-300)
    return np.where(np.isfinite(found), found, 0.0)


def delta_interval(fit: FittedLaw, function: ScalarFunction, level: float) -> tuple[float, float, float]:
    """function(θ) at the optimum, and its lower and upper limit; infinite where the data do not determine it.

    level: such as 0.9.

    Raises:
      MscaleError: the fit is not one of least squares.
    """
    value = float(function(fit.theta[None])[0])
    slope, posterior = gradient(fit, function), local_posterior(fit)
    if not posterior.identifies(slope):
        return value, -np.inf, np.inf
    noise = fit.noise
    if len(posterior.flat):
        slope = posterior.identified_part(slope)
        noise = fit.once("noise without flat directions", lambda: _noise_without_flat_directions(fit))
    error = float(np.sqrt(max(slope @ covariance(fit) @ slope, 0.0)))
    low, high = critical_values(noise, np.zeros(1, int), slope[None], level)
    return value, value + float(low[0]) * error, value + float(high[0]) * error


def _noise_without_flat_directions(fit: FittedLaw) -> GroupNoise:
    """The fit's noise with flat directions projected out: along them the optima at different ρ differ arbitrarily."""
    noise, posterior = fit.noise, local_posterior(fit)
    R, P = len(noise.ratio), len(fit.theta)
    batch = fit.problem.batch(ratio=noise.ratio)
    information = fit.problem.derivatives(np.tile(fit.theta, (R, 1)), batch)[3]
    unit = posterior.jacobian * posterior.scale
    projector = np.eye(P) - posterior.flat.T @ posterior.flat
    values, vectors = np.linalg.eigh(projector @ (information / np.outer(unit, unit)) @ projector)
    known = values > FLAT_INFORMATION * values[:, -1:]
    weight = np.where(known, 1.0 / np.where(known, values, 1.0), 0.0)
    inverse = (vectors * weight[:, None]) @ vectors.swapaxes(1, 2) / np.outer(unit, unit)
    theta = np.broadcast_to(fit.theta, noise.theta.shape)
    return dataclasses.replace(
        noise, theta=theta, reduced_inverse=inverse[None], reduction=identity_reduction(fit.problem)
    )
