"""The splits that laws are judged on: the five of ATLAS, whole scales, whole languages.

A split is a set of folds, each a mask of test rows; what is not tested is fitted. Runs that share a root trunk never
stand on both sides of a random split.
"""

from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd

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
