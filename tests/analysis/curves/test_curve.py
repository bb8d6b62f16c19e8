import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pandas import DataFrame

from analysis.curves.curve import MOST_POINTS, Noise, fit_curve, gather, interval, measure_noise


def rows(tokens, loss, phase="stable", group="g"):
    return DataFrame({"tokens": tokens, "loss": loss, "phase": phase, "group": group})


@given(st.integers(0, 1000), st.floats(0, 0.05))
def test_a_curve_never_rises_and_reaching_inverts_it(seed, noise):
    rng = np.random.default_rng(seed)
    tokens = np.unique(rng.integers(1_000, 1_000_000, 20))
    loss = 2 + 30 * tokens**-0.4 + noise * rng.standard_normal(len(tokens))
    curve = fit_curve(gather(rows(tokens, loss)), Noise(noise, noise), 8, rng)
    loss, draws = curve.at(np.exp(np.linspace(*curve.knots[[0, -1]], 400)))
    assert (np.diff(loss) <= 1e-12).all() and (np.diff(draws, axis=1) <= 1e-12).all()
    at = np.geomspace(curve.first, curve.last, 30)
    value, draws = curve.at(at)
    reached, _ = curve.reach(value, draws)
    # The first token at that loss: never later than asked for, and the loss there is the same.
    assert (reached <= at * 1.000001).all()
    assert np.allclose(curve.at(np.clip(reached, curve.first, curve.last))[0], value, atol=1e-9)


def test_a_loss_outside_the_curve_is_censored_not_extrapolated():
    curve = fit_curve(
        gather(rows([1e3, 1e4, 1e5], [3.0, 2.5, 2.0])), Noise(0, 0), 1, np.random.default_rng(0)
    )
    reached, _ = curve.reach(np.array([3.5, 1.9, np.nan]), np.array([[3.5, 1.9, np.nan]]))
    assert reached[0] == 0 and reached[1] == np.inf and np.isnan(reached[2])
    assert np.isnan(curve.at([1e2, 1e6])[0]).all()


@given(st.integers(0, 1000))
def test_a_loss_that_is_a_curves_last_but_for_rounding_is_reached_at_its_end(seed):
    """As where the loss of one curve's last budget is looked up on another, and read back."""
    rng = np.random.default_rng(seed)
    tokens = np.geomspace(1e4, 1e6, 6)
    one, other = (
        fit_curve(gather(rows(tokens, loss)), Noise(0.01, 0.01), 4, rng)
        for loss in (2 + 30 * tokens**-0.4, 1.9 + 30 * tokens**-0.4)
    )
    d, _ = other.reach(*one.at([one.last]))
    back, _ = one.reach(*other.at(d))
    assert back == pytest.approx(one.last)


def test_phases_are_never_mixed():
    table = rows([1000, 2000, 2000], [3.0, 2.5, 2.0], phase=["stable", "stable", "end"])
    assert gather(table, "stable").loss.tolist() == [3.0, 2.5]
    assert gather(table, "end").loss.tolist() == [2.0]
    with pytest.raises(ValueError):
        gather(table, "decay")


def test_long_curves_are_binned_and_keep_their_ends():
    tokens = np.arange(1, 5001) * 1000
    points = gather(rows(tokens, 2 + tokens**-0.3))
    assert len(points.tokens) <= MOST_POINTS
    assert points.repeats.sum() == 5000
    assert np.allclose(points.loss, 2 + points.tokens**-0.3, atol=2e-3)


def test_both_noises_are_recovered():
    rng = np.random.default_rng(1)
    tokens = np.geomspace(1e4, 1e6, 20).round()
    cells = []
    for cell in range(60):
        runs = []
        for seed in range(2):
            loss = 2 + 30 * tokens**-0.4 + rng.normal(0, 0.01) + rng.normal(0, 0.004, len(tokens))
            runs.append(gather(rows(tokens, loss, group=f"{cell}/{seed}")))
        cells.append(runs)
    noise = measure_noise(cells)
    assert noise.run_degrees == 60
    assert noise.checkpoint == pytest.approx(0.004, rel=0.1)
    assert noise.run == pytest.approx(0.01, rel=0.25)


def test_repeated_runs_evaluated_at_other_steps_tell_their_noise_too():
    rng = np.random.default_rng(2)
    cells = []
    for cell in range(60):
        runs = []
        for seed in range(2):
            tokens = np.unique(rng.integers(1e4, 1e6, 25))
            loss = 2 + 30 * tokens**-0.4 + rng.normal(0, 0.01) + rng.normal(0, 0.004, len(tokens))
            runs.append(gather(rows(tokens, loss, group=f"{cell}/{seed}")))
        cells.append(runs)
    noise = measure_noise(cells)
    assert noise.run_degrees == 60 and noise.run == pytest.approx(0.01, rel=0.25)
    apart = [gather(rows([1e3, 2e3], [3.0, 2.9], group="a")), gather(rows([1e5, 2e5], [2.0, 1.9], group="b"))]
    assert measure_noise([*cells, apart]).run_degrees == 60


def test_without_repeated_runs_their_noise_is_assumed_and_said_so():
    tokens = np.geomspace(1e4, 1e6, 20).round()
    loss = 2 + 30 * tokens**-0.4 + np.random.default_rng(0).normal(0, 0.004, 20)
    noise = measure_noise([[gather(rows(tokens, loss))]])
    assert noise.run_degrees == 0 and noise.run == pytest.approx(noise.checkpoint)


def test_interval_keeps_open_sides_open():
    draws = np.concatenate([np.full(20, -np.inf), np.linspace(0, 1, 80)])[:, None]
    low, high = interval(draws, 0.9)
    assert low[0] == -np.inf and 0.9 < high[0] <= 1
