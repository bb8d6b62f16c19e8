"""Fast paths give what the plain ones give: sums of powers, first steps, expansions, starts on a part of the rows."""

import numpy as np
import pytest

import analysis
from analysis import powers, resampling, search, simulate
from analysis.resampling import Surrogate, at_optimum

TRUE = {"E": 1.7, "A": 30.0, "alpha": 0.32, "B": 90.0, "beta": 0.36}


@pytest.fixture(scope="module")
def fitted():
    design = simulate.grid(np.geomspace(2e4, 4e5, 5), (2e6, 4e6, 8e6), ("en", "sw"), seeds=5)
    table = simulate.study("chinchilla", design, TRUE, trunk=0.002, checkpoint=0.002, seed=3)
    return analysis.fit("chinchilla", table, share=("alpha", "beta"), loss="huber")


@pytest.mark.parametrize("residual", ["log", "additive"])
@pytest.mark.parametrize("delta", [1e-3, None])
def test_a_sum_of_powers_has_the_derivatives_of_any_law(fitted, residual, delta, monkeypatch):
    from dataclasses import replace

    from analysis.drafting import with_residual

    problem = replace(fitted.problem, law=with_residual(fitted.law, residual), delta=delta)
    rng = np.random.default_rng(0)
    theta = fitted.theta + 0.01 * rng.normal(size=(7, problem.size))
    members = problem.members(times=rng.integers(0, 3, (7, len(problem.y))).astype(float))
    used = []
    system = powers.system
    monkeypatch.setattr(powers, "system", lambda *given: used.append(given) or system(*given))
    monkeypatch.setattr(powers, "LEAST", 0)
    fast = problem.system(theta, members)
    assert len(used) == 1
    monkeypatch.setattr(powers, "LEAST", 10**9)
    for mine, plain in zip(fast, problem.system(theta, members), strict=True):
        np.testing.assert_allclose(mine, plain, rtol=1e-9, atol=1e-12 * np.abs(plain).max())
    assert len(used) == 1


def test_the_first_step_of_all_bootstraps_at_once(fitted):
    problem = fitted.problem
    times = resampling.resamples(problem.groups, 20, 1)[:, problem.group]
    members = problem.members(times=times)
    plain = problem.system(np.tile(fitted.theta, (20, 1)), members, False)
    for mine, wanted in zip(at_optimum(problem, fitted.theta, times)[:3], plain[:3], strict=True):
        np.testing.assert_allclose(mine, wanted, rtol=1e-9, atol=1e-12 * np.abs(wanted).max())


def test_the_expansion_is_exact_to_second_order(fitted):
    problem = fitted.problem
    members = problem.members(times=np.ones((3, len(problem.y))))
    off = []
    for step in (1e-2, 5e-3):
        theta = fitted.theta + step * np.random.default_rng(2).normal(size=(3, problem.size))
        f, g = Surrogate(problem, fitted.theta).system(theta, members)[:2]
        exact = problem.system(theta, members)
        off.append(np.abs(f - exact[0]).max())
    assert off[1] < off[0] / 5  # third order: an eighth


def test_bootstraps_of_a_large_sample_are_the_exact_ones(fitted, monkeypatch):
    problem = fitted.problem
    times = resampling.resamples(problem.groups, 60, 1)[:, problem.group]
    exact = resampling.refit(problem, fitted.theta, times)
    monkeypatch.setattr(resampling, "LARGE", 1)
    quick = resampling.refit(problem, fitted.theta, times)
    assert np.abs(quick.theta - exact.theta).max() < 0.1 * exact.theta.std(axis=0).max()
    monkeypatch.setattr(resampling, "EXACT", -1.0)  # nothing is ever close enough: all are polished
    polished = resampling.refit(problem, fitted.theta, times)
    assert (polished.objective <= exact.objective * (1 + 1e-6)).all()


def test_starts_on_a_part_of_the_rows_reach_the_same_optimum(fitted, monkeypatch):
    whole = search.optima(fitted.problem, 0)
    monkeypatch.setattr(search, "ENOUGH", 50)
    assert len(search.sample(fitted.problem)[0].y) < 80
    part = search.optima(fitted.problem, 0)
    np.testing.assert_allclose(part.theta, whole.theta, rtol=1e-5)
    assert part.problem is fitted.problem and part.converged.all()


def test_resamples_count_every_draw():
    times = resampling.resamples(30, 500, 0)
    assert (times.sum(axis=1) == 30).all()
    assert times.mean(axis=0) == pytest.approx(np.ones(30), abs=0.25)
    assert times.var() == pytest.approx(29 / 30, rel=0.1)
