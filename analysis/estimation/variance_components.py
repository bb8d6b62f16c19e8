"""The noise of a least-squares fit: what groups share, how sure that is, and the critical values that follow.

The log residual of row i of group g is modelled as u_g + e_i. The ratio ρ = var(u)/var(e) is estimated by restricted
maximum likelihood, and its uncertainty carried by averaging over ρ, so that intervals (profiles.py) hold with few
groups where bootstraps do not. Everything is batched over S studies of one design; a fit is a batch of one.
"""

import dataclasses
import functools

import numpy as np
from scipy.linalg.lapack import dpotrf, dpotri

from analysis.estimation.aliasing import Reduction, remove_aliased
from analysis.estimation.optimize import LARGE_PROBLEM, minimise
from analysis.estimation.problem import Batch, Problem
from analysis.estimation.sufficiency import MIN_RESIDUAL_GROUPS

# Values of 1 + m·ρ, m the rows of the largest group. Below 1 the rows of a group differ more than those of several:
# no noise is like that, but an estimate must be free to fall there, or intervals are too wide where nothing is shared.
VARIANCE_INFLATION_GRID = np.geomspace(0.04, 1000.0, 20)
FLAT_EIGENVALUE = 1e-12  # eigenvalue of the scaled information, over the largest, of a direction that changes nothing
_MIN_RELATIVE_NOISE = 1e-7  # relative noise below which only rounding is left, for data that a law made


@dataclasses.dataclass(frozen=True)
class GroupNoise:
    """The noise of S least-squares fits, R values of ρ averaged over.

    ratio (R,), chance (S, R) of each, theta (S, R, P) the optimum given it, sigma2 (S, R) variance of a row,
    freedom: rows less parameters that can be told apart, best (S,): index of ρ̂. inner (S, R, P', P'): such that
    sigma2·inner is the covariance of what the problem is reduced to.
    """

    ratio: np.ndarray
    chance: np.ndarray
    theta: np.ndarray
    sigma2: np.ndarray
    inner: np.ndarray
    freedom: int
    best: np.ndarray
    reduced: Reduction

    @functools.cached_property
    def inverse(self) -> np.ndarray:
        """(S, R, P, P) such that sigma2·inverse is the covariance of theta, given what cannot be told from others."""
        S, R, P = self.theta.shape
        inner = self.inner.reshape(S * R, *self.inner.shape[2:])
        return self.reduced.covariance(self.theta.reshape(S * R, P), inner).reshape(S, R, P, P)

    @property
    def inwards(self) -> "Noise":
        """In the parameters that the problem is reduced to."""
        reduced = self.reduced
        if not len(reduced.drop):
            return self
        S, R, P = self.theta.shape
        theta = reduced.inwards(self.theta.reshape(S * R, P)).reshape(S, R, -1)
        return dataclasses.replace(self, theta=theta, reduced=remove_aliased(reduced.inner))

    def at_best(self, values: np.ndarray) -> np.ndarray:
        """(S, R, ...) -> (S, ...) at ρ̂."""
        return values[np.arange(len(values)), self.best]

    @property
    def deviation(self) -> np.ndarray:
        """(S, P) standard errors at ρ̂."""
        variance = np.einsum("sii->si", self.at_best(self.inverse)) * self.at_best(self.sigma2)[:, None]
        return np.sqrt(np.maximum(variance, 0.0))


def estimate_noise(problem: Problem, theta: np.ndarray, y: np.ndarray | None = None) -> GroupNoise:
    """Estimates ρ and the noise at least-squares optima theta (S, P).

    ρ = 0 where no group has two rows, and with fewer than P + 3 groups, which cannot tell what they share.
    y: (S, n) responses of planted studies (None: the problem's own).
    """
    S, P = theta.shape
    ratio, reduced = ratio_grid(problem), remove_aliased(problem)
    R, inner = len(ratio), reduced.inner
    members = problem.members(y=None if y is None else np.repeat(y, R, axis=0), ratio=np.tile(ratio, S))
    theta = np.repeat(theta, R, axis=0)
    given = _conditional_fit(inner, reduced.inwards(theta), members)
    restricted = given.restricted.reshape(S, R)
    # The reference prior, 1/σ² for the variance within and for that between groups: uniform in log(1 + m·ρ), as
    # the grid is, which makes an interval between groups Student's with the freedom of the groups.
    chance = np.exp(restricted - restricted.max(axis=1, keepdims=True))
    return GroupNoise(
        ratio,
        chance / chance.sum(axis=1, keepdims=True),
        reduced.outwards(given.theta, theta).reshape(S, R, P),
        given.sigma2.reshape(S, R),
        given.inverse.reshape(S, R, *given.inverse.shape[1:]),
        max(1, len(problem.y) - inner.size),
        np.argmax(restricted, axis=1),
        reduced,
    )


def ratio_grid(problem: Problem) -> np.ndarray:
    """(R,) the values of ρ that are averaged over."""
    # With hardly more groups than parameters, noise that groups share can pass for anything the law says about them.
    repeated = np.bincount(problem.group).max() > 1 and problem.groups >= problem.size + MIN_RESIDUAL_GROUPS
    return (VARIANCE_INFLATION_GRID - 1.0) / np.bincount(problem.group, problem.weight).max() if repeated else np.zeros(1)


@dataclasses.dataclass(frozen=True)
class _ConditionalFit:
    """Optima theta (B, P) given ρ, the variance of a row, the restricted log likelihood (B,), inverses (B, P, P)."""

    theta: np.ndarray
    sigma2: np.ndarray
    restricted: np.ndarray
    inverse: np.ndarray


def _conditional_fit(problem: Problem, theta: np.ndarray, members: Batch) -> _ConditionalFit:
    """The optima given the ρ of the members, from theta (B, P)."""
    theta = minimise(problem, theta, members, damping=1e-3).theta
    rss = 2 * problem.objective(theta, members)
    return _told(problem, theta, members, rss, *pseudo_inverse(problem.system(theta, members)[3]))


def _told(
    problem: Problem,
    theta: np.ndarray,
    members: Batch,
    rss: np.ndarray,
    inverse: np.ndarray,
    log_determinant: np.ndarray,
) -> _ConditionalFit:
    freedom = np.array([max(1, len(problem.y) - problem.size)])
    weight = np.bincount(problem.group, problem.weight)
    sigma2, restricted = restricted_likelihood(problem, members.ratio, rss, log_determinant, freedom, weight)
    return _ConditionalFit(theta, sigma2, restricted, inverse)


def restricted_likelihood(
    problem: Problem,
    ratio: np.ndarray,
    rss: np.ndarray,
    log_determinant: np.ndarray,
    freedom: np.ndarray,
    weight: np.ndarray,
) -> tuple[np.ndarray, np.ndarray]:
    """Variances of a row and restricted log likelihoods, (B,) each, of fits given ρ ratio (B,).

    Args:
      rss (B,): residual sums of squares. log_determinant (B,): of the information. freedom (1 or B,): rows less
        parameters. weight (G,) or (B, G): of the rows of each group.
    """
    typical = 1.0 if problem.law.residual == "log" else float(np.abs(problem.y).mean())
    sigma2 = np.maximum(rss / freedom, (_MIN_RELATIVE_NOISE * typical) ** 2)
    log_V = np.log1p(ratio[:, None] * weight).sum(axis=1)
    return sigma2, -0.5 * (freedom * np.log(sigma2) + log_V + log_determinant)


def pseudo_inverse(information: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Pseudo-inverses of (B, P, P) and the log determinants of what is not flat (B,)."""
    scale = np.sqrt(np.maximum(np.einsum("rii->ri", information), 1e-300))
    scaled = information / scale[:, :, None] / scale[:, None, :]
    found = inverse_by_cholesky(scaled) if scaled.shape[1] >= LARGE_PROBLEM else None
    if found is None:
        values, vectors = np.linalg.eigh(scaled)
        solid = values > FLAT_EIGENVALUE * values[:, -1:]
        weight = np.where(solid, 1 / np.where(solid, values, 1.0), 1 / FLAT_EIGENVALUE)
        inverse = (vectors * weight[:, None]) @ vectors.swapaxes(1, 2)
        found = inverse, np.where(solid, np.log(np.where(solid, values, 1.0)), 0.0).sum(1)
    inverse, log_determinant = found
    return inverse / scale[:, :, None] / scale[:, None, :], log_determinant + 2 * np.log(scale).sum(1)


def inverse_by_cholesky(matrices: np.ndarray) -> tuple[np.ndarray, np.ndarray] | None:
    """Inverses and log determinants of matrices (B, P, P) with ones on the diagonal; None if one is nearly flat."""
    inverse, log_determinant = np.empty_like(matrices), np.empty(len(matrices))
    for number, matrix in enumerate(matrices):
        factor, failed = dpotrf(matrix, lower=1)
        if failed:
            return None
        log_determinant[number] = 2 * np.log(np.diag(factor)).sum()
        half, failed = dpotri(factor, lower=1)
        # The trace bounds the least eigenvalue from below, and the largest is at most P.
        if failed or not np.trace(half) < 1 / (FLAT_EIGENVALUE * len(matrix)):
            return None
        inverse[number] = np.tril(half) + np.tril(half, -1).T
    return inverse, log_determinant
