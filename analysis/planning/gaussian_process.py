"""A Gaussian process over the crossovers of a study: log tokens by language and size.

Its mean is the published power law in N; its covariance has a level, a deviation of the exponent, an effect of the
language and one of the cell. A measured crossover is an observation whose standard deviation is that of the gap between
the two curves divided by the slope of the gap. Where the curves do not cross within the data, the gap is extrapolated
with its last slope, and the variance grows with the distance.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from analysis.crossover import crossover
from analysis.gaussian import posterior
from analysis.study.results import Results
from mscale.errors import MscaleError, nearest

# Prior standard deviations in log tokens: of the level (nearly flat), the exponent of N, languages (0.27 among the
# eight published) and of single cells.
_LEVEL_SD, _EXPONENT_SD, _LANGUAGE_SD, _CELL_SD = 3.0, 0.3, 0.3, 0.15
# Least slope of a gap, in nats per e-fold of tokens: a gap that does not fall has its crossover far away.
_MIN_SLOPE = 1e-3
# Log tokens on each side over which the slope of a gap is estimated; and the power of tokens with which a gap falls:
# about 1 if continuing is worth a fixed number of tokens.
_SLOPE_WINDOW, _GAP_POWER = 0.7, 1.0
# Extrapolated crossovers: standard deviation of log tokens as a fraction of the distance beyond the data, and the
# correlation of these errors between cells. In three planted studies (286 crossovers) the errors are 0.2 to 0.3 of the
# distance. With a fraction of 1 the posterior puts too much mass just beyond the data: longer runs were predicted to
# show their crossover with a mean probability of 46% where 40% did; with these values it is 40%.
TREND_ERROR, _TREND_CORRELATION = 0.4, 0.3
Z90 = 1.645  # normal quantile of a 90% interval


@dataclass(frozen=True)
class CrossoverCell:
    """The crossover of a language at a size, as far as it was observed.

    Attributes:
      status: as in `crossover.CROSSOVER_COLUMNS`.
      runs: number of trunks from scratch and continued. last_tokens: of each.
      log_tokens: of the crossover, None if not observed. run_variance: its variance with one run for each curve.
      extrapolation: log tokens by which the crossover lies beyond the data.
    """

    language: str
    scale: str
    params: float
    status: str
    runs: tuple[int, int]
    last_tokens: tuple[float, float]
    log_tokens: float | None
    run_variance: float
    extrapolation: float = 0.0

    def variance(self) -> float:
        """The noise variance of `log_tokens`, which averages over the runs of each curve."""
        return self.run_variance * (1 / self.runs[0] + 1 / self.runs[1]) / 2


def crossover_cells(results: Results, target: str, scales: Mapping[str, float]) -> list[CrossoverCell]:
    """The study's crossovers, and cells without one for the target at the other sizes in `scales` ({name: params}).

    Raises:
      MscaleError: the study lacks the target.
    """
    table = results.crossover.table
    known = results.study.languages
    if target not in known:
        raise MscaleError(f"the study has no language {target!r}{nearest(target, known)}")
    gap_curves = _gap_curves_by_cell(results.crossover.gaps)
    found: dict[tuple[str, str], CrossoverCell] = {}
    for row in table:
        key = (row["language"], str(row["scale"]))
        cell = _cell_of_row(row, gap_curves.get(key))
        # Where several checkpoints were continued, prefer a cell with an observation.
        if key not in found or (cell.log_tokens is not None and found[key].log_tokens is None):
            found[key] = cell
    for scale, size in scales.items():
        tokens = [
            float(point["tokens"])
            for point in results.loss_curves
            if (point["kind"], str(point["scale"]), point["language"]) == ("mono", scale, target)
        ]
        runs, last_tokens = (int(bool(tokens)), 0), (max(tokens, default=0.0), 0.0)
        found.setdefault(
            (target, scale), CrossoverCell(target, scale, size, "missing", runs, last_tokens, None, 0.0)
        )
    return list(found.values())


def _gap_curves_by_cell(
    gaps: Sequence[Mapping[str, Any]],
) -> dict[tuple[str, str], tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """{(language, scale): log tokens, gap and its standard deviation, each (m,)}, of curves with over three points."""
    curves: dict[tuple[str, str], list[Mapping[str, Any]]] = {}
    for point in gaps:
        curves.setdefault((point["language"], str(point["scale"])), []).append(point)
    found = {}
    for key, points in curves.items():
        value = np.array([[p["tokens"], p["gap"], p["low"], p["high"]] for p in points], dtype=float)
        value = value[np.isfinite(value).all(axis=1)]
        if len(value) > 3:
            found[key] = np.log(value[:, 0]), value[:, 1], (value[:, 3] - value[:, 2]) / (2 * Z90)
    return found


def _cell_of_row(
    row: Mapping[str, Any], curve: tuple[np.ndarray, np.ndarray, np.ndarray] | None
) -> CrossoverCell:
    """The cell of a row of the crossover table and its gap curve; extrapolated where the row is a bound."""
    runs = int(row["scratch_runs"]), int(row["continued_runs"])
    last_tokens = float(row["scratch_tokens"]), float(row["continued_tokens"])
    base = CrossoverCell(
        row["language"], str(row["scale"]), float(row["params"]), row["status"], runs, last_tokens, None, 0.0
    )
    if row["status"] == "missing" or curve is None:
        return replace(base, status="missing")
    x, gap, deviation = curve
    at = float(np.log(row["tokens"]))
    near = abs(x - at) <= _SLOPE_WINDOW
    slope = max(-float(np.polyfit(x[near], gap[near], 1)[0]) if near.sum() > 2 else 0.0, _MIN_SLOPE)
    error = float(np.interp(at, x, deviation)) / slope
    if row["status"] == "measured" and row["low"] and row["high"]:
        error = float(np.log(row["high"] / row["low"])) / (2 * Z90)
    away, sign = 0.0, 1
    if row["status"] == "bound" and row["bound"] == "at least":
        # The gap falls as tokens^-power and may have a positive limit: the log is bounded for crossovers far off.
        # The slope is estimated half a window before the end of the data, and is corrected for that.
        closed = _GAP_POWER * abs(float(row["gap"])) / (slope * np.exp(-_GAP_POWER * _SLOPE_WINDOW / 2))
        away = max(-np.log(max(1 - closed, 0.05)) / _GAP_POWER, _SLOPE_WINDOW / 2)
    elif row["status"] == "bound":
        away, sign = float(np.log(4)), -1
    run_variance = 2 * error**2 / (1 / runs[0] + 1 / runs[1])
    return replace(base, log_tokens=at + sign * away, run_variance=run_variance, extrapolation=away)


def _prior(cells: Sequence[CrossoverCell]) -> tuple[np.ndarray, np.ndarray]:
    """Prior mean (n,) and covariance (n, n) of the cells' log tokens."""
    log_size = np.log([cell.params for cell in cells])
    centred = log_size - log_size.mean()
    language = np.array([cell.language for cell in cells])
    covariance = _LEVEL_SD**2 + _EXPONENT_SD**2 * np.outer(centred, centred)
    covariance = (
        covariance + _LANGUAGE_SD**2 * (language[:, None] == language) + _CELL_SD**2 * np.eye(len(cells))
    )
    return np.log(crossover.PUBLISHED_POWER_LAW.tokens(np.exp(log_size))), covariance


def crossover_interval(results: Results, target: str, params: float) -> tuple[float, float] | None:
    """The 90% interval of the target's crossover in tokens at N = `params`; None if the study measured no crossover."""
    if target not in results.study.languages:
        return None
    if not any(row["status"] == "measured" for row in results.crossover.table):
        return None
    sizes = {str(one["scale"]): float(one["params"]) for one in results.study.scales}
    unobserved = CrossoverCell(target, "asked", params, "missing", (0, 0), (0.0, 0.0), None, 0.0)
    mean, variance = crossover_posterior([*crossover_cells(results, target, sizes), unobserved], unobserved)
    low, high = (float(np.exp(mean + sign * Z90 * np.sqrt(variance))) for sign in (-1, 1))
    return low, high


def crossover_posterior(cells: Sequence[CrossoverCell], wanted: CrossoverCell) -> tuple[float, float]:
    """Posterior mean and variance of the log tokens of the cell `wanted` (one of `cells`), given all observed cells."""
    mean, covariance = _prior(cells)
    at = next(i for i, cell in enumerate(cells) if cell_key(cell) == cell_key(wanted))
    observed = [i for i, cell in enumerate(cells) if cell.log_tokens is not None]
    if observed:
        seen = [cells[i] for i in observed]
        away = TREND_ERROR * np.array([cell.extrapolation for cell in seen])
        shared = _TREND_CORRELATION + (1 - _TREND_CORRELATION) * np.eye(len(seen))
        noise = np.diag([cell.variance() for cell in seen]) + np.outer(away, away) * shared
        values = np.array([cell.log_tokens for cell in seen], dtype=float)
        mean, covariance = posterior(mean, covariance, np.eye(len(cells))[observed], values, noise)
    return float(mean[at]), float(covariance[at, at])


def cell_key(cell: CrossoverCell) -> tuple[str, str]:
    """(language, scale)."""
    return cell.language, cell.scale
