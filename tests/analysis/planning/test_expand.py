import made_results
import numpy as np
import pytest

import analysis
from analysis.laws import capacity
from analysis.planning import expand
from analysis.planning.expand import least_compute
from analysis.validation import simulate
from mscale.errors import MscaleError

TRUTH = {"phi": 0.11, "psi": -0.04, "alpha": 0.45, "beta": 0.35, "E": 1.0, "A": 60.0, "B": 90.0}
LANGUAGES = ("a", "b", "c", "d", "e", "f", "g", "h")


@pytest.fixture(scope="module")
def results():
    sizes = np.geomspace(2e4, 5e5, 4)
    cells = [(LANGUAGES[:k], sizes, (1e6 * k, 2e6 * k, 4e6 * k)) for k in (1, 2, 4, 8)]
    rows, _ = simulate.multilingual_design(cells, seeds=2)
    found = analysis.fit(
        "capacity",
        simulate.draw_observations("capacity", rows, TRUTH, trunk=0.001, checkpoint=0.0005, seed=3),
    )
    parameters = [
        {"name": name, "estimate": value, "low": value, "high": value} for name, value in found.params.items()
    ]
    exponent = found.interval_of(lambda p: 1.0 + p.phi / p.alpha + p.psi / p.beta).iloc[0].to_dict()
    return made_results.results(
        laws={"capacity": {"fitted": True, "parameters": parameters}},
        fits={"capacity": found.to_json()},
        capacity={
            "identified": True,
            "exponents": {"C": exponent},
            "points": [{"K": k} for k in (1, 2, 4, 8)],
        },
        study={"scales": [{"scale": f"{n:.3g}", "params": n} for n in sizes]},
    )


def true_loss(k, n, d):
    p = TRUTH
    return p["E"] + p["A"] * k ** p["phi"] / n ** p["alpha"] + p["B"] * k ** p["psi"] / (d / k) ** p["beta"]


@pytest.mark.parametrize(("params", "tokens"), [(2e5, 4e6), (4e4, 3e7), (5e5, 2e6)])
def test_the_cheapest_point_keeps_the_loss_and_costs_least(results, params, tokens):
    row = least_compute(results, 2, 4, params, tokens)
    before, after = true_loss(2, params, tokens), true_loss(8, row["parameters"], row["tokens"])
    assert after == pytest.approx(before, rel=0.01)
    # Against a search over N with D solved for on the planted law.
    best = np.inf
    for n in np.geomspace(params / 20, params * 50, 4000):
        left = before - TRUTH["E"] - TRUTH["A"] * 8 ** TRUTH["phi"] / n ** TRUTH["alpha"]
        if left > 0:
            d = 8 * (TRUTH["B"] * 8 ** TRUTH["psi"] / left) ** (1 / TRUTH["beta"])
            best = min(best, 6 * n * d)
    # The three starts share one fit, so its intervals may miss together: twice their width, and within a tenth.
    assert row["flops"] == pytest.approx(best, rel=0.1)
    low, high = np.log(row["times_flops_low"]), np.log(row["times_flops_high"])
    off = np.log(best / (6 * params * tokens)) - (low + high) / 2
    assert abs(off) < high - low < 0.5
    same = capacity.growth(4, *(TRUTH[name] for name in ("phi", "psi", "alpha", "beta")))
    assert row["times_flops"] < same.C * 1.02


def test_the_answer_says_both_and_how_the_start_is_off(results):
    answer = expand.expand(2, 8, 4e4, 3e7, results)
    assert len(answer.rows) == 2 and "Least compute" in answer.text
    assert any("too small for its tokens" in reason for reason in answer.reasons)
    low, high = answer.rows[0]["times_flops_low"], answer.rows[0]["times_flops_high"]
    exact = 4 ** (1 + TRUTH["phi"] / TRUTH["alpha"] + TRUTH["psi"] / TRUTH["beta"])
    assert low <= exact <= high < 1.5 * low
    assert not any("outside" in reason for reason in answer.reasons)


def test_far_from_the_data_is_flagged_and_very_far_refused(results):
    near = expand.expand(2, 8, 2e6, 3e7, results)
    assert any("outside the study" in reason and "far" not in reason for reason in near.reasons)
    far = expand.expand(2, 64, 8e6, 3e7, results)
    assert any("far outside" in reason for reason in far.reasons)
    assert any("outside the mixtures" in reason for reason in far.reasons)
    with pytest.raises(MscaleError, match="hundredfold outside"):
        expand.expand(2, 8, 1e9, 3e7, results)
