"""`fit(law, table)`: the global optimum of a law on a table of runs, with what is known about every number.

Given its exponents, a law of the Chinchilla family is linear in the rest. So the few nonlinear parameters are
laid on a grid, the others solved by non-negative least squares, and the best candidates polished together by
Newton's method with exact derivatives (search.py, engine.py).
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd

from analysis import checks, laws, search, uncertainty
from analysis.build import Spec, build
from analysis.engine import minimise
from analysis.laws.law import Law
from analysis.losses import huber
from analysis.problem import Problem
from analysis.results import FORMAT, Fit
from analysis.sufficiency import MANY, enough, few_groups_note, remarks
from mscale.errors import MscaleError, nearest

DELTA = 1e-3


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
    loss: str = "auto",
    delta: float = DELTA,
    residual: str | None = None,
    weights: str | Sequence[float] | None = None,
    priors: Mapping[str, tuple[float, float]] | None = None,
    phases: Sequence[str] | None = ("end",),
    group: str | None = None,
    few_groups: bool = False,
    near: Fit | None = None,
    seed: int = 0,
    **options: Any,
) -> Fit:
    """Fits a law.

    Args:
      law: a name in `analysis.laws.NAMES`, or a `Law` of your own.
      table: observations (DESIGN's contract), or any table with `columns` = {variable: its column}; a mapping
        of NumPy arrays will do. Token and parameter counts are plain counts.
      exposure: for ATLAS, tokens of every training language (run, step, language, tokens, unique_tokens).
      target: fit these languages' rows only (None: all).
      per: column whose levels have parameters of their own ("auto": the law's own, where the table has several
        levels; None: one curve through all rows).
      share: parameters common to all levels (default: as the law says).
      fixed: {parameter, or parameter[level]: value in the paper's units}.
      tie: {parameter: other parameter that it equals}.
      loss: "huber" (threshold `delta` on the residuals, the published objective; intervals by resampling
        groups), "squares" (noise shared within groups modelled; profile intervals), or "auto": huber where
        every row is its own group and there are at least 40, else squares.
      residual: "log" or "additive", overriding the law's.
      weights: a column or an array of weights, or "loss_se" to weigh by 1/loss_se².
      priors: {parameter: (mean, standard deviation)}, Gaussian, in the fitted scale (logarithms for positive
        parameters, contributions at the geometric means for A and B).
      phases: schedule phases to compare; only cooled rows ("end") by default; None takes all.
      group: column of the unit that is resampled (default "group", then "run", then the row).
      near: a fit of the law to these rows and more, asked for alike, from whose optimum and noise this one is searched:
        for refits, such as those of held-out folds, in a tenth of the time.
      few_groups: fit even with fewer groups than parameters + 3 (intervals are then worth little).
      options: what the law's own preparation takes (ATLAS: variant, sources, count). Of the data-constrained law,
        two_stage=True fits as Muennighoff et al. did (`_in_two_stages`).

    Raises:
      MscaleError: bad input, or too little of it; the message says what to do.
    """
    if law == "data_constrained" and options.pop("two_stage", False):
        how: dict[str, Any] = dict(
            exposure=exposure,
            target=target,
            per=per,
            share=share,
            tie=tie,
            loss=loss,
            delta=delta,
            residual=residual,
            weights=weights,
            priors=priors,
            phases=phases,
            group=group,
            few_groups=few_groups,
            seed=seed,
        )
        return _in_two_stages(_table(table, None), columns, fixed or {}, how)
    table = _table(table, weights)
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
        delta=_delta(loss, delta, codes),
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
    enough(law, problem, names, len(group_names), few_groups)
    known: dict[str, Any] = {}
    if near is not None and set(names) <= set(near.names):
        problem, theta = _again(problem, names, near, priors)
        agreement = {"starts": 1, "agreeing": 1, "converged": True}
    else:
        if priors:
            known["alone"] = search.optima(problem, seed, polished=search.FINAL).theta[0]
            problem = _with_priors(problem, names, priors, known["alone"])
        found = search.optima(problem, seed)
        problem, theta = found.problem, found.theta[0]
        agreement = {
            "starts": found.starts,
            "agreeing": int(found.agreeing[0]),
            "converged": bool(found.converged[0]),
        }
        if spec.delta is None:
            noise = known["noise"] = _noise(problem, found.theta, seed)
            problem = dataclasses.replace(problem, ratio=float(noise.ratio[noise.best[0]]))
            theta = noise.at_best(noise.theta)[0]
    return Fit(
        law=law,
        problem=problem,
        names=names,
        theta=theta,
        group_names=tuple(map(str, group_names)),
        level=rows.level[order],
        per=per,
        columns=rows.columns,
        notes=(*rows.notes, *remarks(agreement, problem, theta), *few_groups_note(problem, len(group_names))),
        agreement=agreement,
        spec=dataclasses.asdict(spec),
        _cache=known,
    )


def _noise(problem: Problem, theta: np.ndarray, seed: int) -> uncertainty.Noise:
    """The noise at the optimum theta (1, P), or at a better one: groups that share much may favour another."""
    noise = uncertainty.noise(problem, theta)
    given = dataclasses.replace(problem, ratio=float(noise.ratio[noise.best[0]]))
    if given.ratio == 0.0:
        return noise
    other = search.optima(given, seed, polished=search.FINAL).theta
    here, there = given.system(np.concatenate([noise.at_best(noise.theta), other]), given.members(), False)[0]
    return uncertainty.noise(problem, other) if there < here - 1e-6 * abs(here) else noise


def _again(
    problem: Problem, names: tuple[str, ...], near: Fit, priors: Mapping[str, tuple[float, float]] | None
) -> tuple[Problem, np.ndarray]:
    """The problem with its priors and noise, and its optimum (P,), all searched from those of a fit nearby."""
    at = [near.names.index(name) for name in names]
    theta = near.theta[at]
    problem = dataclasses.replace(problem, barrier=near.problem.barrier)
    if priors:
        alone = near._cache.get("alone", near.theta)[at]  # the optimum without priors
        problem = _with_priors(
            problem, names, priors, minimise(problem, alone[None], tolerance=1e-5).theta[0]
        )
    if problem.delta is not None:
        return problem, minimise(problem, theta[None]).theta[0]
    ratio, theta = uncertainty.nearby(problem, theta, near.problem)
    return dataclasses.replace(problem, ratio=ratio), theta


def _in_two_stages(
    table: pd.DataFrame, columns: Mapping[str, str] | None, fixed: Mapping[str, float], how: dict[str, Any]
) -> Fit:
    """Chinchilla's parameters from the runs that repeat nothing, then R_D* and R_N* from all, the others held.

    As the law was published (Muennighoff et al. 2023, section 5). The intervals of the two take the rest as known,
    so they are narrower than those of the joint fit, which is the default.
    """
    law = laws.LAWS["data_constrained"]
    names = {
        v: checks.column_for(table, law, v, default, columns or {}) for v, default in law.columns.items()
    }
    D, U = (pd.to_numeric(table[names[v]], errors="coerce") for v in ("D", "U"))
    once = (D <= U).to_numpy()
    if not once.any() or once.all():
        raise MscaleError(
            f"two_stage=True: {once.sum()} of {len(table)} rows see their data once ({names['D']} <= {names['U']}); "
            f"the first stage needs such rows and the second others: add runs, or fit jointly"
        )
    plain = {key: name for key, name in (columns or {}).items() if key != "U"}
    share = how["share"]
    first_share = [name for name in (law.share if share is None else share) if name not in ("R_D", "R_N")]
    weights = how["weights"]
    first = fit(
        "chinchilla",
        table[once],
        {**plain, "N": names["N"], "D": names["D"]},
        fixed=fixed,
        **{
            **how,
            "share": first_share,
            "weights": weights if weights is None or isinstance(weights, str) else np.asarray(weights)[once],
        },
    )
    held = {name: float(first.params[name]) for name in first.names}
    second = fit("data_constrained", table, columns, fixed={**held, **fixed}, **how)
    known = ", ".join(f"{name} {value:.4g}" for name, value in held.items())
    note = f"two stages: {known} are those of {once.sum()} rows without repetition, and held"
    return dataclasses.replace(second, notes=(note, *second.notes))


def from_json(text: str, law: Law | None = None) -> Fit:
    """The fit that `Fit.to_json` wrote. A law of your own has to be given again.

    Raises:
      MscaleError: not such a file, or an unknown law.
    """
    try:
        saved = json.loads(text)
        version = saved["format"]
    except (json.JSONDecodeError, KeyError, TypeError) as error:
        raise MscaleError(f"not a saved fit ({error!r}); expected what Fit.to_json wrote") from error
    if version != FORMAT:
        raise MscaleError(f"this fit has format {version}, this version of mscale reads {FORMAT}: fit again")
    spec = Spec(**saved["spec"])
    law = laws.rebuild(saved["law"], spec.options) if law is None else law
    law = with_residual(law, spec.residual)
    data = saved["data"]
    problem, names = build(
        law,
        dataclasses.replace(spec, shared=tuple(spec.shared)),
        {name: np.array(values, float) for name, values in data["x"].items()},
        np.array(data["y"], float),
        np.array(data["level"], str),
        np.array(data["group"], int),
        np.array(data["weight"], float),
        saved["means"],
    )
    prior = saved.get("prior")
    problem = dataclasses.replace(
        problem,
        ratio=saved["ratio"],
        barrier=saved["barrier"],
        prior=None if prior is None else (np.array(prior[0], float), np.array(prior[1], float)),
    )
    return Fit(
        law=law,
        problem=problem,
        names=names,
        theta=np.array(saved["theta"], float),
        group_names=tuple(data["groups"]),
        level=np.array(data["level"], str),
        per=saved["per"],
        columns=saved["columns"],
        notes=tuple(saved["notes"]),
        agreement=saved["agreement"],
        spec=dataclasses.asdict(spec),
    )


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


WEIGHT = "__weight__"


def _table(table: Any, weights: str | Sequence[float] | None) -> pd.DataFrame:
    try:
        frame = table if isinstance(table, pd.DataFrame) else pd.DataFrame(table)
    except ValueError as error:
        raise MscaleError(f"table: {error}; expected a DataFrame or arrays of one length") from error
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


def _delta(loss: str, delta: float, codes: np.ndarray) -> float | None:
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


def _with_priors(
    problem: Problem, names: tuple[str, ...], priors: Mapping[str, tuple[float, float]], theta: np.ndarray
) -> Problem:
    """Priors weigh against residuals in units of their own dispersion, at the optimum theta (P,) without them."""
    r = problem.residuals(theta[None])[0]
    dispersion = float(np.sum(problem.weight * huber(r, problem.delta)[1] * r)) / max(
        1, len(r) - problem.size
    )
    mean, precision = theta.copy(), np.zeros(problem.size)
    for index, name in enumerate(names):
        prior = priors.get(name, priors.get(name.split("[")[0]))
        if prior is not None:
            mean[index], deviation = prior
            precision[index] = dispersion / deviation**2
    return dataclasses.replace(problem, prior=(mean, precision))
