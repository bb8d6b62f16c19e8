"""All that a study says of transfer: the matrix, its curves and units, its shape, and pairs that were not run."""

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
from analysis.transfer.forest import Overlap, predicted
from analysis.transfer.matrix import main_scale
from mscale.errors import MscaleError

NEXT_PAIRS = 5


@dataclass(frozen=True)
class Measured:
    """The cells of a study and the scores of its pairs at each scale, which laws choose their sources by.

    Attributes:
      matrix: columns `transfer.COLUMNS`; no rows where no pair was run. scale: the one that is shown (`main_scale`).
      adapted: see `adaptation.adaptation_scores`. error: why there are no cells (None then).
    """

    cells: transfer.Cells | None
    matrix: pd.DataFrame
    adapted: pd.DataFrame
    scale: str = ""
    error: str = ""

    @property
    def shown(self) -> pd.DataFrame:
        """The matrix at its scale."""
        return self.matrix[self.matrix["scale"] == self.scale] if len(self.matrix) else self.matrix


def measured_matrix(study: StudyCurves, level: float, seed: int) -> Measured:
    """The measured scores of a study: what other answers on transfer and the sources of the ATLAS law start from."""
    try:
        cells = transfer.cells(study, seed=seed)
    except MscaleError as error:
        return Measured(None, pd.DataFrame(), pd.DataFrame(), error=str(error))
    matrix = transfer.transfer_matrix(cells, level=level)
    adapted = adaptation.adaptation_scores(study, noise=cells.noise.get("stable"), level=level)
    return Measured(cells, matrix, adapted, main_scale(matrix, cells) if len(matrix) else "")


def transfer_answer(
    study: StudyCurves,
    measured: Measured,
    truth: Mapping[str, Any] | None,
    level: float,
    seed: int,
    premiums: Mapping[str, float] | None = None,
) -> dict:
    """What a study's curves say of transfer: the matrix, the scores over d, in other units, beside a planted truth.

    Args:
      premiums: byte premium of each language, see `units.all_units`.
    """
    cells, matrix = measured.cells, measured.matrix
    if cells is None:
        return {**_nothing(measured.error), "error": measured.error}
    noise = {
        phase: {"checkpoint": value.checkpoint, "run": value.run, "repeated_runs": value.run_degrees}
        for phase, value in cells.noise.items()
    }
    answer = {**_nothing("no pair was run"), "noise": noise, "matrix": records(matrix)}
    answer["adaptation"] = records(measured.adapted)
    if matrix.empty:
        return {**answer, "error": "no 50/50 bilingual run, hence no transfer score"}
    main, chosen = measured.scale, measured.shown
    answer |= {"scale": main, "d": float(chosen["d"].max()), "params": cells.params.get(main)}
    ran = chosen[chosen["status"] != "missing"]
    pairs = list(zip(ran["target"], ran["source"], strict=True))
    cooled = transfer.transfer_curves(cells, pairs, scale=main, level=level, phase="end")
    answer["curves"] = records(transfer.transfer_curves(cells, pairs, scale=main, level=level))
    answer["cooled"] = records(cooled[cooled["status"] == "measured"])
    counted, reasons = units.all_units(chosen, study.observations, premiums)
    answer["units"] = {name: records(table) for name, table in counted.items()}
    answer["units_missing"] = reasons
    if truth:
        agreement = statistics.relatedness_agreement(chosen, dict(truth), seed=seed)
        answer["agreement"] = {**agreement, "table": records(agreement["table"])}
    return answer


def matrix_answer(
    matrix: pd.DataFrame,
    adapted: pd.DataFrame,
    planted: Mapping[str, Mapping[str, Any]] | None,
    overlap: Overlap | None,
    level: float,
    seed: int,
) -> dict:
    """What a matrix at one scale says by itself: its shape, pairs that were not run, the paper's beside it.

    Args:
      matrix, adapted: `Measured.shown` and `.adapted`. planted: the languages of a generated corpus.
      overlap: shared vocabulary of languages, see `inventory.pair_features`.
    """
    if matrix.empty:
        return {}
    return {
        "statistics": _statistics(matrix, planted, level, seed),
        "predicted": predicted(matrix, adapted, planted, overlap, level, seed),
        "next_pairs": _next_pairs(matrix, planted, overlap),
        "published": beside_published(matrix, level),
    }


def beside_published(matrix: pd.DataFrame, level: float) -> dict[str, Any] | None:
    """The measured cells that the paper has too, and how they correlate; None for fewer than four.

    The interval leaves out one language at a time; None where there are too few of them.
    """
    beside = published.beside_published(matrix)
    if len(beside) < 4:
        return None
    languages = sorted(set(beside["target"]) | set(beside["source"]))
    mine = statistics.to_matrix(records(beside), languages)
    paper = statistics.to_matrix(records(beside.assign(score=beside["published"])), languages)

    def correlation(keep: np.ndarray) -> float:
        one, other = mine[np.ix_(keep, keep)].ravel(), paper[np.ix_(keep, keep)].ravel()
        both = np.isfinite(one + other)
        return float(np.corrcoef(one[both], other[both])[0, 1]) if both.sum() > 2 else float("nan")

    found: dict[str, Any] = {"pairs": len(beside), "low": None, "high": None, "table": records(beside)}
    found["correlation"] = correlation(np.arange(len(languages)))
    if len(languages) >= statistics.LEAST_LANGUAGES:
        _, low, high = statistics.jackknife(correlation, len(languages), level)
        found |= {"low": max(low, -1.0), "high": min(high, 1.0)}
    return found


def _nothing(reason: str) -> dict[str, Any]:
    return {
        "noise": {},
        "matrix": [],
        "curves": [],
        "cooled": [],
        "adaptation": [],
        "scale": None,
        "d": None,
        "agreement": None,
        "published": None,
        "units": {},
        "units_missing": {},
        "statistics": {},
        "predicted": {"cells": [], "reason": reason},
        "next_pairs": [],
    }


def _statistics(
    matrix: pd.DataFrame, planted: Mapping[str, Mapping[str, Any]] | None, level: float, seed: int
) -> dict[str, Any]:
    """Symmetry, and what script and family make of scores, over the measured cells."""
    measured = matrix[matrix["status"] == "measured"]
    languages = sorted(set(measured["target"]) | set(measured["source"]))
    scores = statistics.to_matrix(records(measured), languages)
    known = inventory.describe(languages, planted)
    tables = {key: inventory.same(languages, known, key) for key in ("script", "family")}
    how: dict[str, Any] = {"level": level, "seed": seed}
    found: dict[str, Any] = {"languages": len(languages), "symmetry": statistics.symmetry(scores, **how)}
    for key, table in tables.items():
        others = [
            other
            for name, other in tables.items()
            # Where script follows from family, nothing is left to adjust for.
            if name != key and np.isfinite(other).any() and not np.array_equal(other, table, equal_nan=True)
        ]
        found[key] = statistics.same_or_different(scores, table, others, **how)
    found["top_sources"] = statistics.top_sources(scores, languages)
    found["published"] = published.published_findings()
    return found


def _next_pairs(
    matrix: pd.DataFrame, planted: Mapping[str, Mapping[str, Any]] | None, overlap: Overlap | None
) -> list[dict[str, Any]]:
    """Pairs not run yet, those first that tell most of all scores; none where there are none to choose from."""
    if (
        not (matrix["status"] == "missing").any()
        or matrix["target"].nunique() > pair_selection.MOST_LANGUAGES
    ):
        return []
    if matrix["target"].nunique() < 3:
        return []
    process, scores = pair_selection.of_matrix(
        records(matrix), lambda names: inventory.pair_features(names, planted, overlap)
    )
    chosen = pair_selection.choose(process, scores, NEXT_PAIRS, ran=pair_selection.pairs_run(records(matrix)))
    return [{"pair": list(choice.pair), "variance_left": choice.left} for choice in chosen]
