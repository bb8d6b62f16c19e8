"""Trains one model: ``python -m mscale.train --gin_file=gin/train/pretrain.gin --gin.SCALE='"nano2"' ...``.

Read it from top to bottom: where a run starts, the loop, the command line. The step (``training.step``) is a pure
function of (state, batch, step). The data and the dropout of a step depend on its number alone, so a run is resumed
by its step number. Steps are dispatched without waiting for them. Their losses stay on the device until the next log
step, which fetches them, checks that they are finite, and only then records anything. ``training.settings`` defines
a run, ``training.recorder`` writes its files, ``training.distributed`` connects several processes.
"""

import contextlib
import json
import os
import signal
import socket
import sys
import threading
import time
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import jax
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec

from mscale import launch, run_folder
from mscale.data import feed
from mscale.errors import MscaleError
from mscale.files import atomic_json, atomic_write, read_json
from mscale.liveness import run_lock, running_beside
from mscale.models import partitioning
from mscale.models.decoder import Params
from mscale.progress import progress
from mscale.training import checkpoints, distributed, evaluation, runtime, tracking
from mscale.training.metrics import PendingMetrics, no_progress_bar
from mscale.training.recorder import Recorder
from mscale.training.settings import (
    Run,
    Settings,
    check_branch_fits_trunk,
    check_checkpoint_fits,
    check_same_run,
    gin_initialize_hosts,
    prepare_run,
    read_settings,
    run_identity,
)
from mscale.training.step import (
    TrainState,
    abstract_state,
    compiled_steps,
    optimizer_initializer,
    parameter_initializer,
    place_state,
    state_shardings,
)

# -------------------------------------------------------------------------------------------------- the start


@dataclass(frozen=True)
class Start:
    """Where a run begins.

    Attributes:
      state: parameters and optimizer, on the device.
      step: steps already done.
      init: run whose parameters were taken over, or "scratch".
      init_tokens: tokens that those parameters were trained on before this run.
      group: group of the run that this one continues, if any.
    """

    state: TrainState
    step: int
    init: str = "scratch"
    init_tokens: int = 0
    group: str | None = None


def steps_per_dispatch(settings: Settings) -> int:
    """Most steps of one dispatch: several on the CPU, where a step is short compared with its dispatch."""
    if settings.steps_per_dispatch:
        return settings.steps_per_dispatch
    return 8 if jax.default_backend() == "cpu" else 1


def initial_state(run: Run) -> TrainState:
    """Initial parameters from the seed, and the optimizer's first state."""
    params = parameter_initializer(run.model, run.mesh, run.rules)(jax.random.key(run.settings.seed))
    return with_fresh_optimizer(run, params)


def with_fresh_optimizer(run: Run, params: Params) -> TrainState:
    """The state at the start of a run that has these parameters."""
    return {
        "params": params,
        "optimizer": optimizer_initializer(run.model, run.mesh, run.rules, run.chain)(params),
    }


def find_start(run: Run) -> Start:
    """Returns where the run begins.

    In this order: its own latest checkpoint, its trunk's checkpoint (BRANCH_FROM), the parameters of another run
    (INIT_FROM), or initial parameters from the seed.

    Raises:
      MscaleError: a checkpoint is missing, damaged, or of another model or vocabulary.
    """
    s = run.settings
    template = abstract_state(run.model, run.chain)
    shardings = None if run.mesh is None else state_shardings(run.model, run.mesh, run.rules, run.chain)
    # A branch point that was added to a trunk after it was passed: train again from the checkpoint before it.
    missing = set(s.checkpoint_steps) - set(
        checkpoints.saved_steps(run.workdir / run_folder.CHECKPOINTS_FOLDER)
    )
    # Without any observation: they were lost, or none was made yet; the first evaluation is then to come.
    if not run_folder.has_observations(run.workdir):
        missing |= {step - 1 for step in run.eval_steps}
    own = checkpoints.restore_latest(
        run.workdir / run_folder.CHECKPOINTS_FOLDER,
        template,
        shardings=shardings,
        at_most=min(missing, default=None),
        check=lambda path, meta: check_checkpoint_fits(run, path, meta),
    )
    if own is not None:
        state, meta = own
        return _continued(state, meta, meta["step"], shardings)
    if (reached := run_folder.read_status(run.workdir).step) and jax.process_index() == 0:
        before = f" of step {min(missing)} or before" if missing else ""
        print(
            f"{run.name}: was at step {reached:,}, but no checkpoint{before} is left; training begins anew",
            file=sys.stderr,
        )
    if s.branch_from:
        step = s.steps - s.decay_steps
        path = checkpoints.locate_checkpoint(s.branch_from, "BRANCH_FROM", step)
        meta = checkpoints.verify(path)
        check_checkpoint_fits(run, path, meta)
        check_branch_fits_trunk(run, path.parent.parent)
        state = checkpoints.restore(path, template, shardings=shardings)
        return _continued(state, meta, step, shardings)
    if s.init_from:
        path = checkpoints.locate_checkpoint(s.init_from, "INIT_FROM")
        meta = checkpoints.verify(path)
        check_checkpoint_fits(run, path, meta)
        params_sharding = None if shardings is None else {"params": shardings["params"]}
        saved = checkpoints.restore(path, {"params": template["params"]}, shardings=params_sharding)
        params = place_state(saved, params_sharding)["params"]
        return Start(
            with_fresh_optimizer(run, params),
            0,
            init=meta["run"],
            init_tokens=meta["tokens"] + meta["init_tokens"],
            group=meta["group"],
        )
    return Start(initial_state(run), 0)


def _continued(state: TrainState, meta: Mapping[str, Any], step: int, shardings: TrainState | None) -> Start:
    return Start(place_state(state, shardings), step, meta["init"], meta["init_tokens"], meta["group"])


# --------------------------------------------------------------------------------------------------- the loop


class Preempted(Exception):
    """This host or another one received SIGTERM; the state has been saved."""


def train(
    run: Run, start: Start, recorder: Recorder, stop: threading.Event, track: tracking.Track | None = None
) -> None:
    """Trains from ``start`` to the last step.

    Args:
      run: the run.
      start: as from ``find_start``.
      recorder: writes the run's files.
      stop: set it to save and stop within a few steps.
      track: called with the step and values at every log step and evaluation.

    Raises:
      MscaleError: the loss became non-finite, or a file cannot be written.
      Preempted: ``stop`` was set; a checkpoint of the current step is on disk.
    """
    s, config = run.settings, run.model
    K = steps_per_dispatch(s)
    run_steps = compiled_steps(config, K, run.mesh, s.accumulate, run.rules, run.chain)
    rows = run.batch_size // s.accumulate
    sharding = None if run.mesh is None else partitioning.batch_sharding(run.mesh, rows, dict(run.rules))
    held_out = evaluation.held_out_windows(
        run.store, run.eval_languages, s.sequence_length, rows, s.eval_tokens, sharding=sharding
    )
    stop_signal = distributed.GlobalStopSignal(run.mesh, stop)
    key = jax.random.key(s.seed)
    branch_points = frozenset(s.checkpoint_steps)
    saver = checkpoints.CheckpointWriter(
        run.workdir / run_folder.CHECKPOINTS_FOLDER,
        keep_steps=branch_points | {s.steps},
        keep_latest=s.checkpoints_kept,
    )
    batches = dispatch_batches(run, start.step, K)
    state, step = start.state, start.step
    in_flight: deque[tuple[jax.Array, jax.Array | None]] = deque()
    compiling = True

    show_bar = s.progress and recorder.writes
    bar = progress(run.name, s.steps - step, "steps") if show_bar else contextlib.nullcontext(no_progress_bar)
    with bar as advance_progress:
        pending = PendingMetrics(run, recorder, held_out, track, advance_progress)
        if stop_signal.mesh is None and stop.is_set():
            raise Preempted(f"SIGTERM at step {step}; it did no step")
        while step < s.steps:
            targets, count = next(batches)
            began = time.monotonic()
            state, metrics = run_steps(state, targets, np.int32(step), np.int32(count), run.hyper, key)
            if compiling:
                recorder.compile_seconds += time.monotonic() - began
                compiling, pending.last_fetch = False, time.monotonic()
            pending.dispatches.append((step, count, metrics))
            step += count
            # Wait for the oldest of three dispatches. Two stay queued, so the device is never idle, and all hosts
            # react to a stop signal at the same dispatch, two later. No value is fetched here.
            in_flight.append((metrics["loss"], stop_signal.start_reduction()))
            stopping = stop_signal.mesh is None and stop.is_set()
            if len(in_flight) > 2:
                oldest_loss, stop_reduction = in_flight.popleft()
                oldest_loss.block_until_ready()
                stopping = stop_signal.is_set(stop_reduction)
            if step in run.eval_steps:
                pending.evaluations.append(
                    (step, evaluation.dispatch_evaluation(config, state["params"], held_out))
                )
            saving = step in branch_points or step % s.checkpoint_every == 0 or step == s.steps or stopping
            if saving or step % s.log_every == 0:
                pending.fetch(step)
                if not stopping:
                    recorder.status("running", every=2.0)
            if saving:
                saver.save(step, state, recorder.meta(step))
            if stopping and step < s.steps:
                saver.wait()
                raise Preempted(f"SIGTERM at step {step}; saved")
        saver.wait()


def dispatch_batches(run: Run, start: int, K: int) -> Iterator[tuple[Any, int]]:
    """Yields ``(targets (K, B, S), count)`` of each dispatch, of which the first ``count`` ≤ K steps are to be run.

    A dispatch ends early where the loop evaluates, logs or saves after a step. On a mesh the targets are a global
    array, of which this host reads its own rows.
    """
    s = run.settings
    rows, sharding = slice(None), None
    if run.mesh is not None:
        batch_sharding = partitioning.batch_sharding(run.mesh, run.batch_size, dict(run.rules))
        rows = partitioning.local_rows(batch_sharding, run.batch_size)
        sharding = NamedSharding(run.mesh, PartitionSpec(None, *batch_sharding.spec))
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
        step_targets = [next(batches) for _ in range(count)]
        # Steps after `count` are not run; filling them keeps the shape, so that one compiled program serves all.
        targets = np.stack(step_targets + step_targets[:1] * (K - count))
        if sharding is not None:
            shape = (K, run.batch_size, s.sequence_length)
            targets = jax.make_array_from_process_local_data(sharding, targets, shape)
        yield targets, count
        step = stop


def is_done(run: Run, recorded: Mapping[str, Any]) -> bool:
    """Whether the folder's run, recorded in run.json, has reached the end and all branch points that are asked for.

    A run whose observations are gone is not done.
    """
    status = run_folder.read_status(run.workdir)
    reached = status.state == "done" and status.step >= run.settings.steps
    return (
        reached
        and run_folder.has_observations(run.workdir)
        and set(run.settings.checkpoint_steps) <= set(recorded.get("checkpoint_steps", ()))
    )


def run_to_end(run: Run, stop: threading.Event | None = None) -> int:
    """Trains ``run``, or continues it where it stopped; a run that is done returns at once.

    Returns:
      0, or 143 if ``stop`` was set (SIGTERM) and the state has been saved.

    Raises:
      MscaleError: the folder holds another run, or another process trains it, or as ``find_start`` and ``train``.
    """
    recorded = _recorded(run)
    if recorded and is_done(run, recorded):
        if jax.process_index() == 0:
            print(
                f"{run.name}: done at step {run.settings.steps:,}; nothing is left to train in {run.workdir}"
            )
        return 0
    on_mesh = (
        partitioning.use_mesh(run.mesh, dict(run.rules)) if run.mesh is not None else contextlib.nullcontext()
    )
    # Of several processes that train one model the first writes into the folder and holds it.
    lock = run_lock(run.workdir) if jax.process_index() == 0 else contextlib.nullcontext()
    with lock, on_mesh:
        return _train_and_record(_with_recorded_steps(run), stop or threading.Event())


def _recorded(run: Run) -> dict[str, Any]:
    """The content of run.json, empty where there is none; the folder's run is then the one to be trained.

    Raises:
      MscaleError: the folder holds another run.
    """
    path = run.workdir / run_folder.RUN_FILE
    if not path.exists():
        return {}
    recorded = read_json(path, what="run")
    check_same_run(run.workdir, recorded, json.loads(json.dumps(run_identity(run))), run.settings.lengthen)
    return recorded


def _with_recorded_steps(run: Run) -> Run:
    """The run with the branch points and evaluations asked for earlier: a trunk may have been given others since."""
    recorded = _recorded(run)
    branch_points = {*recorded.get("checkpoint_steps", ()), *run.settings.checkpoint_steps}
    return replace(
        run,
        settings=replace(run.settings, checkpoint_steps=tuple(sorted(branch_points))),
        eval_steps=run.eval_steps | set(recorded.get("eval_steps", ())),
    )


def _train_and_record(run: Run, stop: threading.Event) -> int:
    """``run_to_end`` with the folder held."""
    recorder = None
    try:
        start = find_start(run)
        recorder = Recorder(run, start.step, start.init, start.init_tokens, start.group)
        if recorder.writes:
            atomic_json(run.workdir / run_folder.RUN_FILE, run_identity(run))
            atomic_write(run.workdir / run_folder.CONFIG_FILE, launch.operative_config())
        recorder.status("running")
        with tracking.trackers(run, recorder.writes) as track, _stop_recorded_while_compiling(recorder, stop):
            train(run, start, recorder, stop, track)
        recorder.status("done")
        return 0
    except Preempted as error:
        assert recorder is not None
        recorder.status("preempted", str(error))
        print(f"{run.name}: {error}, call again to continue", file=sys.stderr)
        return run_folder.PREEMPTED_EXIT_STATUS
    except BaseException as error:
        if recorder is not None:
            state = "preempted" if isinstance(error, KeyboardInterrupt) else "failed"
            with contextlib.suppress(MscaleError):  # if the disk is full this write fails too
                recorder.status(state, launch.plain_message(error) or type(error).__name__)
        raise


@contextlib.contextmanager
def _stop_recorded_while_compiling(recorder: Recorder, stop: threading.Event) -> Iterator[None]:
    """Writes the status "preempted" as soon as ``stop`` is set before the first step of the block.

    Compiling takes minutes for a large model, and a cluster kills a process seconds after SIGTERM.
    """

    def watch(ended: threading.Event) -> None:
        while not (recorder.compile_seconds or ended.is_set()):
            if stop.wait(0.2):
                with contextlib.suppress(MscaleError):
                    recorder.status("preempted", "SIGTERM before the first step")
                return

    with running_beside(watch):
        yield


# ------------------------------------------------------------------------------------------- the command line


def main(argv: Sequence[str] | None = None) -> int:
    """Trains one run; returns the exit status (0 done, 1 an error that was printed, 143 preempted)."""
    argv = sys.argv[1:] if argv is None else argv
    try:
        if {"--help", "-h"} & set(argv):
            print(launch.help_text(argv))
            return 0
        parsed = launch.parse_arguments(argv)
        with launch.configured(parsed), _stop_event_of_sigterm() as stop:
            settings = read_settings()
            gin_initialize_hosts()
            if jax.default_backend() == "cpu":
                runtime.retain_freed_memory()
            runtime.use_compile_cache(settings.compile_cache or os.environ.get("MSCALE_COMPILE_CACHE"))
            run = prepare_run(settings)
            launch.check_overrides_used(parsed)
            return run_to_end(run, stop)
    except MscaleError as error:
        print(f"error: {launch.plain_message(error)}", file=sys.stderr)
        return 1


@contextlib.contextmanager
def _stop_event_of_sigterm() -> Iterator[threading.Event]:
    """Yields an event that SIGTERM sets instead of ending the process.

    Python's own handler runs between two bytecodes of the main thread, so not while XLA compiles. A thread therefore
    reads the signal from the wakeup descriptor. Signals can be handled in the main thread only; elsewhere the event is
    never set.
    """
    stop = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield stop
        return
    receiver, sender = socket.socketpair()
    sender.setblocking(False)

    def read() -> None:
        while number := receiver.recv(1):
            if number[0] == signal.SIGTERM:
                stop.set()

    thread = threading.Thread(target=read, daemon=True)
    thread.start()
    previous_handler = signal.signal(signal.SIGTERM, lambda *_: stop.set())
    previous_descriptor = signal.set_wakeup_fd(sender.fileno(), warn_on_full_buffer=False)
    try:
        yield stop
    finally:
        signal.set_wakeup_fd(previous_descriptor)
        signal.signal(signal.SIGTERM, previous_handler)
        sender.shutdown(socket.SHUT_WR)  # the thread reads the end, also where a forked child has a copy
        thread.join()
        sender.close()
        receiver.close()


if __name__ == "__main__":
    with distributed.exit_at_once_on_error():
        sys.exit(main())
