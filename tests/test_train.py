"""The train loop: dying, branching and continuing change no bit, and nothing wrong passes in silence."""

import errno
import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import jax
import numpy as np
import pytest
import tiny_store

from mscale import checkpoints, evaluate, observations, schedule, settings, train

ROOT = Path(__file__).resolve().parent.parent
B, S = 4, 16


@pytest.fixture(scope="session")
def store(tmp_path_factory):
    # Processes that tests start find the programs that this one compiled.
    os.environ["MSCALE_COMPILE_CACHE"] = str(tmp_path_factory.mktemp("compiled"))
    return tiny_store.write(tmp_path_factory.mktemp("tiny") / "store")


def arguments(store, workdir, **macros):
    """The command line of a tiny run; ``macros`` replace its names, ``model__dropout`` is model.dropout."""
    values = {
        "SCALE": "nano0",
        "MIXTURE": "en+fr",
        "STORE": str(store.path),
        "WORKDIR": str(workdir),
        "STEPS": 24,
        "BATCH_SIZE": B,
        "SEQUENCE_LENGTH": S,
        "WARMUP_STEPS": 4,
        "EVAL_TOKENS": 128,
        "EVAL_STEPS": (12, 24),
        "LOG_EVERY": 8,
        "PROGRESS": False,
        "model__dropout": 0.1,
    } | macros
    return ["--gin_file=gin/train/pretrain.gin"] + [
        f"--gin.{name.replace('__', '.')}={value!r}" for name, value in values.items()
    ]


def run(store, workdir, **macros):
    return train.main(arguments(store, workdir, **macros))


def rows(workdir):
    return observations.read_rows(workdir / "observations.jsonl")


def status(workdir):
    return json.loads((workdir / "status.json").read_text())


def arrays(workdir, step):
    """All arrays of a checkpoint, by name."""
    path = checkpoints.path_of(workdir / "checkpoints", step)
    checkpoints.verify(path)
    return {
        name: np.asarray(value) for name, value in checkpoints._checkpointer().restore(path / "state").items()
    }


def assert_same_arrays(a, b):
    assert a.keys() == b.keys()
    for name in a:
        assert np.array_equal(a[name], b[name]), name


@pytest.fixture(scope="session")
def trunk(store, tmp_path_factory):
    """A trunk of 24 steps with a branch point at 16 and dropout on."""
    workdir = tmp_path_factory.mktemp("runs") / "trunk"
    assert run(store, workdir, CHECKPOINT_STEPS=(16,)) == 0
    return workdir


# ------------------------------------------------------------------------------------------ what is recorded


def test_a_run_leaves_what_it_promises(trunk, store):
    assert status(trunk)["state"] == "done" and status(trunk)["step"] == 24
    assert checkpoints.steps(trunk / "checkpoints") == [16, 24]
    assert {(row["step"], row["language"]) for row in rows(trunk)} == {
        (step, language) for step in (12, 16, 24) for language in ("en", "fr", "sw")
    }
    metrics = [json.loads(line) for line in (trunk / "metrics.jsonl").read_text().splitlines()]
    assert [row["step"] for row in metrics] == [8, 16, 24]
    assert metrics[-1]["loss"] < metrics[0]["loss"]
    assert "train.steps" in (trunk / "config.gin").read_text()


def test_counts_are_those_of_the_schedule(trunk, store):
    mixture = settings.resolve("en+fr", store, S)
    expected = schedule.single(mixture, B, 0)
    for row in rows(trunk):
        assert row["tokens"] == row["step"] * B * S
        seen = expected.windows_seen(row["step"]).get(row["language"], 0)
        assert row["target_tokens"] == seen * S
        assert row["target_unique"] == (
            0 if row["language"] == "sw" else store.windows(row["language"], S) * S
        )
        assert row["phase"] == "stable" and row["group"] == "trunk" and row["init"] == "scratch"
        assert row["params"] == 259 * 16 + row["params_nonembedding"]
        assert row["flops"] == 6.0 * row["params"] * row["tokens"]
    exposure = observations.read_rows(trunk / "exposure.jsonl")
    assert sum(row["tokens"] for row in exposure if row["step"] == 24) == 24 * B * S


def test_the_operative_config_repeats_the_run(trunk, store, tmp_path):
    config = (trunk / "config.gin").read_text().replace(str(trunk), str(tmp_path / "again"))
    (tmp_path / "config.gin").write_text(config)
    assert train.main([f"--gin_file={tmp_path / 'config.gin'}"]) == 0
    assert_same_arrays(arrays(tmp_path / "again", 24), arrays(trunk, 24))


def test_a_finished_run_returns_at_once(trunk, store):
    before = {path: path.stat().st_mtime_ns for path in trunk.rglob("*")}
    began = time.monotonic()
    assert run(store, trunk, CHECKPOINT_STEPS=(16,)) == 0
    assert time.monotonic() - began < 1
    assert {path: path.stat().st_mtime_ns for path in trunk.rglob("*")} == before


# -------------------------------------------------------------------------------------------- speed of the loop


def test_a_second_run_of_the_shape_compiles_nothing(trunk, store, tmp_path, caplog):
    first = prepared(store, tmp_path / "a")
    compiled = train.compiled_steps(first.model, train.steps_per_dispatch(first.settings), None)
    programs = compiled._cache_size(), evaluate.window_nats._cache_size()
    with jax.log_compiles():
        changes = {"SEED": 3, "STEPS": 21, "LEARNING_RATE": 0.02, "DECAY_STEPS": 5, "MIXTURE": "sw"}
        assert run(store, tmp_path / "b", **changes, EVAL_STEPS=(7,)) == 0
    assert (compiled._cache_size(), evaluate.window_nats._cache_size()) == programs
    assert not [record for record in caplog.records if "XLA compilation" in record.getMessage()]
    assert status(tmp_path / "b")["compile_seconds"] < 1


def prepared(store, workdir, **macros):
    """The run of these settings, ready to be trained."""
    with train.launch.configured(train.launch.parse(arguments(store, workdir, **macros))):
        return train.prepare(train.Settings())


def test_nothing_is_read_from_the_device_between_log_points(store, tmp_path, monkeypatch):
    array = type(jax.numpy.ones(1))
    value, reads, at_log_points = array._value, [], []
    loop = threading.current_thread()

    def counted(self):
        if threading.current_thread() is loop:
            reads.append(1)
        return value.fget(self)

    get = jax.device_get

    def log_point(tree):
        at_log_points.append(len(reads))
        result = get(tree)
        reads.clear()
        return result

    run = prepared(store, tmp_path / "r", STEPS=96, LOG_EVERY=48, EVAL_STEPS=(5, 20, 70))
    start = train.find_start(run)
    recorder = train.Recorder(run, start.step)
    monkeypatch.setattr(train.checkpoints.Saver, "save", lambda *_: None)
    monkeypatch.setattr(array, "_value", property(counted))
    monkeypatch.setattr(jax, "device_get", log_point)
    train.train(run, start, recorder, threading.Event())
    # Two log points of two reads each, losses and evaluations; before each the device was left alone.
    assert len(at_log_points) == 4
    assert at_log_points == [0, 0, 0, 0]
    # The counter does count.
    float(jax.numpy.ones(()) + 1)
    assert reads == [1]


# ------------------------------------------------------------------------------------------- dying, and resuming


def start_process(store, workdir, **macros):
    return subprocess.Popen(
        [sys.executable, "-m", "mscale.train", *arguments(store, workdir, **macros)],
        cwd=ROOT,
        stderr=subprocess.PIPE,
        text=True,
        env=os.environ | {"JAX_PLATFORMS": "cpu"},
    )


LONG = {"STEPS": 400, "CHECKPOINT_EVERY": 25, "EVAL_STEPS": "log", "LOG_EVERY": 10}


@pytest.fixture(scope="session")
def undisturbed(store, tmp_path_factory):
    workdir = tmp_path_factory.mktemp("long") / "run"
    assert run(store, workdir, **LONG) == 0
    return workdir


@pytest.mark.parametrize(
    "moment", [0] + [pytest.param(moment, marks=pytest.mark.slow) for moment in range(1, 20)]
)
def test_killed_and_resumed_is_bit_identical(store, undisturbed, tmp_path, moment):
    workdir = tmp_path / "run"
    process = start_process(store, workdir, **LONG)
    chance = random.Random(moment)
    # The first checkpoint is there after a second or so of training; the run takes a few more.
    folder = workdir / "checkpoints"
    deadline = time.monotonic() + 120
    awaited = chance.choice([25, 100, 250])
    while time.monotonic() < deadline and process.poll() is None:
        if any(step >= awaited for step in checkpoints.steps(folder)):
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
    assert process.returncode == train.PREEMPTED, error
    assert status(workdir)["state"] == "preempted"
    saved = checkpoints.steps(workdir / "checkpoints")
    assert len(saved) == 1 and 0 < saved[0] < 400
    assert status(workdir)["step"] == saved[0]
    assert run(store, workdir, **steps) == 0
    assert_same_arrays(arrays(workdir, 400), arrays(undisturbed, 400))
    assert (workdir / "observations.jsonl").read_bytes() == (undisturbed / "observations.jsonl").read_bytes()


def test_damaged_latest_checkpoint_costs_steps_not_the_run(store, undisturbed, tmp_path, capsys):
    workdir = tmp_path / "run"
    shutil.copytree(undisturbed, workdir)
    (workdir / "status.json").unlink()
    path = checkpoints.path_of(workdir / "checkpoints", 400)
    largest = max((f for f in path.rglob("*") if f.is_file()), key=lambda f: f.stat().st_size)
    data = bytearray(largest.read_bytes())
    data[len(data) // 2] ^= 1
    largest.write_bytes(data)
    assert run(store, workdir, **LONG) == 0
    assert "step_400" in capsys.readouterr().err
    assert_same_arrays(arrays(workdir, 400), arrays(undisturbed, 400))
    assert (workdir / "observations.jsonl").read_bytes() == (undisturbed / "observations.jsonl").read_bytes()
    assert (workdir / "checkpoints" / "step_400.damaged").is_dir()


# ----------------------------------------------------------------------------------- branches, and continuing


def test_a_branch_is_the_trunk_and_then_its_decay(store, trunk, tmp_path):
    """Equal to one run from scratch with the same decay, bit by bit, and filed under the trunk."""
    common = {"STEPS": 20, "DECAY_STEPS": 4, "EVAL_STEPS": (20,)}
    assert run(store, tmp_path / "branch", BRANCH_FROM=str(trunk), **common) == 0
    assert run(store, tmp_path / "single", **common) == 0
    assert_same_arrays(arrays(tmp_path / "branch", 20), arrays(tmp_path / "single", 20))
    branch, single = rows(tmp_path / "branch"), rows(tmp_path / "single")
    assert [row["loss"] for row in branch] == [row["loss"] for row in single]
    assert {row["group"] for row in branch} == {"trunk"}
    assert {row["phase"] for row in branch} == {"end"}
    assert {row["step"] for row in branch} == {20}
    assert branch[0]["lr"] < 0.01 / 2
    assert [row["tokens"] for row in branch] == [20 * B * S] * 3


def test_a_branch_that_died_goes_on_from_its_own_checkpoint(store, trunk, tmp_path):
    common = {"STEPS": 20, "DECAY_STEPS": 4, "EVAL_STEPS": (18, 20)}
    common |= {"BRANCH_FROM": str(trunk), "CHECKPOINT_STEPS": (18,)}
    assert run(store, tmp_path / "whole", **common) == 0
    shutil.copytree(tmp_path / "whole", tmp_path / "cut")
    shutil.rmtree(checkpoints.path_of(tmp_path / "cut" / "checkpoints", 20))
    (tmp_path / "cut" / "status.json").unlink()
    assert run(store, tmp_path / "cut", **common, RUN="whole") == 0
    assert_same_arrays(arrays(tmp_path / "cut", 20), arrays(tmp_path / "whole", 20))
    assert rows(tmp_path / "cut") == rows(tmp_path / "whole")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"STEPS": 19, "DECAY_STEPS": 4}, "no checkpoint at step 15; it has 16, 24"),
        ({"SEED": 1}, "seed 1, its trunk"),
        ({"MIXTURE": "fr"}, "mixture .*'fr'.* its trunk .*'en\\+fr'"),
        ({"LEARNING_RATE": 0.5}, "optimizer"),
        ({"DECAY_STEPS": 0}, "DECAY_STEPS is 0"),
        ({"SCALE": "nano1"}, "its model is .*'embed': 16.* is .*'embed': 32"),
    ],
)
def test_a_branch_that_does_not_fit_its_trunk_is_refused(store, trunk, tmp_path, capsys, changes, message):
    common = {"STEPS": 20, "DECAY_STEPS": 4, "EVAL_STEPS": (), "BRANCH_FROM": str(trunk)}
    assert run(store, tmp_path / "b", **common | changes) == 1
    error = capsys.readouterr().err
    assert re.search(message, error), error
    assert not (tmp_path / "b" / "observations.jsonl").exists()


def test_init_from_takes_parameters_and_nothing_else(store, trunk, tmp_path):
    assert run(store, tmp_path / "c", INIT_FROM=f"{trunk}@16", MIXTURE="sw", EVAL_STEPS=(1, 24)) == 0
    row = rows(tmp_path / "c")[-1]
    assert row["init"] == "trunk" and row["init_tokens"] == 16 * B * S and row["group"] == "trunk"
    assert row["tokens"] == 24 * B * S and row["target_tokens"] == 24 * B * S
    start = train.find_start(prepared(store, tmp_path / "d", INIT_FROM=f"{trunk}/16"))
    assert start.step == 0
    saved = arrays(trunk, 16)
    for name, value in checkpoints.flatten(start.state["params"]).items():
        assert np.array_equal(value, saved[f"params.{name}"])
    assert all(not np.any(value) for value in jax.tree.leaves(start.state["optimizer"]))


def test_another_vocabulary_is_refused_naming_both(store, trunk, tmp_path, capsys):
    other = tmp_path / "store"
    shutil.copytree(store.path, other)
    manifest = json.loads((other / "store.json").read_text())
    manifest["vocabulary"]["fingerprint"] = "other-259"
    (other / "store.json").write_text(json.dumps(manifest))
    assert run(store, tmp_path / "c", INIT_FROM=str(trunk), STORE=str(other)) == 1
    error = capsys.readouterr().err
    assert "bytes-259" in error and "other-259" in error


# ------------------------------------------------------------------------------------------------- what is wrong


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
    assert checkpoints.steps(tmp_path / "n" / "checkpoints") == []


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"MIXTURE": "en+frr"}, "frr"),
        ({"EVAL_LANGUAGES": ("en", "sww")}, "did you mean 'sw'"),
        ({"SCALE": "nano9"}, "unknown scale"),
        ({"STEPS": 0}, "STEPS is 0"),
        ({"EVAL_STEPS": (25,)}, "EVAL_STEPS holds 25"),
        ({"EVAL_STEPS": "lin"}, "EVAL_STEPS is 'lin'"),
        ({"CHECKPOINT_STEPS": (0,)}, "CHECKPOINT_STEPS holds 0"),
        ({"WARMUP_STEPS": 30}, "do not fit"),
        ({"STOER": "x"}, "did you mean 'STORE'"),
        ({"STORE": "/nowhere"}, "no such folder"),
        ({"mesh__data": 3}, "does not fit 1 devices"),
        ({"model__drop": 0.1}, "did you mean 'dropout'"),
        ({"INIT_FROM": "a", "BRANCH_FROM": "b"}, "both given"),
        ({"INIT_FROM": "/nowhere"}, "holds no checkpoint"),
    ],
)
def test_wrong_settings_are_errors_before_the_first_step(store, tmp_path, capsys, changes, message):
    assert run(store, tmp_path / "w", **changes) == 1
    error = capsys.readouterr().err
    assert message in error and error.startswith("error: ") and "In call to" not in error
    assert not (tmp_path / "w" / "metrics.jsonl").exists()


def test_a_folder_holds_one_run(store, trunk, capsys):
    assert run(store, trunk, CHECKPOINT_STEPS=(16,), STEPS=30) == 1
    assert "holds a run with steps 24, this one has 30" in capsys.readouterr().err


def test_unwritable_workdir(store, tmp_path, capsys):
    (tmp_path / "file").write_text("")
    assert run(store, tmp_path / "file" / "run") == 1
    assert "file" in capsys.readouterr().err


@pytest.mark.parametrize("moment", [5, 9, 14])
def test_a_disk_that_fills_mid_run_loses_nothing_that_was_whole(store, trunk, tmp_path, capsys, moment):
    """The disk is full from the ``moment``-th sync on; with room again the run ends as if nothing had been."""
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


def test_it_runs_where_tensorflow_is_absent(store, tmp_path):
    code = (
        "import importlib.machinery, sys\n"
        "absent = ('tensorflow', 'seqio', 'pandas', 'tensorflow_datasets')\n"
        "class Finder(importlib.machinery.PathFinder):\n"
        "    @classmethod\n"
        "    def find_spec(cls, name, path=None, target=None):\n"
        "        return None if name.split('.')[0] in absent else super().find_spec(name, path, target)\n"
        "sys.meta_path[sys.meta_path.index(importlib.machinery.PathFinder)] = Finder\n"
        "try:\n"
        "    import tensorflow\n"
        "except ModuleNotFoundError:\n"
        "    pass\n"
        "from mscale import train\n"
        "sys.exit(train.main(sys.argv[1:]))\n"
    )
    command = [sys.executable, "-c", code, *arguments(store, tmp_path / "r", STEPS=4, EVAL_STEPS=(4,))]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "warning" not in done.stderr.lower(), done.stderr
    assert status(tmp_path / "r")["state"] == "done"


def test_log_spaced_evaluations(store):
    steps = prepared(store, "w", STEPS=10_000, EVAL_STEPS="log", CHECKPOINT_STEPS=(9_000,)).eval_steps
    assert {10, 100, 1000, 9000, 10_000} <= steps
    assert 24 <= len(steps) <= 28
    assert prepared(store, "w", STEPS=5, EVAL_STEPS="log").eval_steps == {5}
