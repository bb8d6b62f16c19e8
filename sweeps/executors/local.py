"""Runs a study on this machine, in worker processes that are pinned to their own cores.

A worker is pinned before jax starts: rounding depends on the number of threads, so results do not depend on how many
runs train at once. Runs of one shape go to one worker where possible, so that each shape compiles once; idle workers
take other shapes too. A worker that dies is replaced, and its run continues from the last checkpoint.
"""

import contextlib
import json
import os
import time
from dataclasses import dataclass
from pathlib import Path

from mscale import run_folder
from mscale.errors import MscaleError
from mscale.files import atomic_json
from mscale.liveness import study_lock
from mscale.remote import local_folder
from sweeps import spec
from sweeps.executors import cluster, state
from sweeps.executors.pool import WorkerPool
from sweeps.executors.worker import DEFAULT_TRAINER
from sweeps.study import Study

_WORKER_BYTES = 1_200_000_000  # memory of one worker, to choose how many to start


@dataclass(frozen=True)
class LocalSummary:
    """What a call of ``run`` did.

    Attributes:
      runs: of the study; trained: by this call; skipped: done before it.
      seconds: wall-clock time.
      peak_memory_bytes: the most that workers and runner held at once.
      deaths: workers that died and were replaced.
    """

    runs: int
    trained: int
    skipped: int
    seconds: float
    workers: int
    peak_memory_bytes: int
    deaths: int


def run(
    study: Study,
    root: str | Path,
    *,
    workers: int | None = None,
    trainer: str = DEFAULT_TRAINER,
    attempts: int = 3,
    stall_seconds: float = state.STALL_SECONDS,
    description: str = "Training",
) -> LocalSummary:
    """Trains the runs of a study that are not done; a later call continues after any interruption.

    Args:
      root: the study's folder; run folders are ``<root>/runs/<id>``.
      workers: processes, one core each where there are enough; by default one a core, as memory allows.
      trainer: ``module:function`` that trains one run from its arguments and returns an exit code.
      attempts: how often a run's worker may die (killed, out of memory) before the run counts as failed.
      stall_seconds: a worker whose run has made no progress for so long is killed, and the run started again.
      description: label of the progress bar.

    Raises:
      MscaleError: runs failed (after all others were trained), another runner works on the folder, or the folder
        holds a different study.
    """
    root = local_folder(root, "--root").resolve()
    started = time.monotonic()
    with study_lock(root):
        study = state.save_study(study, root)
        states = state.read_states(study.runs, root)
        todo = [one for one in study.runs if states[one.id].state != "done"]
        if not todo:
            return LocalSummary(len(study.runs), 0, len(study.runs), 0.0, 0, 0, 0)
        for one in todo:  # a failed run is tried again: its cause may be fixed
            run_folder.clear_failure(spec.workdir(root, one.id))
        cores = worker_cores(min(workers or default_workers(), len(todo)))
        pool = WorkerPool(study, root, todo, cores, trainer, attempts, stall_seconds)
        ended = "interrupted"
        try:
            with cluster.terminable():
                pool.work(description)
            ended = "failed" if pool.failed else "finished"
        finally:
            pool.stop()
            summary = LocalSummary(
                runs=len(study.runs),
                trained=len(pool.trained),
                skipped=len(study.runs) - len(todo),
                seconds=time.monotonic() - started,
                workers=len(cores),
                peak_memory_bytes=pool.peak_memory,
                deaths=pool.deaths,
            )
            _record(root, summary, ended)
    if pool.failed:
        raise MscaleError(_failures(study, root, pool.failed))
    return summary


def default_workers() -> int:
    """One worker for each core that this process may use, fewer where free memory does not suffice."""
    count = len(os.sched_getaffinity(0))
    with contextlib.suppress(OSError, StopIteration, ValueError):
        lines = Path("/proc/meminfo").read_text().splitlines()
        free = next(int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable"))
        count = min(count, max(1, free // _WORKER_BYTES))
    return count


def worker_cores(workers: int) -> list[tuple[int, ...]]:
    """Cores of each worker: one each; workers beyond the number of cores share them in turn.

    Raises:
      MscaleError: fewer than one worker is asked for.
    """
    if workers < 1:
        raise MscaleError(f"workers is {workers}: expected at least 1")
    cores = sorted(os.sched_getaffinity(0))
    return [(cores[index % len(cores)],) for index in range(workers)]


def _record(root: Path, summary: LocalSummary, ended: str) -> None:
    """Adds the summary of this call to ``runner.json``."""
    path = root / "runner.json"
    try:
        sessions = json.loads(path.read_text(encoding="utf-8"))["sessions"]
    except (OSError, ValueError, KeyError, TypeError):
        sessions = []
    with contextlib.suppress(MscaleError):  # a full disk has been reported already
        atomic_json(
            path, {"sessions": [*sessions, {**summary.__dict__, "ended": ended, "when": time.time()}]}
        )


def _failures(study: Study, root: Path, failed: dict[str, str]) -> str:
    """One message for all failures, grouped by reason."""
    blocked = [one for one in state.read_states(study.runs, root).values() if one.state == "blocked"]
    lines = [f"{len(failed)} of {len(study.runs)} runs failed"]
    if blocked:
        lines[0] += f", and {len(blocked)} that start from them were not trained"
    reasons: dict[str, list[str]] = {}
    for run_id, reason in failed.items():
        reasons.setdefault(reason, []).append(run_id)
    for reason, ids in reasons.items():
        more = f" and {len(ids) - 1} more" if len(ids) > 1 else ""
        lines.append(f"  {ids[0]}{more}: {reason}")
        tail = [line for line in run_folder.log_tail(spec.workdir(root, ids[0]), 6) if line.strip()]
        lines += [f"    | {line[:160]}" for line in tail]
        lines.append(f"    whole log: {spec.workdir(root, ids[0]) / run_folder.LOG_FILE}")
    lines.append("Mend the cause and call the same command again: what is done is kept.")
    return "\n".join(lines)
