"""Decisions from a study's results (`answers.analyse`) or from the published figures, each with its interval.

Where both can answer, the study does. The published figures carry no intervals, and the answers say so. What
neither supports is refused with the fit that is missing.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from analysis.study.results import results_range
from analysis.text import count
from mscale.errors import MscaleError

PUBLISHED = "published (Longpre et al. 2026; interval not published)"
STUDY = "this study"
PREDICTED = "this study, predicted from other pairs"
# The published runs reach from 9M to 8B parameters; a decade beyond is flagged, more is refused.
PUBLISHED_PARAMS = (9e6, 8e9)
# Of the published transfer matrix, and the most languages of a uniform mixture.
PUBLISHED_SIZE, PUBLISHED_TOKENS, PUBLISHED_LANGUAGES = 2e9, 42e9, 50


@dataclass(frozen=True)
class Answer:
    """A decision: what to do, the rows behind it, where they are from, and the reasons for and against it.

    `more`: further tables, (title, rows).
    """

    text: str
    rows: tuple[dict, ...]
    basis: str
    reasons: tuple[str, ...] = ()
    more: tuple[tuple[str, tuple[dict, ...]], ...] = ()


def check_positive(what: str, **values: float | None) -> None:
    """Raises MscaleError where a number that is given is not positive, or not a number at all."""
    for name, value in values.items():
        if value is not None and not 0 < value < np.inf:
            raise MscaleError(f"{what}: --{name} is {value:g}, expected a positive number")


def check_range(params: float, results: Mapping[str, Any], reasons: list[str]) -> None:
    """Flags a size outside the study's; raises MscaleError where it is hopelessly so."""
    low, high = results_range(results)
    if not low / 100 <= params <= high * 100:
        raise MscaleError(
            f"{count(params)} parameters are more than a hundredfold outside the study's runs, {count(low)} to "
            f"{count(high)}: its laws support no answer there; run sizes nearer to it"
        )
    if not low * 0.99 <= params <= high * 1.01:
        far = "far " if not low / 10 <= params <= high * 10 else ""
        reasons.append(
            f"{count(params)} parameters are {far}outside the study's {count(low)} to {count(high)}: extrapolated"
        )


def _check_published(params: float, reasons: list[str]) -> None:
    low, high = PUBLISHED_PARAMS
    if not low / 10 <= params <= high * 10:
        more = f" ({reasons[0]})" if reasons else ""
        raise MscaleError(
            f"{count(params)} parameters are more than tenfold outside the published runs ({count(low)} "
            f"to {count(high)}): "
            f"the published figures support no answer; fit your own runs{more}"
        )
    if not low <= params <= high:
        reasons.append(
            f"{count(params)} parameters are outside the published runs, {count(low)} to {count(high)}"
        )
