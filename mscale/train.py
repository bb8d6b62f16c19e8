"""Trains one model: ``python -m mscale.train --gin_file=gin/train/pretrain.gin --gin.SCALE='"nano2"' ...``.

One file, top to bottom: the compiled step, the start, the loop, the command line. The step is a pure function
of (state, batch, step); the data of step s and the dropout of step s depend on s alone, so resuming is a step
number. Steps are dispatched without waiting for them; losses stay on the device until a log point reads them,
checks that they are finite, and only then records anything. ``settings`` says what a run is, ``recorder``
writes what it leaves.
"""

import contextlib
import functools
import json
import math
import os
import signal
import sys
import threading
import time
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from mscale import checkpoints, compile_cache, evaluate, feed, launch, loss, model, optimizer, partitioning
from mscale.errors import MscaleError
from mscale.files import atomic_json, atomic_write, read_json, writing
from mscale.progress import progress
from mscale.recorder import Recorder, is_done
from mscale.settings import (
    Run,
    Settings,
    check_agrees,
    check_matches,
    check_same_run,
    identity,
    prepare,
)

PREEMPTED = 143  # exit status: 128 + SIGTERM


# ------------------------------------------------------------------------------------------ the compiled step


def steps_per_dispatch(settings: Settings) -> int:
    """Steps that one dispatch may hold: several where a step is short against starting it."""
    if settings.steps_per_dispatch:
        return settings.steps_per_dispatch
    return 8 if jax.default_backend() == "cpu" else 1


def train_step(config: model.ModelConfig, state, targets_BxS, step, hyper, key):
    """One optimiser step: ``(state, metrics)``, metrics being float32 scalars loss, lr and grad_norm."""

    def objective(params):
        dropout_key = jax.random.fold_in(key, step) if config.dropout else None
        return loss.objective(config, params, evaluate.shift_right(targets_BxS), targets_BxS, dropout_key)

    (_, nats), grads = jax.value_and_grad(objective, has_aux=True)(state["params"])
    params, moments = optimizer.update(
        grads,
        state["optimizer"],
        state["params"],
        step,
        hyper,
        model.lr_multipliers(config),
        model.decay_mask(config),
    )
    metrics = {
        "loss": nats,
        "lr": optimizer.learning_rate(step, hyper),
        "grad_norm": optimizer.global_norm(grads),
    }
    return {"params": params, "optimizer": moments}, metrics


@functools.lru_cache(maxsize=64)
def compiled_steps(config: model.ModelConfig, dispatch: int, mesh: Mesh | None):
    """Returns the jitted ``(state, targets_KxBxS, first, count, hyper, key) -> (state, metrics of (K,))``.

    ``count`` ≤ K steps are run, ``count`` being traced: one program serves whole and partial dispatches. Only
    what is an argument here is compiled in, so all runs of a shape share it whatever their rate or length.
    """

    def steps(state, targets_KxBxS, first, count, hyper, key):
        zeros = jnp.zeros(targets_KxBxS.shape[0], jnp.float32)
        metrics = {"loss": zeros, "lr": zeros, "grad_norm": zeros}

        def body(i, carry):
            state, metrics = carry
            state, now = train_step(config, state, targets_KxBxS[i], first + i, hyper, key)
            return state, {name: metrics[name].at[i].set(value) for name, value in now.items()}

        if targets_KxBxS.shape[0] == 1:
            return body(0, (state, metrics))
        return jax.lax.fori_loop(0, count, body, (state, metrics))

    if mesh is None:
        return jax.jit(steps, donate_argnums=0)
    shardings = state_shardings(config, mesh), partitioning.replicated(mesh)
    return jax.jit(steps, donate_argnums=0, out_shardings=shardings)


def state_shardings(config: model.ModelConfig, mesh: Mesh):
    """NamedShardings in the structure of the state: the moments lie where their parameters do."""
    params = partitioning.shardings(config, mesh)
    return {"params": params, "optimizer": optimizer.State(params, params)}


def abstract_state(config: model.ModelConfig):
    """The state's shapes and types, without allocating any."""
    params = model.abstract_params(config)
    return {"params": params, "optimizer": jax.eval_shape(optimizer.init, params)}


def place(state, config: model.ModelConfig, mesh: Mesh | None):
    """Puts a state of host arrays on the device, or on the mesh."""
    if mesh is None:
        # A copy: on the CPU a device array may share the memory of its source, which the step overwrites.
        return jax.tree.map(lambda x: jnp.array(x, copy=True), state)
    return jax.device_put(state, state_shardings(config, mesh))


@functools.lru_cache(maxsize=64)
def initialiser(config: model.ModelConfig):
    """Returns the jitted ``key -> parameters``; compiled hastily on the CPU, as it runs once a run."""
    options = {"xla_backend_optimization_level": 0} if jax.default_backend() == "cpu" else None
    return jax.jit(lambda key: model.init_params(config, key), compiler_options=options)


def fresh_state(run: Run):
    """Initial parameters from the seed, and zero moments."""
    params = initialiser(run.model)(jax.random.key(run.settings.seed))
    return place({"params": params, "optimizer": optimizer.init(params)}, run.model, run.mesh)


# -------------------------------------------------------------------------------------------------- the start


@dataclass(frozen=True)
class Start:
    """Where a run begins: its state and step, and whose parameters they were."""

    state: Any
    step: int
    init: str = "scratch"
    init_tokens: int = 0
    group: str | None = None


def find_start(run: Run) -> Start:
    """Returns the run's latest checkpoint, else its trunk's, else another run's parameters, else fresh."""
    s = run.settings
    shardings = None if run.mesh is None else state_shardings(run.model, run.mesh)
    own = checkpoints.restore_latest(
        run.workdir / "checkpoints",
        abstract_state(run.model),
        shardings=shardings,
        check=lambda path, meta: check_matches(run, path, meta),
    )
    if own is not None:
        state, meta = own
        return _started(run, state, meta, meta["step"])
    if s.branch_from:
        step = s.steps - s.decay_steps
        path = checkpoints.locate(s.branch_from, "BRANCH_FROM", step)
        meta = checkpoints.verify(path)
        check_matches(run, path, meta)
        check_agrees(run, Path(s.branch_from))
        state = checkpoints.restore(path, abstract_state(run.model), shardings=shardings)
        return _started(run, state, meta, step)
    if s.init_from:
        path = checkpoints.locate(s.init_from, "INIT_FROM")
        meta = checkpoints.verify(path)
        check_matches(run, path, meta)
        state = abstract_state(run.model)
        params = checkpoints.restore(path, {"params": state["params"]})["params"]
        state = {
            "params": params,
            "optimizer": jax.tree.map(lambda x: np.zeros(x.shape, x.dtype), state["optimizer"]),
        }
        return Start(
            place(state, run.model, run.mesh),
            0,
            init=meta["run"],
            init_tokens=meta["tokens"] + meta["init_tokens"],
            group=meta["group"],
        )
    return Start(fresh_state(run), 0)


def _started(run: Run, state, meta: Mapping[str, Any], step: int) -> Start:
    return Start(place(state, run.model, run.mesh), step, meta["init"], meta["init_tokens"], meta["group"])


# --------------------------------------------------------------------------------------------------- the loop


class Preempted(Exception):
    """SIGTERM came; the state has been saved."""


def train(run: Run, start: Start, recorder: Recorder, stop: threading.Event) -> None:
    """Trains from ``start`` to the last step.

    Raises:
      MscaleError: the loss became non-finite, or something cannot be written.
      Preempted: ``stop`` was set; a checkpoint of the step reached is on disk.
    """
    s, config = run.settings, run.model
    K = steps_per_dispatch(s)
    run_steps = compiled_steps(config, K, run.mesh)
    sharding = None if run.mesh is None else partitioning.batch_sharding(run.mesh, s.batch_size)
    held_out = evaluate.held_out(
        run.store, run.eval_languages, s.sequence_length, s.batch_size, s.eval_tokens, sharding=sharding
    )
    key = jax.random.key(s.seed)
    branch_points = frozenset(s.checkpoint_steps)
    saver = checkpoints.Saver(
        run.workdir / "checkpoints", kept=branch_points | {s.steps}, recent=s.checkpoints_kept
    )
    batches = dispatches(run, start.step, K)
    state, step = start.state, start.step
    dispatched: list[tuple[int, int, Any]] = []  # first step, steps, metrics on the device
    evaluated: list[tuple[int, list[jax.Array]]] = []
    in_flight: deque[jax.Array] = deque()
    compiling = True
    clock, clock_step = time.monotonic(), step

    def flush() -> None:
        """Reads what the device has computed since the last time; records it if all of it is finite."""
        nonlocal clock, clock_step
        values = jax.device_get([metrics for _, _, metrics in dispatched])
        nats = jax.device_get([windows for _, windows in evaluated])
        last: dict[str, float] = {}
        rates = {}
        for (first, count, _), metrics in zip(dispatched, values, strict=True):
            check_finite(first, {name: metrics[name][:count] for name in metrics})
            last = {name: float(metrics[name][count - 1]) for name in metrics}
            rates[first + count] = last["lr"]
        now = time.monotonic()
        if now > clock and step > clock_step:
            recorder.tokens_per_second = (step - clock_step) * run.step_tokens / (now - clock)
        for (at, _), windows in zip(evaluated, nats, strict=True):
            measured = evaluate.measure(windows, held_out)
            bad = [name for name, value in measured.items() if not math.isfinite(value["loss"])]
            if bad:
                raise MscaleError(f"the evaluation loss of {bad[0]} became non-finite at step {at}")
            recorder.add_observations(at, rates[at], measured)
        if last:
            recorder.add_metrics(step, last)
        advance(step - clock_step, note=f"loss {last['loss']:.3f}" if last else "")
        clock, clock_step, recorder.step = now, step, step
        dispatched.clear()
        evaluated.clear()

    total = s.steps - start.step
    with progress(run.name, total, "steps") if s.progress else _silent() as advance:
        while step < s.steps:
            targets, count = next(batches)
            began = time.monotonic()
            state, metrics = run_steps(state, targets, np.int32(step), np.int32(count), run.hyper, key)
            if compiling:
                recorder.compile_seconds += time.monotonic() - began
                compiling, clock = False, time.monotonic()
            dispatched.append((step, count, metrics))
            step += count
            # Waits for the dispatch before the last: two stay in the queue, so the device never runs dry, and
            # a signal is answered within two dispatches. Nothing is read.
            in_flight.append(metrics["loss"])
            if len(in_flight) > 2:
                in_flight.popleft().block_until_ready()
            if step in run.eval_steps:
                evaluated.append((step, evaluate.dispatch(config, state["params"], held_out)))
            stopping = stop.is_set()
            saving = step in branch_points or step % s.checkpoint_every == 0 or step == s.steps or stopping
            if saving or step % s.log_every == 0:
                flush()
                if not stopping:
                    recorder.status("running", every=2.0)
            if saving:
                saver.save(step, state, recorder.meta(step))
            if stopping and step < s.steps:
                saver.wait()
                raise Preempted(f"SIGTERM at step {step}")
        saver.wait()


def _silent():
    return contextlib.nullcontext(lambda n=1, note="": None)


def dispatches(run: Run, start: int, K: int) -> Iterator[tuple[Any, int]]:
    """Yields ``(targets (K, B, S), count)`` per dispatch, cut where something is to happen after a step."""
    s = run.settings
    rows = slice(None)
    if jax.process_count() > 1:
        share = s.batch_size // jax.process_count()
        rows = slice(jax.process_index() * share, (jax.process_index() + 1) * share)
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
        if run.mesh is not None:
            spec = partitioning.batch_sharding(run.mesh, s.batch_size).spec
            sharding = NamedSharding(run.mesh, PartitionSpec(None, *spec))
            targets = jax.make_array_from_process_local_data(sharding, targets)
        yield targets, count
        step = stop


def check_finite(first: int, metrics: Mapping[str, np.ndarray]) -> None:
    """Raises an error naming the first step whose loss or gradient is not finite."""
    bad = ~(np.isfinite(metrics["loss"]) & np.isfinite(metrics["grad_norm"]))
    if bad.any():
        i = int(np.argmax(bad))
        raise MscaleError(
            f"step {first + i + 1}: the loss is {metrics['loss'][i]} and the gradient norm "
            f"{metrics['grad_norm'][i]}; nothing after step {first + i} was recorded. Lower the learning "
            "rate or lengthen the warmup, and start in another WORKDIR"
        )


def run_to_end(run: Run, stop: threading.Event | None = None) -> int:
    """Trains ``run``, or continues it where it stopped; a finished one returns at once.

    Returns:
      0, or 143 if ``stop`` was set (SIGTERM) and the state has been saved.
    """
    workdir = run.workdir
    ours = json.loads(json.dumps(identity(run)))
    if (workdir / "run.json").exists():
        check_same_run(workdir, read_json(workdir / "run.json", what="run"), ours)
        if is_done(workdir):
            return 0
    with writing(workdir):
        workdir.mkdir(parents=True, exist_ok=True)
    context = partitioning.using(run.mesh) if run.mesh is not None else _silent()
    recorder = None
    with context:
        try:
            start = find_start(run)
            recorder = Recorder(run, start.step, start.init, start.init_tokens, start.group)
            if recorder.writes:
                atomic_json(workdir / "run.json", ours)
            recorder.status("running")
            train(run, start, recorder, stop or threading.Event())
            recorder.status("done")
            return 0
        except Preempted as error:
            assert recorder is not None
            recorder.status("preempted", str(error))
            print(f"{run.name}: {error}; saved, call again to continue", file=sys.stderr)
            return PREEMPTED
        except BaseException as error:
            if recorder is not None:
                state = "preempted" if isinstance(error, KeyboardInterrupt) else "failed"
                with contextlib.suppress(MscaleError):  # where the disk is full this fails too
                    recorder.status(state, launch.plain_message(error) or type(error).__name__)
            raise


# ------------------------------------------------------------------------------------------- the command line


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one training; returns the exit status (0 done, 1 an error that was printed, 143 preempted)."""
    try:
        parsed = launch.parse(sys.argv[1:] if argv is None else argv)
        with launch.configured(parsed), _stopping_at_sigterm() as stop:
            settings = Settings()  # type: ignore[call-arg]  # from gin
            compile_cache.use(settings.compile_cache or os.environ.get("MSCALE_COMPILE_CACHE"))
            run = prepare(settings)
            launch.check_used(parsed)
            if jax.process_index() == 0 and not is_done(run.workdir):
                with writing(run.workdir):
                    run.workdir.mkdir(parents=True, exist_ok=True)
                atomic_write(run.workdir / "config.gin", launch.operative_config())
            return run_to_end(run, stop)
    except MscaleError as error:
        print(f"error: {launch.plain_message(error)}", file=sys.stderr)
        return 1


class _stopping_at_sigterm:
    """Sets an event at SIGTERM instead of dying, where signals can be handled (the main thread)."""

    def __enter__(self) -> threading.Event:
        self.stop = threading.Event()
        self.main = threading.current_thread() is threading.main_thread()
        if self.main:
            self.before = signal.signal(signal.SIGTERM, lambda *_: self.stop.set())
        return self.stop

    def __exit__(self, *_: Any) -> None:
        if self.main:
            signal.signal(signal.SIGTERM, self.before)


if __name__ == "__main__":
    sys.exit(main())
