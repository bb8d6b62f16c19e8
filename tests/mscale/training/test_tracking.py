"""Live metrics of a run: speed, and curves in TensorBoard or Weights & Biases."""

import sys
import types

import pytest
import tiny_run
from tiny_run import prepared, run

from mscale import scales
from mscale.training import tracking


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    return tiny_run.store(tmp_path_factory)


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


def test_weights_and_biases_get_the_losses_at_their_steps(store, tmp_path, monkeypatch):
    sent, ended = [], []
    one = types.SimpleNamespace(
        log=lambda values, step: sent.append((step, values)), finish=lambda: ended.append(1)
    )
    asked = {}
    wandb = types.SimpleNamespace(init=lambda **options: asked.update(options) or one)
    monkeypatch.setitem(sys.modules, "wandb", wandb)
    assert run(store, tmp_path / "w", WANDB="my-project", STEPS=16, EVAL_STEPS=(12, 16)) == 0
    assert asked["project"] == "my-project" and asked["id"] == "w" and asked["resume"] == "allow"
    metrics = [(step, values["loss"]) for step, values in sent if "loss" in values]
    rows = tiny_run.observations.read_jsonl(tmp_path / "w" / "metrics.jsonl")
    assert metrics == [(row["step"], row["loss"]) for row in rows]
    found = {(step, name): value for step, values in sent for name, value in values.items()}
    for row in tiny_run.rows(tmp_path / "w"):
        assert found[row["step"], f"valid/{row['language']}"] == row["loss"]
    assert ended == [1]
