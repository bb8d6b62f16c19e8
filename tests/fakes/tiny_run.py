"""Tiny training runs for tests: two languages, a few dozen steps, about a second."""

import json
import os
from pathlib import Path

import numpy as np
import orbax.checkpoint as ocp
import tiny_store

from mscale import observations, train
from mscale.training import checkpoints

ROOT = Path(__file__).resolve().parents[2]
B, S = 4, 16


def store(tmp_path_factory):
    """A tiny store; also sets a compile cache that the processes of all tests share."""
    if "MSCALE_COMPILE_CACHE" not in os.environ:
        os.environ["MSCALE_COMPILE_CACHE"] = str(tmp_path_factory.mktemp("compiled"))
    return tiny_store.write(tmp_path_factory.mktemp("tiny") / "store")


def arguments(store, workdir, **macros):
    """The command line of a tiny run; ``macros`` override its values, ``model__dropout`` is model.dropout."""
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
    path = checkpoints.checkpoint_path(workdir / "checkpoints", step)
    checkpoints.verify(path)
    reader = ocp.Checkpointer(ocp.PyTreeCheckpointHandler(use_ocdbt=True, use_zarr3=True))
    return {name: np.asarray(value) for name, value in reader.restore(path / "state").items()}


def assert_same_arrays(a, b):
    assert a.keys() == b.keys()
    for name in a:
        assert np.array_equal(a[name], b[name]), name


def prepared(store, workdir, **macros):
    """The run with these settings, resolved but not trained."""
    with train.launch.configured(train.launch.parse_arguments(arguments(store, workdir, **macros))):
        return train.prepare_run(train.read_settings())
