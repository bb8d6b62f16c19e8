"""`fit(law, table)`: the global optimum of a law on a table of runs, as a `Fit` with intervals.

Given its exponents, a law of the Chinchilla family is linear in its other parameters. A grid is laid over the nonlinear
parameters, the linear ones are solved by non-negative least squares, and the best candidates are polished together by
damped Newton steps with exact derivatives (`estimation.multistart`, `estimation.optimize`).
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd

from analysis.estimation import rows as checks
from analysis.estimation.estimate import estimate
from analysis.estimation.specify import (
    DEFAULT_OPTIONS,
    HUBER_DELTA,
    FitOptions,
    Spec,
    as_table,
    build_problem,
    specify,
    with_residual,
)
from analysis.estimation.sufficiency import few_groups_warning, require_enough_data, search_warnings
from analysis.fitting.result import FIT_FORMAT, Fit
from analysis.laws import registry
from analysis.laws.law import Law
from mscale.errors import MscaleError


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
    delta: float = HUBER_DELTA,
    residual: str | None = None,
    weights: str | Sequence[float] | None = None,
    priors: Mapping[str, tuple[float, float]] | None = None,
    phases: Sequence[str] | None = ("end",),
    split: str | None = None,
    group: str | None = None,
    few_groups: bool = False,
    seed: int = 0,
    **options: Any,
) -> Fit:
    """Fits a law.

    Args:
      law: a name in `analysis.laws.registry.LAW_NAMES`, or a `Law` of your own.
      table: observations (`mscale.observations`), or any table with `columns` = {variable: its column}; a mapping of
        NumPy arrays too. Tokens and parameters are plain counts.
      exposure: for ATLAS, tokens of every training language (run, step, language, tokens, unique_tokens).
      target: fit these languages' rows only (None: all).
      per: column whose levels have parameters of their own ("auto": the law's own, where the table has several
        levels; None: one curve through all rows).
      share: parameters common to all levels (default: as the law says).
      fixed: {parameter, or parameter[level]: value in the paper's units}.
      tie: {parameter: other parameter that it equals}.
      loss: "huber" (threshold `delta` on the residuals, the published objective; intervals by bootstrap over groups),
        "squares" (a variance component for noise that groups share; profile intervals), or "auto": huber where every
        row is its own group and there are at least 40, else squares.
      residual: "log" or "additive", overriding the law's.
      weights: a column or an array of weights, or "loss_se" to weigh by 1/loss_se².
      priors: {parameter: (mean, standard deviation)}, Gaussian, in the fitted scale (logarithms for positive
        parameters, contributions at the geometric means for A and B).
      phases: phases of the learning-rate schedule to fit; by default "end", after decay; None takes all rows.
      split: evaluation split to fit, where the table has several.
      group: column of the unit that is resampled (default "group", then "run", then the row).
      few_groups: fit even with fewer groups than parameters + 3 (intervals are then worth little).
      options: of the law. ATLAS: variant, sources, count, and scores (a transfer matrix, which breaks ties among the
        most co-sampled sources). For the data-constrained law two_stage=True fits E, A, α, B and β to the rows without
        repeated data first, as Muennighoff et al. 2023 did.

    Raises:
      MscaleError: bad input, or too few rows or groups; the message says what to do.
    """
    chosen = FitOptions(
        columns=columns,
        exposure=exposure,
        target=target,
        per=per,
        share=share,
        fixed=fixed,
        tie=tie,
        loss=loss,
        delta=delta,
        residual=residual,
        weights=weights,
        priors=priors,
        phases=phases,
        split=split,
        group=group,
        few_groups=few_groups,
        seed=seed,
        of_law=options,
    )
    return fit_with_options(law, table, chosen)


def fit_with_options(
    law: str | Law, table: pd.DataFrame | Mapping[str, Any], options: FitOptions = DEFAULT_OPTIONS
) -> Fit:
    """As `fit`, which describes the options."""
    if law == "data_constrained" and "two_stage" in options.of_law:
        of_law = {name: value for name, value in options.of_law.items() if name != "two_stage"}
        two_stages, options = options.of_law["two_stage"], dataclasses.replace(options, of_law=of_law)
        if two_stages:
            return _fit_in_two_stages(as_table(table), options)
    specified = specify(law, table, options)
    require_enough_data(specified.problem, options.few_groups)
    found, rows = estimate(specified.problem, options.priors or {}, options.seed), specified.rows
    warnings = (
        *search_warnings(found.agreement, found.problem, found.theta),
        *few_groups_warning(found.problem),
    )
    return Fit(
        problem=found.problem,
        theta=found.theta,
        group_names=specified.group_names,
        level=rows.level[specified.order],
        per=specified.per,
        columns=rows.columns,
        notes=(*rows.notes, *warnings),
        agreement=found.agreement,
        spec=specified.spec,
        _cache={} if found.noise is None else {"noise": found.noise},
    )


def _fit_in_two_stages(table: pd.DataFrame, options: FitOptions) -> Fit:
    """The data-constrained law as it was published (Muennighoff et al. 2023, section 5).

    Stage one fits Chinchilla to the rows without repeated data; stage two fits R_D* and R_N* to all rows with the other
    parameters fixed. Intervals of stage two ignore the uncertainty of stage one, so they are narrower than those of the
    joint fit, which is the default.
    """
    law, given, fixed = registry.LAWS["data_constrained"], options.columns or {}, options.fixed or {}
    names = {v: checks.column_for(table, law, v, default, given) for v, default in law.columns.items()}
    D, U = (pd.to_numeric(table[names[v]], errors="coerce") for v in ("D", "U"))
    once = (D <= U).to_numpy()
    if not once.any() or once.all():
        raise MscaleError(
            f"two_stage=True: {once.sum()} of {len(table)} rows see their data once ({names['D']} <= {names['U']}); "
            f"the first stage needs such rows and the second others: add runs, or fit jointly"
        )
    columns = {**{key: name for key, name in given.items() if key != "U"}, "N": names["N"], "D": names["D"]}
    share = [q for q in (law.share if options.share is None else options.share) if q not in ("R_D", "R_N")]
    weights = options.weights
    if weights is not None and not isinstance(weights, str):
        weights = np.asarray(weights)[once].tolist()
    options_of_first = dataclasses.replace(options, columns=columns, share=share, weights=weights)
    first = fit_with_options("chinchilla", table[once], options_of_first)
    estimated = {name: float(first.params[name]) for name in first.names}
    second = fit_with_options(law, table, dataclasses.replace(options, fixed={**estimated, **fixed}))
    listed = ", ".join(f"{name} {value:.4g}" for name, value in estimated.items())
    note = f"two stages: {listed} are those of {once.sum()} rows without repetition, and held"
    return dataclasses.replace(second, notes=(note, *second.notes))


def from_json(text: str, law: Law | None = None) -> Fit:
    """The fit that `Fit.to_json` wrote.

    law: needed again if it is not one of `LAWS`, because its functions are not part of the file.

    Raises:
      MscaleError: the text is not a saved fit, or of an unknown law.
    """
    try:
        saved = json.loads(text)
        version = saved["format"]
    except (json.JSONDecodeError, KeyError, TypeError) as error:
        raise MscaleError(f"not a saved fit ({error!r}); expected what Fit.to_json wrote") from error
    if version != FIT_FORMAT:
        raise MscaleError(
            f"this fit has format {version}, this version of mscale reads {FIT_FORMAT}: fit again"
        )
    spec = Spec(**{**saved["spec"], "shared": tuple(saved["spec"]["shared"])})
    law = registry.law_of_saved_fit(saved["law"], spec.options) if law is None else law
    law = with_residual(law, spec.residual)
    data = saved["data"]
    problem = build_problem(
        law,
        spec,
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
        problem=problem,
        theta=np.array(saved["theta"], float),
        group_names=tuple(data["groups"]),
        level=np.array(data["level"], str),
        per=saved["per"],
        columns=saved["columns"],
        notes=tuple(saved["notes"]),
        agreement=saved["agreement"],
        spec=spec,
    )
