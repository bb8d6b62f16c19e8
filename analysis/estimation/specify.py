"""From what is asked of a fit to a numerical problem: the law made ready, rows checked and sorted, nothing searched."""

import dataclasses
from collections.abc import Mapping, Sequence
from types import SimpleNamespace
from typing import Any

import numpy as np
import pandas as pd

from analysis import laws
from analysis.estimation import rows as checks
from analysis.estimation.autodiff import Jet
from analysis.estimation.problem import ParameterCell, Problem
from analysis.estimation.sufficiency import MIN_GROUPS_FOR_RESAMPLING
from analysis.laws.law import Law, Parameter
from mscale.errors import MscaleError, nearest


@dataclasses.dataclass(frozen=True)
class Spec:
    """What was asked of a fit, as plain data.

    shared: parameters common to all levels. fixed: {parameter, or parameter[level]: value in the paper's units}.
    tie: {parameter: the one it equals}. delta: Huber's threshold, None for least squares.
    """

    shared: tuple[str, ...]
    fixed: Mapping[str, float]
    tie: Mapping[str, str]
    delta: float | None
    residual: str
    options: Mapping[str, Any]


def build_problem(
    law: Law,
    spec: Spec,
    x: Mapping[str, np.ndarray],
    y: np.ndarray,
    level: np.ndarray,
    group: np.ndarray,
    weight: np.ndarray,
    means: Mapping[str, float] | None = None,
) -> tuple[Problem, tuple[str, ...]]:
    """The problem and the names of its fitted parameters; rows sorted by (level, group), all arrays (n,).

    Raises:
      MscaleError: a fixed value outside what the parameter may be.
    """
    place = {parameter.name: index for index, parameter in enumerate(law.parameters)}
    logs = np.array([parameter.log for parameter in law.parameters])
    shift, log_means = _references(law, x, means)
    names: list[str] = []
    which: list[Parameter] = []
    column: dict[str, int] = {}
    drafts = []
    inactive: set[str] = set()
    levels, starts = np.unique(level, return_index=True)
    bounds = [*starts, len(level)]
    for number, name in enumerate(map(str, levels)):
        rows = slice(int(bounds[number]), int(bounds[number + 1]))
        idle = _inactive(law, {variable: values[rows] for variable, values in x.items()})
        select: list[tuple[int, int]] = []
        offset = np.zeros(len(place))
        pinned: list[int] = []
        for index, parameter in enumerate(law.parameters):
            source = law.parameter(spec.tie.get(parameter.name, parameter.name))
            full = _fitted_name(source, name, spec.shared)
            known = spec.fixed.get(full or "", spec.fixed.get(source.name))
            if known is not None:
                offset[index] = _fixed_value(source, known)
                pinned.append(index)
            elif full is None:
                offset[index] = source.absent
            elif source.name in idle and source.name not in spec.shared:
                offset[index] = idle[source.name]
                inactive.add(full)
            else:
                if full not in column:
                    column[full] = len(names)
                    names.append(full)
                    which.append(source)
                select.append((index, column[full]))
        drafts.append((rows, select, offset, pinned))
    everywhere = _inactive(law, x)
    drop = [index for index, q in enumerate(which) if q.name in everywhere]
    inactive |= {names[index] for index in drop}
    keep = [index for index in range(len(names)) if index not in drop]
    cells = []
    for rows, select, offset, pinned in drafts:
        matrix = np.zeros((len(place), len(names)))
        for index, at in select:
            matrix[index, at] = 1.0
            if at in drop:
                offset[index] = everywhere[which[at].name]
        for index in pinned:  # fixed in the paper's units: take the reference out again
            matrix[index] -= shift[index] @ matrix
            offset[index] -= shift[index] @ offset
        cells.append(ParameterCell(rows, matrix[:, keep], offset))
    which = [which[index] for index in keep]
    limits = np.array([q.bounds for q in which], float).reshape(-1, 2)
    logged = np.array([q.log for q in which], bool)
    limits[logged] = np.log(limits[logged])
    problem = Problem(
        law=law,
        x=dict(x),
        y=y,
        weight=weight,
        cells=tuple(cells),
        lower=limits[:, 0],
        upper=limits[:, 1],
        delta=spec.delta,
        group=group,
        shift=shift,
        logs=logs,
        exponential=np.array([q.log and q.linear for q in which], bool),
        held={"parameters": tuple(which), "inactive": tuple(sorted(inactive)), "log_means": log_means},
    )
    return problem, tuple(names[index] for index in keep)


def _fitted_name(parameter: Parameter, level: str, shared: tuple[str, ...]) -> str | None:
    """The fitted parameter's name at a level, or None where it does not exist there."""
    if parameter.labels is not None:
        if level not in parameter.labels:
            return None
        return f"{parameter.name.rsplit('_', 1)[0]}[{parameter.labels[level]}]"
    return parameter.name if parameter.name in shared or not level else f"{parameter.name}[{level}]"


def _fixed_value(parameter: Parameter, value: float) -> float:
    low, high = parameter.bounds
    if not (low <= value if parameter.log else np.isfinite(value)) or (parameter.log and value <= 0):
        raise MscaleError(
            f"fixed: {parameter.name} = {value!r}, expected a number between {low:g} and {high:g}"
        )
    return float(np.log(value)) if parameter.log else float(value)


def _references(
    law: Law, x: Mapping[str, np.ndarray], means: Mapping[str, float] | None
) -> tuple[np.ndarray, dict[str, float]]:
    place = {parameter.name: index for index, parameter in enumerate(law.parameters)}
    shift = np.zeros((len(place), len(place)))
    log_means = dict(means or {})
    for parameter in law.parameters:
        for exponent, variable, sign in parameter.reference:
            if variable not in log_means:
                positive = x[variable][x[variable] > 0]
                log_means[variable] = float(np.mean(np.log(positive))) if len(positive) else 0.0
            shift[place[parameter.name], place[exponent]] = -sign * log_means[variable]
    return shift, log_means


def _inactive(law: Law, x: Mapping[str, np.ndarray]) -> dict[str, float]:
    """Parameters on which none of the rows depends, with the (fitted-scale) value they are held at."""
    touched = row_dependence(law, x)
    return {q.name: inactive_value(q) for q, rows in zip(law.parameters, touched, strict=True) if not rows.any()}


def inactive_value(parameter: Parameter) -> float:
    """The value in the fitted scale at which a parameter is held that no row depends on."""
    return float(np.mean(np.log(parameter.start))) if parameter.log else parameter.absent


def row_dependence(law: Law, x: Mapping[str, np.ndarray]) -> np.ndarray:
    """(k, n) bool: whether the prediction of a row changes with a parameter of the law."""
    probe = [np.mean(np.log(q.start)) if q.log else np.mean(q.start) for q in law.parameters]
    parts = [Jet.variable(np.array([[value]]), index, 1) for index, value in enumerate(probe)]
    p = SimpleNamespace(
        **{q.name: np.exp(part) if q.log else part for q, part in zip(law.parameters, parts, strict=True)}
    )
    with np.errstate(all="ignore"):
        out = law.predict(p, SimpleNamespace(**x))
    slopes = out.grad if isinstance(out, Jet) else {}
    found = np.zeros((len(parts), len(next(iter(x.values())))), bool)
    for index, slope in slopes.items():
        found[index] = np.not_equal(slope, 0.0)
    return found


HUBER_DELTA = 1e-3
_WEIGHT_COLUMN = "__weight__"


@dataclasses.dataclass(frozen=True)
class Specification:
    """A law over the rows that it is to be fitted to.

    problem: over rows sorted by level and group; names: of its parameters. rows: as they were chosen and checked, of
    which the problem's are rows.table.iloc[order]. group_names: of problem.group.
    """

    law: Law
    problem: Problem
    names: tuple[str, ...]
    rows: checks.SelectedRows
    order: np.ndarray
    group_names: tuple[str, ...]
    per: str | None
    spec: Spec


def specify(
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
    delta: float = HUBER_DELTA,
    residual: str | None = None,
    weights: str | Sequence[float] | None = None,
    priors: Mapping[str, tuple[float, float]] | None = None,
    phases: Sequence[str] | None = ("end",),
    group: str | None = None,
    **options: Any,
) -> Specification:
    """What `analysis.fit`, whose arguments these are, searches the optimum of."""
    table = _with_weights(as_table(table), weights)
    law, table, options = laws.prepare(law, table, exposure=exposure, target=target, **options)
    if residual is not None:
        if residual not in ("log", "additive"):
            raise MscaleError(f"residual={residual!r}: expected 'log' or 'additive'")
        law = with_residual(law, residual)
    per = _level_column(law, table, per)
    _check_parameter_names(law, share or (), fixed or {}, tie or {}, priors or {})
    rows = checks.select_rows(table, law, columns, phases=phases, per=per, group=group)
    group_names, codes = np.unique(rows.group, return_inverse=True)
    order = np.lexsort((codes, rows.level))
    everything = tuple(parameter.name for parameter in law.parameters)
    spec = Spec(
        shared=everything if per is None else tuple(law.share if share is None else share),
        fixed=dict(fixed or {}),
        tie=dict(tie or {}),
        delta=huber_threshold(loss, delta, codes),
        residual=law.residual,
        options=options,
    )
    problem, names = build_problem(
        law,
        spec,
        {variable: values[order] for variable, values in rows.x.items()},
        rows.y[order],
        rows.level[order],
        codes[order],
        _weights(rows.table)[order],
    )
    return Specification(law, problem, names, rows, order, tuple(map(str, group_names)), per, spec)


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


def _with_weights(frame: pd.DataFrame, weights: str | Sequence[float] | None) -> pd.DataFrame:
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
    return frame.assign(**{_WEIGHT_COLUMN: values})


def _weights(table: pd.DataFrame) -> np.ndarray:
    if _WEIGHT_COLUMN not in table:
        return np.ones(len(table))
    values = table[_WEIGHT_COLUMN].to_numpy(float)
    if not (np.isfinite(values) & (values > 0)).all():
        raise MscaleError(
            "weights must be finite and positive (and loss_se positive): drop or mend those rows"
        )
    return values / values.mean()


def huber_threshold(loss: str, delta: float, codes: np.ndarray) -> float | None:
    """Huber's threshold for rows of these groups, None for least squares."""
    if loss not in ("auto", "huber", "squares"):
        raise MscaleError(f"loss={loss!r}: expected 'auto', 'huber' or 'squares'")
    if not delta > 0:
        raise MscaleError(f"delta={delta!r}: Huber's threshold must be positive")
    if loss == "auto":
        alone = len(np.unique(codes)) == len(codes)
        loss = "huber" if alone and len(codes) >= MIN_GROUPS_FOR_RESAMPLING else "squares"
    return delta if loss == "huber" else None


def _level_column(law: Law, table: pd.DataFrame, per: str | None) -> str | None:
    if per == "auto":
        per = law.parameters_per
        if per is None or per not in table:
            return None
        return per if table[per].nunique() > 1 or law.name == "atlas" else None
    if per is not None and per not in table:
        raise MscaleError(f"per={per!r}: the table has no such column{nearest(per, table.columns)}")
    return per


def _check_parameter_names(law: Law, *wanted: Any) -> None:
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
