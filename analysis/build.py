"""From a law and its rows to a numerical problem: which parameter is shared, tied, fixed, and named how."""

import dataclasses
from collections.abc import Mapping
from types import SimpleNamespace
from typing import Any

import numpy as np

from analysis.derivatives import Jet
from analysis.laws.law import Law, Parameter
from analysis.problem import Cell, Problem
from mscale.errors import MscaleError


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


def build(
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
            full = _name(source, name, spec.shared)
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
        cells.append(Cell(rows, matrix[:, keep], offset))
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


def _name(parameter: Parameter, level: str, shared: tuple[str, ...]) -> str | None:
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
    touched = depends(law, x)
    return {q.name: idle(q) for q, rows in zip(law.parameters, touched, strict=True) if not rows.any()}


def idle(parameter: Parameter) -> float:
    """The value in the fitted scale at which a parameter is held that no row depends on."""
    return float(np.mean(np.log(parameter.start))) if parameter.log else parameter.absent


def depends(law: Law, x: Mapping[str, np.ndarray]) -> np.ndarray:
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
