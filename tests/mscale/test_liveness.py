"""Locks of studies and runs: who holds a folder, and when it is free, with real processes."""

import os
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
from local_runs import wait_for

from mscale import liveness, run_folder
from mscale.errors import MscaleError
from mscale.run_folder import Heartbeat

HOLDER = """
import os, sys, time
from pathlib import Path
from mscale import liveness
lock = getattr(liveness, sys.argv[2])
with lock(Path(sys.argv[1])):
    child = os.fork()
    if child:
        print(child, flush=True)
    time.sleep(60)
"""


@pytest.fixture
def other(tmp_path, request):
    """A process that holds the study (or run) ``tmp_path``, and the id of a child that it has forked."""
    lock = getattr(request, "param", "study_lock")
    path = os.pathsep.join([str(Path(liveness.__file__).resolve().parents[1]), *sys.path])
    process = subprocess.Popen(
        [sys.executable, "-c", HOLDER, str(tmp_path), lock],
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


@pytest.mark.parametrize("other", ["run_lock"], indirect=True)
def test_a_run_waits_for_its_folder_and_then_gives_up(tmp_path, other):
    process, _ = other
    named = f"another process is training this run .process {process.pid} on {socket.gethostname()}"
    with pytest.raises(MscaleError, match=named), liveness.run_lock(tmp_path, 0.1):
        pass
    threading.Timer(0.5, process.kill).start()
    with liveness.run_lock(tmp_path, 20):
        pass


def test_the_trainer_in_a_worker_finds_the_folder_held_by_its_own_process(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with liveness.run_lock(tmp_path / "run"):
        with liveness.run_lock(Path("run")):
            pass
        assert liveness.holder(tmp_path / "run").pid == os.getpid()
    assert liveness.holder(tmp_path / "run") is None
    assert not (tmp_path / "run" / run_folder.HEARTBEAT_FILE).exists()


def test_a_run_of_another_machine_is_taken_over_where_no_heartbeat_follows(tmp_path, monkeypatch):
    monkeypatch.setattr(liveness, "HEARTBEAT_SECONDS", 0.2)
    first = Heartbeat("elsewhere", 1, "", 0.0, time.time())
    run_folder.write_heartbeat(tmp_path, first)
    with liveness.run_lock(tmp_path):
        assert liveness.holder(tmp_path).pid == os.getpid()
    run_folder.write_heartbeat(tmp_path, first)
    second = Heartbeat("elsewhere", 1, "", 0.0, time.time() + 1)
    threading.Timer(0.1, run_folder.write_heartbeat, (tmp_path, second)).start()
    with pytest.raises(MscaleError, match="process 1 on elsewhere"), liveness.run_lock(tmp_path):
        pass


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


def test_a_heartbeat_from_the_future_says_what_to_delete(tmp_path):
    now = time.time()
    run_folder.write_heartbeat(tmp_path, Heartbeat("elsewhere", 1, "", now, now + 7 * 86_400))
    remedy = f"if process 1 on elsewhere has ended, delete heartbeat.json in {tmp_path}"
    with pytest.raises(MscaleError, match=remedy), liveness.study_lock(tmp_path):
        pass
