"""Planted studies hold the noise that they were asked to hold."""

import numpy as np
import pytest

from analysis.validation import simulate
from mscale.errors import MscaleError

TRUE = {"E": 1.7, "A": 30.0, "alpha": 0.32, "B": 90.0, "beta": 0.36}
DESIGN = simulate.grid(np.geomspace(2e4, 4e5, 20), (2e6, 4e6, 8e6), seeds=10)


def test_noise_of_trunks_and_checkpoints():
    table = simulate.study("chinchilla", DESIGN, TRUE, trunk=0.01, checkpoint=0.002, seed=1)
    error = np.log(table["loss"] / table["truth"])
    shared = error.groupby(table["group"]).transform("mean")
    assert (error - shared).std() * np.sqrt(3 / 2) == pytest.approx(0.002, rel=0.15)
    assert shared.std() == pytest.approx(0.01, rel=0.2)


def test_the_same_seed_gives_the_same_study():
    first, again = (simulate.study("chinchilla", DESIGN, TRUE, seed=4)["loss"] for _ in range(2))
    np.testing.assert_array_equal(first, again)
    assert not np.array_equal(first, simulate.study("chinchilla", DESIGN, TRUE, seed=5)["loss"])


def test_censoring_and_missing_groups():
    table = simulate.study("chinchilla", DESIGN, TRUE, missing=0.3, censored_above=3.0, seed=2)
    assert table["loss"].max() <= 3.0
    lost = 1 - table["group"].nunique() / DESIGN["group"].nunique()
    assert lost >= 0.2
    sizes = simulate.study("chinchilla", DESIGN, TRUE, missing=0.3, seed=2).groupby("group").size()
    assert (sizes == 3).all()


def test_parameters_must_be_given():
    with pytest.raises(MscaleError, match=r"beta\[en\] \(or beta\) is missing"):
        simulate.study("chinchilla", DESIGN, {k: v for k, v in TRUE.items() if k != "beta"})


def test_power_rises_with_the_effect():
    design = simulate.grid(np.geomspace(2e4, 4e5, 4), (2e6, 8e6), seeds=3)
    how = {"studies": 6, "trunk": 0.002, "checkpoint": 0.001}
    told = simulate.power("chinchilla", design, TRUE, "alpha", null=0.05, **how)
    same = simulate.power("chinchilla", design, TRUE, "alpha", null=0.32, **how)
    assert told["power"] == 1.0 and same["power"] <= 0.5
    with pytest.raises(MscaleError, match="quantity 'gamma'"):
        simulate.power("chinchilla", design, TRUE, "gamma", studies=1)
