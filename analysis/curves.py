"""Smooth, monotone learning curves with their noise: what transfer and crossover are read from.

A curve is the loss of one cell (scale, mixture, start) on one language over the tokens seen, at one state of
the schedule only: comparing a cooled model with one in the stable phase would hand the first a gain as
large as the effects looked for. Two noises are counted: that of neighbouring checkpoints, from the residuals
to the smooth curve, and that of whole runs, from cells repeated with another seed.
"""

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import pandas as pd
from scipy.interpolate import PchipInterpolator
from scipy.optimize import isotonic_regression

GRID = 400
# Longer curves are averaged into this many bins of log tokens: smoothing needs no more.
MOST_POINTS = 96
# Of the range that repeated runs share, where their curves are set against each other.
LEVEL_POINTS = 32
# One or two repeated runs hardly tell how noisy runs are. So the noise of runs starts from a guess worth this
# many degrees of freedom: that it is as large as the noise of checkpoints.
PRIOR_DEGREES = 3
_PENALTIES = np.logspace(-6, 4, 31)


@dataclass(frozen=True)
class Points:
    """Measured points of a cell: distinct tokens (n,), loss (n,), repeats averaged into each; its runs."""

    tokens: np.ndarray
    loss: np.ndarray
    repeats: np.ndarray
    groups: tuple[str, ...]
    phase: str


@dataclass(frozen=True)
class Noise:
    """Standard deviations in nats: between checkpoints, and between runs.

    `run_degrees` counts the repeated runs that `run` was measured on. Where it is 0 the noise of runs is
    only assumed, as large as that of checkpoints.
    """

    checkpoint: float
    run: float
    run_degrees: int = 0

    @property
    def degrees(self) -> int:
        """Degrees of freedom of `run`, those of its prior included."""
        return self.run_degrees + PRIOR_DEGREES


@dataclass(frozen=True)
class Curve:
    """A non-increasing loss over log tokens: `loss` (GRID,) and `draws` (R, GRID) on `log_tokens` (GRID,)."""

    log_tokens: np.ndarray
    loss: np.ndarray
    draws: np.ndarray
    points: Points

    @property
    def first(self) -> float:
        """Tokens of its first point."""
        return float(self.points.tokens[0])

    @property
    def last(self) -> float:
        """Tokens of its last point."""
        return float(self.points.tokens[-1])

    def at(self, tokens) -> tuple[np.ndarray, np.ndarray]:
        """Loss (m,) and its draws (R, m) at ``tokens`` (m,); NaN outside the measured range."""
        where = np.log(np.atleast_1d(np.asarray(tokens, dtype=float)))
        edge = 1e-9 + 1e-12 * abs(self.log_tokens[-1])
        outside = (where < self.log_tokens[0] - edge) | (where > self.log_tokens[-1] + edge)
        value = np.interp(where, self.log_tokens, self.loss)
        draws = _interpolate_rows(where, self.log_tokens, self.draws)
        value[outside], draws[:, outside] = np.nan, np.nan
        return value, draws

    def reach(self, loss: np.ndarray, draws: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Tokens at which the curve first falls to ``loss`` (m,), and to ``draws`` (R, m) draw by draw.

        Infinite where it never does; zero where its first point lies below already (the crossing is then
        before the data); NaN where the loss is.
        """
        curves = np.concatenate([self.loss[None], self.draws])
        reached = _first_reach(self.log_tokens, curves, np.concatenate([np.atleast_1d(loss)[None], draws]))
        return reached[0], reached[1:]


def gather(rows: pd.DataFrame, phase: str = "stable") -> Points | None:
    """Collects a cell's rows of one language at one phase; None where there are none.

    Args:
      rows: observations of one cell (all its groups) and one evaluated language.
      phase: `stable` (trunk checkpoints) or `end` (cooled budgets). The two are never mixed.
    """
    if phase not in ("stable", "end"):
        raise ValueError(f"phase {phase!r}: curves are compared in the phase 'stable' or 'end'")
    keep = (rows["phase"].to_numpy() == phase) & (rows["tokens"].to_numpy() > 0)
    if not keep.any():
        return None
    tokens, losses = (rows[name].to_numpy(dtype=float)[keep] for name in ("tokens", "loss"))
    return points_of(tokens, losses, tuple(sorted(set(map(str, rows["group"].to_numpy()[keep])))), phase)


def points_of(tokens: np.ndarray, losses: np.ndarray, groups: tuple[str, ...], phase: str) -> Points:
    """The points of a cell from tokens (n,), all positive, and losses (n,)."""
    at, which, counts = np.unique(tokens, return_inverse=True, return_counts=True)
    if len(at) > MOST_POINTS:
        edges = np.linspace(np.log(tokens.min()), np.log(tokens.max()) + 1e-9, MOST_POINTS + 1)
        labels = np.digitize(np.log(tokens), edges)
        _, which, counts = np.unique(labels, return_inverse=True, return_counts=True)
        at = np.exp(np.bincount(which, np.log(tokens)) / counts)
    return Points(at, np.bincount(which, losses) / counts, counts.astype(float), groups, phase)


def measure_noise(cells: Iterable[list[Points]]) -> Noise:
    """Pools the two noises over cells.

    Args:
      cells: per cell and language the points of each of its runs (groups) on its own; cells with two or
        more tell the noise of runs, all tell that of checkpoints.
    """
    squares, free_degrees = 0.0, 0.0
    variances: list[float] = []
    weights: list[float] = []
    pooled = list(cells)
    for runs in pooled:
        for points in runs:
            if len(points.tokens) >= 6:
                fit, free = _smooth(points)
                squares += float(np.sum(points.repeats * (points.loss - fit) ** 2))
                free_degrees += free
    checkpoint = float(np.sqrt(squares / free_degrees)) if free_degrees > 0 else 0.0
    seen: set[tuple] = set()
    for runs in pooled:
        if len(runs) < 2:
            continue
        levels = _levels(runs)
        if levels is None:
            continue
        means, noise_share = levels
        between = float(np.var(means, ddof=1))
        variances.append(max(between - checkpoint**2 * noise_share, 0.0))
        weights.append(len(runs) - 1)
        seen.add(tuple(points.groups for points in runs))
    # Languages evaluated on the same runs share those runs: only distinct runs count as degrees of freedom.
    degrees = sum(len(groups) - 1 for groups in seen)
    measured = np.average(variances, weights=weights) if variances else 0.0
    pooled_variance = (degrees * measured + PRIOR_DEGREES * checkpoint**2) / (degrees + PRIOR_DEGREES)
    return Noise(checkpoint, float(np.sqrt(pooled_variance)), degrees)


def _levels(runs: list[Points]) -> tuple[np.ndarray, float] | None:
    """The mean loss (runs,) of each over tokens that all have, and its variance in units of a checkpoint's.

    Runs that were evaluated at other steps are compared by their smooth curves; None where they share no range.
    """
    shared = set.intersection(*(set(points.tokens) for points in runs))
    if 2 * len(shared) >= min(len(points.tokens) for points in runs):
        at = list(shared)
        means = np.array([points.loss[np.isin(points.tokens, at)].mean() for points in runs])
        return means, 1 / len(at)
    first, last = max(points.tokens[0] for points in runs), min(points.tokens[-1] for points in runs)
    if first >= last:
        return None
    grid = np.linspace(np.log(first), np.log(last), LEVEL_POINTS)
    means, variances = np.zeros(len(runs)), np.zeros(len(runs))
    for place, points in enumerate(runs):
        weight = _interpolate_rows(grid, np.log(points.tokens), np.eye(len(points.tokens))).mean(axis=1)
        weight = weight @ _smoothing_matrix(points)
        means[place] = weight @ points.loss
        variances[place] = np.sum(weight**2 / points.repeats)
    return means, float(variances.mean())


def fit_curve(points: Points, noise: Noise, draws: int, rng: np.random.Generator) -> Curve:
    """Smooths points in log tokens and makes the result non-increasing, with `draws` redrawn curves.

    A draw adds checkpoint noise to every smoothed point, smooths again, and shifts the whole by the noise
    of its runs (Student's t, since few runs are ever repeated).
    """
    x = np.log(points.tokens)
    matrix = _smoothing_matrix(points)
    fit = matrix @ points.loss
    spread = noise.checkpoint / np.sqrt(points.repeats)
    noisy = fit + spread * rng.standard_normal((draws, len(x)))
    curves = np.vstack([fit[None], noisy @ matrix.T])
    # Most draws fall already, and need no regression.
    for index in np.flatnonzero((np.diff(curves, axis=1) > 0).any(axis=1)):
        curves[index] = -isotonic_regression(-curves[index], weights=points.repeats).x
    grid = np.linspace(x[0], x[-1], GRID) if len(x) > 1 else np.array([x[0]])
    dense = PchipInterpolator(x, curves, axis=1)(grid) if len(x) > 1 else curves
    redrawn = dense[1:]
    offsets = rng.standard_t(noise.degrees, draws)
    redrawn = redrawn + (noise.run / np.sqrt(len(points.groups))) * offsets[:, None]
    return Curve(grid, dense[0], redrawn, points)


def cell_generator(seed: int, *cell) -> np.random.Generator:
    """A generator of the cell's own: a curve that is used in several answers keeps its draws."""
    return np.random.default_rng([seed, *"/".join(map(str, cell)).encode("utf-8")])


def interval(draws: np.ndarray, level: float) -> tuple[np.ndarray, np.ndarray]:
    """Percentile interval of draws (R, m) that may be infinite; NaN where over half of them are NaN."""
    values = np.sort(draws, axis=0)  # NaN last
    count = np.sum(~np.isnan(draws), axis=0)
    enough, tail = (count * 2 >= len(draws)) & (count > 0), (1 - level) / 2 * np.maximum(count - 1, 0)
    column = np.arange(draws.shape[1])
    low = values[np.floor(tail).astype(int), column]
    high = values[np.ceil(np.maximum(count - 1, 0) - tail).astype(int), column]
    return np.where(enough, low, np.nan), np.where(enough, high, np.nan)


def _first_reach(log_tokens: np.ndarray, curves: np.ndarray, wanted: np.ndarray) -> np.ndarray:
    """Tokens (R, m) at which non-increasing curves (R, G) first fall to ``wanted`` (R, m), row by row."""
    first, last = curves[:, :1], curves[:, -1:]
    if curves.shape[1] == 1:
        tokens = np.full(wanted.shape, np.exp(log_tokens[0]))
    else:
        # A curve never rises, so the points above the wanted loss are its first ones: bisect for the last of them.
        low, high = np.zeros(wanted.shape, int), np.full(wanted.shape, curves.shape[1])
        for _ in range(curves.shape[1].bit_length()):
            middle = (low + high) // 2
            inside = middle < high
            above = inside & (
                np.take_along_axis(curves, np.minimum(middle, curves.shape[1] - 1), axis=1) > wanted
            )
            low, high = np.where(above, middle + 1, low), np.where(inside & ~above, middle, high)
        right = np.clip(low, 1, curves.shape[1] - 1)
        before = np.take_along_axis(curves, right - 1, axis=1)
        drop = before - np.take_along_axis(curves, right, axis=1)
        # Level from its first point on, the curve is there at once.
        share = np.where(drop > 0, (before - wanted) / np.where(drop > 0, drop, 1.0), 0.0)
        step = log_tokens[right] - log_tokens[right - 1]
        tokens = np.exp(log_tokens[right - 1] + np.clip(share, 0, 1) * step)
    tokens = np.where(wanted < last, np.inf, np.where(wanted > first, 0.0, tokens))
    return np.where(np.isnan(wanted), np.nan, tokens)


def _interpolate_rows(where: np.ndarray, x: np.ndarray, rows: np.ndarray) -> np.ndarray:
    if len(x) == 1:
        return np.repeat(rows, len(where), axis=1)
    place = np.clip(np.searchsorted(x, where) - 1, 0, len(x) - 2)
    share = np.clip((where - x[place]) / (x[place + 1] - x[place]), 0, 1)
    return rows[:, place] * (1 - share) + rows[:, place + 1] * share


def _smooth(points: Points) -> tuple[np.ndarray, float]:
    """The smoothed loss and the degrees of freedom left in its residuals."""
    matrix = _smoothing_matrix(points)
    return matrix @ points.loss, float(len(points.tokens) - np.trace(matrix))


def _smoothing_matrix(points: Points) -> np.ndarray:
    """The linear smoother (n, n): least squares with penalised curvature, penalty by cross-validation."""
    x, y, weights = np.log(points.tokens), points.loss, points.repeats
    n = len(x)
    if n < 5:
        return np.eye(n)
    # Second divided differences, scaled so that the penalty does not depend on the units of x.
    step = np.diff(x) / np.mean(np.diff(x))
    left, right, row = step[:-1], step[1:], np.arange(n - 2)
    bend = np.zeros((n - 2, n))
    bend[row, row], bend[row, row + 1], bend[row, row + 2] = 1 / left, -1 / left - 1 / right, 1 / right
    bend *= np.sqrt(2 / (left + right))[:, None]
    root = 1 / np.sqrt(weights)
    values, vectors = np.linalg.eigh(root[:, None] * (bend.T @ bend) * root[None, :])
    values = np.clip(values, 0, None)
    coordinates = vectors.T @ (np.sqrt(weights) * y)
    shrink = 1 / (1 + _PENALTIES[:, None] * values)
    scores = np.sum(((1 - shrink) * coordinates) ** 2, axis=1) / np.maximum(n - shrink.sum(axis=1), 1e-9) ** 2
    best, chosen = np.inf, shrink[-1]
    for score, candidate in zip(scores, shrink, strict=True):  # of equals the smoothest
        if score < best * (1 + 1e-9):
            best, chosen = score, candidate
    return (root[:, None] * vectors * chosen[None, :]) @ (vectors.T * np.sqrt(weights)[None, :])
