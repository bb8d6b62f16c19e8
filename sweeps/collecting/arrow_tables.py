"""Observations and exposure as Arrow tables: merged, sorted and written; a million rows take seconds."""

from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

from mscale.errors import MscaleError
from mscale.files import atomic_writer

try:
    import pyarrow as pa
    import pyarrow.compute as pc
    import pyarrow.csv
    import pyarrow.parquet as pq
except ImportError:  # a training host has none
    pa = None


def _need_arrow() -> None:
    if pa is None:
        raise MscaleError("tables need pyarrow; install mscale[analysis]")


def arrow_schema(columns: Mapping[str, type]) -> "pa.Schema":
    """The Arrow schema of named columns of str, int and float."""
    _need_arrow()
    types = {str: pa.string(), int: pa.int64(), float: pa.float64()}
    return pa.schema([(name, types[kind]) for name, kind in columns.items()])


def merge_rows(
    before: "pa.Table | None",
    kept: Collection[str],
    rows: Sequence[Mapping[str, Any]],
    columns: Mapping[str, type],
    key: Sequence[str],
) -> "pa.Table":
    """Returns the rows of ``before`` whose run is in ``kept`` and the new ``rows``, sorted by ``key``.

    Args:
      before: an earlier table of the same columns, or None.
      rows: already validated.
      columns: name to Python type.
    """
    arrays = [
        pa.array([None if row[name] is None else kind(row[name]) for row in rows], type=field.type)
        for (name, kind), field in zip(columns.items(), arrow_schema(columns), strict=True)
    ]
    table = pa.Table.from_arrays(arrays, schema=arrow_schema(columns))
    if before is not None and kept:
        old = before.filter(pc.is_in(before["run"], value_set=pa.array(sorted(kept))))
        table = pa.concat_tables([old, table])
    return table.sort_by([(name, "ascending") for name in key]).combine_chunks()


def read_parquet(path: Path) -> "pa.Table":
    """Reads a Parquet table.

    Raises:
      OSError, ValueError: the file is missing or damaged.
    """
    _need_arrow()
    return pq.read_table(path)


def write_arrow_table(table: "pa.Table", path: Path) -> None:
    """Writes a table as .csv or .parquet, atomically.

    Raises:
      MscaleError: another extension, or the file cannot be written.
    """
    if path.suffix not in (".csv", ".parquet"):
        raise MscaleError(f"{path}: cannot write a {path.suffix or 'nameless'} table; use .parquet or .csv")
    with atomic_writer(path) as file:
        if path.suffix == ".csv":
            options = pyarrow.csv.WriteOptions(quoting_style="needed")
            pyarrow.csv.write_csv(table, file, options)
        else:
            pq.write_table(table, file)
