"""Runs studies on this machine with the fake trainer, also by a runner in a process of its own."""

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
from studies import cell, make

FAKES = Path(__file__).resolve().parent


FAKE_TRAINER = "fake_train:main"


@pytest.fixture(autouse=True)
def fake_trainer_on_path(monkeypatch):
    """Lets worker processes import the fake trainer."""
    monkeypatch.setenv("PYTHONPATH", str(FAKES))


def small_study():
    unimax = cell("unimax", mixture="en+fr", steps=(50,))
    return make(cell(), unimax, cell("continue", init=unimax), cell(scale="nano1"))


RUNNER = """
import sys, pickle, signal
signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background job starts with it ignored
from sweeps.executors import local
from mscale.errors import MscaleError
study = pickle.load(open(sys.argv[1], "rb"))
try:
    local.run(study, sys.argv[2], workers=int(sys.argv[3]), trainer="fake_train:main", attempts=1000)
except MscaleError as error:
    sys.exit(str(error))
"""


def start_runner(study, root, workers=2, seconds=0.0):
    import pickle

    root.mkdir(exist_ok=True)
    target = root.parent / f"{root.name}.pickle"
    target.write_bytes(pickle.dumps(study))
    path = os.pathsep.join([str(FAKES.parents[1]), str(FAKES)])
    return subprocess.Popen(
        [sys.executable, "-c", RUNNER, str(target), str(root), str(workers)],
        env={**os.environ, "PYTHONPATH": path, "FAKE_SECONDS": str(seconds)},
        stderr=subprocess.PIPE,
    )


def wait_for(condition, seconds=20.0):
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        if value := condition():
            return value
        time.sleep(0.02)
    raise AssertionError(f"nothing happened within {seconds} s")
