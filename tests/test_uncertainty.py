"""Intervals hold the truth about as often as they say, with few groups too."""

import numpy as np
import pytest

import analysis
from analysis import simulate, uncertainty

TRUE = {"E": 1.7, "A": 30.0, "alpha": 0.32, "B": 90.0, "beta": 0.36}


def study(seeds, seed, trunk=0.003, checkpoint=0.001):
    design = simulate.grid(np.geomspace(2e4, 4e5, 5), (2e6, 4e6, 8e6), seeds=seeds)
    return simulate.study("chinchilla", design, TRUE, trunk=trunk, checkpoint=checkpoint, seed=seed)


def test_intervals_hold_with_ten_groups():
    hits = []
    for seed in range(30):
        found = analysis.fit("chinchilla", study(2, seed)).interval(0.9)
        hits += [
            found.loc[name, "low"] <= TRUE[name] <= found.loc[name, "high"] for name in ("E", "alpha", "beta")
        ]
    assert 0.78 <= np.mean(hits) <= 0.99  # 90 hits, correlated: the coverage tables are tighter


def test_the_shared_noise_is_estimated():
    found = analysis.fit("chinchilla", study(20, 0))
    noise = found.noise
    assert noise.ratio[noise.best] == pytest.approx(9.0, rel=0.6)
    assert np.sqrt(noise.sigma2[noise.best]) == pytest.approx(0.001, rel=0.2)
    independent = analysis.fit("chinchilla", study(20, 0, trunk=0.0))
    assert independent.noise.ratio[independent.noise.best] < 0.2


def test_profile_agrees_with_the_standard_error_where_the_law_is_nearly_linear():
    found = analysis.fit("chinchilla", study(20, 1, trunk=1e-4, checkpoint=1e-4))
    low, high = uncertainty.profile_intervals(found.problem, found.theta, found.noise, 0.9)
    width = 2 * 1.645 * found.noise.deviation
    np.testing.assert_allclose(high - low, width, rtol=0.06)


def test_draws_and_profiles_agree():
    found = analysis.fit("chinchilla", study(4, 2))
    low, high = uncertainty.profile_intervals(found.problem, found.theta, found.noise, 0.9)
    drawn = np.quantile(found.draws(4000), [0.05, 0.95], axis=0)
    np.testing.assert_allclose(drawn[1] - drawn[0], high - low, rtol=0.25)


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
