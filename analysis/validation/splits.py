"""The train-test splits that laws are compared on: the five of ATLAS, leave one scale out, leave one language out.

A split is a set of folds, each a mask of test rows; the law is fitted to the other rows. In a random split the runs of
one group (root trunk) are all in the same fold.
"""

from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd

from analysis.tables.checks import from_scratch
from mscale.errors import MscaleError

ATLAS_SPLITS = ("R2", "R2_N", "R2_D", "R2_C", "R2_M")
LEAVE_ONE_OUT_SPLITS = ("leave_one_scale_out", "leave_one_language_out")
TEST_SHARE = 0.2


def folds(
    table: pd.DataFrame,
    split: str,
    *,
    seed: int = 0,
    columns: Mapping[str, str] | None = None,
) -> dict[str, np.ndarray]:
    """The test masks of a split, {name: (n,) bool}.

    Args:
      split: "R2" (a random fifth of the groups, each fifth in turn), "R2_N" (the largest fifth of the scales),
        "R2_D" (the fifth of the rows with most tokens), "R2_C" (with most compute), "R2_M" (mixtures that are not
        monolingual, bilingual or UniMax), "leave_one_scale_out" or "leave_one_language_out".
      columns: {"N", "D" or "group": the table's column}.

    Raises:
      MscaleError: no such split, or the table has nothing to hold out.
    """
    names_of = dict(columns or {})
    if not len(table):
        raise MscaleError(f"split {split!r}: the table has no rows, hence nothing to hold out")
    if split == "R2":
        group = names_of.get("group") or next((name for name in ("group", "run") if name in table), None)
        names = (
            table[group].astype(str) if group else pd.Series(np.arange(len(table)).astype(str), table.index)
        )
        unique = np.random.default_rng(seed).permutation(np.array(sorted(names.unique())))
        parts = np.array_split(unique, min(max(2, round(1 / TEST_SHARE)), len(unique)))
        found = {f"part {number}": names.isin(part).to_numpy() for number, part in enumerate(parts, 1)}
        return _require_two(found, "group")
    if split == "R2_M":
        return {"mixtures": _mixture_rows(table)}
    if split == "leave_one_language_out":
        language = _column(table, "language")
        found = {str(name): (language == name).to_numpy() for name in sorted(language.unique())}
        return _require_two(found, "language")
    N = _column(table, names_of.get("N", "params")).to_numpy(float)
    if split in ("R2_N", "leave_one_scale_out"):
        sizes = np.unique(N)
        if split == "R2_N":
            largest = sizes[-max(1, round(TEST_SHARE * len(sizes))) :]
            _require_two({str(size): size == N for size in sizes}, "scale")
            return {"largest scales": np.isin(N, largest)}
        return _require_two({f"{size:.4g}": size == N for size in sizes}, "scale")
    if split in ("R2_D", "R2_C"):
        D = _column(table, names_of.get("D", "tokens" if "tokens" in table else "target_tokens")).to_numpy(
            float
        )
        amount = D if split == "R2_D" else N * D
        test = amount >= np.quantile(amount, 1 - TEST_SHARE, method="higher")
        if test.all():
            raise MscaleError(f"{split}: every row has the same {'tokens' if split == 'R2_D' else 'compute'}")
        return {"most tokens" if split == "R2_D" else "most compute": test}
    raise MscaleError(f"no split {split!r}; there are {', '.join((*ATLAS_SPLITS, *LEAVE_ONE_OUT_SPLITS))}")


def _require_two(masks: dict[str, np.ndarray], unit: str) -> dict[str, np.ndarray]:
    """The masks; raises MscaleError where there is only one."""
    if len(masks) < 2:
        raise MscaleError(f"only one {unit}: holding it out leaves nothing to fit")
    return masks


def _column(table: pd.DataFrame, name: str) -> pd.Series:
    """A column; raises MscaleError where the table lacks it."""
    if name not in table:
        raise MscaleError(f"splits: the table has no column {name!r}; name yours with columns=")
    return table[name]


def _mixture_rows(table: pd.DataFrame) -> np.ndarray:
    """Mask (n,) of mixtures of three or more languages other than UniMax."""
    count = _column(table, "languages").astype(str).str.count(r"\+") + 1
    unimax = table["mixture"].astype(str).str.startswith("unimax") if "mixture" in table else False
    test = ((count > 2) & ~unimax).to_numpy()
    if not test.any():
        raise MscaleError("R2_M: no mixture of three or more languages other than UniMax to hold out")
    if test.all():
        raise MscaleError("R2_M: no monolingual, bilingual or UniMax run to fit")
    return test


def comparable_rows(table: pd.DataFrame, phases: Sequence[str] | None = ("end",)) -> pd.DataFrame:
    """The rows that laws of pretraining are compared on: of these phases, from scratch, of languages of the mixture.

    Raises:
      MscaleError: no row is in these phases.
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
    table = table[from_scratch(table)]
    if "target_tokens" in table:
        table = table[table["target_tokens"] > 0]
    return table
