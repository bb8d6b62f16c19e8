"""Trains one model: ``python -m mscale.train --gin_file=gin/train/pretrain.gin --gin.SCALE='"nano2"' ...``.

One file, top to bottom: the start, the loop, the command line. The step (``step``) is a pure function of
(state, batch, step); the data of step s and the dropout of step s depend on s alone, so resuming is a step
number. Steps are dispatched without waiting for them; losses stay on the device until a log point reads them,
checks that they are finite, and only then records anything. ``settings`` says what a run is, ``recorder``
writes what it leaves, ``hosts`` joins several processes.
"""

import contextlib
import json
import os
import signal
import sys
import threading
import time
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import jax
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec

from mscale import launch
from mscale.data import feed
from mscale.errors import MscaleError
from mscale.files import atomic_json, atomic_write, read_json, writing
from mscale.models import partitioning
from mscale.progress import progress
from mscale.training import checkpoints, distributed, evaluation, runtime, tracking
from mscale.training.metrics import PendingMetrics, no_progress_bar
from mscale.training.recorder import Recorder, is_done
from mscale.training.settings import (
    Run,
    Settings,
    check_branch_fits_trunk,
    check_checkpoint_fits,
    check_same_run,
    gin_initialize_hosts,
    prepare_run,
    run_identity,
)
from mscale.training.step import (
    abstract_state,
    compiled_steps,
    parameter_initializer,
    place_state,
    state_shardings,
    zero_moments,
)

PREEMPTED_EXIT_STATUS = 143  # exit status: 128 + SIGTERM


# -------------------------------------------------------------------------------------------------- the start


@dataclass(frozen=True)
class Start:
    """Where a run begins: its state and step, and whose parameters they were."""

    state: Any
    step: int
    init: str = "scratch"
    init_tokens: int = 0
    group: str | None = None


def steps_per_dispatch(settings: Settings) -> int:
    """Steps that one dispatch may hold: several where a step is short against starting it."""
    if settings.steps_per_dispatch:
        return settings.steps_per_dispatch
    return 8 if jax.default_backend() == "cpu" else 1


def initial_state(run: Run):
    """Initial parameters from the seed, and zero moments."""
    params = parameter_initializer(run.model, run.mesh, run.rules)(jax.random.key(run.settings.seed))
    return {"params": params, "optimizer": zero_moments(params)}


def find_start(run: Run) -> Start:
    """Returns the run's latest checkpoint, else its trunk's, else another run's parameters, else fresh."""
    s = run.settings
    shardings = None if run.mesh is None else state_shardings(run.model, run.mesh, run.rules)
    own = checkpoints.restore_latest(
        run.workdir / "checkpoints",
        abstract_state(run.model),
        shardings=shardings,
        check=lambda path, meta: check_checkpoint_fits(run, path, meta),
    )
    if own is not None:
        state, meta = own
        return _started(state, meta, meta["step"], shardings)
    if s.branch_from:
        step = s.steps - s.decay_steps
        path = checkpoints.locate_checkpoint(s.branch_from, "BRANCH_FROM", step)
        meta = checkpoints.verify(path)
        check_checkpoint_fits(run, path, meta)
        check_branch_fits_trunk(run, path.parent.parent)
        state = checkpoints.restore(path, abstract_state(run.model), shardings=shardings)
        return _started(state, meta, step, shardings)
    if s.init_from:
        path = checkpoints.locate_checkpoint(s.init_from, "INIT_FROM")
        meta = checkpoints.verify(path)
        check_checkpoint_fits(run, path, meta)
        where = None if shardings is None else {"params": shardings["params"]}
        saved = checkpoints.restore(path, {"params": abstract_state(run.model)["params"]}, shardings=where)
        params = place_state(saved, where)["params"]
        return Start(
            {"params": params, "optimizer": zero_moments(params)},
            0,
            init=meta["run"],
            init_tokens=meta["tokens"] + meta["init_tokens"],
            group=meta["group"],
        )
    return Start(initial_state(run), 0)


def _started(state, meta: Mapping[str, Any], step: int, shardings) -> Start:
    return Start(place_state(state, shardings), step, meta["init"], meta["init_tokens"], meta["group"])


# --------------------------------------------------------------------------------------------------- the loop


class Preempted(Exception):
    """SIGTERM came, here or at another host; the state has been saved."""


def train(
    run: Run, start: Start, recorder: Recorder, stop: threading.Event, track: tracking.Track | None = None
) -> None:
    """Trains from ``start`` to the last step; ``track`` is sent what is logged.

    Raises:
      MscaleError: the loss became non-finite, or something cannot be written.
      Preempted: ``stop`` was set; a checkpoint of the step reached is on disk.
    """
    s, config = run.settings, run.model
    K = steps_per_dispatch(s)
    run_steps = compiled_steps(config, K, run.mesh, s.accumulate, run.rules)
    rows = run.batch_size // s.accumulate
    sharding = None if run.mesh is None else partitioning.batch_sharding(run.mesh, rows, dict(run.rules))
    held_out = evaluation.held_out_windows(
        run.store, run.eval_languages, s.sequence_length, rows, s.eval_tokens, sharding=sharding
    )
    agreement = distributed.GlobalStopSignal(run.mesh, stop)
    key = jax.random.key(s.seed)
    branch_points = frozenset(s.checkpoint_steps)
    saver = checkpoints.CheckpointWriter(
        run.workdir / "checkpoints", kept=branch_points | {s.steps}, recent=s.checkpoints_kept
    )
    batches = dispatch_batches(run, start.step, K)
    state, step = start.state, start.step
    in_flight: deque[tuple[jax.Array, jax.Array | None]] = deque()
    compiling = True

    shown = s.progress and recorder.writes
    bar = progress(run.name, s.steps - step, "steps") if shown else contextlib.nullcontext(no_progress_bar)
    with bar as advance:
        unread = PendingMetrics(run, recorder, held_out, track, advance)
        while step < s.steps:
            targets, count = next(batches)
            began = time.monotonic()
            state, metrics = run_steps(state, targets, np.int32(step), np.int32(count), run.hyper, key)
            if compiling:
                recorder.compile_seconds += time.monotonic() - began
                compiling, unread.clock = False, time.monotonic()
            unread.steps.append((step, count, metrics))
            step += count
            # Waits for the dispatch before the last: two stay in the queue, so the device never runs dry, and
            # a signal is answered within two dispatches, by all hosts at the same one. No value is read.
            in_flight.append((metrics["loss"], agreement.ask()))
            stopping = agreement.mesh is None and stop.is_set()
            if len(in_flight) > 2:
                computed, asked = in_flight.popleft()
                computed.block_until_ready()
                stopping = agreement.reached(asked)
            if step in run.eval_steps:
                unread.evaluations.append(
                    (step, evaluation.dispatch_evaluation(config, state["params"], held_out))
                )
            saving = step in branch_points or step % s.checkpoint_every == 0 or step == s.steps or stopping
            if saving or step % s.log_every == 0:
                unread.read(step)
                if not stopping:
                    recorder.status("running", every=2.0)
            if saving:
                saver.save(step, state, recorder.meta(step))
            if stopping and step < s.steps:
                saver.wait()
                raise Preempted(f"SIGTERM at step {step}")
        saver.wait()


def dispatch_batches(run: Run, start: int, K: int) -> Iterator[tuple[Any, int]]:
    """Yields ``(targets (K, B, S), count)`` per dispatch, cut where something is to happen after a step."""
    s = run.settings
    rows, sharding = slice(None), None
    if run.mesh is not None:
        whole = partitioning.batch_sharding(run.mesh, run.batch_size, dict(run.rules))
        rows = partitioning.local_rows(whole, run.batch_size)
        sharding = NamedSharding(run.mesh, PartitionSpec(None, *whole.spec))
    stops = sorted(run.eval_steps | set(s.checkpoint_steps) | {s.steps})
    batches = feed.batches(
        run.store, run.schedule, s.sequence_length, start, s.steps, rows=rows, prefetch=2 * K
    )
    step = start
    while step < s.steps:
        stop = min(
            step + K,
            next(at for at in stops if at > step),
            (step // s.log_every + 1) * s.log_every,
            (step // s.checkpoint_every + 1) * s.checkpoint_every,
        )
        count = stop - step
        host = [next(batches) for _ in range(count)]
        # Rows after `count` are not read; they keep the shape, and so the program, the same.
        targets = np.stack(host + host[:1] * (K - count))
        if sharding is not None:
            shape = (K, run.batch_size, s.sequence_length)
            targets = jax.make_array_from_process_local_data(sharding, targets, shape)
        yield targets, count
        step = stop


def run_to_end(run: Run, stop: threading.Event | None = None) -> int:
    """Trains ``run``, or continues it where it stopped; a finished one returns at once.

    Returns:
      0, or 143 if ``stop`` was set (SIGTERM) and the state has been saved.
    """
    workdir = run.workdir
    ours = json.loads(json.dumps(run_identity(run)))
    if (workdir / "run.json").exists():
        check_same_run(workdir, read_json(workdir / "run.json", what="run"), ours)
        if is_done(workdir):
            return 0
    with writing(workdir):
        workdir.mkdir(parents=True, exist_ok=True)
    on_mesh = (
        partitioning.use_mesh(run.mesh, dict(run.rules)) if run.mesh is not None else contextlib.nullcontext()
    )
    recorder = None
    with on_mesh:
        try:
            start = find_start(run)
            recorder = Recorder(run, start.step, start.init, start.init_tokens, start.group)
            if recorder.writes:
                atomic_json(workdir / "run.json", ours)
            recorder.status("running")
            with tracking.trackers(run, recorder.writes) as track:
                train(run, start, recorder, stop or threading.Event(), track)
            recorder.status("done")
            return 0
        except Preempted as error:
            assert recorder is not None
            recorder.status("preempted", str(error))
            print(f"{run.name}: {error}; saved, call again to continue", file=sys.stderr)
            return PREEMPTED_EXIT_STATUS
        except BaseException as error:
            if recorder is not None:
                state = "preempted" if isinstance(error, KeyboardInterrupt) else "failed"
                with contextlib.suppress(MscaleError):  # where the disk is full this fails too
                    recorder.status(state, launch.plain_message(error) or type(error).__name__)
            raise


# ------------------------------------------------------------------------------------------- the command line


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one training; returns the exit status (0 done, 1 an error that was printed, 143 preempted)."""
    argv = sys.argv[1:] if argv is None else argv
    if {"--help", "-h"} & set(argv):
        print(__doc__)
        return 0
    try:
        parsed = launch.parse_arguments(argv)
        with launch.configured(parsed), _stopping_at_sigterm() as stop:
            settings = Settings()  # type: ignore[call-arg]  # from gin
            gin_initialize_hosts()
            if jax.default_backend() == "cpu":
                runtime.retain_freed_memory()
            runtime.use_compile_cache(settings.compile_cache or os.environ.get("MSCALE_COMPILE_CACHE"))
            run = prepare_run(settings)
            launch.check_overrides_used(parsed)
            if jax.process_index() == 0 and not is_done(run.workdir):
                with writing(run.workdir):
                    run.workdir.mkdir(parents=True, exist_ok=True)
                atomic_write(run.workdir / "config.gin", launch.operative_config())
            return run_to_end(run, stop)
    except MscaleError as error:
        print(f"error: {launch.plain_message(error)}", file=sys.stderr)
        return 1


@contextlib.contextmanager
def _stopping_at_sigterm() -> Iterator[threading.Event]:
    """Yields an event that SIGTERM sets, instead of dying, where signals can be handled (the main thread)."""
    stop = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield stop
        return
    before = signal.signal(signal.SIGTERM, lambda *_: stop.set())
    try:
        yield stop
    finally:
        signal.signal(signal.SIGTERM, before)


if __name__ == "__main__":
    with distributed.exit_at_once_on_error():
        sys.exit(main())
