"""Reads a study from files: its tables, the rows of one evaluation, and what its executor recorded."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from analysis.tables.checks import select_split
from analysis.tables.observations import read_study
from analysis.tables.remarks import Remark
from analysis.transfer.table import one_vocabulary
from mscale.errors import MscaleError
from mscale.files import read_json


@dataclass(frozen=True)
class StudyInputs:
    """The arguments of `analyse_tables`: rows of one vocabulary and split, their exposure, what was left out."""

    observations: pd.DataFrame
    exposure: pd.DataFrame
    truth: dict[str, Any] | None
    executor: dict[str, Any]
    notes: tuple[Remark, ...]
    exclusions: tuple[Remark, ...]


def read_inputs(
    paths: Sequence[Path], truth: Path | None = None, split: str | None = None, vocabulary: str | None = None
) -> StudyInputs:
    """Reads a table of observations or the folder of a study; several as one study.

    Args:
      split, vocabulary: the one to use, where the table has several; the other rows are counted as exclusions.

    Raises:
      MscaleError: as for `read_study` and `one_evaluation`.
    """
    tables = read_study(*paths, truth=truth)
    rows = one_evaluation(tables.observations, paths[0], split, vocabulary)
    left_out = []
    for name in ("vocabulary", "split"):
        others = tables.observations[~tables.observations[name].isin(rows[name].unique())]
        if len(others):
            names, kept = (sorted(set(map(str, part[name]))) for part in (others, rows))
            left_out.append(
                Remark("other_evaluation", rows=len(others), names=(name, *names), others=tuple(kept))
            )
    notes = [note for note in tables.notes if note.code != "vocabularies"]
    return StudyInputs(
        rows,
        tables.exposure[tables.exposure["run"].isin(rows["run"].unique())],
        tables.truth,
        executor_record(paths),
        tuple(notes),
        (*tables.exclusions, *left_out),
    )


def one_evaluation(
    table: pd.DataFrame, path: Path, split: str | None, vocabulary: str | None
) -> pd.DataFrame:
    """The rows of one vocabulary and one evaluation split: those named, or the only ones.

    Raises:
      MscaleError: the table has no such split or vocabulary, has no such column, or has several and none is named.
    """
    if vocabulary is not None and "vocabulary" not in table.columns:
        raise MscaleError(
            f"{path}: no column 'vocabulary', so --vocabulary {vocabulary} chooses nothing; leave it out, or add the "
            "column"
        )
    if "vocabulary" in table.columns:
        table = one_vocabulary(table, vocabulary)
        found = sorted(set(map(str, table["vocabulary"])))
        if len(found) > 1:
            raise MscaleError(
                f"{path}: runs of {len(found)} vocabularies ({', '.join(found)}), whose losses per token are not "
                f"comparable: choose one, such as --vocabulary {found[0]}"
            )
    return select_split(table, split, "--split {}")


def executor_record(tables: Sequence[Path]) -> dict[str, Any]:
    """What the executor recorded beside the tables of a study: time, workers, memory, failed runs; empty if nothing."""
    sessions: list[dict[str, Any]] = []
    missing: dict[str, str] = {}
    for folder in (path if path.is_dir() else path.parent for path in tables):
        if (folder / "runner.json").exists():
            sessions += read_json(folder / "runner.json", what="runner record")["sessions"]
            if (folder / "missing.json").exists():
                missing |= read_json(folder / "missing.json", what="list of missing runs")["runs"]
    if not sessions:
        return {}
    return {
        "seconds": sum(session["seconds"] for session in sessions),
        "workers": max((session["workers"] for session in sessions), default=None),
        "peak_memory_bytes": max((session["peak_memory_bytes"] for session in sessions), default=None),
        "failed": [{"run": run, "reason": reason} for run, reason in missing.items()],
    }
