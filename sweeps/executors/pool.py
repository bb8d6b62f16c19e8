"""A pool of worker processes: assigns runs to workers, and replaces workers that die or stall."""

import contextlib
import json
import os
import selectors
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from mscale import run_folder
from mscale.progress import progress
from sweeps import run_graph, spec
from sweeps.executors.state import CANCELLED_REASON, RunState, flops_done, read_run
from sweeps.spec import RunSpec
from sweeps.study import Study

_POLL_SECONDS = 0.2
_STATUS_SECONDS = 1.0
_STOP_SECONDS = 5.0


@dataclass
class _Worker:
    """A worker process and what it is doing.

    Attributes:
      slot: number of its cores and of its log.
      shapes: shapes that it has compiled.
      run: what it trains; None while idle.
      run_started: time.time() of its assignment.
      last_status: step and time of the run's last status.json; last_progress: time.monotonic() when that changed.
      buffer: bytes received after the last whole line.
    """

    process: subprocess.Popen
    connection: socket.socket
    cores: tuple[int, ...]
    slot: int
    shapes: set[tuple] = field(default_factory=set)
    run: RunSpec | None = None
    run_started: float = 0.0
    last_status: tuple = ()
    last_progress: float = 0.0
    buffer: bytes = b""


class WorkerPool:
    """Workers, and the runs that are still to be trained.

    Attributes:
      todo: runs not done, by id; done: ids of those done.
      trained, trained_flops: what this pool has trained; failed: why runs failed.
      worker_losses: run id to how often its worker died.
      deaths: workers that died; peak_memory: most bytes that runner and workers held at once.
    """

    def __init__(
        self,
        study: Study,
        root: Path,
        todo: Sequence[RunSpec],
        cores: Sequence[tuple[int, ...]],
        trainer: str,
        attempts: int,
        stall_seconds: float = 1800.0,
    ):
        self.root = root
        self.todo: dict[str, RunSpec] = {one.id: one for one in todo}
        self.done: set[str] = {one.id for one in study.runs} - set(self.todo)
        self.trained: list[str] = []
        self.trained_flops = 0
        self.failed: dict[str, str] = {}
        self.worker_losses: dict[str, int] = {}
        self.chain_costs = run_graph.longest_chain_costs(study.runs)
        self.trainer, self.attempts, self.stall_seconds = trainer, attempts, stall_seconds
        self.free_slots = list(enumerate(cores))
        self.workers: list[_Worker] = []
        self.selector = selectors.DefaultSelector()
        self.deaths = self.peak_memory = 0

    def ready(self) -> list[RunSpec]:
        """Runs that could start now: not assigned, and their parent is done."""
        assigned = {one.run.id for one in self.workers if one.run}
        return [
            one
            for one in self.todo.values()
            if one.id not in assigned and (one.parent is None or one.parent in self.done)
        ]

    def work(self, description: str) -> None:
        """Trains until no run is left that can be trained."""
        total = sum(one.flops for one in self.todo.values())
        unit, factor = next(
            (
                (name, size)
                for name, size in (("PFLOP", 1e15), ("TFLOP", 1e12), ("GFLOP", 1e9))
                if total > 1e3 * size
            ),
            ("MFLOP", 1e6),
        )
        runs = len(self.todo)
        last_check = shown = 0.0
        with progress(description, total / factor, unit) as advance:
            while True:
                self._assign_runs()
                if not any(one.run for one in self.workers):
                    return
                for key, _ in self.selector.select(_POLL_SECONDS):
                    self._receive(key.data)
                self._measure_memory()
                if time.monotonic() - last_check >= _STATUS_SECONDS:
                    last_check = time.monotonic()
                    self._check_running()
                done = max(shown, self._flops_done())  # steps that are repeated after a death count once
                advance((done - shown) / factor, note=f"{len(self.trained)} of {runs} runs")
                shown = done

    def _flops_done(self) -> float:
        """Compute of the runs trained, and of those at work as of their last status."""
        at_work = [(one.run, one.last_status[0]) for one in self.workers if one.run and one.last_status]
        return self.trained_flops + sum(
            flops_done(RunState(run, "running", step, 0.0, "")) for run, step in at_work
        )

    def _assign_runs(self) -> None:
        ready = self.ready()
        idle = [one for one in self.workers if one.run is None]
        while self.free_slots and len(idle) < len(ready):
            idle.append(self._start_worker())
        for free in idle:
            others = {shape for one in self.workers if one is not free for shape in one.shapes}
            chosen = next_run_for_worker(ready, free.shapes, others, self.chain_costs)
            while chosen is not None and run_folder.is_cancelled(spec.workdir(self.root, chosen.id)):
                self._fail_run(chosen, CANCELLED_REASON)
                ready.remove(chosen)
                chosen = next_run_for_worker(ready, free.shapes, others, self.chain_costs)
            if chosen is None:
                return
            ready.remove(chosen)
            free.run, free.run_started = chosen, time.time()
            free.last_status, free.last_progress = (), time.monotonic()
            free.shapes.add(chosen.shape)
            command = {
                "run": chosen.id,
                "folder": str(spec.workdir(self.root, chosen.id)),
                "argv": spec.argv(chosen, self.root),
            }
            with contextlib.suppress(OSError):  # a dead worker is noticed when its socket is read
                free.connection.sendall((json.dumps(command) + "\n").encode())

    def _start_worker(self) -> _Worker:
        slot, cores = self.free_slots.pop(0)
        connection, worker_end = socket.socketpair()
        with worker_end:
            log = self.root / "logs" / f"worker-{slot}.log"
            log.parent.mkdir(parents=True, exist_ok=True)
            code = "import sys; from sweeps.executors.worker import main; "
            code += f"main({worker_end.fileno()}, {list(cores)!r}, {self.trainer!r})"
            with open(log, "ab") as output:
                process = subprocess.Popen(
                    [sys.executable, "-c", code],
                    pass_fds=[worker_end.fileno()],
                    stdin=subprocess.DEVNULL,
                    stdout=output,
                    stderr=output,
                    env=worker_environment(self.root, len(cores)),
                )
        started = _Worker(process, connection, cores, slot)
        self.workers.append(started)
        self.selector.register(connection, selectors.EVENT_READ, started)
        return started

    def _receive(self, one: _Worker) -> None:
        """Reads a worker's reports; a closed connection means that it died."""
        try:
            data = one.connection.recv(65_536)
        except OSError:
            data = b""
        if not data:
            self._handle_death(one)
            return
        *lines, one.buffer = (one.buffer + data).split(b"\n")
        for line in lines:
            report = json.loads(line)
            finished, one.run = one.run, None
            assert finished is not None and finished.id == report["run"]
            self._finish_run(finished, report["reason"])

    def _fail_run(self, failed: RunSpec, reason: str) -> None:
        run_folder.write_failure(spec.workdir(self.root, failed.id), reason)
        self._finish_run(failed, reason)

    def _finish_run(self, finished: RunSpec, reason: str | None) -> None:
        del self.todo[finished.id]
        if reason is None:
            self.done.add(finished.id)
            self.trained.append(finished.id)
            self.trained_flops += finished.flops
            return
        self.failed[finished.id] = reason
        self._remove_descendants(finished.id)

    def _remove_descendants(self, run_id: str) -> None:
        """Removes the runs that start from a failed one, directly or not."""
        for child in [one.id for one in self.todo.values() if one.parent == run_id]:
            del self.todo[child]
            self._remove_descendants(child)

    def _handle_death(self, one: _Worker) -> None:
        self._release_worker(one)
        code = one.process.wait()
        self.deaths += 1
        if one.run is None:
            return
        interrupted = one.run
        if read_run(interrupted, self.root).state == "done":
            self._finish_run(interrupted, None)  # it finished the run and died before it reported
            return
        if run_folder.is_cancelled(spec.workdir(self.root, interrupted.id)):
            self._fail_run(interrupted, CANCELLED_REASON)
            return
        _clear_cache(self.root, since=one.run_started)
        self.worker_losses[interrupted.id] = self.worker_losses.get(interrupted.id, 0) + 1
        if self.worker_losses[interrupted.id] < self.attempts:
            return
        how = f"signal {-code}" if code < 0 else f"exit code {code}"
        hint = (
            "; if that was the kernel, use fewer workers or free some memory"
            if code == -signal.SIGKILL
            else ""
        )
        log = self.root / "logs" / f"worker-{one.slot}.log"
        reason = f"its worker died {self.worker_losses[interrupted.id]} times, at last with {how}{hint} (see {log})"
        self._fail_run(interrupted, reason)

    def _release_worker(self, one: _Worker) -> None:
        self.selector.unregister(one.connection)
        one.connection.close()
        self.workers.remove(one)
        self.free_slots.append((one.slot, one.cores))

    def _measure_memory(self) -> None:
        pids = [os.getpid(), *(one.process.pid for one in self.workers)]
        self.peak_memory = max(self.peak_memory, sum(map(resident_bytes, pids)))

    def _check_running(self) -> None:
        for one in self.workers:
            if one.run is None:
                continue
            status = run_folder.read_status(spec.workdir(self.root, one.run.id))
            if run_folder.is_cancelled(spec.workdir(self.root, one.run.id)):
                one.process.kill()  # noticed when its socket is read
                continue
            if (last_status := (status.step, status.updated)) != one.last_status:
                one.last_status, one.last_progress = last_status, time.monotonic()
            elif time.monotonic() - one.last_progress > self.stall_seconds:
                one.process.kill()  # noticed when its socket is read; the run counts as having lost its worker

    def stop(self) -> None:
        """Stops the workers: SIGTERM, then SIGKILL after ``_STOP_SECONDS``."""
        for one in self.workers:
            if one.run is None:
                one.connection.close()  # an idle worker exits when its socket closes
            else:
                one.process.terminate()
        deadline = time.monotonic() + _STOP_SECONDS
        for one in self.workers:
            try:
                one.process.wait(max(0.0, deadline - time.monotonic()))
            except subprocess.TimeoutExpired:
                one.process.kill()
                one.process.wait()
            one.connection.close()
        self.workers.clear()
        self.selector.close()


def next_run_for_worker(
    ready: Iterable[RunSpec],
    compiled: Collection[tuple],
    compiled_by_others: Collection[tuple],
    chain_costs: dict[str, int],
) -> RunSpec | None:
    """The run that an idle worker trains next, None where no run is ready.

    Runs of a shape that this worker has compiled come first, then shapes that no worker has compiled, then those
    of other workers, rather than leave it idle. Among equals the run with the costliest chain of descendants.

    Args:
      compiled, compiled_by_others: shapes that this worker, and the other live ones, have compiled.
      chain_costs: run id to the cost of the longest chain that starts with it.
    """

    def rank(one: RunSpec) -> tuple:
        tier = 0 if one.shape in compiled else 1 if one.shape not in compiled_by_others else 2
        return (tier, -chain_costs[one.id], one.id)

    return min(ready, key=rank, default=None)


def worker_environment(root: Path, cores: int) -> dict[str, str]:
    """Environment of a worker: as many threads as cores, and a compilation cache that the workers share."""
    packages = str(Path(__file__).resolve().parents[2])  # the folder that holds mscale and sweeps
    path = [packages, *filter(None, os.environ.get("PYTHONPATH", "").split(os.pathsep))]
    threads = str(cores)
    values = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join(dict.fromkeys(path)),
        "OMP_NUM_THREADS": threads,
        "OPENBLAS_NUM_THREADS": threads,
        "MKL_NUM_THREADS": threads,
    }
    if cores == 1:
        values["XLA_FLAGS"] = f"{values.get('XLA_FLAGS', '')} --xla_cpu_multi_thread_eigen=false".strip()
    values.setdefault("MSCALE_COMPILE_CACHE", str(root / "compile-cache"))
    return values


def _clear_cache(root: Path, since: float) -> None:
    """Removes cache entries written since the dead worker's run began.

    jax never overwrites a truncated entry, so the program would be compiled again in every process.
    """
    for path in (root / "compile-cache").glob("*"):
        with contextlib.suppress(OSError):
            if path.stat().st_mtime >= since - 1:
                path.unlink()


def resident_bytes(pid: int) -> int:
    """Resident memory of a process; 0 if it is gone."""
    try:
        return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except (OSError, IndexError):
        return 0
