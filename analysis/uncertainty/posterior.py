"""Draws of the parameters that a fit leaves possible, for averaging decisions over them.

They are of the normal distribution about the optimum in the scale where the law is nearly linear: what it is linear
in (E and the contributions A and B stand for) as plain numbers, the rest as fitted. It is cut off at the parameters'
bounds, exactly, by the Hamiltonian sampler of Pakman and Paninski (2014): where the runs tell only the sum of E and a
contribution, as for a language run at one size, a draw divides the sum but does not leave it.
"""

import dataclasses

import numpy as np

from analysis.estimation.optimize import active_bounds
from analysis.uncertainty.fitted import FittedLaw
from analysis.uncertainty.profile import MAX_FLAT_SHARE
from analysis.uncertainty.truncated_normal import sample_truncated_normal

_MAX_ROUNDS = 20  # of draws, until enough keep the law's constraint
FLAT_INFORMATION = 1e-10  # of the largest scaled information: a direction that has less is open up to the bounds
_FLAT_WIDTH = 3.0  # times the way between the bounds: a normal so wide is flat there


@dataclasses.dataclass(frozen=True)
class LocalPosterior:
    """What a fit leaves possible: N(centre, root·rootᵀ), per variance of a row, within low and high.

    In the scale φ: θ, but for what the law is linear in, which is exp(θ) (`plain`). at: the optimum; per: dφ/dθ there;
    flat (k, P): directions, unit vectors in φ·scale, that the data say nothing of. The others (P,), root (P, P).
    """

    centre: np.ndarray
    root: np.ndarray
    low: np.ndarray
    high: np.ndarray
    at: np.ndarray
    per: np.ndarray
    plain: np.ndarray
    scale: np.ndarray
    flat: np.ndarray

    @property
    def moved(self) -> np.ndarray:
        """(P,) bool: the parameters that flat directions move."""
        return (np.abs(self.flat) > 1e-3).any(axis=0)

    def tells(self, slope: np.ndarray) -> bool:
        """Whether the data tell of a number with this derivative in θ (P,): it hardly changes in flat directions."""
        along = slope / self.per / self.scale
        return bool(np.linalg.norm(self.flat @ along) <= MAX_FLAT_SHARE * np.linalg.norm(along))

    def told(self, slope: np.ndarray) -> np.ndarray:
        """The derivative in θ (P,) without its part along flat directions."""
        along = slope / self.per / self.scale
        return (along - self.flat.T @ (self.flat @ along)) * self.per * self.scale

    def draw(self, spread: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        """(B, P) draws of φ, of standard deviations spread (B,) of a row."""
        inside = 1e-9 * (self.high - self.low)
        start = np.clip(self.at, self.low + inside, self.high - inside)
        return sample_truncated_normal(self.centre, self.root, spread, self.low, self.high, start, rng)


def local_posterior(fit: FittedLaw) -> LocalPosterior:
    """The normal about a least-squares optimum, at the fit's ρ̂, with its bounds."""
    return fit.once("room", lambda: _local_posterior(fit))


def _local_posterior(fit: FittedLaw) -> LocalPosterior:
    problem, noise = fit.problem, fit.noise
    members = problem.members(ratio=noise.ratio[noise.best])
    _, slope, _, information = problem.system(fit.theta[None], members)
    plain = np.array([q.linear and q.log for q in problem.held["parameters"]])

    def natural(theta: np.ndarray) -> np.ndarray:
        return np.where(plain, np.exp(np.where(plain, theta, 0.0)), theta)

    at, low, high = natural(fit.theta), natural(problem.lower), natural(problem.upper)
    per = np.where(plain, at, 1.0)
    scale = np.sqrt(np.maximum(np.diag(information[0]), 1e-300)) / per
    values, vectors = np.linalg.eigh(information[0] / np.outer(scale * per, scale * per))
    loose = values <= FLAT_INFORMATION * values[-1]
    root = vectors / np.sqrt(np.where(loose, 1.0, values)) / scale[:, None]
    if loose.any():
        root[:, loose] *= (
            _FLAT_WIDTH * _chord_lengths(at, root[:, loose], low, high) / np.sqrt(noise.at_best(noise.sigma2)[0])
        )
    # At a bound the loss would fall further: the distribution's own centre lies beyond it.
    still = active_bounds(fit.theta[None], slope, problem)[0]
    centre = at - root @ (root.T @ np.where(still, slope[0] / per, 0.0))
    return LocalPosterior(centre, root, low, high, at, per, plain, scale, vectors[:, loose].T)


def _chord_lengths(at: np.ndarray, directions: np.ndarray, low: np.ndarray, high: np.ndarray) -> np.ndarray:
    """(k,) how far one can go from at (P,), forth and back, along directions (P, k) between low and high (P,)."""
    moves = np.where(np.abs(directions) > 1e-6 * np.abs(directions).max(axis=0), directions, np.nan)
    ends = (np.stack([low, high])[:, :, None] - at[:, None]) / moves
    return np.nanmin(ends.max(axis=0), axis=0) - np.nanmax(ends.min(axis=0), axis=0)


def draws(fit: FittedLaw, count: int, seed: int = 0) -> np.ndarray:
    """(count, P): draws of θ in the fitted scale, within the bounds and within the law's constraint where it has one.

    Each has a noise of its own, of Student's degrees of freedom.

    Raises:
      MscaleError: the fit is not one of least squares.
    """
    left, noise, problem = local_posterior(fit), fit.noise, fit.problem
    sigma = float(np.sqrt(noise.at_best(noise.sigma2)[0]))
    rng = np.random.default_rng([17, seed])
    kept = np.zeros((0, len(fit.theta)))
    for _ in range(_MAX_ROUNDS):
        found = left.draw(sigma / np.sqrt(rng.chisquare(noise.freedom, count) / noise.freedom), rng)
        theta = np.where(left.plain, np.log(np.where(left.plain, found, 1.0)), found)
        theta = np.clip(theta, problem.lower, problem.upper)
        if fit.law.constraint is not None:
            theta = theta[(problem.constraint(theta) > 0).all(axis=1)]
        kept = np.concatenate([kept, theta])[:count]
        if len(kept) == count:
            break
    # The optimum itself stands for draws that the constraint leaves no room for.
    return np.concatenate([kept, np.tile(fit.theta, (count - len(kept), 1))])
