"""Checks of the rows of an observations table that a law is fitted to; errors name column, row and value."""

from collections.abc import Sequence

import numpy as np
import pandas as pd

from mscale.errors import MscaleError

_ROW_KEY = ("run", "step", "language", "split")


def joined_names(names: Sequence) -> str:
    """The first twelve names, separated by commas, and how many more there are."""
    names = [str(name) for name in names]
    return ", ".join(names[:12]) + (f" and {len(names) - 12} more" if len(names) > 12 else "")


def numeric_column(table: pd.DataFrame, name: str) -> np.ndarray:
    """A column as floats, NaN where empty; MscaleError names the first value that is no number."""
    converted = pd.to_numeric(table[name], errors="coerce")
    wrong = converted.isna() & table[name].notna()
    if wrong.any():
        at = int(np.argmax(wrong))
        raise MscaleError(f"column {name!r}, row {table.index[at]}: {table[name].iloc[at]!r} is not a number")
    return converted.to_numpy(float)


def drop_duplicates(table: pd.DataFrame, notes: list[str]) -> pd.DataFrame:
    """The table without exact duplicates of a (run, step, language, split); adds a note on what was dropped.

    Without a column `run` duplicates are kept, with a note.

    Raises:
      MscaleError: rows share run, step, language and split but differ.
    """
    key = [name for name in _ROW_KEY if name in table]
    if "run" not in key:
        same = table.duplicated()
        if same.any():
            notes.append(
                f"{same.sum()} rows are exact duplicates of others and count twice; drop them if unmeant"
            )
        return table
    again = table.duplicated(key, keep=False)
    if not again.any():
        return table
    exact = table.duplicated(keep="first")
    table = table[~exact]
    clash = table.duplicated(key, keep=False)
    if clash.any():
        row = table[clash].iloc[0]
        raise MscaleError(
            f"{clash.sum()} rows share {', '.join(key)} but differ, the first being "
            f"{', '.join(f'{name}={row[name]}' for name in key)}: keep one of each"
        )
    notes.append(f"{exact.sum()} duplicate rows dropped")
    return table


def require_one_split(table: pd.DataFrame) -> None:
    """Raises MscaleError where the table holds losses on several evaluation splits."""
    if "split" in table and table["split"].nunique() > 1:
        splits = sorted(map(str, table["split"].unique()))
        raise MscaleError(
            f"column 'split' holds {joined_names(splits)}: losses on different texts "
            f"are not comparable; keep the rows of one"
        )


def rows_in_phases(table: pd.DataFrame, phases: Sequence[str] | None, notes: list[str]) -> pd.DataFrame:
    """The rows in some phases of the learning-rate schedule (None: all rows); adds notes on what was left out.

    Raises:
      MscaleError: no row is in these phases.
    """
    if "phase" not in table or phases is None:
        return table
    wanted = table["phase"].isin(list(phases))
    if not wanted.any():
        found = ", ".join(f"{name} ({count})" for name, count in table["phase"].value_counts().items())
        raise MscaleError(
            f"no row is in phase {' or '.join(phases)}; found {found}. Runs in different phases of their schedule are "
            f"not comparable: a cooled model's lead is as large as most effects. To fit others ask: phases=('stable',)"
        )
    if not wanted.all():
        notes.append(f"{(~wanted).sum()} rows outside phase {'/'.join(phases)} left out")
    if len(phases) > 1 and table.loc[wanted, "phase"].nunique() > 1:
        notes.append("rows of different schedule phases are fitted together, as asked")
    return table[wanted]
