"""The planner of analysis (`analysis.planner`); `tests/test_planner.py` is that of sweeps."""

import itertools

import numpy as np
import pytest

from analysis import planner
from mscale.errors import MscaleError


def laws(seed=0, count=3):
    rng = np.random.default_rng(seed)
    names = tuple("abcde"[:count])
    tau = rng.uniform(-0.05, 0.6, (count, count))
    np.fill_diagonal(tau, 1)
    return planner.Laws(
        names, names, rng.uniform(0.8, 1.2, count), rng.uniform(10, 20, count), rng.uniform(15, 40, count),
        0.35, 0.3, tau,
    )  # fmt: skip


def brute_force(found, flops, weights, worst, steps=24):
    best = np.inf
    for cut in itertools.product(range(steps + 1), repeat=len(found.sources) - 1):
        if sum(cut) > steps:
            continue
        rates = np.array([*cut, steps - sum(cut)]) / steps
        for n in np.geomspace(np.sqrt(flops / 6 / 20) / 30, np.sqrt(flops / 6 / 20) * 30, 60):
            losses = found.loss(rates, n, flops / 6 / n)
            if np.isfinite(losses).all():
                best = min(best, losses.max() if worst else weights @ losses / weights.sum())
    return best


@pytest.mark.parametrize(("seed", "worst"), [(0, False), (1, False), (2, True)])
def test_the_mixture_is_no_worse_than_brute_force_and_near_it(seed, worst):
    found, flops, weights = laws(seed), 1e14, np.array([3.0, 1.0, 1.0])
    rates, params, value = planner.best_mixture(found, flops, weights, worst=worst)
    assert rates.sum() == pytest.approx(1) and (rates >= 0).all()
    exact = found.loss(rates, params, flops / 6 / params)
    assert value == pytest.approx(exact.max() if worst else weights @ exact / weights.sum(), abs=5e-3)
    grid = brute_force(found, flops, weights, worst)
    assert value <= grid + (3e-3 if worst else 1e-6) and value >= grid - 0.02


def test_the_mixture_beats_uniform_on_planted_laws():
    for seed in range(3):
        found, flops, weights = laws(seed, 4), 1e14, np.array([4.0, 1.0, 1.0, 0.0])
        _, params, value = planner.best_mixture(found, flops, weights)
        uniform = found.loss(np.full(4, 0.25), params, flops / 6 / params)
        assert value < weights @ uniform / weights.sum()


def test_published_answers():
    answer = planner.languages("es")
    assert answer.rows[0]["source"] == "pt" and answer.rows[0]["tau"] == pytest.approx(0.5 / 1.5)
    assert "interval not published" in answer.basis
    grown = planner.expand(8, 16, 2e9, 4e11)
    assert grown.rows[0]["times_parameters"] == pytest.approx(1.18, abs=0.01)
    assert grown.rows[0]["tokens"] == pytest.approx(1.66 * 4e11, rel=0.01)
    assert "from scratch" in planner.start("en", 2e9, 4e11).text
    assert "from the checkpoint" in planner.start("en", 2e9, 5e10).text
    assert "too close" in planner.start("zh", 2e9, 2.5e11).text
    assert planner.start("en", 2e9, 1e11).rows[0]["crossover_tokens"] == pytest.approx(144e9)


def test_refusals_say_what_is_missing():
    with pytest.raises(MscaleError, match="no transfer score for 'qqq'"):
        planner.languages("qqq")
    with pytest.raises(MscaleError, match="tenfold outside"):
        planner.expand(8, 16, 1e13, 4e11)
    with pytest.raises(MscaleError, match="tenfold outside"):
        planner.start("en", 1e5, 1e6)
    unfitted = {"laws": {"atlas": {"fitted": False, "reason": "no exposure"}}}
    with pytest.raises(MscaleError, match="not fitted"):
        planner.mixture(["a"], 1e14, unfitted)


def test_a_study_comes_before_the_paper():
    row = {
        "scale": "s",
        "target": "es",
        "source": "xx",
        "status": "measured",
        "score": 0.2,
        "low": 0.1,
        "high": 0.3,
    }
    results = {"transfer": {"scale": "s", "matrix": [{**row, "tau": 0.111}]}}
    answer = planner.languages("es", results)
    assert answer.rows[0]["source"] == "xx" and answer.basis == planner.STUDY
    assert any(other["basis"] == planner.PUBLISHED for other in answer.rows)
