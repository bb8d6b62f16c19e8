"""The answer to a planning question, where its numbers come from, and checks of the question.

An answer uses the results of the study where these suffice, else the figures published for ATLAS, which have no
intervals. A question that neither supports raises MscaleError with the fit that is missing.
"""

from dataclasses import dataclass

import numpy as np

from analysis.study.results import StudySummary, params_range
from analysis.text import count
from mscale.errors import MscaleError

BASIS_PUBLISHED = "published (Longpre et al. 2026; interval not published)"
BASIS_STUDY = "this study"
BASIS_PREDICTED = "this study, predicted from other pairs"
# Sizes of the published runs. Up to a factor of ten outside an answer is flagged as extrapolated, beyond it is refused.
PUBLISHED_PARAMS = (9e6, 8e9)
# N and d of the published transfer matrix, and the largest published uniform mixture.
PUBLISHED_MATRIX_PARAMS, PUBLISHED_MATRIX_TOKENS, PUBLISHED_MAX_LANGUAGES = 2e9, 42e9, 50


@dataclass(frozen=True)
class Answer:
    """A decision.

    Attributes:
      text: what to do. rows: the table behind it. basis: where the numbers come from, one of `BASIS_…`.
      reasons: assumptions and caveats. more: further tables, (title, rows).
    """

    text: str
    rows: tuple[dict, ...]
    basis: str
    reasons: tuple[str, ...] = ()
    more: tuple[tuple[str, tuple[dict, ...]], ...] = ()


def check_positive(what: str, **values: float | None) -> None:
    """Raises MscaleError where a value is given that is not a positive finite number."""
    for name, value in values.items():
        if value is not None and not 0 < value < np.inf:
            raise MscaleError(f"{what}: --{name} is {value:g}, expected a positive number")


def check_study_range(params: float, study: StudySummary, reasons: list[str]) -> None:
    """Appends a reason where N is outside the sizes of the study; raises MscaleError beyond a factor of 100."""
    low, high = params_range(study)
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


def check_published_range(params: float, reasons: list[str]) -> None:
    """Appends a reason where N is outside the published sizes; raises MscaleError beyond a factor of 10."""
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
