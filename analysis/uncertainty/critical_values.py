"""Critical values of likelihood ratios when the noise is estimated: F and t quantiles with their degrees of freedom."""

import functools

import numpy as np
from scipy.stats import t as student

from analysis.estimation.variance_components import GroupNoise

_BISECTIONS = 40


def critical_values(
    noise: GroupNoise, study: np.ndarray, slope: np.ndarray, level: float
) -> tuple[np.ndarray, np.ndarray]:
    """Lower and upper critical values (T,), in standard errors at ρ̂, of quantities with gradients slope (T, P).

    study: (T,) which of the S studies each is of.
    """
    rows = np.arange(len(study))
    centre = np.einsum("trp,tp->tr", noise.theta[study], slope, optimize=True)
    variance = np.empty(centre.shape)
    for one in np.unique(study):
        mine = study == one
        variance[mine] = np.einsum("rti,ti->tr", slope[mine] @ noise.inverse[one], slope[mine])
    spread = np.sqrt(np.maximum(variance * noise.sigma2[study], 1e-300))
    best = noise.best[study]
    shift = (centre - centre[rows, best, None]) / spread[rows, best, None]
    width = spread / spread[rows, best, None]
    chance = noise.chance[study]
    grid, table = _student_table(noise.freedom)

    def quantile(probability: float) -> np.ndarray:
        low, high = np.full(len(study), grid[0]), np.full(len(study), grid[-1])
        for _ in range(_BISECTIONS):
            middle = 0.5 * (low + high)
            mass = np.einsum("tr,tr->t", chance, np.interp((middle[:, None] - shift) / width, grid, table))
            low, high = np.where(mass < probability, middle, low), np.where(mass < probability, high, middle)
        return 0.5 * (low + high)

    return quantile((1 - level) / 2), quantile((1 + level) / 2)


@functools.lru_cache(maxsize=64)
def _student_table(freedom: int) -> tuple[np.ndarray, np.ndarray]:
    """Student's distribution function on a grid, fine where intervals end."""
    half = np.concatenate([np.linspace(0.0, 8.0, 801), np.geomspace(8.1, 1e4, 200)])
    grid = np.concatenate([-half[:0:-1], half])
    return grid, student.cdf(grid, freedom)
