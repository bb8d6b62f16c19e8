"""Judging laws on what they were not fitted to.

R² is pooled over all tested rows (all languages and folds together).
"""

import functools
from collections.abc import Collection, Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd

from analysis.validation import held_out
from analysis.validation.splits import SHARE, SPLITS, folds
from mscale.errors import MscaleError

__all__ = ["SHARE", "SPLITS", "folds", "judge", "predictions", "r2"]


def predictions(
    law: Any, table: pd.DataFrame, split: str, *, seed: int = 0, share_of: float = SHARE, **how: Any
) -> pd.DataFrame:
    """Every tested row with its observed and predicted value, fold, level, group and whether it was in range.

    `how` goes to `analysis.fit`. A fold that cannot be fitted is left out and said in the frame's attrs["refused"].
    """
    found = held_out.predictions(law, table, {split: None}, how, seed, share_of)[split]
    if isinstance(found, MscaleError):
        raise found
    return found


def r2(found: pd.DataFrame, within: bool = False) -> float:
    """R² of a `predictions` frame, about the mean of all rows, or (within) about each level's own."""
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
    splits: Sequence[str] = SPLITS,
    *,
    level: float = 0.9,
    within: bool = False,
    draws: int = 1000,
    shown: Mapping[str, Collection[str]] | None = None,
    seed: int = 0,
) -> pd.DataFrame:
    """Laws side by side.

    Args:
      contenders: {label: arguments of `analysis.fit`, with "law"}; the first is what the others are compared with.
      splits: names of `folds`. level: of the intervals, which resample the tested groups.
      within: R² about each level's own mean, so that languages' different levels earn nothing.
      shown: {split: the languages that it is made of}; all of the table's where it has none.

    Returns: a row a (law, split): r2, low, high, difference from the first law on the rows both predict
    with its interval, tested rows, share out of range, and why what is missing is missing.
    """
    asked = {label: how.get("phases", ("end",)) for label, how in contenders.items()}
    if len({None if phases is None else tuple(phases) for phases in asked.values()}) > 1:
        raise MscaleError(
            f"phases differ between the laws ({', '.join(f'{label}: {phases}' for label, phases in asked.items())}): "
            f"laws are compared on the same runs in the same phase of their schedule; give all the same phases="
        )
    of = {split: (shown or {}).get(split) for split in splits}
    found: dict[str, dict[str, held_out.Answer]] = {}
    for label, arguments in contenders.items():
        how = dict(arguments)
        found[label] = held_out.predictions(how.pop("law", label), table, of, how, seed)
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
            base, mine = _paired(first, frame)
            if len(mine):
                record["difference"] = r2(mine, within) - r2(base, within)
                drawn = resample([base, mine])
                record["difference_low"], record["difference_high"] = np.quantile(drawn[1] - drawn[0], tails)
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


def _paired(first: pd.DataFrame, other: pd.DataFrame) -> tuple[pd.DataFrame, pd.DataFrame]:
    """The rows that both predict, in the order of the first."""
    keys = [pd.MultiIndex.from_arrays([frame["fold"], frame.index]) for frame in (first, other)]
    if keys[0].equals(keys[1]):
        return first, other
    both = keys[0].intersection(keys[1], sort=False)
    return first.set_axis(keys[0]).loc[both], other.set_axis(keys[1]).loc[both]


def _resampled(frames: Sequence[pd.DataFrame], draws: int, seed: int, within: bool) -> np.ndarray:
    """(len(frames), draws): R² on resampled groups, the same groups in every frame."""
    group, names = pd.factorize(frames[0]["group"])
    times = _times(len(names), draws, seed)
    result = []
    for frame in frames:
        y = frame["observed"].to_numpy(float)
        error = y - frame["predicted"].to_numpy(float)
        level = pd.factorize(frame["level"])[0] if within else np.zeros(len(y), int)
        shape = (len(names), level.max() + 1)
        cell = group * shape[1] + level
        # Sums over the rows of a group in a level: they count as often as the group is drawn.
        rows, sums, squares, lost = (
            np.bincount(cell, values, shape[0] * shape[1]).reshape(shape)
            for values in (np.ones(len(y)), y, y**2, error**2)
        )
        spread = times @ squares - (times @ sums) ** 2 / np.maximum(times @ rows, 1)
        result.append(1 - (times @ lost).sum(axis=1) / np.maximum(spread.sum(axis=1), 1e-300))
    return np.array(result)


@functools.lru_cache(maxsize=8)
def _times(groups: int, draws: int, seed: int) -> np.ndarray:
    """(draws, groups): how often each group is drawn, with replacement."""
    return np.random.default_rng(seed).multinomial(groups, np.full(groups, 1 / groups), draws).astype(float)
