"""The transfer matrix of a study as one table: every pair in every unit, measured, bounded, predicted or missing."""

from collections.abc import Mapping
from typing import Any

import pandas as pd

from analysis.curves.study import study_curves
from analysis.tables.remarks import remark_text
from analysis.transfer import adaptation, units
from analysis.transfer import matrix as transfer
from analysis.transfer.forest import VocabularyOverlap, predict_missing_pairs
from analysis.transfer.matrix import main_scale
from mscale.errors import MscaleError, nearest

TRANSFER_TABLE_COLUMNS = ["unit", "scale", "params", "target", "source", "d", "phase", "status", "score"]
TRANSFER_TABLE_COLUMNS += ["low", "high", "bound", "censored", "tau", "level", "reason"]


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
    overlap: VocabularyOverlap | None = None,
    planted: Mapping[str, Mapping[str, Any]] | None = None,
    level: float = transfer.INTERVAL_LEVEL,
    seed: int = 0,
) -> tuple[pd.DataFrame, dict[str, Any]]:
    """The bilingual transfer score of every ordered pair, per token and, where known, per byte and per content.

    Args:
      rows: observations (`tables.observations.read_study`).
      d: reference tokens; by default `matrix.reference_tokens` of each scale.
      scale: one scale only; by default all.
      phase: "stable" (runs at a constant rate) or "end" (cooled runs).
      split, vocabulary: the one to use, where the rows have several.
      run_noise: see `matrix.transfer_cells`.
      premiums: byte premium of each language. fertility: bytes per token of languages, in place of the observations'.
      overlap: shared vocabulary of languages. planted: languages of a generated corpus' truth.json.
      level: of the intervals.

    Returns:
      A table with the columns `TRANSFER_TABLE_COLUMNS`, one row for each unit, scale and ordered pair. `status` is
      measured, bound, predicted or missing; `censored` is true for bounds. And a dictionary: "scale" (the one with most
      pairs), "noise" (of the curves), "predicted" (of the predictions at that scale), "units_missing" (why there are no
      bytes or content), "left_out" (which runs, and why) and "cells" (for `scores_over_d`).

    Raises:
      MscaleError: there is no 50/50 run or no such scale, or the rows are of several vocabularies or splits.
    """
    if d is not None and not 0 < d < float("inf"):
        raise MscaleError(f"transfer: d is {d:g}, expected a positive number of tokens")
    study = study_curves(one_vocabulary(rows, vocabulary), split=split)
    rows = study.observations
    cells = transfer.transfer_cells(study, run_noise=run_noise, seed=seed)
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
    predicted: dict[str, Any] = {"cells": [], "reason": "every pair was run"}
    if (matrix.loc[chosen, "status"] == "missing").any():
        predicted = predict_missing_pairs(
            matrix[chosen], adaptation.adaptation_scores(study), planted, overlap, level, seed
        )
    frames = [matrix.assign(unit="tokens")]
    counted, reasons = units.scores_in_all_units(matrix, rows, premiums, fertility)
    frames += [table.assign(unit=name) for name, table in counted.items()]
    table = pd.concat(frames, ignore_index=True)
    predictions = {(row["target"], row["source"]): row for row in predicted["cells"]}
    missing = (table["unit"] == "tokens") & (table["scale"] == main) & (table["status"] == "missing")
    for index, target, source in table.loc[missing, ["target", "source"]].itertuples():
        if row := predictions.get((target, source)):
            names = ["score", "low", "high", "status"]
            table.loc[index, names] = [row[name] for name in names]
    why = table["reason"].map(remark_text)
    table["reason"] = why.where(table["status"] != "predicted", "predicted from other pairs: " + why)
    table["censored"] = table["status"] == "bound"
    table["level"] = level
    about = {
        "scale": main,
        "noise": cells.noise[phase],
        "predicted": {name: value for name, value in predicted.items() if name != "cells"},
        "units_missing": reasons,
        "left_out": cells.left_out,
        "cells": cells,
    }
    return table.reindex(columns=TRANSFER_TABLE_COLUMNS), about


def one_vocabulary(rows: pd.DataFrame, vocabulary: str | None) -> pd.DataFrame:
    """The rows of one vocabulary, or all for None; raises MscaleError where there is none of that name."""
    if vocabulary is None:
        return rows
    found = sorted(set(map(str, rows["vocabulary"])))
    if vocabulary not in found:
        raise MscaleError(
            f"no vocabulary {vocabulary!r} in the table{nearest(vocabulary, found)}; found {', '.join(found)}"
        )
    return rows[rows["vocabulary"].astype(str) == vocabulary]


def scores_over_d(cells: transfer.TransferCells, table: pd.DataFrame) -> pd.DataFrame:
    """The curves of scores over d of all pairs of a `transfer_table` that were run (`matrix.SCORE_COLUMNS`).

    Args:
      cells: entry "cells" of what `transfer_table` returns. table: the table that it returns.
    """
    run = table[(table["unit"] == "tokens") & table["status"].isin(["measured", "bound"])]
    columns = ("target", "source", "scale", "phase", "level")
    frames = [
        transfer.transfer_curve(cells, target, source, scale=scale, phase=phase, level=level)
        for target, source, scale, phase, level in run[list(columns)].itertuples(index=False, name=None)
    ]
    return pd.concat(frames, ignore_index=True) if frames else pd.DataFrame(columns=transfer.SCORE_COLUMNS)


def format_score(row: Mapping[str, Any]) -> str:
    """A score as text: +0.21, with * where its interval excludes 0, ≤ or ≥ for a bound, brackets for a prediction."""
    if row["status"] == "missing" or row["score"] != row["score"]:
        return "·"
    text = f"{row['score']:+.2f}".replace("-", "−")
    if row["status"] == "bound":
        return ("≤" if row["bound"] == "at most" else "≥") + text
    if row["status"] == "predicted":
        return f"({text})"
    return text + ("*" if row["low"] > 0 or row["high"] < 0 else "")
