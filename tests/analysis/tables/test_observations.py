"""Observations tables are checked, completed with notes, and refused with the reason."""

import numpy as np
import pytest

from analysis.tables import mixtures
from analysis.tables import observations as observations_
from analysis.tables.remarks import remark_text
from analysis.validation import planted_study
from mscale.errors import MscaleError
from mscale.observations import COLUMNS


@pytest.fixture(scope="module")
def observations():
    return planted_study.make_study(small=True)[0]


def test_a_minimal_table_is_completed_with_notes(observations):
    mono = observations[
        (observations["tag"] == "mono") & (observations["language"] == observations["languages"])
    ]
    minimal = mono[list(observations_.REQUIRED)]
    frame, notes, excluded = observations_.validate_observations(minimal)
    assert list(frame.columns) == list(COLUMNS)
    assert {note.code for note in notes} >= {"halves", "filled_columns"}
    assert (frame["target_tokens"] == frame["tokens"]).all() and not excluded


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda f: f.drop(columns="loss"), "column 'loss' is missing"),
        (lambda f: f.drop(columns="target_tokens"), "column 'target_tokens' is missing"),
        (lambda f: f.assign(phase="cooled"), "column 'phase', row 0: found 'cooled', expected one of"),
        (lambda f: f.assign(params=-1), "column 'params'"),
        (lambda f: f.assign(tokens="many"), "found 'many', expected a number"),
        (lambda f: f.head(0), "no rows"),
        (lambda f: f.assign(loss=-f["loss"]), "'loss', row .* found -.*nats per token, never negative"),
        (
            lambda f: f.assign(target_tokens=2 * f["tokens"] + 1),
            "'target_tokens', row .*to the row's tokens",
        ),
        (lambda f: f.assign(tokens=f["tokens"].max() - f["tokens"], target_tokens=0), "tokens must not fall"),
        (lambda f: f.assign(tokens=np.nan), "column 'tokens', row 0: found nan, expected a positive number"),
    ],
)
def test_broken_tables_are_refused_naming_the_column(observations, change, message):
    with pytest.raises(MscaleError, match=message):
        observations_.validate_observations(change(observations), "their.csv")


def test_pairs_without_shares_are_halves_and_other_units_are_noted(observations):
    alone = observations[observations["tag"].isin(["mono", "pairs"])].drop(columns=["target_tokens", "scale"])
    frame, notes, _ = observations_.validate_observations(alone)
    pairs = frame[frame["tag"] == "pairs"]
    inside = [
        one in names.split("+") for one, names in zip(pairs["language"], pairs["languages"], strict=True)
    ]
    assert (pairs["target_tokens"] == np.where(inside, pairs["tokens"] / 2, 0)).all()
    assert set(mixtures.describe_mixtures(frame)["kind"]) == {"mono", "bilingual"}
    assert any(note.code == "halves" for note in notes)
    assert set(frame["scale"]) == {"16k", "72k", "330k"}
    billions = observations.assign(tokens=observations["tokens"] / 1e6, target_tokens=0)
    assert any(note.code == "few_tokens" for note in observations_.validate_observations(billions)[1])


def test_runs_are_described(observations):
    runs = mixtures.describe_mixtures(observations_.validate_observations(observations)[0]).set_index("run")
    trunks = runs[runs["tag"] == "repeat"]
    assert (
        set(trunks["repeats"].round()) <= {4, 16} and (runs.loc[runs["tag"] == "mono", "repeats"] < 1).all()
    )
    assert set(runs.loc[runs["tag"] == "pairs", "kind"]) == {"bilingual"}
    assert set(runs.loc[runs["tag"] == "unimax", "kind"]) == {"uniform"}
    uneven = observations[observations["tag"] == "pairs"].copy()
    uneven.loc[uneven["language"] == "aka", "target_tokens"] //= 2
    assert "mixed" in set(mixtures.describe_mixtures(observations_.validate_observations(uneven)[0])["kind"])


def test_study_folder_round_trip(observations, tmp_path):
    with pytest.raises(MscaleError, match="no observations"):
        observations_.read_study(tmp_path)
    observations.to_csv(tmp_path / "observations.csv", index=False)
    study = observations_.read_study(tmp_path)
    assert len(study.observations) == len(observations) and study.truth is None
    assert any("no exposure" in remark_text(note) for note in study.notes)
    np.testing.assert_allclose(study.observations["loss"], observations["loss"])
    observations.assign(phase="hot").to_csv(tmp_path / "observations.csv", index=False)
    with pytest.raises(MscaleError, match="observations.csv: column 'phase', row 1: found 'hot'"):
        observations_.read_study(tmp_path)
    with pytest.raises(MscaleError, match="no such table"):
        observations_.read_study(tmp_path / "other.csv")


def test_the_language_code_nan_is_kept(tmp_path):
    (tmp_path / "o.csv").write_text(
        "run,scale,params,languages,tokens,phase,language,loss\nr,1,10,nan,5,end,nan,2.0\n", encoding="utf-8"
    )
    assert observations_.read_study(tmp_path / "o.csv").observations["language"].tolist() == ["nan"]


def test_exposure_is_derived_from_observations_on_all_languages_of_the_mixture(tmp_path):
    observations, exposure, _ = planted_study.make_study(small=True)
    observations.to_csv(tmp_path / "observations.csv", index=False)
    study = observations_.read_study(tmp_path)
    key = ["run", "step", "language"]
    read, given = (table.set_index(key)["tokens"].sort_index() for table in (study.exposure, exposure))
    assert read.index.equals(given.index) and (abs(read - given) <= 1).all()
    assert any(note.code == "exposure_from_observations" for note in study.notes)
    unseen = observations[observations["language"] != "aka"]
    unseen.to_csv(tmp_path / "observations.csv", index=False)
    assert observations_.read_study(tmp_path).exposure.empty


def test_nullable_columns_of_pandas_are_read_like_others(observations):
    """A table made in a notebook may have `pd.NA`, and integers as Int64."""
    table = observations.head(200)
    plain, _, _ = observations_.validate_observations(table)
    nullable, _, _ = observations_.validate_observations(table.convert_dtypes())
    for name in COLUMNS:
        assert nullable[name].tolist() == plain[name].tolist(), name
        assert not (plain[name].dtype.kind in "if" and nullable[name].dtype.kind not in "if"), name
    gone = table.assign(language=table["language"].astype("string").mask(table.index == table.index[0]))
    assert (
        observations_.validate_observations(gone)[0]["language"].iloc[0] == "nan"
    )  # Min Nan, as pandas reads its code
