"""Splits hold out the rows that they name, and the law that generated the data has the highest held-out R²."""

import numpy as np
import pandas as pd
import pytest

from analysis.validation import compare, simulate, splits
from mscale.errors import MscaleError

TRUE = {"E": 1.7, "A": 30.0, "alpha": 0.32, "B": 90.0, "beta": 0.36}
SIZES = np.geomspace(2e4, 4e5, 5)


@pytest.fixture(scope="module")
def table():
    design = simulate.monolingual_design(SIZES, (2e6, 4e6, 8e6), ("en", "sw"), seeds=2)
    return simulate.draw_observations(
        "chinchilla", design, {**TRUE, "E[sw]": 2.2}, trunk=0.002, checkpoint=0.001
    )


def test_random_split_keeps_groups_whole(table):
    masks = list(splits.folds(table, "R2", seed=3).values())
    for test in masks:
        assert not set(table["group"][test]) & set(table["group"][~test])
        assert test.mean() == pytest.approx(0.2)
    assert len(masks) == 5 and (np.sum(masks, axis=0) == 1).all()  # every run is in one test fold


def test_extrapolating_splits(table):
    (scales,) = splits.folds(table, "R2_N").values()
    assert set(table["params"][scales]) == {SIZES[-1]}
    (tokens,) = splits.folds(table, "R2_D").values()
    assert set(table["tokens"][tokens]) == {8e6}
    (compute,) = splits.folds(table, "R2_C").values()
    cost = table["params"] * table["tokens"]
    assert cost[compute].min() >= cost[~compute].max()


def test_mixtures_split():
    table = pd.DataFrame(
        {
            "languages": ["en", "en+fr", "de+en+fr", "de+en+fr"],
            "mixture": ["en", "en+fr", "uniform", "unimax"],
        }
    )
    (test,) = splits.folds(table, "R2_M").values()
    assert test.tolist() == [False, False, True, False]
    with pytest.raises(MscaleError, match="three or more"):
        splits.folds(table.head(2), "R2_M")


def test_leave_one_out_covers_every_row_once(table):
    for split, count in (("leave_one_scale_out", 5), ("leave_one_language_out", 2)):
        masks = splits.folds(table, split)
        assert len(masks) == count
        assert (sum(mask.astype(int) for mask in masks.values()) == 1).all()
    with pytest.raises(MscaleError, match="only one language"):
        splits.folds(table[table["language"] == "en"], "leave_one_language_out")
    with pytest.raises(MscaleError, match="no split 'R3'"):
        splits.folds(table, "R3")


def test_the_law_that_generated_the_data_has_the_higher_r2(table):
    contenders = {
        "power": {"law": "power", "columns": {"x": "tokens"}},
        "chinchilla": {"law": "chinchilla", "share": ("alpha", "beta")},
    }
    found = compare.judge(contenders, table, ("R2", "leave_one_scale_out", "leave_one_language_out"))
    chinchilla = found[found["law"] == "chinchilla"].set_index("split")
    assert (chinchilla["r2"] > 0.99).all()
    assert (chinchilla["low"] <= chinchilla["r2"]).all() and (
        chinchilla["r2"] <= chinchilla["high"] + 1e-12
    ).all()
    assert chinchilla.loc["leave_one_scale_out", "difference_low"] > 0
    assert chinchilla.loc["leave_one_scale_out", "tested"] == len(table)
    assert 0 < chinchilla.loc["leave_one_scale_out", "out_of_range"] < 1


def test_r2_is_pooled_and_within():
    frame = pd.DataFrame(
        {"observed": [1.0, 2.0, 11.0, 12.0], "predicted": [1.5, 1.5, 11.5, 11.5], "level": list("aabb")}
    )
    assert compare.r2(frame) == pytest.approx(1 - 1 / 101)
    assert compare.r2(frame, within=True) == pytest.approx(0.0)


def test_phases_are_not_mixed(table):
    contenders = {"a": {"law": "chinchilla"}, "b": {"law": "chinchilla", "phases": ("stable",)}}
    with pytest.raises(MscaleError, match="phases differ between the laws.*b: .'stable'"):
        compare.judge(contenders, table, ("R2",))
    (refused,) = compare.judge({"a": contenders["a"]}, table.assign(phase="stable"), ("R2",))["reason"]
    assert "not comparable" in refused


def test_intervals_are_of_the_r2_that_is_reported(table):
    contenders = {
        "chinchilla": {"law": "chinchilla", "share": ("alpha", "beta")},
        "power": {"law": "power", "columns": {"x": "tokens"}},
    }
    for within in (False, True):
        found = compare.judge(contenders, table, ("R2",), within=within).set_index("law")
        assert (found["low"] <= found["r2"]).all() and (found["r2"] <= found["high"]).all()
        gap = found.loc["power", "r2"] - found.loc["chinchilla", "r2"]
        assert found.loc["power", "difference"] == pytest.approx(gap)
        assert found.loc["power", "difference_low"] <= gap <= found.loc["power", "difference_high"]
