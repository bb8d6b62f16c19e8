"""Predictions of a law for rows that it was not fitted to, for all folds of all splits.

The law is fitted to all rows once, and each fold is refitted from that optimum (`refit`). A fold that is not a subset
of the same model (another Huber threshold, a single language, a language held out) has a search of its own.
"""

import dataclasses
from collections.abc import Collection, Mapping, Sequence

import numpy as np
import pandas as pd

from analysis.estimation.estimate import Estimate, estimate
from analysis.estimation.rows import within_range
from analysis.estimation.specify import FitOptions, Specification, huber_threshold, specify
from analysis.estimation.sufficiency import require_enough_data
from analysis.fitting.fit import fit_with_options
from analysis.fitting.result import Fit
from analysis.laws import registry
from analysis.laws.law import Law
from analysis.validation.refit import refit
from analysis.validation.splits import comparable_rows, folds
from mscale.errors import MscaleError

_COLUMNS = ["fold", "level", "group", "observed", "predicted", "in_range"]
PredictionsOrError = pd.DataFrame | MscaleError


@dataclasses.dataclass(frozen=True)
class _Fold:
    """Masks (n,) of the rows of a table that a law is fitted to, and of those that it predicts."""

    split: str
    train: np.ndarray
    test: np.ndarray


@dataclasses.dataclass(frozen=True)
class _FitToAllRows:
    """The model of all rows of a table, and its optimum."""

    specified: Specification
    found: Estimate


def predict_splits(
    law: str | Law,
    table: pd.DataFrame,
    languages: Mapping[str, Collection[str] | None],
    options: FitOptions,
    seed: int,
) -> dict[str, PredictionsOrError]:
    """The predictions for every test row of every fold, split by split.

    Args:
      languages: {split of `validation.splits`: the languages whose rows it is made of, None: all}.
      options: of the fits. Few groups are allowed, because intervals are not needed.
      seed: of the random folds.

    Returns: {split: frame, or the MscaleError that refuses the split}. A frame has a row for each test row with the
    columns fold, level, group, observed, predicted and in_range. Folds that cannot be fitted are left out, with the
    reason in the frame's attrs["refused"], {fold: reason}.
    """
    options = dataclasses.replace(options, few_groups=True)
    try:
        table = comparable_rows(table, options.phases)
        if law == "atlas" and options.exposure is not None:
            _, table, prepared = registry.prepare_law(
                law, table, exposure=options.exposure, target=options.target, **options.of_law
            )
            options = dataclasses.replace(options, exposure=None, of_law=prepared)
    except MscaleError as error:
        return dict.fromkeys(languages, error)
    if None not in languages.values():
        table = table[table["language"].isin({name for names in languages.values() for name in names or ()})]
    whole = _fit_to_all_rows(law, table, options)
    found: dict[str, PredictionsOrError] = {}
    for split, names in languages.items():
        rows = np.ones(len(table), bool) if names is None else table["language"].isin(names).to_numpy()
        try:
            masks = folds(table[rows], split, seed=seed, columns=options.columns)
        except MscaleError as error:
            found[split] = error
            continue
        parts, refused = [], {}
        for name, mask in masks.items():
            test = rows.copy()
            test[rows] = mask
            fold = _Fold(split, rows & ~test, test)
            try:
                frame = None if whole is None else _refit_fold(whole, fold, options)
                frame = _fit_fold(law, table, fold, options) if frame is None else frame
                parts.append(frame.assign(fold=name))
            except MscaleError as error:
                refused[name] = str(error)
        found[split] = _join_folds(parts, refused)
    return found


def _join_folds(parts: Sequence[pd.DataFrame], refused: dict[str, str]) -> pd.DataFrame:
    """The predictions of the folds of a split as one frame."""
    frame = pd.concat(parts)[_COLUMNS] if parts else pd.DataFrame(columns=_COLUMNS)
    at_bound = frame["predicted"].isna()
    if at_bound.any():
        refused["rows"] = f"{int(at_bound.sum())} predictions lie at the law's constraint and are left out"
    frame = frame[~at_bound]
    frame.attrs["refused"] = refused
    return frame


def _fit_to_all_rows(law: str | Law, table: pd.DataFrame, options: FitOptions) -> _FitToAllRows | None:
    """The fit to all rows, or None where it is refused or leaves rows out: each fold is then fitted on its own."""
    try:
        specified = specify(law, table, options)
        require_enough_data(specified.problem, options.few_groups)
        found = estimate(specified.problem, options.priors or {}, options.seed)
    except MscaleError:
        return None
    return _FitToAllRows(specified, found) if len(specified.rows.table) == len(table) else None


def _refit_fold(whole: _FitToAllRows, fold: _Fold, options: FitOptions) -> pd.DataFrame | None:
    """Predictions for the test rows of a fold from a refit; None where its model is not that of all rows.

    Raises:
      MscaleError: too few rows to fit, or none to predict.
    """
    specified, problem, train = whole.specified, whole.found.problem, fold.train
    if not _is_subset_of_same_model(specified, fold, options):
        return None
    theta = refit(whole.found, options.priors or {}, train[specified.order], options.few_groups)
    if theta is None:
        return None
    rows = specified.rows
    predicted = np.empty(len(train))
    feasible = problem.constraint(theta[None])[0] > 0
    predicted[specified.order] = np.where(feasible, problem.predict(theta[None])[0], np.nan)
    in_range = within_range(rows.x, {name: values[train] for name, values in rows.x.items()})
    known = fold.test & _of_fitted_levels(rows.level, fold.test, np.unique(rows.level[train]))
    observed = _test_rows(rows.table[known], specified.per, rows.columns[problem.law.response])
    return observed.assign(predicted=predicted[known], in_range=in_range[known])


def _is_subset_of_same_model(specified: Specification, fold: _Fold, options: FitOptions) -> bool:
    """Whether a fit to the training rows has the same parameters and objective as the fit to all rows."""
    rows, per, train = specified.rows, specified.per, fold.train
    if _holds_out_language(fold, options) or not train.any():
        return False
    # With a single language, parameters are not per language.
    if per is not None and specified.problem.law.name != "atlas" and len(np.unique(rows.level[train])) < 2:
        return False
    return huber_threshold(options.loss, options.delta, rows.group[train]) == specified.spec.delta


def _holds_out_language(fold: _Fold, options: FitOptions) -> bool:
    """Whether the fold holds out a language whose own parameters have to be fitted to some of its rows."""
    return fold.split == "leave_one_language_out" and options.per is not None


def _fit_fold(law: str | Law, table: pd.DataFrame, fold: _Fold, options: FitOptions) -> pd.DataFrame:
    """Predictions for the test rows of a fold from a fit of its own; raises MscaleError where there is none."""
    if _holds_out_language(fold, options):
        fitted, test = _fit_held_out_language(law, table, fold, options)
    else:
        fitted, test = fit_with_options(law, table[fold.train], options), table[fold.test]
    if fitted.per is not None and fitted.per in test:
        levels = test[fitted.per].astype(str).to_numpy()
        test = test[_of_fitted_levels(levels, np.ones(len(test), bool), fitted.levels)]
    result = fitted.predict(test)
    rows = _test_rows(test, fitted.per, fitted.columns[fitted.law.response])
    return rows.assign(predicted=result["prediction"], in_range=result["in_range"])


def _of_fitted_levels(level: np.ndarray, test: np.ndarray, fitted: Collection[str]) -> np.ndarray:
    """Mask (n,) of the rows of levels that were fitted; raises MscaleError where none of the `test` rows (n,) is."""
    known = np.isin(level, list(fitted))
    if not known[test].any():
        listed = ", ".join(sorted(set(level[test])))
        raise MscaleError(f"no held-out row is of a level that was fitted ({listed})")
    return known


def _test_rows(table: pd.DataFrame, per: str | None, response: str) -> pd.DataFrame:
    """Level, group and observed value of each row."""
    group = next((name for name in ("group", "run") if name in table), None)
    return pd.DataFrame(
        {
            "level": table[per].astype(str) if per in table else "",
            "group": table[group].astype(str) if group else table.index.astype(str),
            "observed": table[response].astype(float),
        },
        table.index,
    )


def _fit_held_out_language(
    law: str | Law, table: pd.DataFrame, fold: _Fold, options: FitOptions
) -> tuple[Fit, pd.DataFrame]:
    """A fit to the cheaper half of a held-out language's rows, and the other half.

    Shared parameters (exponents) are fixed at their values in a fit to the other languages.
    """
    per = "language" if options.per == "auto" else options.per
    options = dataclasses.replace(options, target=None, per=per)
    others = fit_with_options(law, table[fold.train], options)
    own = table[fold.test]
    cost = own[[c for c in ("params", "target_tokens") if c in own]].astype(float).prod(axis=1)
    cheap = cost <= cost.median()
    shared = {name: float(others.params[name]) for name in others.names if "[" not in name}
    if not shared:
        raise MscaleError(
            "nothing is shared between languages (share=): none can be predicted from the others"
        )
    options = dataclasses.replace(options, fixed={**(options.fixed or {}), **shared})
    return fit_with_options(law, own[cheap], options), own[~cheap]
