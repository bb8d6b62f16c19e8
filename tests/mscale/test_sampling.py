"""Sampling rates: limits of temperature sampling, UniMax as published, caps, and invalid input."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mscale import sampling
from mscale.errors import MscaleError

sizes = st.lists(st.integers(1, 10**13), min_size=1, max_size=60).map(np.array)


@given(sizes)
def test_temperature_one_is_proportional_and_infinity_uniform(c):
    np.testing.assert_allclose(sampling.temperature(c, 1.0), sampling.proportional(c), rtol=1e-9)
    np.testing.assert_allclose(sampling.temperature(c, np.inf), sampling.uniform(len(c)))
    np.testing.assert_allclose(sampling.temperature(c, 1e9), sampling.uniform(len(c)), rtol=1e-6)


@given(sizes, st.floats(0.05, 1e4), st.floats(1, 1e14), st.floats(0.1, 50))
def test_rates_sum_to_one_and_keep_the_order_of_sizes(c, T, budget, epochs):
    for p in (sampling.proportional(c), sampling.temperature(c, T), sampling.unimax(c, budget, epochs)):
        assert abs(p.sum() - 1) < 1e-9
        assert (p >= 0).all()
        assert (np.diff(p[np.argsort(c, kind="stable")]) >= -1e-12).all()


@given(sizes, st.floats(1, 1e14), st.floats(0.1, 50))
def test_unimax_never_exceeds_its_epochs_while_any_language_has_budget_left(c, budget, epochs):
    p = sampling.unimax(c, budget, epochs)
    drawn = p * min(budget, (c * epochs).sum())
    assert (drawn <= c * epochs * (1 + 1e-9)).all()
    # As uniform as that allows: whoever is not at the limit gets the same, and the most.
    free = drawn < c * epochs * (1 - 1e-9)
    if free.any():
        np.testing.assert_allclose(drawn[free], drawn.max(), rtol=1e-6)


def test_unimax_is_algorithm_1_of_the_paper():
    # Chung et al. 2023: ascending sizes, min(budget left / languages left, size × epochs).
    c, budget, epochs = [100, 5, 1000, 20], 400.0, 2.0
    taken, left = {}, budget
    for served, index in enumerate(np.argsort(c)):
        taken[index] = min(left / (len(c) - served), c[index] * epochs)
        left -= taken[index]
    expected = np.array([taken[i] for i in range(len(c))]) / sum(taken.values())
    np.testing.assert_allclose(sampling.unimax(c, budget, epochs), expected)
    np.testing.assert_allclose(expected * budget, [175, 10, 175, 40])


@given(sizes.filter(lambda c: len(c) > 1), st.floats(1, 1e14), st.floats(0.1, 20), st.floats(0.001, 1))
def test_unimax_caps_hold_and_what_they_leave_goes_to_the_others(c, budget, epochs, cap):
    caps = np.ones(len(c))
    caps[0] = cap
    capped, free = sampling.unimax(c, budget, epochs, caps), sampling.unimax(c, budget, epochs)
    assert capped[0] <= cap * (1 + 1e-6)
    assert abs(capped.sum() - 1) < 1e-9
    if free[0] <= cap:
        np.testing.assert_allclose(capped, free, rtol=1e-6)
    else:
        np.testing.assert_allclose(capped[0], cap, rtol=1e-5)
        assert (capped[1:] >= free[1:] * (1 - 1e-6)).all()


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: sampling.uniform(0), "at least 1"),
        (lambda: sampling.proportional([1, -1]), "0 or above"),
        (lambda: sampling.proportional([1, float("nan")]), "finite"),
        (lambda: sampling.proportional([0, 0]), "all empty"),
        (lambda: sampling.temperature([1, 2], 0), "temperature is 0"),
        (lambda: sampling.temperature([1, 2], float("nan")), "temperature is nan"),
        (lambda: sampling.unimax([1, 2], 0, 1), "budget is 0"),
        (lambda: sampling.unimax([1, 2], 10, 0), "max_epochs is 0"),
        (lambda: sampling.unimax([1, 2], 10, 1, [0.5]), "for each of 2"),
        (lambda: sampling.unimax([1, 2], 10, 1, [0.5, 0.2]), "under 1"),
    ],
)
def test_bad_input_is_named(call, message):
    with pytest.raises(MscaleError, match=message):
        call()
