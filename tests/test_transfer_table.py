"""The matrix as a table, from the CSV of an outsider through the command line."""

import numpy as np
import one_billion
import pandas as pd
import planted_study
import pytest

from analysis.tables import validate_observations
from analysis.transfer_table import COLUMNS, cell, transfer_table
from mscale.cli import main
from mscale.errors import MscaleError


@pytest.fixture(scope="module")
def planted():
    observations, _, _ = planted_study.study(seed=3, small=True)
    return validate_observations(observations)[0]


def test_every_pair_in_every_unit_measured_apart_from_bounds_and_predictions(planted):
    table, about = transfer_table(planted, d=1.5e6, premiums=dict.fromkeys(planted_study.LANGUAGES, 1.0))
    assert list(table.columns) == COLUMNS and about["scale"] == "nano2"
    assert set(table["unit"]) == {"tokens", "bytes", "content"} and not about["units_missing"]
    pairs = len(planted_study.LANGUAGES) * (len(planted_study.LANGUAGES) - 1)
    tokens = table[(table["unit"] == "tokens") & (table["scale"] == "nano2")]
    assert len(tokens) == pairs and (tokens["d"] == 1.5e6).all() and (tokens["level"] == 0.9).all()
    measured = tokens[tokens["status"] == "measured"]
    assert measured["score"].notna().all() and (measured["low"] < measured["high"]).any()
    # Pairs that were not run are predicted or missing, never measured, and keep the reason.
    rest = tokens[~tokens["status"].isin(["measured", "bound"])]
    assert len(rest) and rest["reason"].str.contains("no 50/50 run").all()
    assert (table["censored"] == (table["status"] == "bound")).all()
    assert not (table[table["unit"] != "tokens"]["status"] == "predicted").any()


def test_what_cannot_be_asked_is_refused(planted):
    for how, message in (
        ({"scale": "nano9"}, "no 50/50 run at scale 'nano9'; found"),
        ({"d": -1.0}, "expected a positive number of tokens"),
        ({"d": float("nan")}, "expected a positive number of tokens"),
    ):
        with pytest.raises(MscaleError, match=message):
            transfer_table(planted, **how)
    with pytest.raises(MscaleError, match="a score needs one, and each language alone"):
        transfer_table(planted[planted["tag"] == "mono"])


def test_cells_say_what_they_are():
    row = {"status": "measured", "bound": "", "score": 0.214, "low": 0.1, "high": 0.3}
    assert cell(row) == "+0.21*" and cell({**row, "low": -0.1}) == "+0.21"
    assert cell({**row, "low": float("nan")}) == "+0.21"
    assert cell({**row, "status": "bound", "bound": "at most", "score": -0.5}) == "≤−0.50"
    assert cell({**row, "status": "predicted"}) == "(+0.21)" and cell({**row, "status": "missing"}) == "·"


def run(*arguments):
    with pytest.raises(SystemExit) as stop:
        main([str(one) for one in arguments])
    return stop.value.code


def test_from_a_csv_with_a_column_a_language_to_the_matrix(tmp_path, capsys):
    """The road of docs/transfer.md."""
    table, tau = one_billion.curves(7, checkpoint=0.003, run=0.001)
    table = table[table["languages"].isin(["en", "es", "en+es", "en+zh"])]
    wide = table.pivot_table(index=["run", "languages", "tokens"], columns="language", values="loss")
    wide.columns = [f"loss_{language}" for language in wide.columns]
    wide = wide.reset_index().rename(columns={"languages": "mix"})
    wide.assign(billions=wide.pop("tokens") / 1e9).to_csv(tmp_path / "curves.csv", index=False)
    columns = ("--column", "mixture=mix", "--column", "tokens=billions*1e9", "--wide", "loss_{language}")
    constants = ("--constant", "params=1.0124B", "--constant", "phase=stable")
    study = tmp_path / "observations.parquet"
    assert run("sweep", "import", tmp_path / "curves.csv", study, *columns, *constants) == 0
    assert "half and half: en+es, en+zh" in capsys.readouterr().out
    assert run("transfer", study, "--d", "2e10") == 0
    shown = capsys.readouterr().out
    assert "at 1.01B parameters, d = 20B tokens" in shown and "2 repeated runs" in shown
    assert "missing, 2: no monolingual run of zh in the stable phase" in shown
    cells = pd.read_csv(tmp_path / "transfer.csv").set_index(["target", "source"])
    row = cells.loc[("en", "es")]
    assert row["status"] == "measured" and row["low"] <= one_billion.score(tau["en", "es"]) <= row["high"]
    assert cells.loc[("zh", "en"), "status"] == "missing" and np.isnan(cells.loc[("zh", "en"), "score"])
    assert run("transfer", tmp_path / "none.csv") == 1
    assert "no such table" in capsys.readouterr().err
