"""Locks of studies and runs: who holds a folder, and when it is free, with real processes."""

import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
from local_runs import wait_for

from mscale import run_folder
from mscale.errors import MscaleError
from mscale.run_folder import Heartbeat
from sweeps.executors import liveness

HOLDER = """
import os, sys, time
from pathlib import Path
from sweeps.executors import liveness
with liveness.study_lock(Path(sys.argv[1])):
    child = os.fork()
    if child:
        print(child, flush=True)
    time.sleep(60)
"""


@pytest.fixture
def other(tmp_path):
    """A process that holds the study ``tmp_path``, and the id of a child that it has forked."""
    path = os.pathsep.join([str(Path(liveness.__file__).resolve().parents[2]), *sys.path])
    process = subprocess.Popen(
        [sys.executable, "-c", HOLDER, str(tmp_path)],
        stdout=subprocess.PIPE,
        env={**os.environ, "PYTHONPATH": path},
    )
    child = int(process.stdout.readline())
    yield process, child
    process.kill()
    process.wait()
    process.stdout.close()
    os.kill(child, signal.SIGKILL)


def test_a_second_runner_is_told_who_the_first_is(tmp_path, other):
    process, _ = other
    named = f"another runner works on this study \\(process {process.pid} on {socket.gethostname()}\\)"
    with pytest.raises(MscaleError, match=named), liveness.study_lock(tmp_path):
        pass


def test_a_stopped_process_holds_and_a_killed_one_frees_at_once_though_its_child_lives(tmp_path, other):
    process, child = other
    process.send_signal(signal.SIGSTOP)
    wait_for(lambda: Path(f"/proc/{process.pid}/stat").read_text().rpartition(")")[2].split()[0] == "T")
    assert liveness.holder(tmp_path).pid == process.pid
    with pytest.raises(MscaleError, match="another runner"), liveness.study_lock(tmp_path):
        pass
    process.kill()
    process.wait()
    wait_for(
        lambda: liveness.holder(tmp_path) is None, 5
    )  # the kernel frees it with the process's last thread
    with liveness.study_lock(tmp_path):
        assert liveness.holder(tmp_path).pid == os.getpid()
    os.kill(child, 0)


def test_a_run_waits_for_its_folder_and_then_gives_up(tmp_path):
    with liveness.run_lock(tmp_path):
        assert liveness.holder(tmp_path).host == socket.gethostname()
        with (
            pytest.raises(
                MscaleError, match=f"another process is training this run .process {os.getpid()} on"
            ),
            liveness.run_lock(tmp_path, 0.1),
        ):
            pass
    assert liveness.holder(tmp_path) is None
    assert not (tmp_path / run_folder.HEARTBEAT_FILE).exists()


def test_a_process_of_another_machine_holds_while_its_heart_beats(tmp_path):
    now = time.time()
    run_folder.write_heartbeat(tmp_path, Heartbeat("elsewhere", 1, "", now - 900, now))
    assert liveness.holder(tmp_path).host == "elsewhere"
    with pytest.raises(MscaleError, match="process 1 on elsewhere"), liveness.study_lock(tmp_path):
        pass
    late = now - liveness.HEARTBEAT_EXPIRY_SECONDS - 1
    run_folder.write_heartbeat(tmp_path, Heartbeat("elsewhere", 1, "", now - 900, late))
    assert liveness.holder(tmp_path) is None
    with liveness.study_lock(tmp_path):
        pass


def test_heartbeats_go_on_while_the_folder_is_held(tmp_path, monkeypatch):
    monkeypatch.setattr(liveness, "HEARTBEAT_SECONDS", 0.02)
    with liveness.run_lock(tmp_path):
        first = run_folder.read_heartbeat(tmp_path)
        assert wait_for(lambda: run_folder.read_heartbeat(tmp_path).when > first.when)
        assert run_folder.read_heartbeat(tmp_path).began == first.began
