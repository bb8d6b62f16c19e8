"""Power analysis: large effects are told, none is not, and the answer says what would be enough."""

import pytest

from analysis.validation.power import MEANING, answer, design, power
from mscale.errors import MscaleError

QUICK = {"studies": 5, "seeds": (2,)}


@pytest.mark.parametrize("quantity", sorted(MEANING))
def test_a_clear_effect_is_told_and_the_interval_holds(quantity):
    effect = {"lambda": 0.5, "psi": -0.3, "phi": 0.3}.get(quantity)
    row = power(quantity, effect=effect, trunk=1e-4, checkpoint=1e-4, **QUICK).iloc[0]
    assert row["power"] == 1.0
    assert row["coverage"] >= 0.6
    assert row["not_identified"] == 0


def test_no_effect_is_seldom_told_and_noise_costs_power():
    quiet, loud = (
        power("tau", effect=0.0, trunk=t, checkpoint=t / 3, **QUICK).iloc[0] for t in (0.003, 0.03)
    )
    assert quiet["power"] <= 0.4
    assert loud["median_width"] > 3 * quiet["median_width"]


def test_runs_are_counted_and_the_answer_is_a_sentence():
    table = power("tau", effect=0.3, trunk=1e-4, checkpoint=1e-4, studies=3, seeds=(1, 2))
    assert table["trunks"].tolist() == [10, 20]  # five sizes, alone and 50/50
    assert table["runs"].tolist() == [30, 60]
    assert "30 runs of 10 trunks (1 seeds a cell) tell tau 100%" in answer(table, "tau")
    assert "more seeds" in answer(table.assign(power=0.2), "tau")


def test_what_it_cannot_ask_is_said():
    with pytest.raises(MscaleError, match="did you mean 'tau'|expected one of tau"):
        power("taus")
    with pytest.raises(MscaleError, match="positive counts"):
        power("tau", studies=0)


def test_designs_plant_the_effect():
    planted = design("phi", 0.2, (1e4, 1e5), (1e6,), 1)
    assert planted["params"]["phi"] == 0.2
    assert planted["design"]["languages"].str.count(r"\+").max() == 7
