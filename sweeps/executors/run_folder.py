"""What an executor reads and writes in a run's folder: status, failure, the log's last lines."""

import json
import os
import time
from pathlib import Path
from typing import Any

DEFAULT_TRAINER = "mscale.train:main"


_LOG_LINES = 20


PREEMPTED_EXIT_CODE = 143


CANCELLED_REASON = "cancelled; `mscale sweep retry` takes it up again"


def is_cancelled(folder: Path) -> bool:
    """Whether a user cancelled the run and has not taken it up again."""
    return (folder / "cancelled.json").exists()


def write_failure(folder: Path, reason: str) -> None:
    """Records in the run's folder why it failed and the last lines of its log."""
    from mscale.files import atomic_json

    atomic_json(folder / "failure.json", {"reason": reason, "when": time.time(), "log": log_tail(folder)})


def read_status(folder: Path) -> dict[str, Any]:
    """The trainer's ``status.json``; empty when there is none that can be read."""
    try:
        status = json.loads((folder / "status.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return status if isinstance(status, dict) else {}


def log_tail(folder: Path, lines: int = _LOG_LINES) -> list[str]:
    """Last lines of a run's log."""
    try:
        with open(folder / "log.txt", "rb") as file:
            size = file.seek(0, os.SEEK_END)
            file.seek(max(0, size - 16_384))
            return file.read().decode("utf-8", "replace").splitlines()[-lines:]
    except OSError:
        return []
