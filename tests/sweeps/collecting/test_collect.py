"""Collecting: the rows of a done run are checked against its spec, and missing runs are listed."""

import csv
import json

import pyarrow.parquet as pq
import pytest
from local_runs import FAKE_TRAINER, fake_trainer_on_path, small_study  # noqa: F401

from mscale.observations import COLUMNS, EXPOSURE_COLUMNS, read_jsonl
from sweeps import spec
from sweeps.collecting.collect import collect
from sweeps.executors import local, state


@pytest.fixture
def root(tmp_path):
    local.run(small_study(), tmp_path, workers=2, trainer=FAKE_TRAINER)
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
        ({"bits_per_byte": 1.5}, "bits_per_byte is 1.5, but a loss of"),
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


TABLES = ("observations.parquet", "observations.csv", "exposure.parquet", "exposure.csv")


def test_only_what_changed_is_read_again(root, monkeypatch):
    from sweeps.collecting import collect as module

    whole = collect(root)
    before = [(root / name).read_bytes() for name in TABLES]
    read = []
    real = module.observations.read_rows
    monkeypatch.setattr(module.observations, "read_rows", lambda path: read.append(path) or real(path))
    assert collect(root) == whole and not read
    run = runs(root)[0]
    path = spec.workdir(root, run.id) / "observations.jsonl"
    edit(path, lambda row: {**row, "loss_se": 0.5})
    assert collect(root).rows == whole.rows and {one.parent for one in read} == {path.parent}
    changed = [(root / name).read_bytes() for name in TABLES]
    assert changed != before
    # From nothing, and after a table was damaged, the same bytes come out.
    for damage in (
        lambda: (root / "collected.json").unlink(),
        lambda: (root / TABLES[0]).write_bytes(b"PAR1"),
    ):
        damage()
        collect(root)
        assert [(root / name).read_bytes() for name in TABLES] == changed


def test_a_run_that_is_no_longer_done_leaves_the_tables(root):
    rows = collect(root).rows
    run = runs(root)[0]
    status = spec.workdir(root, run.id) / "status.json"
    kept = status.read_text()
    status.unlink()
    assert collect(root).rows < rows and run.id not in pq.read_table(root / TABLES[0])["run"].to_pylist()
    status.write_text(kept)
    assert collect(root).rows == rows


@pytest.mark.slow
def test_a_million_rows_within_a_minute(tmp_path):
    import time

    import fake_train
    from studies import cell, make

    from mscale.files import atomic_json

    study = make(*(cell(seed=seed, steps=(2_000,)) for seed in range(500)))
    state.save_study(study, tmp_path)
    count = 0
    for run in study.runs:
        config = {**run.bindings, "RUN": run.id, "STUDY": "test", "TAG": run.tag, "GROUP": run.group}
        lines = "".join(json.dumps(fake_train.row(config, step, "en")) + "\n" for step in range(1, 2_001))
        folder = spec.workdir(tmp_path, run.id)
        (folder / "observations.jsonl").write_text(lines)
        (folder / "exposure.jsonl").write_text(json.dumps(fake_train.exposure(config, 2_000)[0]) + "\n")
        atomic_json(folder / "status.json", {"state": "done", "step": 2_000})
        count += 2_000
    started = time.process_time()
    found = collect(tmp_path)
    seconds = time.process_time() - started
    print(f"{count:,} rows in {seconds:.1f} s")
    assert found.rows == count == 1_000_000 and seconds < 60
    started = time.process_time()
    assert collect(tmp_path) == found
    print(f"again in {time.process_time() - started:.1f} s")
