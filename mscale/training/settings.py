"""Settings of a run from gin, their resolution into a ``Run``, and the checks that a run fits its folder and trunk.

Invalid settings are reported here, before the first step.
"""

import dataclasses
import json
import math
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import gin
import jax
import optax
from msgspec import Meta

from mscale import launch, parameters, run_folder, scales
from mscale.data import schedule
from mscale.data.mixture import SamplingOptions, gin_sampling_options, resolve
from mscale.data.store import Store, open_store
from mscale.data.verification import verify_store
from mscale.errors import MscaleError, nearest
from mscale.files import read_json, read_json_as
from mscale.identity import IRRELEVANT_SETTINGS, LENGTH_SETTINGS
from mscale.models import decoder, partitioning
from mscale.remote import local_folder
from mscale.training import checkpoints, distributed
from mscale.training import optimizer as optimizers

BATCH_SIZE_BY_PARAMETERS = "by size"
_LARGEST_STEP = 2**31 - 1  # steps are counted in int32 on the device
_Steps = Annotated[int, Meta(ge=0, le=_LARGEST_STEP, description="steps")]
_Step = Annotated[int, Meta(ge=1, le=_LARGEST_STEP, description="steps")]
_Count = Annotated[int, Meta(ge=1)]


@gin.configurable("train", module="mscale")
@dataclass(frozen=True)
class Settings:
    """Settings of one run, with their types and ranges; counts are steps, tokens or sequences.

    Those without a default have it in gin/train/pretrain.gin, which documents them.
    """

    scale: int | str
    mixture: str
    store: str
    workdir: str
    steps: _Step
    batch_size: _Count | Literal["by size"]
    accumulate: _Count
    sequence_length: _Count
    seed: Annotated[int, Meta(ge=0, le=2**32 - 1)]
    unique_tokens: Mapping[str, _Count] | None
    learning_rate: Annotated[float, Meta(ge=0, le=3.4e38)]
    warmup_steps: _Steps
    decay_steps: _Steps
    branch_from: str | None
    init_from: str | None
    eval_steps: Literal["log"] | Sequence[_Step]
    eval_languages: Sequence[str] | None
    eval_tokens: _Count
    checkpoint_steps: Sequence[_Step]
    checkpoint_every: _Step
    log_every: _Step
    run: str | None
    study: str
    tag: str
    group: str | None
    compile_cache: str | None
    progress: bool
    tensorboard: bool
    wandb: str | None
    peak_flops: Annotated[float, Meta(gt=0)] | None
    eval_per_decade: _Count = 8
    eval_first: _Step = 10
    checkpoints_kept: _Count = 2
    steps_per_dispatch: _Steps = 0
    optimizer: Callable[..., optax.GradientTransformation] = optimizers.adamw
    lengthen: bool = False
    sampling: SamplingOptions = dataclasses.field(default_factory=gin_sampling_options)


# Functions whose arguments can be set from gin, under the names that gin files use.
gin_model_config = gin.external_configurable(
    decoder.ModelConfig, "model", module="mscale", denylist=["shape", "vocab_size"]
)
gin_hyper = gin.external_configurable(
    optimizers.hyper, "optimizer", module="mscale", denylist=["peak_lr", "warmup", "total", "decay"]
)
gin_axis_rules = gin.external_configurable(
    partitioning.logical_axis_rules, "logical_axis_rules", module="mscale"
)
gin_initialize_hosts = gin.external_configurable(distributed.initialize, "hosts", module="mscale")
gin_mesh = gin.external_configurable(partitioning.make_mesh, "mesh", module="mscale", denylist=["devices"])
_CONFIGURABLES: Mapping[str, Callable] = {
    "train": Settings,
    "model": decoder.ModelConfig,
    "optimizer": optimizers.hyper,
    "mixture": SamplingOptions,
    "logical_axis_rules": partitioning.logical_axis_rules,
    "hosts": distributed.initialize,
    "mesh": partitioning.make_mesh,
}


def read_settings() -> Settings:
    """The settings that gin gives, inside ``launch.configured``, after a check of all types and ranges.

    Raises:
      MscaleError: values are of another type or out of range, a line for each; or a setting has no value.
    """
    parameters.check_types(_CONFIGURABLES)
    given = {one.name.rpartition("/")[2] for one in launch.bound_parameters()}
    missing = [
        f"train.{field.name}"
        for field in dataclasses.fields(Settings)
        if field.default is field.default_factory is dataclasses.MISSING
        and f"train.{field.name}" not in given
    ]
    if missing:
        raise MscaleError(
            f"no value for {', '.join(missing)}; include 'gin/train/pretrain.gin', which has the defaults, at the top "
            "of your gin file"
        )
    try:
        return Settings()  # type: ignore[call-arg]  # from gin
    except TypeError as error:  # a configurable that a value calls lacks arguments
        raise MscaleError(launch.plain_message(error).splitlines()[0]) from error


@dataclass(frozen=True)
class Run:
    """A run with its settings resolved and checked; nothing has been trained or written yet.

    Attributes:
      settings: as given, with ``batch_size`` as a number.
      name: of the run, as in its observations.
      workdir: absolute path of its folder.
      store: the open token store.
      schedule: which windows are in which batch.
      model: the model's configuration.
      hyper: hyperparameters of optimizer and schedule.
      chain: the optimizer.
      mesh: of the devices, or None for a single one.
      rules: from logical axes to mesh axes.
      eval_steps: steps after which the run is evaluated.
      eval_languages: codes of the languages to evaluate.
    """

    settings: Settings
    name: str
    workdir: Path
    store: Store
    schedule: schedule.Schedule
    model: decoder.ModelConfig
    hyper: optimizers.Hyper
    chain: optimizers.Chain
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
      MscaleError: a setting is invalid or does not fit the others, the store or the devices.
    """
    s = settings
    store = open_store(s.store)
    config = gin_model_config(scales.get(s.scale), store.vocabulary["size"])
    if s.batch_size == BATCH_SIZE_BY_PARAMETERS:
        batch = scales.atlas_batch_size(scales.parameter_count(config.shape, config.vocab_size))
        s = dataclasses.replace(s, batch_size=batch)
    if s.branch_from and s.init_from:
        raise MscaleError("BRANCH_FROM and INIT_FROM are both given: expected one of them")
    if s.branch_from and not s.decay_steps:
        raise MscaleError("BRANCH_FROM is given but DECAY_STEPS is 0: a branch is the decay of a trunk")
    batch_size = int(s.batch_size)
    if batch_size % s.accumulate:
        raise MscaleError(f"ACCUMULATE is {s.accumulate}: expected a divisor of BATCH_SIZE, {batch_size}")
    workdir = local_folder(s.workdir, "WORKDIR")
    begun = _begun_with(s, workdir)
    in_mixture = store.languages
    if begun.get("mixture", {}).get("name") == s.mixture:  # a keyword means the languages of that time
        in_mixture = tuple(one for one in in_mixture if one in begun["mixture"]["languages"])
    sizes = dataclasses.replace(store, languages=in_mixture)
    mixture = resolve(s.mixture, sizes, s.sequence_length, s.unique_tokens, s.sampling)
    eval_languages = tuple(s.eval_languages or begun.get("eval_languages") or store.languages)
    unused = sorted({*store.languages} - {*mixture.languages, *eval_languages})
    if begun and unused and not s.eval_languages and jax.process_index() == 0:
        shown = ", ".join(unused[:10]) + (" …" if len(unused) > 10 else "")
        print(
            f"{s.run or workdir.name}: goes on with the {len({*mixture.languages, *eval_languages})} languages that it "
            f"began with; {s.store} also has {len(unused)} that it does not use: {shown}",
            file=sys.stderr,
        )
    mesh, rules = gin_mesh(), gin_axis_rules()
    if mesh.size > 1:
        partitioning.batch_sharding(mesh, batch_size // s.accumulate, dict(rules))
    for language in eval_languages:
        if language not in store.languages:
            hint = nearest(language, store.languages) if s.eval_languages else ", with which this run began"
            raise MscaleError(f"EVAL_LANGUAGES: {s.store} has no language {language!r}{hint}")
    verify_store(store, mixture.languages, eval_languages)
    return Run(
        settings=s,
        name=s.run or workdir.name,
        workdir=workdir,
        store=store,
        schedule=schedule.single(mixture, batch_size, s.seed),
        model=config,
        hyper=gin_hyper(s.learning_rate, s.warmup_steps, s.steps, s.decay_steps),
        chain=_chain(s.optimizer),
        mesh=mesh if mesh.size > 1 else None,
        rules=rules,
        eval_steps=evaluation_steps(s),
        eval_languages=eval_languages,
    )


def _begun_with(settings: Settings, workdir: Path) -> Mapping[str, Any]:
    """Content of the run.json of a run that is resumed, or of the trunk of a new branch; else empty."""
    folders = [workdir]
    if settings.branch_from:
        folders.append(local_folder(checkpoints.parse_reference(settings.branch_from)[0], "BRANCH_FROM"))
    files = [path for folder in folders if (path := folder / run_folder.RUN_FILE).exists()]
    return read_json_as(files[0], dict, what="run") if files else {}


def _chain(build: Callable[..., optax.GradientTransformation]) -> optimizers.Chain:
    """The optimizer of a run with the arguments that gin gives it, so that runs with others compile others.

    Raises:
      MscaleError: an argument is a list or dict, or ``build`` is not configurable by gin.
    """
    if build is optimizers.adamw:
        return optimizers.ADAMW
    try:
        chain = optimizers.Chain(build, tuple(sorted(gin.get_bindings(build).items())))
        hash(chain)
    except (TypeError, ValueError) as error:
        raise MscaleError(
            f"train.optimizer is {build!r}: expected a function that @gin.configurable decorates, with numbers, texts "
            f"and tuples as arguments ({error})"
        ) from error
    return chain


def evaluation_steps(settings: Settings) -> frozenset[int]:
    """Returns the steps after which a run is evaluated: EVAL_STEPS, CHECKPOINT_STEPS and the last step.

    "log" means ``eval_per_decade`` steps per factor of ten, evenly spaced in log, from ``eval_first`` on.

    Raises:
      MscaleError: a step is outside the run.
    """
    s = settings
    requested: set[int] = set()
    if isinstance(s.eval_steps, str):
        count = math.log10(max(s.steps / s.eval_first, 1)) * s.eval_per_decade
        requested = {
            round(s.eval_first * 10 ** (i / s.eval_per_decade)) for i in range(math.floor(count) + 1)
        }
        requested = {step for step in requested if step <= s.steps}
    else:
        requested = set(s.eval_steps)
    for name, steps in (("EVAL_STEPS", requested), ("CHECKPOINT_STEPS", set(s.checkpoint_steps))):
        outside = [step for step in sorted(steps) if step > s.steps]
        if outside:
            raise MscaleError(f"{name} holds {outside[0]}: expected steps from 1 to STEPS, {s.steps}")
    return frozenset(requested | set(s.checkpoint_steps) | {s.steps})


def run_identity(run: Run) -> dict[str, Any]:
    """Returns the values that determine the run's result, as written to run.json.

    A run continues in a folder only if run.json there holds the same values (``check_same_run``).
    """
    s, mixture = run.settings, run.schedule.phases[0][1]
    chain = {}
    if run.chain != optimizers.ADAMW:
        build = run.chain.build
        arguments = {name: repr(value) for name, value in run.chain.arguments}
        chain = {"chain": {"name": f"{build.__module__}.{build.__qualname__}", "arguments": arguments}}
    return {
        **chain,
        "scale": str(s.scale),
        "model": dataclasses.asdict(run.model),
        "optimizer": {k: float(v) for k, v in run.hyper._asdict().items() if k not in ("total", "decay")},
        "mixture": {"name": mixture.name, "languages": mixture.languages, "rates": mixture.rates},
        "windows": dict(run.schedule.windows),
        "data": run.store.data_hash({*mixture.languages, *run.eval_languages}),
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


# A branch continues its trunk's state and data order, so it must agree with it in these.
_FIELDS_SHARED_WITH_TRUNK = ("scale", "model", "optimizer", "mixture", "windows", "data", "vocabulary") + (
    "chain",
    "batch_size",
    "sequence_length",
    "seed",
)


_FREE_IN_MODEL = ("dropout", "z_loss", "compute_dtype")  # a run that continues a checkpoint may have others


def model_description(config: decoder.ModelConfig) -> dict[str, Any]:
    """The model as a checkpoint records it: its parameters, what is computed from them, and how it was trained."""
    trained_with = ("serial_block", "lr_rule", "activation", *_FREE_IN_MODEL)
    return {
        "vocab_size": config.vocab_size,
        **dataclasses.asdict(config.shape),
        **{name: getattr(config, name) for name in trained_with},
    }


def check_checkpoint_fits(run: Run, path: Path, meta: Mapping[str, Any]) -> None:
    """Checks that a run can restore a checkpoint.

    Args:
      run: the run.
      path: of the checkpoint, for the error.
      meta: content of its meta.json; those of earlier versions have no lr_rule and activation.

    Raises:
      MscaleError: the checkpoint has another vocabulary or model; the message gives both values.
    """
    s, saved = run.settings, meta.get("model") or {}
    expected = {"vocabulary": (meta.get("vocabulary"), run.store.vocabulary["fingerprint"])} | {
        name: (saved[name], value)
        for name, value in model_description(run.model).items()
        if name in saved and name not in _FREE_IN_MODEL
    }
    for field, (found, value) in expected.items():
        if found != value:
            raise MscaleError(
                f"{path}: its {field} is {found}, this run's ({s.store}, scale {s.scale}) is {value}; continue it with "
                f"the same {field}"
            )


def check_branch_fits_trunk(run: Run, trunk: Path) -> None:
    """Checks that a branch agrees with its trunk in model, optimizer and data.

    Args:
      run: the branch.
      trunk: folder of the trunk.

    Raises:
      MscaleError: the trunk has a decay of its own, or a value differs; the message gives both values.
    """
    trunk_identity = read_json(trunk / run_folder.RUN_FILE, what="run")
    if trunk_identity["decay_steps"]:
        raise MscaleError(f"BRANCH_FROM: {trunk} decays itself; a trunk has DECAY_STEPS = 0")
    branch_identity = json.loads(json.dumps(run_identity(run)))
    for field in _FIELDS_SHARED_WITH_TRUNK:
        if trunk_identity.get(field) != branch_identity.get(field):
            raise MscaleError(
                f"BRANCH_FROM: {run.name} has {field} {branch_identity.get(field)}, its trunk {trunk} has "
                f"{trunk_identity.get(field)}; "
                "a branch goes on with its trunk's data and model, so give both the same"
            )


def check_same_run(
    workdir: Path, recorded: Mapping[str, Any], identity: Mapping[str, Any], lengthen: bool = False
) -> None:
    """Checks that a folder's run is the one to be trained; more branch points are no difference.

    Args:
      workdir: the folder, for the error.
      recorded: content of its run.json.
      identity: of the run to be trained, as from ``run_identity``.
      lengthen: a trunk may have more steps and other evaluations.

    Raises:
      MscaleError: a value differs; the message names the field.
    """
    trunk = (
        identity["decay_steps"] == 0
        and optimizers.SCHEDULES[int(identity["optimizer"]["schedule"])] != "cosine"
    )
    ignored = {*IRRELEVANT_SETTINGS, *(LENGTH_SETTINGS if trunk and lengthen else ())}
    if trunk and lengthen and identity["steps"] < recorded.get("steps", 0):
        raise MscaleError(
            f"{workdir}: holds a trunk of {recorded['steps']} steps, which can be made longer and not shorter; give "
            "STEPS of at least that, or choose another WORKDIR"
        )
    for field, value in identity.items():
        if field not in ignored and recorded.get(field) != value:
            further = (
                ", make its trunk longer with --gin.train.lengthen=True" if trunk and field == "steps" else ""
            )
            raise MscaleError(
                f"{workdir}: holds a run with {field} {recorded.get(field)}, this one has {value}; choose "
                f"another WORKDIR{further}, or delete that one"
            )
