"""A batch in parts, on meshes, by other axis rules: the same training. Table B.2, curves and speed."""

import sys

import jax
import numpy as np
import pytest
import tiny_store
from test_partitioning import eight_devices
from test_train import prepared, run

from mscale import model, partitioning, scales, step, tracking, train
from mscale.errors import MscaleError

MESHES = """
import pathlib, sys, threading
sys.path.insert(0, "tests")
import numpy as np
import tiny_store
from test_train import arguments, rows
from mscale import train

root = pathlib.Path({root!r})
store = tiny_store.write(root / "store")
common = {{"BATCH_SIZE": 8, "STEPS": 16, "EVAL_STEPS": (16,), "model__dropout": 0.0}}
two_two_two = {{"mesh__data": 2, "mesh__fsdp": 2, "mesh__tensor": 2}}

def stopped(name, **macros):
    parsed = train.launch.parse(arguments(store, root / name, **common | macros))
    stop = threading.Event()
    stop.set()
    with train.launch.configured(parsed):
        return train.run_to_end(train.prepare(train.Settings()), stop)

def losses(name, **macros):
    assert train.main(arguments(store, root / name, **common | macros)) == 0
    return [row["loss"] for row in rows(root / name)]

one = losses("one", **{{"mesh__data": 8, "logical_axis_rules__overrides": {{"batch": None, "embed": None}}}})
assert stopped("moved", **two_two_two) == train.PREEMPTED
moved = losses("moved", **{{"mesh__fsdp": 4, "mesh__tensor": 2, "ACCUMULATE": 2}})
np.testing.assert_allclose(moved, one, rtol=1e-4)
assert train.main(arguments(store, root / "w", **common | {{"BATCH_SIZE": 12}})) == 1
assert train.main(arguments(store, root / "w", **common | {{"mesh__fsdp": 3}})) == 1
"""


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    return tiny_store.write(tmp_path_factory.mktemp("tiny") / "store")


def test_parts_of_a_batch_give_its_gradients():
    config = model.ModelConfig(scales.get("nano0"), 32)
    params = model.init_params(config, jax.random.key(0))
    targets = jax.random.randint(jax.random.key(1), (12, 8), 0, 32)
    whole = step.gradients(config, params, targets, None)
    for parts in (2, 3):
        found = step.gradients(config, params, targets, None, parts)
        for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(whole), strict=True):
            np.testing.assert_allclose(a, b, rtol=2e-4, atol=1e-6)


@pytest.mark.slow
def test_a_run_moves_between_meshes(tmp_path):
    """From 2x2x2 devices to 1x4x2 with the batch in two parts; against a run that holds everything everywhere."""
    eight_devices(MESHES.format(root=str(tmp_path)))


def test_axis_rules():
    rules = dict(partitioning.logical_axis_rules({"heads": None, "embed": ["fsdp", "tensor"]}))
    assert rules["heads"] is None and rules["embed"] == ("fsdp", "tensor") and rules["mlp"] == "tensor"
    with pytest.raises(MscaleError, match="did you mean 'heads'"):
        partitioning.logical_axis_rules({"head": None})
    with pytest.raises(MscaleError, match="did you mean 'tensor'"):
        partitioning.logical_axis_rules({"mlp": "tensors"})


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"ACCUMULATE": 3}, "expected a divisor of BATCH_SIZE, 4"),
        ({"BATCH_SIZE": "by scale"}, "BATCH_SIZE is 'by scale'"),
        ({"SEQUENCE_LENGTH": 10_000}, "en"),
        ({"logical_axis_rules__overrides": {"mlps": None}}, "did you mean 'mlp'"),
    ],
)
def test_wrong_settings(store, tmp_path, capsys, changes, message):
    assert run(store, tmp_path / "w", **changes) == 1
    error = capsys.readouterr().err
    assert error.startswith("error: ") and message in error, error


def test_atlas_is_table_b2(store):
    values = {"SCALE": 0, "MIXTURE": "en", "STORE": str(store.path), "WORKDIR": "w"}
    overrides = [f"--gin.{name}={value!r}" for name, value in values.items()]
    parsed = train.launch.parse(["--gin_file=gin/train/atlas.gin", *overrides])
    with train.launch.configured(parsed):
        s = train.Settings()
        assert (s.learning_rate, s.warmup_steps, s.sequence_length, s.steps) == (2e-4, 1000, 2048, 30_000)
        assert s.decay_steps * 10 == s.steps and s.batch_size == "by size"
    for parameters, batch in ((149e6, 256), (150e6, 512), (999e6, 512), (1e9, 1024), (2e9, 2048)):
        assert scales.atlas_batch_size(int(parameters)) == batch


def test_batch_size_by_size(store):
    assert prepared(store, "w", BATCH_SIZE="by size").batch_size == 256


def test_speed_counts_attention_and_knows_the_peak(store):
    one = prepared(store, "w", PEAK_FLOPS=1e12)
    flops = scales.flops_per_token(one.model.shape, 259, 16)
    assert tracking.speed_note(one, 0.5e12 / flops).endswith("50.0% MFU")
    assert "GFLOP/s" in tracking.speed_note(prepared(store, "w"), 1000.0)


def test_curves_of_what_is_not_installed_are_refused(store, tmp_path, capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "wandb", None)
    assert run(store, tmp_path / "w", WANDB="p") == 1
    assert "wandb is not installed" in capsys.readouterr().err


def test_tensorboard_gets_the_curves_without_tensorflow(store, tmp_path, monkeypatch):
    pytest.importorskip("tensorboard")
    monkeypatch.setitem(sys.modules, "tensorflow", None)  # importing it raises
    assert run(store, tmp_path / "w", TENSORBOARD=True) == 0
    assert list((tmp_path / "w" / "tensorboard").glob("events.out.tfevents.*"))
