"""Profile intervals: they end where the profile reaches its critical value, and cover the truth as stated."""

import dataclasses

import numpy as np
import pandas as pd
import planted_chinchilla
import pytest
from planted_chinchilla import TRUE
from scipy.optimize import minimize
from scipy.stats import t as student

import analysis
from analysis.estimation import multistart, variance_components
from analysis.estimation.quantities import Derived, Linear
from analysis.uncertainty import critical_values, profile
from analysis.uncertainty.delta_method import covariance
from analysis.validation import simulate


@pytest.fixture(scope="module")
def table():
    """E is a small part of the loss: it reaches 0, its bound, before the lower limit of β is reached."""
    truth = {"E": 0.15, "A": 5.0, "alpha": 0.22, "B": 250.0, "beta": 0.48}
    design = simulate.monolingual_design(np.geomspace(1.4e4, 3.2e5, 5), (8e4, 16e4, 32e4), seeds=1)
    return simulate.draw_observations("chinchilla", design, truth, trunk=0.0, checkpoint=0.012, seed=3)


@pytest.mark.parametrize("name", ["alpha", "beta"])
def test_limits_are_found_past_the_bound_of_another_parameter(table, name):
    found = analysis.fit("chinchilla", table, loss="squares", group="run")
    row = found.interval(0.9).loc[name]
    freedom = len(table) - 5
    for end in (row["low"], row["high"]):
        assert np.isfinite(end)
        restricted = analysis.fit("chinchilla", table, loss="squares", group="run", fixed={name: end})
        rise = (restricted.objective - found.objective) / (2 * found.objective / freedom)
        assert np.sqrt(2 * rise) == pytest.approx(student.ppf(0.95, freedom), rel=0.05)
    lowest = analysis.fit("chinchilla", table, loss="squares", group="run", fixed={name: row["low"]})
    assert lowest.params["E"] == pytest.approx(0, abs=1e-3) or name == "alpha"


@pytest.mark.parametrize("name", ["alpha", "A", "B"])
def test_limits_are_where_the_profile_reaches_its_critical_value(table, name):
    """To 1%, although few points of the profile are evaluated."""
    found = analysis.fit("chinchilla", table, loss="squares", group="run")
    freedom = len(table) - 5
    row = found.interval(0.9).loc[name]
    for end in (row["low"], row["high"]):
        restricted = analysis.fit("chinchilla", table, loss="squares", group="run", fixed={name: end})
        rise = (restricted.objective - found.objective) / (2 * found.objective / freedom)
        assert np.sqrt(2 * rise) == pytest.approx(student.ppf(0.95, freedom), rel=0.01)


def test_profile_agrees_with_the_standard_error_where_the_law_is_nearly_linear():
    found = analysis.fit("chinchilla", planted_chinchilla.study(20, 1, trunk=1e-4, checkpoint=1e-4))
    _, low, high = found.ends([Linear(np.eye(5), np.zeros(5))], 0.9)
    width = 2 * 1.645 * np.sqrt(np.diag(covariance(found)))
    np.testing.assert_allclose(high - low, width, rtol=0.06)


def test_limits_agree_with_a_constrained_search_by_scipy():
    found = analysis.fit("chinchilla", planted_chinchilla.study(3, 2))
    problem, theta, noise = found.problem, found.theta, found.noise
    x = {"N": np.array([2e6]), "D": np.array([3e7])}
    wanted = [
        Derived(0, found.law.predict, x, 1),
        Derived(0, lambda p, x: p.beta / (p.alpha + p.beta), {}, 1),
    ]
    estimate, low, high = found.ends(wanted, 0.9)
    sigma2, base = noise.at_best(noise.sigma2)[0], problem.derivatives(theta[None], problem.batch())[0][0]
    pinned = dataclasses.replace(problem, penalised=tuple(wanted))
    slope = pinned.penalised_derivatives(np.tile(theta, (2, 1)), np.arange(2))[1]
    wanted_rise = critical_values.critical_values(noise, np.zeros(2, int), slope, 0.9)
    for number, quantity in enumerate(wanted):
        for end, rise in ((low[number], wanted_rise[0][number]), (high[number], wanted_rise[1][number])):

            def distance(t, quantity=quantity, end=end):
                return problem.quantity_values(quantity, t[None])[0, 0] - end

            best = minimize(
                lambda t: problem.derivatives(t[None], problem.batch())[0][0] / base,
                theta,
                method="SLSQP",
                constraints={"type": "eq", "fun": distance},
                options={"ftol": 1e-12, "maxiter": 500},
            )
            assert np.sqrt(2 * base * max(best.fun - 1, 0) / sigma2) == pytest.approx(abs(rise), rel=0.03)


def test_intervals_do_not_depend_on_the_parametrisation():
    found = analysis.fit("chinchilla", planted_chinchilla.study(2, 4))
    plain = found.interval_of(lambda p: p.A / p.B).iloc[0]
    logs = found.interval_of(lambda p: np.log(p.A) - np.log(p.B)).iloc[0]
    np.testing.assert_allclose(np.log(plain), logs, rtol=0.01)
    of_beta = found.interval_of(lambda p: p.beta).iloc[0]
    np.testing.assert_allclose(
        of_beta, found.interval().loc["beta", ["estimate", "low", "high"]].astype(float), rtol=1e-3
    )


def test_intervals_of_predictions_exponent_and_constants_cover_the_truth_with_ten_groups():
    """Coverage of 90% intervals over 200 simulated studies, fitted together."""
    design = simulate.monolingual_design(np.geomspace(2e4, 4e5, 5), (1e6, 4e6, 1.6e7), seeds=2)
    planted = analysis.fit(
        "chinchilla", simulate.draw_observations("chinchilla", design, TRUE, trunk=0, checkpoint=0)
    )
    problem = dataclasses.replace(planted.problem, ratio=0.0)
    beyond = {"N": np.array([1.2e6]), "D": np.array([5e7])}
    wanted = [
        planted.parameters_and_constants(),
        Derived(0, planted.law.predict, beyond, 1),
        Derived(0, lambda p, x: p.beta / (p.alpha + p.beta), {}, 1),
    ]
    truth = np.concatenate([problem.quantity_values(q, planted.theta[None])[0] for q in wanted])
    rng = np.random.default_rng(5)
    S = 200
    off = rng.normal(0, 0.003, (S, problem.groups))[:, problem.group] + rng.normal(
        0, 0.001, (S, len(problem.y))
    )
    y = problem.y * np.exp(off)
    found = multistart.optima(problem, 0, y)
    noise = variance_components.estimate_noise(found.problem, found.theta, y)
    low, high = profile.intervals(found.problem, noise.at_best(noise.theta), noise, wanted, 0.9, y)
    coverage = ((low <= truth) & (truth <= high)).mean(axis=0)
    assert ((coverage > 0.83) & (coverage < 0.965)).all(), (
        coverage
    )  # three standard errors of 200 studies about 0.9

    # Fitted by itself with analysis.fit, a study gives the same.
    order = np.lexsort((planted.problem.group, planted.level))
    one = analysis.fit("chinchilla", pd.DataFrame({**problem.x, "loss": y[7], "group": problem.group}))
    assert (np.diff(order) == 1).all()
    np.testing.assert_allclose(one.theta, noise.at_best(noise.theta)[7], rtol=1e-5)
    _, own_low, _ = one.ends(wanted, 0.9)
    np.testing.assert_allclose(own_low, low[7], rtol=2e-3)


def test_an_interval_is_unbounded_only_where_the_profile_is_flat():
    design = simulate.monolingual_design(np.geomspace(2e4, 4e5, 5), (4e6, 4.4e6), seeds=3)
    table = simulate.draw_observations("chinchilla", design, TRUE, trunk=0.01, checkpoint=0.01, seed=0)
    found = analysis.fit("chinchilla", table).interval(0.9)
    assert not np.isfinite(found.loc["beta", ["low", "high"]].astype(float)).all()
    assert np.isfinite(found.loc["alpha", ["low", "high"]].astype(float)).all()


def test_limits_are_finite_where_the_profile_is_steep():
    """The lowest loss bounds E from above whatever the noise, while β may have no lower limit."""
    for seed in (1, 9):
        design = simulate.monolingual_design(np.geomspace(2e4, 4e5, 5), (2e6, 4e6, 8e6), seeds=2)
        table = simulate.draw_observations("chinchilla", design, TRUE, trunk=0.0, checkpoint=0.004, seed=seed)
        found = analysis.fit("chinchilla", table).interval(0.9)
        assert found.loc["E", "estimate"] < found.loc["E", "high"] < table["loss"].min()
        assert np.isfinite(found.loc["B_mean", "high"]) and np.isfinite(found.loc["beta", "high"])
