"""What a user does with a running study: read logs, retry failed runs, cancel runs, watch its state."""

import contextlib
import os
import signal
import socket
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

from mscale import liveness, run_folder
from mscale.errors import MscaleError, nearest
from sweeps import spec
from sweeps.executors import gke, slurm, state
from sweeps.spec import RunSpec
from sweeps.study import Study

_FOLLOW_SECONDS = 1.0
_RUNNER_SECONDS = 30.0  # in which a runner that was told to stop ends


def find_run(study: Study, text: str) -> RunSpec:
    """The run with the id ``text``, or the only one whose id begins with, ends with or contains it.

    Raises:
      MscaleError: no run or several match.
    """
    if text in study.by_id:
        return study.by_id[text]
    for test in (str.startswith, str.endswith, str.__contains__):
        found = [run for run in study.runs if test(run.id, text)]
        if len(found) == 1:
            return found[0]
        if found:
            shown = ", ".join(run.id for run in found[:6]) + (" …" if len(found) > 6 else "")
            raise MscaleError(f"{text!r} may be any of {len(found)} runs: {shown}; write more of the id")
    raise MscaleError(f"study {study.name} has no run {text!r}{nearest(text, study.by_id)}")


def logs(root: str | Path, run: str, lines: int = 40, follow: bool = False) -> Iterator[str]:
    """Yields the state of a run and the last lines of its log; with ``follow`` also new lines until it ends.

    Raises:
      MscaleError: there is no such run, or it has no log yet.
    """
    root = Path(root)
    study = state.load_study(root)
    one = find_run(study, run)
    folder = spec.workdir(root, one.id)
    now = state.read_states(study.runs, root)[one.id]
    path = folder / run_folder.LOG_FILE
    if not path.exists():
        reason = f" ({now.reason})" if now.reason else ""
        raise MscaleError(f"{path}: run {one.id} is {now.state}{reason} and has written no log")
    position = path.stat().st_size
    yield f"{one.id}: {now.state}, step {now.step:,} of {one.steps:,}{': ' + now.reason if now.reason else ''}"
    yield from run_folder.log_tail(folder, lines)
    while follow:
        ended = state.read_run(one, root).state not in ("running", "stalled")
        with open(path, encoding="utf-8", errors="replace") as file:
            file.seek(position)
            text = file.read()
            position = file.tell()
        yield from text.splitlines()
        if ended:
            return
        time.sleep(_FOLLOW_SECONDS)


def retry(root: str | Path, runs: Sequence[str] | None = None) -> list[str]:
    """Clears the failure of failed and cancelled runs (all by default), so that the next `sweep run` trains them.

    Returns:
      Their ids.

    Raises:
      MscaleError: there is no such run, or one that is named has not failed.
    """
    root = Path(root)
    study = state.load_study(root)
    if runs is None:
        chosen = [one.spec for one in state.read_states(study.runs, root).values() if one.state == "failed"]
    else:
        chosen = [find_run(study, text) for text in runs]
        for one in chosen:
            if (now := state.read_run(one, root)).state != "failed":
                raise MscaleError(f"run {one.id} is {now.state}: only failed or cancelled runs are retried")
    for one in chosen:
        folder = spec.workdir(root, one.id)
        run_folder.clear_failure(folder)
        run_folder.mark_cancelled(folder, False)
    return [one.id for one in chosen]


def cancel(root: str | Path, runs: Sequence[str] | None = None) -> list[str]:
    """Stops the named runs, or the whole study where none are named; checkpoints are kept.

    Named runs stay cancelled until they are retried, and runs that start from them wait. A local runner stops them
    within seconds; on Slurm their jobs are removed from the queue, on GKE their JobSets are deleted. Without names the
    runner gets SIGTERM, all jobs or JobSets are removed, and `sweep run` continues later.

    Returns:
      The runs cancelled or, without names, those that were running.

    Raises:
      MscaleError: there is no such run, one is done, or its runner is on another machine.
    """
    root = Path(root)
    study = state.load_study(root)
    chosen = [find_run(study, text) for text in runs or ()]
    for one in chosen:
        if state.read_run(one, root).state == "done":
            raise MscaleError(f"run {one.id} is done: there is nothing to cancel")
    for one in chosen:
        run_folder.mark_cancelled(spec.workdir(root, one.id))
    ids = [one.id for one in chosen]
    stopped = list(ids)
    if not chosen:
        states = state.read_states(study.runs, root).values()
        stopped = [one.spec.id for one in states if one.state in ("running", "stalled")]
        _stop_runner(root)
    if (root / "slurm").is_dir():
        stopped += slurm.cancel(root, ids or None)
    if (options := gke.options_of(root)) is not None:
        stopped += gke.cancel(study, options, ids or None)
    for one in chosen:  # a run at work records its own failure when it ends
        if state.read_run(one, root).state not in ("running", "stalled", "done"):
            run_folder.write_failure(spec.workdir(root, one.id), state.CANCELLED_REASON)
    return list(dict.fromkeys(stopped))


def _stop_runner(root: Path) -> None:
    """Ends the runner of the study, if there is one, and waits until it would submit no more runs.

    Raises:
      MscaleError: it is on another machine, or does not end.
    """
    deadline = time.monotonic() + _RUNNER_SECONDS
    signalled = False
    while runner := liveness.holder(root):
        if runner.host != socket.gethostname():
            raise MscaleError(f"{root}: its runner is process {runner.pid} on {runner.host}; cancel it there")
        if time.monotonic() > deadline:
            raise MscaleError(f"{root}: its runner, process {runner.pid}, does not end; kill -9 {runner.pid}")
        if not signalled and runner.pid:
            with contextlib.suppress(ProcessLookupError):
                os.kill(runner.pid, signal.SIGTERM)
            signalled = True
        time.sleep(0.1)


def watch(root: str | Path, seconds: float = 2.0) -> None:
    """Shows ``state.status_table``, refreshed every ``seconds`` until all runs have ended, or Ctrl-C.

    Where the output is not a terminal the table is printed once.
    """
    from rich.console import Console
    from rich.live import Live

    console = Console()
    if not console.is_terminal:
        console.print(state.status_table(root))
        return
    study = state.load_study(root)
    with (
        contextlib.suppress(KeyboardInterrupt),
        Live(state.status_table(root), console=console, auto_refresh=False) as live,
    ):
        while True:
            states = state.read_states(study.runs, root).values()
            if all(one.state in ("done", "failed", "blocked") for one in states):
                return
            time.sleep(seconds)
            live.update(state.status_table(root), refresh=True)
