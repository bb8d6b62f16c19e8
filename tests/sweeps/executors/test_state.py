"""The state of a study is read from its run folders and shown."""

import os
import time
from collections import Counter

import pytest
from rich.console import Console
from studies import cell, make

from mscale import liveness, run_folder
from mscale.errors import MscaleError
from mscale.files import atomic_json
from sweeps import spec
from sweeps.executors import state


@pytest.fixture
def study(tmp_path):
    planned = make(cell(), cell(scale="nano1"))
    state.save_study(planned, tmp_path)
    return planned


def write(root, run, **status):
    folder = spec.workdir(root, run.id)
    atomic_json(folder / "status.json", {"step": run.steps, **status})
    (folder / "observations.jsonl").write_text("{}\n")


def states(planned, root):
    return {name: one.state for name, one in state.read_states(planned.runs, root).items()}


def test_every_state_is_recognised(tmp_path, study):
    trunk, first, second, third, other, *rest = study.runs
    write(tmp_path, trunk, state="done")
    write(tmp_path, first, state="running")  # and no process holds its lock
    write(tmp_path, other, state="failed")
    run_folder.write_failure(spec.workdir(tmp_path, other.id), "the loss became non-finite")
    with liveness.run_lock(spec.workdir(tmp_path, second.id)):
        write(tmp_path, second, state="running", step=45, tokens_per_second=100.0)
        found = states(study, tmp_path)
    assert [found[run.id] for run in (trunk, first, second, third, other)] == [
        "done",
        "interrupted",
        "running",
        "waiting",
        "failed",
    ]
    assert {found[run.id] for run in rest} == {"blocked"}


def test_the_table_counts_and_names(tmp_path, study):
    trunk, *_, other = study.runs
    write(tmp_path, trunk, state="done")
    run_folder.write_failure(spec.workdir(tmp_path, other.id), "the disk is full")
    with liveness.run_lock(spec.workdir(tmp_path, study.runs[1].id)):
        write(tmp_path, study.runs[1], state="running", step=19, tokens_per_second=100.0)
        console = Console(width=160, record=True, file=open(os.devnull, "w"))  # noqa: SIM115
        console.print(state.status_table(tmp_path))
    text = console.export_text()
    assert f"failed {other.id}: the disk is full" in text and "step 19 of 20" in text and "s left" in text
    found = state.read_states(study.runs, tmp_path).values()
    assert Counter(one.state for one in found) == {"done": 1, "failed": 1, "waiting": 5, "interrupted": 1}
    assert sum(one.tokens_done for one in found) == trunk.tokens + 32


def test_a_damaged_file_is_told_of_its_run_and_stops_nothing_else(tmp_path, study):
    trunk, first, second, third, *_ = study.runs
    for run in study.runs:
        write(tmp_path, run, state="done")
    folders = [spec.workdir(tmp_path, run.id) for run in study.runs]
    (folders[0] / "run.json").write_text("{")
    (folders[1] / "status.json").write_text('{"state": "do')
    (folders[2] / "observations.jsonl").unlink()
    found = state.read_states(study.runs, tmp_path)
    assert [found[run.id].state for run in study.runs[:4]] == [
        "interrupted",
        "waiting",
        "interrupted",
        "done",
    ]
    assert "run.json: this run is damaged" in found[trunk.id].reason
    assert "status.json is damaged" in found[first.id].reason
    assert "observations.jsonl is missing or empty; the run is trained again" in found[second.id].reason
    assert {found[run.id].state for run in study.runs[4:]} == {"done"}
    lines = state.status_lines(tmp_path, found)
    assert any(line.startswith(f"waiting {first.id}: ") and "is damaged" in line for line in lines)


@pytest.mark.parametrize("ahead", ["status", "heartbeat"])
def test_a_file_from_the_future_does_not_hold_a_run_for_ever(tmp_path, study, ahead):
    run, now = study.runs[0], time.time()
    folder = spec.workdir(tmp_path, run.id)
    write(tmp_path, run, state="running", step=3, updated=now + 90_000 * (ahead == "status"))
    when = now + 90_000 * (ahead == "heartbeat")
    run_folder.write_heartbeat(folder, run_folder.Heartbeat("elsewhere", 7, "", now - 900, when))
    found = state.read_run(run, tmp_path)
    assert found.state == "stalled" and "90,000 s in the future, so the clocks" in found.reason
    assert (
        f"if process 7 on elsewhere has ended, delete heartbeat.json and status.json in {folder}"
        in found.reason
    )


def test_studies_are_read_back(tmp_path, study):
    assert state.load_study(tmp_path) == study
    assert spec.read_spec(spec.workdir(tmp_path, study.runs[0].id)) == study.runs[0]


def test_folder_without_a_study_says_what_to_do(tmp_path):
    with pytest.raises(MscaleError, match="mscale sweep run"):
        state.load_study(tmp_path)
    (tmp_path / "study.json").write_text("{}")
    with pytest.raises(MscaleError, match="study.json: .* required field `name`"):
        state.load_study(tmp_path)
