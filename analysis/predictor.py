"""Transfer of pairs that were not run: a random forest, as in ATLAS (Longpre et al. 2026, section 4).

300 trees of unlimited depth. The paper's features of a pair are what continuing a checkpoint on each language
shows (standardised adaptation gains of source and target, their difference, and how the source's run ends on the
target); added are what is known of the languages (script, family, genealogy, shared vocabulary) and how the two
fare in the other pairs. Which of the three groups are used is chosen by cross-validation, and the whole, that
choice included, is scored on pairs held out from the choice too.

A 50/50 run measures both directions of a pair, so pairs, not cells, are drawn for a tree and held out.
"""

import itertools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy.stats import rankdata
from sklearn import config_context
from sklearn.tree import DecisionTreeRegressor

from analysis.dyads import jackknife
from analysis.wording import minus
from mscale.errors import MscaleError

TREES = 300
# Trees of each forest that is only scored, and of each that only chooses features: more change R² by less than
# its own interval.
SCORED_TREES, CHOOSING_TREES = 60, 25
FOLDS, CHOOSING_FOLDS = 5, 4
LEAST_PAIRS = 8
GROUPS = ("adaptation", "language", "other pairs")
# A value that no standardised feature takes: "not known" is something a tree may split off.
UNKNOWN = -99.0


@dataclass(frozen=True)
class Known:
    """Features (T, T) of all pairs by group, row = target and column = source; NaN where not known."""

    languages: tuple[str, ...]
    adaptation: Mapping[str, np.ndarray]
    language: Mapping[str, np.ndarray]


@dataclass(frozen=True)
class Predictions:
    """Predicted scores (T, T) with their interval, and how well such predictions did on held-out pairs.

    Attributes:
      groups: the feature groups chosen. r2, spearman: of held-out pairs, the choice of features included; r2_low,
        r2_high by leaving out languages. ablation: a record for each set of groups, scored the same way. gains: for
        each group what it adds to all others in R², with its interval.
      importance: share of the forest's reduction of variance by feature.
    """

    score: np.ndarray
    low: np.ndarray
    high: np.ndarray
    groups: tuple[str, ...]
    r2: float
    r2_low: float
    r2_high: float
    spearman: float
    pairs: int
    ablation: tuple[dict, ...]
    gains: tuple[dict, ...]
    importance: Mapping[str, float]


def adaptation_features(rows: Sequence[Mapping[str, Any]], languages: Sequence[str]) -> dict[str, np.ndarray]:
    """The paper's four features from adaptation scores (`adaptation.adaptation_scores`) of one scale.

    g_l = FAS(l→l), standardised over all languages; δ(s→t) is the final loss on t after continuing on s,
    standardised over the sources of each target.
    """
    place = {name: index for index, name in enumerate(languages)}
    gain = np.full(len(languages), np.nan)
    final = np.full((len(languages), len(languages)), np.nan)
    for row in rows:
        if row["status"] == "measured" and row["target"] in place and row["source"] in place:
            final[place[row["target"]], place[row["source"]]] = row["final"]
            if row["source"] == row["target"]:
                gain[place[row["source"]]] = row["score"]
    if np.isfinite(gain).sum() < 2:
        return {}
    gain = _standardise(gain[None])[0]
    source, target = np.broadcast_to(gain, final.shape), np.broadcast_to(gain[:, None], final.shape)
    return {
        "gain of the source": source,
        "gain of the target": target,
        "difference of gains": source - target,
        "final loss on the target": _standardise(final),
    }


def predict(
    scores: np.ndarray,
    known: Known,
    *,
    trees: int = TREES,
    scored_trees: int = SCORED_TREES,
    repeats: int = 2,
    level: float = 0.9,
    seed: int = 0,
) -> Predictions:
    """Predicts all pairs from the scores (T, T) of those that were run (NaN elsewhere).

    Raises:
      MscaleError: too few pairs, or held-out pairs are predicted no better than by the mean.
    """
    pairs = np.argwhere(np.triu(np.isfinite(scores) | np.isfinite(scores.T), 1))
    if len(pairs) < LEAST_PAIRS:
        raise MscaleError(f"{len(pairs)} pairs were measured; predicting others needs {LEAST_PAIRS} or more")
    sets = _feature_sets(known)
    folds = [fold for repeat in range(repeats) for fold in _folds(len(pairs), FOLDS, seed + repeat)]
    found = {chosen: np.full((repeats, *scores.shape), np.nan) for chosen in [*sets, None]}
    with config_context(skip_parameter_validation=True):
        for number, held in enumerate(folds):
            training = pairs[np.setdiff1d(np.arange(len(pairs)), held)]
            cells = _cells(scores, pairs[held])
            place = (number // FOLDS, *cells.T)
            for chosen in sets:
                forest = _grow(scores, training, known, chosen, scored_trees, (seed, number))
                found[chosen][place] = forest.predict(cells)
            best = min(sets, key=lambda chosen: _error(scores, training, known, chosen, (seed, number)))
            found[None][place] = found[best][place]
        errors = {chosen: np.nanmean((found[chosen] - scores) ** 2) for chosen in sets}
        chosen = min(sets, key=lambda name: errors[name])
        forest = _grow(scores, pairs, known, chosen, trees, (seed, len(folds)))
        everything = np.argwhere(~np.eye(len(scores), dtype=bool))
        predicted = np.full_like(scores, np.nan)
        predicted[tuple(everything.T)] = forest.predict(everything)
    ablation = [{"groups": list(name), **_judge(scores, found[name], level)} for name in sets]
    gains = []
    for group in sets[-1] if len(sets) > 1 else ():
        rest = tuple(name for name in sets[-1] if name != group)
        value, low, high = jackknife(_gain(scores, found[sets[-1]], found[rest]), len(scores), level)
        gains.append({"group": group, "r2": value, "low": low, "high": high})
    whole = _judge(scores, found[None], level)
    if not whole["r2"] > 0:
        raise MscaleError(
            f"held-out pairs are predicted no better than by their mean (R² {minus(whole['r2'], 2)} over {len(pairs)} "
            "pairs): measure more pairs, or continue a checkpoint on every language"
        )
    # Conformal: errors of predictions that never saw the pair, the choice of features included.
    misses = np.sort(abs(found[None] - scores)[np.isfinite(found[None])])
    reach = misses[min(int(np.ceil((len(misses) + 1) * level)) - 1, len(misses) - 1)]
    return Predictions(
        predicted,
        predicted - reach,
        predicted + reach,
        chosen,
        whole["r2"],
        whole["r2_low"],
        whole["r2_high"],
        whole["spearman"],
        len(pairs),
        tuple(ablation),
        tuple(gains),
        forest.importance(),
    )


@dataclass(frozen=True)
class _Forest:
    """Trees over the features of one choice."""

    trees: tuple[DecisionTreeRegressor, ...]
    table: np.ndarray  # (T, T, F) float32
    names: tuple[str, ...]

    def predict(self, cells: np.ndarray) -> np.ndarray:
        """(m,) for cells (m, 2) of target and source."""
        X = self.table[tuple(cells.T)]
        return np.mean([tree.tree_.predict(X)[:, 0] for tree in self.trees], axis=0)

    def importance(self) -> dict[str, float]:
        shares = np.mean([tree.feature_importances_ for tree in self.trees], axis=0)
        return {name: float(share) for name, share in zip(self.names, shares, strict=True)}


def _grow(
    scores: np.ndarray,
    pairs: np.ndarray,
    known: Known,
    chosen: tuple[str, ...],
    trees: int,
    seed: tuple[int, int],
) -> _Forest:
    rng = np.random.default_rng([11, *seed])
    features: dict[str, np.ndarray] = {}
    if "adaptation" in chosen:
        features |= known.adaptation
    if "language" in chosen:
        features |= known.language
    if "other pairs" in chosen:
        features |= _other_pairs(scores, pairs)
    table = np.stack(list(features.values()), axis=-1)
    table = np.where(np.isfinite(table), table, UNKNOWN).astype(np.float32)
    cells = _cells(scores, pairs)
    which = {tuple(pair): index for index, pair in enumerate(pairs)}
    owner = np.array([which[tuple(sorted(cell))] for cell in cells])
    X, y = table[tuple(cells.T)], scores[tuple(cells.T)]
    rows = [np.flatnonzero(owner == index) for index in range(len(pairs))]
    grown = []
    # One generator for all trees: making one takes longer than growing a small tree.
    ties = np.random.RandomState(rng.integers(2**31 - 1))
    for _ in range(trees):
        bag = np.concatenate([rows[index] for index in rng.integers(len(pairs), size=len(pairs))])
        tree = DecisionTreeRegressor(random_state=ties)
        grown.append(tree.fit(X[bag], y[bag], check_input=False))
    return _Forest(tuple(grown), table, tuple(features))


def _error(
    scores: np.ndarray, pairs: np.ndarray, known: Known, chosen: tuple[str, ...], seed: tuple[int, int]
) -> float:
    """Mean squared error of a choice of features on pairs held out of `pairs` in turn."""
    squares = []
    for held in _folds(len(pairs), CHOOSING_FOLDS, seed[0]):
        training = pairs[np.setdiff1d(np.arange(len(pairs)), held)]
        cells = _cells(scores, pairs[held])
        forest = _grow(scores, training, known, chosen, CHOOSING_TREES, seed)
        squares.append((forest.predict(cells) - scores[tuple(cells.T)]) ** 2)
    return float(np.mean(np.concatenate(squares)))


def _other_pairs(scores: np.ndarray, pairs: np.ndarray) -> dict[str, np.ndarray]:
    """Mean score of the target with its other sources, and of the source with its other targets.

    Over the given pairs alone, and without the pair itself in either direction.
    """
    given = np.full_like(scores, np.nan)
    for one, other in pairs:
        given[one, other], given[other, one] = scores[one, other], scores[other, one]
    there = np.isfinite(given)
    values = np.where(there, given, 0.0)
    with np.errstate(invalid="ignore"):
        row = (values.sum(1)[:, None] - values) / (there.sum(1)[:, None] - there)
        column = (values.sum(0)[None, :] - values) / (there.sum(0)[None, :] - there)
    return {"target with others": row, "source with others": column}


def _feature_sets(known: Known) -> list[tuple[str, ...]]:
    groups = [
        group
        for group in GROUPS
        if group == "other pairs" or (known.adaptation if group == "adaptation" else known.language)
    ]
    return [chosen for count in range(1, len(groups) + 1) for chosen in itertools.combinations(groups, count)]


def _folds(pairs: int, count: int, seed: int) -> list[np.ndarray]:
    order = np.random.default_rng([7, seed]).permutation(pairs)
    return [np.sort(part) for part in np.array_split(order, count)]


def _cells(scores: np.ndarray, pairs: np.ndarray) -> np.ndarray:
    """(m, 2): target and source of the measured cells of the pairs, both directions."""
    both = np.concatenate([pairs, pairs[:, ::-1]])
    return both[np.isfinite(scores[tuple(both.T)])]


def _r2(scores: np.ndarray, predicted: np.ndarray) -> Callable[[np.ndarray], float]:
    """R² of held-out predictions (repeats, T, T) as a function of the languages that are kept."""

    def r2(keep: np.ndarray) -> float:
        at = np.ix_(keep, keep)
        truth = scores[at]
        there = np.isfinite(predicted[0][at])
        total = np.sum((truth[there] - truth[there].mean()) ** 2) if there.any() else 0.0
        if total == 0:
            return float("nan")
        return float(1 - np.mean([np.sum((one[at][there] - truth[there]) ** 2) for one in predicted]) / total)

    return r2


def _gain(scores: np.ndarray, one: np.ndarray, other: np.ndarray) -> Callable[[np.ndarray], float]:
    better, worse = _r2(scores, one), _r2(scores, other)
    return lambda keep: better(keep) - worse(keep)


def _judge(scores: np.ndarray, predicted: np.ndarray, level: float) -> dict[str, float]:
    """R² over all held-out cells with its interval, and Spearman's correlation, averaged over repeats."""
    value, low, high = jackknife(_r2(scores, predicted), len(scores), level)
    there = np.isfinite(predicted[0])
    ranks = rankdata(scores[there])
    spearman = [np.corrcoef(ranks, rankdata(one[there]))[0, 1] for one in predicted if np.ptp(one[there]) > 0]
    return {
        "r2": value,
        "r2_low": float(low),
        "r2_high": min(float(high), 1.0),
        "spearman": float(np.mean(spearman)) if spearman else float("nan"),
    }


def _standardise(values: np.ndarray) -> np.ndarray:
    """Rows (n, m) to mean 0 and deviation 1 over what is known of each; 0 where a row does not vary."""
    there = np.isfinite(values)
    count = np.maximum(there.sum(1, keepdims=True), 1)
    mean = np.where(there, values, 0).sum(1, keepdims=True) / count
    spread = np.sqrt(np.where(there, (values - mean) ** 2, 0).sum(1, keepdims=True) / count)
    return np.where(there, (values - mean) / np.where(spread > 0, spread, 1.0), np.nan)
