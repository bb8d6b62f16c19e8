"""Files in a run's folder that executors read and write: status, failure, log."""

import json
import os
import time
from pathlib import Path
from typing import Any

from mscale.files import atomic_json

DEFAULT_TRAINER = "mscale.train:main"
PREEMPTED_EXIT_CODE = 143  # 128 + SIGTERM, as mscale.train: the trainer was stopped and has saved its state
CANCELLED_REASON = "cancelled; `mscale sweep retry` takes it up again"
_LOG_LINES = 20


def is_cancelled(folder: Path) -> bool:
    """Whether a user cancelled the run and has not retried it since."""
    return (folder / "cancelled.json").exists()


def write_failure(folder: Path, reason: str) -> None:
    """Writes ``failure.json``: the reason of the failure and the last lines of the log."""
    atomic_json(folder / "failure.json", {"reason": reason, "when": time.time(), "log": log_tail(folder)})


def read_status(folder: Path) -> dict[str, Any]:
    """The trainer's ``status.json``; empty when there is none that can be read."""
    try:
        status = json.loads((folder / "status.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return status if isinstance(status, dict) else {}


def log_tail(folder: Path, lines: int = _LOG_LINES) -> list[str]:
    """The last ``lines`` lines of a run's log; none where there is no log."""
    try:
        with open(folder / "log.txt", "rb") as file:
            size = file.seek(0, os.SEEK_END)
            file.seek(max(0, size - 16_384))
            return file.read().decode("utf-8", "replace").splitlines()[-lines:]
    except OSError:
        return []
