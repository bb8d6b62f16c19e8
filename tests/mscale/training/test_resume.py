"""Resuming is bit-identical after SIGKILL, SIGTERM, a damaged checkpoint or a full disk."""

import errno
import os
import random
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
import tiny_run
import tiny_store
from tiny_run import ROOT, arguments, arrays, assert_same_arrays, rows, run, status

from mscale import observations, run_folder, train
from mscale.errors import MscaleError
from mscale.remote import local_folder
from mscale.training import checkpoints


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    return tiny_run.store(tmp_path_factory)


@pytest.fixture(scope="module")
def trunk(store, tmp_path_factory):
    """A trunk of 24 steps with a branch point at 16 and dropout on."""
    workdir = tmp_path_factory.mktemp("runs") / "trunk"
    assert run(store, workdir, CHECKPOINT_STEPS=(16,)) == 0
    return workdir


# ------------------------------------------------------------------------------------------- killed and resumed


def start_process(store, workdir, **macros):
    return subprocess.Popen(
        [sys.executable, "-m", "mscale.train", *arguments(store, workdir, **macros)],
        cwd=ROOT,
        stderr=subprocess.PIPE,
        text=True,
        env=os.environ | {"JAX_PLATFORMS": "cpu"},
    )


LONG = {"STEPS": 400, "CHECKPOINT_EVERY": 25, "EVAL_STEPS": "log", "LOG_EVERY": 10}


@pytest.fixture(scope="module")
def undisturbed(store, tmp_path_factory):
    workdir = tmp_path_factory.mktemp("long") / "run"
    assert run(store, workdir, **LONG) == 0
    return workdir


@pytest.mark.parametrize("workdir", ["my-run", "runs/mein Lauf/é"])
def test_a_relative_workdir_resumes_branches_and_continues(store, trunk, tmp_path, monkeypatch, workdir):
    """As in the README: WORKDIR, BRANCH_FROM and INIT_FROM are relative to the current folder."""
    monkeypatch.chdir(tmp_path)
    here = Path(workdir)
    assert run(store, here, CHECKPOINT_STEPS=(16,)) == 0
    (here / "status.json").unlink()
    shutil.rmtree(here / "checkpoints" / "step_24")  # as if it had been killed after step 16
    assert run(store, here, CHECKPOINT_STEPS=(16,)) == 0
    assert not list(here.glob("checkpoints/*damaged*"))
    assert_same_arrays(arrays(here.absolute(), 24), arrays(trunk, 24))
    assert run(store, Path("branch"), STEPS=20, EVAL_STEPS=(20,), BRANCH_FROM=workdir, DECAY_STEPS=4) == 0
    assert run(store, Path("child"), STEPS=8, EVAL_STEPS=(8,), INIT_FROM=f"{workdir}@24") == 0
    assert rows(Path("child"))[0]["init"] == here.name


@pytest.mark.parametrize("mixture", ["en+fr", "uniform"])
def test_a_store_that_gained_a_language_goes_on_with_a_run_and_its_branches(tmp_path, capsys, mixture):
    before = tiny_store.write(tmp_path / "my store", languages=("en", "fr"))
    grown = tiny_store.write(tmp_path / "grown", languages=("en", "fr", "sw"))
    whole, resumed, branch = tmp_path / "whole", tmp_path / "resumed", tmp_path / "branch"
    assert run(before, whole, MIXTURE=mixture, CHECKPOINT_STEPS=(16,)) == 0
    shutil.copytree(whole, resumed)
    (resumed / "status.json").unlink()
    shutil.rmtree(resumed / "checkpoints" / "step_24")  # as if it had been killed after step 16
    assert run(grown, resumed, MIXTURE=mixture, CHECKPOINT_STEPS=(16,)) == 0
    assert "goes on with the 2 languages that it began with" in (told := capsys.readouterr().err)
    assert "also has 1 that it does not use: sw\n" in told
    assert_same_arrays(arrays(resumed, 24), arrays(whole, 24))
    assert {row["language"] for row in rows(resumed)} == {"en", "fr"}
    decay = {"STEPS": 20, "EVAL_STEPS": (20,), "BRANCH_FROM": str(whole), "DECAY_STEPS": 4}
    assert run(grown, branch, MIXTURE=mixture, **decay) == 0
    assert {row["language"] for row in rows(branch)} == {"en", "fr"}
    shrunk = tiny_store.write(tmp_path / "shrunk", languages=("en",))
    assert run(shrunk, resumed, MIXTURE="en") == 1
    assert "shrunk has no language 'fr', with which this run began" in capsys.readouterr().err
    assert run(grown, resumed, MIXTURE="en+sw") == 1
    assert "holds a run with mixture" in capsys.readouterr().err


@pytest.mark.parametrize("lose", [Path.unlink, lambda path: path.write_bytes(b"")])
def test_a_done_run_without_observations_is_trained_again(store, trunk, tmp_path, lose):
    workdir = tmp_path / "run"
    shutil.copytree(trunk, workdir)
    lose(workdir / "observations.jsonl")
    assert run(store, workdir, CHECKPOINT_STEPS=(16,), RUN=trunk.name) == 0
    for name in ("observations.jsonl", "exposure.jsonl"):
        assert (workdir / name).read_bytes() == (trunk / name).read_bytes()


def test_a_home_folder_is_found(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    assert local_folder("~/runs/a", "WORKDIR") == tmp_path / "runs" / "a"
    with pytest.raises(MscaleError, match="--root is s3://bucket/study"):
        local_folder("S3://bucket/study", "--root")


@pytest.mark.parametrize("name", ["WORKDIR", "BRANCH_FROM", "INIT_FROM"])
def test_a_url_is_refused_where_a_run_would_write(store, tmp_path, monkeypatch, capsys, name):
    monkeypatch.chdir(tmp_path)
    macros = {"BRANCH_FROM": {"DECAY_STEPS": 4}}.get(name, {})
    workdir = "s3://bucket/run" if name == "WORKDIR" else "here"
    macros |= {} if name == "WORKDIR" else {name: "s3://bucket/run"}
    assert run(store, workdir, **macros) == 1
    assert f"error: {name} is s3://bucket/run" in capsys.readouterr().err
    assert not (tmp_path / "s3:").exists()


@pytest.mark.parametrize(
    "moment",
    [*range(3), *(pytest.param(moment, marks=pytest.mark.slow) for moment in range(3, 23))],
)
def test_killed_and_resumed_is_bit_identical(store, undisturbed, tmp_path, moment):
    """KILL_SEED=… in the environment selects other moments."""
    workdir = tmp_path / "run"
    process = start_process(store, workdir, **LONG)
    chance = random.Random(f"{os.environ.get('KILL_SEED', '')}-{moment}")
    # The first checkpoint is there after a second or so of training; the run takes a few more.
    folder = workdir / "checkpoints"
    deadline = time.monotonic() + 120
    awaited = chance.choice([25, 100, 250])
    while time.monotonic() < deadline and process.poll() is None:
        if any(step >= awaited for step in checkpoints.saved_steps(folder)):
            break
        time.sleep(0.002)
    time.sleep(chance.random() * 0.1)
    process.send_signal(signal.SIGKILL)
    _, error = process.communicate()
    assert process.returncode in (0, -signal.SIGKILL), error
    assert status(workdir)["state"] == ("done" if process.returncode == 0 else "running")
    assert run(store, workdir, **LONG) == 0
    assert_same_arrays(arrays(workdir, 400), arrays(undisturbed, 400))
    for name in ("observations.jsonl", "exposure.jsonl"):
        assert (workdir / name).read_bytes() == (undisturbed / name).read_bytes()
    assert metric_steps(workdir) == metric_steps(undisturbed)


def metric_steps(workdir):
    return [row["step"] for row in observations.read_jsonl(workdir / "metrics.jsonl")]


def test_sigterm_saves_and_exits_143(store, undisturbed, tmp_path):
    workdir = tmp_path / "run"
    steps = {**LONG, "CHECKPOINT_EVERY": 10_000}
    process = start_process(store, workdir, **steps)
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline and not (workdir / "metrics.jsonl").exists():
        time.sleep(0.002)
    process.send_signal(signal.SIGTERM)
    _, error = process.communicate(timeout=60)
    assert process.returncode == run_folder.PREEMPTED_EXIT_STATUS, error
    assert status(workdir)["state"] == "preempted"
    saved = checkpoints.saved_steps(workdir / "checkpoints")
    assert len(saved) == 1 and 0 < saved[0] < 400
    assert status(workdir)["step"] == saved[0]
    assert run(store, workdir, **steps) == 0
    assert_same_arrays(arrays(workdir, 400), arrays(undisturbed, 400))
    assert (workdir / "observations.jsonl").read_bytes() == (undisturbed / "observations.jsonl").read_bytes()


def test_a_folder_is_trained_by_one_process_at_a_time(store, trunk, tmp_path, capsys):
    workdir = tmp_path / "trunk"
    process = start_process(store, workdir, CHECKPOINT_STEPS=(16,))
    while not (workdir / "heartbeat.json").exists():
        assert process.poll() is None
        time.sleep(0.002)
    process.send_signal(signal.SIGSTOP)
    assert run(store, workdir, CHECKPOINT_STEPS=(16,)) == 1
    assert f"(process {process.pid} on {socket.gethostname()})" in capsys.readouterr().err
    process.kill()
    process.communicate()
    assert run(store, workdir, CHECKPOINT_STEPS=(16,)) == 0
    assert rows(workdir) == rows(trunk)


def test_a_stop_before_the_first_step_is_a_preemption(store, tmp_path):
    stop = threading.Event()
    stop.set()
    planned = tiny_run.prepared(store, tmp_path / "run")
    assert train.run_to_end(planned, stop) == run_folder.PREEMPTED_EXIT_STATUS
    assert status(tmp_path / "run")["state"] == "preempted" and status(tmp_path / "run")["step"] == 0
    assert checkpoints.saved_steps(tmp_path / "run" / "checkpoints") == []


def test_damaged_latest_checkpoint_costs_steps_not_the_run(store, undisturbed, tmp_path, capsys):
    workdir = tmp_path / "run"
    shutil.copytree(undisturbed, workdir)
    (workdir / "status.json").unlink()
    path = checkpoints.checkpoint_path(workdir / "checkpoints", 400)
    largest = max((f for f in path.rglob("*") if f.is_file()), key=lambda f: f.stat().st_size)
    data = bytearray(largest.read_bytes())
    data[len(data) // 2] ^= 1
    largest.write_bytes(data)
    assert run(store, workdir, **LONG) == 0
    assert "step_400" in capsys.readouterr().err
    assert_same_arrays(arrays(workdir, 400), arrays(undisturbed, 400))
    assert (workdir / "observations.jsonl").read_bytes() == (undisturbed / "observations.jsonl").read_bytes()
    assert (workdir / "checkpoints" / "step_400.damaged").is_dir()


def test_a_non_finite_loss_stops_the_run_at_its_step(store, tmp_path, capsys, monkeypatch):
    # The learning rate overflows float32 in the parameters after warmup step 1; the loss of step 2 shows it.
    assert run(store, tmp_path / "n", LEARNING_RATE=1e38, WARMUP_STEPS=10, EVAL_STEPS=(1, 2, 24)) == 1
    error = capsys.readouterr().err
    assert "non" in error or "nan" in error or "inf" in error
    found = status(tmp_path / "n")
    assert found["state"] == "failed" and "step " in found["reason"]
    step = int(found["reason"].split("step ")[1].split(":")[0])
    assert step <= 3
    assert all(row["step"] < step for row in rows(tmp_path / "n"))
    assert not (tmp_path / "n" / "metrics.jsonl").exists()
    assert checkpoints.saved_steps(tmp_path / "n" / "checkpoints") == []


@pytest.mark.parametrize("moment", [5, 9, 14])
def test_a_disk_that_fills_mid_run_loses_nothing_that_was_whole(store, trunk, tmp_path, capsys, moment):
    """The disk is full from the ``moment``-th fsync on; with free space again the run ends with the same results."""
    sync, calls = os.fsync, []

    def full(handle):
        calls.append(handle)
        if len(calls) >= moment:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return sync(handle)

    workdir = tmp_path / "trunk"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "fsync", full)
        assert run(store, workdir, CHECKPOINT_STEPS=(16,)) == 1
    assert "the disk is full: free some space" in capsys.readouterr().err
    assert not list(workdir.rglob("*.tmp")) and not list(workdir.rglob("*.saving"))
    assert run(store, workdir, CHECKPOINT_STEPS=(16,)) == 0
    assert_same_arrays(arrays(workdir, 24), arrays(trunk, 24))
    assert rows(workdir) == rows(trunk)
