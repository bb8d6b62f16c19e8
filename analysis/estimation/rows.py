"""From a table to the rows that a law is fitted to. What is wrong raises; what is left out is noted."""

import dataclasses
from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd

from analysis.laws.law import Law
from analysis.tables.checks import (
    drop_duplicates,
    drop_infinite,
    from_scratch,
    joined_names,
    numeric_column,
    refuse_rows,
    rows_in_phases,
    select_split,
)
from analysis.tables.remarks import remark_text
from mscale.errors import MscaleError, nearest

_COLUMN_ALTERNATIVES = {
    "target_tokens": ("tokens", "D"),
    "params": ("N",),
    "target_unique": ("unique_tokens", "U"),
}
_COUNT_UNITS = {"params": "parameters", "target_tokens": "tokens", "tokens": "tokens"}
_RESPONSE_NAMES = ("loss", "L", "y", "response")  # names under which columns= gives the fitted quantity
_MIN_TOKENS_PER_PARAMETER = 0.01  # with fewer, one of the two counts is likely in another unit


@dataclasses.dataclass(frozen=True)
class SelectedRows:
    """The n rows that are fitted, in the order of the table.

    x: {variable: (n,)}. y: (n,) response. level: (n,) of the column that parameters are per, "" without one. group:
    (n,) unit that is resampled. notes: what was left out, and warnings. columns: {variable or response: column}.
    """

    table: pd.DataFrame
    x: dict[str, np.ndarray]
    y: np.ndarray
    level: np.ndarray
    group: np.ndarray
    notes: tuple[str, ...]
    columns: dict[str, str]


def column_for(table: pd.DataFrame, law: Law, variable: str, default: str, columns: Mapping[str, str]) -> str:
    """The table's column for a variable of a law.

    default: the column that it is read from by default. columns: {variable: column} that the caller gave.

    Raises:
      MscaleError: there is no such column; the message suggests the nearest name.
    """
    if variable in columns:
        name = columns[variable]
        if name not in table:
            raise MscaleError(
                f"columns={{{variable!r}: {name!r}}}: the table has no column {name!r}{nearest(name, table.columns)}; "
                f"it has {joined_names(list(table.columns))}"
            )
        return name
    for name in (default, *_COLUMN_ALTERNATIVES.get(default, ()), variable):
        if name in table:
            return name
    raise MscaleError(
        f"law {law.name!r} needs column {default!r} (its {variable}), which the table does not have"
        f"{nearest(default, table.columns)}; it has {joined_names(list(table.columns))}. "
        f"Name it with columns={{{variable!r}: '<your column>'}}"
    )


def within_range(x: Mapping[str, np.ndarray], fitted: Mapping[str, np.ndarray]) -> np.ndarray:
    """(n,) bool: whether every variable of a row, {name: (n,)}, lies within the range of fitted rows, to 0.1%."""
    inside = [
        (values >= fitted[name].min() * 0.999) & (values <= fitted[name].max() * 1.001)
        for name, values in x.items()
    ]
    return np.all(inside, axis=0)


def select_rows(
    table: pd.DataFrame,
    law: Law,
    columns: Mapping[str, str] | None = None,
    *,
    phases: Sequence[str] | None = ("end",),
    split: str | None = None,
    per: str | None = None,
    group: str | None = None,
) -> SelectedRows:
    """Selects and checks the rows that a law is fitted to.

    Args:
      columns: {variable or "loss" or "group": column of the table}, for tables with names of their own.
      phases: schedule phases that may be compared; None takes all. Ignored where there is no such column.
      split: the evaluation split, where the table has several.
      per: column whose levels have parameters of their own, or None.

    Raises:
      MscaleError: a column is missing, has no usable value, or mixes what cannot be compared.
    """
    columns = dict(columns or {})
    known = {*law.columns, *_RESPONSE_NAMES, law.response, "group"}
    for name in columns:
        if name not in known:
            raise MscaleError(
                f"columns={{{name!r}: …}}: law {law.name!r} has no variable {name!r}{nearest(name, known)}; "
                f"it reads {joined_names(sorted(known))}"
            )
    if len(table) == 0:
        raise MscaleError("the table has no rows")
    notes: list[str] = []
    given = [name for key, name in columns.items() if key in (*_RESPONSE_NAMES, law.response)]
    response = column_for(table, law, law.response, law.response, {law.response: given[0]} if given else {})
    names = {
        variable: column_for(table, law, variable, default, columns)
        for variable, default in law.columns.items()
    }
    table = select_split(table, split)
    table = rows_in_phases(table, phases, notes)
    if law.pretraining:
        table = _from_scratch(table, law, notes)
    table = table.assign(**{response: numeric_column(table, response)})
    table, infinite = drop_infinite(table, response)
    table, duplicates = drop_duplicates(table)
    notes += map(remark_text, [*infinite, *duplicates])
    values = {variable: numeric_column(table, name).to_numpy(float) for variable, name in names.items()}
    y = table[response].to_numpy(float)
    keep = np.ones(len(table), bool)
    for variable, array in values.items():
        expected = "a finite number that is not negative"
        refuse_rows(table, ~np.isfinite(array) | (array < 0), names[variable], expected)
        if variable in law.may_be_zero:
            continue
        zero = array == 0
        if zero.any() and not variable.startswith("U"):
            notes.append(
                f"{zero.sum()} rows with {names[variable]} = 0 excluded: the law says nothing about them"
            )
            keep &= ~zero
    _check_unique_tokens(table, values, names, keep)
    if not keep.any():
        raise MscaleError(
            f"every row has a zero in {joined_names(sorted(set(names.values())))}: nothing is left to fit"
        )
    if law.residual == "log":
        expected = (
            f"a positive number, because law {law.name!r} takes logarithms. For the unigram-normalised loss, which is "
            "negative, fit with residual='additive'"
        )
        refuse_rows(table, y <= 0, response, expected)
    for variable, name in names.items():
        _note_unit(values[variable][keep], name, notes)
    _note_tokens_per_parameter(values, names, keep, notes)
    chosen = (
        group or columns.get("group") or ("group" if "group" in table else "run" if "run" in table else None)
    )
    if chosen is not None and chosen not in table:
        raise MscaleError(f"group column {chosen!r} is not in the table{nearest(chosen, table.columns)}")
    groups = table[chosen].astype(str).to_numpy() if chosen else np.arange(len(table)).astype(str)
    level = np.full(len(table), "") if per is None else table[per].astype(str).to_numpy()
    kept = table[keep]
    return SelectedRows(
        kept,
        {variable: array[keep] for variable, array in values.items()},
        y[keep],
        level[keep],
        groups[keep],
        tuple(notes),
        {**names, law.response: response},
    )


def _from_scratch(table: pd.DataFrame, law: Law, notes: list[str]) -> pd.DataFrame:
    """The rows of runs that do not continue a checkpoint."""
    scratch = from_scratch(table)
    if not scratch.any():
        raise MscaleError(
            f"every run continues a checkpoint (column 'init'); law {law.name!r} describes pretraining from scratch"
        )
    if not scratch.all():
        notes.append(
            f"{(~scratch).sum()} rows of runs continued from a checkpoint left out: {law.name} is a law of pretraining"
        )
    return table[scratch]


def _check_unique_tokens(
    table: pd.DataFrame, values: Mapping[str, np.ndarray], names: Mapping, keep: np.ndarray
) -> None:
    """Raises where tokens were seen but none of them is unique."""
    for variable, unique in values.items():
        seen = values.get("D" + variable[1:]) if variable.startswith("U") else None
        if seen is None:
            continue
        expected = (
            "at least one unique token in a row that saw some: repetition is measured against how many tokens the run "
            "had to draw from; where nothing repeats, as many as it saw"
        )
        refuse_rows(table, keep & (unique <= 0) & (seen > 0), names[variable], expected)


def _note_tokens_per_parameter(
    values: Mapping[str, np.ndarray], names: Mapping, keep: np.ndarray, notes: list[str]
) -> None:
    N, D = values.get("N"), values.get("D", values.get("D_t"))
    if N is None or D is None:
        return
    middle = float(np.exp(np.mean(np.log(D[keep] / N[keep]))))
    if middle < _MIN_TOKENS_PER_PARAMETER:
        notes.append(
            f"runs saw {middle:.2g} tokens a parameter: both are expected as plain counts, so check the unit of "
            f"{names.get('D', names.get('D_t'))!r} and {names['N']!r}"
        )


def _note_unit(array: np.ndarray, name: str, notes: list[str]) -> None:
    """Notes a column whose magnitude suggests tokens in billions or parameters in millions."""
    middle = float(np.exp(np.mean(np.log(array[array > 0])))) if (array > 0).any() else 0.0
    if name in _COUNT_UNITS and 0 < middle < 1e3:
        notes.append(
            f"column {name!r} has a geometric mean of {middle:.3g}: {_COUNT_UNITS[name]} are expected as plain counts, "
            f"not in thousands, millions or billions; A, B and compute are off by that factor if it is another unit"
        )
