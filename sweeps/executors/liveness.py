"""A lease on a study's folder, so that two runners do not work on it at once."""

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


@contextlib.contextmanager
def study_lease(root: str | Path) -> Iterator[Callable[[], None]]:
    """Holds ``root`` for this process; yields a function to call now and then, which renews the lease.

    An owner on this machine holds it while its process lives; one on another machine for ``EXPIRY_SECONDS``
    after it last renewed.

    Raises:
      MscaleError: another runner holds it (also from the yielded function, if it took over meanwhile).
    """
    root = Path(root)
    path = root / "lease.json"
    mine: dict[str, Any] = {
        "host": socket.gethostname(),
        "pid": os.getpid(),
        "process_started": _process_start(os.getpid()),
        "since": time.time(),
    }
    with _guard(root):
        other = read_lease(root)
        if other and lease_holder_is_alive(other):
            raise MscaleError(
                f"{root}: another runner works on this study (process {other['pid']} on {other['host']}); "
                "wait for it or stop it first"
            )
        atomic_json(path, {**mine, "renewed": time.time()})
    last = time.monotonic()

    def renew() -> None:
        nonlocal last
        if time.monotonic() - last < LEASE_RENEWAL_SECONDS:
            return
        with _guard(root):
            if not _same(read_lease(root), mine):
                raise MscaleError(
                    f"{path}: another runner took this study over while this one was stopped; this one ends"
                )
            atomic_json(path, {**mine, "renewed": time.time()})
        last = time.monotonic()

    try:
        yield renew
    finally:
        with contextlib.suppress(OSError, MscaleError), _guard(root):
            if _same(read_lease(root), mine):
                path.unlink()


def read_lease(root: str | Path) -> dict[str, Any] | None:
    """The lease as it stands, or None."""
    try:
        owner = json.loads((Path(root) / "lease.json").read_text(encoding="utf-8"))
        return owner if {"host", "pid"} <= set(owner) else None
    except (OSError, ValueError, TypeError):
        return None


def lease_holder_is_alive(owner: dict[str, Any]) -> bool:
    """Whether the lease's owner still lives, as far as this machine can tell."""
    if owner["host"] != socket.gethostname():
        return time.time() - float(owner.get("renewed", 0)) < LEASE_EXPIRY_SECONDS
    started = _process_start(int(owner["pid"]))
    return started is not None and started == owner.get("process_started")


def _same(owner: dict[str, Any] | None, mine: dict[str, Any]) -> bool:
    return owner is not None and all(owner.get(name) == value for name, value in mine.items())


def _process_start(pid: int) -> int | None:
    """Start of a live process in clock ticks since boot (a reused pid has another), or None."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return None
    return None if fields[0] in "ZX" else int(fields[19])


@contextlib.contextmanager
def _guard(root: Path) -> Iterator[None]:
    with writing(root):
        root.mkdir(parents=True, exist_ok=True)
        file = open(root / ".lease.lock", "w")  # noqa: SIM115
    with file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


_LOCK_TIMEOUT_SECONDS = 30.0


HEARTBEAT_INTERVAL_SECONDS = 15.0


@contextlib.contextmanager
def heartbeat(folder: Path, seconds: float = HEARTBEAT_INTERVAL_SECONDS) -> Iterator[None]:
    """Replaces ``heartbeat.json`` in a run's folder every ``seconds`` while the block runs.

    It says that the process lives, on which host and as which job, to runners that cannot see it; whether it gets
    on is told by the trainer's ``status.json``.
    """
    from mscale.errors import MscaleError
    from mscale.files import atomic_json

    job = os.environ.get("SLURM_JOB_ID") or os.environ.get("JOBSET_NAME") or ""
    mine = {"host": socket.gethostname(), "pid": os.getpid(), "job": job, "began": time.time()}
    ended = threading.Event()

    def beat() -> None:
        while True:
            with contextlib.suppress(MscaleError):  # a full disk is the trainer's to report
                atomic_json(folder / "heartbeat.json", {**mine, "when": time.time()})
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
    """The last heartbeat of a run, or empty."""
    try:
        found = json.loads((folder / "heartbeat.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


@contextlib.contextmanager
def run_lock(folder: Path, seconds: float = _LOCK_TIMEOUT_SECONDS) -> Iterator[None]:
    """Holds the run's folder; the kernel lets go of it when the process dies, however it dies.

    Raises:
      MscaleError: another process still trains this run after ``seconds``.
    """
    from mscale.errors import MscaleError

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
    """Whether a live process of this machine is training the run."""
    try:
        with open(folder / ".lock") as file:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except FileNotFoundError:
        return False
    except BlockingIOError:
        return True
    return False
