"""A pool of worker processes: which run goes to which worker, and what happens when one dies."""

import contextlib
import json
import os
import selectors
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from mscale.progress import progress
from sweeps import run_graph, spec
from sweeps.executors import run_folder
from sweeps.spec import RunSpec
from sweeps.study import Study

_POLL_SECONDS = 0.2
_STATUS_SECONDS = 1.0
_STOP_SECONDS = 5.0


@dataclass
class _Worker:
    process: subprocess.Popen
    connection: socket.socket
    cores: tuple[int, ...]
    slot: int
    shapes: set[tuple] = field(default_factory=set)
    run: RunSpec | None = None
    started: float = 0.0
    seen: tuple = ()
    moved: float = 0.0
    buffer: bytes = b""


class WorkerPool:
    """The workers, and what is left to do."""

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
        self.failed: dict[str, str] = {}
        self.lost: dict[str, int] = {}
        self.remaining = run_graph.longest_chain_costs(study.runs)
        self.trainer, self.attempts, self.stall_seconds = trainer, attempts, stall_seconds
        self.free_slots = list(enumerate(cores))
        self.workers: list[_Worker] = []
        self.selector = selectors.DefaultSelector()
        self.earned: dict[str, float] = {}
        self.gained = 0.0
        self.deaths = self.peak_memory = 0

    def ready(self) -> list[RunSpec]:
        """Runs that could start now."""
        busy = {one.run.id for one in self.workers if one.run}
        return [
            one
            for one in self.todo.values()
            if one.id not in busy and (one.parent is None or one.parent in self.done)
        ]

    def work(self, description: str, renew: Callable[[], None]) -> None:
        """Trains until nothing is left that can be trained."""
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
        looked = 0.0
        with progress(description, total / factor, unit) as advance:
            while True:
                self._hand_out()
                if not any(one.run for one in self.workers):
                    return
                for key, _ in self.selector.select(_POLL_SECONDS):
                    self._hear(key.data)
                self._watch_memory()
                renew()
                if time.monotonic() - looked >= _STATUS_SECONDS:
                    looked = time.monotonic()
                    self._look_at_running()
                gained, self.gained = self.gained, 0.0
                advance(gained / factor, note=f"{len(self.trained)} of {runs} runs")

    def _hand_out(self) -> None:
        ready = self.ready()
        idle = [one for one in self.workers if one.run is None]
        while self.free_slots and len(idle) < len(ready):
            idle.append(self._start_worker())
        for free in idle:
            others = {shape for one in self.workers if one is not free for shape in one.shapes}
            chosen = next_run_for_worker(ready, free.shapes, others, self.remaining)
            while chosen is not None and run_folder.is_cancelled(spec.workdir(self.root, chosen.id)):
                run_folder.write_failure(spec.workdir(self.root, chosen.id), run_folder.CANCELLED_REASON)
                self._settle(chosen, run_folder.CANCELLED_REASON)
                ready.remove(chosen)
                chosen = next_run_for_worker(ready, free.shapes, others, self.remaining)
            if chosen is None:
                return
            ready.remove(chosen)
            free.run, free.started = chosen, time.time()
            free.seen, free.moved = (), time.monotonic()
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
        ours, theirs = socket.socketpair()
        with theirs:
            log = self.root / "logs" / f"worker-{slot}.log"
            log.parent.mkdir(parents=True, exist_ok=True)
            code = "import sys; from sweeps.executors.worker import main; "
            code += f"main({theirs.fileno()}, {list(cores)!r}, {self.trainer!r})"
            with open(log, "ab") as output:
                process = subprocess.Popen(
                    [sys.executable, "-c", code],
                    pass_fds=[theirs.fileno()],
                    stdin=subprocess.DEVNULL,
                    stdout=output,
                    stderr=output,
                    env=worker_environment(self.root, len(cores)),
                )
        started = _Worker(process, ours, cores, slot)
        self.workers.append(started)
        self.selector.register(ours, selectors.EVENT_READ, started)
        return started

    def _hear(self, one: _Worker) -> None:
        """Reads what a worker reports, or that it died."""
        try:
            data = one.connection.recv(65_536)
        except OSError:
            data = b""
        if not data:
            self._bury(one)
            return
        *lines, one.buffer = (one.buffer + data).split(b"\n")
        for line in lines:
            report = json.loads(line)
            finished, one.run = one.run, None
            assert finished is not None and finished.id == report["run"]
            self._settle(finished, report["reason"])

    def _settle(self, finished: RunSpec, reason: str | None) -> None:
        del self.todo[finished.id]
        if reason is None:
            self.done.add(finished.id)
            self.trained.append(finished.id)
            self._give_credit(finished, 1.0)
            return
        self.failed[finished.id] = reason
        for child in [one.id for one in self.todo.values() if one.parent == finished.id]:
            self._drop(child)

    def _drop(self, run_id: str) -> None:
        """Gives up a run whose ancestor failed, and its own children."""
        del self.todo[run_id]
        for child in [one.id for one in self.todo.values() if one.parent == run_id]:
            self._drop(child)

    def _bury(self, one: _Worker) -> None:
        self._dismiss(one)
        code = one.process.wait()
        self.deaths += 1
        if one.run is None:
            return
        lost = one.run
        if run_folder.read_status(spec.workdir(self.root, lost.id)).get("state") == "done":
            self._settle(lost, None)  # it finished its run and died before it could say so
            return
        if run_folder.is_cancelled(spec.workdir(self.root, lost.id)):
            run_folder.write_failure(spec.workdir(self.root, lost.id), run_folder.CANCELLED_REASON)
            self._settle(lost, run_folder.CANCELLED_REASON)
            return
        _clear_cache(self.root, since=one.started)
        self.lost[lost.id] = self.lost.get(lost.id, 0) + 1
        if self.lost[lost.id] < self.attempts:
            return
        how = f"signal {-code}" if code < 0 else f"exit code {code}"
        hint = (
            "; if that was the kernel, use fewer workers or free some memory"
            if code == -signal.SIGKILL
            else ""
        )
        log = self.root / "logs" / f"worker-{one.slot}.log"
        reason = f"its worker died {self.lost[lost.id]} times, at last with {how}{hint} (see {log})"
        run_folder.write_failure(spec.workdir(self.root, lost.id), reason)
        self._settle(lost, reason)

    def _dismiss(self, one: _Worker) -> None:
        self.selector.unregister(one.connection)
        one.connection.close()
        self.workers.remove(one)
        self.free_slots.append((one.slot, one.cores))

    def _watch_memory(self) -> None:
        pids = [os.getpid(), *(one.process.pid for one in self.workers)]
        self.peak_memory = max(self.peak_memory, sum(map(resident_bytes, pids)))

    def _look_at_running(self) -> None:
        for one in self.workers:
            if one.run is None:
                continue
            status = run_folder.read_status(spec.workdir(self.root, one.run.id))
            if run_folder.is_cancelled(spec.workdir(self.root, one.run.id)):
                one.process.kill()  # noticed when its socket is read
                continue
            if (seen := (status.get("step"), status.get("updated"))) != one.seen:
                one.seen, one.moved = seen, time.monotonic()
            elif time.monotonic() - one.moved > self.stall_seconds:
                one.process.kill()  # noticed when its socket is read; the run counts as having lost its worker
                continue
            steps = one.run.steps - one.run.start_step
            step = int(status.get("step") or 0) - one.run.start_step
            self._give_credit(one.run, min(1.0, max(0.0, step / steps)) if steps else 0.0)

    def _give_credit(self, one: RunSpec, fraction: float) -> None:
        """Moves the bar by what is new; a run that lost its worker earns nothing for repeating itself."""
        earned = fraction * one.flops
        self.gained += max(0.0, earned - self.earned.get(one.id, 0.0))
        self.earned[one.id] = max(earned, self.earned.get(one.id, 0.0))

    def stop(self) -> None:
        """Stops the workers: asks, waits, insists."""
        for one in self.workers:
            if one.run is None:
                one.connection.close()  # an idle worker leaves when its socket closes
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
    ready: Iterable[RunSpec], mine: Collection[tuple], others: Collection[tuple], remaining: dict[str, int]
) -> RunSpec | None:
    """The run that a free worker takes next.

    First of the shapes it has compiled, then of shapes that nobody has, then of the others' (it would
    otherwise idle); among equals the one with the longest chain of work behind it.

    Args:
      mine, others: shapes that this worker, and any other live one, has compiled.
      remaining: run id to the cost of the longest chain that starts with it.
    """

    def rank(one: RunSpec) -> tuple:
        tier = 0 if one.shape in mine else 1 if one.shape not in others else 2
        return (tier, -remaining[one.id], one.id)

    return min(ready, key=rank, default=None)


def worker_environment(root: Path, cores: int) -> dict[str, str]:
    """Environment of a worker: as many threads as cores, and a compile cache that the workers share."""
    packages = str(Path(__file__).resolve().parent.parent)
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
    """Removes cache entries as young as the dead worker's run: a torn one would recompile for ever."""
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
