"""The folder of a run: names of its files, and what trainer, executor and user tell each other through them.

The trainer writes:

- ``run.json``: what determines the result; a run continues only in a folder that holds the same.
- ``config.gin``: every parameter that gin gave.
- ``status.json``: ``RunStatus``, replaced every few seconds.
- ``metrics.jsonl``: loss, learning rate and gradient norm of the log steps.
- ``observations.jsonl``, ``exposure.jsonl``: rows as ``mscale.observations`` describes them.
- ``checkpoints/``: as ``mscale.training.checkpoints`` writes them.

The executor of a study writes:

- ``spec.json``: the run as the study plans it.
- ``log.txt``: what the trainer printed.
- ``failure.json``: ``Failure``, absent unless the last attempt failed.
- ``heartbeat.json``: ``Heartbeat`` of the process that trains the run, absent after it has ended.
- ``cancelled.json``: a user cancelled the run and has not retried it.
"""

import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import msgspec

from mscale.files import atomic_json

RUN_FILE = "run.json"
CONFIG_FILE = "config.gin"
STATUS_FILE = "status.json"
METRICS_FILE = "metrics.jsonl"
OBSERVATIONS_FILE = "observations.jsonl"
EXPOSURE_FILE = "exposure.jsonl"
CHECKPOINTS_FOLDER = "checkpoints"
SPEC_FILE = "spec.json"
LOG_FILE = "log.txt"
FAILURE_FILE = "failure.json"
HEARTBEAT_FILE = "heartbeat.json"
CANCELLED_FILE = "cancelled.json"

PREEMPTED_EXIT_STATUS = 143  # 128 + SIGTERM: the trainer was stopped and has saved its state

_LOG_LINES = 20
_T = TypeVar("_T")


@dataclass(frozen=True)
class RunStatus:
    """What the trainer last said of a run.

    Attributes:
      state: running, done, preempted or failed; "" where the trainer has said nothing yet.
      step: last step, of ``steps``.
      reason: why it failed or was preempted.
      updated: ``time.time()`` of this status.
      compile_seconds, seconds: of this process, up to now.
      peak_memory_bytes: of the accelerator; on the CPU, of the process.
    """

    state: str = ""
    step: int = 0
    steps: int = 0
    tokens_per_second: float = 0.0
    reason: str = ""
    updated: float = 0.0
    compile_seconds: float = 0.0
    seconds: float = 0.0
    peak_memory_bytes: int = 0


@dataclass(frozen=True)
class Failure:
    """Why an attempt failed, ``time.time()`` of that, and the last lines of the log."""

    reason: str
    when: float = 0.0
    log: tuple[str, ...] = ()


@dataclass(frozen=True)
class Heartbeat:
    """A process at work: its host, its id, the cluster's job, and ``time.time()`` when it began and last was alive."""

    host: str
    pid: int
    job: str
    began: float
    when: float


def _read(path: Path, kind: type[_T], damaged: Callable[[str], _T | None]) -> _T | None:
    """The content of a file, None where there is none, ``damaged(reason)`` where it cannot be read as ``kind``."""
    try:
        return msgspec.json.decode(path.read_bytes(), type=kind)
    except (FileNotFoundError, NotADirectoryError):
        return None
    except (OSError, msgspec.DecodeError, UnicodeDecodeError) as error:
        return damaged(f"{path} is damaged ({error}); delete it")


def read_status(folder: Path) -> RunStatus:
    """The run's status; that of a run not begun where there is none, or it is damaged, which ``reason`` then says."""
    return _read(folder / STATUS_FILE, RunStatus, lambda why: RunStatus(reason=why)) or RunStatus()


def write_status(folder: Path, status: RunStatus) -> None:
    """Replaces the run's status."""
    atomic_json(folder / STATUS_FILE, status)


def read_failure(folder: Path) -> Failure | None:
    """Why the last attempt failed; None if it did not. A damaged file is a failure that says so."""
    return _read(folder / FAILURE_FILE, Failure, Failure)


def write_failure(folder: Path, reason: str) -> None:
    """Writes why an attempt failed, with the last lines of the log."""
    atomic_json(folder / FAILURE_FILE, Failure(reason, time.time(), tuple(log_tail(folder))))


def clear_failure(folder: Path) -> None:
    """Forgets a failure, so that the run is tried again."""
    (folder / FAILURE_FILE).unlink(missing_ok=True)


def read_heartbeat(folder: Path) -> Heartbeat | None:
    """The last heartbeat of the process at work, which may have died since; a live process replaces a damaged one."""
    return _read(folder / HEARTBEAT_FILE, Heartbeat, lambda _: None)


def write_heartbeat(folder: Path, heartbeat: Heartbeat) -> None:
    """Replaces the heartbeat."""
    atomic_json(folder / HEARTBEAT_FILE, heartbeat)


def has_observations(folder: Path) -> bool:
    """Whether the run has recorded a loss; one that is done without any is trained again."""
    try:
        return (folder / OBSERVATIONS_FILE).stat().st_size > 0
    except OSError:
        return False


def mark_cancelled(folder: Path, cancelled: bool = True) -> None:
    """Marks the run as cancelled by a user, or removes the mark."""
    if cancelled:
        atomic_json(folder / CANCELLED_FILE, {"when": time.time()})
    else:
        (folder / CANCELLED_FILE).unlink(missing_ok=True)


def is_cancelled(folder: Path) -> bool:
    """Whether a user cancelled the run and has not retried it since."""
    return (folder / CANCELLED_FILE).exists()


def log_tail(folder: Path, lines: int = _LOG_LINES) -> list[str]:
    """The last ``lines`` lines of a run's log; none where there is no log."""
    try:
        with open(folder / LOG_FILE, "rb") as file:
            size = file.seek(0, os.SEEK_END)
            file.seek(max(0, size - 16_384))
            return file.read().decode("utf-8", "replace").splitlines()[-lines:]
    except OSError:
        return []
