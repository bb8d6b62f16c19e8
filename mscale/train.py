"""Trains one model: ``python -m mscale.train --gin_file=gin/train/pretrain.gin --gin.SCALE='"nano2"' ...``.

One file, top to bottom: settings, the compiled step, what is recorded, the loop, the command line. The step
is a pure function of (state, batch, step); the data of step s and the dropout of step s depend on s alone, so
resuming is a step number. Steps are dispatched without waiting for them; losses stay on the device until a
log point reads them, checks that they are finite, and only then records anything.
"""

import dataclasses
import functools
import hashlib
import json
import math
import os
import resource
import signal
import sys
import threading
import time
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gin
import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec

from mscale import (
    checkpoints,
    compile_cache,
    evaluate,
    feed,
    launch,
    loss,
    model,
    observations,
    optimizer,
    partitioning,
    scales,
    schedule,
)
from mscale.errors import MscaleError, nearest
from mscale.files import atomic_json, atomic_write, read_json, writing
from mscale.mixture import resolve
from mscale.progress import progress
from mscale.store import Store, open_store

PREEMPTED = 143  # exit status: 128 + SIGTERM


# ------------------------------------------------------------------------------------------------ settings


@gin.configurable("train")
@dataclass(frozen=True)
class Settings:
    """One run, as gin/train/pretrain.gin documents it; counts are steps, tokens or sequences."""

    scale: int | str
    mixture: str
    store: str
    workdir: str
    steps: int
    batch_size: int
    sequence_length: int
    learning_rate: float
    seed: int = 0
    unique_tokens: Mapping[str, int] | None = None
    warmup_steps: int = 0
    decay_steps: int = 0
    branch_from: str | None = None
    init_from: str | None = None
    eval_steps: str | Sequence[int] = "log"
    eval_per_decade: int = 8
    eval_first: int = 10
    eval_languages: Sequence[str] | None = None
    eval_tokens: int = 8192
    checkpoint_steps: Sequence[int] = ()
    checkpoint_every: int = 1000
    checkpoints_kept: int = 2
    log_every: int = 100
    steps_per_dispatch: int = 0
    run: str | None = None
    study: str = ""
    tag: str = ""
    group: str | None = None
    compile_cache: str | None = None
    progress: bool = True


model_config = gin.external_configurable(
    model.ModelConfig, "model", module="mscale", denylist=["shape", "vocab_size"]
)
make_hyper = gin.external_configurable(
    optimizer.hyper, "optimizer", module="mscale", denylist=["peak_lr", "warmup", "total", "decay"]
)
make_mesh = gin.external_configurable(partitioning.mesh, "mesh", module="mscale", denylist=["devices"])


@dataclass(frozen=True)
class Run:
    """A run with everything resolved and checked; nothing has been trained or written yet."""

    settings: Settings
    name: str
    workdir: Path
    store: Store
    schedule: schedule.Schedule
    model: model.ModelConfig
    hyper: optimizer.Hyper
    mesh: jax.sharding.Mesh | None
    eval_steps: frozenset[int]
    eval_languages: tuple[str, ...]

    @property
    def step_tokens(self) -> int:
        return self.settings.batch_size * self.settings.sequence_length


def prepare(settings: Settings) -> Run:
    """Opens the store and resolves model, mixture, schedule and mesh.

    Raises:
      MscaleError: anything that cannot work, before the first step.
    """
    s = settings
    for field in ("steps", "batch_size", "sequence_length", "eval_tokens", "checkpoint_every", "log_every"):
        value = getattr(s, field)
        if not isinstance(value, int) or isinstance(value, bool) or value < 1:
            raise MscaleError(f"{field.upper()} is {value!r}: expected a whole number of at least 1")
    if s.branch_from and s.init_from:
        raise MscaleError("BRANCH_FROM and INIT_FROM are both given: expected one of them")
    if s.branch_from and not s.decay_steps:
        raise MscaleError("BRANCH_FROM is given but DECAY_STEPS is 0: a branch is the decay of a trunk")
    store = open_store(s.store)
    mixture = resolve(s.mixture, store, s.sequence_length, unique_tokens=s.unique_tokens)
    mesh = make_mesh()
    if mesh.size > 1:
        partitioning.batch_sharding(mesh, s.batch_size)
    for language in s.eval_languages or ():
        if language not in store.languages:
            hint = nearest(language, store.languages)
            raise MscaleError(f"EVAL_LANGUAGES: {s.store} has no language {language!r}{hint}")
    workdir = Path(s.workdir)
    return Run(
        settings=s,
        name=s.run or workdir.absolute().name,
        workdir=workdir,
        store=store,
        schedule=schedule.single(mixture, s.batch_size, s.seed),
        model=model_config(scales.get(s.scale), store.vocabulary["size"]),
        hyper=make_hyper(s.learning_rate, s.warmup_steps, s.steps, s.decay_steps),
        mesh=mesh if mesh.size > 1 else None,
        eval_steps=evaluation_steps(s),
        eval_languages=tuple(s.eval_languages or store.languages),
    )


def evaluation_steps(settings: Settings) -> frozenset[int]:
    """Returns the steps after which a run is evaluated: those asked for, branch points and the last.

    Raises:
      MscaleError: a step outside the run, or neither "log" nor a sequence of steps.
    """
    s = settings
    asked: set[int] = set()
    if isinstance(s.eval_steps, str):
        if s.eval_steps != "log":
            raise MscaleError(f'EVAL_STEPS is {s.eval_steps!r}: expected "log" or a tuple of steps')
        count = math.log10(max(s.steps / s.eval_first, 1)) * s.eval_per_decade
        asked = {round(s.eval_first * 10 ** (i / s.eval_per_decade)) for i in range(math.floor(count) + 1)}
        asked = {step for step in asked if step <= s.steps}
    else:
        asked = set(s.eval_steps)
    for name, steps in (("EVAL_STEPS", asked), ("CHECKPOINT_STEPS", set(s.checkpoint_steps))):
        outside = [step for step in sorted(steps) if not 0 < step <= s.steps]
        if outside:
            raise MscaleError(f"{name} holds {outside[0]}: expected steps from 1 to STEPS, {s.steps}")
    return frozenset(asked | set(s.checkpoint_steps) | {s.steps})


def identity(run: Run) -> dict[str, Any]:
    """Returns what determines the run's result, as JSON; two runs in one folder must agree on it."""
    s, mixture = run.settings, run.schedule.phases[0][1]
    files = {
        name: run.store.entries[name]["files"] for name in sorted({*mixture.languages, *run.eval_languages})
    }
    return {
        "scale": str(s.scale),
        "model": dataclasses.asdict(run.model),
        "optimizer": {k: float(v) for k, v in run.hyper._asdict().items() if k not in ("total", "decay")},
        "mixture": {"name": mixture.name, "languages": mixture.languages, "rates": mixture.rates},
        "windows": dict(run.schedule.windows),
        "data": hashlib.blake2b(json.dumps(files, sort_keys=True).encode(), digest_size=16).hexdigest(),
        "vocabulary": run.store.vocabulary["fingerprint"],
        "batch_size": s.batch_size,
        "sequence_length": s.sequence_length,
        "seed": s.seed,
        "steps": s.steps,
        "decay_steps": s.decay_steps,
        "eval_steps": sorted(run.eval_steps),
        "eval_languages": list(run.eval_languages),
        "eval_tokens": s.eval_tokens,
        "checkpoint_steps": sorted(s.checkpoint_steps),
        "continues": Path(s.branch_from or s.init_from or "").name or None,
    }


# A branch takes over its trunk's state and schedule, so these must agree; the rest may differ.
SHARED_WITH_TRUNK = ("scale", "model", "optimizer", "mixture", "windows", "data", "vocabulary") + (
    "batch_size",
    "sequence_length",
    "seed",
)


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
def compiled_steps(config: model.ModelConfig, dispatch: int, mesh: jax.sharding.Mesh | None):
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
    return jax.jit(steps, donate_argnums=0, out_shardings=(state_shardings(config, mesh), None))


def state_shardings(config: model.ModelConfig, mesh: jax.sharding.Mesh):
    """NamedShardings in the structure of the state: the moments lie where their parameters do."""
    params = partitioning.shardings(config, mesh)
    return {"params": params, "optimizer": optimizer.State(params, params)}


def abstract_state(config: model.ModelConfig):
    """The state's shapes and types, without allocating any."""
    params = model.abstract_params(config)
    return {"params": params, "optimizer": jax.eval_shape(optimizer.init, params)}


def place(state, config: model.ModelConfig, mesh: jax.sharding.Mesh | None):
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


def check_matches(run: Run, path: Path, meta: Mapping[str, Any]) -> None:
    """Raises an error naming both sides if a checkpoint has another vocabulary or model than the run."""
    here = {
        "vocabulary": run.store.vocabulary["fingerprint"],
        "model": {"vocab_size": run.model.vocab_size, **_shape(run.model)},
    }
    for field, value in here.items():
        if meta.get(field) != value:
            raise MscaleError(
                f"{path}: its {field} is {meta.get(field)}, this run's ({run.settings.store}, scale "
                f"{run.settings.scale}) is {value}; continue it with the same {field}"
            )


def _shape(config: model.ModelConfig) -> dict[str, Any]:
    return {**dataclasses.asdict(config.shape), "serial_block": config.serial_block}


def check_agrees(run: Run, trunk: Path) -> None:
    """Raises an error if a branch would train on another schedule, or another way, than its trunk."""
    theirs = read_json(trunk / "run.json", what="run")
    if theirs["decay_steps"]:
        raise MscaleError(f"BRANCH_FROM: {trunk} decays itself; a trunk has DECAY_STEPS = 0")
    ours = json.loads(json.dumps(identity(run)))
    for field in SHARED_WITH_TRUNK:
        if theirs[field] != ours[field]:
            raise MscaleError(
                f"BRANCH_FROM: {run.name} has {field} {ours[field]}, its trunk {trunk} has {theirs[field]}; "
                "a branch goes on with its trunk's data and model, so give both the same"
            )


# ------------------------------------------------------------------------------------------- what is recorded


class Recorder:
    """Writes what a run leaves in its folder, and what must not be there twice is cut back at the start."""

    def __init__(self, run: Run, start: Start):
        self.run, self.start = run, start
        self.group = run.settings.group or start.group or run.name
        self.began = time.monotonic()
        self.compile_seconds = 0.0
        self.tokens_per_second = 0.0
        self.observations = run.workdir / "observations.jsonl"
        self.exposure = run.workdir / "exposure.jsonl"
        self.metrics = run.workdir / "metrics.jsonl"
        self.step = start.step
        self._wrote_status = 0.0
        for path in (self.observations, self.exposure, self.metrics):
            observations.truncate_rows(path, start.step)

    def meta(self, step: int) -> dict[str, Any]:
        """What a checkpoint says of itself."""
        run = self.run
        return {
            "run": run.name,
            "group": self.group,
            "init": self.start.init,
            "init_tokens": self.start.init_tokens,
            "tokens": step * run.step_tokens,
            "vocabulary": run.store.vocabulary["fingerprint"],
            "model": {"vocab_size": run.model.vocab_size, **_shape(run.model)},
        }

    def status(self, state: str, reason: str = "", *, every: float = 0.0) -> None:
        """Replaces status.json, at most each ``every`` seconds; ``step`` is the last one recorded."""
        now = time.monotonic()
        if now - self._wrote_status < every:
            return
        self._wrote_status = now
        write_status(
            self.run.workdir,
            state=state,
            step=self.step,
            steps=self.run.settings.steps,
            tokens_per_second=round(self.tokens_per_second, 1),
            reason=reason,
            updated=time.time(),
            compile_seconds=round(self.compile_seconds, 3),
            seconds=round(now - self.began, 3),
            peak_memory_bytes=peak_memory_bytes(),
        )

    def add_metrics(self, step: int, values: Mapping[str, float]) -> None:
        row = {
            "step": step,
            "loss": values["loss"],
            "lr": values["lr"],
            "grad_norm": values["grad_norm"],
            "tokens": step * self.run.step_tokens,
            "tokens_per_second": round(self.tokens_per_second, 1),
        }
        observations.append_rows(self.metrics, [row], check=False)

    def add_observations(self, step: int, lr: float, measured: Mapping[str, Mapping[str, Any]]) -> None:
        """Appends the exposure after ``step`` and one observation per evaluated language."""
        run, s = self.run, self.run.settings
        seen = run.schedule.exposure(step, s.sequence_length)
        config = run.model
        tokens = step * run.step_tokens
        params = scales.parameter_count(config.shape, config.vocab_size)
        common = {
            "run": run.name,
            "study": s.study,
            "tag": s.tag,
            "group": self.group,
            "scale": str(s.scale),
            "params": params,
            "params_nonembedding": scales.parameter_count_nonembedding(config.shape),
            "mixture": s.mixture,
            "languages": "+".join(run.schedule.languages),
            "vocabulary": run.store.vocabulary["fingerprint"],
            "init": self.start.init,
            "init_tokens": self.start.init_tokens,
            "seed": s.seed,
            "step": step,
            "tokens": tokens,
            "phase": optimizer.phase(
                step, s.warmup_steps, s.steps, s.decay_steps, optimizer.SCHEDULES[int(run.hyper.schedule)]
            ),
            "lr": lr,
            "flops": float(6 * params * tokens),
        }
        rows = []
        for language, values in measured.items():
            row = common | {
                "language": language,
                "split": "valid",
                "target_tokens": seen.get(language, (0, 0))[0],
                "target_unique": run.schedule.windows.get(language, 0) * s.sequence_length,
                **values,
            }
            rows.append({name: row[name] for name in observations.COLUMNS})
        observations.append_rows(
            self.exposure,
            [
                {
                    "run": run.name,
                    "step": step,
                    "language": language,
                    "tokens": count,
                    "unique_tokens": unique,
                }
                for language, (count, unique) in seen.items()
            ],
        )
        observations.append_rows(self.observations, rows)


def write_status(workdir: Path, **values: Any) -> None:
    atomic_json(workdir / "status.json", values)


def peak_memory_bytes() -> int:
    """Peak memory of the accelerator, or of this process where it has none of its own."""
    stats = jax.local_devices()[0].memory_stats() or {}
    return int(stats.get("peak_bytes_in_use") or resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024)


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
    import contextlib

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
            recorder = Recorder(run, start)
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
                recorder.status("failed", launch.plain_message(error) or type(error).__name__)
            raise


def is_done(workdir: Path) -> bool:
    path = workdir / "status.json"
    return path.exists() and read_json(path, what="run status").get("state") == "done"


def check_same_run(workdir: Path, there: Mapping[str, Any], ours: Mapping[str, Any]) -> None:
    """Raises an error naming the field if the folder holds a run of another configuration."""
    for field, value in ours.items():
        if there.get(field) != value:
            raise MscaleError(
                f"{workdir}: holds a run with {field} {there.get(field)}, this one has {value}; choose "
                "another WORKDIR, or delete that one"
            )


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
            if not (is_done(run.workdir) and (run.workdir / "config.gin").exists()):
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
