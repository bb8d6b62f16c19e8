"""What a run is asked to be: its settings, what they resolve to, and what must agree when runs meet.

Everything that cannot work is found here, before the first step.
"""

import dataclasses
import hashlib
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gin
import jax

from mscale import scales
from mscale.data import schedule
from mscale.data.mixture import resolve
from mscale.data.store import Store, open_store
from mscale.errors import MscaleError, nearest
from mscale.files import read_json
from mscale.models import decoder, partitioning
from mscale.remote import local_folder
from mscale.training import distributed, optimizer

BATCH_SIZE_BY_PARAMETERS = "by size"
_COUNT_FIELDS = (
    "steps",
    "batch_size",
    "accumulate",
    "sequence_length",
    "eval_tokens",
    "checkpoint_every",
    "log_every",
)


@gin.configurable("train")
@dataclass(frozen=True)
class Settings:
    """One run, as gin/train/pretrain.gin documents it; counts are steps, tokens or sequences."""

    scale: int | str
    mixture: str
    store: str
    workdir: str
    steps: int
    batch_size: int | str
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
    accumulate: int = 1
    run: str | None = None
    study: str = ""
    tag: str = ""
    group: str | None = None
    compile_cache: str | None = None
    progress: bool = True
    tensorboard: bool = False
    wandb: str | None = None
    peak_flops: float | None = None


gin_model_config = gin.external_configurable(
    decoder.ModelConfig, "model", module="mscale", denylist=["shape", "vocab_size"]
)
gin_hyper = gin.external_configurable(
    optimizer.hyper, "optimizer", module="mscale", denylist=["peak_lr", "warmup", "total", "decay"]
)
gin_axis_rules = gin.external_configurable(
    partitioning.logical_axis_rules, "logical_axis_rules", module="mscale"
)
gin_initialize_hosts = gin.external_configurable(distributed.initialize, "hosts", module="mscale")
gin_mesh = gin.external_configurable(partitioning.make_mesh, "mesh", module="mscale", denylist=["devices"])


@dataclass(frozen=True)
class Run:
    """A run with everything resolved and checked; nothing has been trained or written yet."""

    settings: Settings
    name: str
    workdir: Path
    store: Store
    schedule: schedule.Schedule
    model: decoder.ModelConfig
    hyper: optimizer.Hyper
    mesh: jax.sharding.Mesh | None
    rules: partitioning.FrozenAxisRules
    eval_steps: frozenset[int]
    eval_languages: tuple[str, ...]

    @property
    def batch_size(self) -> int:
        return self.schedule.batch_size

    @property
    def step_tokens(self) -> int:
        return self.batch_size * self.settings.sequence_length


def prepare_run(settings: Settings) -> Run:
    """Opens the store and resolves model, mixture, schedule and mesh.

    Raises:
      MscaleError: anything that cannot work, before the first step.
    """
    s = settings
    store = open_store(s.store)
    config = gin_model_config(scales.get(s.scale), store.vocabulary["size"])
    if s.batch_size == BATCH_SIZE_BY_PARAMETERS:
        batch = scales.atlas_batch_size(scales.parameter_count(config.shape, config.vocab_size))
        s = dataclasses.replace(s, batch_size=batch)
    for field in _COUNT_FIELDS:
        value = getattr(s, field)
        if not isinstance(value, int) or isinstance(value, bool) or value < 1:
            raise MscaleError(f"{field.upper()} is {value!r}: expected a whole number of at least 1")
    if s.branch_from and s.init_from:
        raise MscaleError("BRANCH_FROM and INIT_FROM are both given: expected one of them")
    if s.branch_from and not s.decay_steps:
        raise MscaleError("BRANCH_FROM is given but DECAY_STEPS is 0: a branch is the decay of a trunk")
    batch_size = int(s.batch_size)
    if batch_size % s.accumulate:
        raise MscaleError(f"ACCUMULATE is {s.accumulate}: expected a divisor of BATCH_SIZE, {batch_size}")
    mixture = resolve(s.mixture, store, s.sequence_length, unique_tokens=s.unique_tokens)
    mesh, rules = gin_mesh(), gin_axis_rules()
    if mesh.size > 1:
        partitioning.batch_sharding(mesh, batch_size // s.accumulate, dict(rules))
    for language in s.eval_languages or ():
        if language not in store.languages:
            hint = nearest(language, store.languages)
            raise MscaleError(f"EVAL_LANGUAGES: {s.store} has no language {language!r}{hint}")
    workdir = local_folder(s.workdir, "WORKDIR")
    return Run(
        settings=s,
        name=s.run or workdir.name,
        workdir=workdir,
        store=store,
        schedule=schedule.single(mixture, batch_size, s.seed),
        model=config,
        hyper=gin_hyper(s.learning_rate, s.warmup_steps, s.steps, s.decay_steps),
        mesh=mesh if mesh.size > 1 else None,
        rules=rules,
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


def run_identity(run: Run) -> dict[str, Any]:
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
_FIELDS_SHARED_WITH_TRUNK = ("scale", "model", "optimizer", "mixture", "windows", "data", "vocabulary") + (
    "batch_size",
    "sequence_length",
    "seed",
)


def model_shape(config: decoder.ModelConfig) -> dict[str, Any]:
    """Returns what decides whether parameters fit a model."""
    return {
        "vocab_size": config.vocab_size,
        **dataclasses.asdict(config.shape),
        "serial_block": config.serial_block,
    }


def check_checkpoint_fits(run: Run, path: Path, meta: Mapping[str, Any]) -> None:
    """Raises an error naming both sides if a checkpoint has another vocabulary or model than the run."""
    here = {
        "vocabulary": run.store.vocabulary["fingerprint"],
        "model": model_shape(run.model),
    }
    for field, value in here.items():
        if meta.get(field) != value:
            raise MscaleError(
                f"{path}: its {field} is {meta.get(field)}, this run's ({run.settings.store}, scale "
                f"{run.settings.scale}) is {value}; continue it with the same {field}"
            )


def check_branch_fits_trunk(run: Run, trunk: Path) -> None:
    """Raises an error if a branch would train on another schedule, or another way, than its trunk."""
    theirs = read_json(trunk / "run.json", what="run")
    if theirs["decay_steps"]:
        raise MscaleError(f"BRANCH_FROM: {trunk} decays itself; a trunk has DECAY_STEPS = 0")
    ours = json.loads(json.dumps(run_identity(run)))
    for field in _FIELDS_SHARED_WITH_TRUNK:
        if theirs[field] != ours[field]:
            raise MscaleError(
                f"BRANCH_FROM: {run.name} has {field} {ours[field]}, its trunk {trunk} has {theirs[field]}; "
                "a branch goes on with its trunk's data and model, so give both the same"
            )


def check_same_run(workdir: Path, there: Mapping[str, Any], ours: Mapping[str, Any]) -> None:
    """Raises an error naming the field if the folder holds a run of another configuration."""
    for field, value in ours.items():
        if there.get(field) != value:
            raise MscaleError(
                f"{workdir}: holds a run with {field} {there.get(field)}, this one has {value}; choose "
                "another WORKDIR, or delete that one"
            )
