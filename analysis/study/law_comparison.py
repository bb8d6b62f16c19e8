"""How well the laws predict runs they were not fitted to: the comparison of ATLAS's Table 1, on a study.

Every law is fitted to the same cooled rows and asked for the same held-out rows. R² is pooled over languages
about each language's own mean, so that languages' different levels earn nothing.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import pandas as pd

from analysis.study.laws import atlas_rows
from analysis.validation.compare import judge
from analysis.validation.splits import folds
from mscale.errors import MscaleError

SPLITS = {
    "R2": "each random fifth of the trunks in turn",
    "R2_M": "unseen mixtures",
    "leave_one_scale_out": "each size in turn",
}
# Mean and deviation of a prior on τ: where the runs that tell two sources apart are held out, their τ would otherwise
# run off in opposite directions. The published scores imply τ from −0.4 to 0.3.
TAU = (0.0, 0.5)
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
    """Held-out R² of each law on each of `analysis.validation.compare`' splits.

    Languages whose training rows cannot tell their A and E apart (one size) are left out of a split, of every
    law alike; a split that leaves nothing is left out whole.

    Returns:
      Records law, split, r2 (within languages) with low and high, difference from Chinchilla with difference_low and
      difference_high, n (losses held out), reason. Intervals resample the trunks that were held out.
    """
    table = atlas_rows(rows)
    contenders: dict[str, dict[str, Any]] = {
        "Chinchilla": {"law": "chinchilla", "share": ("alpha", "beta")},
        "ATLAS, D_t only": {"law": "atlas", "variant": "D_t"},
    }
    if exposure is not None:
        how: dict[str, Any] = {"law": "atlas", "exposure": exposure}
        contenders["ATLAS, + D_other"] = {**how, "variant": "D_other", "priors": {"tau_other": TAU}}
        priors = {"tau": TAU, "tau_other": TAU}
        contenders["ATLAS, + K_t"] = {**how, "variant": "K_t", "sources": sources, "priors": priors}
    tellable = {split: set(_tellable(table, split)["language"]) for split in splits}
    shown = {split: languages for split, languages in tellable.items() if languages}
    if not shown:
        return []
    found = judge(contenders, table, [*shown], level=level, within=True, draws=DRAWS, shown=shown, seed=seed)
    found = found.rename(columns={"tested": "n"})
    found["reason"] = found["reason"].fillna("") if "reason" in found else ""
    # R² over a handful of losses is an accident, not a measurement.
    few = found["n"].fillna(0) < LEAST_TESTED
    numbers = ["r2", "low", "high", "difference", "difference_low", "difference_high"]
    found.loc[few, [name for name in numbers if name in found]] = float("nan")
    found.loc[few & (found["reason"] == ""), "reason"] = f"fewer than {LEAST_TESTED} losses held out"
    return found.reindex(columns=["law", "split", *numbers, "n", "reason"]).to_dict("records")


def _tellable(table: pd.DataFrame, split: str) -> pd.DataFrame:
    """The rows of languages that every fold still trains at two sizes or more, one of them at three (for α).

    None where nothing is held out, or too little is left.
    """
    try:
        masks = list(folds(table, split).values())
    except MscaleError:
        return table.head(0)
    good = set(table["language"])
    for held in masks:
        sizes = table[~held].groupby("language")["params"].nunique()
        good &= set(sizes[sizes >= 2].index) if sizes.max() >= 3 else set()
    shown = table[table["language"].isin(good)]
    # Fewer languages may leave nothing to hold out.
    try:
        folds(shown, split)
    except MscaleError:
        return table.head(0)
    return shown
