"""Smooth, monotone learning curves with their noise: what transfer and crossover are read from.

A curve is the loss of one cell (scale, mixture, start) on one language over the tokens seen, at one state of
the schedule only: comparing a cooled model with one in the stable phase would hand the first a gain as
large as the effects looked for. Two noises are counted: that of neighbouring checkpoints, from the residuals
to the smooth curve, and that of whole runs, from cells repeated with another seed.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
from scipy.optimize import isotonic_regression

from analysis.curves.monotone import Cubics, slopes_of
from analysis.curves.smoothing import smoother

# Longer curves are averaged into this many bins of log tokens: smoothing needs no more.
MOST_POINTS = 96
# Of the range that repeated runs share, where their curves are set against each other.
LEVEL_POINTS = 32
# One or two repeated runs hardly tell how noisy runs are. So the noise of runs starts from a guess worth this
# many degrees of freedom: that it is as large as the noise of checkpoints.
PRIOR_DEGREES = 3


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
    """A non-increasing loss over log tokens, and R redrawn ones: monotone cubics through the smoothed points.

    Attributes:
      knots (n,): log tokens of the points. values, slopes (1 + R, n): of the curve, then of its draws, as
      `monotone.Cubics` reads them.
    """

    knots: np.ndarray
    values: np.ndarray
    slopes: np.ndarray
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
        losses = read([self], np.atleast_1d(np.asarray(tokens, dtype=float))[None])[0]
        return losses[0], losses[1:]

    def reach(self, loss: np.ndarray, draws: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Tokens at which the curve first falls to ``loss`` (m,), and to ``draws`` (R, m) draw by draw.

        Infinite where it never does; zero where its first point lies below already (the crossing is then
        before the data); NaN where the loss is.
        """
        reached = reach([self], np.concatenate([np.atleast_1d(loss)[None], draws])[None])[0]
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


def points_by(
    curve: np.ndarray,
    tokens: np.ndarray,
    losses: np.ndarray,
    group: np.ndarray,
    groups: Sequence[str],
    phase: str,
) -> dict[int, Points]:
    """The points of every curve from rows (n,).

    Args:
      curve: its number, below 0 for rows of none. tokens: all positive. group: place in `groups`, the runs' names.
    """
    rows = np.flatnonzero(curve >= 0)
    rows = rows[np.lexsort((tokens[rows], curve[rows]))]
    if not len(rows):
        return {}
    curve, tokens, losses = curve[rows], tokens[rows], losses[rows]
    first = np.diff(curve, prepend=-1) != 0
    new = first | (np.diff(tokens, prepend=-1) != 0)
    which = np.cumsum(new) - 1
    repeats = np.bincount(which).astype(float)
    means = np.bincount(which, losses) / repeats
    at, number = tokens[new], curve[first]
    ends, row_ends = np.append(which[first], len(at)), np.append(np.flatnonzero(first), len(rows))
    pairs = np.unique(np.stack([np.cumsum(first) - 1, group[rows]]), axis=1)
    own: list[list[str]] = [[] for _ in number]
    for place, code in pairs.T.tolist():
        own[place].append(groups[code])
    found = {}
    for place, key in enumerate(number.tolist()):
        part = slice(ends[place], ends[place + 1])
        if part.stop - part.start > MOST_POINTS:
            whole = slice(row_ends[place], row_ends[place + 1])
            found[key] = points_of(tokens[whole], losses[whole], tuple(sorted(own[place])), phase)
        else:
            found[key] = Points(at[part], means[part], repeats[part], tuple(sorted(own[place])), phase)
    return found


def measure_noise(cells: Iterable[list[Points]]) -> Noise:
    """Pools the two noises over cells.

    Args:
      cells: per cell and language the points of each of its runs (groups) on its own; cells with two or
        more tell the noise of runs, all tell that of checkpoints.
    """
    pooled = list(cells)
    squares, free_degrees = 0.0, 0.0
    variances: list[float] = []
    weights: list[float] = []
    long = [points for runs in pooled for points in runs if len(points.tokens) >= 6]
    for alike in by_design(long):
        losses = np.array([long[index].loss for index in alike])
        x, repeats = np.log(long[alike[0]].tokens), long[alike[0]].repeats
        smooth = smoother(x, repeats, losses)
        squares += float(np.sum(repeats * (losses - smooth(losses[:, None])[:, 0]) ** 2))
        free_degrees += float(smooth.freedom.sum())
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
    if all(np.array_equal(points.tokens, runs[0].tokens) for points in runs):
        return np.array([points.loss.mean() for points in runs]), 1 / len(runs[0].tokens)
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
        x = np.log(points.tokens)
        smooth = smoother(x, points.repeats, points.loss[None])
        weight = smooth.weights(_interpolate_rows(grid, x, np.eye(len(x))).mean(axis=1))[0]
        means[place] = weight @ points.loss
        variances[place] = np.sum(weight**2 / points.repeats)
    return means, float(variances.mean())


def fit_curve(points: Points, noise: Noise, draws: int, rng: np.random.Generator) -> Curve:
    """Smooths points in log tokens and makes the result non-increasing, with `draws` redrawn curves.

    A draw adds checkpoint noise to every smoothed point, smooths again, and shifts the whole by the noise
    of its runs (Student's t, since few runs are ever repeated).
    """
    return fit_curves([points], noise, draws, [rng])[0]


def fit_curves(
    cells: Sequence[Points], noise: Noise, draws: int, generators: Sequence[np.random.Generator]
) -> list[Curve]:
    """Many cells at once, each as `fit_curve` fits it with its own generator."""
    curves: dict[int, Curve] = {}
    for alike in by_design(cells):
        tokens, repeats = cells[alike[0]].tokens, cells[alike[0]].repeats
        x = np.log(tokens)
        losses = np.array([cells[index].loss for index in alike])
        smooth = smoother(x, repeats, losses)
        normal = np.empty((len(alike), draws, len(x)))
        offsets = np.empty((len(alike), draws))
        for place, index in enumerate(alike):
            generators[index].standard_normal(out=normal[place])
            shift = noise.run / np.sqrt(len(cells[index].groups))
            offsets[place] = shift * generators[index].standard_t(noise.degrees, draws)
        fit = smooth(losses[:, None])
        normal *= noise.checkpoint / np.sqrt(repeats)
        values = np.concatenate([fit, smooth(fit + normal)], axis=1)
        # Most draws fall already, and need no regression.
        for cell, draw in np.argwhere((np.diff(values, axis=2) > 0).any(axis=2)):
            row = values[cell, draw]
            row[:] = -isotonic_regression(-row, weights=repeats).x
        slopes = slopes_of(x, values)
        values[:, 1:] += offsets[:, :, None]
        for place, index in enumerate(alike):
            curves[index] = Curve(x, values[place], slopes[place], cells[index])
    return [curves[index] for index in range(len(cells))]


def by_design(cells: Sequence[Points]) -> list[list[int]]:
    """Indices of the cells that have the same tokens and repeats."""
    found: dict[tuple[bytes, bytes], list[int]] = {}
    for index, points in enumerate(cells):
        found.setdefault((points.tokens.tobytes(), points.repeats.tobytes()), []).append(index)
    return list(found.values())


def read(curves: Sequence[Curve], tokens: np.ndarray) -> np.ndarray:
    """Losses (B, 1 + R, m) of curves with the same knots and their draws at tokens (B, m); NaN outside their range."""
    return _cubics(curves).read(np.log(tokens))


def reach(curves: Sequence[Curve], wanted: np.ndarray) -> np.ndarray:
    """Tokens (B, 1 + R, m) at which curves with the same knots first fall to ``wanted`` (B, 1 + R, m), row by row.

    Infinite, zero and NaN as in `Curve.reach`.
    """
    return np.exp(_cubics(curves).reach(wanted))


def _cubics(curves: Sequence[Curve]) -> Cubics:
    values, slopes = (np.stack([getattr(curve, name) for curve in curves]) for name in ("values", "slopes"))
    return Cubics(curves[0].knots, values, slopes)


def cell_generator(seed: int, *cell) -> np.random.Generator:
    """A generator of the cell's own: a curve that is used in several answers keeps its draws."""
    words = "/".join(map(str, cell)).encode("utf-8")
    # The same entropy as a list, which takes longer.
    entropy = np.array([seed, *words], dtype=np.uint32) if 0 <= seed < 2**32 else [seed, *words]
    return np.random.default_rng(entropy)


def interval(draws: np.ndarray, level: float) -> tuple[np.ndarray, np.ndarray]:
    """Percentile interval of draws (R, m) that may be infinite; NaN where over half of them are NaN."""
    values = np.sort(draws, axis=0)  # NaN last
    count = np.sum(~np.isnan(draws), axis=0)
    enough, tail = (count * 2 >= len(draws)) & (count > 0), (1 - level) / 2 * np.maximum(count - 1, 0)
    column = np.arange(draws.shape[1])
    low = values[np.floor(tail).astype(int), column]
    high = values[np.ceil(np.maximum(count - 1, 0) - tail).astype(int), column]
    return np.where(enough, low, np.nan), np.where(enough, high, np.nan)


def _interpolate_rows(where: np.ndarray, x: np.ndarray, rows: np.ndarray) -> np.ndarray:
    if len(x) == 1:
        return np.repeat(rows, len(where), axis=1)
    place = np.clip(np.searchsorted(x, where) - 1, 0, len(x) - 2)
    share = np.clip((where - x[place]) / (x[place + 1] - x[place]), 0, 1)
    return rows[:, place] * (1 - share) + rows[:, place + 1] * share
