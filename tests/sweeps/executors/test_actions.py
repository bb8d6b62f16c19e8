"""Logs, retry and cancel of a running study, and stalled runs."""

import os
import signal
import time

import pytest
from local_runs import FAKE_TRAINER, fake_trainer_on_path, small_study, start_runner, wait_for  # noqa: F401
from studies import cell, make

from mscale import liveness
from mscale.errors import MscaleError
from mscale.files import atomic_json
from sweeps import spec
from sweeps.executors import actions, local, state


def test_a_log_begins_with_how_the_run_ended(tmp_path, monkeypatch):
    study = small_study()
    monkeypatch.setenv("FAKE_FAIL", "nano1-en-trunk")
    with pytest.raises(MscaleError):
        local.run(study, tmp_path, workers=2, trainer=FAKE_TRAINER)
    lines = list(actions.logs(tmp_path, "nano1-en-trunk"))
    assert ": failed, step 0 of" in lines[0] and "told to fail" in lines[0]
    assert any(line.startswith("training nano1") for line in lines)
    with pytest.raises(MscaleError, match="is blocked .* has written no log"):
        list(actions.logs(tmp_path, "nano1-en-100"))
    with pytest.raises(MscaleError, match="may be any of"):
        list(actions.logs(tmp_path, "nano1-en"))
    with pytest.raises(MscaleError, match="has no run 'nano9'"):
        list(actions.logs(tmp_path, "nano9"))


def test_retry_clears_failures(tmp_path, monkeypatch):
    study = small_study()
    monkeypatch.setenv("FAKE_FAIL", "nano1-en-trunk")
    with pytest.raises(MscaleError):
        local.run(study, tmp_path, workers=2, trainer=FAKE_TRAINER)
    (failed,) = actions.retry(tmp_path)
    assert failed.startswith("nano1-en-trunk")
    found = [one.state for one in state.read_states(study.runs, tmp_path).values()]
    assert found.count("done") == 9 and not {"failed", "blocked"} & set(found)
    done = next(one for one in study.runs if state.read_run(one, tmp_path).state == "done")
    with pytest.raises(MscaleError, match="is done: only failed or cancelled"):
        actions.retry(tmp_path, [done.id])


def test_a_cancelled_run_stays_so_until_it_is_retried(tmp_path):
    study = small_study()
    state.save_study(study, tmp_path)
    assert len(actions.cancel(tmp_path, ["nano1-en-trunk"])) == 1
    with pytest.raises(MscaleError, match="1 of 13 runs failed, and 3 that start from them"):
        local.run(study, tmp_path, workers=2, trainer=FAKE_TRAINER)
    trunk = actions.find_run(study, "nano1-en-trunk")
    assert not (spec.workdir(tmp_path, trunk.id) / "began.txt").exists()
    assert actions.retry(tmp_path) == [trunk.id]
    assert local.run(study, tmp_path, workers=2, trainer=FAKE_TRAINER).trained == 4


def test_cancelling_a_run_at_work_ends_it_and_leaves_the_others(tmp_path):
    study, root = make(cell(steps=(100,)), cell(seed=1, steps=(100,))), tmp_path / "study"
    runner = start_runner(study, root, workers=1, seconds=6)
    at_work = wait_for(
        lambda: (
            [one for one in state.read_states(study.runs, root).values() if one.state == "running"]
            if (root / "study.json").exists()
            else None
        ),
        60,
    )
    actions.cancel(root, [at_work[0].spec.id])
    _, said = runner.communicate(timeout=120)
    assert runner.returncode == 1 and b"cancelled" in said
    assert sorted(one.state for one in state.read_states(study.runs, root).values()) == ["done", "failed"]


def test_cancelling_the_study_ends_its_runner(tmp_path):
    study, root = make(cell(steps=(100,))), tmp_path / "study"
    runner = start_runner(study, root, workers=1, seconds=60)
    wait_for(
        lambda: (root / "study.json").exists() and state.read_run(study.runs[0], root).state == "running", 60
    )
    assert actions.cancel(root) == [study.runs[0].id]
    runner.communicate(timeout=60)
    assert runner.returncode == 128 + signal.SIGTERM and not (root / "heartbeat.json").exists()


def test_a_stalled_run_is_started_again(tmp_path, monkeypatch):
    study = make(cell(steps=(100,)))
    monkeypatch.setenv("FAKE_SECONDS", "1000")
    with pytest.raises(MscaleError, match="its worker died 2 times, at last with signal 9"):
        local.run(study, tmp_path, workers=1, trainer=FAKE_TRAINER, attempts=2, stall_seconds=2.0)


def test_a_live_process_without_progress_is_shown_as_stalled(tmp_path):
    study = make(cell(steps=(100,)))
    folder = spec.workdir(tmp_path, study.runs[0].id)
    state.save_study(study, tmp_path)
    now = time.time()
    elsewhere = {"host": "another", "pid": 1, "job": "", "began": now - 9_000, "when": now}
    atomic_json(folder / "heartbeat.json", elsewhere)
    atomic_json(folder / "status.json", {"state": "running", "step": 5, "updated": now - 60})
    assert state.read_run(study.runs[0], tmp_path).state == "running"
    atomic_json(folder / "status.json", {"state": "running", "step": 5, "updated": now - 8_000})
    found = state.read_run(study.runs[0], tmp_path)
    assert found.state == "stalled" and "no progress for 8,0" in found.reason
    atomic_json(folder / "heartbeat.json", {**elsewhere, "when": now - 2 * liveness.HEARTBEAT_EXPIRY_SECONDS})
    assert state.read_run(study.runs[0], tmp_path).state == "interrupted"


def test_a_full_disk_is_named_and_loses_nothing(tmp_path, monkeypatch):
    import errno

    study = small_study()
    real = os.replace

    def full(source, target):
        if "study.json" in str(target):
            raise OSError(errno.ENOSPC, "No space left on device")
        return real(source, target)

    monkeypatch.setattr(os, "replace", full)
    with pytest.raises(
        MscaleError, match="study.json: No space left on device; the disk is full: free some space"
    ):
        local.run(study, tmp_path, workers=1, trainer=FAKE_TRAINER)
    monkeypatch.undo()
    assert not list(tmp_path.glob("*.tmp")) and not (tmp_path / "heartbeat.json").exists()


def test_watching_without_a_terminal_prints_once(tmp_path, capsys):
    state.save_study(make(cell()), tmp_path)
    actions.watch(tmp_path)
    assert "mono" in capsys.readouterr().out
