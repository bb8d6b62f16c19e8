"""One run as data: what determines its result, what it starts from, what it costs.

A run's id is a readable prefix and a hash of what determines the result (``mscale.identity``): the parameters from gin,
the parent's id and step, the mixture's rates, and the text of the languages that it trains and evaluates on. Folders,
study names, tags, comments in gin files, and how far a trunk goes do not enter it. So a run that two studies share has
the same id in both, and a study grows without training its trunks anew.
"""

import hashlib
import json
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mscale import run_folder
from mscale.errors import MscaleError
from mscale.files import read_json_as
from mscale.identity import determining_parameters, resolved_parameters
from mscale.scales import training_flops

RUN_KINDS = ("single", "trunk", "branch")
# Bindings that say where a run lies or how it is filed; `argv` adds them, and they do not enter the hash.
PLACEMENT = ("STORE", "WORKDIR", "RUN", "STUDY", "TAG", "GROUP", "BRANCH_FROM", "INIT_FROM")
_RUN_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")


@dataclass(frozen=True)
class RunSpec:
    """What one call of ``mscale.train.main`` does.

    Attributes:
      id: readable prefix and hash; also the name of the run's folder.
      study, tag, group: how it is filed; ``group`` is the id of the root trunk, whose noise the run shares.
      kind: ``trunk`` (its learning rate never decays), ``branch`` (the decay to one budget), ``single`` (a whole
        warmup-stable-decay run).
      gin_files: gin files, as given to ``--gin_file``.
      bindings: gin macro or parameter to Python value (as ``canonical_value``), without those of ``PLACEMENT``.
      store: folder of the token store.
      parent: id of the run this one starts from, or None. A branch continues its trunk's parameters,
        optimiser and schedule; any other run with a parent starts from its parameters alone.
      parent_step: step of the parent's checkpoint.
      steps, start_step: schedule step at the end and at the start.
      params: parameters N, embeddings included.
      tokens: tokens this run itself computes, ``(steps - start_step) * batch * sequence``, exact.
    """

    id: str
    study: str
    tag: str
    group: str
    kind: str
    gin_files: tuple[str, ...]
    bindings: Mapping[str, Any] = field(hash=False)
    store: str
    parent: str | None
    parent_step: int | None
    steps: int
    start_step: int
    params: int
    tokens: int

    def __post_init__(self) -> None:
        """Raises MscaleError: a binding that JSON and gin cannot hold, or an id that is no name of a folder."""
        object.__setattr__(self, "bindings", canonical_value(self.bindings))
        check_run_id(self.id)

    @property
    def flops(self) -> int:
        """Training compute 6·N·D of the tokens this run itself computes, exact."""
        return training_flops(self.params, self.tokens)

    @property
    def shape(self) -> tuple:
        """What the compiled train step depends on: a process compiles once for all runs of one shape."""
        names = ("SCALE", "BATCH_SIZE", "SEQUENCE_LENGTH")
        return (*(str(self.bindings.get(name)) for name in names), self.params)


def canonical_value(value: Any) -> Any:
    """Returns ``value`` with lists as tuples, mapping keys sorted and NumPy scalars as Python's.

    Raises:
      MscaleError: a value that JSON and gin cannot hold: anything but finite numbers, strings, bools, None, and
        sequences or mappings of these.
    """
    if isinstance(value, (list, tuple)):
        return tuple(canonical_value(item) for item in value)
    if isinstance(value, Mapping):
        return {str(key): canonical_value(value[key]) for key in sorted(value, key=str)}
    if isinstance(value, float) and not math.isfinite(value):
        raise MscaleError(f"a run's binding is {value}: only finite numbers can be written to a gin file")
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    if hasattr(value, "item"):  # a NumPy scalar
        return canonical_value(value.item())
    raise MscaleError(
        f"a run's binding holds {value!r} ({type(value).__name__}): use numbers, strings, tuples and dicts"
    )


@dataclass(frozen=True)
class RunLabel:
    """How a run is filed; none of it enters the hash of the id.

    Attributes:
      study: name of the study; tag: which question of it the run serves.
      prefix: readable beginning of the id.
    """

    study: str
    tag: str
    prefix: str


@dataclass(frozen=True)
class RunInputs:
    """The files that a run reads, and what identifies their content.

    Attributes:
      store: folder of the token store.
      data: hash of the vocabulary and of the text of the run's languages (``Store.data_hash``).
      gin_files: as given to ``--gin_file``.
      rates: sampling rate of each language, where the mixture's name alone does not determine them (UniMax).
    """

    store: str
    data: str
    gin_files: tuple[str, ...] = ()
    rates: Mapping[str, float] | None = None


@dataclass(frozen=True)
class StartingPoint:
    """The checkpoint that a run starts from: its run, and the step of that run."""

    run: RunSpec
    step: int


def make_run(
    label: RunLabel,
    kind: str,
    bindings: Mapping[str, Any],
    inputs: RunInputs,
    *,
    params: int,
    start: StartingPoint | None = None,
) -> RunSpec:
    """Returns the spec, with its id, group, steps and tokens computed.

    Args:
      kind: one of ``RUN_KINDS``.
      bindings: must hold STEPS, BATCH_SIZE and SEQUENCE_LENGTH, and none of ``PLACEMENT``.
      params: parameters N, embeddings included.
      start: the parent's checkpoint; None trains from initial parameters.

    Raises:
      MscaleError: an unknown kind, a binding of ``PLACEMENT``, or a value that JSON and gin cannot hold.
    """
    if kind not in RUN_KINDS:
        raise MscaleError(f"run kind is {kind!r}: expected one of {', '.join(RUN_KINDS)}")
    if clash := sorted(set(bindings) & set(PLACEMENT)):
        raise MscaleError(f"binding {clash[0]} is set by the executor, not by a study: leave it out")
    bindings = canonical_value(bindings)
    identity: dict[str, Any] = {
        "parameters": determining(inputs.gin_files, bindings, kind),
        "parent": [kind == "branch", start.run.id, start.step] if start else None,
        "data": inputs.data,
        "rates": inputs.rates,
    }
    digest = hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()
    run_id = f"{slug(label.prefix)}-{digest[:10]}"
    start_step = start.step if start and kind == "branch" else 0
    steps = int(bindings["STEPS"])
    return RunSpec(
        id=run_id,
        study=label.study,
        tag=label.tag,
        group=start.run.group if start else run_id,
        kind=kind,
        gin_files=tuple(inputs.gin_files),
        bindings=bindings,
        store=str(inputs.store),
        parent=start.run.id if start else None,
        parent_step=start.step if start else None,
        steps=steps,
        start_step=start_step,
        params=params,
        tokens=(steps - start_step) * int(bindings["BATCH_SIZE"]) * int(bindings["SEQUENCE_LENGTH"]),
    )


def determining(gin_files: Sequence[str], bindings: Mapping[str, Any], kind: str) -> dict[str, Any]:
    """The parameters of a run that determine its result."""
    return determining_parameters(resolved_parameters(gin_files, bindings), trunk=kind == "trunk")


def check_run_id(run_id: str) -> None:
    """Raises MscaleError where ``run_id`` is not the name of a folder, such as ``../../x``."""
    if not _RUN_ID.fullmatch(run_id):
        raise MscaleError(
            f"run id {run_id!r}: expected letters, digits, dots, dashes and underscores, a letter or digit first, "
            "as `mscale sweep status` lists them"
        )


def workdir(root: str | Path, run_id: str) -> Path:
    """Folder of a run below the study's folder.

    Raises:
      MscaleError: ``run_id`` is not the name of a folder.
    """
    check_run_id(run_id)
    return Path(root) / "runs" / run_id


def read_spec(folder: Path) -> RunSpec:
    """The spec in a run's folder.

    Raises:
      MscaleError: there is none, or it is of another version; the message names file and field.
    """
    return read_json_as(folder / run_folder.SPEC_FILE, RunSpec, what="run spec")


def argv(spec: RunSpec, root: str | Path) -> list[str]:
    """Arguments of ``mscale.train.main`` for this run, with the study kept in the folder ``root``."""
    placed: dict[str, Any] = {
        "STORE": spec.store,
        "WORKDIR": str(workdir(root, spec.id)),
        "RUN": spec.id,
        "STUDY": spec.study,
        "TAG": spec.tag,
        "GROUP": spec.group,
    }
    if spec.parent is not None:
        source = workdir(root, spec.parent)
        if spec.kind == "branch":
            placed["BRANCH_FROM"] = str(source)
        else:
            placed["INIT_FROM"] = f"{source}@{spec.parent_step}"
    if spec.kind == "trunk":
        placed["train.lengthen"] = True
    bindings = {**spec.bindings, **placed}
    return [f"--gin_file={name}" for name in spec.gin_files] + [
        f"--gin.{name}={gin_literal(value)}" for name, value in sorted(bindings.items())
    ]


def gin_literal(value: Any) -> str:
    """Writes a Python value in gin's syntax: strings in double quotes, other values as Python literals."""
    if isinstance(value, str):
        return json.dumps(value, ensure_ascii=False)
    if isinstance(value, tuple):
        return "(" + "".join(gin_literal(item) + ", " for item in value).rstrip(" ") + ")"
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{gin_literal(k)}: {gin_literal(v)}" for k, v in value.items()) + "}"
    return repr(value)


def slug(text: str, limit: int = 40) -> str:
    """Lower-case letters, digits, dots and dashes: valid in the name of a folder, a job and a pod."""
    return re.sub(r"[^a-z0-9.]+", "-", text.lower()).strip("-.")[:limit].rstrip("-.")
