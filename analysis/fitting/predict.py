"""What a fit predicts for other rows: reading them, knowing whether the data reach that far, and intervals."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd

from analysis import laws
from analysis.estimation import rows
from analysis.estimation.quantities import Derived
from mscale.errors import MscaleError


def predict(fit: Any, table: Any, level: float | None, exposure: pd.DataFrame | None) -> pd.DataFrame:
    """prediction (and low, high at `level`) and in_range for each row; NaN at the law's constraint."""
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
    result["in_range"] = _in_range(fit, x)
    return result


def _interval(fit: Any, cell: int, x: Mapping, estimate: np.ndarray, level: float) -> np.ndarray:
    """(rows, 2); rows alike are worked out once."""
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


def _in_range(fit: Any, x: Mapping[str, np.ndarray]) -> np.ndarray:
    inside = np.ones(len(next(iter(x.values()))), bool)
    for name, values in x.items():
        seen = fit.problem.x[name]
        inside &= (values >= seen.min() * 0.999) & (values <= seen.max() * 1.001)
    return inside


def _inputs(fit: Any, table: pd.DataFrame, exposure: pd.DataFrame | None) -> tuple[dict, np.ndarray]:
    law = fit.law
    if law.name == "atlas" and exposure is not None:
        _, table, _ = laws.prepare(
            "atlas", table, exposure=exposure, **_only(fit.spec["options"], ("variant", "sources"))
        )
    elif law.name == "capacity":
        _, table, _ = laws.prepare("capacity", table)
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


def _cells(fit: Any, table: pd.DataFrame) -> np.ndarray:
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


def _only(options: Mapping, keys: Sequence[str]) -> dict:
    return {key: options[key] for key in keys if key in options}
