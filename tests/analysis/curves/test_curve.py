"""Learning curves are monotone, invertible and censored outside the data; both noise components are recovered."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from analysis.curves.curve import (
    MAX_POINTS,
    CurveNoise,
    bin_points,
    estimate_curve_noise,
    fit_curves,
    percentile_interval,
)


def points(tokens, loss, group="g"):
    return bin_points(np.asarray(tokens, float), np.asarray(loss, float), (group,), "stable")


def fit_curve(cell, noise, draws, rng):
    return fit_curves([cell], noise, draws, [rng])[0]


@given(st.integers(0, 1000), st.floats(0, 0.05))
def test_a_curve_is_monotone_and_first_tokens_at_inverts_it(seed, noise):
    rng = np.random.default_rng(seed)
    tokens = np.unique(rng.integers(1_000, 1_000_000, 20))
    loss = 2 + 30 * tokens**-0.4 + noise * rng.standard_normal(len(tokens))
    curve = fit_curve(points(tokens, loss), CurveNoise(noise, noise), 8, rng)
    loss, draws = curve.at(np.exp(np.linspace(*curve.knots[[0, -1]], 400)))
    assert (np.diff(loss) <= 1e-12).all() and (np.diff(draws, axis=1) <= 1e-12).all()
    at = np.geomspace(curve.first, curve.last, 30)
    value, draws = curve.at(at)
    reached, _ = curve.first_tokens_at(value, draws)
    # The first tokens at that loss are at most those of the loss, and the loss there is the same.
    assert (reached <= at * 1.000001).all()
    assert np.allclose(curve.at(np.clip(reached, curve.first, curve.last))[0], value, atol=1e-9)


def test_a_loss_outside_the_curve_is_censored_not_extrapolated():
    curve = fit_curve(points([1e3, 1e4, 1e5], [3.0, 2.5, 2.0]), CurveNoise(0, 0), 1, np.random.default_rng(0))
    reached, _ = curve.first_tokens_at(np.array([3.5, 1.9, np.nan]), np.array([[3.5, 1.9, np.nan]]))
    assert reached[0] == 0 and reached[1] == np.inf and np.isnan(reached[2])
    assert np.isnan(curve.at([1e2, 1e6])[0]).all()


@given(st.integers(0, 1000))
def test_a_loss_equal_to_the_last_one_up_to_rounding_is_reached_at_the_end(seed):
    """Rounding arises where the loss at one curve's end is looked up on another curve, and back."""
    rng = np.random.default_rng(seed)
    tokens = np.geomspace(1e4, 1e6, 6)
    one, other = (
        fit_curve(points(tokens, loss), CurveNoise(0.01, 0.01), 4, rng)
        for loss in (2 + 30 * tokens**-0.4, 1.9 + 30 * tokens**-0.4)
    )
    d, _ = other.first_tokens_at(*one.at([one.last]))
    back, _ = one.first_tokens_at(*other.at(d))
    assert back == pytest.approx(one.last)


def test_long_curves_are_binned_and_keep_their_ends():
    tokens = np.arange(1, 5001) * 1000
    found = points(tokens, 2 + tokens**-0.3)
    assert len(found.tokens) <= MAX_POINTS
    assert found.repeats.sum() == 5000
    assert np.allclose(found.loss, 2 + found.tokens**-0.3, atol=2e-3)


def test_both_noises_are_recovered():
    rng = np.random.default_rng(1)
    tokens = np.geomspace(1e4, 1e6, 20).round()
    cells = []
    for cell in range(60):
        runs = []
        for seed in range(2):
            loss = 2 + 30 * tokens**-0.4 + rng.normal(0, 0.01) + rng.normal(0, 0.004, len(tokens))
            runs.append(points(tokens, loss, group=f"{cell}/{seed}"))
        cells.append(runs)
    noise = estimate_curve_noise(cells)
    assert noise.run_degrees == 60
    assert noise.checkpoint == pytest.approx(0.004, rel=0.1)
    assert noise.run == pytest.approx(0.01, rel=0.25)


def test_run_noise_is_recovered_from_runs_evaluated_at_different_steps():
    rng = np.random.default_rng(2)
    cells = []
    for cell in range(60):
        runs = []
        for seed in range(2):
            tokens = np.unique(rng.integers(1e4, 1e6, 25))
            loss = 2 + 30 * tokens**-0.4 + rng.normal(0, 0.01) + rng.normal(0, 0.004, len(tokens))
            runs.append(points(tokens, loss, group=f"{cell}/{seed}"))
        cells.append(runs)
    noise = estimate_curve_noise(cells)
    assert noise.run_degrees == 60 and noise.run == pytest.approx(0.01, rel=0.25)
    apart = [
        points([1e3, 2e3], [3.0, 2.9], group="a"),
        points([1e5, 2e5], [2.0, 1.9], group="b"),
    ]
    assert estimate_curve_noise([*cells, apart]).run_degrees == 60


def test_without_repeated_runs_the_run_noise_is_the_prior():
    tokens = np.geomspace(1e4, 1e6, 20).round()
    loss = 2 + 30 * tokens**-0.4 + np.random.default_rng(0).normal(0, 0.004, 20)
    noise = estimate_curve_noise([[points(tokens, loss)]])
    assert noise.run_degrees == 0 and noise.run == pytest.approx(noise.checkpoint)


def test_percentile_intervals_of_infinite_draws_are_infinite():
    draws = np.concatenate([np.full(20, -np.inf), np.linspace(0, 1, 80)])[:, None]
    low, high = percentile_interval(draws, 0.9)
    assert low[0] == -np.inf and 0.9 < high[0] <= 1
