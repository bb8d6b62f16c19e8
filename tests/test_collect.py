"""Collecting: a done run's rows are checked against its spec; what is missing is listed, never made up."""

import csv
import json

import pyarrow.parquet as pq
import pytest
from test_local import FAKE, _path, small  # noqa: F401

from mscale.observations import COLUMNS, EXPOSURE_COLUMNS, read_jsonl
from sweeps import local, spec, state
from sweeps.collect import collect


@pytest.fixture
def root(tmp_path):
    local.run(small(), tmp_path, workers=2, trainer=FAKE)
    return tmp_path


def runs(root, kind="branch"):
    return [run for run in state.load_study(root).runs if run.kind == kind]


def edit(path, change):
    rows = read_jsonl(path)
    path.write_text("".join(json.dumps(change(row)) + "\n" for row in rows))


def test_tables_hold_the_contract(root):
    found = collect(root)
    table = pq.read_table(root / "observations.parquet")
    assert table.column_names == list(COLUMNS) and table.num_rows == found.rows > 0
    assert pq.read_table(root / "exposure.parquet").column_names == list(EXPOSURE_COLUMNS)
    with open(root / "observations.csv") as file:
        assert [row["run"] for row in csv.DictReader(file)] == table["run"].to_pylist()
    keys = list(zip(*(table[name].to_pylist() for name in ("run", "step", "language")), strict=True))
    assert keys == sorted(set(keys)) and not found.missing and not found.cells


def test_collecting_again_gives_the_same_bytes(root):
    names = ("observations.parquet", "observations.csv", "exposure.parquet", "exposure.csv")
    collect(root)
    before = [(root / name).read_bytes() for name in names]
    collect(root)
    assert [(root / name).read_bytes() for name in names] == before


def test_rows_written_twice_count_once(root):
    before = collect(root)
    for run in runs(root):
        path = spec.workdir(root, run.id) / "observations.jsonl"
        path.write_text(path.read_text() * 2 + '{"run": "torn')
    assert collect(root) == before


def test_unfinished_and_failed_runs_are_listed(root):
    first, second, *_ = runs(root)
    (spec.workdir(root, first.id) / "status.json").unlink()
    (spec.workdir(root, second.id) / "status.json").unlink()
    (spec.workdir(root, second.id) / "failure.json").write_text('{"reason": "out of luck", "log": []}')
    found = collect(root)
    assert found.missing == {first.id: "waiting", second.id: "failed: out of luck"}
    assert len(found.cells) == 2 and "640 tokens, seed 0 (waiting)" in found.cells[0]
    assert json.loads((root / "missing.json").read_text())["runs"] == found.missing
    table = pq.read_table(root / "observations.parquet")
    assert not {first.id, second.id} & set(table["run"].to_pylist())


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"tokens": 1}, "the schedule gives"),
        ({"tag": "other"}, "tag is 'other', but the run's spec says"),
        ({"params": 7}, "params is 7"),
        ({"phase": "stable"}, "no row at the end"),
        ({"loss": float("1e400")}, "expected a finite number"),
        ({"target_tokens": 10**9}, "out of"),
        ({"run": "another"}, "run is 'another'"),
    ],
)
def test_rows_that_break_the_contract_make_a_run_unusable(root, change, reason):
    run = runs(root)[0]
    edit(spec.workdir(root, run.id) / "observations.jsonl", lambda row: {**row, **change})
    found = collect(root)
    assert list(found.missing) == [run.id]
    assert found.missing[run.id].startswith("unusable") and reason in found.missing[run.id]


def test_exposure_must_add_up(root):
    run = runs(root)[0]
    edit(spec.workdir(root, run.id) / "exposure.jsonl", lambda row: {**row, "tokens": row["tokens"] + 1})
    assert "the schedule gives" in collect(root).missing[run.id]
