"""Power analysis: large effects are detected, a zero effect is not, and the sentence names the design that suffices."""

import pytest

from analysis.validation.power import QUANTITIES, power, power_experiment, power_sentence
from mscale.errors import MscaleError

QUICK = {"studies": 5, "seeds": (2,)}


@pytest.mark.parametrize("quantity", sorted(QUANTITIES))
def test_a_large_effect_is_detected_and_its_interval_covers_it(quantity):
    effect = {"lambda": 0.5, "psi": -0.3, "phi": 0.3}.get(quantity)
    row = power(quantity, effect=effect, trunk=1e-4, checkpoint=1e-4, **QUICK).iloc[0]
    assert row["power"] == 1.0
    assert row["coverage"] >= 0.6
    assert row["not_identified"] == 0


def test_a_zero_effect_is_seldom_detected_and_noise_widens_intervals():
    quiet, loud = (
        power("tau", effect=0.0, trunk=t, checkpoint=t / 3, **QUICK).iloc[0] for t in (0.003, 0.03)
    )
    assert quiet["power"] <= 0.4
    assert loud["median_width"] > 3 * quiet["median_width"]


def test_power_rises_with_the_distance_from_the_null_value():
    noise = {"trunk": 0.002, "checkpoint": 0.001, "studies": 6, "seeds": (3,), "effect": 0.32}
    far, true = (power("alpha", null=null, **noise).iloc[0]["power"] for null in (0.05, 0.32))
    assert far == 1.0 and true <= 0.5


def test_runs_are_counted_and_the_sentence_names_the_sufficient_design():
    table = power("tau", effect=0.3, trunk=1e-4, checkpoint=1e-4, studies=3, seeds=(1, 2))
    assert table["trunks"].tolist() == [10, 20]  # five sizes, alone and 50/50
    assert table["runs"].tolist() == [30, 60]
    assert "30 runs of 10 trunks (1 seeds a cell) tell tau 100%" in power_sentence(table, "tau")
    assert "more seeds" in power_sentence(table.assign(power=0.2), "tau")


def test_unknown_quantities_and_empty_designs_are_refused():
    with pytest.raises(MscaleError, match="did you mean 'tau'|expected one of tau"):
        power("taus")
    with pytest.raises(MscaleError, match="positive counts"):
        power("tau", studies=0)


def test_the_experiment_has_the_effect_as_its_true_value():
    experiment = power_experiment("phi", 0.2, (1e4, 1e5), (1e6,), 1)
    assert experiment.quantity == "phi" and experiment.params["phi"] == 0.2
    assert experiment.design["languages"].str.count(r"\+").max() == 7
