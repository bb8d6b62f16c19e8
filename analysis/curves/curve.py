"""Smooth, monotone learning curves and their noise; transfer scores and crossovers are computed from them.

A curve is the loss of one cell (scale, mixture, initialisation) on one language against tokens, in one phase of the
learning-rate schedule: the loss falls by learning-rate decay as much as by the effects that are measured, so phases are
not mixed. The noise has two components: between checkpoints, from the residuals to the smooth curve, and between
runs, from cells that were repeated with another seed.
"""

import functools
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike
from scipy.optimize import isotonic_regression

from analysis.curves.monotone import MonotoneCubics
from analysis.curves.smoothing import smoother

# Longer curves are averaged in this many bins of log tokens.
MAX_POINTS = 96
# Points in the token range that repeated runs share, at which their smooth curves are compared.
_OVERLAP_POINTS = 32
# Degrees of freedom of the prior on run noise, which is that it equals checkpoint noise: one or two repeated runs are
# too few to estimate it.
_PRIOR_DEGREES = 3


@dataclass(frozen=True)
class CurvePoints:
    """The points of one cell on one language.

    Attributes:
      tokens: distinct, increasing, (n,). loss: mean at each, (n,). repeats: losses averaged in each, (n,).
      groups: its runs (root trunks). phase: of the learning-rate schedule.
    """

    tokens: np.ndarray
    loss: np.ndarray
    repeats: np.ndarray
    groups: tuple[str, ...]
    phase: str


@dataclass(frozen=True)
class CurveNoise:
    """Standard deviations in nats between checkpoints of a run, and between runs.

    `run_degrees`: degrees of freedom that `run` was estimated from; at 0 it is the prior, `checkpoint`.
    """

    checkpoint: float
    run: float
    run_degrees: int = 0

    @property
    def degrees(self) -> int:
        """Degrees of freedom of `run`, including those of its prior."""
        return self.run_degrees + _PRIOR_DEGREES


@dataclass(frozen=True, eq=False)
class Curve:
    """A non-increasing loss over log tokens and R draws of it: monotone cubics through the smoothed points.

    Attributes:
      knots: log tokens of the points, (n,). values: at the knots, of the curve and then of its draws, (1 + R, n).
    """

    knots: np.ndarray
    values: np.ndarray
    points: CurvePoints

    @property
    def first(self) -> float:
        """Tokens of its first point."""
        return float(self.points.tokens[0])

    @property
    def last(self) -> float:
        """Tokens of its last point."""
        return float(self.points.tokens[-1])

    def at(self, tokens: ArrayLike) -> tuple[np.ndarray, np.ndarray]:
        """Loss (m,) and its draws (R, m) at `tokens`, (m,) or a number; NaN outside the range of the points."""
        losses = _cubics(self).evaluate(np.log(np.atleast_1d(np.asarray(tokens, dtype=float))))
        return losses[0], losses[1:]

    def first_tokens_at(self, loss: np.ndarray, draws: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Tokens at which the curve first falls to `loss` (m,), and each of its draws to `draws` (R, m).

        Infinite where it never does; 0 where its first point is below already, so that the crossing is before the
        data; NaN where the loss is NaN.
        """
        reached = np.exp(_cubics(self).first_crossing(np.concatenate([np.atleast_1d(loss)[None], draws])))
        return reached[0], reached[1:]


def bin_points(tokens: np.ndarray, losses: np.ndarray, groups: tuple[str, ...], phase: str) -> CurvePoints:
    """The points of a cell from tokens (n,), all positive, and losses (n,), in at most `MAX_POINTS` bins."""
    at, which, counts = np.unique(tokens, return_inverse=True, return_counts=True)
    if len(at) > MAX_POINTS:
        edges = np.linspace(np.log(tokens.min()), np.log(tokens.max()) + 1e-9, MAX_POINTS + 1)
        labels = np.digitize(np.log(tokens), edges)
        _, which, counts = np.unique(labels, return_inverse=True, return_counts=True)
        at = np.exp(np.bincount(which, np.log(tokens)) / counts)
    return CurvePoints(at, np.bincount(which, losses) / counts, counts.astype(float), groups, phase)


def points_by_curve(
    curve: np.ndarray,
    tokens: np.ndarray,
    losses: np.ndarray,
    group: np.ndarray,
    groups: Sequence[str],
    phase: str,
) -> dict[int, CurvePoints]:
    """{curve: points} from rows (n,).

    Args:
      curve: number of the curve that a row belongs to, negative for none. tokens: positive.
      group: index in `groups`, the names of the runs.
    """
    rows = np.flatnonzero(curve >= 0)
    rows = rows[np.argsort(curve[rows], kind="stable")]
    found = {}
    for part in np.split(rows, np.flatnonzero(np.diff(curve[rows])) + 1) if len(rows) else ():
        own = tuple(sorted({groups[code] for code in group[part].tolist()}))
        found[int(curve[part[0]])] = bin_points(tokens[part], losses[part], own, phase)
    return found


def estimate_curve_noise(cells: Iterable[list[CurvePoints]]) -> CurveNoise:
    """The standard deviations between checkpoints and between runs, pooled over cells.

    Args:
      cells: for each cell and language, the points of each of its runs (groups). Checkpoint noise is estimated from
        all of them, run noise from cells of two or more runs.
    """
    cells = list(cells)
    squares, free_degrees = 0.0, 0.0
    variances: list[float] = []
    weights: list[float] = []
    long = [points for runs in cells for points in runs if len(points.tokens) >= 6]
    for same in group_by_tokens(long):
        losses = np.array([long[index].loss for index in same])
        x, repeats = np.log(long[same[0]].tokens), long[same[0]].repeats
        smooth = smoother(x, repeats, losses)
        squares += float(np.sum(repeats * (losses - smooth(losses[:, None])[:, 0]) ** 2))
        free_degrees += float(smooth.freedom.sum())
    checkpoint = float(np.sqrt(squares / free_degrees)) if free_degrees > 0 else 0.0
    seen: set[tuple] = set()
    for runs in cells:
        if len(runs) < 2:
            continue
        compared = _mean_losses(runs)
        if compared is None:
            continue
        means, noise_share = compared
        between = float(np.var(means, ddof=1))
        variances.append(max(between - checkpoint**2 * noise_share, 0.0))
        weights.append(len(runs) - 1)
        seen.add(tuple(points.groups for points in runs))
    # Languages evaluated on the same runs are not independent: each set of runs counts once.
    degrees = sum(len(groups) - 1 for groups in seen)
    measured = np.average(variances, weights=weights) if variances else 0.0
    pooled_variance = (degrees * measured + _PRIOR_DEGREES * checkpoint**2) / (degrees + _PRIOR_DEGREES)
    return CurveNoise(checkpoint, float(np.sqrt(pooled_variance)), degrees)


def _mean_losses(runs: list[CurvePoints]) -> tuple[np.ndarray, float] | None:
    """The mean loss (runs,) of each run over shared tokens, and the variance of such a mean in units of a checkpoint's.

    Runs that were evaluated at different steps are compared by their smooth curves. None without a shared range.
    """
    shared = set.intersection(*(set(points.tokens) for points in runs))
    if 2 * len(shared) >= min(len(points.tokens) for points in runs):
        at = list(shared)
        means = np.array([points.loss[np.isin(points.tokens, at)].mean() for points in runs])
        return means, 1 / len(at)
    first, last = max(points.tokens[0] for points in runs), min(points.tokens[-1] for points in runs)
    if first >= last:
        return None
    grid = np.linspace(np.log(first), np.log(last), _OVERLAP_POINTS)
    means, variances = np.zeros(len(runs)), np.zeros(len(runs))
    for place, points in enumerate(runs):
        x = np.log(points.tokens)
        smooth = smoother(x, points.repeats, points.loss[None])
        weight = smooth.weights(np.array([np.interp(grid, x, row).mean() for row in np.eye(len(x))]))[0]
        means[place] = weight @ points.loss
        variances[place] = np.sum(weight**2 / points.repeats)
    return means, float(variances.mean())


def fit_curves(
    cells: Sequence[CurvePoints], noise: CurveNoise, draws: int, generators: Sequence[np.random.Generator]
) -> list[Curve]:
    """The points of each cell smoothed in log tokens and made non-increasing, with draws (a parametric bootstrap).

    A draw, by the generator of its cell, adds checkpoint noise to every smoothed point, smooths again, and shifts the
    whole curve by the noise of its runs (Student's t with `noise.degrees`, because run noise is estimated from few
    runs). Cells at the same tokens are smoothed in one batch.
    """
    curves: dict[int, Curve] = {}
    for same in group_by_tokens(cells):
        tokens, repeats = cells[same[0]].tokens, cells[same[0]].repeats
        x = np.log(tokens)
        losses = np.array([cells[index].loss for index in same])
        smooth = smoother(x, repeats, losses)
        normal = np.empty((len(same), draws, len(x)))
        offsets = np.empty((len(same), draws))
        for place, index in enumerate(same):
            generators[index].standard_normal(out=normal[place])
            shift = noise.run / np.sqrt(len(cells[index].groups))
            offsets[place] = shift * generators[index].standard_t(noise.degrees, draws)
        fit = smooth(losses[:, None])
        normal *= noise.checkpoint / np.sqrt(repeats)
        values = np.concatenate([fit, smooth(fit + normal)], axis=1)
        # Isotonic regression only where needed: most draws are non-increasing already.
        for cell, draw in np.argwhere((np.diff(values, axis=2) > 0).any(axis=2)):
            row = values[cell, draw]
            row[:] = -isotonic_regression(-row, weights=repeats).x
        values[:, 1:] += offsets[:, :, None]
        for place, index in enumerate(same):
            curves[index] = Curve(x, values[place], cells[index])
    return [curves[index] for index in range(len(cells))]


def group_by_tokens(cells: Sequence[CurvePoints]) -> list[list[int]]:
    """Lists of indices of cells with the same tokens and repeats, whose smoother is the same matrix."""
    found: dict[tuple[bytes, bytes], list[int]] = {}
    for index, points in enumerate(cells):
        found.setdefault((points.tokens.tobytes(), points.repeats.tobytes()), []).append(index)
    return list(found.values())


# The transfer scores of a target use its curve with those of every source. A curve on its grid takes 0.6 MB.
@functools.lru_cache(maxsize=64)
def _cubics(curve: Curve) -> MonotoneCubics:
    return MonotoneCubics(curve.knots, curve.values)


def cell_generator(seed: int, *cell: object) -> np.random.Generator:
    """A generator seeded by the cell's labels, so that a cell has the same draws in every analysis."""
    words = "/".join(map(str, cell)).encode("utf-8")
    # An array gives the same entropy as a list and is faster.
    entropy = np.array([seed, *words], dtype=np.uint32) if 0 <= seed < 2**32 else [seed, *words]
    return np.random.default_rng(entropy)


def percentile_interval(draws: np.ndarray, level: float) -> tuple[np.ndarray, np.ndarray]:
    """Percentile interval (m,), (m,) of draws (R, m), which may be infinite; NaN where more than half are NaN."""
    values = np.sort(draws, axis=0)  # NaN last
    count = np.sum(~np.isnan(draws), axis=0)
    enough, tail = (count * 2 >= len(draws)) & (count > 0), (1 - level) / 2 * np.maximum(count - 1, 0)
    column = np.arange(draws.shape[1])
    low = values[np.floor(tail).astype(int), column]
    high = values[np.ceil(np.maximum(count - 1, 0) - tail).astype(int), column]
    return np.where(enough, low, np.nan), np.where(enough, high, np.nan)
