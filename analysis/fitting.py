"""`fit(law, table)`: the global optimum of a law on a table of runs, with what is known about every number.

Given its exponents, a law of the Chinchilla family is linear in the rest. So the few nonlinear parameters are
laid on a grid, the others solved by non-negative least squares, and the best candidates polished together by
Newton's method with exact derivatives (analysis/engine.py).
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Mapping, Sequence
from types import SimpleNamespace
from typing import Any

import numpy as np
import pandas as pd
from scipy.optimize import nnls
from scipy.stats import qmc

from analysis import checks, laws
from analysis.derivatives import Jet
from analysis.engine import Cell, Problem, huber, minimise
from analysis.laws.law import Law, Parameter
from analysis.results import Fit
from mscale.errors import MscaleError, nearest

DELTA = 1e-3
GRID = 6  # points a nonlinear parameter gets when there are few
CANDIDATES = 256  # starts that are evaluated
POLISHED = 12  # of which the best are polished


def fit(
    law: str | Law,
    table: pd.DataFrame | Mapping[str, Any],
    columns: Mapping[str, str] | None = None,
    *,
    exposure: pd.DataFrame | None = None,
    target: str | Sequence[str] | None = None,
    per: str | None = "auto",
    share: Sequence[str] | None = None,
    fixed: Mapping[str, float] | None = None,
    tie: Mapping[str, str] | None = None,
    loss: str = "huber",
    delta: float = DELTA,
    residual: str | None = None,
    weights: str | np.ndarray | None = None,
    priors: Mapping[str, tuple[float, float]] | None = None,
    phases: Sequence[str] | None = ("end",),
    group: str | None = None,
    seed: int = 0,
    **options: Any,
) -> Fit:
    """Fits a law.

    Args:
      law: a name in `analysis.laws.LAWS`, or a `Law` of your own.
      table: observations (DESIGN's contract), or any table with `columns` = {variable: its column}; a mapping of
        NumPy arrays will do. Token and parameter counts are plain counts, losses nats per token.
      exposure: for ATLAS, tokens of every training language (run, step, language, tokens, unique_tokens).
      target: fit these languages' rows only (None: all).
      per: column whose levels have parameters of their own ("auto": the law's own, where the table has several
        levels; None: one curve through all rows).
      share: parameters common to all levels (default: as the law says).
      fixed: {parameter: value in the paper's units}. tie: {parameter: other parameter that it equals}.
      loss: "huber" (threshold `delta` on the residuals, as published) or "squares".
      residual: "log" or "additive", overriding the law's.
      weights: a column or an array of weights, or "loss_se" to weigh by 1/loss_se².
      priors: {parameter: (mean, standard deviation)}, Gaussian, in fitted units (logs for E, A, B contributions).
      phases: schedule phases to compare; only cooled rows ("end") by default.
      group: column of the unit that is resampled (default "group", then "run", then the row).
      options: what the law's own preparation takes (ATLAS: variant, sources, count).

    Raises:
      MscaleError: bad input, or too little of it; the message says what to do.
    """
    table = pd.DataFrame(table)
    law, table, options = laws.prepare(law, table, exposure=exposure, target=target, **options)
    if residual is not None:
        law = dataclasses.replace(law, residual=residual)
    per = _per(law, table, per)
    rows = checks.rows(table, law, columns, phases=phases, per=per, group=group)
    order = np.argsort(rows.level, kind="stable")
    shared = set(law.share if share is None else share) if per else {p.name for p in law.parameters}
    for name in [*shared, *(fixed or {}), *(tie or {}), *(tie or {}).values(), *(priors or {})]:
        names = [parameter.name for parameter in law.parameters]
        if name not in names:
            raise MscaleError(
                f"law {law.name!r} has no parameter {name!r}{nearest(name, names)}; it has {', '.join(names)}"
            )
    notes = list(rows.notes)
    problem, names = build(
        law,
        {variable: values[order] for variable, values in rows.x.items()},
        rows.y[order],
        rows.level[order],
        shared=shared,
        fixed=dict(fixed or {}),
        tie=dict(tie or {}),
        delta=_delta(loss, delta),
        weight=_weights(weights, rows.table.iloc[order]),
        notes=notes,
    )
    groups = rows.group[order]
    _enough(law, problem, names, groups)
    if priors:
        problem = _with_priors(problem, names, priors, seed)
    starts = search(problem, seed)
    best, agreement = polish(problem, starts)
    return Fit.make(
        law=law,
        problem=problem,
        names=tuple(names),
        theta=best,
        groups=groups,
        table=rows.table.iloc[order],
        level=rows.level[order],
        per=per,
        columns=rows.columns,
        notes=tuple(notes),
        agreement=agreement,
        options={**options, "seed": seed},
    )


def _delta(loss: str, delta: float) -> float | None:
    if loss not in ("huber", "squares"):
        raise MscaleError(f"loss={loss!r}: expected 'huber' or 'squares'")
    if not delta > 0:
        raise MscaleError(f"delta={delta!r}: Huber's threshold must be positive")
    return delta if loss == "huber" else None


def _per(law: Law, table: pd.DataFrame, per: str | None) -> str | None:
    if per == "auto":
        per = law.parameters_per
        return per if per in table and table[per].nunique() > 1 or law.name == "atlas" else None
    if per is not None and per not in table:
        raise MscaleError(f"per={per!r}: the table has no such column{nearest(per, table.columns)}")
    return per


def _weights(weights: str | np.ndarray | None, table: pd.DataFrame) -> np.ndarray:
    if weights is None:
        return np.ones(len(table))
    if isinstance(weights, str):
        if weights not in table:
            raise MscaleError(f"weights={weights!r}: no such column{nearest(weights, table.columns)}")
        values = pd.to_numeric(table[weights], errors="coerce").to_numpy(float)
        if weights == "loss_se":
            values = 1.0 / values**2
    else:
        values = np.asarray(weights, float)
        if len(values) != len(table):
            raise MscaleError(
                f"weights: {len(values)} given for {len(table)} usable rows; pass a column instead"
            )
    if not (np.isfinite(values) & (values >= 0)).all() or not values.any():
        raise MscaleError("weights must be finite, not negative and not all zero (loss_se must be positive)")
    return values / values.mean()


def build(
    law: Law,
    x: dict[str, np.ndarray],
    y: np.ndarray,
    level: np.ndarray,
    *,
    shared: set[str],
    fixed: Mapping[str, float],
    tie: Mapping[str, str],
    delta: float | None,
    weight: np.ndarray,
    notes: list[str],
    means: Mapping[str, float] | None = None,
) -> tuple[Problem, list[str]]:
    """The numerical problem, rows sorted by level, and the names of its fitted parameters."""
    place = {parameter.name: index for index, parameter in enumerate(law.parameters)}
    logs = np.array([parameter.log for parameter in law.parameters])
    shift = np.zeros((len(place), len(place)))
    log_means = dict(means or {})
    for parameter in law.parameters:
        for exponent, variable, sign in parameter.reference:
            if variable not in log_means:
                positive = x[variable][x[variable] > 0]
                log_means[variable] = float(np.mean(np.log(positive))) if len(positive) else 0.0
            shift[place[parameter.name], place[exponent]] = -sign * log_means[variable]
    drafts: list[tuple[slice, list[tuple[int, int]], np.ndarray, set[int]]] = []
    names: list[str] = []
    which: list[Parameter] = []
    column: dict[str, int] = {}
    levels, starts = np.unique(level, return_index=True)
    bounds = [*starts, len(level)]
    inactive = _inactive(law, x)
    for number, name in enumerate(levels):
        rows = slice(int(bounds[number]), int(bounds[number + 1]))
        select: list[tuple[int, int]] = []
        offset = np.zeros(len(place))
        pinned: set[int] = set()
        for index, parameter in enumerate(law.parameters):
            source = law.parameter(tie.get(parameter.name, parameter.name))
            if source.name in fixed:
                value = fixed[source.name]
                if source.log and not value > 0:
                    raise MscaleError(f"fixed: {source.name} = {value!r}, expected a positive number")
                offset[index] = np.log(value) if source.log else value
                pinned.add(index)
                continue
            if source.labels is not None and name not in source.labels:
                offset[index] = source.absent
                continue
            if source.name in inactive:
                offset[index] = inactive[source.name]
                continue
            label = source.name.rsplit("_", 1)[0] if source.labels is not None else source.name
            suffix = source.labels[name] if source.labels is not None else str(name)
            full = source.name if source.name in shared or not str(name) else f"{label}[{suffix}]"
            if full not in column:
                column[full] = len(names)
                names.append(full)
                which.append(source)
            select.append((index, column[full]))
        drafts.append((rows, select, offset, pinned))
    cells = []
    for rows, select, offset, pinned in drafts:
        matrix = np.zeros((len(place), len(names)))
        for index, at in select:
            matrix[index, at] = 1.0
        for index in pinned:  # fixed in the paper's units: take the reference out again
            matrix[index] -= shift[index] @ matrix
            offset[index] -= shift[index] @ offset
        cells.append(Cell(rows, matrix, offset))
    lower = np.array([np.log(q.bounds[0]) if q.log else q.bounds[0] for q in which])
    upper = np.array([np.log(q.bounds[1]) if q.log else q.bounds[1] for q in which])
    held = {"parameters": tuple(which), "inactive": tuple(inactive), "log_means": log_means}
    return Problem(law, x, y, weight, tuple(cells), lower, upper, delta, shift, logs, held=held), names


def _inactive(law: Law, x: Mapping[str, np.ndarray]) -> dict[str, float]:
    """Parameters on which no row depends, with the (fitted-scale) value they are held at."""
    probe = np.array([np.mean(np.log(q.start) if q.log else q.start) for q in law.parameters])
    logs = np.array([q.log for q in law.parameters])
    found = {}
    p = SimpleNamespace(
        **{
            q.name: np.exp(Jet.variable(np.array([[probe[i]]]), i, 1))
            if logs[i]
            else Jet.variable(np.array([[probe[i]]]), i, 1)
            for i, q in enumerate(law.parameters)
        }
    )
    with np.errstate(all="ignore"):
        out = law.predict(p, SimpleNamespace(**x))
    for index, parameter in enumerate(law.parameters):
        if not np.any(
            np.broadcast_to(out.grad.get(index, 0.0), (1, 1))[0]
            if np.ndim(out.grad.get(index, 0.0)) == 0
            else out.grad[index]
        ):
            found[parameter.name] = probe[index] if parameter.log else parameter.absent
    return found


def search(problem: Problem, seed: int) -> np.ndarray:
    """Starts (S, P), best first: a grid (few) or a Sobol sequence (many) over the nonlinear parameters, the
    linear ones solved at each point, by least squares on relative errors."""
    which: tuple[Parameter, ...] = problem.held["parameters"]
    nonlinear = [index for index, q in enumerate(which) if not q.linear]
    ranges = np.array([np.log(q.start) if q.log else q.start for q in which])
    middle = ranges.mean(axis=1)
    if len(nonlinear) <= 2:
        axes = [np.linspace(*ranges[index], GRID) for index in nonlinear]
        points = np.array(list(itertools.product(*axes))).reshape(-1, len(nonlinear))
    else:
        unit = qmc.Sobol(len(nonlinear), seed=seed).random(CANDIDATES // 4)
        low, high = ranges[nonlinear].T
        points = low + unit * (high - low)
    theta = np.tile(middle, (len(points), 1))
    theta[:, nonlinear] = points
    theta = np.clip(theta, problem.lower, problem.upper)
    _solve_linear(problem, theta, [index for index, q in enumerate(which) if q.linear])
    value = problem.objective(theta)
    if problem.law.constraint is not None:
        value[(problem.constraint(theta) <= 0).any(axis=1)] = np.inf
    order = np.argsort(np.where(np.isfinite(value), value, np.inf), kind="stable")
    return theta[order[np.isfinite(value[order])]]


def _solve_linear(problem: Problem, theta: np.ndarray, linear: list[int]) -> None:
    """Fills the linear parameters of every start, in place. The prediction is Σ_j c_j·f_j(nonlinear)."""
    if not linear or problem.law.residual not in ("log", "additive"):
        return
    k = len(problem.law.parameters)
    local_linear = [i for i, q in enumerate(problem.law.parameters) if q.linear]
    for b in range(len(theta)):
        design = np.zeros((len(problem.y), len(linear)))
        known = np.zeros(len(problem.y))
        for cell in problem.cells:
            local = problem.locals(theta[b : b + 1], cell)[0]
            x = problem.variables(cell)
            size = cell.rows.stop - cell.rows.start
            for i in local_linear:
                values = local.copy()
                natural = problem.natural(values)
                if problem.logs[i]:
                    values[i] = 0.0
                    natural = problem.natural(values)
                else:
                    natural[i] = 1.0
                for other in local_linear:
                    if other != i:
                        natural[other] = 0.0
                p = SimpleNamespace(**{q.name: natural[j] for j, q in enumerate(problem.law.parameters)})
                column = np.broadcast_to(problem.law.predict(p, x), (size,))
                at = [j for j, index in enumerate(linear) if cell.select[i, index] == 1.0]
                if at:
                    design[cell.rows, at[0]] += column
                else:
                    known[cell.rows] += column * (np.exp(local[i]) if problem.logs[i] else local[i])
        scale = np.sqrt(problem.weight) / (problem.y if problem.law.residual == "log" else 1.0)
        positive = np.array([problem.held["parameters"][index].log for index in linear])
        target = (problem.y - known) * scale
        if positive.all():
            solved, _ = nnls(design * scale[:, None], target, maxiter=100 * k)
            solved = np.maximum(solved, 1e-3 * np.abs(problem.y).mean())
            theta[b, linear] = np.log(solved)
        else:
            solved = np.linalg.lstsq(design * scale[:, None], target, rcond=None)[0]
            solved = np.where(positive, np.maximum(solved, 1e-3 * np.abs(problem.y).mean()), solved)
            theta[b, linear] = np.where(positive, np.log(np.where(positive, solved, 1.0)), solved)
    np.clip(theta, problem.lower, problem.upper, out=theta)


def polish(problem: Problem, starts: np.ndarray) -> tuple[np.ndarray, dict[str, float]]:
    """The best minimum (P,) from the best starts, and how many of them agree on it."""
    if not len(starts):
        raise MscaleError("no start gives finite predictions: check the units of the columns")
    starts = starts[:POLISHED]
    if problem.law.constraint is not None:
        scale = float(np.median(problem.objective(starts))) / len(problem.y)
        problem = dataclasses.replace(problem, barrier=1e-4 * scale)
        starts = minimise(problem, starts, iterations=60, tolerance=1e-6).theta
        problem = dataclasses.replace(problem, barrier=1e-9 * scale)
    found = minimise(problem, starts)
    best = int(np.argmin(found.objective))
    if not np.isfinite(found.objective[best]):
        raise MscaleError("the fit did not find a finite optimum: check the units of the columns")
    low = found.objective[best]
    return found.theta[best], {
        "starts": len(starts),
        "agreeing": int((found.objective <= low * (1 + 1e-6) + 1e-15).sum()),
        "converged": bool(found.converged[best]),
        "barrier": problem.barrier,
    }


def _enough(law: Law, problem: Problem, names: list[str], groups: np.ndarray) -> None:
    for parameter in law.parameters:
        for _, variable, _ in parameter.reference:
            values = problem.x[variable]
            fitted = [
                n for n in names if n.split("[")[0] in {e for e, v, _ in parameter.reference if v == variable}
            ]
            if fitted and np.ptp(values) == 0:
                raise MscaleError(
                    f"variable {variable} has one value only ({values[0]:g}): {', '.join(fitted)} cannot be told from "
                    f"{parameter.name}. Add runs at other values, fix the exponent (fixed={{...}}), or fit law 'power'"
                )
    distinct = len({tuple(row) for row in zip(*problem.x.values(), problem.y, strict=True)})
    if distinct < problem.size:
        raise MscaleError(
            f"{distinct} distinct points for {problem.size} parameters ({', '.join(names[:8])}"
            f"{', …' if len(names) > 8 else ''}): add runs, or share or fix parameters"
        )


def _with_priors(
    problem: Problem, names: list[str], priors: Mapping[str, tuple[float, float]], seed: int
) -> Problem:
    """Priors weigh against residuals in units of their own dispersion, which a first fit without them gives."""
    theta, _ = polish(problem, search(problem, seed))
    r = problem.residuals(theta[None])[0]
    dispersion = float(
        np.sum(problem.weight * huber(r, problem.delta)[1] * r) / max(1, len(r) - problem.size)
    )
    mean, precision = theta.copy(), np.zeros(problem.size)
    for index, name in enumerate(names):
        if name.split("[")[0] in priors or name in priors:
            mean[index], deviation = priors.get(name, priors.get(name.split("[")[0]))  # type: ignore[misc]
            precision[index] = dispersion / deviation**2
    return dataclasses.replace(problem, prior=(mean, precision))
