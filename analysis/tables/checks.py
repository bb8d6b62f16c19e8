"""Checks of an observations table, the same for `analysis.fit` and for studies; errors name column, row and value.

Rows that are exact duplicates, and rows whose loss is not finite, are left out and counted. Rows that share run, step,
language and split but differ raise, and so do losses on several splits of which none is chosen.
"""

from collections.abc import Sequence

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike

from analysis.tables.remarks import Remark
from mscale.errors import MscaleError
from mscale.observations import KEY


def joined_names(names: Sequence) -> str:
    """The first twelve names, separated by commas, and how many more there are."""
    names = [str(name) for name in names]
    return ", ".join(names[:12]) + (f" and {len(names) - 12} more" if len(names) > 12 else "")


def refuse_rows(table: pd.DataFrame, wrong: ArrayLike, name: str, expected: str, source: str = "") -> None:
    """Raises MscaleError where any of the rows is `wrong`: the first one's value in the column `name`, and how many.

    Rows are named by their label in the table's index, which `observations.read_table` counts from 1.
    """
    wrong = np.asarray(wrong, dtype=bool)
    if not wrong.any():
        return
    at = int(np.argmax(wrong))
    value = table[name].iloc[at]
    found = f"{value:g}" if isinstance(value, int | float | np.number) else repr(value)
    raise MscaleError(
        f"{_prefix(source)}column {name!r}, row {table.index[at]}: found {found}, expected {expected} "
        f"({wrong.sum()} such rows)"
    )


def numeric_column(table: pd.DataFrame, name: str, source: str = "") -> pd.Series:
    """A column as numbers, NaN where empty, its type NumPy's; MscaleError names the first value that is no number."""
    numbers = pd.to_numeric(table[name], errors="coerce")
    refuse_rows(table, numbers.isna() & table[name].notna(), name, "a number", source)
    return numpy_column(numbers)


def numpy_column(column: pd.Series) -> pd.Series:
    """A nullable pandas column (Int64, Float64) as int64 or float64, NaN for `pd.NA`; others unchanged."""
    if not pd.api.types.is_extension_array_dtype(column.dtype) or not pd.api.types.is_numeric_dtype(column):
        return column
    whole = pd.api.types.is_integer_dtype(column) and not column.hasnans
    return pd.Series(column.to_numpy("int64" if whole else "float64", na_value=np.nan), index=column.index)


def drop_duplicates(table: pd.DataFrame, source: str = "") -> tuple[pd.DataFrame, list[Remark]]:
    """The table without exact duplicates of a (run, step, language, split), and a remark if there were any.

    Without a column `run` rows may be equal by chance: then they are kept, and the remark says so.

    Raises:
      MscaleError: rows share run, step, language and split but differ.
    """
    key = [name for name in KEY if name in table]
    if "run" in key and not table.duplicated(key).any():
        return table, []
    exact = table.duplicated()
    rows = int(exact.sum())
    if "run" not in key:
        return table, [Remark("duplicates_kept", rows=rows)] if rows else []
    table = table[~exact]
    again = table.duplicated(key, keep=False)
    if again.any():
        first = table[again].iloc[0]
        clash = table[again & (table[key] == first[key]).all(axis=1)]
        differ = [name for name in table.columns if clash[name].astype(str).nunique() > 1]
        shown = "; ".join(f"{name} {joined_names(list(clash[name].unique()))}" for name in differ[:3])
        raise MscaleError(
            f"{_prefix(source)}{again.sum()} rows share {', '.join(key)} with another row but differ, the first being "
            f"{', '.join(f'{name}={first[name]}' for name in key)} ({shown}): keep one row of each"
        )
    return table, [Remark("duplicates", rows=rows)] if rows else []


def drop_infinite(table: pd.DataFrame, name: str) -> tuple[pd.DataFrame, list[Remark]]:
    """The rows whose loss, the numeric column `name`, is finite, and a remark on those of runs that diverged.

    Raises:
      MscaleError: there is no such row.
    """
    finite = np.isfinite(table[name].to_numpy(dtype=float))
    if not finite.any():
        raise MscaleError(f"column {name!r}: no loss is finite, so nothing is left to fit")
    if finite.all():
        return table, []
    runs = table.loc[~finite, "run"].nunique() if "run" in table else 0
    return table[finite], [Remark("not_finite", rows=int((~finite).sum()), numbers=(runs,))]


def select_split(table: pd.DataFrame, split: str | None, option: str = "split='{}'") -> pd.DataFrame:
    """The rows of one evaluation split: the one that is named, or all rows of a table with a single split.

    Args:
      option: how a user of the caller names a split, for the message.

    Raises:
      MscaleError: no such split or no such column, or several splits and none is named.
    """
    if "split" not in table:
        if split is not None:
            raise MscaleError(
                f"the table has no column 'split', so {option.format(split)} chooses nothing; leave it out, or add "
                "the column"
            )
        return table
    found = sorted(map(str, table["split"].unique()))
    if split is None and len(found) > 1:
        raise MscaleError(
            f"column 'split' holds {joined_names(found)}: losses on different texts are not comparable. Choose one, "
            f"such as {option.format(found[-1])}, or keep the rows of one"
        )
    if split is not None and split not in found:
        raise MscaleError(f"no split {split!r} in the table; found {', '.join(found)}")
    return table if split is None else table[table["split"].astype(str) == split]


def from_scratch(table: pd.DataFrame) -> np.ndarray:
    """(n,) bool: rows of runs that do not continue a checkpoint."""
    if "init" not in table:
        return np.ones(len(table), bool)
    return (table["init"].isna() | table["init"].isin(["scratch", ""])).to_numpy()


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


def _prefix(source: str) -> str:
    return f"{source}: " if source else ""
