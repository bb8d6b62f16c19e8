"""Optimal design: which pairs to run next so that the scores of all pairs are known best for the price.

The scores are modelled as a Gaussian process. Its covariance is the sum of a constant, an effect of each language as
target and as source, a linear effect of features of the pair (`inventory.pair_features`), an effect that pairs of
related languages share, and independent noise. A run of a pair measures both its directions. Pairs are chosen greedily
by the reduction of the summed posterior variance per unit of price (Krause, Singh & Guestrin 2008).
"""

import itertools
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy.linalg import cho_factor, cho_solve
from scipy.optimize import minimize

from analysis.gaussian import greedy_design, posterior, posterior_covariance
from analysis.tables import languages as inventory
from analysis.transfer.statistics import score_matrix
from mscale.errors import MscaleError

# The covariance of all cells of more languages does not fit into memory.
MAX_LANGUAGES = 90
# Cells that the variances are fitted to: more take longer and change little.
MAX_FITTED_CELLS = 500
# Prior standard deviations of the covariance components; their sizes are those in the published matrix.
PRIOR_DEVIATIONS = {
    "shared": 0.4,
    "target": 0.25,
    "source": 0.12,
    "features": 0.15,
    "related": 0.08,
    "residual": 0.1,
}


@dataclass(frozen=True)
class PairModel:
    """The Gaussian process over the cells (m, 2), target and source, of T languages.

    Attributes:
      covariance: prior covariance (m, m) of the true scores.
      noise: standard deviation of a measured score about the true one.
      deviations: standard deviations of the covariance components.
    """

    languages: tuple[str, ...]
    cells: np.ndarray
    covariance: np.ndarray
    noise: float
    deviations: Mapping[str, float]

    def posterior(self, scores: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Mean (T, T) and covariance (m, m) of the true scores given `scores` (T, T), NaN where unknown."""
        cells = tuple(self.cells.T)
        at = np.flatnonzero(np.isfinite(scores[cells]))
        noise, nothing = self.noise**2 * np.eye(len(at)), np.zeros(len(self.cells))
        measured = np.eye(len(self.cells))[at]
        found, covariance = posterior(nothing, self.covariance, measured, scores[cells][at], noise)
        mean = np.full(scores.shape, np.nan)
        mean[cells] = found
        return mean, covariance


@dataclass(frozen=True)
class SelectedPair:
    """A pair to run next.

    Attributes:
      remaining_variance: summed posterior variance of the scores asked about, expected once this pair and those before
        it are run, as a share of the prior variance.
    """

    pair: tuple[str, str]
    remaining_variance: float


def fit_pair_model(
    languages: Sequence[str],
    features: Mapping[str, np.ndarray],
    scores: np.ndarray | None = None,
    noise: float = 0.1,
) -> PairModel:
    """The process for T languages. Variances are fitted to the measured scores (T, T) if these are 12 or more.

    Args:
      features: of pairs, (T, T) each (`inventory.pair_features`).
      noise: standard deviation of a measured score.

    Raises:
      MscaleError: too few languages to choose pairs of, or too many.
    """
    if not 3 <= len(languages) <= MAX_LANGUAGES:
        raise MscaleError(
            f"pairs of {len(languages)} languages: choosing needs 3 to {MAX_LANGUAGES}; name fewer languages"
        )
    cells = np.argwhere(~np.eye(len(languages), dtype=bool))
    components = _covariance_components(cells, features)
    deviations = {name: PRIOR_DEVIATIONS[name] for name in components}
    values = np.zeros(0) if scores is None else scores[tuple(cells.T)]
    at = np.flatnonzero(np.isfinite(values))
    if len(at) >= 12:
        at = at[np.linspace(0, len(at) - 1, min(len(at), MAX_FITTED_CELLS)).astype(int)]
        some = {name: component[np.ix_(at, at)] for name, component in components.items()}
        deviations = _fitted_deviations(some, values[at], noise)
    scaled = (deviations[name] ** 2 * component for name, component in components.items())
    return PairModel(tuple(languages), cells, np.asarray(sum(scaled, np.zeros(()))), noise, deviations)


def pair_model_of_matrix(
    rows: Sequence[Mapping],
    planted: Mapping[str, Mapping[str, Any]] | None = None,
    overlap: Mapping[str, Mapping[str, float]] | None = None,
) -> tuple[PairModel, np.ndarray]:
    """The process for the languages of a transfer matrix, and its measured scores (T, T).

    Args:
      rows: records of the matrix (`matrix.SCORE_COLUMNS`) at one scale.
      planted, overlap: see `inventory.pair_features`.
    """
    languages = sorted({row["target"] for row in rows} | {row["source"] for row in rows})
    measured = [row for row in rows if row["status"] == "measured"]
    ends = np.array([[row["low"], row["high"]] for row in measured], dtype=float).reshape(-1, 2)
    width = np.diff(ends, axis=1)[np.isfinite(ends).all(axis=1)]
    # A 90% interval is 3.3 standard deviations wide.
    noise = max(float(np.median(width)) / 3.3, 1e-3) if len(width) else PRIOR_DEVIATIONS["residual"]
    scores = score_matrix(measured, languages)
    features = inventory.pair_features(languages, planted, overlap)
    return fit_pair_model(languages, features, scores, noise), scores


def pairs_already_run(rows: Sequence[Mapping]) -> set[tuple[str, str]]:
    """Pairs (names in alphabetical order) with a score or a bound in both directions."""
    known = {(row["target"], row["source"]) for row in rows if row["status"] in ("measured", "bound")}
    return {(a, b) for a, b in known if a < b and (b, a) in known}


def select_pairs(
    process: PairModel,
    scores: np.ndarray,
    count: int,
    *,
    price: float = 1.0,
    budget: float = np.inf,
    weight: np.ndarray | None = None,
    ran: Collection[tuple[str, str]] = (),
) -> list[SelectedPair]:
    """The pairs to run next, best first, at most `count`.

    Args:
      scores: (T, T) measured so far, NaN elsewhere.
      price: of a pair. The sum stays within `budget`.
      weight: (T, T) of the variance of each score; 1 by default.
      ran: pairs that were run before (names in the order of the languages) and are not chosen again, also those that
        gave only a bound: the same run would give the same bound.
    """
    languages, cells = process.languages, process.cells
    place = {tuple(cell): index for index, cell in enumerate(cells)}
    importance = np.ones(len(cells)) if weight is None else weight[tuple(cells.T)]
    known = np.isfinite(scores[tuple(cells.T)])
    pairs = [
        (i, j)
        for i, j in itertools.combinations(range(len(languages)), 2)
        if not (known[place[i, j]] and known[place[j, i]]) and (languages[i], languages[j]) not in ran
    ]

    def cells_of(pair: tuple[int, int]) -> list[int]:
        return [place[pair], place[pair[::-1]]]

    def reductions(covariance: np.ndarray, offered: Sequence[tuple[int, int]]) -> np.ndarray:
        both = np.array([cells_of(pair) for pair in offered])
        across = covariance[both]  # (p, 2, m)
        own = covariance[both[:, :, None], both[:, None, :]] + process.noise**2 * np.eye(2)
        gain = np.einsum("pim,m,pjm->pij", across, importance, across, optimize=True)
        return np.einsum("pij,pji->p", np.linalg.inv(own), gain)

    def measure(covariance: np.ndarray, pair: tuple[int, int]) -> np.ndarray:
        pairs.remove(pair)
        measured = np.eye(len(covariance))[cells_of(pair)]
        return posterior_covariance(covariance, measured, process.noise**2 * np.eye(2))

    design = greedy_design(
        process.posterior(scores)[1], lambda _: pairs, reductions, measure, lambda _: price, budget
    )
    prior_variance = float(importance @ np.diag(process.covariance))
    return [
        SelectedPair((languages[i], languages[j]), float(importance @ np.diag(after)) / prior_variance)
        for (i, j), after in itertools.islice(design, count)
    ]


def _covariance_components(cells: np.ndarray, features: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The covariance components (m, m), each of unit variance, by name."""
    t, s = cells.T
    components = {
        "shared": np.ones((len(cells), len(cells))),
        "target": (t[:, None] == t).astype(float),
        "source": (s[:, None] == s).astype(float),
        "residual": (np.arange(len(cells))[:, None] == np.arange(len(cells))).astype(float),
    }
    known = [table for table in features.values() if np.isfinite(table).any()]
    if known:
        standard = []
        for table in known:
            values = table[t, s]
            finite = np.isfinite(values)
            deviation = values[finite].std() or 1.0
            standard.append(np.where(finite, (values - values[finite].mean()) / deviation, 0.0))
        outer = (np.outer(value, value) for value in standard)
        components["features"] = sum(outer, np.zeros(())) / len(standard)
        close = np.mean([_language_similarity(table) for table in known], axis=0)
        components["related"] = close[np.ix_(t, t)] * close[np.ix_(s, s)]
    return components


def _language_similarity(table: np.ndarray) -> np.ndarray:
    """A feature of pairs as a similarity in [0, 1], with 1 on the diagonal; a distance is reversed."""
    values = np.where(np.isfinite(table), table, np.nanmean(table))
    off = ~np.eye(len(values), dtype=bool)
    if np.diag(values).mean() < values[off].mean():
        values = values.max() - values
    values = values / max(values.max(), 1e-12)
    np.fill_diagonal(values, 1.0)
    return values


def _fitted_deviations(
    components: Mapping[str, np.ndarray], values: np.ndarray, noise: float
) -> dict[str, float]:
    """Standard deviations of the components of maximal marginal likelihood, with a log-normal prior.

    The prior has its median at `PRIOR_DEVIATIONS` and unit standard deviation in the logarithm.
    """
    names = list(components)
    start = np.log([PRIOR_DEVIATIONS[name] for name in names])
    stacked = np.stack([components[name] for name in names])

    def objective(theta: np.ndarray) -> tuple[float, np.ndarray]:
        variance = np.exp(2 * theta)
        covariance = np.tensordot(variance, stacked, 1) + noise**2 * np.eye(len(values))
        try:
            factor = cho_factor(covariance)
        except np.linalg.LinAlgError:
            return 1e12, np.zeros_like(theta)
        solved, inverse = cho_solve(factor, values), cho_solve(factor, np.eye(len(values)))
        value = 0.5 * values @ solved + np.log(np.diag(factor[0])).sum()
        outer = np.outer(solved, solved) - inverse
        gradient = -variance * np.einsum("kij,ij->k", stacked, outer)
        deviation = theta - start
        return float(value + 0.5 * deviation @ deviation), gradient + deviation

    found = minimize(objective, start, jac=True, method="L-BFGS-B", bounds=[(-7.0, 1.5)] * len(names))
    return {name: float(np.exp(value)) for name, value in zip(names, found.x, strict=True)}
