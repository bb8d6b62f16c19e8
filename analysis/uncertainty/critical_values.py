"""Critical values of the signed root of the likelihood ratio, where the noise is estimated: Student quantiles.

Given ρ, a quantity's posterior is Student's t. Averaged over ρ it is a mixture of them, whose quantiles are found by
bisection.
"""

import functools

import numpy as np

from analysis.estimation.variance_components import GroupNoise

_BISECTIONS = 40


def critical_values(
    noise: GroupNoise, study: np.ndarray, slope: np.ndarray, level: float
) -> tuple[np.ndarray, np.ndarray]:
    """Lower and upper critical values (T,) of T quantities, in standard errors at the most likely ρ.

    study: (T,) which of the S studies each quantity is of. slope: (T, P) its gradient. level: such as 0.9.
    """
    rows = np.arange(len(study))
    centre = np.einsum("trp,tp->tr", noise.theta[study], slope, optimize=True)
    variance = np.empty(centre.shape)
    for one in np.unique(study):
        own = study == one
        variance[own] = np.einsum("rti,ti->tr", slope[own] @ noise.inverse[one], slope[own])
    spread = np.sqrt(np.maximum(variance * noise.sigma2[study], 1e-300))
    best = noise.best[study]
    shift = (centre - centre[rows, best, None]) / spread[rows, best, None]
    width = spread / spread[rows, best, None]
    probability = noise.probability[study]
    grid, table = _student_table(noise.degrees_of_freedom)

    def quantile(mass: float) -> np.ndarray:
        low, high = np.full(len(study), grid[0]), np.full(len(study), grid[-1])
        for _ in range(_BISECTIONS):
            middle = 0.5 * (low + high)
            cdf = np.interp((middle[:, None] - shift) / width, grid, table)
            below = np.einsum("tr,tr->t", probability, cdf) < mass
            low, high = np.where(below, middle, low), np.where(below, high, middle)
        return 0.5 * (low + high)

    return quantile((1 - level) / 2), quantile((1 + level) / 2)


@functools.lru_cache(maxsize=64)
def _student_table(degrees_of_freedom: int) -> tuple[np.ndarray, np.ndarray]:
    """Student's distribution function on a grid, which is fine where intervals end."""
    from scipy.special import stdtr  # here, since its import takes 0.1 s of CPU

    half = np.concatenate([np.linspace(0.0, 8.0, 801), np.geomspace(8.1, 1e4, 200)])
    grid = np.concatenate([-half[:0:-1], half])
    return grid, stdtr(degrees_of_freedom, grid)
