"""Bilingual transfer scores from pairs of loss curves, many pairs at once; `matrix` defines the score."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np

from analysis.curves.curve import Curve, first_tokens_at, losses_at, percentile_interval

# Values of d of a curve of scores.
CURVE_POINTS = 24
# Numbers of a block that is computed at once: larger blocks do not fit into the cache of a core.
_BLOCK = 32_768


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


def pair_scores(
    pairs: Sequence[tuple[Curve, Curve, np.ndarray | None]], phase: str, level: float
) -> list[Scores]:
    """The scores of pairs of curves, in their order.

    Args:
      pairs: the curve of the target alone, the curve of both languages, and d (m,). None for d takes `CURVE_POINTS`
        values over the curve alone; of cooled curves (`phase="end"`) those at which the curve alone has the loss of
        each cooled budget of the other, if any.
    """
    same_knots: dict[tuple, list[int]] = {}
    for index, (alone, both, d) in enumerate(pairs):
        key = (alone.knots.tobytes(), both.knots.tobytes(), None if d is None else d.tobytes())
        same_knots.setdefault(key, []).append(index)
    found: dict[int, Scores] = {}
    for indices in same_knots.values():
        alone, both, d = pairs[indices[0]]
        points = len(d) if d is not None else len(both.knots) if phase == "end" else CURVE_POINTS
        size = max(_BLOCK // (len(alone.values) * points), 1)
        for start in range(0, len(indices), size):
            part = indices[start : start + size]
            block = _block([pairs[i][0] for i in part], [pairs[i][1] for i in part], d, phase, level)
            found |= zip(part, block, strict=True)
    return [found[index] for index in range(len(pairs))]


def _block(
    alone: Sequence[Curve], both: Sequence[Curve], tokens: np.ndarray | None, phase: str, level: float
) -> Iterator[Scores]:
    """The scores of pairs whose curves have the same knots; σ(L(d)) is +∞ where never reached, 0 where below."""
    if tokens is not None:
        d = np.tile(tokens, (len(alone), 1))
    elif phase == "end":
        d = _same_loss(alone, both)
    else:
        d = np.tile(np.geomspace(alone[0].first, alone[0].last, CURVE_POINTS), (len(alone), 1))
    losses = losses_at(alone, d)
    sigma = first_tokens_at(both, losses)
    with np.errstate(invalid="ignore"):
        scores = 2 - sigma / d[:, None]
    draws = scores[:, 1:].swapaxes(0, 1)
    low, high = (ends.reshape(d.shape) for ends in percentile_interval(draws.reshape(len(draws), -1), level))
    score, sigma, outside = scores[:, 0], sigma[:, 0], np.isnan(losses[:, 0])
    never, early = np.isposinf(sigma), sigma == 0
    measured = ~(outside | never | early)
    most, least = 2 - both[0].last / d, 2 - both[0].first / d
    score = np.select([outside, never, early], [np.nan, most, least], score)
    # A draw that never reaches the loss only bounds the score from above: the lower end of the interval stays open.
    bottom = np.where(low < 2, np.minimum(low, least), least)
    low = np.where(early, bottom, np.where(np.isfinite(low) & measured, low, np.nan))
    top = np.where(np.isfinite(high), np.maximum(high, most), most)
    high = np.where(never, top, np.where(np.isfinite(high) & (high < 2) & measured, high, np.nan))
    tau = np.full(d.shape, np.nan)
    known = measured & (score < 2)
    tau[known] = score[known] / (2 - score[known])
    status = np.select([outside, never | early], ["missing", "bound"], "measured")
    bound = np.select([never, early], ["at most", "at least"], "")
    for row in range(len(d)):
        rows = slice(None) if tokens is not None or phase != "end" else np.isfinite(d[row])
        yield Scores(*(table[row][rows] for table in (d, score, low, high, tau, status, bound)))


def _same_loss(alone: Sequence[Curve], both: Sequence[Curve]) -> np.ndarray:
    """d (B, m) at which each curve alone has the loss of each point of its partner curve; NaN where it has not."""
    alone, both = ([replace(curve, values=curve.values[:1]) for curve in curves] for curves in (alone, both))
    d = first_tokens_at(alone, losses_at(both, np.tile(both[0].points.tokens, (len(both), 1))))[:, 0]
    return np.where(np.isfinite(d) & (d > 0), d, np.nan)
