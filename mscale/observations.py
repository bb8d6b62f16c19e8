"""Observations: the table that runs write and analysis reads, one row per evaluation of one language at one step.

A run appends rows to JSON-lines files (``observations.jsonl``, ``exposure.jsonl``), which stay readable if the process
is killed while it writes; a study collects them into Parquet or CSV. This module imports neither jax nor pandas.
"""

import json
import math
import os
from collections.abc import Callable, Iterable, Mapping
from dataclasses import MISSING, dataclass, fields
from pathlib import Path
from typing import IO, Any, get_args

from mscale.errors import MscaleError, nearest
from mscale.files import atomic_write, writing
from mscale.scales import training_flops

Row = dict[str, Any]


@dataclass(frozen=True, kw_only=True)
class Observation:
    """The loss of one language at one step of a run: the contract between runs and analysis.

    The fields are the columns of the table, in order. A field of type ``… | None`` may be empty. A field with a
    default may be missing in a table that is imported. ``KEY`` identifies an observation. Numbers are finite and not
    negative, except ``unigram_normalized_loss`` and ``seed``.

    Attributes:
      run: id of the run.
      study, tag: how the run is filed.
      group: the root trunk's run. Runs of a group share its noise, so groups are resampled.
      scale: name of the model's size.
      params: N, parameters with the embedding.
      params_nonembedding: parameters of the blocks alone.
      mixture: its name, as in ``mscale.data.mixture``.
      languages: codes of the mixture's languages, joined by "+".
      vocabulary: fingerprint.
      init: "scratch", or the run whose checkpoint this one continues.
      init_tokens: tokens that the parameters were trained on before this run.
      seed: of parameters and data order.
      step: optimizer steps done.
      tokens: D, tokens of all languages trained on, from the schedule.
      phase: of the learning rate, one of ``PHASES``.
      lr: learning rate of the step.
      language: evaluated.
      split: evaluated.
      target_tokens: tokens of ``language`` trained on, from the schedule.
      target_unique: U, its unique tokens available to the run, whether trained on or not.
      loss: nats per token.
      loss_se: its standard error over windows; one window has none.
      bits_per_byte: bits per UTF-8 byte of the evaluated text.
      unigram_normalized_loss: the loss minus that of the unigram model, nats per token.
      eval_tokens, eval_bytes: evaluated tokens, and UTF-8 bytes of their text.
      flops: training compute, 6·N·D.
    """

    run: str
    study: str = ""
    tag: str = ""
    group: str
    scale: str
    params: int
    params_nonembedding: int
    mixture: str
    languages: str
    vocabulary: str = "unknown"
    init: str = "scratch"
    init_tokens: int = 0
    seed: int = 0
    step: int
    tokens: int
    phase: str
    lr: float | None = None
    language: str
    split: str = "valid"
    target_tokens: int
    target_unique: int
    loss: float
    loss_se: float | None = None
    bits_per_byte: float | None = None
    unigram_normalized_loss: float | None = None
    eval_tokens: int = 0
    eval_bytes: int | None = None
    flops: float


@dataclass(frozen=True, kw_only=True)
class Exposure:
    """Tokens of one training language up to a step of a run; the fields are the columns of the exposure table.

    Attributes:
      run, step, language: as in ``Observation``.
      tokens: of ``language`` trained on.
      unique_tokens: of these, those of the first epoch.
    """

    run: str
    step: int
    language: str
    tokens: int
    unique_tokens: int


def _columns(table: type[Observation] | type[Exposure]) -> dict[str, type]:
    """The type of each column, without None."""
    return {column.name: (get_args(column.type) or (column.type,))[0] for column in fields(table)}


COLUMNS = _columns(Observation)
"""The columns of an observation in order, with their types."""

KEY = ("run", "step", "language", "split")
"""Columns that identify an observation."""

EXPOSURE_COLUMNS = _columns(Exposure)

EXPOSURE_KEY = ("run", "step", "language")

PHASES = ("warmup", "stable", "decay", "end")
"""Phases of the learning-rate schedule; only at ``end`` has the learning rate decayed completely."""

NULLABLE = frozenset(column.name for column in fields(Observation) if get_args(column.type))
"""Columns that may be None."""

IMPORT_DEFAULTS: Row = {
    column.name: column.default for column in fields(Observation) if column.default not in (MISSING, None)
}
"""Values of columns that an imported table lacks; an importer reports which ones it used."""

DERIVED: dict[str, Callable[[Any], Any]] = {
    "group": lambda row: row["run"],
    "params_nonembedding": lambda row: row["params"],
    "mixture": lambda row: row["languages"],
    "step": lambda row: row["tokens"],
    "target_unique": lambda row: row["target_tokens"],  # never repeated
    "flops": lambda row: 1.0 * training_flops(row["params"], row["tokens"]),
}
"""Columns that follow from others where an imported table lacks them; ``row`` is a row or a whole pandas table."""


def scale_names(sizes: Iterable[int]) -> dict[int, str]:
    """Returns names for scales without one, by parameter count: ``1.01B``, or the count if two would be equal."""

    def short(size: int) -> str:
        for limit, suffix in ((1e9, "B"), (1e6, "M"), (1e3, "k")):
            if size >= limit:
                return f"{size / limit:.3g}{suffix}"
        return str(size)

    distinct = sorted(set(sizes))
    names = [short(size) for size in distinct]
    return {
        size: name if names.count(name) == 1 else str(size)
        for size, name in zip(distinct, names, strict=True)
    }


def columns_of(row: Mapping[str, Any]) -> dict[str, type]:
    """Returns the columns of the table that ``row`` belongs to; only exposure has ``unique_tokens``."""
    return EXPOSURE_COLUMNS if "unique_tokens" in row else COLUMNS


def key_of(row: Mapping[str, Any]) -> tuple:
    """Returns what identifies ``row``: (run, step, language, split), or (run, step, language) of exposure."""
    return tuple(row.get(name) for name in (EXPOSURE_KEY if "unique_tokens" in row else KEY))


def validate(row: Mapping[str, Any], *, where: str = "observation") -> None:
    """Checks the columns and values of one row of either table.

    Args:
      row: column name to value.
      where: name of the row in errors, such as ``"observations.csv:17"``.

    Raises:
      MscaleError: a column is missing, unknown, of the wrong type, negative or not finite.
    """
    columns = columns_of(row)
    for name in row:
        if name not in columns:
            raise MscaleError(f"{where}: unknown column {name!r}{nearest(name, columns)}")
    for name, kind in columns.items():
        if name not in row:
            raise MscaleError(f"{where}: column {name!r} is missing; expected {', '.join(columns)}")
        value = row[name]
        if value is None and name in NULLABLE:
            continue
        _check(where, name, kind, value)
    if columns is COLUMNS and row["phase"] not in PHASES:
        raise MscaleError(f"{where}: phase is {row['phase']!r}; expected one of {', '.join(PHASES)}")


def _check(where: str, name: str, kind: type, value: Any) -> None:
    allowed: Any = (int, float) if kind is float else kind
    if not isinstance(value, allowed) or isinstance(value, bool):
        expected = {int: "an exact integer", float: "a number", str: "text"}[kind]
        raise MscaleError(f"{where}: {name} is {value!r} ({type(value).__name__}); expected {expected}")
    if kind is str:
        return
    if not math.isfinite(value):
        raise MscaleError(f"{where}: {name} is {value}; expected a finite number")
    # The unigram-normalised loss is a difference, negative once a model is better than the unigram model.
    if value < 0 and name not in ("unigram_normalized_loss", "seed"):
        raise MscaleError(f"{where}: {name} is {value}; expected 0 or more")


def append_rows(path: str | os.PathLike, rows: Iterable[Mapping[str, Any]], *, check: bool = True) -> None:
    """Appends rows to a JSON-lines file and syncs it; after a crash only the last line can be incomplete.

    An incomplete last line of an earlier crash is removed first.

    Args:
      path: the file.
      rows: of either table, or other rows with ``check`` False.
      check: whether to ``validate`` the rows.

    Raises:
      MscaleError: a row is invalid (then nothing is written), or the file cannot be written.
    """
    rows = list(rows)
    if check:
        for row in rows:
            validate(row, where=f"{path}, row to append")
    if not rows:
        return
    data = "".join(json.dumps(dict(row), ensure_ascii=False, allow_nan=False) + "\n" for row in rows)
    with writing(path):
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        with open(path, "ab+") as file:
            _remove_incomplete_line(file)
            file.write(data.encode("utf-8"))
            file.flush()
            os.fsync(file.fileno())


def _remove_incomplete_line(file: IO[bytes]) -> None:
    size = file.seek(0, os.SEEK_END)
    if not size:
        return
    file.seek(size - 1)
    if file.read(1) == b"\n":
        return
    file.seek(0)
    file.truncate(file.read().rfind(b"\n") + 1)


def read_jsonl(path: str | os.PathLike) -> list[Row]:
    """Reads the complete lines of a JSON-lines file; a missing file has none.

    Raises:
      MscaleError: a line before the last is not a JSON object.
    """
    try:
        data = Path(path).read_bytes()
    except FileNotFoundError:
        return []
    except OSError as error:
        raise MscaleError(f"cannot read {path}: {error.strerror or error}") from error
    rows = []
    for number, line in enumerate(data[: data.rfind(b"\n") + 1].splitlines(), start=1):
        try:
            row = json.loads(line)
            if not isinstance(row, dict):
                raise ValueError(f"a JSON object was expected, found {type(row).__name__}")
        except ValueError as error:
            raise MscaleError(f"{path}:{number}: damaged line ({error}); delete it or the file") from error
        rows.append(row)
    return rows


def read_rows(path: str | os.PathLike) -> list[Row]:
    """Reads rows of either table, the last one of each key, in the order in which keys first occur.

    Raises:
      MscaleError: a line is damaged or invalid.
    """
    rows = {}
    for number, row in enumerate(read_jsonl(path), start=1):
        validate(row, where=f"{path}:{number}")
        rows[key_of(row)] = row
    return list(rows.values())


def truncate_rows(path: str | os.PathLike, step: int) -> None:
    """Removes the rows after ``step``, so that a run that resumes at ``step`` writes each of them once.

    Raises:
      MscaleError: a line is damaged or the file cannot be written.
    """
    if not Path(path).exists():
        return
    rows = read_jsonl(path)
    kept = [row for row in rows if row["step"] <= step]
    lines = "".join(json.dumps(row, ensure_ascii=False, allow_nan=False) + "\n" for row in kept)
    if lines.encode("utf-8") != Path(path).read_bytes():
        atomic_write(path, lines)
