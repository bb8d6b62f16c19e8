"""What a study knows of its crossovers, together: where a model from scratch overtakes a continued checkpoint.

The crossover of each language and size is a Gaussian process in log tokens: a power law in N around the published
exponent, an effect of the language, and one of the cell. A crossover that was read is a measurement of it, as exact as
the gap of the two curves divided by how steeply it falls there; one beyond the data is where the gap would close if it
went on falling as it last did, and the less certain the further that is.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from analysis.crossover import crossover
from mscale.errors import MscaleError, nearest

# Standard deviations of log tokens: of the level (nearly anything), of the exponent of N, of languages (0.27 among the
# eight published), and of a cell of its own.
LEVEL, EXPONENT, LANGUAGE, CELL = 3.0, 0.3, 0.3, 0.15
# A gap that no longer falls is taken to fall by this much for each e-fold of tokens, in nats: a crossover far away.
LEAST_SLOPE = 1e-3
# Log tokens to either side over which the slope of a gap is taken; the power of tokens that a gap falls with, which for
# a head start of so many tokens is about one.
WINDOW, POWER = 0.7, 1.0
# Of a crossover read off a trend: the deviation of its log tokens, as a part of how far beyond the data it is, and how
# alike the errors of such are. On three planted worlds, 286 crossovers, trends err by 0.2 to 0.3 of it. A deviation as
# large as the distance lies half before the end of the data, and promised crossovers just behind it: 46% of the longer
# runs were told to show theirs where 40% did; with these it is 40%.
TREND, ALIKE = 0.4, 0.3
Z90 = 1.645


@dataclass(frozen=True)
class Cell:
    """What is known of a crossover: log tokens `seen` (None: nothing), with its variance `spread` for one run of each
    curve, and `away`, how far beyond the data it is taken to lie.

    `runs`: trunks of scratch and continued; `reach`: tokens of each. `status`: as in `crossover.COLUMNS`.
    """

    language: str
    scale: str
    params: float
    status: str
    runs: tuple[int, int]
    reach: tuple[float, float]
    seen: float | None
    spread: float
    away: float = 0.0

    def variance(self) -> float:
        """Of `seen` by noise: that of each curve averages over its runs."""
        return self.spread * (1 / self.runs[0] + 1 / self.runs[1]) / 2


def cells_of(results: Mapping[str, Any], target: str, scales: Mapping[str, float]) -> list[Cell]:
    """The study's crossovers, and the target's cells that it has none of at its other sizes."""
    table = results["crossover"]["table"]
    known = results["study"]["languages"]
    if target not in known:
        raise MscaleError(f"the study has no language {target!r}{nearest(target, known)}")
    if table and "scratch_runs" not in table[0]:
        raise MscaleError("these results were made by an older mscale; run `mscale fit` again")
    slopes = _slopes(results["crossover"].get("gaps", ()))
    found: dict[tuple[str, str], Cell] = {}
    for row in table:
        key = (row["language"], str(row["scale"]))
        cell = _cell(row, slopes.get(key))
        # Of several checkpoints continued, the cell that tells most.
        if key not in found or (cell.seen is not None and found[key].seen is None):
            found[key] = cell
    for scale, size in scales.items():
        mine = [
            float(point["tokens"])
            for point in results["loss_curves"]
            if (point["kind"], str(point["scale"]), point["language"]) == ("alone", scale, target)
        ]
        alone = (int(bool(mine)), 0), (max(mine, default=0.0), 0.0)
        found.setdefault((target, scale), Cell(target, scale, size, "missing", *alone, None, 0.0))
    return list(found.values())


def _slopes(
    gaps: Sequence[Mapping[str, Any]],
) -> dict[tuple[str, str], tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """Log tokens, gap and its standard deviation by (language, scale)."""
    curves: dict[tuple[str, str], list[Mapping[str, Any]]] = {}
    for point in gaps:
        curves.setdefault((point["language"], str(point["scale"])), []).append(point)
    made = {}
    for key, points in curves.items():
        value = np.array([[p["tokens"], p["gap"], p["low"], p["high"]] for p in points], dtype=float)
        value = value[np.isfinite(value).all(axis=1)]
        if len(value) > 3:
            made[key] = np.log(value[:, 0]), value[:, 1], (value[:, 3] - value[:, 2]) / (2 * Z90)
    return made


def _cell(row: Mapping[str, Any], curve: tuple[np.ndarray, np.ndarray, np.ndarray] | None) -> Cell:
    runs = int(row["scratch_runs"]), int(row["continued_runs"])
    reach = float(row["scratch_tokens"]), float(row["continued_tokens"])
    base = Cell(
        row["language"], str(row["scale"]), float(row["params"]), row["status"], runs, reach, None, 0.0
    )
    if row["status"] == "missing" or curve is None:
        return replace(base, status="missing")
    x, gap, deviation = curve
    at = float(np.log(row["tokens"]))
    near = abs(x - at) <= WINDOW
    slope = max(-float(np.polyfit(x[near], gap[near], 1)[0]) if near.sum() > 2 else 0.0, LEAST_SLOPE)
    error = float(np.interp(at, x, deviation)) / slope
    if row["status"] == "measured" and row["low"] and row["high"]:
        error = float(np.log(row["high"] / row["low"])) / (2 * Z90)
    away, sign = 0.0, 1
    if row["status"] == "bound" and row["bound"] == "at least":
        # The fall of a gap slows, and may end above zero: then the crossover is far off.
        # The slope is that of the middle of its window, half a window before the end of the data.
        closed = POWER * abs(float(row["gap"])) / (slope * np.exp(-POWER * WINDOW / 2))
        away = max(-np.log(max(1 - closed, 0.05)) / POWER, WINDOW / 2)
    elif row["status"] == "bound":
        away, sign = float(np.log(4)), -1
    spread = 2 * error**2 / (1 / runs[0] + 1 / runs[1])
    return replace(base, seen=at + sign * away, spread=spread, away=away)


def _prior(cells: Sequence[Cell]) -> tuple[np.ndarray, np.ndarray]:
    """Mean (n,) and covariance (n, n) of the log tokens of the cells' crossovers."""
    size = np.log([cell.params for cell in cells])
    middle = size - size.mean()
    language = np.array([cell.language for cell in cells])
    covariance = LEVEL**2 + EXPONENT**2 * np.outer(middle, middle)
    covariance = covariance + LANGUAGE**2 * (language[:, None] == language) + CELL**2 * np.eye(len(cells))
    return np.log(crossover.PUBLISHED.tokens(np.exp(size))), covariance


def between(results: Mapping[str, Any], target: str, params: float) -> tuple[float, float] | None:
    """The 90% interval of the tokens of a crossover at any N, by those that the study has; None where it read none."""
    if target not in results["study"].get("languages", ()):
        return None
    if not any(row["status"] == "measured" for row in results["crossover"]["table"]):
        return None
    sizes = {str(one["scale"]): float(one["params"]) for one in results["study"]["scales"]}
    asked = Cell(target, "asked", params, "missing", (0, 0), (0.0, 0.0), None, 0.0)
    mean, variance = posterior([*cells_of(results, target, sizes), asked], asked)
    low, high = (float(np.exp(mean + sign * Z90 * np.sqrt(variance))) for sign in (-1, 1))
    return low, high


def posterior(cells: Sequence[Cell], wanted: Cell) -> tuple[float, float]:
    """Mean and variance of the log tokens of one cell's crossover, from all that were seen."""
    mean, covariance = _prior(cells)
    at = next(i for i, cell in enumerate(cells) if key(cell) == key(wanted))
    seen = [i for i, cell in enumerate(cells) if cell.seen is not None]
    if not seen:
        return float(mean[at]), float(covariance[at, at])
    away = TREND * np.array([cells[i].away for i in seen])
    noisy = covariance[np.ix_(seen, seen)] + np.diag([cells[i].variance() for i in seen])
    noisy = noisy + np.outer(away, away) * (ALIKE + (1 - ALIKE) * np.eye(len(seen)))
    weight = np.linalg.solve(noisy, covariance[seen, at])
    values = np.array([cells[i].seen for i in seen], dtype=float)
    return float(mean[at] + weight @ (values - mean[seen])), float(
        covariance[at, at] - weight @ covariance[seen, at]
    )


def key(cell: Cell) -> tuple[str, str]:
    return cell.language, cell.scale
