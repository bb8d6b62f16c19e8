"""Monotone cubics agree with SciPy's PCHIP, evaluated and inverted on the grid."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st
from scipy.interpolate import PchipInterpolator

from analysis.curves.monotone import GRID_POINTS, MonotoneCubics


def falling(seed, knots, curves=6):
    """Knots (n,) and non-increasing values (curves, n), a third of their steps level."""
    rng = np.random.default_rng(seed)
    x = np.sort(rng.uniform(0, 10, knots))
    steps = rng.exponential(size=(curves, knots)) * (rng.random((curves, knots)) > 1 / 3)
    return x, 5 - np.cumsum(steps, axis=1)


@given(st.integers(0, 10_000), st.integers(2, 40))
def test_values_are_those_of_scipys_pchip_interpolated_linearly_on_the_grid(seed, knots):
    x, values = falling(seed, knots)
    grid = np.linspace(x[0], x[-1], GRID_POINTS)
    dense = PchipInterpolator(x, values, axis=1)(grid)
    where = np.random.default_rng(seed).uniform(x[0] - 1, x[-1] + 1, 50)
    read = MonotoneCubics(x, values).evaluate(where)
    for row, curve in zip(read, dense, strict=True):
        expected = np.interp(where, grid, curve, left=np.nan, right=np.nan)
        assert np.allclose(row, expected, equal_nan=True, atol=1e-9)


@given(st.integers(0, 10_000), st.integers(2, 40))
def test_first_crossings_are_those_of_a_search_over_all_grid_points(seed, knots):
    x, values = falling(seed, knots)
    grid = np.linspace(x[0], x[-1], GRID_POINTS)
    dense = PchipInterpolator(x, values, axis=1)(grid)
    rng = np.random.default_rng([1, seed])
    wanted = rng.uniform(values.min() - 1, values.max() + 1, (len(values), 30))
    wanted[0, 0] = np.nan
    found = MonotoneCubics(x, values).first_crossing(wanted)
    assert np.isnan(found[0, 0])
    for curve, asked, got in zip(dense, wanted, found, strict=True):
        for value, place in zip(asked[1:], got[1:], strict=True):
            if value < curve[-1]:
                assert place == np.inf
            elif value > curve[0]:
                assert place == -np.inf
            else:
                right = max(int(np.argmax(curve <= value)), 1)
                share = (curve[right - 1] - value) / (curve[right - 1] - curve[right])
                assert np.isclose(place, grid[right - 1] + share * (grid[right] - grid[right - 1]), atol=1e-9)
