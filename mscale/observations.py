"""Observations: the table that runs write and analysis reads, one row per evaluation of one language at one step.

A run appends rows to JSON-lines files (``observations.jsonl``, ``exposure.jsonl``), which stay readable if the process
is killed while it writes; a study collects them into Parquet or CSV. This module imports neither jax nor pandas.
"""

import csv
import json
import math
import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import IO, Any

from mscale.errors import MscaleError, nearest
from mscale.files import atomic_write, atomic_writer, writing

Row = dict[str, Any]

COLUMNS: dict[str, type] = {
    "run": str,
    "study": str,
    "tag": str,
    "group": str,  # the root trunk's run: runs of a group share its noise, so groups are resampled
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
    "tokens": int,  # trained on, of all languages, from the schedule
    "phase": str,
    "lr": float,
    "language": str,
    "split": str,
    "target_tokens": int,  # tokens of `language` trained on, from the schedule
    "target_unique": int,  # U: its unique tokens available to the run, whether trained on or not
    "loss": float,  # nats per token
    "loss_se": float,
    "bits_per_byte": float,
    "unigram_normalized_loss": float,
    "eval_tokens": int,
    "eval_bytes": int,
    "flops": float,
}
"""The columns of an observation in order, with their types."""

KEY = ("run", "step", "language", "split")
"""Columns that identify an observation."""

EXPOSURE_COLUMNS: dict[str, type] = {
    "run": str,
    "step": int,
    "language": str,
    "tokens": int,
    "unique_tokens": int,
}
"""The columns of the exposure table: tokens of every training language up to a step of a run."""

EXPOSURE_KEY = ("run", "step", "language")

PHASES = ("warmup", "stable", "decay", "end")
"""Phases of the learning-rate schedule; only at ``end`` has the learning rate decayed completely."""

NULLABLE = frozenset({"lr", "loss_se", "bits_per_byte", "unigram_normalized_loss", "eval_bytes"})
"""Columns that may be None: one window has no standard error, and an imported run may not know its bytes."""

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
"""Values of columns that an imported table lacks; an importer reports which ones it used."""


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


def write_table(
    rows: Sequence[Mapping[str, Any]], path: str | os.PathLike, columns: Mapping[str, type] | None = None
) -> None:
    """Writes rows of one table as ``.parquet`` or ``.csv``, atomically, with the types of its columns.

    Args:
      rows: rows of one of the two tables.
      path: of the file; its extension determines the format.
      columns: COLUMNS or EXPOSURE_COLUMNS; None for those of the first row (COLUMNS without rows).

    Raises:
      MscaleError: a row is invalid, the extension is another one, or pyarrow is not installed.
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
