"""Locks and heartbeats: who works on a study's folder, and which process trains a run.

A lease keeps two runners off one study, a file lock (flock) two processes of one machine off one run. A heartbeat file
shows other machines that a run's process is alive.
"""

import contextlib
import fcntl
import json
import os
import socket
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from mscale.errors import MscaleError
from mscale.files import atomic_json, writing

LEASE_EXPIRY_SECONDS = 90.0
LEASE_RENEWAL_SECONDS = 10.0
HEARTBEAT_INTERVAL_SECONDS = 15.0
_LOCK_TIMEOUT_SECONDS = 30.0


@contextlib.contextmanager
def study_lease(root: str | Path) -> Iterator[Callable[[], None]]:
    """Holds the lease on a study's folder; yields a function that renews it, to be called regularly.

    A lease of a process on this machine is valid while that process lives; one of another machine for
    ``LEASE_EXPIRY_SECONDS`` after its last renewal.

    Raises:
      MscaleError: another runner holds the lease. The yielded function raises it where another runner took the lease
        over after it expired.
    """
    root = Path(root)
    path = root / "lease.json"
    holder: dict[str, Any] = {
        "host": socket.gethostname(),
        "pid": os.getpid(),
        "process_started": _process_start(os.getpid()),
        "since": time.time(),
    }
    with _lease_file_locked(root):
        other = read_lease(root)
        if other and lease_holder_is_alive(other):
            raise MscaleError(
                f"{root}: another runner works on this study (process {other['pid']} on {other['host']}); "
                "wait for it or stop it first"
            )
        atomic_json(path, {**holder, "renewed": time.time()})
    last_renewal = time.monotonic()

    def renew() -> None:
        nonlocal last_renewal
        if time.monotonic() - last_renewal < LEASE_RENEWAL_SECONDS:
            return
        with _lease_file_locked(root):
            if not _same_holder(read_lease(root), holder):
                raise MscaleError(
                    f"{path}: another runner took this study over while this one was stopped; this one ends"
                )
            atomic_json(path, {**holder, "renewed": time.time()})
        last_renewal = time.monotonic()

    try:
        yield renew
    finally:
        with contextlib.suppress(OSError, MscaleError), _lease_file_locked(root):
            if _same_holder(read_lease(root), holder):
                path.unlink()


def read_lease(root: str | Path) -> dict[str, Any] | None:
    """The content of lease.json, or None where there is no readable lease."""
    try:
        lease = json.loads((Path(root) / "lease.json").read_text(encoding="utf-8"))
        return lease if {"host", "pid"} <= set(lease) else None
    except (OSError, ValueError, TypeError):
        return None


def lease_holder_is_alive(holder: dict[str, Any]) -> bool:
    """Whether the lease is valid: its process lives, or it is of another machine and has not expired."""
    if holder["host"] != socket.gethostname():
        return time.time() - float(holder.get("renewed", 0)) < LEASE_EXPIRY_SECONDS
    started = _process_start(int(holder["pid"]))
    return started is not None and started == holder.get("process_started")


def _same_holder(lease: dict[str, Any] | None, holder: dict[str, Any]) -> bool:
    return lease is not None and all(lease.get(name) == value for name, value in holder.items())


def _process_start(pid: int) -> int | None:
    """Start time of a live process in clock ticks since boot, which tells a reused pid; None if it is dead."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return None
    return None if fields[0] in "ZX" else int(fields[19])


@contextlib.contextmanager
def _lease_file_locked(root: Path) -> Iterator[None]:
    with writing(root):
        root.mkdir(parents=True, exist_ok=True)
        file = open(root / ".lease.lock", "w")  # noqa: SIM115
    with file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


@contextlib.contextmanager
def heartbeat(folder: Path, seconds: float = HEARTBEAT_INTERVAL_SECONDS) -> Iterator[None]:
    """Rewrites ``heartbeat.json`` in a run's folder every ``seconds`` while the block runs.

    It shows runners on other machines that the process lives, on which host and as which job. Its progress is in the
    trainer's ``status.json``.
    """
    job = os.environ.get("SLURM_JOB_ID") or os.environ.get("JOBSET_NAME") or ""
    process = {"host": socket.gethostname(), "pid": os.getpid(), "job": job, "began": time.time()}
    ended = threading.Event()

    def beat() -> None:
        while True:
            with contextlib.suppress(MscaleError):  # the trainer reports a full disk
                atomic_json(folder / "heartbeat.json", {**process, "when": time.time()})
            if ended.wait(seconds):
                return

    thread = threading.Thread(target=beat, daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()


def read_heartbeat(folder: Path) -> dict[str, Any]:
    """The content of ``heartbeat.json`` in a run's folder; empty where there is none that can be read."""
    try:
        found = json.loads((folder / "heartbeat.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


@contextlib.contextmanager
def run_lock(folder: Path, seconds: float = _LOCK_TIMEOUT_SECONDS) -> Iterator[None]:
    """Holds an flock on the run's folder, which the kernel releases when the process ends for any reason.

    Raises:
      MscaleError: another process still holds it after ``seconds``.
    """
    with open(folder / ".lock", "w") as file:
        deadline = time.monotonic() + seconds
        while True:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if time.monotonic() > deadline:
                    raise MscaleError(
                        f"{folder}: another process is training this run; stop it, then run again"
                    ) from None
                time.sleep(0.05)
        yield


def is_locked(folder: Path) -> bool:
    """Whether a live process of this machine holds ``run_lock``."""
    try:
        with open(folder / ".lock") as file:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except FileNotFoundError:
        return False
    except BlockingIOError:
        return True
    return False
