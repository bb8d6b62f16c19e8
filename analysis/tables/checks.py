"""Checks of the columns of an observations table, each with a message that names rows and values."""

from collections.abc import Sequence

import numpy as np
import pandas as pd

from mscale.errors import MscaleError

KEY = ("run", "step", "language", "split")


def _listed(names: Sequence) -> str:
    names = [str(name) for name in names]
    return ", ".join(names[:12]) + (f" and {len(names) - 12} more" if len(names) > 12 else "")


def _numbers(table: pd.DataFrame, name: str) -> np.ndarray:
    converted = pd.to_numeric(table[name], errors="coerce")
    wrong = converted.isna() & table[name].notna()
    if wrong.any():
        at = int(np.argmax(wrong))
        raise MscaleError(f"column {name!r}, row {table.index[at]}: {table[name].iloc[at]!r} is not a number")
    return converted.to_numpy(float)


def _duplicates(table: pd.DataFrame, notes: list[str]) -> pd.DataFrame:
    key = [name for name in KEY if name in table]
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


def _one_split(table: pd.DataFrame) -> None:
    if "split" in table and table["split"].nunique() > 1:
        raise MscaleError(
            f"column 'split' holds {_listed(sorted(map(str, table['split'].unique())))}: losses on different texts are "
            f"not comparable; keep the rows of one"
        )


def _phases(table: pd.DataFrame, phases: Sequence[str] | None, notes: list[str]) -> pd.DataFrame:
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
