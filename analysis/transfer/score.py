"""The bilingual transfer score of a pair of loss curves; `matrix` defines it."""

from dataclasses import dataclass, replace

import numpy as np

from analysis.curves.curve import Curve, percentile_interval

# Values of d of a curve of scores.
CURVE_POINTS = 24


@dataclass(frozen=True)
class Scores:
    """Scores (m,) of a pair at reference tokens d (m,), with their interval and τ; NaN where there is none.

    Attributes:
      status: "measured", "bound" or "missing". bound: "at most" or "at least" where the status is "bound".
    """

    d: np.ndarray
    score: np.ndarray
    low: np.ndarray
    high: np.ndarray
    tau: np.ndarray
    status: np.ndarray
    bound: np.ndarray


def missing_scores(d: np.ndarray | None) -> Scores:
    """The result of a pair without scores: status "missing" at each d (None: one row without d)."""
    d = np.array([np.nan]) if d is None else d
    empty, none = np.full(len(d), np.nan), np.full(len(d), "")
    return Scores(d, empty, empty, empty, empty, np.full(len(d), "missing"), none)


def pair_scores(alone: Curve, both: Curve, d: np.ndarray | None, phase: str, level: float) -> Scores:
    """The scores of a pair from the curve of the target alone and that of both languages.

    Args:
      d: reference tokens (m,). None takes `CURVE_POINTS` values over the curve alone; of cooled curves (`phase="end"`)
        those at which the curve alone has the loss of each cooled budget of the other, if any.
    """
    if d is None and phase == "end":
        d = _same_loss(alone, both)
    elif d is None:
        d = np.geomspace(alone.first, alone.last, CURVE_POINTS)
    losses, draws = alone.at(d)
    # σ(L(d)) is +∞ where never reached, 0 where already below at the first point.
    sigma, sigma_draws = both.first_tokens_at(losses, draws)
    outside, never, early = np.isnan(losses), np.isposinf(sigma), sigma == 0
    measured = ~(outside | never | early)
    most, least = 2 - both.last / d, 2 - both.first / d
    low, high = percentile_interval(2 - sigma_draws / d, level)
    score = np.select([outside, never, early], [np.nan, most, least], 2 - sigma / d)
    # A draw that never reaches the loss only bounds the score from above: the lower end of the interval stays open.
    bottom = np.where(low < 2, np.minimum(low, least), least)
    low = np.where(early, bottom, np.where(np.isfinite(low) & measured, low, np.nan))
    top = np.where(np.isfinite(high), np.maximum(high, most), most)
    high = np.where(never, top, np.where(np.isfinite(high) & (high < 2) & measured, high, np.nan))
    known = measured & (score < 2)
    tau = np.where(known, score / np.where(known, 2 - score, 1.0), np.nan)
    status = np.select([outside, never | early], ["missing", "bound"], "measured")
    return Scores(d, score, low, high, tau, status, np.select([never, early], ["at most", "at least"], ""))


def _same_loss(alone: Curve, both: Curve) -> np.ndarray:
    """d (m,) at which the curve alone has the loss of a point of the other curve, for those that it reaches."""
    losses, _ = both.at(both.points.tokens)
    d, _ = replace(alone, values=alone.values[:1]).first_tokens_at(losses, np.zeros((0, len(losses))))
    return d[np.isfinite(d) & (d > 0)]
