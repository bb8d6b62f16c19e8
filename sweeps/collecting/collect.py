"""Run folders to one observations table, checked against the columns' contract and against the study.

Only runs that are done are collected; the others are listed with the reason. Rows are sorted by their keys, so that a
study gives the same tables however often it was interrupted. Runs whose files have not changed since the last call are
taken from the tables of that call.
"""

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mscale import observations, run_folder
from mscale.errors import MscaleError
from mscale.files import atomic_json
from mscale.observations import Row
from sweeps import spec as specs
from sweeps.collecting import arrow_tables
from sweeps.executors import state
from sweeps.spec import RunSpec

_RECORD_VERSION = 1
_RECORD = "collected.json"
_RUN_FILES = (run_folder.OBSERVATIONS_FILE, run_folder.EXPOSURE_FILE, run_folder.SPEC_FILE)
_TABLES = ("observations.parquet", "exposure.parquet")


@dataclass(frozen=True)
class Collected:
    """What was collected.

    Attributes:
      rows, exposure: rows of the two tables.
      runs: runs collected.
      missing: run id to the reason why it is not in the tables.
      cells: descriptions of the study's cells without a final loss, with the reason.
    """

    rows: int
    exposure: int
    runs: int
    missing: dict[str, str]
    cells: tuple[str, ...]


def collect(root: str | Path) -> Collected:
    """Writes ``observations`` and ``exposure`` (.parquet, .csv) and ``missing.json`` into the study's folder.

    Raises:
      MscaleError: there is no study in ``root``, or the tables cannot be written.
    """
    root = Path(root)
    study = state.load_study(root)
    states = state.read_states(study.runs, root)
    before = _before(root)
    stamps: dict[str, list] = {}
    missing: dict[str, str] = {}
    rows: list[Row] = []
    exposure: list[Row] = []
    for run in study.runs:
        if states[run.id].state != "done":
            reason = states[run.id].reason
            missing[run.id] = states[run.id].state + (f": {reason}" if reason else "")
            continue
        folder = specs.workdir(root, run.id)
        stamp = _file_stamps(folder)
        if before.stamps.get(run.id) == stamp:
            stamps[run.id] = stamp
            continue
        try:
            of_run = observations.read_rows(folder / run_folder.OBSERVATIONS_FILE)
            exposed = observations.read_rows(folder / run_folder.EXPOSURE_FILE)
            check_rows(run, of_run, exposed, folder)
        except MscaleError as error:
            missing[run.id] = f"unusable: {error}"
            continue
        stamps[run.id] = stamp
        rows += of_run
        exposure += exposed
    new = {row["run"] for row in exposure} | {row["run"] for row in rows}
    kept = set(stamps) - new
    # While the tables are replaced one by one, no later call may take rows from them.
    (root / _RECORD).unlink(missing_ok=True)
    counts = []
    for name, fresh, columns, key in (
        ("observations", rows, observations.COLUMNS, observations.KEY),
        ("exposure", exposure, observations.EXPOSURE_COLUMNS, observations.EXPOSURE_KEY),
    ):
        table = arrow_tables.merge_rows(before.tables.get(name), kept, fresh, columns, key)
        arrow_tables.write_arrow_table(table, root / f"{name}.parquet")
        arrow_tables.write_arrow_table(table, root / f"{name}.csv")
        counts.append(table.num_rows)
    cells = tuple(
        f"{cell.tag}: {cell.mixture} at scale {cell.scale}, {tokens:,} tokens, seed {cell.seed} "
        f"({missing[end]})"
        for cell, ends in zip(study.cells, study.ends, strict=True)
        for tokens, end in zip(cell.tokens, ends, strict=True)
        if end in missing
    )
    atomic_json(root / "missing.json", {"runs": missing, "cells": list(cells)})
    atomic_json(
        root / _RECORD, {"version": _RECORD_VERSION, "runs": stamps, "tables": _file_stamps(root, _TABLES)}
    )
    return Collected(counts[0], counts[1], len(stamps), missing, cells)


@dataclass(frozen=True)
class _Before:
    """What an earlier call collected: size and time of its runs' files, and its tables."""

    stamps: dict[str, list]
    tables: dict[str, Any]


def _before(root: Path) -> _Before:
    """The earlier tables, if their files are unchanged; otherwise nothing, and all runs are read again."""
    try:
        record = json.loads((root / _RECORD).read_text(encoding="utf-8"))
        if record["version"] != _RECORD_VERSION or record["tables"] != _file_stamps(root, _TABLES):
            return _Before({}, {})
        found = {name.partition(".")[0]: arrow_tables.read_parquet(root / name) for name in _TABLES}
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return _Before({}, {})
    return _Before(record["runs"], found)


def _file_stamps(folder: Path, names: Sequence[str] = _RUN_FILES) -> list:
    """Size and modification time of each file, to see whether it has changed; None where it is missing."""
    stamps: list[list[int] | None] = []
    for name in names:
        try:
            found = (folder / name).stat()
            stamps.append([found.st_size, found.st_mtime_ns])
        except FileNotFoundError:
            stamps.append(None)
    return stamps


def check_rows(run: RunSpec, rows: Sequence[Row], exposure: Sequence[Row], folder: Path) -> None:
    """Checks a done run's rows against its spec and each other.

    Raises:
      MscaleError: a row of another run, tag, group or size; token counts that differ from the schedule's; bits per
        byte that differ from the loss's; a step outside the run; or no loss of a language at the end of a run that
        decays.
    """
    where = folder / run_folder.OBSERVATIONS_FILE
    step_tokens = int(run.bindings["BATCH_SIZE"]) * int(run.bindings["SEQUENCE_LENGTH"])
    expected: dict[str, Any] = {"run": run.id, "tag": run.tag, "group": run.group, "params": run.params}
    for row in rows:
        for name, value in expected.items():
            if row[name] != value:
                raise MscaleError(
                    f"{where}, step {row['step']}: {name} is {row[name]!r}, but the run's spec says "
                    f"{value!r}; delete the run's folder and train it again"
                )
        if row["tokens"] != row["step"] * step_tokens:
            raise MscaleError(
                f"{where}, step {row['step']}: tokens is {row['tokens']:,}; the schedule gives "
                f"{row['step'] * step_tokens:,}"
            )
        if not run.start_step <= row["step"] <= run.steps:
            raise MscaleError(
                f"{where}: step {row['step']} is outside of the run's {run.start_step} to {run.steps}"
            )
        if row["bits_per_byte"] is not None and row["eval_bytes"]:
            bits = row["loss"] * row["eval_tokens"] / (math.log(2) * row["eval_bytes"])
            if not math.isclose(row["bits_per_byte"], bits, rel_tol=1e-6):
                raise MscaleError(
                    f"{where}, step {row['step']}, {row['language']}: bits_per_byte is {row['bits_per_byte']:.6g}, but "
                    f"a loss of {row['loss']:.6g} nats in {row['eval_tokens']:,} tokens of {row['eval_bytes']:,} bytes "
                    f"is {bits:.6g}; delete this file, and `mscale sweep run` trains the run again"
                )
        if row["target_tokens"] > row["tokens"]:
            raise MscaleError(
                f"{where}, step {row['step']}: {row['target_tokens']:,} tokens of {row['language']} out of "
                f"{row['tokens']:,} in all"
            )
    cooled = {row["language"] for row in rows if row["phase"] == "end" and row["step"] == run.steps}
    if run.kind != "trunk" and (absent := set(run.bindings["EVAL_LANGUAGES"] or ()) - cooled):
        raise MscaleError(f"{where}: no row at the end (step {run.steps}) for {', '.join(sorted(absent))}")
    exposed: dict[int, int] = {}
    for row in exposure:
        if row["run"] != run.id:
            raise MscaleError(
                f"{folder / run_folder.EXPOSURE_FILE}: a row of run {row['run']!r}; expected {run.id!r}"
            )
        exposed[row["step"]] = exposed.get(row["step"], 0) + row["tokens"]
    for step, tokens in exposed.items():
        if tokens != step * step_tokens:
            raise MscaleError(
                f"{folder / run_folder.EXPOSURE_FILE}, step {step}: {tokens:,} tokens of all languages; the schedule "
                f"gives {step * step_tokens:,}"
            )
