"""Importers: what other people's files say becomes observations; nothing is made up, and errors name the cell."""

import csv

import pyarrow.parquet as pq
import pytest

from mscale.errors import MscaleError
from mscale.observations import COLUMNS
from sweeps.importers import import_csv, import_wandb

ATTRIBUTES = {
    "params": 9_044_352,
    "params_nonembedding": 786_816,
    "mixture": "en",
    "vocabulary": "spm",
    "seed": 0,
    "phase": "end",
    "lr": 0.0,
    "target_unique": 10**9,
    "eval_tokens": 1000,
}


def write(path, header, *rows):
    with open(path, "w", newline="") as file:
        csv.writer(file).writerows([header, *rows])
    return path


def test_plain_csv_with_a_column_map(tmp_path):
    source = write(
        tmp_path / "runs.csv",
        ["name", "iter", "toks", "lang", "val_loss", "seen", "bits_per_byte"],
        ["a", "10", "5120", "en", "3.5", "5120", "1.1"],
        ["a", "20", "10240.0", "en", "3.25", "1.024e4", ""],
    )
    columns = {"run": "name", "step": "iter", "tokens": "toks", "language": "lang", "loss": "val_loss"}
    columns["target_tokens"] = "seen"
    assert import_csv(source, tmp_path / "out.parquet", columns, ATTRIBUTES) == 2
    first, second = pq.read_table(tmp_path / "out.parquet").to_pylist()
    assert list(first) == list(COLUMNS)
    assert first["flops"] == 6 * 9_044_352 * 5120 and first["group"] == "a" and first["bits_per_byte"] == 1.1
    assert second["tokens"] == 10_240 and second["bits_per_byte"] is None and second["loss"] == 3.25


@pytest.mark.parametrize(
    ("columns", "row", "message"),
    [
        ({"loss": "los"}, [], r"has no column 'los' \(for loss\).*did you mean 'loss'"),
        ({"lossy": "loss"}, [], "'lossy' is no column of observations.*did you mean 'loss'"),
        ({}, ["a", "1.5", "en", "3"], "runs.csv:2: step is '1.5', expected an exact integer"),
        ({}, ["a", "1", "en", "nan"], "runs.csv:2: loss is 'nan', expected a finite number"),
        ({}, ["a", "1", "", "3"], "runs.csv:2: language is empty"),
    ],
)
def test_what_is_wrong_is_named(tmp_path, columns, row, message):
    source = write(tmp_path / "runs.csv", ["run", "step", "language", "loss"], row)
    with pytest.raises(MscaleError, match=message):
        import_csv(source, tmp_path / "o.csv", columns, {**ATTRIBUTES, "tokens": 1, "target_tokens": 1})
    assert not (tmp_path / "o.csv").exists()


def test_what_nobody_says_is_listed(tmp_path):
    source = write(tmp_path / "runs.csv", ["run", "step", "language", "loss"], ["a", "1", "en", "3"])
    with pytest.raises(MscaleError, match="nothing says tokens, target_tokens; map a column"):
        import_csv(source, tmp_path / "o.csv", {}, ATTRIBUTES)


def test_a_chart_of_weights_and_biases(tmp_path):
    source = write(
        tmp_path / "wandb.csv",
        ["Step", "big - _step", "big - eval/en/loss", "big - eval/en/loss__MIN", "other - eval/en/loss"],
        ["100", "100", "3.5", "3.5", "9"],
        ["200", "200", "", "", "9"],
        ["300", "300", "3.1", "3.1", ""],
    )
    count = import_wandb(source, tmp_path / "o.parquet", {"big": ATTRIBUTES}, tokens_per_step=512)
    rows = pq.read_table(tmp_path / "o.parquet").to_pylist()
    assert count == 2 and [(row["step"], row["tokens"], row["loss"]) for row in rows] == [
        (100, 51_200, 3.5),
        (300, 153_600, 3.1),
    ]
    assert {row["run"] for row in rows} == {"big"} and rows[0]["target_tokens"] == 51_200
    with pytest.raises(MscaleError, match="no column is 'RUN - METRIC'"):
        import_wandb(source, tmp_path / "o.parquet", {"huge": ATTRIBUTES}, tokens_per_step=512)
    with pytest.raises(MscaleError, match="nothing says .*vocabulary"):
        import_wandb(source, tmp_path / "o.parquet", {"big": {"params": 1}}, tokens_per_step=512)


def test_contradicting_rows_are_refused(tmp_path):
    header = ["run", "step", "language", "loss"]
    constants = {**ATTRIBUTES, "tokens": 1, "target_tokens": 1}
    twice = write(tmp_path / "a.csv", header, ["a", "1", "en", "3"], ["a", "1", "en", "3"])
    assert import_csv(twice, tmp_path / "o.csv", {}, constants) == 1
    other = write(tmp_path / "b.csv", header, ["a", "1", "en", "3"], ["a", "1", "en", "4"])
    with pytest.raises(MscaleError, match="two different rows for a, 1, en, valid"):
        import_csv(other, tmp_path / "o.csv", {}, constants)
