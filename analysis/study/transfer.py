"""The section "transfer" of laws.json: matrix, curves, units, statistics, predicted pairs, and what to run next."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from analysis.curves.study import StudyCurves
from analysis.tables import languages as inventory
from analysis.tables import published
from analysis.tables.records import records
from analysis.transfer import adaptation, pair_selection, statistics, units
from analysis.transfer import matrix as transfer
from analysis.transfer.forest import VocabularyOverlap, predict_missing_pairs
from analysis.transfer.matrix import main_scale
from mscale.errors import MscaleError

_NEXT_PAIRS = 5


@dataclass(frozen=True)
class MeasuredTransfer:
    """The transfer cells of a study, and the scores of its pairs at each scale.

    Attributes:
      cells: None where they cannot be made, for the reason in `error`.
      matrix: columns `matrix.SCORE_COLUMNS`; no rows where no pair was run.
      adaptation: see `adaptation.adaptation_scores`.
      scale: the one that the report shows (`main_scale`).
    """

    cells: transfer.TransferCells | None
    matrix: pd.DataFrame
    adaptation: pd.DataFrame
    scale: str = ""
    error: str = ""

    @property
    def main_matrix(self) -> pd.DataFrame:
        """The matrix at the scale that the report shows."""
        return self.matrix[self.matrix["scale"] == self.scale] if len(self.matrix) else self.matrix


def measured_matrix(study: StudyCurves, level: float, seed: int) -> MeasuredTransfer:
    """The scores of a study; the sources of the ATLAS law are chosen by them, too."""
    try:
        cells = transfer.transfer_cells(study, seed=seed)
    except MscaleError as error:
        return MeasuredTransfer(None, pd.DataFrame(), pd.DataFrame(), error=str(error))
    matrix = transfer.transfer_matrix(cells, level=level)
    adapted = adaptation.adaptation_scores(study, noise=cells.noise.get("stable"), level=level)
    return MeasuredTransfer(cells, matrix, adapted, main_scale(matrix, cells) if len(matrix) else "")


def transfer_results(
    study: StudyCurves,
    measured: MeasuredTransfer,
    truth: Mapping[str, Any] | None,
    level: float,
    seed: int,
    premiums: Mapping[str, float] | None = None,
) -> dict:
    """The results that need the curves: matrix, scores over d, other units, agreement with the planted relatedness.

    Args:
      premiums: byte premium of each language, see `units.scores_in_all_units`.
    """
    cells, matrix = measured.cells, measured.matrix
    if cells is None:
        return {"predicted": {"cells": [], "reason": measured.error}, "error": measured.error}
    noise = {
        phase: {"checkpoint": value.checkpoint, "run": value.run, "repeated_runs": value.run_degrees}
        for phase, value in cells.noise.items()
    }
    answer: dict[str, Any] = {
        "noise": noise,
        "matrix": records(matrix),
        "adaptation": records(measured.adaptation),
    }
    answer["predicted"] = {"cells": [], "reason": "no pair was run"}
    if matrix.empty:
        return {**answer, "error": "no 50/50 bilingual run, hence no transfer score"}
    main, chosen = measured.scale, measured.main_matrix
    answer |= {"scale": main, "d": float(chosen["d"].max()), "params": cells.params.get(main)}
    ran = chosen[chosen["status"] != "missing"]
    pairs = list(zip(ran["target"], ran["source"], strict=True))
    cooled = transfer.transfer_curves(cells, pairs, scale=main, level=level, phase="end")
    answer["curves"] = records(transfer.transfer_curves(cells, pairs, scale=main, level=level))
    answer["cooled"] = records(cooled[cooled["status"] == "measured"])
    counted, reasons = units.scores_in_all_units(chosen, study.observations, premiums)
    answer["units"] = {name: records(table) for name, table in counted.items()}
    answer["units_missing"] = reasons
    if truth:
        agreement = statistics.relatedness_agreement(chosen, dict(truth), seed=seed)
        answer["agreement"] = {**agreement, "table": records(agreement["table"])}
    return answer


def matrix_results(
    matrix: pd.DataFrame,
    adapted: pd.DataFrame,
    planted: Mapping[str, Mapping[str, Any]] | None,
    overlap: VocabularyOverlap | None,
    level: float,
    seed: int,
) -> dict:
    """The results that follow from the matrix at one scale: statistics, predicted pairs, next pairs, published scores.

    Args:
      matrix, adapted: `MeasuredTransfer.main_matrix` and `.adaptation`.
      planted: the languages of a generated corpus. overlap: shared vocabulary, see `inventory.pair_features`.
    """
    if matrix.empty:
        return {}
    return {
        "statistics": _statistics(matrix, planted, level, seed),
        "predicted": predict_missing_pairs(matrix, adapted, planted, overlap, level, seed),
        "next_pairs": _next_pairs(matrix, planted, overlap),
        "published": published_comparison(matrix, level),
    }


def published_comparison(matrix: pd.DataFrame, level: float) -> dict[str, Any] | None:
    """Correlation of the measured cells with the published ones; None for fewer than four common cells.

    The interval is a jackknife over languages; its ends are None where there are too few of these.
    """
    common = published.join_published_scores(matrix)
    if len(common) < 4:
        return None
    languages = sorted(set(common["target"]) | set(common["source"]))
    measured = statistics.score_matrix(records(common), languages)
    paper = statistics.score_matrix(records(common.assign(score=common["published"])), languages)

    def correlation(keep: np.ndarray) -> float:
        one, other = measured[np.ix_(keep, keep)].ravel(), paper[np.ix_(keep, keep)].ravel()
        both = np.isfinite(one + other)
        return float(np.corrcoef(one[both], other[both])[0, 1]) if both.sum() > 2 else float("nan")

    found: dict[str, Any] = {"pairs": len(common), "low": None, "high": None, "table": records(common)}
    found["correlation"] = correlation(np.arange(len(languages)))
    if len(languages) >= statistics.MIN_LANGUAGES:
        _, low, high = statistics.jackknife(correlation, len(languages), level)
        found |= {"low": max(low, -1.0), "high": min(high, 1.0)}
    return found


def _statistics(
    matrix: pd.DataFrame, planted: Mapping[str, Mapping[str, Any]] | None, level: float, seed: int
) -> dict[str, Any]:
    """Symmetry, and the effects of script and family on the scores, over the measured cells."""
    measured = matrix[matrix["status"] == "measured"]
    languages = sorted(set(measured["target"]) | set(measured["source"]))
    scores = statistics.score_matrix(records(measured), languages)
    known = inventory.language_metadata(languages, planted)
    tables = {key: inventory.shared_trait(languages, known, key) for key in ("script", "family")}
    options: dict[str, Any] = {"level": level, "seed": seed}
    found: dict[str, Any] = {"languages": len(languages), "symmetry": statistics.symmetry(scores, **options)}
    for key, table in tables.items():
        others = [
            other
            for name, other in tables.items()
            # Do not adjust for a property that equals this one: both would be aliased.
            if name != key and np.isfinite(other).any() and not np.array_equal(other, table, equal_nan=True)
        ]
        found[key] = statistics.kinship_difference(scores, table, others, **options)
    found["top_sources"] = statistics.top_sources(scores, languages)
    return found


def _next_pairs(
    matrix: pd.DataFrame, planted: Mapping[str, Mapping[str, Any]] | None, overlap: VocabularyOverlap | None
) -> list[dict[str, Any]]:
    """The pairs to run next, best first; none where all were run or there are too few or too many languages."""
    if not (matrix["status"] == "missing").any() or matrix["target"].nunique() > pair_selection.MAX_LANGUAGES:
        return []
    if matrix["target"].nunique() < 3:
        return []
    process, scores = pair_selection.pair_model_of_matrix(records(matrix), planted, overlap)
    chosen = pair_selection.select_pairs(
        process, scores, _NEXT_PAIRS, ran=pair_selection.pairs_already_run(records(matrix))
    )
    return [{"pair": list(choice.pair), "variance_left": choice.remaining_variance} for choice in chosen]
