"""From a law, a table and the arguments of `analysis.fit` to a numerical problem.

The law is prepared for the table, rows are selected, checked and sorted, and parameters are laid out. Nothing is
fitted yet.
"""

import dataclasses
import itertools
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd

from analysis.estimation import rows as checks
from analysis.estimation.problem import ParameterCell, Problem
from analysis.estimation.sufficiency import MIN_GROUPS_FOR_RESAMPLING
from analysis.laws import registry
from analysis.laws.law import Law, Parameter
from mscale.errors import MscaleError, nearest


@dataclasses.dataclass(frozen=True)
class Spec:
    """The model of a fit, as plain data: it is written to JSON files with the fit.

    shared: parameters common to all levels. fixed: {parameter, or parameter[level]: value in the paper's units}.
    tie: {parameter: the one it equals}. delta: Huber's threshold, None for least squares. options: the law's own.
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
) -> Problem:
    """The problem; rows sorted by (level, group), all arrays (n,).

    Raises:
      MscaleError: a fixed value outside what the parameter may be.
    """
    shift, log_means = _references(law, x, means)
    cells, names, parameters = _cells(law, spec, shift, level)
    limits = np.array([q.bounds for q in parameters], float).reshape(-1, 2)
    logged = np.array([q.log for q in parameters], bool)
    limits[logged] = np.log(limits[logged])
    problem = Problem(
        law=law,
        x=dict(x),
        y=y,
        weight=weight,
        cells=cells,
        lower=limits[:, 0],
        upper=limits[:, 1],
        delta=spec.delta,
        group=group,
        shift=shift,
        logs=np.array([parameter.log for parameter in law.parameters]),
        names=names,
        fitted_parameters=parameters,
        log_means=log_means,
    )
    active = active_parameters(problem)
    inactive = tuple(sorted(itertools.compress(names, ~active)))
    return dataclasses.replace(problem.hold(active, inactive_values(problem)), inactive=inactive)


def _cells(
    law: Law, spec: Spec, shift: np.ndarray, level: np.ndarray
) -> tuple[tuple[ParameterCell, ...], tuple[str, ...], tuple[Parameter, ...]]:
    """The cells, one for each level; names and parameters that may be fitted."""
    column: dict[str, int] = {}  # of each fitted name
    parameters: list[Parameter] = []
    levels, starts = np.unique(level, return_index=True)
    offset = np.zeros((len(levels), len(law.parameters)))
    fitted, fixed = [], []
    for number, name in enumerate(map(str, levels)):
        for index, parameter in enumerate(law.parameters):
            source = law.parameter(spec.tie.get(parameter.name, parameter.name))
            full = _fitted_name(source, name, spec.shared)
            known = spec.fixed.get(full or "", spec.fixed.get(source.name))
            if known is not None:
                offset[number, index] = _fixed_value(source, known)
                fixed.append((number, index))
            elif full is None:
                offset[number, index] = source.absent
            else:
                if full not in column:
                    column[full] = len(column)
                    parameters.append(source)
                fitted.append((number, index, column[full]))
    selection = np.zeros((*offset.shape, len(column)))
    for at in fitted:
        selection[at] = 1.0
    # Fixed values are in the paper's units, so the shift to the reference point does not apply to them.
    for number, index in fixed:
        selection[number, index] -= shift[index] @ selection[number]
        offset[number, index] -= shift[index] @ offset[number]
    rows = [slice(int(a), int(b)) for a, b in itertools.pairwise([*starts, len(level)])]
    cells = tuple(map(ParameterCell, rows, selection, offset))
    return cells, tuple(column), tuple(parameters)


def _fitted_name(parameter: Parameter, level: str, shared: tuple[str, ...]) -> str | None:
    """The fitted parameter's name at a level, or None where it does not exist there."""
    if parameter.labels is not None:
        if level not in parameter.labels:
            return None
        return f"{parameter.name.rsplit('_', 1)[0]}[{parameter.labels[level]}]"
    return parameter.name if parameter.name in shared or not level else f"{parameter.name}[{level}]"


def _fixed_value(parameter: Parameter, value: float) -> float:
    """A value in the paper's units, in the fitted scale."""
    low, high = parameter.bounds
    if not (low <= value if parameter.log else np.isfinite(value)) or (parameter.log and value <= 0):
        raise MscaleError(
            f"fixed: {parameter.name} = {value!r}, expected a number between {low:g} and {high:g}"
        )
    return float(np.log(value)) if parameter.log else float(value)


def _references(
    law: Law, x: Mapping[str, np.ndarray], means: Mapping[str, float] | None
) -> tuple[np.ndarray, dict[str, float]]:
    """`Problem.shift` (k, k) and `Problem.log_means`: A/N^α is fitted as its value at the geometric mean of N."""
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


def active_parameters(problem: Problem) -> np.ndarray:
    """(P,) bool: the parameters on which the prediction of some row depends.

    It is tried for the law's constants (A, not its contribution at the geometric means), in the middle of their starts.
    """
    middle = {q.name: np.mean(np.log(q.start)) if q.log else np.mean(q.start) for q in problem.law.parameters}
    constants = np.array([*middle.values()])
    contributions = dict(zip(middle, constants - problem.shift @ constants, strict=True))
    theta = np.array([[contributions[q.name] for q in problem.fitted_parameters]])
    slopes = problem.slopes(theta)[1][0]
    depends = slopes - problem.shift.T @ slopes != 0
    found = [depends[:, cell.rows].any(axis=1) @ (cell.selection != 0) for cell in problem.cells]
    return np.any(found, axis=0)


def inactive_values(problem: Problem) -> np.ndarray:
    """(P,): the values, in the fitted scale, at which parameters are held on which no row depends."""
    return np.array([np.mean(np.log(q.start)) if q.log else q.absent for q in problem.fitted_parameters])


HUBER_DELTA = 1e-3  # Huber's threshold on log residuals, as published (Hoffmann et al. 2022)
_WEIGHT_COLUMN = "__weight__"


@dataclasses.dataclass(frozen=True)
class FitOptions:
    """The arguments of `analysis.fit`, which describes them. of_law: those of the law, such as ATLAS's variant."""

    columns: Mapping[str, str] | None = None
    exposure: pd.DataFrame | None = None
    target: str | Sequence[str] | None = None
    per: str | None = "auto"
    share: Sequence[str] | None = None
    fixed: Mapping[str, float] | None = None
    tie: Mapping[str, str] | None = None
    loss: str = "auto"
    delta: float = HUBER_DELTA
    residual: str | None = None
    weights: str | Sequence[float] | None = None
    priors: Mapping[str, tuple[float, float]] | None = None
    phases: Sequence[str] | None = ("end",)
    split: str | None = None
    group: str | None = None
    few_groups: bool = False
    seed: int = 0
    of_law: Mapping[str, Any] = dataclasses.field(default_factory=dict)

    @classmethod
    def of(cls, **arguments: Any) -> "FitOptions":
        """From keyword arguments as `analysis.fit` takes them: what is no field belongs to the law."""
        names = {one.name for one in dataclasses.fields(cls)}
        of_law = {name: value for name, value in arguments.items() if name not in names}
        return cls(**{name: arguments[name] for name in arguments if name in names}, of_law=of_law)


DEFAULT_OPTIONS = FitOptions()


@dataclasses.dataclass(frozen=True)
class Specification:
    """The problem of a law on the rows of a table, before the fit.

    rows: as they were selected and checked; the problem has them sorted by level
    and group, as rows.table.iloc[order]. group_names: of problem.group. per: column whose levels have parameters of
    their own, None for one curve through all rows.
    """

    problem: Problem
    rows: checks.SelectedRows
    order: np.ndarray
    group_names: tuple[str, ...]
    per: str | None
    spec: Spec


def specify(
    law: str | Law, table: pd.DataFrame | Mapping[str, Any], options: FitOptions = DEFAULT_OPTIONS
) -> Specification:
    """The problem whose optimum `analysis.fit` searches.

    Raises:
      MscaleError: a wrong argument, or rows that the law cannot be fitted to.
    """
    table = _with_weights(as_table(table), options.weights)
    law, table, of_law = registry.prepare_law(
        law, table, exposure=options.exposure, target=options.target, **options.of_law
    )
    if options.residual is not None:
        if options.residual not in ("log", "additive"):
            raise MscaleError(f"residual={options.residual!r}: expected 'log' or 'additive'")
        law = with_residual(law, options.residual)
    per = _level_column(law, table, options.per)
    share, fixed, tie = options.share, options.fixed or {}, options.tie or {}
    _check_parameter_names(law, [*(share or ()), *fixed, *tie, *tie.values(), *(options.priors or {})])
    rows = checks.select_rows(
        table,
        law,
        options.columns,
        phases=options.phases,
        split=options.split,
        per=per,
        group=options.group,
    )
    group_names, codes = np.unique(rows.group, return_inverse=True)
    order = np.lexsort((codes, rows.level))
    everything = tuple(parameter.name for parameter in law.parameters)
    spec = Spec(
        shared=everything if per is None else tuple(law.share if share is None else share),
        fixed=dict(fixed),
        tie=dict(tie),
        delta=huber_threshold(options.loss, options.delta, codes),
        residual=law.residual,
        options=of_law,
    )
    problem = build_problem(
        law,
        spec,
        {variable: values[order] for variable, values in rows.x.items()},
        rows.y[order],
        rows.level[order],
        codes[order],
        _weights(rows.table)[order],
    )
    return Specification(problem, rows, order, tuple(map(str, group_names)), per, spec)


def with_residual(law: Law, residual: str) -> Law:
    """The law fitted to "log" or "additive" residuals. Additive ones allow losses below 0, so E may be negative."""
    if residual == law.residual:
        return law
    free = [
        dataclasses.replace(q, bounds=(-q.bounds[1], q.bounds[1])) if q.linear and q.bounds[0] == 0 else q
        for q in law.parameters
    ]
    return dataclasses.replace(
        law, residual=residual, parameters=tuple(free) if residual == "additive" else law.parameters
    )


def as_table(table: pd.DataFrame | Mapping[str, Any]) -> pd.DataFrame:
    """The table as a DataFrame; raises MscaleError where it cannot be one."""
    try:
        return table if isinstance(table, pd.DataFrame) else pd.DataFrame(table)
    except ValueError as error:
        raise MscaleError(f"table: {error}; expected a DataFrame or arrays of one length") from error


def _with_weights(frame: pd.DataFrame, weights: str | Sequence[float] | None) -> pd.DataFrame:
    """The table with a column of weights, for `_weights`; unchanged without weights."""
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
    """(n,) with mean 1."""
    if _WEIGHT_COLUMN not in table:
        return np.ones(len(table))
    values = table[_WEIGHT_COLUMN].to_numpy(float)
    if not (np.isfinite(values) & (values > 0)).all():
        raise MscaleError(
            "weights must be finite and positive (and loss_se positive): drop or mend those rows"
        )
    return values / values.mean()


def huber_threshold(loss: str, delta: float, codes: np.ndarray) -> float | None:
    """Huber's threshold for rows of groups codes (n,), None for least squares.

    loss "auto" is Huber's where every row is a group of its own and there are enough of them to resample.
    """
    if loss not in ("auto", "huber", "squares"):
        raise MscaleError(f"loss={loss!r}: expected 'auto', 'huber' or 'squares'")
    if not delta > 0:
        raise MscaleError(f"delta={delta!r}: Huber's threshold must be positive")
    if loss == "auto":
        independent = len(np.unique(codes)) == len(codes)
        loss = "huber" if independent and len(codes) >= MIN_GROUPS_FOR_RESAMPLING else "squares"
    return delta if loss == "huber" else None


def _level_column(law: Law, table: pd.DataFrame, per: str | None) -> str | None:
    """The column whose levels have parameters of their own, None for no such column."""
    if per == "auto":
        per = law.parameters_per
        if per is None or per not in table:
            return None
        return per if table[per].nunique() > 1 or law.name == "atlas" else None
    if per is not None and per not in table:
        raise MscaleError(f"per={per!r}: the table has no such column{nearest(per, table.columns)}")
    return per


def _check_parameter_names(law: Law, given: Sequence[str]) -> None:
    """Raises MscaleError where one of the names given is not that of a parameter of the law."""
    names = [parameter.name for parameter in law.parameters]
    for name in given:
        base = name.split("[")[0]
        if base not in names and not any(n.startswith(f"{base}_") for n in names):
            raise MscaleError(
                f"law {law.name!r} has no parameter {name!r}{nearest(name, names)}; it has {', '.join(names)}"
            )
