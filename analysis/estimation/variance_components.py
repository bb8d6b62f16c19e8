"""Noise of a least-squares fit: variance components by restricted maximum likelihood (REML; Patterson & Thompson 1971).

The log residual of row i of group g is modelled as u_g + e_i, a random intercept. The ratio ρ = var(u)/var(e) is
estimated by REML on a grid. Its uncertainty is carried by averaging over the grid, weighted by restricted likelihood,
so that intervals (`uncertainty.profile`) hold with few groups, where bootstraps are too narrow. Everything is batched
over S studies of one design; a fit is a batch of one.
"""

import dataclasses
import functools

import numpy as np

from analysis.estimation.aliasing import Reduction, remove_aliased
from analysis.estimation.optimize import minimise
from analysis.estimation.problem import Batch, Problem
from analysis.estimation.sufficiency import MIN_RESIDUAL_GROUPS

# Values of 1 + m·ρ, m the weight of the rows of the largest group: by how much a group's shared noise inflates the
# variance of its sum. Below 1 (ρ < 0) rows of one group differ more than rows of different groups. No real noise does
# so, but the estimate must be free to fall there: otherwise intervals are too wide where nothing is shared.
VARIANCE_INFLATION_GRID = np.geomspace(0.04, 1000.0, 20)
FLAT_EIGENVALUE = 1e-12  # of the scaled information, over the largest: below it a direction counts as flat
_MIN_RELATIVE_NOISE = 1e-7  # below it only rounding is left, as in data computed from a law


@dataclasses.dataclass(frozen=True)
class GroupNoise:
    """The noise of S least-squares fits at R values of ρ.

    Attributes:
      ratio: (R,) ρ. probability: (S, R) posterior of each value.
      theta: (S, R, P) optima given ρ. sigma2: (S, R) variance of a row given ρ.
      reduced_inverse: (S, R, P', P') inverse information in the parameters that are not aliased; sigma2 times it is
        their covariance.
      degrees_of_freedom: rows less parameters that are not aliased.
      best: (S,) index of the most likely ρ.
      reduction: the problem without its aliased parameters.
    """

    ratio: np.ndarray
    probability: np.ndarray
    theta: np.ndarray
    sigma2: np.ndarray
    reduced_inverse: np.ndarray
    degrees_of_freedom: int
    best: np.ndarray
    reduction: Reduction

    @functools.cached_property
    def inverse(self) -> np.ndarray:
        """(S, R, P, P): sigma2·inverse is the covariance of theta, with aliased parameters held."""
        S, R, P = self.theta.shape
        reduced = self.reduced_inverse.reshape(S * R, *self.reduced_inverse.shape[2:])
        return self.reduction.covariance(self.theta.reshape(S * R, P), reduced).reshape(S, R, P, P)

    @property
    def in_reduced_parameters(self) -> "GroupNoise":
        """The noise with theta and covariance in the parameters of the reduced problem."""
        reduction = self.reduction
        if not len(reduction.dropped):
            return self
        S, R, P = self.theta.shape
        theta = reduction.to_reduced(self.theta.reshape(S * R, P)).reshape(S, R, -1)
        return dataclasses.replace(self, theta=theta, reduction=remove_aliased(reduction.reduced))

    def at_best(self, values: np.ndarray) -> np.ndarray:
        """(S, R, ...) -> (S, ...) at the most likely ρ."""
        return values[np.arange(len(values)), self.best]


def estimate_noise(problem: Problem, theta: np.ndarray, y: np.ndarray | None = None) -> GroupNoise:
    """Estimates ρ and the noise at least-squares optima theta (S, P).

    ρ = 0 where no group has two rows, or there are fewer than P + 3 groups, too few to estimate it.
    y: (S, n) responses of simulated studies (None: the problem's own).
    """
    S, P = theta.shape
    ratio, reduction = ratio_grid(problem), remove_aliased(problem)
    R = len(ratio)
    batch = problem.batch(y=None if y is None else np.repeat(y, R, axis=0), ratio=np.tile(ratio, S))
    theta = np.repeat(theta, R, axis=0)
    found, sigma2, inverse, log_likelihood = _fits_given_ratio(reduction, reduction.to_reduced(theta), batch)
    log_likelihood = log_likelihood.reshape(S, R)
    # The reference prior, 1/σ² for the variance within and for that between groups: uniform in log(1 + m·ρ), as the
    # grid is. It makes an interval for a mean over groups Student's, with the degrees of freedom of the groups.
    probability = np.exp(log_likelihood - log_likelihood.max(axis=1, keepdims=True))
    return GroupNoise(
        ratio=ratio,
        probability=probability / probability.sum(axis=1, keepdims=True),
        theta=reduction.to_full(found, theta).reshape(S, R, P),
        sigma2=sigma2.reshape(S, R),
        reduced_inverse=inverse.reshape(S, R, *inverse.shape[1:]),
        degrees_of_freedom=_degrees_of_freedom(reduction.reduced),
        best=np.argmax(log_likelihood, axis=1),
        reduction=reduction,
    )


def likeliest_optimum(problem: Problem, theta: np.ndarray, ratio: float) -> np.ndarray:
    """The optimum (P,) at the ρ of the largest restricted likelihood, climbed to from a `ratio` that is close.

    Of the 20 values of the grid some four are tried: refits of 44 held-out folds (20 languages) take 2.7 s of CPU so,
    and 5.4 s by `estimate_noise`.
    """
    grid, reduction = ratio_grid(problem), remove_aliased(problem)
    start, best = reduction.to_reduced(theta[None]), int(np.argmin(abs(grid - ratio)))
    tried: dict[int, tuple[float, np.ndarray]] = {}
    while untried := [at for at in (best - 1, best, best + 1) if 0 <= at < len(grid) and at not in tried]:
        batch = problem.batch(ratio=grid[untried])
        found, _, _, log_likelihood = _fits_given_ratio(
            reduction, np.repeat(start, len(untried), axis=0), batch
        )
        tried |= dict(zip(untried, zip(log_likelihood, found, strict=True), strict=True))
        best = max(tried, key=lambda at: tried[at][0])
        start = tried[best][1][None]
    return reduction.to_full(start, theta[None])[0]


def _fits_given_ratio(
    reduction: Reduction, theta: np.ndarray, batch: Batch
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Optima (B, P'), variance of a row (B,), inverse information (B, P', P') and restricted log likelihood (B,).

    All in the parameters of the reduced problem, from starts theta (B, P'), at the ρ of the batch.
    """
    problem = reduction.reduced
    found = minimise(problem, theta, batch, damping=1e-3).theta
    inverse, log_determinant = pseudo_inverse(problem.derivatives(found, batch)[3])
    degrees_of_freedom = _degrees_of_freedom(problem)
    typical = 1.0 if problem.law.residual == "log" else float(np.abs(problem.y).mean())
    sigma2 = 2 * problem.objective(found, batch) / degrees_of_freedom
    sigma2 = np.maximum(sigma2, (_MIN_RELATIVE_NOISE * typical) ** 2)
    log_V = np.log1p(batch.ratio[:, None] * np.bincount(problem.group, problem.weight)).sum(axis=1)
    return found, sigma2, inverse, -0.5 * (degrees_of_freedom * np.log(sigma2) + log_V + log_determinant)


def _degrees_of_freedom(problem: Problem) -> int:
    """Rows less parameters, of a problem without aliased ones."""
    return max(1, len(problem.y) - problem.size)


def ratio_grid(problem: Problem) -> np.ndarray:
    """(R,) the values of ρ that are averaged over; 0 alone where ρ cannot be estimated."""
    # With hardly more groups than parameters, noise that groups share cannot be separated from the law's parameters.
    if np.bincount(problem.group).max() == 1 or problem.groups < problem.size + MIN_RESIDUAL_GROUPS:
        return np.zeros(1)
    return (VARIANCE_INFLATION_GRID - 1.0) / np.bincount(problem.group, problem.weight).max()


def pseudo_inverse(information: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Inverses of information matrices (B, P, P), and log determinants (B,) in the directions that are not flat.

    In flat directions the inverse is large (1/`FLAT_EIGENVALUE`, scaled) but finite.
    """
    scale = np.sqrt(np.maximum(np.einsum("rii->ri", information), 1e-300))
    scaled = information / scale[:, :, None] / scale[:, None, :]
    values, vectors = np.linalg.eigh(scaled)
    solid = values > FLAT_EIGENVALUE * values[:, -1:]
    weight = np.where(solid, 1 / np.where(solid, values, 1.0), 1 / FLAT_EIGENVALUE)
    inverse = (vectors * weight[:, None]) @ vectors.swapaxes(1, 2)
    log_determinant = np.where(solid, np.log(np.where(solid, values, 1.0)), 0.0).sum(1)
    return inverse / scale[:, :, None] / scale[:, None, :], log_determinant + 2 * np.log(scale).sum(1)
