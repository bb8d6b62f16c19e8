"""What a law predicts for rows that it was not fitted to, for all folds of all splits together.

The law is fitted to all rows once. Its folds are parts of them (refits.py), unless they ask for another model: then
each is fitted by itself.
"""

import dataclasses
from collections.abc import Collection, Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd

from analysis import laws
from analysis.estimation.estimate import Estimate, estimate
from analysis.estimation.specify import HUBER_DELTA, Specification, huber_threshold, specify, split_arguments
from analysis.estimation.sufficiency import require_enough_data
from analysis.fitting.fit import fit
from analysis.validation.refit import refit
from analysis.validation.splits import SHARE, folds, usable
from mscale.errors import MscaleError

COLUMNS = ["fold", "level", "group", "observed", "predicted", "in_range"]
Answer = pd.DataFrame | MscaleError


@dataclasses.dataclass(frozen=True)
class _Fold:
    """Rows of a table (n,) bool that a law is fitted to, and those that it is then asked for."""

    split: str
    name: str
    kept: np.ndarray
    test: np.ndarray


def predictions(
    law: Any,
    table: pd.DataFrame,
    shown: Mapping[str, Collection[str] | None],
    how: Mapping[str, Any],
    seed: int,
    share: float = SHARE,
) -> dict[str, Answer]:
    """Of each split every tested row with its observed and predicted value, fold, level, group and whether in range.

    Args:
      shown: {split of `analysis.validation.splits`: the languages that it is made of, None: all}.
      seed, share: of its folds.
      how: goes to `analysis.fit`.

    Returns: {split: frame, or the MscaleError that refuses it}. A fold that cannot be fitted is left out and said in
    the frame's attrs["refused"].
    """
    how = {"few_groups": True, **how}  # intervals are not wanted
    try:
        table = usable(table, how.get("phases", ("end",)))
        if law == "atlas" and how.get("exposure") is not None:
            given = {
                name: how.pop(name) for name in ("variant", "sources", "count", "exposure") if name in how
            }
            _, table, options = laws.prepare(law, table, target=how.get("target"), **given)
            how |= options
    except MscaleError as error:
        return dict.fromkeys(shown, error)
    found: dict[str, Answer] = {}
    asked: list[_Fold] = []
    for split, languages in shown.items():
        mine = (
            np.ones(len(table), bool) if languages is None else table["language"].isin(languages).to_numpy()
        )
        try:
            masks = folds(table[mine], split, share=share, seed=seed, columns=how.get("columns"))
        except MscaleError as error:
            found[split] = error
            continue
        for name, held in masks.items():
            test = mine.copy()
            test[mine] = held
            asked.append(_Fold(split, name, mine & ~test, test))
    answers = _together(law, table, asked, how)
    for number, fold in enumerate(asked):
        if number not in answers:
            answers[number] = _alone(law, table, fold, how)
    for split in shown:
        of = {fold.name: answers[number] for number, fold in enumerate(asked) if fold.split == split}
        found.setdefault(split, _joined(of))
    return found


def _joined(answers: Mapping[str, Answer]) -> pd.DataFrame:
    """The folds of a split as one frame."""
    refused = {name: str(answer) for name, answer in answers.items() if isinstance(answer, MscaleError)}
    parts = [
        answer.assign(fold=name) for name, answer in answers.items() if not isinstance(answer, MscaleError)
    ]
    found = pd.concat(parts)[COLUMNS] if parts else pd.DataFrame(columns=COLUMNS)
    at_bound = found["predicted"].isna()
    if at_bound.any():
        refused["rows"] = f"{int(at_bound.sum())} predictions lie at the law's constraint and are left out"
    found = found[~at_bound]
    found.attrs["refused"] = refused
    return found


def _together(
    law: Any, table: pd.DataFrame, asked: Sequence[_Fold], how: dict[str, Any]
) -> dict[int, Answer]:
    """The answers of the folds that are parts of a fit to all rows, by their place among all."""
    own = {name: value for name, value in how.items() if name not in ("few_groups", "seed")}
    priors = how.get("priors") or {}
    used = np.any([np.zeros(len(table), bool), *(fold.kept | fold.test for fold in asked)], axis=0)
    try:
        drafted = specify(law, table[used], *split_arguments(own))
        same = len(drafted.rows.table) == used.sum()
        numbers = [
            number
            for number, fold in enumerate(asked)
            if same and _is_part(drafted, fold.split, fold.kept[used], own)
        ]
        if not numbers:
            return {}
        require_enough_data(
            drafted.law, drafted.problem, drafted.names, len(drafted.group_names), how["few_groups"]
        )
        whole = estimate(drafted.problem, drafted.names, priors, how.get("seed", 0))
    except MscaleError:  # what refuses all rows may not refuse a fold, and if it does is said there
        return {}
    kept = np.array([asked[number].kept[used] for number in numbers])
    optima = refit(whole, priors, kept[:, drafted.order], how["few_groups"])
    rows = _asked(drafted.rows.table, drafted.per, drafted.rows.columns[drafted.law.response])
    return {
        number: optimum
        if isinstance(optimum, MscaleError)
        else _answer(drafted, whole, optimum, mine, asked[number].test[used], rows)
        for number, mine, optimum in zip(numbers, kept, optima, strict=True)
        if optimum is not None
    }


def _is_part(drafted: Specification, split: str, kept: np.ndarray, how: Mapping[str, Any]) -> bool:
    """Whether a fit to the rows kept (n,) is of the model that was drafted for all."""
    rows, per = drafted.rows, drafted.per
    if split == "leave_one_language_out" and how.get("per", "auto") is not None or not kept.any():
        return False
    # A single language has no column that its parameters are per.
    if per is not None and drafted.law.name != "atlas" and len(np.unique(rows.level[kept])) < 2:
        return False
    return (
        huber_threshold(how.get("loss", "auto"), how.get("delta", HUBER_DELTA), rows.group[kept])
        == drafted.spec.delta
    )


def _answer(
    drafted: Specification,
    whole: Estimate,
    theta: np.ndarray,
    kept: np.ndarray,
    test: np.ndarray,
    asked: pd.DataFrame,
) -> Answer:
    """What the optimum theta (P,) of the rows kept (n,) says of those of test (n,); asked: what else is known."""
    rows, problem = drafted.rows, whole.problem
    predicted = np.empty(len(kept))
    inside = problem.constraint(theta[None])[0] > 0
    predicted[drafted.order] = np.where(inside, problem.predict(theta[None])[0], np.nan)
    in_range = np.ones(len(kept), bool)
    for values in rows.x.values():
        seen = values[kept]
        in_range &= (values >= seen.min() * 0.999) & (values <= seen.max() * 1.001)
    known = test & np.isin(rows.level, np.unique(rows.level[kept]))
    if not known.any():
        return _unknown(rows.level[test])
    return asked[known].assign(predicted=predicted[known], in_range=in_range[known])


def _alone(law: Any, table: pd.DataFrame, fold: _Fold, how: dict[str, Any]) -> Answer:
    """What the law, fitted to one fold by itself, says of the rows held out."""
    try:
        if fold.split == "leave_one_language_out" and how.get("per", "auto") is not None:
            fitted, held = _transplanted(law, table, fold, how)
        else:
            fitted, held = fit(law, table[fold.kept], **how), table[fold.test]
        if fitted.per is not None and fitted.per in held:
            levels = held[fitted.per].astype(str)
            held = held[levels.isin(fitted.levels)]
            if not len(held):
                return _unknown(levels)
        result = fitted.predict(held)
    except MscaleError as error:
        return error
    asked = _asked(held, fitted.per, fitted.columns[fitted.law.response])
    return asked.assign(predicted=result["prediction"], in_range=result["in_range"])


def _unknown(levels: Any) -> MscaleError:
    return MscaleError(f"no held-out row is of a level that was fitted ({', '.join(sorted(set(levels)))})")


def _asked(held: pd.DataFrame, per: str | None, response: str) -> pd.DataFrame:
    """Level, group and observed value of the held-out rows."""
    group = next((name for name in ("group", "run") if name in held), None)
    return pd.DataFrame(
        {
            "level": held[per].astype(str) if per in held else "",
            "group": held[group].astype(str) if group else held.index.astype(str),
            "observed": held[response].astype(float),
        },
        held.index,
    )


def _transplanted(law: Any, table: pd.DataFrame, fold: _Fold, how: dict) -> tuple[Any, pd.DataFrame]:
    """A language held out: its exponents come from the others, its own constants from its cheaper half."""
    per = how.get("per", "auto")
    how = {**how, "target": None, "per": "language" if per == "auto" else per}
    others = fit(law, table[fold.kept], **how)
    own = table[fold.test]
    cost = own[[c for c in ("params", "target_tokens") if c in own]].astype(float).prod(axis=1)
    cheap = cost <= cost.median()
    fixed = {name: float(others.params[name]) for name in others.names if "[" not in name}
    if not fixed:
        raise MscaleError(
            "nothing is shared between languages (share=): none can be predicted from the others"
        )
    return fit(law, own[cheap], **{**how, "fixed": {**how.get("fixed", {}), **fixed}}), own[~cheap]
