"""Observations: what runs write and analysis reads, one row an evaluation of one language at one step.

A run appends rows to JSON-lines files (``observations.jsonl``, ``exposure.jsonl``), which survive being
killed at any byte; a study collects them into Parquet or CSV. This module loads neither jax nor pandas.
"""

import csv
import json
import math
import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from mscale.errors import MscaleError, nearest
from mscale.files import atomic_write, atomic_writer, writing

Row = dict[str, Any]

COLUMNS: dict[str, type] = {
    "run": str,
    "study": str,
    "tag": str,
    "group": str,  # the root trunk's run: what shares its noise, hence the unit that is resampled
    "scale": str,
    "params": int,
    "params_nonembedding": int,
    "mixture": str,
    "languages": str,  # joined by "+"
    "vocabulary": str,  # fingerprint
    "init": str,  # "scratch", or the run whose checkpoint this one continues
    "init_tokens": int,
    "seed": int,
    "step": int,
    "tokens": int,  # of all languages, from the schedule
    "phase": str,
    "lr": float,
    "language": str,
    "split": str,
    "target_tokens": int,  # tokens of `language` seen in training, from the schedule
    "target_unique": int,  # U: its unique tokens available to the run, not those seen
    "loss": float,  # nats per token
    "loss_se": float,
    "bits_per_byte": float,
    "unigram_normalized_loss": float,
    "eval_tokens": int,
    "eval_bytes": int,
    "flops": float,
}
"""The contract's columns in its order, with the type that a row must hold."""

KEY = ("run", "step", "language", "split")

EXPOSURE_COLUMNS: dict[str, type] = {
    "run": str,
    "step": int,
    "language": str,
    "tokens": int,
    "unique_tokens": int,
}
"""The companion table: the exposure of a run to every training language."""

EXPOSURE_KEY = ("run", "step", "language")

PHASES = ("warmup", "stable", "decay", "end")
"""Where in its schedule a run was; only ``end`` rows are cooled."""

NULLABLE = frozenset({"lr", "loss_se", "bits_per_byte", "unigram_normalized_loss", "eval_bytes"})
"""Columns that may be None: one window has no standard error, an outside run may not know its bytes."""

IMPORT_DEFAULTS: Row = {
    "study": "",
    "tag": "",
    "vocabulary": "unknown",
    "init": "scratch",
    "init_tokens": 0,
    "seed": 0,
    "split": "valid",
    "eval_tokens": 0,
}
"""What is taken where a table from elsewhere does not say; who takes it tells so."""


def scale_names(sizes: Iterable[int]) -> dict[int, str]:
    """Names of scales that have none, by their parameters: ``1.01B``, or the count where two would share that."""

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
    """Returns the columns of the table that ``row`` belongs to, told by ``unique_tokens``."""
    return EXPOSURE_COLUMNS if "unique_tokens" in row else COLUMNS


def key_of(row: Mapping[str, Any]) -> tuple:
    """Returns what identifies ``row``: (run, step, language, split), or (run, step, language) of exposure."""
    return tuple(row.get(name) for name in (EXPOSURE_KEY if "unique_tokens" in row else KEY))


def validate(row: Mapping[str, Any], *, where: str = "observation") -> None:
    """Checks one row of either table against the contract.

    Args:
      row: column name to value.
      where: what the error calls the row, e.g. ``"observations.csv:17"``.

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
    # Only the unigram-normalised loss is a difference, below zero once a model beats the unigram.
    if value < 0 and name not in ("unigram_normalized_loss", "seed"):
        raise MscaleError(f"{where}: {name} is {value}; expected 0 or more")


def append_rows(path: str | os.PathLike, rows: Iterable[Mapping[str, Any]], *, check: bool = True) -> None:
    """Appends rows to a JSON-lines file and syncs it: after a crash each line is whole or the torn last one.

    A torn last line that an earlier crash left is cut off first.

    Raises:
      MscaleError: a row breaks the contract (nothing is written then), or the file cannot be written.
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
            _cut_torn_line(file)
            file.write(data.encode("utf-8"))
            file.flush()
            os.fsync(file.fileno())


def _cut_torn_line(file) -> None:
    size = file.seek(0, os.SEEK_END)
    if not size:
        return
    file.seek(size - 1)
    if file.read(1) == b"\n":
        return
    file.seek(0)
    file.truncate(file.read().rfind(b"\n") + 1)


def read_jsonl(path: str | os.PathLike) -> list[Row]:
    """Reads the whole lines of a JSON-lines file; a missing file has none, a torn last line is dropped.

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
    """Reads rows of either table, one per key (the last written wins), in the order they first came.

    Raises:
      MscaleError: a line is damaged or breaks the contract.
    """
    rows = {}
    for number, row in enumerate(read_jsonl(path), start=1):
        validate(row, where=f"{path}:{number}")
        rows[key_of(row)] = row
    return list(rows.values())


def truncate_rows(path: str | os.PathLike, step: int) -> None:
    """Drops the rows after ``step``, so that a run restored at ``step`` writes each of them once.

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


def write_table(rows: Sequence[Mapping[str, Any]], path: str | os.PathLike, columns=None) -> None:
    """Writes rows of one table as ``.parquet`` or ``.csv``, atomically, with the contract's types.

    Args:
      rows: rows of one of the two tables; may be empty if ``columns`` is given.
      path: where to; the ending decides the format.
      columns: COLUMNS or EXPOSURE_COLUMNS, else read off the first row (COLUMNS when there is none).

    Raises:
      MscaleError: a row breaks the contract, the ending is neither, or pyarrow is not installed.
    """
    path = Path(path)
    columns = columns or (columns_of(rows[0]) if rows else COLUMNS)
    for number, row in enumerate(rows):
        validate(row, where=f"{path}, row {number}")
        if columns_of(row) is not columns:
            raise MscaleError(f"{path}, row {number}: an observation and an exposure row in one table")
    if path.suffix == ".csv":
        with atomic_writer(path) as file:
            file.write(_csv(rows, columns))
    elif path.suffix == ".parquet":
        try:
            import pyarrow as pa
            import pyarrow.parquet as pq
        except ImportError:
            raise MscaleError(
                f"{path}: Parquet needs pyarrow; install mscale[analysis], or write a .csv"
            ) from None
        types = {str: pa.string(), int: pa.int64(), float: pa.float64()}
        schema = pa.schema([(name, types[kind]) for name, kind in columns.items()])
        arrays = [
            pa.array(
                [None if row[name] is None else kind(row[name]) for row in rows], type=schema.field(name).type
            )
            for name, kind in columns.items()
        ]
        with atomic_writer(path) as file:
            pq.write_table(pa.Table.from_arrays(arrays, schema=schema), file)
    else:
        raise MscaleError(f"{path}: cannot write a {path.suffix or 'nameless'} table; use .parquet or .csv")


def _csv(rows: Sequence[Mapping[str, Any]], columns: Mapping[str, type]) -> bytes:
    import io

    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(columns)
    for row in rows:
        writer.writerow(
            [
                "" if row[name] is None else repr(row[name]) if columns[name] is float else row[name]
                for name in columns
            ]
        )
    return text.getvalue().encode("utf-8")
