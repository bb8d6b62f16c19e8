"""Intervals hold the truth about as often as they say, with few groups too."""

import dataclasses

import numpy as np
import pandas as pd
import pytest

import analysis
from analysis.estimation import multistart, quantities, variance_components
from analysis.estimation.quantities import Derived, Linear
from analysis.uncertainty import critical_values, profile
from analysis.validation import simulate
from mscale.errors import MscaleError

TRUE = {"E": 1.7, "A": 30.0, "alpha": 0.32, "B": 90.0, "beta": 0.36}


def study(seeds, seed, trunk=0.003, checkpoint=0.001):
    design = simulate.grid(np.geomspace(2e4, 4e5, 5), (2e6, 4e6, 8e6), seeds=seeds)
    return simulate.study("chinchilla", design, TRUE, trunk=trunk, checkpoint=checkpoint, seed=seed)


def test_the_shared_noise_is_estimated():
    found = analysis.fit("chinchilla", study(20, 0))
    noise = found.noise
    assert noise.ratio[noise.best[0]] == pytest.approx(9.0, rel=0.6)
    assert np.sqrt(noise.at_best(noise.sigma2)[0]) == pytest.approx(0.001, rel=0.2)
    independent = analysis.fit("chinchilla", study(20, 0, trunk=0.0))
    assert abs(independent.problem.ratio) < 0.2


def test_profile_agrees_with_the_standard_error_where_the_law_is_nearly_linear():
    found = analysis.fit("chinchilla", study(20, 1, trunk=1e-4, checkpoint=1e-4))
    _, low, high = found.ends([Linear(np.eye(5), np.zeros(5))], 0.9)
    width = 2 * 1.645 * found.noise.deviation[0]
    np.testing.assert_allclose(high - low, width, rtol=0.06)


def test_profiles_are_those_of_a_constrained_search():
    from scipy.optimize import minimize

    found = analysis.fit("chinchilla", study(3, 2))
    problem, theta, noise = found.problem, found.theta, found.noise
    x = {"N": np.array([2e6]), "D": np.array([3e7])}
    wanted = [
        Derived(0, found.law.predict, x, 1),
        Derived(0, lambda p, x: p.beta / (p.alpha + p.beta), {}, 1),
    ]
    estimate, low, high = found.ends(wanted, 0.9)
    sigma2, base = noise.at_best(noise.sigma2)[0], problem.derivatives(theta[None], problem.batch())[0][0]
    pinned = dataclasses.replace(problem, penalised=tuple(wanted))
    slope = profile.penalised_values(pinned, np.tile(theta, (2, 1)), np.arange(2))[1]
    wanted_rise = critical_values.critical_values(noise, np.zeros(2, int), slope, 0.9)
    for number, quantity in enumerate(wanted):
        for end, rise in ((low[number], wanted_rise[0][number]), (high[number], wanted_rise[1][number])):

            def away(t, quantity=quantity, end=end):
                return quantities.values(problem, quantity, t[None])[0, 0] - end

            best = minimize(
                lambda t: problem.derivatives(t[None], problem.batch())[0][0] / base,
                theta,
                method="SLSQP",
                constraints={"type": "eq", "fun": away},
                options={"ftol": 1e-12, "maxiter": 500},
            )
            assert np.sqrt(2 * base * max(best.fun - 1, 0) / sigma2) == pytest.approx(abs(rise), rel=0.03)


def test_an_interval_does_not_depend_on_the_scale_of_its_quantity():
    found = analysis.fit("chinchilla", study(2, 4))
    plain = found.interval_of(lambda p: p.A / p.B).iloc[0]
    logs = found.interval_of(lambda p: np.log(p.A) - np.log(p.B)).iloc[0]
    np.testing.assert_allclose(np.log(plain), logs, rtol=0.01)
    of_beta = found.interval_of(lambda p: p.beta).iloc[0]
    np.testing.assert_allclose(
        of_beta, found.interval().loc["beta", ["estimate", "low", "high"]].astype(float), rtol=1e-3
    )


def test_predictions_exponent_and_constants_hold_with_ten_groups():
    """The intervals that draws made a quarter too narrow: planted studies fitted together."""
    design = simulate.grid(np.geomspace(2e4, 4e5, 5), (1e6, 4e6, 1.6e7), seeds=2)
    planted = analysis.fit("chinchilla", simulate.study("chinchilla", design, TRUE, trunk=0, checkpoint=0))
    problem = dataclasses.replace(planted.problem, ratio=0.0)
    beyond = {"N": np.array([1.2e6]), "D": np.array([5e7])}
    wanted = [
        planted.parameters_and_constants(),
        Derived(0, planted.law.predict, beyond, 1),
        Derived(0, lambda p, x: p.beta / (p.alpha + p.beta), {}, 1),
    ]
    truth = np.concatenate([quantities.values(problem, q, planted.theta[None])[0] for q in wanted])
    rng = np.random.default_rng(5)
    S = 200
    off = rng.normal(0, 0.003, (S, problem.groups))[:, problem.group] + rng.normal(
        0, 0.001, (S, len(problem.y))
    )
    y = problem.y * np.exp(off)
    found = multistart.optima(problem, 0, y)
    noise = variance_components.estimate_noise(found.problem, found.theta, y)
    low, high = profile.intervals(found.problem, noise.at_best(noise.theta), noise, wanted, 0.9, y)
    held = ((low <= truth) & (truth <= high)).mean(axis=0)
    assert ((held > 0.83) & (held < 0.965)).all(), held  # three standard errors of 200 studies about 0.9

    # Fitted one at a time, through the front door, a study gives the same.
    order = np.lexsort((planted.problem.group, planted.level))
    one = analysis.fit("chinchilla", pd.DataFrame({**problem.x, "loss": y[7], "group": problem.group}))
    assert (np.diff(order) == 1).all()
    np.testing.assert_allclose(one.theta, noise.at_best(noise.theta)[7], rtol=1e-5)
    _, mine, _ = one.ends(wanted, 0.9)
    np.testing.assert_allclose(mine, low[7], rtol=2e-3)


def test_bootstrap_resamples_groups_not_rows():
    table = study(8, 3)
    whole = analysis.fit("chinchilla", table, loss="huber")
    rows = analysis.fit("chinchilla", table.drop(columns=["run", "group"]), loss="huber")
    spread = [np.std(fit.draws(300), axis=0)[1] for fit in (whole, rows)]  # A, which trunk noise moves
    assert spread[0] > 1.2 * spread[1]


def test_an_interval_is_unbounded_only_where_the_profile_is_flat():
    design = simulate.grid(np.geomspace(2e4, 4e5, 5), (4e6, 4.4e6), seeds=3)
    table = simulate.study("chinchilla", design, TRUE, trunk=0.01, checkpoint=0.01, seed=0)
    found = analysis.fit("chinchilla", table).interval(0.9)
    assert not np.isfinite(found.loc["beta", ["low", "high"]].astype(float)).all()
    assert np.isfinite(found.loc["alpha", ["low", "high"]].astype(float)).all()


def test_too_few_groups_are_not_asked_what_they_share():
    table = study(1, 3)
    with pytest.raises(MscaleError, match="are needed before an interval"):
        analysis.fit("chinchilla", table)
    found = analysis.fit("chinchilla", table, few_groups=True)
    assert found.problem.ratio == 0.0
    assert any("5 groups cannot tell noise that they share" in note for note in found.notes)


def test_a_steep_profile_is_not_taken_for_a_flat_one():
    """Loss bounds E from above whatever the noise, while β may be open below."""
    for seed in (1, 9):
        design = simulate.grid(np.geomspace(2e4, 4e5, 5), (2e6, 4e6, 8e6), seeds=2)
        table = simulate.study("chinchilla", design, TRUE, trunk=0.0, checkpoint=0.004, seed=seed)
        found = analysis.fit("chinchilla", table).interval(0.9)
        assert found.loc["E", "estimate"] < found.loc["E", "high"] < table["loss"].min()
        assert np.isfinite(found.loc["B_mean", "high"]) and np.isfinite(found.loc["beta", "high"])


def test_what_hardly_matters_of_the_noise_is_left_rough_and_the_rest_is_exact(monkeypatch):
    found = analysis.fit("chinchilla", study(6, 5))
    theta = np.stack([found.theta, found.theta + 0.05])
    y = found.problem.y * np.exp(np.random.default_rng(0).normal(0, 0.002, (2, len(found.problem.y))))
    whole = variance_components.estimate_noise(found.problem, theta, y)
    monkeypatch.setattr(variance_components, "LARGE_PROBLEM", 0)
    quick = variance_components.estimate_noise(found.problem, theta, y)
    np.testing.assert_allclose(quick.probability, whole.probability, rtol=1e-6, atol=1e-9)
    matters = whole.probability > 1e-9
    assert matters.sum() < matters.size
    np.testing.assert_allclose(quick.theta[matters], whole.theta[matters], rtol=1e-4)
    np.testing.assert_allclose(quick.inverse[matters], whole.inverse[matters], rtol=1e-3)


def test_inverses_are_the_same_by_cholesky_and_of_flat_matrices_by_eigenvalues(monkeypatch):
    J = np.random.default_rng(1).normal(size=(3, 30, 6)) * [1, 10, 1e3, 1, 1e-2, 1]
    information = J.swapaxes(1, 2) @ J
    slow = variance_components.pseudo_inverse(information)
    monkeypatch.setattr(variance_components, "LARGE_PROBLEM", 0)
    for mine, other in zip(variance_components.pseudo_inverse(information), slow, strict=True):
        np.testing.assert_allclose(mine, other, rtol=1e-8)
    J[1, :, 5] = J[1, :, 3]
    flat = J.swapaxes(1, 2) @ J
    assert variance_components.pseudo_inverse(flat)[0][1, 5, 5] > 1e8
