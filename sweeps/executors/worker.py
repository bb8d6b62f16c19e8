"""A worker process: trains one run after another in one process, so that each shape compiles once.

The run's folder holds all results. The socket to the runner carries the next command, and a line when a run has
ended. When the runner ends, the socket closes and the worker exits at once. A cluster job calls the same
``train_run``, one run a process.
"""

import contextlib
import importlib
import json
import os
import queue
import signal
import socket
import sys
import threading
import traceback
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from mscale import run_folder
from mscale.errors import MscaleError
from mscale.liveness import run_lock

DEFAULT_TRAINER = "mscale.train:main"
_LOCK_SECONDS = 30.0  # in which a worker that was killed ends


def train_run(folder: Path, arguments: Sequence[str], trainer: Callable[[list[str]], int]) -> str | None:
    """Trains one run in this process; returns None when it is done, else the reason why it failed.

    What the trainer prints goes to ``log.txt`` in the run's folder. A failure is written to ``failure.json``
    there, with its reason and the log's last lines. Where the trainer was stopped by SIGTERM and has saved its state,
    the process exits with ``PREEMPTED_EXIT_STATUS``.

    Raises:
      MscaleError: another process trains the run.
    """
    with run_lock(folder, _LOCK_SECONDS):
        run_folder.clear_failure(folder)
        with _output_to(folder / run_folder.LOG_FILE):
            reason = _reason_of_failure(trainer, arguments)
        status = run_folder.read_status(folder)
        if reason is None and status.state != "done":
            reason = "the trainer returned before the run was done"
        if reason is None and not run_folder.has_observations(folder):
            reason = f"the trainer wrote no {run_folder.OBSERVATIONS_FILE}"
        if reason is not None and status.state != "preempted":
            reason = status.reason or reason
            run_folder.write_failure(folder, reason)
    if status.state == "preempted":  # stopped and saved: not a failure
        # Not os._exit: jax.distributed waits for the other processes at exit, which abort if the first is gone.
        raise SystemExit(run_folder.PREEMPTED_EXIT_STATUS)
    return reason


def _reason_of_failure(trainer: Callable[[list[str]], int], arguments: Sequence[str]) -> str | None:
    """Calls the trainer; returns why it failed, None if it says that it did not."""
    try:
        code = trainer(list(arguments))
        return f"the trainer returned {code}" if code else None
    except SystemExit as error:
        return f"the trainer exited with {error.code}" if error.code else None
    except MscaleError as error:
        traceback.print_exc()
        return str(error)
    except Exception as error:  # one run's failure must not end the study
        traceback.print_exc()
        return f"{type(error).__name__}: {error}" if str(error) else type(error).__name__


@contextlib.contextmanager
def _output_to(path: Path) -> Iterator[None]:
    """Appends this process's standard output and error, of C code too, to a file."""
    sys.stdout.flush()
    sys.stderr.flush()
    saved = os.dup(1), os.dup(2)
    file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o666)
    try:
        os.dup2(file, 1)
        os.dup2(file, 2)
        yield
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        for target, source in zip((1, 2), saved, strict=True):
            os.dup2(source, target)
            os.close(source)
        os.close(file)


def load_trainer(name: str) -> Callable[[list[str]], int]:
    """Imports the trainer that ``module:function`` names."""
    module, _, function = name.partition(":")
    return getattr(importlib.import_module(module), function)


def main(descriptor: int, cores: Sequence[int], trainer_name: str) -> None:
    """Trains the runs that a runner sends over a socket, until it closes.

    Each line received is ``{"run", "folder", "argv"}``, each line sent ``{"run", "reason"}``.

    Args:
      descriptor: file descriptor of the socket.
      cores: cores to pin this process to; empty for no pinning.
      trainer_name: ``module:function`` of the trainer.
    """
    if cores:  # before any thread starts: jax sizes its thread pool by the cores available then
        with contextlib.suppress(OSError):
            os.sched_setaffinity(0, cores)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the whole group; the runner decides
    connection = socket.socket(fileno=descriptor)
    commands: queue.SimpleQueue[dict[str, Any]] = queue.SimpleQueue()

    def read() -> None:
        with contextlib.suppress(OSError), connection.makefile("r", encoding="utf-8") as lines:
            for line in lines:
                commands.put(json.loads(line))
        os._exit(0)  # the runner has ended

    threading.Thread(target=read, daemon=True).start()
    trainer = None
    while True:
        command = commands.get()
        try:
            trainer = trainer or load_trainer(trainer_name)
        except (ImportError, AttributeError) as error:
            reason: str | None = f"cannot load the trainer {trainer_name}: {error}"
            run_folder.write_failure(Path(command["folder"]), str(reason))
        else:
            reason = train_run(Path(command["folder"]), command["argv"], trainer)
        connection.sendall((json.dumps({"run": command["run"], "reason": reason}) + "\n").encode())
