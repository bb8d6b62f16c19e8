"""Simulated observations have the noise that was asked for."""

import numpy as np
import pytest

from analysis.validation import simulate
from mscale.errors import MscaleError

TRUE = {"E": 1.7, "A": 30.0, "alpha": 0.32, "B": 90.0, "beta": 0.36}
DESIGN = simulate.monolingual_design(np.geomspace(2e4, 4e5, 20), (2e6, 4e6, 8e6), seeds=10)


def test_noise_of_trunks_and_checkpoints():
    table = simulate.draw_observations("chinchilla", DESIGN, TRUE, trunk=0.01, checkpoint=0.002, seed=1)
    error = np.log(table["loss"] / table["truth"])
    shared = error.groupby(table["group"]).transform("mean")
    assert (error - shared).std() * np.sqrt(3 / 2) == pytest.approx(0.002, rel=0.15)
    assert shared.std() == pytest.approx(0.01, rel=0.2)


def test_the_same_seed_gives_the_same_study():
    first, again = (simulate.draw_observations("chinchilla", DESIGN, TRUE, seed=4)["loss"] for _ in range(2))
    np.testing.assert_array_equal(first, again)
    assert not np.array_equal(first, simulate.draw_observations("chinchilla", DESIGN, TRUE, seed=5)["loss"])


def test_parameters_must_be_given():
    with pytest.raises(MscaleError, match=r"beta\[en\] \(or beta\) is missing"):
        simulate.draw_observations("chinchilla", DESIGN, {k: v for k, v in TRUE.items() if k != "beta"})
