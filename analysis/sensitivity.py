"""What a decision hangs on: how a number that follows from a fit moves with its parameters.

The interval of such a number is its derivative times the fit's covariance, at the fit's own critical values (which
count that the noise groups share is itself estimated). Draws are for averaging decisions over what a fit leaves open.
"""

from collections.abc import Callable

import numpy as np

from analysis.results import Fit
from analysis.uncertainty import critical
from mscale.errors import MscaleError

Function = Callable[[np.ndarray], np.ndarray]  # θ (B, P) in the fitted scale -> (B,)
# Standard errors to either side at which a derivative is taken: decisions are nearly linear within so few.
STEP = 0.1


def covariance(fit: Fit) -> np.ndarray:
    """(P, P) of θ. Directions that the data leave open count as the width of their bounds.

    Raises:
      MscaleError: the fit is not one of least squares.
    """
    if fit.method != "profile":
        raise MscaleError("decisions need a least-squares fit: fit with loss='squares'")
    noise = fit.noise
    found = noise.at_best(noise.inverse)[0] * noise.at_best(noise.sigma2)[0]
    widest = (fit.problem.upper - fit.problem.lower) / 2
    deviation = np.sqrt(np.maximum(np.diag(found), 1e-300))
    shrink = np.minimum(1.0, widest / deviation)
    return found * shrink[:, None] * shrink[None, :]


def draws(fit: Fit, count: int, seed: int = 0) -> np.ndarray:
    """(count, P): Student draws about θ, within bounds and within the law's constraint where it has one."""
    spread = covariance(fit)
    values, vectors = np.linalg.eigh((spread + spread.T) / 2)
    rng = np.random.default_rng([17, seed])
    root = vectors * np.sqrt(np.maximum(values, 0.0))
    kept: list[np.ndarray] = []
    freedom = fit.noise.freedom
    for _ in range(20):
        away = rng.standard_normal((count, len(fit.theta))) @ root.T
        away /= np.sqrt(rng.chisquare(freedom, (count, 1)) / freedom)
        theta = np.clip(fit.theta + away, fit.problem.lower, fit.problem.upper)
        if fit.law.constraint is not None:
            theta = theta[(fit.problem.constraint(theta) > 0).all(axis=1)]
        kept.append(theta)
        if sum(map(len, kept)) >= count:
            break
    found = np.concatenate(kept)[:count]
    if len(found) < count:  # the optimum itself stands for draws that the constraint leaves no room for
        found = np.concatenate([found, np.tile(fit.theta, (count - len(found), 1))])
    return found


def gradient(fit: Fit, functions: Function) -> np.ndarray:
    """(P,) derivative of functions(θ (B, P)) -> (B,) at the optimum, by central differences."""
    step = STEP * np.sqrt(np.maximum(np.diag(covariance(fit)), 1e-300))
    step = np.clip(step, 1e-7, None)
    up = np.minimum(fit.theta + step, fit.problem.upper)
    down = np.maximum(fit.theta - step, fit.problem.lower)
    P = len(fit.theta)
    theta = np.tile(fit.theta, (2 * P, 1))
    theta[np.arange(P), np.arange(P)] = up
    theta[np.arange(P, 2 * P), np.arange(P)] = down
    values = functions(theta)
    found = (values[:P] - values[P:]) / np.maximum(up - down, 1e-300)
    return np.where(np.isfinite(found), found, 0.0)


def interval(fit: Fit, function: Function, level: float) -> tuple[float, float, float]:
    """The number at the optimum, and its low and high."""
    value = float(function(fit.theta[None])[0])
    slope = gradient(fit, function)
    error = float(np.sqrt(max(slope @ covariance(fit) @ slope, 0.0)))
    low, high = critical(fit.noise, np.zeros(1, int), slope[None], level)
    return value, value + float(low[0]) * error, value + float(high[0]) * error
