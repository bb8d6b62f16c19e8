"""Held-out R² of the laws side by side: the comparison of Table 1 of ATLAS (Longpre et al. 2026), on a study.

Every law is fitted to the same cooled rows and predicts the same held-out rows. R² is computed within languages, so
that differences in difficulty between languages do not raise it.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import pandas as pd

from analysis.study.laws import atlas_rows
from analysis.validation.compare import judge
from analysis.validation.splits import folds
from mscale.errors import MscaleError

COMPARED_SPLITS = ("R2", "R2_M", "leave_one_scale_out")
# Mean and standard deviation of a prior on τ. Without it the τ of two sources diverge in opposite directions where the
# runs that distinguish them are held out. The published scores imply τ from −0.4 to 0.3.
_TAU_PRIOR = (0.0, 0.5)
_BOOTSTRAP_DRAWS = 400
_MIN_HELD_OUT = 12


def compare_laws(
    rows: pd.DataFrame,
    exposure: pd.DataFrame | None,
    sources: Mapping[str, Sequence[str]],
    level: float,
    seed: int = 0,
    splits: Sequence[str] = COMPARED_SPLITS,
) -> list[dict]:
    """Held-out R² of each law on each of the splits of `analysis.validation.splits`.

    Languages whose A and E the training rows do not identify (one size) are left out of a split, for all laws. A split
    without any other languages is left out.

    Returns:
      Records law, split, r2 (within languages) with low and high, difference from Chinchilla with difference_low and
      difference_high, n (losses held out), reason. Intervals resample the held-out trunks.
    """
    table = atlas_rows(rows)
    contenders: dict[str, dict[str, Any]] = {
        "chinchilla": {"law": "chinchilla", "share": ("alpha", "beta")},
        "atlas_D_t": {"law": "atlas", "variant": "D_t"},
    }
    if exposure is not None:
        with_exposure: dict[str, Any] = {"law": "atlas", "exposure": exposure}
        contenders["atlas_D_other"] = {
            **with_exposure,
            "variant": "D_other",
            "priors": {"tau_other": _TAU_PRIOR},
        }
        priors = {"tau": _TAU_PRIOR, "tau_other": _TAU_PRIOR}
        contenders["atlas_K_t"] = {**with_exposure, "variant": "K_t", "sources": sources, "priors": priors}
    identifiable = {split: set(identifiable_rows(table, split)["language"]) for split in splits}
    languages = {split: names for split, names in identifiable.items() if names}
    if not languages:
        return []
    found = judge(
        contenders,
        table,
        [*languages],
        level=level,
        within=True,
        draws=_BOOTSTRAP_DRAWS,
        languages=languages,
        seed=seed,
    )
    found = found.rename(columns={"tested": "n"})
    found["reason"] = found["reason"].fillna("") if "reason" in found else ""
    # R² over this few losses has no meaning.
    few = found["n"].fillna(0) < _MIN_HELD_OUT
    numbers = ["r2", "low", "high", "difference", "difference_low", "difference_high"]
    found.loc[few, [name for name in numbers if name in found]] = float("nan")
    found.loc[few & (found["reason"] == ""), "reason"] = f"fewer than {_MIN_HELD_OUT} losses held out"
    return found.reindex(columns=["law", "split", *numbers, "n", "reason"]).to_dict("records")


def identifiable_rows(table: pd.DataFrame, split: str) -> pd.DataFrame:
    """The rows of the languages whose parameters the training rows of every fold identify.

    In every fold such a language has two sizes or more, and some language three (for α). No rows where the split cannot
    be made, with all languages or with those that remain.
    """
    try:
        masks = list(folds(table, split).values())
    except MscaleError:
        return table.head(0)
    identified = set(table["language"])
    for held_out in masks:
        sizes = table[~held_out].groupby("language")["params"].nunique()
        identified &= set(sizes[sizes >= 2].index) if sizes.max() >= 3 else set()
    shown = table[table["language"].isin(identified)]
    try:
        folds(shown, split)
    except MscaleError:
        return table.head(0)
    return shown
