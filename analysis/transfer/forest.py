"""Transfer of pairs that were not run: a random forest, as in ATLAS (Longpre et al. 2026, section 4).

300 trees of unlimited depth. The paper's features of a pair are what continuing a checkpoint on each language
shows (standardised adaptation gains of source and target, their difference, and how the source's run ends on the
target); added are what is known of the languages (script, family, genealogy, shared vocabulary) and how the two, and
languages like them (`likeness`), fare in the other pairs. Which of the three groups are used is chosen by
cross-validation, and the whole, that choice included, is scored on pairs held out from the choice too: where some are
held out, the choice is made by the errors that trees make on the pairs left which they have not drawn (out of bag,
Breiman 2001).

A 50/50 run measures both directions of a pair, so pairs, not cells, are drawn for a tree and held out. How languages
fare in other pairs is counted for each tree over the pairs that it has drawn: a score is in no feature of a tree that
is to predict it.
"""

import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from scipy.stats import rankdata

from analysis.tables import languages as inventory
from analysis.tables.records import records
from analysis.text import minus
from analysis.transfer import statistics
from analysis.transfer.collaborative_filtering import by_likeness
from analysis.transfer.statistics import jackknife
from mscale.errors import MscaleError

if TYPE_CHECKING:
    from sklearn.tree import DecisionTreeRegressor

TREES = 300
# Trees of each forest that is only scored: more change R² by less than its own interval.
SCORED_TREES = 30
FOLDS = 10
LEAST_PAIRS = 8
GROUPS = ("adaptation", "language", "other pairs")
OTHER_PAIRS = ("target with others", "source with others", "languages alike")
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
    """Predicted scores (T, T) of pairs that were not run (NaN elsewhere) with their interval, and how well such
    predictions did on held-out pairs.

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
    repeats: int = 1,
    level: float = 0.9,
    seed: int = 0,
) -> Predictions:
    """Predicts the pairs that were not run from the scores (T, T) of those that were (NaN elsewhere).

    Raises:
      MscaleError: too few pairs, or held-out pairs are predicted no better than by the mean.
    """
    # Here, since importing it takes as long as many a prediction.
    from sklearn import config_context

    pairs = np.argwhere(np.triu(np.isfinite(scores) | np.isfinite(scores.T), 1))
    if len(pairs) < LEAST_PAIRS:
        raise MscaleError(f"{len(pairs)} pairs were measured; predicting others needs {LEAST_PAIRS} or more")
    sets = _feature_sets(known)
    count = min(FOLDS, len(pairs))
    folds = [fold for repeat in range(repeats) for fold in _folds(len(pairs), count, seed + repeat)]
    found = {chosen: np.full((repeats, *scores.shape), np.nan) for chosen in [*sets, None]}
    with config_context(skip_parameter_validation=True):
        for number, held in enumerate(folds):
            training = pairs[np.setdiff1d(np.arange(len(pairs)), held)]
            cells = _cells(scores, pairs[held])
            place = (number // count, *cells.T)
            out_of_bag = {}
            bag = _Bag.draw(scores, training, scored_trees, (seed, number))
            for chosen in sets:
                forest = _grow(bag, known, chosen)
                found[chosen][place] = forest.predict(cells)
                out_of_bag[chosen] = forest.error()
            found[None][place] = found[min(sets, key=lambda chosen: out_of_bag[chosen])][place]
        errors = {chosen: np.nanmean((found[chosen] - scores) ** 2) for chosen in sets}
        chosen = min(sets, key=lambda name: errors[name])
        forest = _grow(_Bag.draw(scores, pairs, trees, (seed, len(folds))), known, chosen)
        missing = np.argwhere(np.isnan(scores) & ~np.eye(len(scores), dtype=bool))
        predicted = np.full_like(scores, np.nan)
        if len(missing):
            predicted[tuple(missing.T)] = forest.predict(missing)
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
class _Bag:
    """What each of B trees has drawn, for forests of any features.

    Attributes:
      scores (T, T): of the P pairs given, NaN elsewhere. pair (T, T): which of them a cell is of, −1 for none.
      drawn (B, P): how often. ties: a generator of the forests' own.
    """

    scores: np.ndarray
    pair: np.ndarray
    drawn: np.ndarray
    ties: int
    cache: dict[bytes, np.ndarray]

    @classmethod
    def draw(cls, scores: np.ndarray, pairs: np.ndarray, trees: int, seed: tuple[int, int]) -> "_Bag":
        rng = np.random.default_rng([11, *seed])
        pair = np.full(scores.shape, -1)
        pair[tuple(pairs.T)] = pair[tuple(pairs.T[::-1])] = np.arange(len(pairs))
        draws = rng.integers(len(pairs), size=(trees, len(pairs)))
        drawn = np.array([np.bincount(draw, minlength=len(pairs)) for draw in draws])
        ties = int(rng.integers(2**31 - 1))
        return cls(np.where(pair >= 0, scores, np.nan), pair, drawn, ties, {})

    @property
    def cells(self) -> np.ndarray:
        """(m, 2): target and source of the cells that are known."""
        return np.argwhere(np.isfinite(self.scores))

    def others(self, cells: np.ndarray) -> np.ndarray:
        """Features (B, m, 3) of cells (m, 2) from the other pairs that each tree has drawn."""
        key = cells.tobytes()
        if key not in self.cache:
            self.cache[key] = other_pairs(self.scores, self.pair, self.drawn > 0, cells)
        return self.cache[key]


@dataclass(frozen=True)
class _Forest:
    """B trees over the features of one choice: those of the table (T, T, F), and with `others` those of other pairs."""

    bag: _Bag
    table: np.ndarray
    names: tuple[str, ...]
    others: bool
    trees: "list[DecisionTreeRegressor]"

    def features(self, cells: np.ndarray) -> Iterator[np.ndarray]:
        """Features (m, F) of cells (m, 2) of target and source, for one tree after the other."""
        X = self.table[tuple(cells.T)]
        if self.others:
            yield from (np.concatenate([X, own], axis=1) for own in self.bag.others(cells))
        else:
            yield from [X] * len(self.bag.drawn)

    def predict(self, cells: np.ndarray) -> np.ndarray:
        """(m,) for cells (m, 2) of target and source."""
        return self._each(cells).mean(axis=0)

    def error(self) -> float:
        """Mean squared error on the given pairs, each predicted by the trees that have not drawn it."""
        cells, bag = self.bag.cells, self.bag
        unseen = bag.drawn[:, bag.pair[tuple(cells.T)]] == 0
        at = unseen.any(axis=0)
        predicted = np.average(self._each(cells)[:, at], axis=0, weights=unseen[:, at])
        return float(np.mean((predicted - bag.scores[tuple(cells[at].T)]) ** 2))

    def importance(self) -> dict[str, float]:
        shares = np.mean([tree.feature_importances_ for tree in self.trees], axis=0)
        return {name: float(share) for name, share in zip(self.names, shares, strict=True)}

    def _each(self, cells: np.ndarray) -> np.ndarray:
        """(B, m): what each tree says."""
        both = zip(self.trees, self.features(cells), strict=True)
        return np.array([tree.tree_.predict(X)[:, 0] for tree, X in both])


def _grow(bag: _Bag, known: Known, chosen: tuple[str, ...]) -> _Forest:
    from sklearn.tree import DecisionTreeRegressor

    features: dict[str, np.ndarray] = {}
    if "adaptation" in chosen:
        features |= known.adaptation
    if "language" in chosen:
        features |= known.language
    table = np.array(list(features.values())).reshape(-1, *bag.scores.shape).transpose(1, 2, 0)
    table = np.where(np.isfinite(table), table, UNKNOWN).astype(np.float32)
    others = "other pairs" in chosen
    forest = _Forest(bag, table, (*features, *(OTHER_PAIRS if others else ())), others, [])
    cells = bag.cells
    y, times = bag.scores[tuple(cells.T)], bag.drawn[:, bag.pair[tuple(cells.T)]].astype(float)
    # One generator for all trees: making one takes longer than growing a small tree.
    ties = np.random.RandomState(bag.ties)
    for X, weight in zip(forest.features(cells), times, strict=True):
        at = np.flatnonzero(weight)
        tree = DecisionTreeRegressor(random_state=ties)
        forest.trees.append(tree.fit(X[at], y[at], sample_weight=weight[at], check_input=False))
    return forest


def other_pairs(scores: np.ndarray, pair: np.ndarray, drawn: np.ndarray, cells: np.ndarray) -> np.ndarray:
    """Features (B, m, 3) of cells (m, 2): the mean score of the target with its other sources, and of the source with
    its other targets, over the pairs drawn (B, P) and without the pair itself; and what languages like them score.

    Args:
      scores (T, T), pair (T, T): see `_Bag`.
    """
    at = np.argwhere(np.isfinite(scores))
    there = drawn[:, pair[tuple(at.T)]]
    values = there * scores[tuple(at.T)]
    own = (drawn[:, pair[tuple(cells.T)]] > 0) & np.isfinite(scores[tuple(cells.T)])
    score = np.where(own, scores[tuple(cells.T)], 0.0)
    features = []
    for side in (0, 1):
        of = (np.arange(len(drawn))[:, None] * len(scores) + at[:, side]).ravel()
        total, count = (
            np.bincount(of, table.ravel(), len(drawn) * len(scores)).reshape(-1, len(scores))
            for table in (values, there)
        )
        total, count = total[:, cells[:, side]], count[:, cells[:, side]]
        with np.errstate(invalid="ignore"):
            features.append((total - score) / (count - own))
    given = np.zeros((len(drawn), *scores.shape), bool)
    given[:, at[:, 0], at[:, 1]] = there
    found = np.stack([*features, by_likeness(scores, given, cells)], axis=-1)
    return np.where(np.isfinite(found), found, UNKNOWN).astype(np.float32)


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


Overlap = Mapping[str, Mapping[str, float]]


def predicted(
    matrix: pd.DataFrame,
    adapted: pd.DataFrame,
    planted: Mapping[str, Mapping[str, Any]] | None,
    overlap: Overlap | None,
    level: float,
    seed: int,
) -> dict[str, Any]:
    """Scores of the pairs that were not run, flagged as predicted, and how good such predictions are."""
    languages = tuple(sorted(set(matrix["target"]) | set(matrix["source"])))
    scores = statistics.to_matrix(records(matrix[matrix["status"] == "measured"]), languages)
    counts = adapted[adapted["status"] == "measured"].groupby("scale").size()
    mine = adapted[adapted["scale"] == counts.idxmax()] if len(counts) else adapted.head(0)
    known = Known(
        languages,
        adaptation_features(records(mine), languages),
        inventory.pair_features(languages, planted, overlap),
    )
    try:
        found = predict(scores, known, level=level, seed=seed)
    except MscaleError as error:
        return {"cells": [], "reason": str(error)}
    missing = matrix[matrix["status"] == "missing"]
    place = {name: index for index, name in enumerate(languages)}
    cells = []
    for target, source in zip(missing["target"], missing["source"], strict=True):
        at = place[target], place[source]
        cells.append(
            {
                "target": target,
                "source": source,
                "score": found.score[at],
                "low": found.low[at],
                "high": found.high[at],
                "status": "predicted",
            }
        )
    return {
        "cells": cells,
        "reason": "",
        "groups": list(found.groups),
        "features": {"adaptation": list(known.adaptation), "language": list(known.language)},
        "r2": found.r2,
        "r2_low": found.r2_low,
        "r2_high": found.r2_high,
        "spearman": found.spearman,
        "pairs": found.pairs,
        "ablation": list(found.ablation),
        "gains": list(found.gains),
        "importance": dict(found.importance),
    }
