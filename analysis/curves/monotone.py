"""Monotone cubic interpolation (SciPy's PCHIP) of many curves at once, evaluated and inverted on a grid of points."""

import numpy as np
from scipy.interpolate import PchipInterpolator

# Points of the grid from the first knot to the last; curves are linear between two of them.
GRID_POINTS = 400
# A loss within this of a curve's first or last value counts as equal: it may be that value, computed on another curve.
_ROUNDING_TOLERANCE = 1e-9


class MonotoneCubics:
    """B × R non-increasing curves through values (B, R, n) at shared knots (n,)."""

    def __init__(self, knots: np.ndarray, values: np.ndarray):
        self.grid, self.on_grid = knots, values  # (G,), (B, R, G)
        if len(knots) > 1:
            self.grid = np.linspace(knots[0], knots[-1], GRID_POINTS)
            self.on_grid = PchipInterpolator(knots, values, axis=-1)(self.grid)

    def evaluate(self, where: np.ndarray) -> np.ndarray:
        """Values (B, R, m) at x (B, m); NaN outside the knots."""
        grid = self.grid
        edge = 1e-9 + 1e-12 * abs(grid[-1])
        outside = ~((where >= grid[0] - edge) & (where <= grid[-1] + edge))[:, None]
        if len(grid) == 1:
            return np.where(outside, np.nan, self.on_grid)
        left = np.clip(np.searchsorted(grid, where) - 1, 0, len(grid) - 2)
        share = np.clip((where - grid[left]) / (grid[left + 1] - grid[left]), 0, 1)[:, None]
        before, after = (self._at(place[:, None]) for place in (left, left + 1))
        return np.where(outside, np.nan, before + share * (after - before))

    def first_crossing(self, wanted: np.ndarray) -> np.ndarray:
        """x (B, R, m) at which each curve first falls to `wanted` (B, R, m).

        Infinite where it never does, minus infinity where its first value is below already, NaN where wanted is NaN.
        """
        grid, last = self.grid, len(self.grid) - 1
        # Curves never rise, so the grid points above the wanted value are the first ones: count them by binary search.
        above = np.zeros(wanted.shape, dtype=int)
        for bit in reversed(range(len(grid).bit_length())):
            further = above + (1 << bit)
            found = self._at(np.minimum(further, len(grid)) - 1) > wanted
            above = np.where(found & (further <= len(grid)), further, above)
        right = np.clip(above, min(1, last), last)
        left = np.maximum(right - 1, 0)
        before, drop = self._at(left), self._at(left) - self._at(right)
        # A curve that is constant from its first point on has drop 0: the crossing is there.
        with np.errstate(invalid="ignore", divide="ignore"):
            share = np.where(drop > 0, (before - wanted) / drop, 0.0)
        found = grid[left] + np.clip(share, 0, 1) * (grid[right] - grid[left])
        found = np.where(wanted < self.on_grid[..., -1:] - _ROUNDING_TOLERANCE, np.inf, found)
        found = np.where(wanted > self.on_grid[..., :1] + _ROUNDING_TOLERANCE, -np.inf, found)
        return np.where(np.isnan(wanted), np.nan, found)

    def _at(self, place: np.ndarray) -> np.ndarray:
        """Values at the grid points `place`, (B, R or 1, m)."""
        return np.take_along_axis(self.on_grid, place, axis=2)
