"""The train loop: the records of a run, its data, branches off a trunk, and runs that continue other runs."""

import json
import re
import shutil
import subprocess
import sys
import threading
import time

import jax
import numpy as np
import pytest
import tiny_run
from tiny_run import ROOT, B, S, arguments, arrays, assert_same_arrays, prepared, rows, run, status

from mscale import observations, train
from mscale.data import schedule
from mscale.training import checkpoints, evaluation, settings


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    return tiny_run.store(tmp_path_factory)


@pytest.fixture(scope="module")
def trunk(store, tmp_path_factory):
    """A trunk of 24 steps with a branch point at 16 and dropout on."""
    workdir = tmp_path_factory.mktemp("runs") / "trunk"
    assert run(store, workdir, CHECKPOINT_STEPS=(16,)) == 0
    return workdir


# ------------------------------------------------------------------------------------------ what is recorded


def test_a_run_leaves_what_it_promises(trunk, store):
    assert status(trunk)["state"] == "done" and status(trunk)["step"] == 24
    assert checkpoints.saved_steps(trunk / "checkpoints") == [16, 24]
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


def test_a_finished_run_says_so_and_returns_at_once(trunk, store, capsys):
    before = {path: path.stat().st_mtime_ns for path in trunk.rglob("*")}
    began = time.monotonic()
    assert run(store, trunk, CHECKPOINT_STEPS=(16,)) == 0
    assert time.monotonic() - began < 1
    assert capsys.readouterr().out == f"trunk: done at step 24; nothing is left to train in {trunk}\n"
    assert {path: path.stat().st_mtime_ns for path in trunk.rglob("*")} == before


# -------------------------------------------------------------------------------------------- speed of the loop


def test_a_second_run_of_the_shape_compiles_nothing(trunk, store, tmp_path, caplog):
    first = prepared(store, tmp_path / "a")
    compiled = train.compiled_steps(first.model, train.steps_per_dispatch(first.settings), None)
    programs = compiled._cache_size(), evaluation.window_nats._cache_size()
    with jax.log_compiles():
        changes = {"SEED": 3, "STEPS": 21, "LEARNING_RATE": 0.02, "DECAY_STEPS": 5, "MIXTURE": "sw"}
        assert run(store, tmp_path / "b", **changes, EVAL_STEPS=(7,)) == 0
    assert (compiled._cache_size(), evaluation.window_nats._cache_size()) == programs
    assert not [record for record in caplog.records if "XLA compilation" in record.getMessage()]
    assert status(tmp_path / "b")["compile_seconds"] < 1


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
    monkeypatch.setattr(train.checkpoints.CheckpointWriter, "save", lambda *_: None)
    monkeypatch.setattr(array, "_value", property(counted))
    monkeypatch.setattr(jax, "device_get", log_point)
    train.train(run, start, recorder, threading.Event())
    # Two log points of two reads each, losses and evaluations; before each the device was left alone.
    assert len(at_log_points) == 4
    assert at_log_points == [0, 0, 0, 0]
    # The counter does count.
    float(jax.numpy.ones(()) + 1)
    assert reads == [1]


# ----------------------------------------------------------------------------------- branches, and continuing


def test_a_branch_is_the_trunk_and_then_its_decay(store, trunk, tmp_path):
    """A branch equals one run from scratch with the same decay bit by bit, and has the trunk's group."""
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
    shutil.rmtree(checkpoints.checkpoint_path(tmp_path / "cut" / "checkpoints", 20))
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
        ({"SCALE": "nano1"}, "its embed is 16, this run's .* is 32"),
        ({"model__lr_rule": "constant"}, "its lr_rule is mup, this run's .* is constant"),
        ({"model__activation": "gelu"}, "its activation is silu, this run's .* is gelu"),
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
    for name, value in checkpoints.flatten_by_path(start.state["params"]).items():
        assert np.array_equal(value, saved[f"params.{name}"])
    assert all(not np.any(value) for value in jax.tree.leaves(start.state["optimizer"]))


def test_a_checkpoint_describes_its_model_wholly_and_those_of_earlier_versions_are_read(
    store, trunk, tmp_path
):
    meta = checkpoints.verify(checkpoints.checkpoint_path(trunk / "checkpoints", 16))
    assert (meta["model"]["lr_rule"], meta["model"]["activation"], meta["model"]["dropout"]) == (
        "mup",
        "silu",
        0.1,
    )
    older = {name: meta["model"][name] for name in ("vocab_size", "embed", "layers", "serial_block")}
    for model in (meta["model"], older, {}):  # dropout may differ: it is how the parameters were trained
        given = {"model": model, "vocabulary": meta["vocabulary"]}
        settings.check_checkpoint_fits(prepared(store, tmp_path, model__dropout=0.0), trunk, given)


def test_another_vocabulary_is_refused_naming_both(store, trunk, tmp_path, capsys):
    other = tmp_path / "store"
    shutil.copytree(store.path, other)
    manifest = json.loads((other / "store.json").read_text())
    manifest["vocabulary"]["fingerprint"] = "other-259"
    (other / "store.json").write_text(json.dumps(manifest))
    assert run(store, tmp_path / "c", INIT_FROM=str(trunk), STORE=str(other)) == 1
    error = capsys.readouterr().err
    assert "bytes-259" in error and "other-259" in error


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


# ------------------------------------------------------------------------------------- a trunk that goes further


def test_a_trunk_goes_further_and_gets_branch_points(trunk, store, tmp_path):
    """One that is made longer ends in the state of one that was long from the start; rows are written once."""
    assert (
        run(store, tmp_path / "long", STEPS=40, CHECKPOINT_STEPS=(10, 16, 32), EVAL_STEPS=(12, 24, 40)) == 0
    )
    shutil.copytree(trunk, tmp_path / "grown")
    grown = dict(STEPS=40, CHECKPOINT_STEPS=(32,), EVAL_STEPS=(12, 24, 40), RUN="trunk", train__lengthen=True)
    assert run(store, tmp_path / "grown", **grown) == 0
    assert_same_arrays(arrays(tmp_path / "grown", 40), arrays(tmp_path / "long", 40))
    assert set(checkpoints.saved_steps(tmp_path / "grown" / "checkpoints")) >= {16, 32, 40}
    keys = [(row["step"], row["language"]) for row in rows(tmp_path / "grown")]
    assert len(keys) == len(set(keys)) and {step for step, _ in keys} == {12, 16, 24, 32, 40}
    # A branch point that was passed already is made by training again from the checkpoint before it.
    assert run(store, tmp_path / "grown", **grown | {"CHECKPOINT_STEPS": (10, 20)}) == 0
    assert set(checkpoints.saved_steps(tmp_path / "grown" / "checkpoints")) >= {10, 16, 20, 32, 40}
    assert_same_arrays(arrays(tmp_path / "grown", 10), arrays(tmp_path / "long", 10))
    assert {row["step"] for row in rows(tmp_path / "grown")} >= {10, 12, 16, 20, 24, 32, 40}


def test_a_trunk_is_not_made_shorter_and_a_decayed_run_not_longer(trunk, store, tmp_path, capsys):
    assert run(store, trunk, STEPS=40) == 1
    error = capsys.readouterr().err
    assert "holds a run with steps 24, this one has 40" in error and "--gin.train.lengthen=True" in error
    assert run(store, trunk, STEPS=20, EVAL_STEPS=(12,), train__lengthen=True) == 1
    assert "holds a trunk of 24 steps" in capsys.readouterr().err
    assert run(store, tmp_path / "whole", DECAY_STEPS=4) == 0
    assert run(store, tmp_path / "whole", DECAY_STEPS=4, STEPS=40) == 1
    assert "holds a run with steps 24, this one has 40" in capsys.readouterr().err
