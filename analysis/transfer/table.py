"""The transfer matrix of a study as one plain table: every pair, in every unit, measured, bounded or predicted."""

from collections.abc import Mapping
from typing import Any

import pandas as pd

from analysis.curves.study import study_curves
from analysis.transfer import adaptation, units
from analysis.transfer import matrix as transfer
from analysis.transfer.forest import Overlap, predicted
from analysis.transfer.matrix import main_scale
from mscale.errors import MscaleError, nearest

COLUMNS = ["unit", "scale", "params", "target", "source", "d", "phase", "status", "score", "low", "high"]
COLUMNS += ["bound", "censored", "tau", "level", "reason"]


def transfer_table(
    rows: pd.DataFrame,
    *,
    d: float | None = None,
    scale: str | None = None,
    phase: str = "stable",
    split: str | None = None,
    vocabulary: str | None = None,
    run_noise: float | None = None,
    premiums: Mapping[str, float] | None = None,
    fertility: Mapping[str, float] | None = None,
    overlap: Overlap | None = None,
    planted: Mapping[str, Mapping[str, Any]] | None = None,
    level: float = transfer.LEVEL,
    seed: int = 0,
) -> tuple[pd.DataFrame, dict[str, Any]]:
    """The bilingual transfer score of every ordered pair, per token, and per byte and content where that is known.

    Args:
      rows: observations (`tables.read_study`). d: reference tokens, by default what each scale allows most pairs.
      scale: that one alone. phase: "stable" or "end" (cooled with cooled). split, vocabulary: the one to take, where
        there are several.
      run_noise: see `transfer.cells`.
      fertility: bytes per token of languages, where the observations do not tell.
      premiums, overlap, planted: what else is known of the languages, see `transfer_answers`.

    Returns:
      A row for each unit, scale and ordered pair with the columns of `COLUMNS`: `status` is measured, bound,
      predicted or missing, `censored` whether the score is a bound. And what goes with it: {"scale" (the one with
      most pairs), "noise" (of the curves), "predicted" (of the pairs not run, at that scale), "units_missing" (why
      there are no bytes or content), "left_out" (runs, and why), "cells" (what `curves` reads)}.

    Raises:
      MscaleError: no 50/50 run, no such scale, or tables that mix what cannot be compared.
    """
    if d is not None and not 0 < d < float("inf"):
        raise MscaleError(f"transfer: d is {d:g}, expected a positive number of tokens")
    study = study_curves(one_vocabulary(rows, vocabulary), split=split)
    rows = study.observations
    cells = transfer.cells(study, run_noise=run_noise, seed=seed)
    paired = sorted({at for at, languages in cells.points if len(languages) == 2})
    if not paired:
        raise MscaleError(
            "transfer: no 50/50 run of two languages at a constant rate or cooled: a score needs one, and each "
            f"language alone{'; '.join(['', *cells.left_out])}"
        )
    if scale is not None and scale not in paired:
        raise MscaleError(f"transfer: no 50/50 run at scale {scale!r}; found {', '.join(paired)}")
    matrix = transfer.transfer_matrix(
        cells, d=d, scales=None if scale is None else [scale], phase=phase, level=level
    )
    main = main_scale(matrix, cells)
    chosen = matrix["scale"] == main
    others: dict[str, Any] = {"cells": [], "reason": "every pair was run"}
    if (matrix.loc[chosen, "status"] == "missing").any():
        others = predicted(matrix[chosen], adaptation.adaptation_scores(study), planted, overlap, level, seed)
    frames = [matrix.assign(unit="tokens")]
    counted, reasons = units.all_units(matrix, rows, premiums, fertility)
    frames += [table.assign(unit=name) for name, table in counted.items()]
    table = pd.concat(frames, ignore_index=True)
    place = {(row["target"], row["source"]): row for row in others["cells"]}
    fill = (table["unit"] == "tokens") & (table["scale"] == main) & (table["status"] == "missing")
    for index in table.index[fill]:
        row = place.get((table.at[index, "target"], table.at[index, "source"]))
        if row is not None:
            for name in ("score", "low", "high", "status"):
                table.at[index, name] = row[name]
            table.at[index, "reason"] = "predicted from other pairs: " + str(table.at[index, "reason"])
    table["censored"] = table["status"] == "bound"
    table["level"] = level
    about = {
        "scale": main,
        "noise": cells.noise[phase],
        "predicted": {name: value for name, value in others.items() if name != "cells"},
        "units_missing": reasons,
        "left_out": cells.left_out,
        "cells": cells,
    }
    return table.reindex(columns=COLUMNS), about


def one_vocabulary(rows: pd.DataFrame, vocabulary: str | None) -> pd.DataFrame:
    """The rows of one vocabulary; raises MscaleError where the table has none of that name."""
    if vocabulary is None:
        return rows
    found = sorted(set(map(str, rows["vocabulary"])))
    if vocabulary not in found:
        raise MscaleError(
            f"no vocabulary {vocabulary!r} in the table{nearest(vocabulary, found)}; found {', '.join(found)}"
        )
    return rows[rows["vocabulary"].astype(str) == vocabulary]


def curves(cells: transfer.Cells, table: pd.DataFrame) -> pd.DataFrame:
    """The scores over d of every pair of a `transfer_table` that was run, with the columns of `transfer.COLUMNS`."""
    run = table[(table["unit"] == "tokens") & table["status"].isin(["measured", "bound"])]
    columns = ("target", "source", "scale", "phase", "level")
    frames = [
        transfer.transfer_curve(cells, target, source, scale=scale, phase=phase, level=level)
        for target, source, scale, phase, level in run[list(columns)].itertuples(index=False, name=None)
    ]
    return pd.concat(frames, ignore_index=True) if frames else pd.DataFrame(columns=transfer.COLUMNS)


def cell(row: Mapping[str, Any]) -> str:
    """A score as a matrix shows it: +0.21* where its interval leaves out zero, ≤ or ≥ a bound, (predicted)."""
    if row["status"] == "missing" or row["score"] != row["score"]:
        return "·"
    text = f"{row['score']:+.2f}".replace("-", "−")
    if row["status"] == "bound":
        return ("≤" if row["bound"] == "at most" else "≥") + text
    if row["status"] == "predicted":
        return f"({text})"
    return text + ("*" if row["low"] > 0 or row["high"] < 0 else "")
