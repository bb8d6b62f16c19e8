"""Draws of the parameters within what a fit leaves uncertain, for averaging decisions over them.

They are from a normal approximation about the optimum, in coordinates in which the law is nearly linear: exp(θ) of the
parameters that predictions are linear in (the contributions of A and B), θ itself of the others. It is truncated to
the parameters' bounds exactly, by the Hamiltonian sampler of Pakman & Paninski (2014). Where the data determine only a
sum, such as E plus a contribution for a language run at one size, draws divide the sum in all ways but keep it.
"""

import dataclasses

import numpy as np

from analysis.estimation.optimize import active_bounds
from analysis.uncertainty.fitted import FittedLaw
from analysis.uncertainty.profile import MAX_FLAT_SHARE
from analysis.uncertainty.truncated_normal import sample_truncated_normal

FLAT_INFORMATION = 1e-10  # of the scaled information, over the largest: below it a direction counts as flat
_MAX_ROUNDS = 20  # of draws, until enough satisfy the law's constraint
_FLAT_WIDTH = (
    3.0  # standard deviation along flat directions, over the distance between the bounds: nearly uniform
)


@dataclasses.dataclass(frozen=True)
class LocalPosterior:
    """N(centre, sigma²·root·rootᵀ) truncated to low and high, about a least-squares optimum; sigma² is of a row.

    The coordinates φ (P,) are exp(θ) of the exponential parameters, else θ.

    Attributes:
      centre, low, high: (P,). root: (P, P).
      at: (P,) the optimum. jacobian: (P,) dφ/dθ there.
      scale: (P,) of the information about φ. flat: (k, P) directions, unit vectors in φ·scale, that the data do not
        determine.
    """

    centre: np.ndarray
    root: np.ndarray
    low: np.ndarray
    high: np.ndarray
    at: np.ndarray
    jacobian: np.ndarray
    scale: np.ndarray
    flat: np.ndarray

    @property
    def in_flat_directions(self) -> np.ndarray:
        """(P,) bool: the parameters that change along flat directions."""
        return (np.abs(self.flat) > 1e-3).any(axis=0)

    def identifies(self, slope: np.ndarray) -> bool:
        """Whether the data determine a number with gradient slope (P,) in θ: it hardly changes in flat directions."""
        along = slope / self.jacobian / self.scale
        return bool(np.linalg.norm(self.flat @ along) <= MAX_FLAT_SHARE * np.linalg.norm(along))

    def identified_part(self, slope: np.ndarray) -> np.ndarray:
        """A gradient in θ (P,) without its part along flat directions."""
        along = slope / self.jacobian / self.scale
        return (along - self.flat.T @ (self.flat @ along)) * self.jacobian * self.scale

    def draw(self, sigma: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        """(B, P) draws of φ, given standard deviations of a row sigma (B,)."""
        margin = 1e-9 * (self.high - self.low)
        start = np.clip(self.at, self.low + margin, self.high - margin)
        return sample_truncated_normal(self.centre, self.root, sigma, self.low, self.high, start, rng)


def local_posterior(fit: FittedLaw) -> LocalPosterior:
    """The truncated normal about the optimum of a least-squares fit, at its most likely ρ."""
    return fit.once("local posterior", lambda: _local_posterior(fit))


def _local_posterior(fit: FittedLaw) -> LocalPosterior:
    problem, noise = fit.problem, fit.noise
    batch = problem.batch(ratio=noise.ratio[noise.best])
    _, slope, _, information = problem.derivatives(fit.theta[None], batch)
    exponential = problem.exponential

    def coordinates(theta: np.ndarray) -> np.ndarray:
        return np.where(exponential, np.exp(np.where(exponential, theta, 0.0)), theta)

    at, low, high = coordinates(fit.theta), coordinates(problem.lower), coordinates(problem.upper)
    jacobian = np.where(exponential, at, 1.0)
    scale = np.sqrt(np.maximum(np.diag(information[0]), 1e-300)) / jacobian
    values, vectors = np.linalg.eigh(information[0] / np.outer(scale * jacobian, scale * jacobian))
    flat = values <= FLAT_INFORMATION * values[-1]
    root = vectors / np.sqrt(np.where(flat, 1.0, values)) / scale[:, None]
    if flat.any():
        lengths = _chord_lengths(at, root[:, flat], low, high)
        root[:, flat] *= _FLAT_WIDTH * lengths / np.sqrt(noise.at_best(noise.sigma2)[0])
    # Where a bound is active, the untruncated normal is centred beyond it.
    fixed = active_bounds(fit.theta[None], slope, problem)[0]
    centre = at - root @ (root.T @ np.where(fixed, slope[0] / jacobian, 0.0))
    return LocalPosterior(centre, root, low, high, at, jacobian, scale, vectors[:, flat].T)


def _chord_lengths(at: np.ndarray, directions: np.ndarray, low: np.ndarray, high: np.ndarray) -> np.ndarray:
    """(k,) lengths, in units of the directions (P, k), of the chords through at (P,) within low and high (P,)."""
    moves = np.where(np.abs(directions) > 1e-6 * np.abs(directions).max(axis=0), directions, np.nan)
    ends = (np.stack([low, high])[:, :, None] - at[:, None]) / moves
    return np.nanmin(ends.max(axis=0), axis=0) - np.nanmax(ends.min(axis=0), axis=0)


def draws(fit: FittedLaw, count: int, seed: int = 0) -> np.ndarray:
    """(count, P): draws of θ in the fitted scale, within the bounds and the law's constraint.

    The variance of a row is drawn too, from its scaled inverse χ² distribution. Draws that violate the constraint are
    rejected; if too few are left after some rounds, the optimum stands for the rest.
    """
    posterior, noise, problem = local_posterior(fit), fit.noise, fit.problem
    sigma = float(np.sqrt(noise.at_best(noise.sigma2)[0]))
    rng = np.random.default_rng([17, seed])
    accepted = np.zeros((0, len(fit.theta)))
    for _ in range(_MAX_ROUNDS):
        chi2 = rng.chisquare(noise.degrees_of_freedom, count)
        found = posterior.draw(sigma / np.sqrt(chi2 / noise.degrees_of_freedom), rng)
        exponential = problem.exponential
        theta = np.where(exponential, np.log(np.where(exponential, found, 1.0)), found)
        theta = np.clip(theta, problem.lower, problem.upper)
        if fit.law.constraint is not None:
            theta = theta[(problem.constraint(theta) > 0).all(axis=1)]
        accepted = np.concatenate([accepted, theta])[:count]
        if len(accepted) == count:
            break
    return np.concatenate([accepted, np.tile(fit.theta, (count - len(accepted), 1))])
