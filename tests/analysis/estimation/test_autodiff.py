"""Derivatives by jets agree with finite differences, for every operation that a law may use."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from analysis.estimation.autodiff import Jet

FUNCTIONS = [
    lambda a, b: a * b + 3.0 - b,
    lambda a, b: 2.0 / (a + b) - a / b,
    lambda a, b: np.exp(-a * b) + np.log(a + 2.0) + np.log1p(b) + np.log10(a),
    lambda a, b: a**b + 3.0**a + b**2,
    lambda a, b: np.array([2.0]) ** -a * np.sqrt(b) - np.array([1.5]) / a,
    lambda a, b: np.expm1(a) * np.tanh(b) + np.square(a) + np.array([2.0]) - b,
    lambda a, b: np.minimum(a, 10.0) * np.maximum(a, b),
]


@pytest.mark.parametrize("function", FUNCTIONS)
@given(a=st.floats(0.3, 2.0), b=st.floats(2.1, 3.0))
def test_first_and_second_derivatives(function, a, b):
    point = np.array([a, b])

    def value(p):
        return float(np.squeeze(function(p[0], p[1])))

    out = function(Jet.variable(np.array(a), 0), Jet.variable(np.array(b), 1))
    assert np.squeeze(out.value) == pytest.approx(value(point), rel=1e-12)
    step = 1e-4
    for i in range(2):
        e = np.eye(2)[i] * step
        slope = (value(point + e) - value(point - e)) / (2 * step)
        assert np.squeeze(out.grad.get(i, 0.0)) == pytest.approx(slope, rel=1e-5, abs=1e-6)
        for j in range(i, 2):
            d = np.eye(2)[j] * step
            curved = value(point + e + d) - value(point + e - d) - value(point - e + d) + value(point - e - d)
            expected = curved / (4 * step**2)
            assert np.squeeze(out.hess.get((i, j), 0.0)) == pytest.approx(expected, rel=1e-4, abs=2e-5)


def test_an_unsupported_function_raises():
    with pytest.raises(TypeError, match="np.sin"):
        np.sin(Jet.variable(np.array(1.0), 0))
