"""What executors share: calls of a scheduler's programs, progress, the end by SIGTERM, and what is left undone."""

import contextlib
import shutil
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from types import FrameType

from mscale.errors import MscaleError
from mscale.progress import progress
from sweeps.executors.state import RunState, flops_done
from sweeps.study import Study


def require_program(name: str, missing: str) -> None:
    """Raises MscaleError, which ends with ``missing``, where a program of the scheduler is not installed."""
    if shutil.which(name) is None:
        raise MscaleError(f"{name} is not installed here: {missing}")


def call(
    command: Sequence[str],
    *,
    timeout: float,
    missing: str,
    attempts: int = 1,
    standard_input: str | None = None,
) -> str:
    """Runs one of the scheduler's programs and returns its output.

    Args:
      timeout: seconds in which it must answer.
      missing: what to do where it is not installed.
      attempts: calls in all, for a program that changes nothing; the first word of ``command`` names it.

    Raises:
      MscaleError: it is not installed, does not answer, or fails; with its own message.
    """
    require_program(command[0], missing)
    said = ""
    for attempt in range(attempts):
        if attempt:
            time.sleep(2.0**attempt / 2)
        try:
            found = subprocess.run(
                list(command),
                input=standard_input,
                capture_output=True,
                text=True,
                timeout=timeout,
                check=False,
            )
        except subprocess.TimeoutExpired:
            said = f"no answer within {timeout:.0f} s"
            continue
        if found.returncode == 0:
            return found.stdout
        said = (found.stderr or found.stdout).strip()
    raise MscaleError(
        f"{command[0]} failed: {said}. Nothing is lost: what is submitted goes on; call the same command again once "
        "the scheduler answers"
    )


@contextlib.contextmanager
def terminable() -> Iterator[None]:
    """SIGTERM raises SystemExit in the block, so that the runner stops its workers and removes its heartbeat."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def leave(signum: int, _frame: FrameType | None) -> None:
        raise SystemExit(128 + signum)

    before = signal.signal(signal.SIGTERM, leave)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


@contextlib.contextmanager
def study_progress(study: Study, description: str) -> Iterator[Callable[[Mapping[str, RunState], str], None]]:
    """Yields ``show(states, note)``, which shows how much of the study's compute is done, in thousandths."""
    total = max(1, sum(run.flops for run in study.runs))
    shown = 0
    with progress(f"{description}: {study.name}", 1000, "‰") as advance:

        def show(states: Mapping[str, RunState], note: str = "") -> None:
            nonlocal shown
            share = 1000 * sum(map(flops_done, states.values())) // total
            done = sum(one.state == "done" for one in states.values())
            advance(share - shown, note=f"{done} of {len(study.runs)} runs{note}")
            shown = share

        yield show


def require_done(states: Mapping[str, RunState], remedy: str) -> None:
    """Raises MscaleError with the runs that are not done, their reasons and the remedy, if there are any."""
    unfinished = [one for one in states.values() if one.state != "done"]
    if unfinished:
        lines = [f"{len(unfinished)} of {len(states)} runs are not done"]
        lines += [f"  {one.spec.id}: {one.state} {one.reason}".rstrip() for one in unfinished[:12]]
        raise MscaleError("\n".join([*lines, remedy]))
