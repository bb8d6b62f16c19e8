"""Predictions of a law for rows that it was not fitted to, for all folds of all splits together.

The law is fitted to all rows once, and the folds are refitted as one batch from that optimum (`refit`). A fold that is
not a subset of the same model (another Huber threshold, a single language, a language held out) is fitted separately.
"""

import dataclasses
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd

from analysis.estimation.estimate import Estimate, estimate
from analysis.estimation.specify import HUBER_DELTA, Specification, huber_threshold, specify, split_arguments
from analysis.estimation.sufficiency import require_enough_data
from analysis.fitting.fit import fit
from analysis.fitting.result import Fit
from analysis.laws import registry
from analysis.laws.law import Law
from analysis.validation.refit import refit_subsets
from analysis.validation.splits import TEST_SHARE, comparable_rows, folds
from mscale.errors import MscaleError

_COLUMNS = ["fold", "level", "group", "observed", "predicted", "in_range"]
PredictionsOrError = pd.DataFrame | MscaleError


@dataclasses.dataclass(frozen=True)
class _Fold:
    """Masks (n,) of the rows of a table that a law is fitted to, and of those that it predicts."""

    split: str
    name: str
    train: np.ndarray
    test: np.ndarray


def predict_splits(
    law: str | Law,
    table: pd.DataFrame,
    languages: Mapping[str, Collection[str] | None],
    fit_options: Mapping[str, Any],
    seed: int,
    share: float = TEST_SHARE,
) -> dict[str, PredictionsOrError]:
    """The predictions for every test row of every fold, split by split.

    Args:
      languages: {split of `validation.splits`: the languages whose rows it is made of, None: all}.
      fit_options: arguments of `analysis.fit`.
      seed, share: of the folds.

    Returns: {split: frame, or the MscaleError that refuses the split}. A frame has a row for each test row with the
    columns fold, level, group, observed, predicted and in_range. Folds that cannot be fitted are left out, with the
    reason in the frame's attrs["refused"], {fold: reason}.
    """
    options = {"few_groups": True, **fit_options}  # intervals are not needed
    try:
        table = comparable_rows(table, options.get("phases", ("end",)))
        if law == "atlas" and options.get("exposure") is not None:
            of_law = {
                name: options.pop(name)
                for name in ("variant", "sources", "count", "exposure")
                if name in options
            }
            _, table, prepared = registry.prepare_law(law, table, target=options.get("target"), **of_law)
            options |= prepared
    except MscaleError as error:
        return dict.fromkeys(languages, error)
    found: dict[str, PredictionsOrError] = {}
    all_folds: list[_Fold] = []
    for split, names in languages.items():
        used = np.ones(len(table), bool) if names is None else table["language"].isin(names).to_numpy()
        try:
            masks = folds(table[used], split, share=share, seed=seed, columns=options.get("columns"))
        except MscaleError as error:
            found[split] = error
            continue
        for name, mask in masks.items():
            test = used.copy()
            test[used] = mask
            all_folds.append(_Fold(split, name, used & ~test, test))
    predictions = _refit_folds(law, table, all_folds, options)
    for number, fold in enumerate(all_folds):
        if number not in predictions:
            predictions[number] = _fit_fold(law, table, fold, options)
    for split in languages:
        of_split = {fold.name: predictions[n] for n, fold in enumerate(all_folds) if fold.split == split}
        found.setdefault(split, _join_folds(of_split))
    return found


def _join_folds(predictions: Mapping[str, PredictionsOrError]) -> pd.DataFrame:
    """The folds of a split, {name: predictions}, as one frame."""
    refused = {name: str(found) for name, found in predictions.items() if isinstance(found, MscaleError)}
    parts = [
        found.assign(fold=name) for name, found in predictions.items() if not isinstance(found, MscaleError)
    ]
    frame = pd.concat(parts)[_COLUMNS] if parts else pd.DataFrame(columns=_COLUMNS)
    at_bound = frame["predicted"].isna()
    if at_bound.any():
        refused["rows"] = f"{int(at_bound.sum())} predictions lie at the law's constraint and are left out"
    frame = frame[~at_bound]
    frame.attrs["refused"] = refused
    return frame


def _refit_folds(
    law: str | Law, table: pd.DataFrame, all_folds: Sequence[_Fold], fit_options: dict[str, Any]
) -> dict[int, PredictionsOrError]:
    """{index: predictions} of the folds whose model is that of all rows, refitted together."""
    options = {name: value for name, value in fit_options.items() if name not in ("few_groups", "seed")}
    few_groups = fit_options["few_groups"]
    priors = fit_options.get("priors") or {}
    used = np.any([np.zeros(len(table), bool), *(fold.train | fold.test for fold in all_folds)], axis=0)
    try:
        specified = specify(law, table[used], *split_arguments(options))
        all_rows_kept = len(specified.rows.table) == used.sum()
        numbers = [
            number
            for number, fold in enumerate(all_folds)
            if all_rows_kept and _is_subset_of_same_model(specified, fold.split, fold.train[used], options)
        ]
        if not numbers:
            return {}
        require_enough_data(
            specified.law, specified.problem, specified.names, len(specified.group_names), few_groups
        )
        whole = estimate(specified.problem, specified.names, priors, fit_options.get("seed", 0))
    except (
        MscaleError
    ):  # a refusal of all rows need not hold for a fold; where it does, the fold's own fit raises it
        return {}
    train = np.array([all_folds[number].train[used] for number in numbers])
    optima = refit_subsets(whole, priors, train[:, specified.order], few_groups)
    rows = _test_rows(specified.rows.table, specified.per, specified.rows.columns[specified.law.response])
    return {
        number: optimum
        if isinstance(optimum, MscaleError)
        else _predict_fold(specified, whole, optimum, mask, all_folds[number].test[used], rows)
        for number, mask, optimum in zip(numbers, train, optima, strict=True)
        if optimum is not None
    }


def _is_subset_of_same_model(
    specified: Specification, split: str, train: np.ndarray, fit_options: Mapping[str, Any]
) -> bool:
    """Whether a fit to the training rows (n,) has the same parameters and objective as the fit to all rows."""
    rows, per = specified.rows, specified.per
    if split == "leave_one_language_out" and fit_options.get("per", "auto") is not None or not train.any():
        return False
    # With a single language, parameters are not per language.
    if per is not None and specified.law.name != "atlas" and len(np.unique(rows.level[train])) < 2:
        return False
    loss, delta = fit_options.get("loss", "auto"), fit_options.get("delta", HUBER_DELTA)
    return huber_threshold(loss, delta, rows.group[train]) == specified.spec.delta


def _predict_fold(
    specified: Specification,
    whole: Estimate,
    theta: np.ndarray,
    train: np.ndarray,
    test: np.ndarray,
    test_rows: pd.DataFrame,
) -> PredictionsOrError:
    """Predictions for the test rows (n,) from theta (P,), the optimum of the training rows (n,)."""
    rows, problem = specified.rows, whole.problem
    predicted = np.empty(len(train))
    feasible = problem.constraint(theta[None])[0] > 0
    predicted[specified.order] = np.where(feasible, problem.predict(theta[None])[0], np.nan)
    in_range = np.ones(len(train), bool)
    for values in rows.x.values():
        fitted = values[train]
        in_range &= (values >= fitted.min() * 0.999) & (values <= fitted.max() * 1.001)
    known = test & np.isin(rows.level, np.unique(rows.level[train]))
    if not known.any():
        return _unknown_levels(rows.level[test])
    return test_rows[known].assign(predicted=predicted[known], in_range=in_range[known])


def _fit_fold(
    law: str | Law, table: pd.DataFrame, fold: _Fold, fit_options: dict[str, Any]
) -> PredictionsOrError:
    """Predictions for the test rows of a fold from a fit of its own."""
    try:
        if fold.split == "leave_one_language_out" and fit_options.get("per", "auto") is not None:
            fitted, test = _fit_held_out_language(law, table, fold, fit_options)
        else:
            fitted, test = fit(law, table[fold.train], **fit_options), table[fold.test]
        if fitted.per is not None and fitted.per in test:
            levels = test[fitted.per].astype(str)
            test = test[levels.isin(fitted.levels)]
            if not len(test):
                return _unknown_levels(levels)
        result = fitted.predict(test)
    except MscaleError as error:
        return error
    rows = _test_rows(test, fitted.per, fitted.columns[fitted.law.response])
    return rows.assign(predicted=result["prediction"], in_range=result["in_range"])


def _unknown_levels(levels: Iterable[str]) -> MscaleError:
    return MscaleError(f"no held-out row is of a level that was fitted ({', '.join(sorted(set(levels)))})")


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
    law: str | Law, table: pd.DataFrame, fold: _Fold, fit_options: dict[str, Any]
) -> tuple[Fit, pd.DataFrame]:
    """A fit to the cheaper half of a held-out language's rows, and the other half.

    Shared parameters (exponents) are fixed at their values in a fit to the other languages.
    """
    per = fit_options.get("per", "auto")
    options = {**fit_options, "target": None, "per": "language" if per == "auto" else per}
    others = fit(law, table[fold.train], **options)
    own = table[fold.test]
    cost = own[[c for c in ("params", "target_tokens") if c in own]].astype(float).prod(axis=1)
    cheap = cost <= cost.median()
    shared = {name: float(others.params[name]) for name in others.names if "[" not in name}
    if not shared:
        raise MscaleError(
            "nothing is shared between languages (share=): none can be predicted from the others"
        )
    return fit(law, own[cheap], **{**options, "fixed": {**options.get("fixed", {}), **shared}}), own[~cheap]
