"""Predictions of a fit for the rows of another table, with intervals and whether the fitted data cover them."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd

from analysis.estimation import rows
from analysis.estimation.quantities import Derived
from analysis.laws import registry
from analysis.uncertainty.fitted import FittedLaw
from mscale.errors import MscaleError


def predict_rows(
    fit: FittedLaw,
    table: pd.DataFrame | Mapping[str, Any],
    level: float | None,
    exposure: pd.DataFrame | None,
) -> pd.DataFrame:
    """Columns prediction, in_range and (with `level`) low and high; NaN where the law's constraint is violated.

    Raises:
      MscaleError: a column is missing, or a level that was not fitted.
    """
    table = pd.DataFrame(table)
    x, cells = _inputs(fit, table, exposure)
    columns = np.full((len(table), 1 if level is None else 3), np.nan)
    for number in np.unique(cells):
        at = np.flatnonzero(cells == number)
        part = {name: values[at] for name, values in x.items()}
        columns[at, 0] = fit.evaluate(fit.theta[None], number, part)[0]
        if level is not None:
            columns[at, 1:] = _interval(fit, number, part, columns[at, 0], level)
    result = pd.DataFrame(columns, table.index, ["prediction", "low", "high"][: columns.shape[1]])
    result["in_range"] = rows.within_range(x, fit.problem.x)
    return result


def _interval(fit: FittedLaw, cell: int, x: Mapping, estimate: np.ndarray, level: float) -> np.ndarray:
    """(rows, 2): low and high of the predictions at x, given the predictions; identical rows are computed once."""
    ends = np.full((len(estimate), 2), np.nan)
    known = np.flatnonzero(np.isfinite(estimate))
    if len(known):
        stacked = np.stack([values[known] for values in x.values()])
        distinct, inverse = np.unique(stacked, axis=1, return_inverse=True)
        part = dict(zip(x, distinct, strict=True))
        quantity = Derived(cell, fit.law.predict, part, distinct.shape[1])
        _, low, high = fit.ends([quantity], level)
        ends[known] = np.stack([low, high], axis=1)[inverse.ravel()]
    return ends


def _inputs(fit: FittedLaw, table: pd.DataFrame, exposure: pd.DataFrame | None) -> tuple[dict, np.ndarray]:
    """The variables of the law for each row, {name: (n,)}, and the index of the row's level in `fit.levels`, (n,)."""
    law = fit.law
    if law.name == "atlas" and exposure is not None:
        _, table, _ = registry.prepare_law(
            "atlas",
            table,
            exposure=exposure,
            **{key: value for key, value in fit.spec.options.items() if key in ("variant", "sources")},
        )
    elif law.name == "capacity":
        _, table, _ = registry.prepare_law("capacity", table)
    x = {}
    for variable, default in law.columns.items():
        name = fit.columns.get(variable, default)
        name = name if name in table else variable
        if name not in table and variable in law.may_be_zero:
            x[variable] = np.zeros(len(table))
            continue
        name = rows.column_for(table, law, variable, name, {})
        x[variable] = pd.to_numeric(table[name]).to_numpy(float)
    return x, _cells(fit, table)


def _cells(fit: FittedLaw, table: pd.DataFrame) -> np.ndarray:
    """The index of each row's level in `fit.levels`."""
    levels = fit.levels
    if fit.per is None:
        return np.zeros(len(table), int)
    if fit.per not in table:
        if len(levels) == 1:
            return np.zeros(len(table), int)
        raise MscaleError(f"predict: column {fit.per!r} is missing; the fit has {', '.join(levels)}")
    place = {name: number for number, name in enumerate(levels)}
    wanted = table[fit.per].astype(str)
    unknown = sorted(set(wanted) - set(place))
    if unknown:
        raise MscaleError(
            f"predict: {fit.per} {', '.join(unknown)} not in the fit, which has {', '.join(levels)}"
        )
    return wanted.map(place).to_numpy(int)
