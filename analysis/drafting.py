"""From what is asked of a fit to a numerical problem: the law made ready, rows checked and sorted, nothing searched."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd

from analysis import checks, laws
from analysis.build import Spec, build
from analysis.laws.law import Law
from analysis.problem import Problem
from analysis.sufficiency import MANY
from mscale.errors import MscaleError, nearest

DELTA = 1e-3
WEIGHT = "__weight__"


@dataclasses.dataclass(frozen=True)
class Draft:
    """A law over the rows that it is to be fitted to.

    problem: over rows sorted by level and group; names: of its parameters. rows: as they were chosen and checked, of
    which the problem's are rows.table.iloc[order]. group_names: of problem.group.
    """

    law: Law
    problem: Problem
    names: tuple[str, ...]
    rows: checks.Rows
    order: np.ndarray
    group_names: tuple[str, ...]
    per: str | None
    spec: Spec


def draft(
    law: str | Law,
    table: Any,
    columns: Mapping[str, str] | None = None,
    *,
    exposure: pd.DataFrame | None = None,
    target: str | Sequence[str] | None = None,
    per: str | None = "auto",
    share: Sequence[str] | None = None,
    fixed: Mapping[str, float] | None = None,
    tie: Mapping[str, str] | None = None,
    loss: str = "auto",
    delta: float = DELTA,
    residual: str | None = None,
    weights: str | Sequence[float] | None = None,
    priors: Mapping[str, tuple[float, float]] | None = None,
    phases: Sequence[str] | None = ("end",),
    group: str | None = None,
    **options: Any,
) -> Draft:
    """What `analysis.fit`, whose arguments these are, searches the optimum of."""
    table = _weighed(as_table(table), weights)
    law, table, options = laws.prepare(law, table, exposure=exposure, target=target, **options)
    if residual is not None:
        if residual not in ("log", "additive"):
            raise MscaleError(f"residual={residual!r}: expected 'log' or 'additive'")
        law = with_residual(law, residual)
    per = _per(law, table, per)
    _known(law, share or (), fixed or {}, tie or {}, priors or {})
    rows = checks.rows(table, law, columns, phases=phases, per=per, group=group)
    group_names, codes = np.unique(rows.group, return_inverse=True)
    order = np.lexsort((codes, rows.level))
    everything = tuple(parameter.name for parameter in law.parameters)
    spec = Spec(
        shared=everything if per is None else tuple(law.share if share is None else share),
        fixed=dict(fixed or {}),
        tie=dict(tie or {}),
        delta=threshold(loss, delta, codes),
        residual=law.residual,
        options=options,
    )
    problem, names = build(
        law,
        spec,
        {variable: values[order] for variable, values in rows.x.items()},
        rows.y[order],
        rows.level[order],
        codes[order],
        _weights(rows.table)[order],
    )
    return Draft(law, problem, names, rows, order, tuple(map(str, group_names)), per, spec)


def with_residual(law: Law, residual: str) -> Law:
    """The law fitted to "log" or "additive" residuals; additive ones may be of losses below 0, so E is free."""
    if residual == law.residual:
        return law
    free = [
        dataclasses.replace(q, bounds=(-q.bounds[1], q.bounds[1])) if q.linear and q.bounds[0] == 0 else q
        for q in law.parameters
    ]
    return dataclasses.replace(
        law, residual=residual, parameters=tuple(free) if residual == "additive" else law.parameters
    )


def as_table(table: Any) -> pd.DataFrame:
    """The table as a DataFrame; raises MscaleError where it cannot be one."""
    try:
        return table if isinstance(table, pd.DataFrame) else pd.DataFrame(table)
    except ValueError as error:
        raise MscaleError(f"table: {error}; expected a DataFrame or arrays of one length") from error


def _weighed(frame: pd.DataFrame, weights: str | Sequence[float] | None) -> pd.DataFrame:
    if weights is None:
        return frame
    if isinstance(weights, str):
        if weights not in frame:
            raise MscaleError(f"weights={weights!r}: no such column{nearest(weights, frame.columns)}")
        values = pd.to_numeric(frame[weights], errors="coerce").to_numpy(float)
        if weights == "loss_se":
            with np.errstate(divide="ignore"):
                values = 1.0 / values**2
    else:
        values = np.asarray(weights, float)
        if len(values) != len(frame):
            raise MscaleError(f"weights: {len(values)} given for {len(frame)} rows")
    return frame.assign(**{WEIGHT: values})


def _weights(table: pd.DataFrame) -> np.ndarray:
    if WEIGHT not in table:
        return np.ones(len(table))
    values = table[WEIGHT].to_numpy(float)
    if not (np.isfinite(values) & (values > 0)).all():
        raise MscaleError(
            "weights must be finite and positive (and loss_se positive): drop or mend those rows"
        )
    return values / values.mean()


def threshold(loss: str, delta: float, codes: np.ndarray) -> float | None:
    """Huber's threshold for rows of these groups, None for least squares."""
    if loss not in ("auto", "huber", "squares"):
        raise MscaleError(f"loss={loss!r}: expected 'auto', 'huber' or 'squares'")
    if not delta > 0:
        raise MscaleError(f"delta={delta!r}: Huber's threshold must be positive")
    if loss == "auto":
        alone = len(np.unique(codes)) == len(codes)
        loss = "huber" if alone and len(codes) >= MANY else "squares"
    return delta if loss == "huber" else None


def _per(law: Law, table: pd.DataFrame, per: str | None) -> str | None:
    if per == "auto":
        per = law.parameters_per
        if per is None or per not in table:
            return None
        return per if table[per].nunique() > 1 or law.name == "atlas" else None
    if per is not None and per not in table:
        raise MscaleError(f"per={per!r}: the table has no such column{nearest(per, table.columns)}")
    return per


def _known(law: Law, *wanted: Any) -> None:
    names = [parameter.name for parameter in law.parameters]
    for given in wanted:
        values = (
            [value for value in given.values() if isinstance(value, str)]
            if isinstance(given, Mapping)
            else []
        )
        for name in [*given, *values]:
            if name.split("[")[0] not in names and not any(
                n.startswith(f"{name.split('[')[0]}_") for n in names
            ):
                raise MscaleError(
                    f"law {law.name!r} has no parameter {name!r}{nearest(name, names)}; it has {', '.join(names)}"
                )
