"""Who is at work in a folder: one process at a time runs a study, and one trains a run.

The lock is flock(2) on ``.lock`` (``mscale.files.locked``): the kernel frees it when the process ends for any reason, a
stopped process keeps it, and child processes do not inherit it. It names nobody, and some network file systems keep it
to one machine. So the process that holds it also writes ``heartbeat.json`` beside it, every ``HEARTBEAT_SECONDS``: it
names host and process, and other machines take the process for dead ``HEARTBEAT_EXPIRY_SECONDS`` after the last one.

The trainer holds the lock of its run's folder. The worker of a study takes it before, since it writes the log and the
failure of a run too; the trainer in its process then finds it held.
"""

import contextlib
import fcntl
import os
import socket
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from mscale import run_folder
from mscale.errors import MscaleError
from mscale.files import locked
from mscale.run_folder import Heartbeat

HEARTBEAT_SECONDS = 15.0
HEARTBEAT_EXPIRY_SECONDS = 8 * HEARTBEAT_SECONDS
_LOCK_FILE = ".lock"
_STUDY_TIMEOUT_SECONDS = 1.0  # `holder` takes the lock for an instant
_RUN_TIMEOUT_SECONDS = 1.0
_here: set[Path] = set()  # folders of runs that this process holds


@contextlib.contextmanager
def study_lock(root: Path) -> Iterator[None]:
    """Holds a study's folder while the block runs, so that it has one runner.

    Raises:
      MscaleError: another runner holds it, on this machine or another; the message names both.
    """
    busy = "another runner works on this study"
    other = holder(root)
    if other is not None and other.host != socket.gethostname():
        raise MscaleError(_message(root, busy))
    with _held(root, busy, _STUDY_TIMEOUT_SECONDS):
        yield


@contextlib.contextmanager
def run_lock(folder: Path, seconds: float = _RUN_TIMEOUT_SECONDS) -> Iterator[None]:
    """Holds a run's folder while the block trains it; where this process holds it already, does nothing.

    Raises:
      MscaleError: another process still holds it after ``seconds``, on this machine or another; the message names it.
    """
    folder = folder.resolve()
    if folder in _here:
        yield
        return
    busy = "another process is training this run"
    if _beats_elsewhere(folder):
        raise MscaleError(_message(folder, busy))
    with _held(folder, busy, seconds):
        _here.add(folder)
        try:
            yield
        finally:
            _here.remove(folder)


def holder(folder: Path) -> Heartbeat | None:
    """The live process that holds a folder, on this machine or another; None if nobody does."""
    found, here, now = run_folder.read_heartbeat(folder), socket.gethostname(), time.time()
    if _is_locked(folder):
        return found or Heartbeat(here, 0, "", now, now)  # it has not yet written its first heartbeat
    if found is not None and found.host != here and now - found.when < HEARTBEAT_EXPIRY_SECONDS:
        return found
    return None


def _beats_elsewhere(folder: Path) -> bool:
    """Whether a process of another machine writes heartbeats; the one found may be its last, so wait for another."""
    found = holder(folder)
    if found is None or found.host == socket.gethostname():
        return False
    deadline = time.monotonic() + 2 * HEARTBEAT_SECONDS
    while time.monotonic() < deadline:
        time.sleep(HEARTBEAT_SECONDS / 15)
        latest = run_folder.read_heartbeat(folder)
        if latest is None or latest != found:
            return latest is not None
    return False


@contextlib.contextmanager
def _held(folder: Path, busy: str, seconds: float) -> Iterator[None]:
    with locked(folder / _LOCK_FILE, _message(folder, busy), seconds), _heartbeats(folder):
        yield


def _message(folder: Path, busy: str) -> str:
    other = run_folder.read_heartbeat(folder)
    who = f" (process {other.pid} on {other.host})" if other else ""
    remedy = from_the_future(folder, other) if other else ""
    return f"{folder}: {busy}{who}; {remedy or 'wait for it or stop it, then run again'}"


def from_the_future(folder: Path, process: Heartbeat, status_updated: float = 0.0) -> str:
    """What to do where a heartbeat or status lies so far in the future that it would hold a folder for ever, else "".

    Args:
      status_updated: time of the run's status.
    """
    ahead = max(process.began, process.when, status_updated) - time.time()
    if ahead < HEARTBEAT_EXPIRY_SECONDS:
        return ""
    files = run_folder.HEARTBEAT_FILE + (f" and {run_folder.STATUS_FILE}" if status_updated else "")
    return (
        f"its last sign of life is {ahead:,.0f} s in the future, so the clocks of two machines differ; if process "
        f"{process.pid} on {process.host} has ended, delete {files} in {folder}"
    )


@contextlib.contextmanager
def _heartbeats(folder: Path) -> Iterator[None]:
    """Writes this process's heartbeats while the block runs; then removes them."""
    job = os.environ.get("SLURM_JOB_ID") or os.environ.get("JOBSET_NAME") or ""
    host, pid, began = socket.gethostname(), os.getpid(), time.time()

    def beat() -> None:
        with contextlib.suppress(MscaleError):  # a full disk is reported by what else is written
            run_folder.write_heartbeat(folder, Heartbeat(host, pid, job, began, time.time()))

    def repeat(ended: threading.Event) -> None:
        while not ended.wait(HEARTBEAT_SECONDS):
            beat()

    beat()
    try:
        with running_beside(repeat):
            yield
    finally:
        with contextlib.suppress(OSError):
            (folder / run_folder.HEARTBEAT_FILE).unlink(missing_ok=True)


@contextlib.contextmanager
def running_beside(work: Callable[[threading.Event], None]) -> Iterator[None]:
    """Runs ``work`` in a thread beside the block; its argument is set when the block ends, which then waits for it."""
    ended = threading.Event()
    thread = threading.Thread(target=work, args=(ended,), daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()


def _is_locked(folder: Path) -> bool:
    """Whether a process of this machine holds the lock; needs read access alone, for a study of another user."""
    try:
        with open(folder / _LOCK_FILE) as file:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except (FileNotFoundError, NotADirectoryError):
        pass
    return False
