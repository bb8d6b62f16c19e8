"""Judging laws on what they were not fitted to: the five splits of ATLAS, whole scales, whole languages.

A split is a set of folds, each a mask of test rows; what is not tested is fitted. R² is pooled over all tested rows
(all languages and folds together). Runs that share a root trunk never stand on both sides of a random split.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from analysis import laws
from analysis.fitting import fit
from analysis.results import Fit
from mscale.errors import MscaleError

SPLITS = ("R2", "R2_N", "R2_D", "R2_C", "R2_M")
OTHERS = ("leave_one_scale_out", "leave_one_language_out")
SHARE = 0.2


def folds(
    table: pd.DataFrame, split: str, *, share: float = SHARE, seed: int = 0, columns: Mapping | None = None
):
    """The test masks of a split, {name: (n,) bool}.

    Args:
      split: "R2" (a random `share` of the groups, each share in turn), "R2_N" (the largest `share` of the scales,
        whole), "R2_D" (the rows of most tokens), "R2_C" (of most compute), "R2_M" (mixtures that are not
        monolingual, bilingual or UniMax), "leave_one_scale_out" or "leave_one_language_out".
      columns: {"N" or "D": the table's column}.

    Raises:
      MscaleError: no such split, or the table has nothing to hold out.
    """
    columns = dict(columns or {})
    if not len(table):
        raise MscaleError(f"split {split!r}: the table has no rows, hence nothing to hold out")
    if split == "R2":
        group = columns.get("group") or next((name for name in ("group", "run") if name in table), None)
        names = (
            table[group].astype(str) if group else pd.Series(np.arange(len(table)).astype(str), table.index)
        )
        unique = np.random.default_rng(seed).permutation(np.array(sorted(names.unique())))
        parts = np.array_split(unique, min(max(2, round(1 / share)), len(unique)))
        found = {f"part {number}": names.isin(part).to_numpy() for number, part in enumerate(parts, 1)}
        return _several(found, "group")
    if split == "R2_M":
        return {"mixtures": _mixtures(table)}
    if split == "leave_one_language_out":
        language = _column(table, "language")
        found = {str(name): (language == name).to_numpy() for name in sorted(language.unique())}
        return _several(found, "language")
    N = _column(table, columns.get("N", "params")).to_numpy(float)
    if split in ("R2_N", "leave_one_scale_out"):
        sizes = np.unique(N)
        if split == "R2_N":
            held = sizes[-max(1, round(share * len(sizes))) :]
            _several({size: None for size in sizes}, "scale")
            return {"largest scales": np.isin(N, held)}
        return _several({f"{size:.4g}": size == N for size in sizes}, "scale")
    if split in ("R2_D", "R2_C"):
        D = _column(table, columns.get("D", "tokens" if "tokens" in table else "target_tokens")).to_numpy(
            float
        )
        amount = D if split == "R2_D" else N * D
        held = amount >= np.quantile(amount, 1 - share, method="higher")
        if held.all():
            raise MscaleError(f"{split}: every row has the same {'tokens' if split == 'R2_D' else 'compute'}")
        return {"most tokens" if split == "R2_D" else "most compute": held}
    raise MscaleError(f"no split {split!r}; there are {', '.join((*SPLITS, *OTHERS))}")


def _several(found: dict, what: str) -> dict:
    if len(found) < 2:
        raise MscaleError(f"only one {what}: holding it out leaves nothing to fit")
    return found


def _column(table: pd.DataFrame, name: str) -> pd.Series:
    if name not in table:
        raise MscaleError(f"splits: the table has no column {name!r}; name yours with columns=")
    return table[name]


def _mixtures(table: pd.DataFrame) -> np.ndarray:
    count = _column(table, "languages").astype(str).str.count(r"\+") + 1
    unimax = table["mixture"].astype(str).str.startswith("unimax") if "mixture" in table else False
    held = ((count > 2) & ~unimax).to_numpy()
    if not held.any():
        raise MscaleError("R2_M: no mixture of three or more languages other than UniMax to hold out")
    if held.all():
        raise MscaleError("R2_M: no monolingual, bilingual or UniMax run to fit")
    return held


def usable(table: pd.DataFrame, phases: Sequence[str] | None = ("end",)) -> pd.DataFrame:
    """The rows that a law of pretraining is judged on: cooled, from scratch, with tokens of their language.

    Raises:
      MscaleError: no row is in the wanted phases; runs in different phases are not compared unless asked for.
    """
    if "phase" in table and phases is not None:
        kept = table[table["phase"].isin(list(phases))]
        if not len(kept):
            found = ", ".join(sorted(map(str, table["phase"].unique())))
            raise MscaleError(
                f"no row is in phase {' or '.join(phases)}; found {found}. Runs in different phases of their "
                f"schedule are not comparable; ask for others with phases="
            )
        table = kept
    if "init" in table:
        table = table[table["init"].isna() | table["init"].isin(["scratch", ""])]
    if "target_tokens" in table:
        table = table[table["target_tokens"] > 0]
    return table


def predictions(
    law: Any, table: pd.DataFrame, split: str, *, seed: int = 0, share_of: float = SHARE, **how: Any
):
    """Every tested row with its observed and predicted value, fold, level, group and whether it was in range.

    `how` goes to `analysis.fit`. A fold that cannot be fitted is left out and said in the frame's attrs["refused"].
    """
    return _predictions(law, _ready(law, table, how), split, seed, share_of)


@dataclass(frozen=True)
class _Ready:
    """What all folds of a law share: the rows it is judged on, how it is fitted to them, and its fit to all of them."""

    table: pd.DataFrame
    how: dict[str, Any]
    whole: Fit | None


def _ready(law: Any, table: pd.DataFrame, how: Mapping[str, Any], near: Fit | None = None) -> _Ready:
    how = {"few_groups": True, **how}
    table = usable(table, how.get("phases", ("end",)))
    if law == "atlas" and how.get("exposure") is not None:
        given = {name: how.pop(name) for name in ("variant", "sources", "count", "exposure") if name in how}
        _, table, options = laws.prepare(law, table, target=how.get("target"), **given)
        how |= options
    try:
        return _Ready(table, how, fit(law, table, near=near, **how))
    except MscaleError:  # what refuses the whole refuses the folds too, and is said there
        return _Ready(table, how, None)


def _predictions(law: Any, ready: _Ready, split: str, seed: int, share_of: float) -> pd.DataFrame:
    table, how = ready.table, ready.how
    parts, refused = [], {}
    for name, test in folds(table, split, share=share_of, seed=seed, columns=how.get("columns")).items():
        try:
            if split == "leave_one_language_out" and how.get("per", "auto") is not None:
                fitted, held = _transplanted(law, table, test, how)
            else:
                fitted, held = fit(law, table[~test], near=ready.whole, **how), table[test]
            held, lost = _predictable(fitted, held)
            if not len(held):
                raise MscaleError(f"no held-out row is of a level that was fitted ({', '.join(lost)})")
            result = fitted.predict(held)
        except MscaleError as error:
            refused[name] = str(error)
            continue
        response = fitted.columns[fitted.law.response]
        group = next((c for c in ("group", "run") if c in held), None)
        parts.append(
            pd.DataFrame(
                {
                    "fold": name,
                    "level": held[fitted.per].astype(str) if fitted.per in held else "",
                    "group": held[group].astype(str) if group else held.index.astype(str),
                    "observed": held[response].astype(float),
                    "predicted": result["prediction"],
                    "in_range": result["in_range"],
                }
            )
        )
    columns = ["fold", "level", "group", "observed", "predicted", "in_range"]
    found = pd.concat(parts) if parts else pd.DataFrame(columns=columns)
    at_bound = found["predicted"].isna()
    if at_bound.any():
        refused["rows"] = f"{int(at_bound.sum())} predictions lie at the law's constraint and are left out"
    found = found[~at_bound]
    found.attrs["refused"] = refused
    return found


def _predictable(fitted: Any, held: pd.DataFrame) -> tuple[pd.DataFrame, list[str]]:
    if fitted.per is None or fitted.per not in held:
        return held, []
    known = held[fitted.per].astype(str).isin(fitted.levels)
    return held[known], sorted(held.loc[~known, fitted.per].astype(str).unique())


def _transplanted(law: Any, table: pd.DataFrame, test: np.ndarray, how: dict) -> tuple[Any, pd.DataFrame]:
    """A language held out: its exponents come from the others, its own constants from its cheaper half."""
    per = how.get("per", "auto")
    how = {**how, "target": None, "per": "language" if per == "auto" else per}
    others = fit(law, table[~test], **how)
    own = table[test]
    cost = own[[c for c in ("params", "target_tokens") if c in own]].astype(float).prod(axis=1)
    cheap = cost <= cost.median()
    fixed = {name: float(others.params[name]) for name in others.names if "[" not in name}
    if not fixed:
        raise MscaleError(
            "nothing is shared between languages (share=): none can be predicted from the others"
        )
    return fit(law, own[cheap], **{**how, "fixed": {**how.get("fixed", {}), **fixed}}), own[~cheap]


def r2(found: pd.DataFrame, within: bool = False) -> float:
    """R² of a `predictions` frame, about the mean of all rows, or (within) about each level's own."""
    if not len(found):
        return float("nan")
    y = found["observed"]
    centre = y.groupby(found["level"]).transform("mean") if within else y.mean()
    total = float(((y - centre) ** 2).sum())
    return 1 - float(((y - found["predicted"]) ** 2).sum()) / total if total > 0 else float("nan")


def judge(
    contenders: Mapping[str, Mapping[str, Any]],
    table: pd.DataFrame,
    splits: Sequence[str] = SPLITS,
    *,
    level: float = 0.9,
    within: bool = False,
    draws: int = 1000,
    near: dict[str, Fit] | None = None,
    seed: int = 0,
) -> pd.DataFrame:
    """Laws side by side.

    Args:
      contenders: {label: arguments of `analysis.fit`, with "law"}; the first is what the others are compared with.
      splits: names of `folds`. level: of the intervals, which resample the tested groups.
      within: R² about each level's own mean, so that languages' different levels earn nothing.
      near: {label: the law fitted to these rows and more}, from which it is searched here; those missing are added.

    Returns: a row a (law, split): r2, low, high, difference from the first law on the rows both predict
    with its interval, tested rows, share out of range, and why what is missing is missing.
    """
    asked = {label: how.get("phases", ("end",)) for label, how in contenders.items()}
    if len({None if phases is None else tuple(phases) for phases in asked.values()}) > 1:
        raise MscaleError(
            f"phases differ between the laws ({', '.join(f'{label}: {phases}' for label, phases in asked.items())}): "
            f"laws are compared on the same runs in the same phase of their schedule; give all the same phases="
        )
    records = []
    near = {} if near is None else near
    ready: dict[str, _Ready] = {}
    tails = [(1 - level) / 2, (1 + level) / 2]
    for split in splits:
        first = None
        for label, arguments in contenders.items():
            how = dict(arguments)
            law = how.pop("law", label)
            record: dict[str, Any] = {"law": label, "split": split}
            records.append(record)
            try:
                if label not in ready:
                    ready[label] = _ready(law, table, how, near.get(label))
                    if (whole := ready[label].whole) is not None:
                        near.setdefault(label, whole)
                found = _predictions(law, ready[label], split, seed, SHARE)
            except MscaleError as error:
                record |= {"r2": np.nan, "tested": 0, "reason": str(error)}
                continue
            found["key"] = [f"{fold}|{index}" for fold, index in zip(found["fold"], found.index, strict=True)]
            record |= {
                "r2": r2(found, within),
                "tested": len(found),
                "out_of_range": float((~found["in_range"].astype(bool)).mean()) if len(found) else np.nan,
                "reason": "; ".join(f"{name}: {why}" for name, why in found.attrs["refused"].items()),
            }
            if len(found):
                record["low"], record["high"] = np.quantile(
                    _resampled([found], draws, seed, within)[0], tails
                )
            if first is None:
                first = found
            elif len(found) and len(first):
                pair = [frame.set_index("key") for frame in (first, found)]
                both = pair[0].index.intersection(pair[1].index)
                if len(both):
                    base, mine = (frame.loc[both] for frame in pair)
                    record["difference"] = r2(mine, within) - r2(base, within)
                    resampled = _resampled([base, mine], draws, seed, within)
                    ends = np.quantile(resampled[1] - resampled[0], tails)
                    record["difference_low"], record["difference_high"] = ends
    order = [
        "law",
        "split",
        "r2",
        "low",
        "high",
        "difference",
        "difference_low",
        "difference_high",
    ]
    return pd.DataFrame(records).reindex(columns=[*order, "tested", "out_of_range", "reason"])


def _resampled(frames: Sequence[pd.DataFrame], draws: int, seed: int, within: bool) -> np.ndarray:
    """(len(frames), draws): R² on resampled groups, the same groups in every frame."""
    codes, names = pd.factorize(frames[0]["group"])
    times = np.random.default_rng(seed).multinomial(
        len(names), np.full(len(names), 1 / len(names)), size=draws
    )
    weight = times[:, codes].astype(float)
    result = []
    for frame in frames:
        y, error = frame["observed"].to_numpy(float), (frame["observed"] - frame["predicted"]).to_numpy(float)
        levels = pd.factorize(frame["level"])[0] if within else np.zeros(len(y), int)
        spread = np.zeros(draws)
        for level in np.unique(levels):
            at = levels == level
            total = np.maximum(weight[:, at].sum(axis=1), 1)
            spread += weight[:, at] @ y[at] ** 2 - (weight[:, at] @ y[at]) ** 2 / total
        result.append(1 - weight @ error**2 / np.maximum(spread, 1e-300))
    return np.array(result)
