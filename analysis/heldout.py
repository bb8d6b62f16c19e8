"""How well the laws predict runs they were not fitted to: the comparison of ATLAS's Table 1, on a study.

Every law is fitted to the same cooled rows and asked for the same held-out rows. R² is pooled over languages
about each language's own mean, so that languages' different levels earn nothing.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import pandas as pd

from analysis.lawfits import atlas_rows
from analysis.splits import folds, judge
from mscale.errors import MscaleError

SPLITS = {
    "R2": "a random fifth of trunks",
    "R2_M": "unseen mixtures",
    "leave_one_scale_out": "each size in turn",
}
DRAWS = 400
LEAST_TESTED = 12


def compare(
    rows: pd.DataFrame,
    exposure: pd.DataFrame | None,
    sources: Mapping[str, Sequence[str]],
    level: float,
    seed: int = 0,
    splits: Sequence[str] = tuple(SPLITS),
) -> list[dict]:
    """Held-out R² of each law on each of `analysis.splits`' splits.

    Languages whose training rows cannot tell their A and E apart (one size) are left out of a split, of every
    law alike; a split that leaves nothing is left out whole.

    Returns:
      Records law, split, r2 (within languages), difference from Chinchilla with its interval, n, reason.
    """
    table = atlas_rows(rows)
    contenders: dict[str, dict[str, Any]] = {
        "Chinchilla": {"law": "chinchilla", "share": ("alpha", "beta")},
        "ATLAS, D_t only": {"law": "atlas", "variant": "D_t"},
    }
    if exposure is not None:
        contenders["ATLAS, + D_other"] = {"law": "atlas", "variant": "D_other", "exposure": exposure}
        how = {"law": "atlas", "variant": "K_t", "exposure": exposure, "sources": sources}
        contenders["ATLAS, + K_t"] = how
    judged = []
    for split in splits:
        shown = _tellable(table, split)
        if len(shown):
            judged.append(judge(contenders, shown, [split], level=level, draws=DRAWS, seed=seed))
    if not judged:
        return []
    found = pd.concat(judged, ignore_index=True)
    found = found.rename(columns={"r2": "r2_between", "r2_within": "r2", "tested": "n"})
    found["reason"] = found["reason"].fillna("") if "reason" in found else ""
    # R² over a handful of losses is an accident, not a measurement.
    few = found["n"].fillna(0) < LEAST_TESTED
    numbers = ["r2", "r2_between", "difference", "difference_low", "difference_high"]
    found.loc[few, [name for name in numbers if name in found]] = float("nan")
    found.loc[few & (found["reason"] == ""), "reason"] = f"fewer than {LEAST_TESTED} losses held out"
    names = [
        "law",
        "split",
        "r2",
        "r2_between",
        "difference",
        "difference_low",
        "difference_high",
        "n",
        "reason",
    ]
    return found.reindex(columns=names).to_dict("records")


def _tellable(table: pd.DataFrame, split: str) -> pd.DataFrame:
    """The rows of languages that every fold still trains at two sizes or more; none where nothing is held out."""
    try:
        masks = list(folds(table, split).values())
    except MscaleError:
        return table.head(0)
    good = set(table["language"])
    for held in masks:
        sizes = table[~held].groupby("language")["params"].nunique()
        good &= set(sizes[sizes >= 2].index)
    shown = table[table["language"].isin(good)]
    # Fewer languages may leave nothing to hold out.
    try:
        folds(shown, split)
    except MscaleError:
        return table.head(0)
    return shown
