"""One run as data: what determines its result, what it starts from, what it costs.

A run's id is a readable prefix and a hash of what determines the result: the gin bindings, the *content* of
the gin files, the parent's id and the token store's fingerprint. Folders, study names and tags do not enter
it, so a run that two studies share has one id in both, and moving a workdir changes nothing.
"""

import dataclasses
import hashlib
import json
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mscale import launch
from mscale.errors import MscaleError

KINDS = ("single", "trunk", "branch")
# Bindings that say where a run lives or how it is filed; argv() adds them, the hash leaves them out.
PLACEMENT = ("STORE", "WORKDIR", "RUN", "STUDY", "TAG", "GROUP", "BRANCH_FROM", "INIT_FROM")


@dataclass(frozen=True)
class RunSpec:
    """What one call of ``mscale.train.main`` does.

    Attributes:
      id: readable prefix and hash; also the name of the run's folder.
      study, tag, group: filing; ``group`` is the id of the root trunk, whose noise the run shares.
      kind: ``trunk`` (never decays), ``branch`` (the decay of one budget), ``single`` (a whole run).
      gin_files: gin files, as given to ``--gin_file``.
      bindings: gin macro or parameter to Python value, all that is not placement.
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

    @property
    def flops(self) -> int:
        """Training compute 6·N·D of the tokens this run itself computes, exact."""
        return 6 * self.params * self.tokens

    @property
    def cost(self) -> float:
        """``flops`` as a float, for ratios."""
        return float(self.flops)

    @property
    def shape(self) -> tuple:
        """What a compiled train step depends on: runs of one shape share an executor's process."""
        names = ("SCALE", "BATCH_SIZE", "SEQUENCE_LENGTH")
        return (*(str(self.bindings.get(name)) for name in names), self.params)


def frozen(value: Any) -> Any:
    """Returns ``value`` with lists as tuples and mapping keys sorted, refusing what JSON and gin cannot hold.

    Raises:
      MscaleError: a value that is not a number, string, bool, None, sequence or mapping of those.
    """
    if isinstance(value, (list, tuple)):
        return tuple(frozen(item) for item in value)
    if isinstance(value, Mapping):
        return {str(key): frozen(value[key]) for key in sorted(value, key=str)}
    if isinstance(value, float) and not math.isfinite(value):
        raise MscaleError(f"a run's binding is {value}: only finite numbers can be written to a gin file")
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    if hasattr(value, "item"):  # a numpy scalar
        return frozen(value.item())
    raise MscaleError(
        f"a run's binding holds {value!r} ({type(value).__name__}): use numbers, strings, tuples and dicts"
    )


def to_json(spec: RunSpec) -> dict[str, Any]:
    """Returns the spec as JSON-serialisable data; ``from_json`` inverts it."""
    return json.loads(json.dumps(dataclasses.asdict(spec)))


def from_json(data: Mapping[str, Any], *, where: str = "run spec") -> RunSpec:
    """Reads what ``to_json`` wrote.

    Raises:
      MscaleError: a field is missing or unknown; ``where`` names the file.
    """
    names = {item.name for item in dataclasses.fields(RunSpec)}
    if missing := names - set(data):
        raise MscaleError(f"{where}: field {sorted(missing)[0]!r} is missing; plan the study again")
    if unknown := set(data) - names:
        raise MscaleError(
            f"{where}: unknown field {sorted(unknown)[0]!r}; it was written by another version of mscale"
        )
    values = dict(data)
    values["gin_files"] = tuple(values["gin_files"])
    values["bindings"] = frozen(values["bindings"])
    return RunSpec(**values)


def make(
    *,
    study: str,
    tag: str,
    kind: str,
    prefix: str,
    gin_files: tuple[str, ...],
    bindings: Mapping[str, Any],
    store: str,
    fingerprint: str,
    params: int,
    parent: RunSpec | None = None,
    parent_step: int | None = None,
    rates: Mapping[str, float] | None = None,
    gin_digests: tuple[str, ...] | None = None,
) -> RunSpec:
    """Returns the spec with its id, group, steps and tokens worked out.

    Args:
      bindings: must hold STEPS, BATCH_SIZE and SEQUENCE_LENGTH, and none of ``PLACEMENT``.
      fingerprint: of the token store and its vocabulary (``store_fingerprint``).
      rates: of the mixture, where its name alone does not say them (UniMax).
      gin_digests: ``gin_digest`` of each gin file, where known already.
    """
    if kind not in KINDS:
        raise MscaleError(f"run kind is {kind!r}: expected one of {', '.join(KINDS)}")
    if clash := sorted(set(bindings) & set(PLACEMENT)):
        raise MscaleError(f"binding {clash[0]} is set by the executor, not by a study: leave it out")
    bindings = frozen(bindings)
    identity: dict[str, Any] = {
        "bindings": bindings,
        "gin": list(gin_digests or [gin_digest(name) for name in gin_files]),
        "parent": [kind == "branch", parent.id, parent_step] if parent else None,
        "store": fingerprint,
    }
    if rates is not None:
        identity["rates"] = rates
    digest = hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()
    run_id = f"{slug(prefix)}-{digest[:10]}"
    start = int(parent_step or 0) if kind == "branch" else 0
    steps = int(bindings["STEPS"])
    return RunSpec(
        id=run_id,
        study=study,
        tag=tag,
        group=parent.group if parent else run_id,
        kind=kind,
        gin_files=tuple(gin_files),
        bindings=bindings,
        store=str(store),
        parent=parent.id if parent else None,
        parent_step=parent_step,
        steps=steps,
        start_step=start,
        params=params,
        tokens=(steps - start) * int(bindings["BATCH_SIZE"]) * int(bindings["SEQUENCE_LENGTH"]),
    )


def workdir(root: str | Path, run_id: str) -> Path:
    """Folder of a run below the study's folder."""
    return Path(root) / "runs" / run_id


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
    bindings = {**spec.bindings, **placed}
    return [f"--gin_file={name}" for name in spec.gin_files] + [
        f"--gin.{name}={gin_literal(value)}" for name, value in sorted(bindings.items())
    ]


def gin_literal(value: Any) -> str:
    """Writes a Python value as gin reads it: strings in double quotes, the rest as Python literals."""
    if isinstance(value, str):
        return json.dumps(value, ensure_ascii=False)
    if isinstance(value, tuple):
        return "(" + "".join(gin_literal(item) + ", " for item in value).rstrip(" ") + ")"
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{gin_literal(k)}: {gin_literal(v)}" for k, v in value.items()) + "}"
    return repr(value)


def slug(text: str, limit: int = 40) -> str:
    """Lower-case letters, digits, dots and dashes: fit for a folder, a job and a pod name."""
    return re.sub(r"[^a-z0-9.]+", "-", text.lower()).strip("-.")[:limit].rstrip("-.")


# ---------------------------------------------------------------------------------------------------------
# Fingerprints


def gin_digest(name: str) -> str:
    """SHA-256 of a gin file's content and of all that it includes, wherever the files lie.

    Raises:
      MscaleError: the file is not found.
    """
    digest = hashlib.sha256()
    _digest_gin(name, digest, ())
    return digest.hexdigest()


def _digest_gin(name: str, digest, seen: tuple[Path, ...]) -> None:
    path = launch.find(name).resolve()
    if path in seen:
        raise MscaleError(f"{path}: this gin file includes itself; remove the circular include")
    text = path.read_text(encoding="utf-8")
    digest.update(str(len(text)).encode() + b"\0" + text.encode())
    for match in re.finditer(r"""^\s*include\s+["']([^"']+)["']""", text, re.MULTILINE):
        _digest_gin(match.group(1), digest, (*seen, path))


def store_fingerprint(store) -> str:
    """Hash of what a run reads from a token store: the vocabulary, and checksums of every language's files.

    Where the store lies, and when, from what or by how many processes it was packed, do not enter.
    """
    files = {language: store.entries[language]["files"] for language in sorted(store.languages)}
    identity = {"vocabulary": store.vocabulary["fingerprint"], "files": files}
    return hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()
