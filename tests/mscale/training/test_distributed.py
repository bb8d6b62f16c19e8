"""Several processes on loopback: the losses of one process, one stop signal for all, and no process that hangs."""

import json
import os
import signal
import socket
import subprocess
import sys
import time

import pytest
import tiny_store
from tiny_run import ROOT, B, S, arguments, rows, status

from mscale import run_folder, train
from mscale.data import schedule
from mscale.errors import MscaleError
from mscale.training import checkpoints, distributed, settings

MACROS = {"model__dropout": 0.0, "CHECKPOINT_EVERY": 10_000}


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    return tiny_store.write(tmp_path_factory.mktemp("tiny") / "store")


# Runs mscale.train and records the windows that the process reads from the store.
READS = """
import json, sys
from mscale import train
from mscale.data import store
from mscale.training import distributed
gather_windows = store.Store.gather_windows
def written(self, languages, windows, sequence_length):
    with open(sys.argv[1], "a") as file:
        file.write(json.dumps([languages, windows]) + "\\n")
    return gather_windows(self, languages, windows, sequence_length)
store.Store.gather_windows = written
with distributed.exit_at_once_on_error():
    sys.exit(train.main(sys.argv[2:]))
"""


def start(store, workdir, processes, **macros):
    """Starts the processes of one run, each with its own log."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{probe.getsockname()[1]}"
    environment = os.environ | {
        "JAX_PLATFORMS": "cpu",
        "MSCALE_COORDINATOR": address,
        "MSCALE_PROCESSES": str(processes),
    }
    started = []
    for process in range(processes):
        log = open(f"{workdir}.{process}.log", "w+")  # noqa: SIM115
        environment["MSCALE_PROCESS_ID"] = str(process)
        command = [sys.executable, "-c", READS, f"{workdir}.{process}.reads"]
        command += arguments(store, workdir, **MACROS | macros)
        started.append(subprocess.Popen(command, cwd=ROOT, env=environment, stderr=log))
        started[-1].log = log
    return started


def ended(started, timeout=110):
    """Waits for the processes; returns their exit statuses and logs."""
    deadline = time.monotonic() + timeout
    try:
        codes = [process.wait(max(deadline - time.monotonic(), 0.1)) for process in started]
    finally:
        for process in started:
            process.kill()
    logs = []
    for process in started:
        process.log.seek(0)
        logs.append(process.log.read())
    return codes, "\n".join(logs)


def await_steps(workdir, started, timeout=100):
    deadline = time.monotonic() + timeout
    while not (workdir / "metrics.jsonl").exists() and time.monotonic() < deadline:
        assert all(process.poll() is None for process in started), ended(started)[1]
        time.sleep(0.01)


@pytest.mark.parametrize("processes", [2, pytest.param(4, marks=pytest.mark.slow)])
def test_several_processes_give_the_losses_of_one(store, tmp_path, processes):
    codes, logs = ended(start(store, tmp_path / "many", processes))
    assert codes == [0] * processes, logs
    assert train.main(arguments(store, tmp_path / "one", **MACROS)) == 0
    many, one = rows(tmp_path / "many"), rows(tmp_path / "one")
    assert len((tmp_path / "many" / "observations.jsonl").read_text().splitlines()) == len(one)
    for found, expected in zip(many, one, strict=True):
        assert found["loss"] == pytest.approx(expected["loss"], rel=1e-4)
        assert found["target_tokens"] == expected["target_tokens"]
    # Each host read its own rows of every batch and no others.
    plan = schedule.single(settings.resolve("en+fr", store, S), B, 0)
    share = B // processes
    for process in range(processes):
        lines = (tmp_path / f"many.{process}.reads").read_text().splitlines()
        reads = [json.loads(line) for line in lines]
        assert len(reads) == 24
        for step, (languages, windows) in enumerate(reads):
            ids, expected = plan.batch(step, slice(process * share, (process + 1) * share))
            assert windows == expected.tolist()
            assert languages == [plan.languages[i] for i in ids]


@pytest.mark.slow
def test_sigterm_at_one_stops_all_at_one_step_and_one_host_goes_on(store, tmp_path):
    long = {"STEPS": 2000, "EVAL_STEPS": (2000,)}
    started = start(store, tmp_path / "r", 2, **long)
    await_steps(tmp_path / "r", started)
    started[1].send_signal(signal.SIGTERM)
    codes, logs = ended(started)
    assert codes == [run_folder.PREEMPTED_EXIT_STATUS] * 2, logs
    saved = checkpoints.saved_steps(tmp_path / "r" / "checkpoints")
    assert len(saved) == 1 and status(tmp_path / "r")["step"] == saved[0]
    assert logs.count(f"SIGTERM at step {saved[0]};") == 2
    assert train.main(arguments(store, tmp_path / "r", **MACROS | long)) == 0
    assert status(tmp_path / "r")["state"] == "done"


@pytest.mark.slow
@pytest.mark.parametrize("victim", [0, 1])
def test_when_one_dies_the_others_end_with_an_error(store, tmp_path, victim):
    started = start(store, tmp_path / "r", 2, STEPS=1_000_000, EVAL_STEPS=(1_000_000,))
    await_steps(tmp_path / "r", started)
    started[victim].kill()
    died = time.monotonic()
    codes, logs = ended(started)
    print(f"the other ended {time.monotonic() - died:.1f} s later")
    assert codes[1 - victim] not in (0, run_folder.PREEMPTED_EXIT_STATUS), logs


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (("host:1", None, 0), "hosts.processes .* is None"),
        (("host:1", 2, 2), "expected 0 to 1"),
        (("host", 2, 0), "expected host:port"),
    ],
)
def test_wrong_addresses(values, message):
    with pytest.raises(MscaleError, match=message):
        distributed.initialize(*values)
