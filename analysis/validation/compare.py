"""Comparing laws by R² on rows that they were not fitted to, with bootstrap intervals over groups.

R² is pooled over all test rows: all languages and folds together.
"""

import functools
from collections.abc import Collection, Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd

from analysis.estimation.specify import FitOptions
from analysis.validation import held_out
from analysis.validation.splits import ATLAS_SPLITS
from mscale.errors import MscaleError

__all__ = ["judge", "r2"]


def r2(found: pd.DataFrame, within: bool = False) -> float:
    """R² of predictions (`held_out`), about the mean of all rows or (within) of each level; NaN if there are none."""
    if not len(found):
        return float("nan")
    y = found["observed"].to_numpy(float)
    level = pd.factorize(found["level"])[0] if within else np.zeros(len(y), int)
    centre = np.bincount(level, y) / np.bincount(level)
    total = float(((y - centre[level]) ** 2).sum())
    return (
        1 - float(((y - found["predicted"].to_numpy(float)) ** 2).sum()) / total
        if total > 0
        else float("nan")
    )


def judge(
    contenders: Mapping[str, Mapping[str, Any]],
    table: pd.DataFrame,
    splits: Sequence[str] = ATLAS_SPLITS,
    *,
    level: float = 0.9,
    within: bool = False,
    draws: int = 1000,
    languages: Mapping[str, Collection[str]] | None = None,
    seed: int = 0,
) -> pd.DataFrame:
    """Held-out R² of several laws on the same splits.

    Args:
      contenders: {label: arguments of `analysis.fit`, with "law"}; the others are compared with the first.
      splits: see `splits.folds`.
      level: of the intervals, a bootstrap with `draws` draws over the groups of the test rows.
      within: R² about the mean of each level, so that differences in difficulty between languages do not raise it.
      languages: {split: the languages whose rows it is made of}; all languages where a split is missing.

    Returns: a row for each (law, split): r2, low, high, the difference from the first law on the rows that both
    predict with its interval, the number of test rows, the share of them out of range, reasons for missing values.

    Raises:
      MscaleError: the laws are fitted to different schedule phases.
    """
    options_of = {
        label: FitOptions.of(**{name: value for name, value in arguments.items() if name != "law"})
        for label, arguments in contenders.items()
    }
    if len({None if one.phases is None else tuple(one.phases) for one in options_of.values()}) > 1:
        listed = ", ".join(f"{label}: {one.phases}" for label, one in options_of.items())
        raise MscaleError(
            f"phases differ between the laws ({listed}): "
            f"laws are compared on the same runs in the same phase of their schedule; give all the same phases="
        )
    languages_of = {split: (languages or {}).get(split) for split in splits}
    found = {
        label: held_out.predict_splits(
            arguments.get("law", label), table, languages_of, options_of[label], seed
        )
        for label, arguments in contenders.items()
    }
    records = []
    for split in splits:
        first = None
        for label, frames in found.items():
            frame = frames[split]
            record: dict[str, Any] = {"law": label, "split": split}
            records.append(record)
            if isinstance(frame, MscaleError):
                record |= {"r2": np.nan, "tested": 0, "reason": str(frame)}
                continue
            record |= {
                "r2": r2(frame, within),
                "tested": len(frame),
                "out_of_range": float((~frame["in_range"].astype(bool)).mean()) if len(frame) else np.nan,
                "reason": "; ".join(f"{name}: {why}" for name, why in frame.attrs["refused"].items()),
            }
            resample = functools.partial(_resampled, draws=draws, seed=seed, within=within)
            tails = [(1 - level) / 2, (1 + level) / 2]
            if len(frame):
                record["low"], record["high"] = np.quantile(resample([frame])[0], tails)
            if first is None:
                first = frame
                continue
            base, other = _paired(first, frame)
            if len(other):
                record["difference"] = r2(other, within) - r2(base, within)
                resampled = resample([base, other])
                difference = resampled[1] - resampled[0]
                record["difference_low"], record["difference_high"] = np.quantile(difference, tails)
    order = ["law", "split", "r2", "low", "high", "difference", "difference_low", "difference_high"]
    order += ["tested", "out_of_range", "reason"]
    return pd.DataFrame(records).reindex(columns=order)


def _paired(first: pd.DataFrame, other: pd.DataFrame) -> tuple[pd.DataFrame, pd.DataFrame]:
    """The rows that both frames predict, in the order of the first."""
    keys = [pd.MultiIndex.from_arrays([frame["fold"], frame.index]) for frame in (first, other)]
    if keys[0].equals(keys[1]):
        return first, other
    both = keys[0].intersection(keys[1], sort=False)
    return first.set_axis(keys[0]).loc[both], other.set_axis(keys[1]).loc[both]


def _resampled(frames: Sequence[pd.DataFrame], draws: int, seed: int, within: bool) -> np.ndarray:
    """R² on resampled groups, the same groups in every frame: (len(frames), draws)."""
    group, names = pd.factorize(frames[0]["group"])
    # How often each group is in a resample with replacement, (draws, groups).
    shares = np.full(len(names), 1 / len(names))
    counts = np.random.default_rng(seed).multinomial(len(names), shares, draws).astype(float)
    result = []
    for frame in frames:
        y = frame["observed"].to_numpy(float)
        error = y - frame["predicted"].to_numpy(float)
        level = pd.factorize(frame["level"])[0] if within else np.zeros(len(y), int)
        shape = (len(names), level.max() + 1)
        cell = group * shape[1] + level
        # Sums over the rows of a group in a level; a resample weighs them by the counts of its groups.
        rows, sums, squares, residual = (
            np.bincount(cell, values, shape[0] * shape[1]).reshape(shape)
            for values in (np.ones(len(y)), y, y**2, error**2)
        )
        total = counts @ squares - (counts @ sums) ** 2 / np.maximum(counts @ rows, 1)
        result.append(1 - (counts @ residual).sum(axis=1) / np.maximum(total.sum(axis=1), 1e-300))
    return np.array(result)
