"""Profile intervals where a parameter meets its bound on the way out."""

import numpy as np
import pytest
from scipy.stats import t as student

import analysis
from analysis.validation import simulate


@pytest.fixture(scope="module")
def table():
    """A third of the loss is E, which is at 0 before the data have had enough of a lower β."""
    truth = {"E": 0.15, "A": 5.0, "alpha": 0.22, "B": 250.0, "beta": 0.48}
    design = simulate.grid(np.geomspace(1.4e4, 3.2e5, 5), (8e4, 16e4, 32e4), seeds=1)
    return simulate.study("chinchilla", design, truth, trunk=0.0, checkpoint=0.012, seed=3)


@pytest.mark.parametrize("name", ["alpha", "beta"])
def test_the_search_goes_on_past_a_bound(table, name):
    found = analysis.fit("chinchilla", table, loss="squares", group="run")
    row = found.interval(0.9).loc[name]
    freedom = len(table) - 5
    for end in (row["low"], row["high"]):
        assert np.isfinite(end)
        held = analysis.fit("chinchilla", table, loss="squares", group="run", fixed={name: end})
        rise = (held.objective - found.objective) / (2 * found.objective / freedom)
        assert np.sqrt(2 * rise) == pytest.approx(student.ppf(0.95, freedom), rel=0.05)
    lowest = analysis.fit("chinchilla", table, loss="squares", group="run", fixed={name: row["low"]})
    assert lowest.params["E"] == pytest.approx(0, abs=1e-3) or name == "alpha"


@pytest.mark.parametrize("name", ["alpha", "A", "B"])
def test_limits_are_where_the_profile_reaches_its_critical_value(table, name):
    """To a hundredth, though few points of the profile are worked out."""
    found = analysis.fit("chinchilla", table, loss="squares", group="run")
    freedom = len(table) - 5
    row = found.interval(0.9).loc[name]
    for end in (row["low"], row["high"]):
        held = analysis.fit("chinchilla", table, loss="squares", group="run", fixed={name: end})
        rise = (held.objective - found.objective) / (2 * found.objective / freedom)
        assert np.sqrt(2 * rise) == pytest.approx(student.ppf(0.95, freedom), rel=0.01)
