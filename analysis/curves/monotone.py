"""Monotone cubic interpolation (PCHIP) of many curves at once, evaluated and inverted on a grid between the knots."""

from collections.abc import Sequence

import numpy as np

# Points of the grid from the first knot to the last; curves are linear between two of them.
GRID_POINTS = 400
# A loss within this of a curve's first or last value counts as equal: it may be that value, computed on another curve.
_ROUNDING_TOLERANCE = 1e-9


def pchip_slopes(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Slopes (..., n) at x (n,) of the monotone cubics through y (..., n): Fritsch & Butland 1984, as SciPy's PCHIP."""
    if len(x) < 2:
        return np.zeros_like(y)
    step = np.diff(x)
    secant = np.diff(y, axis=-1) / step
    if len(x) == 2:
        return np.repeat(secant, 2, axis=-1)
    slopes = np.empty_like(y)
    left, right = secant[..., :-1], secant[..., 1:]
    first, second = 2 * step[1:] + step[:-1], step[1:] + 2 * step[:-1]
    with np.errstate(divide="ignore", invalid="ignore"):
        mean = (first + second) / (first / left + second / right)
    slopes[..., 1:-1] = np.where(left * right > 0, mean, 0.0)
    for end, near, far in ((0, 0, 1), (-1, -1, -2)):
        h, m = step[[near, far]], secant[..., [near, far]]
        edge = ((2 * h[0] + h[1]) * m[..., 0] - h[0] * m[..., 1]) / (h[0] + h[1])
        falls = np.sign(edge) == np.sign(m[..., 0])
        steep = (np.sign(m[..., 0]) != np.sign(m[..., 1])) & (abs(edge) > 3 * abs(m[..., 0]))
        slopes[..., end] = np.where(falls, np.where(steep, 3 * m[..., 0], edge), 0.0)
    return slopes


class MonotoneCubics:
    """B × R non-increasing curves through values (B, R, n) with slopes (B, R, n) at shared knots (n,)."""

    def __init__(self, knots: np.ndarray, values: np.ndarray, slopes: np.ndarray):
        self.knots, self.values, self.slopes = knots, values, slopes
        self.steps = np.diff(knots)
        self.grid = np.linspace(knots[0], knots[-1], GRID_POINTS) if len(knots) > 1 else knots
        # piece: the cubic of each grid point. start: the first grid point of each cubic. row: flat index of each curve.
        self.piece = np.clip(np.searchsorted(knots, self.grid, side="right") - 1, 0, max(len(knots) - 2, 0))
        self.start = np.searchsorted(self.grid, knots)
        self.row = (np.arange(values[..., 0].size) * len(knots)).reshape(*values.shape[:2], 1)

    def evaluate(self, where: np.ndarray) -> np.ndarray:
        """Values (B, R, m) at x (B, m); NaN outside the knots."""
        grid = self.grid
        edge = 1e-9 + 1e-12 * abs(grid[-1])
        outside = ~((where >= grid[0] - edge) & (where <= grid[-1] + edge))
        if len(grid) == 1:
            found = np.repeat(self.values, where.shape[1], axis=2)
        else:
            place = np.clip(np.searchsorted(grid, where) - 1, 0, len(grid) - 2)
            share = np.clip((where - grid[place]) / (grid[place + 1] - grid[place]), 0, 1)[:, None]
            place = place[:, None]
            found = self._at(place, self.row)
            found += share * (self._at(place + 1, self.row) - found)
        return np.where(outside[:, None], np.nan, found)

    def first_crossing(self, wanted: np.ndarray) -> np.ndarray:
        """x (B, R, m) at which each curve first falls to `wanted` (B, R, m).

        Infinite where it never does, minus infinity where its first value is below already, NaN where wanted is NaN.
        """
        grid = self.grid
        if len(grid) == 1:
            found = np.full(wanted.shape, grid[0])
        else:
            right, before, after = self._around(wanted)
            drop = before - after
            # A curve that is constant from its first point on has drop 0: the crossing is there.
            with np.errstate(invalid="ignore", divide="ignore"):
                share = np.where(drop > 0, (before - wanted) / drop, 0.0)
            start = grid[right - 1]
            found = start + np.clip(share, 0, 1) * (grid[right] - start)
        found = np.where(wanted < self.values[..., -1:] - _ROUNDING_TOLERANCE, np.inf, found)
        found = np.where(wanted > self.values[..., :1] + _ROUNDING_TOLERANCE, -np.inf, found)
        return np.where(np.isnan(wanted), np.nan, found)

    def _cubic(self, at: np.ndarray, step: np.ndarray) -> tuple[np.ndarray, ...]:
        """Coefficients of cubics, constant first, in the distance from their left knots; and their secant slopes.

        Args:
          at: flat indices of their left knots in `values`. step: distances to their right knots.
        """
        value, slope = self.values.take(at), self.slopes.take(at)
        secant = (self.values.take(at + 1) - value) / step
        bend = (slope + self.slopes.take(at + 1) - 2 * secant) / step
        return value, slope, (secant - slope) / step - bend, bend / step, secant

    def _at(self, place: np.ndarray, row: np.ndarray) -> np.ndarray:
        """Values at grid points, of the curves whose first value has the flat index `row` in `values`."""
        piece = self.piece[place]
        *cubic, _ = self._cubic(row + piece, self.steps[piece])
        return _evaluate(cubic, self.grid[place] - self.knots[piece])

    def _around(self, wanted: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """First grid point, from the second on, where each curve is at or below `wanted`; values before and there."""
        # Curves never rise, so the knots above the wanted value are the first ones: count them by binary search.
        n, last = len(self.knots), len(self.grid) - 1
        above = np.zeros(wanted.shape, dtype=int)
        for half in reversed(range(n.bit_length())):
            next_ = above + (1 << half)
            above += (self.values.take(self.row + np.minimum(next_, n) - 1) > wanted) << half
        piece = np.clip(above - 1, 0, n - 2)
        # Two Newton steps to where the cubic that starts at the last of them reaches the value.
        step = self.steps[piece]
        *cubic, secant = self._cubic(self.row + piece, step)
        value, slope, bend, twist = cubic
        with np.errstate(invalid="ignore", divide="ignore", over="ignore"):
            x = (wanted - value) / secant
            for _ in range(2):
                x -= (_evaluate(cubic, x) - wanted) / ((3 * twist * x + 2 * bend) * x + slope)
                x = np.fmax(np.fmin(x, step), 0.0)
        x += self.knots[piece] - self.grid[0]
        right = np.clip(np.ceil(x * (last / (self.grid[-1] - self.grid[0]))).astype(int), 1, last)
        before, after = self._at(right - 1, self.row), self._at(right, self.row)
        # Where Newton missed (mostly on constant stretches): bisect the grid points on the cubic.
        wrong = ((before <= wanted) & (right > 1)) | ((after > wanted) & (right < last))
        wrong &= (wanted >= self.values[..., -1:]) & (wanted <= self.values[..., :1])
        if wrong.any():
            row = np.broadcast_to(self.row, wanted.shape)[wrong]
            right[wrong] = self._bisect(wanted[wrong], piece[wrong], row)
            before[wrong], after[wrong] = self._at(right[wrong] - 1, row), self._at(right[wrong], row)
        return right, before, after

    def _bisect(self, wanted: np.ndarray, piece: np.ndarray, row: np.ndarray) -> np.ndarray:
        """The grid points (k,) of `_around` by bisection, for values (k,), pieces (k,) and curves at row (k,)."""
        *cubic, _ = self._cubic(row + piece, self.steps[piece])
        low, high = self.start[piece], self.start[piece + 1]
        while (low < high).any():
            middle = (low + high) >> 1
            above = (_evaluate(cubic, self.grid[middle] - self.knots[piece]) > wanted) & (middle < high)
            low, high = np.where(above, middle + 1, low), np.where(above, high, middle)
        return np.clip(low, 1, len(self.grid) - 1)


def _evaluate(cubic: Sequence[np.ndarray], x: np.ndarray) -> np.ndarray:
    """a + b·x + c·x² + d·x³ by Horner's rule."""
    a, b, c, d = cubic
    value = d * x
    for coefficient in (c, b):
        value += coefficient
        value *= x
    value += a
    return value
