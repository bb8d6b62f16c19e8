"""Monotone cubic interpolation (SciPy's PCHIP), evaluated and inverted on a grid of points."""

import numpy as np
from scipy.interpolate import PchipInterpolator

# Points of the grid from the first knot to the last; curves are linear between two of them.
GRID_POINTS = 400
# A loss within this of a curve's first or last value counts as equal: it may be that value, computed on another curve.
_ROUNDING_TOLERANCE = 1e-9


class MonotoneCubics:
    """R non-increasing curves through values (R, n) at shared knots (n,)."""

    def __init__(self, knots: np.ndarray, values: np.ndarray):
        self.grid, self.on_grid = knots, values  # (G,), (R, G)
        if len(knots) > 1:
            self.grid = np.linspace(knots[0], knots[-1], GRID_POINTS)
            self.on_grid = PchipInterpolator(knots, values, axis=-1)(self.grid)

    def evaluate(self, where: np.ndarray) -> np.ndarray:
        """Values (R, m) at x (m,); NaN outside the knots."""
        grid = self.grid
        edge = 1e-9 + 1e-12 * abs(grid[-1])
        outside = ~((where >= grid[0] - edge) & (where <= grid[-1] + edge))
        if len(grid) == 1:
            return np.where(outside, np.nan, self.on_grid)
        left = np.clip(np.searchsorted(grid, where) - 1, 0, len(grid) - 2)
        share = np.clip((where - grid[left]) / (grid[left + 1] - grid[left]), 0, 1)
        before, after = self.on_grid[:, left], self.on_grid[:, left + 1]
        return np.where(outside, np.nan, before + share * (after - before))

    def first_crossing(self, wanted: np.ndarray) -> np.ndarray:
        """x (R, m) at which each curve first falls to `wanted` (R, m).

        Infinite where it never does, minus infinity where its first value is below already, NaN where wanted is NaN.
        """
        grid, last = self.grid, len(self.grid) - 1
        # Curves never rise: the grid points above the wanted value are the first ones.
        above = np.array(
            [np.searchsorted(-row, -value) for row, value in zip(self.on_grid, wanted, strict=True)]
        )
        right = np.clip(above, min(1, last), last)
        left = np.maximum(right - 1, 0)
        before, after = (np.take_along_axis(self.on_grid, place, axis=1) for place in (left, right))
        # A curve that is constant from its first point on falls by 0: the crossing is there.
        with np.errstate(invalid="ignore", divide="ignore"):
            share = np.where(before > after, (before - wanted) / (before - after), 0.0)
        found = grid[left] + np.clip(share, 0, 1) * (grid[right] - grid[left])
        found = np.where(wanted < self.on_grid[:, -1:] - _ROUNDING_TOLERANCE, np.inf, found)
        found = np.where(wanted > self.on_grid[:, :1] + _ROUNDING_TOLERANCE, -np.inf, found)
        return np.where(np.isnan(wanted), np.nan, found)
