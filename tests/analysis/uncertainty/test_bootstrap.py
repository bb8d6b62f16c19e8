"""Bootstrap multiplicities are multinomial, and whole groups are resampled."""

import numpy as np
import planted_chinchilla
import pytest

import analysis
from analysis.uncertainty import bootstrap


def test_multiplicities_are_multinomial():
    times = bootstrap.resamples(30, 500, 0)
    assert (times.sum(axis=1) == 30).all()
    assert times.mean(axis=0) == pytest.approx(np.ones(30), abs=0.25)
    assert times.var() == pytest.approx(29 / 30, rel=0.1)


def test_bootstrap_resamples_groups_not_rows():
    table = planted_chinchilla.study(8, 3)
    whole = analysis.fit("chinchilla", table, loss="huber")
    rows = analysis.fit("chinchilla", table.drop(columns=["run", "group"]), loss="huber")
    spread = [
        np.std(fit.draws(300), axis=0)[1] for fit in (whole, rows)
    ]  # of A, which the noise of runs moves most
    assert spread[0] > 1.2 * spread[1]
