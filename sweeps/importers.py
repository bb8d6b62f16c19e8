"""Other people's runs as observations: a plain CSV with a column map, and a chart exported from Weights & Biases.

Nothing is made up: a cell that is empty stays missing, a column that the contract needs and nobody gives is an error.
Only what follows from other columns is filled in: ``flops`` (6·N·D), ``group`` (the run), ``languages`` (the mixture).
"""

import csv
import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mscale import observations
from mscale.errors import MscaleError, nearest
from mscale.observations import COLUMNS, NULLABLE, Row

# What a table from outside need not say.
DEFAULTS: dict[str, Any] = {
    "study": "import",
    "tag": "import",
    "init": "scratch",
    "init_tokens": 0,
    "split": "valid",
}
DERIVED = ("flops", "group", "languages", "scale")


def import_csv(
    source: str | Path,
    target: str | Path,
    columns: Mapping[str, str] | None = None,
    constants: Mapping[str, Any] | None = None,
) -> int:
    """Writes the observations table ``target`` (.parquet or .csv) from a CSV in long format; returns its rows.

    Args:
      columns: contract column to the source's column, where their names differ.
      constants: contract column to a value for every row; text is read as a cell would be.

    Raises:
      MscaleError: a column is unknown or missing, or a cell is not of its type: file, line and column are named.
    """
    columns, constants = dict(columns or {}), dict(constants or {})
    for name in (*columns, *constants):
        if name not in COLUMNS:
            raise MscaleError(f"{name!r} is no column of observations{nearest(name, COLUMNS)}")
    for name, value in constants.items():
        if isinstance(value, str):
            constants[name] = _value(value, name, "constant", 1)
    rows = []
    with _opened(source) as file:
        reader = csv.DictReader(file)
        header = list(reader.fieldnames or ())
        for name, theirs in columns.items():
            if theirs not in header:
                raise MscaleError(
                    f"{source}: has no column {theirs!r} (for {name}){nearest(theirs, header)}; it has "
                    f"{', '.join(header)}"
                )
        place = {name: columns.get(name, name) for name in COLUMNS if columns.get(name, name) in header}
        known = {*place, *constants, *DEFAULTS, *DERIVED, *NULLABLE}
        if absent := [name for name in COLUMNS if name not in known]:
            raise MscaleError(
                f"{source}: nothing says {', '.join(absent)}; map a column to each, or give a constant"
            )
        for number, found in enumerate(reader, start=2):
            given = {name: _value(found[theirs], name, source, number) for name, theirs in place.items()}
            rows.append(_complete({**DEFAULTS, **constants, **given}, f"{source}:{number}"))
    return _write(rows, source, target)


def import_wandb(
    source: str | Path,
    target: str | Path,
    runs: Mapping[str, Mapping[str, Any]],
    *,
    tokens_per_step: Mapping[str, int] | int,
    metric: str = r"(?P<language>[A-Za-z_]+)/loss$",
) -> int:
    """Writes observations from the CSV that a W&B chart exports: a ``Step`` and a column "RUN - METRIC" a curve.

    Args:
      runs: run's name in W&B to its other contract columns (params, mixture, vocabulary, ...), the same at every step.
        ``target_tokens`` may be left out where the run has one language: its tokens.
      tokens_per_step: batch × sequence, of all runs or by run. W&B's counters reset where a run resumed; steps
        times this do not.
      metric: regular expression on METRIC whose group ``language`` names the language.

    Raises:
      MscaleError: no curve is of a run in ``runs``, a run lacks a column, or a cell is not a number.
    """
    pattern = re.compile(metric)
    rows = []
    with _opened(source) as file:
        reader = csv.DictReader(file)
        header = list(reader.fieldnames or ())
        if "Step" not in header:
            raise MscaleError(f"{source}: no column 'Step': expected a chart exported from W&B as CSV")
        curves = []
        for name in header:
            run, dash, measured = name.rpartition(" - ")
            match = pattern.search(measured)
            if dash and run in runs and match and not measured.endswith(("__MIN", "__MAX")):
                curves.append((name, run, match["language"]))
        if not curves:
            raise MscaleError(
                f"{source}: no column is 'RUN - METRIC' of a run given and a metric like {metric!r}; it has "
                f"{', '.join(header[:8])}"
            )
        for number, found in enumerate(reader, start=2):
            step = _value(found["Step"], "step", source, number)
            for name, run, language in curves:
                if not (found[name] or "").strip():
                    continue  # missing stays missing
                size = tokens_per_step if isinstance(tokens_per_step, int) else tokens_per_step[run]
                row = {
                    **DEFAULTS,
                    **runs[run],
                    "run": run,
                    "step": step,
                    "tokens": step * size,
                    "language": language,
                    "loss": _value(found[name], "loss", source, number),
                }
                if row.get("mixture") == language:
                    row.setdefault("target_tokens", row["tokens"])
                rows.append(_complete(row, f"{source}:{number}, {name}"))
    return _write(rows, source, target)


def _opened(source: str | Path):
    try:
        return open(source, encoding="utf-8-sig", newline="")
    except OSError as error:
        raise MscaleError(f"cannot read {source}: {error.strerror or error}") from None


def _value(text: str | None, name: str, source: str | Path, number: int) -> Any:
    """A cell as the contract's type; None where it is empty and may be."""
    kind = COLUMNS[name]
    text = (text or "").strip()
    if not text and name in NULLABLE:
        return None
    try:
        if kind is int:
            value = int(text) if re.fullmatch(r"[+-]?\d+", text) else float(text)
            if value != int(value):
                raise ValueError
            return int(value)
        if kind is float:
            number_ = float(text)
            if not math.isfinite(number_):
                raise ValueError
            return number_
    except (ValueError, OverflowError):
        expected = "an exact integer" if kind is int else "a finite number"
        raise MscaleError(f"{source}:{number}: {name} is {text!r}, expected {expected}") from None
    if not text:
        raise MscaleError(f"{source}:{number}: {name} is empty; leave the row out where there is no value")
    return text


def _complete(row: dict[str, Any], where: str) -> Row:
    """Fills in what follows from the rest, and checks the row."""
    for name in NULLABLE:
        row.setdefault(name, None)
    if {"params", "tokens"} <= set(row):
        row.setdefault("flops", float(6 * row["params"] * row["tokens"]))
        row.setdefault("scale", str(row["params"]))
    row.setdefault("group", row.get("run"))
    row.setdefault("languages", row.get("mixture"))
    if absent := [name for name in COLUMNS if name not in row]:
        raise MscaleError(f"{where}: nothing says {', '.join(absent)}")
    found = {name: row[name] for name in COLUMNS}
    observations.validate(found, where=where)
    return found


def _write(rows: list[Row], source: str | Path, target: str | Path) -> int:
    seen: dict[tuple, Row] = {}
    for row in rows:
        key = observations.key_of(row)
        if key in seen and seen[key] != row:
            raise MscaleError(
                f"{source}: two different rows for {', '.join(map(str, key))} (run, step, language, split); keep one"
            )
        seen[key] = row
    observations.write_table(sorted(seen.values(), key=observations.key_of), target, COLUMNS)
    return len(seen)
