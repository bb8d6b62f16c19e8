"""Which pairs to run next: those that tell most about the scores of all pairs, for their price.

Scores of pairs are modelled as a Gaussian process: what all share, an effect of each language as target and as
source, what the pair's languages have in common (`inventory.pair_features`), what related pairs share, and noise.
Running a pair measures both its directions. Pairs are added greedily by how much they lessen the summed variance
of the scores asked about per unit of price (Krause, Singh & Guestrin 2008, on greedy design with such processes).
"""

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from scipy.linalg import cho_factor, cho_solve
from scipy.linalg.lapack import dpotri
from scipy.optimize import minimize

from analysis.transfer.statistics import to_matrix
from mscale.errors import MscaleError

# More languages than this make the covariance of all pairs too large for memory.
MOST_LANGUAGES = 90
# Cells used to fit the variances: more take long and change little.
MOST_CELLS = 500
# Standard deviations of the parts before any score is known, of the size found in the published matrix.
START = {"shared": 0.4, "target": 0.25, "source": 0.12, "kin": 0.15, "related": 0.08, "own": 0.1}


@dataclass(frozen=True)
class Model:
    """The process over the cells (m, 2) of target and source of T languages.

    Attributes:
      covariance (m, m) of the true scores; noise: standard deviation of a measured score; spread: standard
      deviations of the parts.
    """

    languages: tuple[str, ...]
    cells: np.ndarray
    covariance: np.ndarray
    noise: float
    spread: Mapping[str, float]

    def posterior(self, scores: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Mean and standard deviation (T, T) of the true scores given measured ones (T, T), NaN elsewhere."""
        values = scores[tuple(self.cells.T)]
        at = np.flatnonzero(np.isfinite(values))
        mean, variance = np.zeros(len(values)), np.diag(self.covariance).copy()
        if len(at):
            factor = cho_factor(self.covariance[np.ix_(at, at)] + self.noise**2 * np.eye(len(at)))
            across = self.covariance[:, at]
            mean = across @ cho_solve(factor, values[at])
            variance -= np.einsum("ij,ji->i", across, cho_solve(factor, across.T))
        result = np.full((2, *scores.shape), np.nan)
        result[0][tuple(self.cells.T)] = mean
        result[1][tuple(self.cells.T)] = np.sqrt(np.maximum(variance, 0.0))
        return result[0], result[1]


@dataclass(frozen=True)
class Choice:
    """A pair to run next: its price, and the share of the variance asked about that is left after it."""

    pair: tuple[str, str]
    price: float
    left: float


def model(
    languages: Sequence[str],
    features: Mapping[str, np.ndarray],
    scores: np.ndarray | None = None,
    noise: float = 0.1,
) -> Model:
    """The process for T languages, its variances fitted to the measured scores (T, T) where there are enough.

    Args:
      features: what pairs have in common, (T, T) each (`inventory.pair_features`).
      noise: standard deviation of a measured score, known from its interval.

    Raises:
      MscaleError: too few languages to choose pairs of, or too many.
    """
    if not 3 <= len(languages) <= MOST_LANGUAGES:
        raise MscaleError(
            f"pairs of {len(languages)} languages: choosing needs 3 to {MOST_LANGUAGES}; name fewer languages"
        )
    cells = np.argwhere(~np.eye(len(languages), dtype=bool))
    parts = _parts(cells, features, len(languages))
    spread = {name: START[name] for name in parts}
    values = np.zeros(0) if scores is None else scores[tuple(cells.T)]
    at = np.flatnonzero(np.isfinite(values))
    if len(at) >= 12:
        at = at[np.linspace(0, len(at) - 1, min(len(at), MOST_CELLS)).astype(int)]
        spread = _fitted({name: part[np.ix_(at, at)] for name, part in parts.items()}, values[at], noise)
    covariance = sum((spread[name] ** 2 * part for name, part in parts.items()), np.zeros(()))
    return Model(tuple(languages), cells, np.asarray(covariance), noise, spread)


def of_matrix(
    rows: Sequence[Mapping], features: Callable[[Sequence[str]], Mapping[str, np.ndarray]]
) -> tuple[Model, np.ndarray]:
    """The process for the cells of a transfer matrix, and its measured scores (T, T).

    Args:
      rows: records of the matrix (`transfer.COLUMNS`) at one scale. features: of so many languages' pairs.
    """
    languages = sorted({row["target"] for row in rows} | {row["source"] for row in rows})
    measured = [row for row in rows if row["status"] == "measured"]
    ends = np.array([[row["low"], row["high"]] for row in measured], dtype=float).reshape(-1, 2)
    width = np.diff(ends, axis=1)[np.isfinite(ends).all(axis=1)]
    # A 90% interval is 3.3 standard deviations wide.
    noise = max(float(np.median(width)) / 3.3, 1e-3) if len(width) else START["own"]
    scores = to_matrix(measured, languages)
    return model(languages, features(languages), scores, noise), scores


def pairs_run(rows: Sequence[Mapping]) -> set[tuple[str, str]]:
    """Pairs, names in order, of which a score or a bound is known in both directions."""
    told = {(row["target"], row["source"]) for row in rows if row["status"] in ("measured", "bound")}
    return {(a, b) for a, b in told if a < b and (b, a) in told}


def choose(
    process: Model,
    scores: np.ndarray,
    count: int,
    *,
    price: Mapping[tuple[str, str], float] | None = None,
    budget: float = np.inf,
    weight: np.ndarray | None = None,
    ran: Collection[tuple[str, str]] = (),
) -> list[Choice]:
    """The pairs to run next, at most `count`, in order.

    Args:
      scores (T, T): measured so far, NaN elsewhere. price: of each pair (names in the order of the languages),
        1 by default; their sum stays within `budget`.
      weight (T, T): how much each score matters; all alike by default.
      ran: pairs (names in the order of the languages) that are not to be chosen: those run before, whose loss the
        same run would again not reach.
    """
    place = {tuple(cell): index for index, cell in enumerate(process.cells)}
    importance = np.ones(len(process.cells)) if weight is None else weight[tuple(process.cells.T)]
    known = np.isfinite(scores[tuple(process.cells.T)])
    covariance = _given(process.covariance.copy(), np.flatnonzero(known), process.noise)
    pairs = [
        (place[i, j], place[j, i])
        for i in range(len(process.languages))
        for j in range(i + 1, len(process.languages))
        if not (known[place[i, j]] and known[place[j, i]])
        and (process.languages[i], process.languages[j]) not in ran
    ]
    names = {pair: tuple(process.languages[index] for index in process.cells[pair[0]]) for pair in pairs}
    cost = {pair: (price or {}).get(names[pair], 1.0) for pair in pairs}  # type: ignore[call-overload]
    whole = float(importance @ np.diag(process.covariance))
    chosen: list[Choice] = []
    while pairs and len(chosen) < count:
        pairs = [pair for pair in pairs if cost[pair] <= budget]
        if not pairs:
            break
        both = np.array(pairs)
        across = covariance[both]  # (p, 2, m)
        own = covariance[both[:, :, None], both[:, None, :]] + process.noise**2 * np.eye(2)
        gain = np.einsum("pim,m,pjm->pij", across, importance, across, optimize=True)
        lessened = np.einsum("pij,pji->p", np.linalg.inv(own), gain)
        worth = lessened / np.array([cost[pair] for pair in pairs])
        # Of pairs that are worth the same but for rounding, the first.
        best = pairs[int(np.argmax(worth >= worth.max() * (1 - 1e-9)))]
        covariance = _given(covariance, np.array(best), process.noise)
        budget -= cost[best]
        pairs.remove(best)
        left = float(importance @ np.diag(covariance)) / whole
        chosen.append(Choice(names[best], cost[best], left))  # type: ignore[arg-type]
    return chosen


def _given(covariance: np.ndarray, at: np.ndarray, noise: float) -> np.ndarray:
    """The covariance once the cells `at` are measured."""
    if not len(at):
        return covariance
    across = covariance[:, at]
    inverse = np.linalg.inv(across[at] + noise**2 * np.eye(len(at)))
    return covariance - across @ inverse @ across.T


def _parts(cells: np.ndarray, features: Mapping[str, np.ndarray], count: int) -> dict[str, np.ndarray]:
    """Covariances (m, m) of unit variance that the process is a sum of."""
    t, s = cells.T
    parts = {
        "shared": np.ones((len(cells), len(cells))),
        "target": (t[:, None] == t).astype(float),
        "source": (s[:, None] == s).astype(float),
        "own": (np.arange(len(cells))[:, None] == np.arange(len(cells))).astype(float),
    }
    alike = [table for table in features.values() if np.isfinite(table).any()]
    if alike:
        standard = []
        for table in alike:
            values = table[t, s]
            there = np.isfinite(values)
            deviation = values[there].std() or 1.0
            standard.append(np.where(there, (values - values[there].mean()) / deviation, 0.0))
        parts["kin"] = sum((np.outer(value, value) for value in standard), np.zeros(())) / len(standard)
        close = np.mean([_similarity(table) for table in alike], axis=0)
        parts["related"] = close[np.ix_(t, t)] * close[np.ix_(s, s)]
    return parts


def _similarity(table: np.ndarray) -> np.ndarray:
    """A feature of pairs as a similarity of languages in [0, 1], 1 with oneself; distances are turned round."""
    values = np.where(np.isfinite(table), table, np.nanmean(table))
    off = ~np.eye(len(values), dtype=bool)
    if np.diag(values).mean() < values[off].mean():
        values = values.max() - values
    values = values / max(values.max(), 1e-12)
    np.fill_diagonal(values, 1.0)
    return values


def _fitted(parts: Mapping[str, np.ndarray], values: np.ndarray, noise: float) -> dict[str, float]:
    """Standard deviations of the parts of highest marginal likelihood, held near their start by a wide prior."""
    names = list(parts)
    start = np.log([START[name] for name in names])
    stacked = np.stack([parts[name] for name in names])

    def objective(theta: np.ndarray) -> tuple[float, np.ndarray]:
        variance = np.exp(2 * theta)
        covariance = np.tensordot(variance, stacked, 1) + noise**2 * np.eye(len(values))
        try:
            factor = cho_factor(covariance, lower=True)
        except np.linalg.LinAlgError:
            return 1e12, np.zeros_like(theta)
        solved = cho_solve(factor, values)
        half = dpotri(factor[0], lower=True)[0]
        inverse = np.tril(half) + np.tril(half, -1).T
        value = 0.5 * values @ solved + np.log(np.diag(factor[0])).sum()
        outer = np.outer(solved, solved) - inverse
        slope = -variance * np.einsum("kij,ij->k", stacked, outer)
        away = theta - start
        return float(value + 0.5 * away @ away), slope + away

    found = minimize(objective, start, jac=True, method="L-BFGS-B", bounds=[(-7.0, 1.5)] * len(names))
    return {name: float(np.exp(value)) for name, value in zip(names, found.x, strict=True)}
