"""Starts on a part of the rows reach the optimum of all; bootstrap counts are multinomial."""

import numpy as np
import pytest

import analysis
from analysis.estimation import multistart
from analysis.uncertainty import bootstrap
from analysis.validation import simulate

TRUE = {"E": 1.7, "A": 30.0, "alpha": 0.32, "B": 90.0, "beta": 0.36}


@pytest.fixture(scope="module")
def fitted():
    design = simulate.grid(np.geomspace(2e4, 4e5, 5), (2e6, 4e6, 8e6), ("en", "sw"), seeds=5)
    table = simulate.study("chinchilla", design, TRUE, trunk=0.002, checkpoint=0.002, seed=3)
    return analysis.fit("chinchilla", table, share=("alpha", "beta"), loss="huber")


def test_starts_on_a_part_of_the_rows_reach_the_same_optimum(fitted, monkeypatch):
    whole = multistart.optima(fitted.problem, 0)
    monkeypatch.setattr(multistart, "SUBSAMPLE_ROWS", 50)
    assert len(multistart.subsample(fitted.problem)[0].y) < 80
    part = multistart.optima(fitted.problem, 0)
    np.testing.assert_allclose(part.theta, whole.theta, rtol=1e-5)
    assert part.problem is fitted.problem and part.converged.all()


def test_resamples_count_every_draw():
    times = bootstrap.resamples(30, 500, 0)
    assert (times.sum(axis=1) == 30).all()
    assert times.mean(axis=0) == pytest.approx(np.ones(30), abs=0.25)
    assert times.var() == pytest.approx(29 / 30, rel=0.1)
