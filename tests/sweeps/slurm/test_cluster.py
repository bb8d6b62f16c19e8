"""The Slurm executor against a real controller and node; `make test-slurm` starts them."""

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
from studies import cell, make

from mscale.errors import MscaleError
from sweeps import spec
from sweeps.collecting.collect import collect
from sweeps.executors import local, slurm, state

if "mscale-slurm" not in os.environ.get("SLURM_CONF", ""):
    pytest.skip("no test cluster; run make test-slurm", allow_module_level=True)

FAKES = Path(__file__).resolve().parents[2] / "fakes"
FAKE_TRAINER = "fake_train:main"
TABLES = ("observations.parquet", "observations.csv", "exposure.parquet", "exposure.csv")


def small():
    unimax = cell("unimax", mixture="en+fr", steps=(50,))
    return make(cell(), unimax, cell("continue", init=unimax), cell(scale="nano1"))


def options(*setup: str) -> slurm.Options:
    return slurm.Options(cpus=1, setup=(f"export PYTHONPATH={FAKES}:$PYTHONPATH", *setup))


def wait_for(condition, seconds=120.0):
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        if value := condition():
            return value
        time.sleep(0.1)
    raise AssertionError("waited in vain")


def states(study, root) -> list[str]:
    return [one.state for one in state.read_states(study.runs, root).values()]


def began(root, run) -> int:
    path = spec.workdir(root, run.id) / "began.txt"
    return len(path.read_text().splitlines()) if path.exists() else 0


@pytest.fixture
def root(tmp_path):
    yield tmp_path / "my 1st study, 50%a"
    slurm.cancel(tmp_path / "my 1st study, 50%a")


def test_a_study_gives_the_tables_that_the_local_executor_gives(root, tmp_path, monkeypatch):
    monkeypatch.setenv("PYTHONPATH", str(FAKES))
    study = small()
    local.run(study, tmp_path / "local", workers=2, trainer=FAKE_TRAINER)
    collect(tmp_path / "local")
    slurm.run(study, root, options(), trainer=FAKE_TRAINER, poll_seconds=0.5)
    assert set(states(study, root)) == {"done"} and all(began(root, one) == 1 for one in study.runs)
    collect(root)
    for name in TABLES:
        assert (root / name).read_bytes() == (tmp_path / "local" / name).read_bytes()
    assert list((root / "logs").glob("slurm-*.out"))
    again = slurm.submit(study, root, options(), trainer=FAKE_TRAINER)
    assert (again.runs, again.done, again.arrays) == (0, len(study.runs), ())


def test_what_is_queued_is_not_submitted_again(root):
    study = small()
    first = slurm.submit(study, root, options("export FAKE_SECONDS=1"), trainer=FAKE_TRAINER)
    assert first.runs == len(study.runs)
    again = slurm.submit(study, root, options("export FAKE_SECONDS=1"), trainer=FAKE_TRAINER)
    assert again.runs == 0 and again.queued + again.done == len(study.runs)


def test_a_requeued_run_continues_from_its_checkpoint(root):
    study = make(cell(steps=(100,)))
    (one,) = study.runs
    slurm.submit(study, root, options("export FAKE_SECONDS=6"), trainer=FAKE_TRAINER)
    wait_for(lambda: state.read_run(one, root).step > 0)
    subprocess.run(["scontrol", "requeue", slurm.queued_jobs(root)[one.id]], check=True)
    wait_for(lambda: state.read_run(one, root).state == "done")
    assert began(root, one) == 2
    assert collect(root).runs == 1


def test_the_warning_before_a_time_limit_queues_the_run_again(root):
    study = make(cell(steps=(100,)))
    (one,) = study.runs
    slurm.submit(study, root, options("export FAKE_SECONDS=6"), trainer=FAKE_TRAINER)
    wait_for(lambda: state.read_run(one, root).step > 0)
    subprocess.run(["scancel", "--signal=USR1", "--batch", slurm.queued_jobs(root)[one.id]], check=True)
    wait_for(lambda: state.read_run(one, root).state == "done")
    assert began(root, one) == 2


def test_children_of_a_failed_run_start_after_it_is_fixed(root):
    study = small()
    with pytest.raises(MscaleError, match="4 of 13 runs are not done") as error:
        slurm.run(
            study,
            root,
            options("export FAKE_FAIL=nano1-en-trunk"),
            trainer=FAKE_TRAINER,
            poll_seconds=0.5,
            attempts=1,
        )
    assert "was told to fail" in str(error.value) and "blocked" in str(error.value)
    assert states(study, root).count("done") == 9 and not slurm.queued_jobs(root)
    slurm.run(study, root, options(), trainer=FAKE_TRAINER, poll_seconds=0.5)
    assert set(states(study, root)) == {"done"}


def test_cancelled_runs_leave_the_queue_and_can_be_submitted_again(root):
    study = small()
    slurm.submit(study, root, options("export FAKE_SECONDS=30"), trainer=FAKE_TRAINER)
    wait_for(lambda: "running" in states(study, root))
    assert slurm.cancel(root)
    wait_for(lambda: not slurm.queued_jobs(root))
    assert "done" not in states(study, root)
    slurm.run(study, root, options(), trainer=FAKE_TRAINER, poll_seconds=0.5)
    assert set(states(study, root)) == {"done"}


def test_two_studies_in_one_queue_do_not_see_each_other(root, tmp_path):
    study, other = make(cell()), tmp_path / "other"
    slurm.submit(study, root, options("export FAKE_SECONDS=5"), trainer=FAKE_TRAINER)
    try:
        assert slurm.submit(study, other, options(), trainer=FAKE_TRAINER).runs == len(study.runs)
    finally:
        slurm.cancel(other)
    assert slurm.queued_jobs(root)


def test_real_training_gives_the_same_observations(root, tmp_path):
    import tiny_store

    from sweeps.build import Recipe, build_study
    from sweeps.study import Cell

    store = tiny_store.write(tmp_path / "store", ("en", "fr"))
    recipe = Recipe(
        sequence_length=16,
        batch_size=2,
        learning_rate=0.01,
        warmup_steps=2,
        evaluations=2,
        bindings={"EVAL_TOKENS": 256, "PROGRESS": False},
    )
    study = build_study("tiny", [Cell("mono", "nano0", "en", (320, 640))], recipe, store)
    local.run(study, tmp_path / "local", workers=1)
    collect(tmp_path / "local")
    # A run's arithmetic depends on its threads: one core, as the local executor gives.
    one_core = (
        'export OMP_NUM_THREADS=1 JAX_PLATFORMS=cpu XLA_FLAGS="$XLA_FLAGS --xla_cpu_multi_thread_eigen=false"',
        "taskset -cp 0 $$ >/dev/null",
    )
    slurm.run(study, root, slurm.Options(cpus=1, setup=one_core, python=sys.executable), poll_seconds=1)
    collect(root)
    for name in TABLES:
        assert (root / name).read_bytes() == (tmp_path / "local" / name).read_bytes()
