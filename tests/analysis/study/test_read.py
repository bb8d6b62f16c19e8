"""A table that is bad in some way has the same outcome in `analysis.fit`, in a study and in its command."""

import numpy as np
import pandas as pd
import pytest

import analysis
from analysis.study.analyse import analyse_tables
from analysis.tables.observations import read_study, validate_observations
from analysis.tables.remarks import Remark
from analysis.validation import planted_study
from mscale.cli import main
from mscale.errors import MscaleError


def fit(table, **how):
    return analysis.fit("chinchilla", table, per=None, **how)


@pytest.fixture(scope="module")
def table():
    observations = planted_study.make_study(small=True)[0]
    return observations[(observations["tag"] == "mono") & (observations["target_tokens"] > 0)]


@pytest.fixture
def fails(tmp_path, capsys):
    def run(table, *arguments):
        table.to_csv(tmp_path / "their.csv", index=False)
        with pytest.raises(SystemExit) as ended:
            main(["fit", str(tmp_path / "their.csv"), *arguments])
        assert ended.value.code == 1
        return " ".join(capsys.readouterr().err.split())

    return run


def test_clashing_rows_raise_and_name_the_first(table, fails):
    row = table[table["phase"] == "end"].iloc[[3]]
    bad = pd.concat([table, row.assign(loss=9.0)], ignore_index=True)
    named = f"2 rows share run, step, language, split .* run={row['run'].iloc[0]}, .*(loss .*, 9.0).* keep one row"
    with pytest.raises(MscaleError, match=named):
        fit(bad)
    with pytest.raises(MscaleError, match=f"observations: {named}"):
        analyse_tables(bad)
    for arguments in ((), ("--law", "chinchilla")):
        message = fails(bad, *arguments)
        assert "their.csv: 2 rows share run, step, language, split" in message and "9.0" in message


def test_exact_duplicates_are_dropped_with_a_note(table):
    again = pd.concat([table, table[table["phase"] == "end"].head(2)], ignore_index=True)
    fitted, alone = fit(again), fit(table)
    frame, notes, _ = validate_observations(again)
    assert "2 duplicate rows dropped" in fitted.notes and Remark("duplicates", rows=2) in notes
    assert len(frame) == len(table) and fitted.params.equals(alone.params)


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_losses_that_are_not_finite_are_left_out_and_counted(table, value):
    broken = table.copy()
    broken.loc[broken.index[broken["phase"] == "end"][:3], "loss"] = value
    assert "rows of 3 run(s) left out (3): the loss is not finite" in fit(broken).notes
    frame, _, excluded = validate_observations(broken)
    assert len(frame) == len(table) - 3 and excluded == [Remark("not_finite", rows=3, numbers=(3,))]
    for refuse in (fit, analyse_tables):
        with pytest.raises(MscaleError, match="column 'loss': no loss is finite"):
            refuse(table.assign(loss=value))


def test_two_splits_raise_until_one_is_chosen(table, fails):
    both = pd.concat([table, table.assign(split="flores", loss=table["loss"] + 1)], ignore_index=True)
    named = "column 'split' holds flores, valid: losses on different texts are not comparable. Choose one, such as "
    for refuse in (fit, analyse_tables):
        with pytest.raises(MscaleError, match=f"{named}split='valid'"):
            refuse(both)
    for arguments in ((), ("--law", "chinchilla")):
        assert f"{named}--split valid" in fails(both, *arguments)
    with pytest.raises(MscaleError, match="no split 'test' in the table; found flores, valid"):
        fit(both, split="test")
    chosen, alone = fit(both, split="valid"), fit(table)
    assert chosen.params.equals(alone.params)


def test_text_where_a_number_belongs(table):
    bad = table.assign(params=table["params"].astype(object).where(table.index != table.index[0], "many"))
    for refuse in (lambda bad: fit(bad, phases=None), analyse_tables):
        with pytest.raises(MscaleError, match="column 'params', row 0: found 'many', expected a number"):
            refuse(bad)


def test_one_law_is_fitted_to_a_folder_of_csv_files(tmp_path, capsys):
    observations, exposure, _ = planted_study.make_study(small=True)
    observations.to_csv(tmp_path / "observations.csv", index=False)
    exposure.to_csv(tmp_path / "exposure.csv", index=False)
    with pytest.raises(SystemExit) as ended:
        main(["fit", str(tmp_path), "--law", "chinchilla", "--target", "aka"])
    assert ended.value.code in (None, 0), capsys.readouterr().err
    assert (tmp_path / "chinchilla.json").exists()


def test_several_folders_are_one_study(table, tmp_path, capsys):
    """Half of the runs each, and some in both: the fit is that of all of them, each counted once."""
    runs = sorted(table["run"].unique())
    folders = [tmp_path / "first study", tmp_path / "zweite Größe"]
    one_curve = table.drop(columns="language").drop_duplicates(["run", "step", "split"])
    for folder, part in zip(folders, (runs[: len(runs) // 2 + 3], runs[len(runs) // 2 :]), strict=True):
        folder.mkdir()
        table[table["run"].isin(part)].to_csv(folder / "observations.csv", index=False)
        one_curve[one_curve["run"].isin(part)].to_csv(folder / "curve.csv", index=False)
    study = read_study(*folders)
    assert len(study.observations) == len(table) and set(study.observations["run"]) == set(runs)

    def fitted(out, *tables):
        with pytest.raises(SystemExit) as ended:
            main(["fit", *map(str, tables), "--law", "chinchilla", "--out", str(tmp_path / out)])
        assert ended.value.code == 0
        return analysis.from_json((tmp_path / out).read_text()), capsys.readouterr().out

    one_curve.to_csv(tmp_path / "whole.csv", index=False)
    parts, said = fitted("both.json", *(folder / "curve.csv" for folder in folders))
    whole, _ = fitted("whole.json", tmp_path / "whole.csv")
    assert "duplicate rows dropped" in said and len(parts.problem.y) == len(whole.problem.y)
    np.testing.assert_allclose(parts.params, whole.params, rtol=1e-6)

    changed = table[table["run"].isin(runs[:2])].assign(loss=5.0)
    changed.to_csv(folders[1] / "observations.csv", index=False)
    with pytest.raises(MscaleError, match="first study and .*zweite Größe: .* rows share run, .* but differ"):
        read_study(*folders)
