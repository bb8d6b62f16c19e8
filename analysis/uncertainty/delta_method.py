"""What a decision hangs on: how a number that follows from a fit moves with its parameters.

The interval of such a number is its derivative times the fit's covariance, at the fit's own critical values (which
count that the noise groups share is itself estimated).
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
# Standard errors to either side at which a derivative is taken: decisions are nearly linear within so few.
_STEP = 0.1
_FLAT_STEP = 0.02  # step in what the data leave open, whose deviation says nothing of how curved a function is
_COVARIANCE_DRAWS = 300  # draws that stand for a covariance where some directions end at bounds only


def covariance(fit: FittedLaw) -> np.ndarray:
    """(P, P) of θ, to first order. Directions that the data leave open reach as far as the parameters' bounds.

    Raises:
      MscaleError: the fit is not one of least squares.
    """
    if fit.method != "profile":
        raise MscaleError("decisions need a least-squares fit: fit with loss='squares'")
    return fit.once("covariance", lambda: _covariance(fit))


def _covariance(fit: FittedLaw) -> np.ndarray:
    noise, left = fit.noise, local_posterior(fit)
    sigma2 = noise.at_best(noise.sigma2)[0]
    if len(left.flat):
        away = left.draw(np.full(_COVARIANCE_DRAWS, np.sqrt(sigma2)), np.random.default_rng(0)) - left.at
        return away.T @ away / _COVARIANCE_DRAWS / np.outer(left.per, left.per)
    found = noise.at_best(noise.inverse)[0] * sigma2
    widest = (fit.problem.upper - fit.problem.lower) / 2
    deviation = np.sqrt(np.maximum(np.diag(found), 1e-300))
    shrink = np.minimum(1.0, widest / deviation)
    return found * shrink[:, None] * shrink[None, :]


def gradient(fit: FittedLaw, functions: ScalarFunction) -> np.ndarray:
    """(P,) derivative of functions(θ (B, P)) -> (B,) at the optimum, by central differences."""
    step = _STEP * np.sqrt(np.maximum(np.diag(covariance(fit)), 1e-300))
    step = np.clip(step, 1e-7, np.where(local_posterior(fit).moved, _FLAT_STEP, np.inf))
    up = np.minimum(fit.theta + step, fit.problem.upper)
    down = np.maximum(fit.theta - step, fit.problem.lower)
    P = len(fit.theta)
    theta = np.tile(fit.theta, (2 * P, 1))
    theta[np.arange(P), np.arange(P)] = up
    theta[np.arange(P, 2 * P), np.arange(P)] = down
    values = functions(theta)
    found = (values[:P] - values[P:]) / np.maximum(up - down, 1e-300)
    return np.where(np.isfinite(found), found, 0.0)


def delta_interval(fit: FittedLaw, function: ScalarFunction, level: float) -> tuple[float, float, float]:
    """The number at the optimum, and its low and high; infinite where the data say nothing of it."""
    value = float(function(fit.theta[None])[0])
    slope, left = gradient(fit, function), local_posterior(fit)
    if not left.tells(slope):
        return value, -np.inf, np.inf
    noise = fit.noise
    if len(left.flat):
        slope, noise = left.told(slope), fit.once("noise without flat directions", lambda: _noise_without_flat_directions(fit))
    error = float(np.sqrt(max(slope @ covariance(fit) @ slope, 0.0)))
    low, high = critical_values(noise, np.zeros(1, int), slope[None], level)
    return value, value + float(low[0]) * error, value + float(high[0]) * error


def _noise_without_flat_directions(fit: FittedLaw) -> GroupNoise:
    """The noise of a fit with flat directions, without them: along those, optima at other ρ lie anywhere."""
    noise, left = fit.noise, local_posterior(fit)
    R, P = len(noise.ratio), len(fit.theta)
    members = fit.problem.members(ratio=noise.ratio)
    information = fit.problem.system(np.tile(fit.theta, (R, 1)), members)[3]
    unit = left.per * left.scale
    solid = np.eye(P) - left.flat.T @ left.flat
    values, vectors = np.linalg.eigh(solid @ (information / np.outer(unit, unit)) @ solid)
    known = values > FLAT_INFORMATION * values[:, -1:]
    weight = np.where(known, 1.0 / np.where(known, values, 1.0), 0.0)
    inverse = (vectors * weight[:, None]) @ vectors.swapaxes(1, 2) / np.outer(unit, unit)
    theta = np.broadcast_to(fit.theta, noise.theta.shape)
    return dataclasses.replace(noise, theta=theta, inner=inverse[None], reduced=identity_reduction(fit.problem))
