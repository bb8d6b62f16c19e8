"""Other people's runs as observations: a CSV with a column map, long or wide, or a chart exported from W&B.

An empty cell stays missing. Columns that follow from others are filled in (`sweeps.collecting.import_defaults`) and
reported as notes; a required column that neither exists nor follows is an error.
"""

import csv
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TextIO

import msgspec

from mscale import observations
from mscale.errors import MscaleError, nearest
from mscale.observations import COLUMNS, IMPORT_DEFAULTS, NULLABLE, Row
from sweeps.collecting import arrow_tables
from sweeps.collecting.import_defaults import SourceRow, fill_missing_columns

_UNIT_PREFIXES = {"K": 1e3, "M": 1e6, "B": 1e9, "G": 1e9, "T": 1e12}
_PLACEHOLDER = "{language}"


@dataclass(frozen=True)
class ImportSummary:
    """Rows and runs written, and notes on what was assumed, left out or filled in."""

    rows: int
    runs: int
    notes: tuple[str, ...]


def import_csv(
    source: str | Path,
    target: str | Path,
    columns: Mapping[str, str] | None = None,
    constants: Mapping[str, Any] | None = None,
    *,
    wide: str | None = None,
) -> ImportSummary:
    """Writes the observations table ``target`` (.parquet or .csv) from a CSV.

    Args:
      columns: observations column to the source's column, where their names differ; ``"tokens_B*1e9"`` multiplies.
      constants: observations column to a value for every row; a string is parsed as a cell is.
      wide: name pattern of the loss columns where each evaluated language has one: ``"loss_{language}"``.

    Raises:
      MscaleError: a column is unknown or missing, or a cell is not of its type; the file, line and column are named.
    """
    columns, constants = dict(columns or {}), dict(constants or {})
    for name in (*columns, *constants):
        if name not in COLUMNS:
            raise MscaleError(f"{name!r} is no column of observations{nearest(name, COLUMNS)}")
    for name, value in constants.items():
        if isinstance(value, str):
            constants[name] = _parse_cell(value, name, "constant", 1)
    with _opened(source) as file:
        reader = _reader(file)
        header = list(reader.fieldnames or ())
        source_columns = {name: (name, 1.0) for name in COLUMNS if name in header}
        for name, theirs in columns.items():
            source_columns[name] = _column_and_factor(theirs, header, name, source)
        losses = {} if wide is None else _loss_columns(wide, header, source)
        if "loss" in constants:
            raise MscaleError("--constant loss: a loss is measured; map a column to it")
        given_columns = {*source_columns, *constants, *(("language", "loss") if losses else ())}
        if absent := [name for name in ("run", "params", "language", "loss") if name not in given_columns]:
            raise MscaleError(
                f"{source}: nothing says {', '.join(absent)}; map a column to each (--column {absent[0]}=THEIRS), or "
                f"give a constant; it has {', '.join(header)}"
            )
        rows = []
        left_out: dict[str, int] = {}
        for number, cells in enumerate(reader, start=2):
            where = f"{source}:{number}"
            if None in cells or None in cells.values():
                raise MscaleError(f"{where}: not {len(header)} cells, as the header has; mend the line")
            given = constants | {
                name: _parse_cell(cells[theirs], name, source, number, factor)
                for name, (theirs, factor) in source_columns.items()
                if name != "loss"
            }
            if losses:
                measured = [(language, cells[name]) for language, name in losses.items()]
            else:
                measured = [(str(given["language"]), cells[source_columns["loss"][0]])]
            factor = 1.0 if losses else source_columns["loss"][1]
            for language, cell in measured:
                if _is_missing_loss(cell):
                    if not losses or cell.strip():
                        left_out[given["run"]] = left_out.get(given["run"], 0) + 1
                    continue
                loss = {"language": language, "loss": _parse_cell(cell, "loss", source, number, factor)}
                rows.append(SourceRow(where, {**given, **loss}))
    return _write(rows, source, target, left_out)


class WandbRuns(msgspec.Struct, forbid_unknown_fields=True):
    """What a chart exported from W&B does not say of its runs.

    Attributes:
      runs: name of the run in W&B to its other columns (params, mixture, phase, ...), equal at every step.
      tokens_per_step: batch × sequence, of all runs or by run. Tokens are step times this, since W&B's own counters
        restart when a run resumes.
      shared: columns with the same value for all runs.
      metric: regular expression on METRIC whose group ``language`` names the language.
    """

    runs: dict[str, dict[str, Any]]
    tokens_per_step: dict[str, int] | int
    shared: dict[str, Any] = {}
    metric: str = r"(?P<language>[A-Za-z_]+)/loss$"


def import_wandb(source: str | Path, target: str | Path, about: WandbRuns) -> ImportSummary:
    """Writes observations from the CSV that a W&B chart exports: a ``Step`` and a column "RUN - METRIC" a curve.

    Raises:
      MscaleError: no column belongs to a run in ``about``, a run lacks a required column, or a cell is not a number.
    """
    tokens_per_step, metric = about.tokens_per_step, about.metric
    described = {run: {**about.shared, **columns} for run, columns in about.runs.items()}
    for run, columns in described.items():
        for name in columns:
            if name not in COLUMNS:
                raise MscaleError(
                    f"run {run!r}: {name!r} is no column of observations{nearest(name, COLUMNS)}"
                )
    try:
        pattern = re.compile(metric)
        pattern.groupindex["language"]
    except (re.error, KeyError):
        raise MscaleError(
            f"metric {metric!r}: expected a regular expression with (?P<language>...)"
        ) from None
    rows = []
    left_out: dict[str, int] = {}
    with _opened(source) as file:
        reader = _reader(file)
        header = list(reader.fieldnames or ())
        if "Step" not in header:
            raise MscaleError(f"{source}: no column 'Step': expected a chart exported from W&B as CSV")
        curves = []
        for name in dict.fromkeys(header):
            run, dash, measured = name.rpartition(" - ")
            match = pattern.search(measured)
            if dash and run in described and match and not measured.endswith(("__MIN", "__MAX")):
                curves.append((name, run, match["language"]))
        if not curves:
            raise MscaleError(
                f"{source}: no column is 'RUN - METRIC' of a run given and a metric like {metric!r}; it has "
                f"{', '.join(header[:8])}"
            )
        for number, cells in enumerate(reader, start=2):
            step = _parse_cell(cells["Step"], "step", source, number)
            for name, run, language in curves:
                cell = cells[name] or ""
                if _is_missing_loss(cell):
                    if cell.strip():
                        left_out[run] = left_out.get(run, 0) + 1
                    continue
                if isinstance(tokens_per_step, Mapping) and run not in tokens_per_step:
                    raise MscaleError(
                        f"tokens_per_step says nothing of run {run!r}; give its batch × sequence"
                    )
                size = tokens_per_step[run] if isinstance(tokens_per_step, Mapping) else tokens_per_step
                row = {
                    **described[run],
                    "run": run,
                    "step": step,
                    "tokens": step * size,
                    "language": language,
                    "loss": _parse_cell(cell, "loss", source, number),
                }
                rows.append(SourceRow(f"{source}:{number}, {name}", row))
    return _write(rows, source, target, left_out)


def _opened(source: str | Path) -> TextIO:
    try:
        return open(source, encoding="utf-8-sig", newline="")
    except OSError as error:
        raise MscaleError(f"cannot read {source}: {error.strerror or error}") from None


def _reader(file: TextIO) -> csv.DictReader:
    """A CSV reader whose delimiter is the most frequent of comma, semicolon and tab in the header."""
    header = file.readline()
    file.seek(0)
    return csv.DictReader(file, delimiter=max(",;\t", key=header.count))


def _column_and_factor(theirs: str, header: list[str], name: str, source: str | Path) -> tuple[str, float]:
    """``tokens_B*1e9`` as (column, factor)."""
    if theirs in header:
        return theirs, 1.0
    column, star, text = theirs.rpartition("*")
    try:
        factor = float(text) if star else 1.0
    except ValueError:
        factor = math.nan
    column = column.strip() if star else theirs
    if column not in header:
        raise MscaleError(
            f"{source}: has no column {column!r} (for {name}){nearest(column, header)}; it has {', '.join(header)}"
        )
    if not (factor > 0 and math.isfinite(factor)) or COLUMNS[name] is str:
        raise MscaleError(
            f"--column {name}={theirs}: expected COLUMN or COLUMN*FACTOR with a positive factor"
        )
    return column, factor


def _loss_columns(template: str, header: list[str], source: str | Path) -> dict[str, str]:
    """Evaluated language to the column with its losses."""
    if template.count(_PLACEHOLDER) != 1:
        raise MscaleError(
            f"--wide {template}: expected a column name with {_PLACEHOLDER} once, such as loss_{_PLACEHOLDER}"
        )
    before, after = map(re.escape, template.split(_PLACEHOLDER))
    found = {match[1]: name for name in header if (match := re.fullmatch(f"{before}(.+){after}", name))}
    if not found:
        raise MscaleError(f"{source}: no column is like {template!r}; it has {', '.join(header)}")
    return found


def _is_missing_loss(cell: str) -> bool:
    """Whether a cell holds no loss: it is empty, or what a diverged run logs."""
    return cell.strip().lower() in ("", "nan", "none", "null", "na", "n/a", "inf", "-inf", "infinity")


def _parse_cell(text: str, name: str, source: str | Path, number: int, factor: float = 1.0) -> Any:
    """A cell as the type of its column, times a factor; None where an empty cell is allowed. ``1.5B`` is 1.5e9."""
    kind = COLUMNS[name]
    text = text.strip()
    if not text and name in NULLABLE:
        return None
    if not text and name in IMPORT_DEFAULTS:
        return IMPORT_DEFAULTS[name]
    if kind is str:
        if not text:
            raise MscaleError(
                f"{source}:{number}: {name} is empty; leave the row out where there is no value"
            )
        return text
    try:
        scaled, digits = factor, text
        if kind is int and text[-1:] in _UNIT_PREFIXES:
            scaled, digits = factor * _UNIT_PREFIXES[text[-1]], text[:-1]
        if kind is int and scaled == 1 and re.fullmatch(r"[+-]?\d+", digits):
            return int(digits)
        value = float(digits) * scaled
        if not math.isfinite(value):
            raise ValueError
        if kind is float:
            return value
        # A product of decimals may differ from the integer by rounding.
        whole = round(value)
        if abs(value - whole) > (1e-6 * abs(value) if scaled != 1 else 0):
            raise ValueError
        return whole
    except (ValueError, OverflowError):
        expected = "an exact integer" if kind is int else "a finite number"
        unit = ""
        if name == "tokens" and kind is int and re.fullmatch(r"\d*\.\d+", text):
            unit = "; counted in billions? --column tokens=THEIRS*1e9"
        raise MscaleError(f"{source}:{number}: {name} is {text!r}, expected {expected}{unit}") from None


def _write(
    found: list[SourceRow], source: str | Path, target: str | Path, left_out: Mapping[str, int]
) -> ImportSummary:
    if not found:
        raise MscaleError(f"{source}: no row holds a loss")
    rows, notes = fill_missing_columns(found, str(source))
    if left_out:
        runs = ", ".join(f"{run} ({count})" for run, count in list(left_out.items())[:5])
        more = f" and {len(left_out) - 5} more" if len(left_out) > 5 else ""
        notes.append(f"{sum(left_out.values())} rows without a finite loss left out: {runs}{more}")
    seen: dict[tuple, tuple[Row, str]] = {}
    for row, where in zip(rows, (each.where for each in found), strict=True):
        key = observations.key_of(row)
        if key in seen and seen[key][0] != row:
            raise MscaleError(
                f"{where}: another row than {seen[key][1]} for {', '.join(map(str, key))} "
                "(run, step, language, split); keep one"
            )
        seen.setdefault(key, (row, where))
    if len(seen) < len(rows):
        notes.append(f"{len(rows) - len(seen)} rows say what another row says: kept once")
    kept = [row for row, _ in seen.values()]
    table = arrow_tables.merge_rows(None, (), kept, COLUMNS, observations.KEY)
    arrow_tables.write_arrow_table(table, Path(target))
    return ImportSummary(len(kept), len({row["run"] for row in kept}), tuple(notes))
