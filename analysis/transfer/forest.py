"""Predicts the transfer scores of pairs that were not run: a random forest, as in ATLAS (Longpre et al. 2026, sec. 4).

300 trees of unlimited depth. The features of a pair are in three groups:

- "adaptation" (those of the paper): the standardised adaptation gains of source and target, their difference, and the
  final loss on the target of the run continued on the source;
- "language": script, family, genealogical distance, shared vocabulary;
- "other pairs": the mean scores of the target and of the source in other pairs, and the scores of similar languages
  (`collaborative_filtering`).

The groups that are used are chosen by cross-validation. The score of the whole procedure (nested cross-validation)
makes this choice anew for each fold, by the out-of-bag error (Breiman 2001) on the training pairs of the fold.

A 50/50 run measures both directions of a pair. So pairs, not cells, are resampled for a tree and held out. The features
of other pairs are computed for each tree from the pairs in its bootstrap sample: no tree predicts a score from itself.
"""

import itertools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from scipy.stats import spearmanr

from analysis.tables import languages as inventory
from analysis.tables.records import records
from analysis.text import minus
from analysis.transfer import statistics
from analysis.transfer.collaborative_filtering import neighbourhood_scores
from analysis.transfer.statistics import jackknife
from mscale.errors import MscaleError

TREES = 300
# Trees of the forests that are fitted for cross-validation only: more change R² by less than its own interval.
CV_TREES = 30
FOLDS = 10
MIN_PAIRS = 8
FEATURE_GROUPS = ("adaptation", "language", "other pairs")
OTHER_PAIR_FEATURES = ("target with others", "source with others", "languages alike")
# In place of an unknown feature: outside the range of all features, so that a tree can split on "unknown".
MISSING_VALUE = -99.0
_DECIMALS = 6  # of scores and features


@dataclass(frozen=True)
class PairFeatures:
    """Features (T, T) of all pairs, by group and name; row = target and column = source, NaN where unknown."""

    languages: tuple[str, ...]
    adaptation: Mapping[str, np.ndarray]
    language: Mapping[str, np.ndarray]


@dataclass(frozen=True)
class Predictions:
    """Predicted scores (T, T) of pairs that were not run (NaN elsewhere), with intervals and their held-out accuracy.

    Attributes:
      groups: the feature groups that were chosen.
      r2, spearman: on held-out pairs, by nested cross-validation; the interval r2_low to r2_high is a jackknife over
        languages.
      pairs: number of measured pairs.
      ablation: the cross-validation scores of each set of feature groups.
      gains: for each group the increase of R² when it is added to all others, with its interval.
      importance: share of each feature in the forest's reduction of variance.
    """

    score: np.ndarray
    low: np.ndarray
    high: np.ndarray
    groups: list[str]
    r2: float
    r2_low: float
    r2_high: float
    spearman: float
    pairs: int
    ablation: list[dict]
    gains: list[dict]
    importance: dict[str, float]


def adaptation_features(rows: Sequence[Mapping[str, Any]], languages: Sequence[str]) -> dict[str, np.ndarray]:
    """The paper's four features, from the adaptation scores of one scale (`adaptation.adaptation_scores`).

    The gain of a language l is FAS(l→l), standardised over all languages. The final loss on t after continuing on s is
    standardised over the sources of each target.

    Returns:
      Tables (T, T) by name; empty where fewer than two languages have a gain.
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


def predict_scores(
    scores: np.ndarray,
    features: PairFeatures,
    *,
    trees: int = TREES,
    cv_trees: int = CV_TREES,
    level: float = 0.9,
    seed: int = 0,
) -> Predictions:
    """Predicts the pairs that were not run from the scores (T, T) of those that were (NaN elsewhere).

    Args:
      trees: of the forest that predicts. cv_trees: of each forest in the cross-validation.
      level: of all intervals. Those of predicted scores are the quantile of the held-out errors (conformal).

    Raises:
      MscaleError: too few pairs, or held-out pairs are predicted no better than by the mean.
    """
    # Imported here, since the import of scikit-learn takes about as long as a prediction.
    from sklearn import config_context

    # Among splits of equal gain rounding decides: scores that differ by 1e-14 grew other trees, with R² 0.04 apart.
    scores = np.round(scores, _DECIMALS)
    pairs = np.argwhere(np.triu(np.isfinite(scores) | np.isfinite(scores.T), 1))
    if len(pairs) < MIN_PAIRS:
        raise MscaleError(f"{len(pairs)} pairs were measured; predicting others needs {MIN_PAIRS} or more")
    sets = _feature_sets(features)
    # Held-out predictions by each set of feature groups; None: by the set that is chosen anew for each fold.
    found = {chosen: np.full_like(scores, np.nan) for chosen in [*sets, None]}
    with config_context(skip_parameter_validation=True):
        folds = pair_folds(len(pairs), min(FOLDS, len(pairs)), seed)
        for number, held_out in enumerate(folds):
            cells = measured_cells(scores, pairs[held_out])
            place, errors = tuple(cells.T), {}
            training = np.delete(pairs, held_out, axis=0)
            samples = _BootstrapSamples.draw(scores, training, cv_trees, (seed, number))
            for chosen in sets:
                forest = _forest(samples, features, chosen, cells)
                found[chosen][place], errors[chosen] = forest.predicted, forest.out_of_bag_error
            found[None][place] = found[min(sets, key=lambda chosen: errors[chosen])][place]
        chosen = min(sets, key=lambda name: np.nanmean((found[name] - scores) ** 2))
        samples = _BootstrapSamples.draw(scores, pairs, trees, (seed, len(folds)))
        missing = np.argwhere(np.isnan(scores) & ~np.eye(len(scores), dtype=bool))
        forest = _forest(samples, features, chosen, missing)
        predicted = np.full_like(scores, np.nan)
        predicted[tuple(missing.T)] = forest.predicted
    whole = _held_out_scores(scores, found[None], level)
    if not whole["r2"] > 0:
        raise MscaleError(
            f"held-out pairs are predicted no better than by their mean (R² {minus(whole['r2'], 2)} over {len(pairs)} "
            "pairs): measure more pairs, or continue a checkpoint on every language"
        )
    gains = []
    for group in sets[-1] if len(sets) > 1 else ():
        with_all, rest = found[sets[-1]], found[tuple(name for name in sets[-1] if name != group)]

        def gain(keep: np.ndarray, with_all: np.ndarray = with_all, rest: np.ndarray = rest) -> float:
            return _r2(scores, with_all, keep) - _r2(scores, rest, keep)

        value, low, high = jackknife(gain, len(scores), level)
        gains.append({"group": group, "r2": value, "low": low, "high": high})
    # Conformal intervals: the quantile of the held-out errors, those of the choice of features included.
    held_out_errors = np.sort(abs(found[None] - scores)[np.isfinite(found[None])])
    rank = min(int(np.ceil((len(held_out_errors) + 1) * level)), len(held_out_errors))
    half_width = held_out_errors[rank - 1]
    return Predictions(
        predicted,
        predicted - half_width,
        predicted + half_width,
        list(chosen),
        **whole,
        pairs=len(pairs),
        ablation=[{"groups": list(name), **_held_out_scores(scores, found[name], level)} for name in sets],
        gains=gains,
        importance=forest.importance,
    )


@dataclass(frozen=True)
class _BootstrapSamples:
    """The bootstrap samples of pairs of B trees, shared by forests of different features.

    Attributes:
      scores (T, T): of the P pairs, NaN elsewhere. pair (T, T): index of the pair that a cell belongs to, −1 for none.
      draws (B, P): how often each tree has drawn each pair.
      tree_seed: seed of the generator by which trees break ties between splits.
      cache: features of other pairs, by the cells that they are of.
    """

    scores: np.ndarray
    pair: np.ndarray
    draws: np.ndarray
    tree_seed: int
    cache: dict[bytes, np.ndarray]

    @classmethod
    def draw(
        cls, scores: np.ndarray, pairs: np.ndarray, trees: int, seed: tuple[int, int]
    ) -> "_BootstrapSamples":
        rng = np.random.default_rng([11, *seed])
        pair = np.full(scores.shape, -1)
        pair[tuple(pairs.T)] = pair[tuple(pairs.T[::-1])] = np.arange(len(pairs))
        samples = rng.integers(len(pairs), size=(trees, len(pairs)))
        draws = np.array([np.bincount(sample, minlength=len(pairs)) for sample in samples])
        tree_seed = int(rng.integers(2**31 - 1))
        return cls(np.where(pair >= 0, scores, np.nan), pair, draws, tree_seed, {})

    @property
    def cells(self) -> np.ndarray:
        """Target and source (m, 2) of the cells whose score is known."""
        return np.argwhere(np.isfinite(self.scores))

    def other_pair_features(self, cells: np.ndarray) -> np.ndarray:
        """Features (B, m, 3) of cells (m, 2) from the other pairs in each tree's sample."""
        key = cells.tobytes()
        if key not in self.cache:
            self.cache[key] = other_pair_features(self.scores, self.pair, self.draws > 0, cells)
        return self.cache[key]


@dataclass(frozen=True)
class _Forest:
    """What the trees of a forest, one for each bootstrap sample, say.

    Attributes:
      predicted: (m,) mean over trees.
      out_of_bag_error: mean squared error on the known cells, each predicted by the trees whose sample lacks its pair.
      importance: share of each feature in the reduction of variance, averaged over trees.
    """

    predicted: np.ndarray
    out_of_bag_error: float
    importance: dict[str, float]


def _forest(
    samples: _BootstrapSamples, known: PairFeatures, groups: tuple[str, ...], cells: np.ndarray
) -> _Forest:
    """Fits a tree to each bootstrap sample, on the features of these groups, and predicts cells (m, 2)."""
    from sklearn.tree import DecisionTreeRegressor

    features: dict[str, np.ndarray] = {}
    if "adaptation" in groups:
        features |= known.adaptation
    if "language" in groups:
        features |= known.language
    table = np.array(list(features.values())).reshape(-1, *samples.scores.shape).transpose(1, 2, 0)
    table = np.where(np.isfinite(table), table, MISSING_VALUE).round(_DECIMALS).astype(np.float32)
    others = "other pairs" in groups

    def inputs(at: np.ndarray) -> Iterator[np.ndarray]:
        """Tree by tree, the features (n, F) of cells (n, 2) of target and source."""
        X = table[tuple(at.T)]
        if others:
            yield from (np.concatenate([X, own], axis=1) for own in samples.other_pair_features(at))
        else:
            yield from [X] * len(samples.draws)

    own = samples.cells
    y, draws = samples.scores[tuple(own.T)], samples.draws[:, samples.pair[tuple(own.T)]].astype(float)
    # One generator for all trees: to make one takes longer than to fit a small tree.
    generator = np.random.RandomState(samples.tree_seed)
    predicted, fitted, shares = [], [], []
    for X, new, weight in zip(inputs(own), inputs(cells), draws, strict=True):
        at = np.flatnonzero(weight)
        tree = DecisionTreeRegressor(random_state=generator)
        tree.fit(X[at], y[at], sample_weight=weight[at], check_input=False)
        predicted.append(tree.tree_.predict(new)[:, 0])
        fitted.append(tree.tree_.predict(X)[:, 0])
        shares.append(tree.feature_importances_)
    out_of_bag = draws == 0
    at = out_of_bag.any(axis=0)
    unseen = np.average(np.array(fitted)[:, at], axis=0, weights=out_of_bag[:, at])
    names = (*features, *(OTHER_PAIR_FEATURES if others else ()))
    importance = dict(zip(names, np.mean(shares, axis=0).tolist(), strict=True))
    return _Forest(np.mean(predicted, axis=0), float(np.mean((unseen - y[at]) ** 2)), importance)


def other_pair_features(
    scores: np.ndarray, pair: np.ndarray, in_bag: np.ndarray, cells: np.ndarray
) -> np.ndarray:
    """Features (B, m, 3) of cells (m, 2) of target and source, from the other pairs in each tree's sample.

    They are the mean score of the target with its other sources, the mean score of the source with its other targets,
    and the scores of similar languages (`neighbourhood_scores`). The scores of the cell's own pair enter none of them.

    Args:
      scores: (T, T), NaN where not measured. pair: (T, T), the index of the pair of each cell, −1 for none.
      in_bag: (B, P) bool, the pairs in each tree's sample.
    """
    known = in_bag[:, pair] & (pair >= 0) & np.isfinite(scores)
    S, (t, s) = np.where(known, scores, 0.0), cells.T
    own, score = known[:, t, s], S[:, t, s]
    with np.errstate(invalid="ignore"):
        of_target = (S.sum(axis=2)[:, t] - score) / (known.sum(axis=2)[:, t] - own)
        of_source = (S.sum(axis=1)[:, s] - score) / (known.sum(axis=1)[:, s] - own)
    found = np.stack([of_target, of_source, neighbourhood_scores(scores, known, cells)], axis=-1)
    return np.where(np.isfinite(found), found, MISSING_VALUE).round(_DECIMALS).astype(np.float32)


def _feature_sets(known: PairFeatures) -> list[tuple[str, ...]]:
    """All combinations of the feature groups that hold features; the last is that of all groups."""
    groups = [
        group
        for group in FEATURE_GROUPS
        if group == "other pairs" or (known.adaptation if group == "adaptation" else known.language)
    ]
    counts = range(1, len(groups) + 1)
    return [chosen for count in counts for chosen in itertools.combinations(groups, count)]


def pair_folds(pairs: int, count: int, seed: int) -> list[np.ndarray]:
    """A random partition of the indices of `pairs` pairs into `count` folds, each sorted."""
    order = np.random.default_rng([7, seed]).permutation(pairs)
    return [np.sort(part) for part in np.array_split(order, count)]


def measured_cells(scores: np.ndarray, pairs: np.ndarray) -> np.ndarray:
    """Target and source (m, 2) of the measured cells of pairs (n, 2), in both directions."""
    both = np.concatenate([pairs, pairs[:, ::-1]])
    return both[np.isfinite(scores[tuple(both.T)])]


def _r2(scores: np.ndarray, predicted: np.ndarray, keep: np.ndarray) -> float:
    """R² of held-out predictions (T, T), over the cells of the languages that are kept (for the jackknife)."""
    truth, found = scores[np.ix_(keep, keep)], predicted[np.ix_(keep, keep)]
    known = np.isfinite(found)
    total = np.sum((truth[known] - truth[known].mean()) ** 2) if known.any() else 0.0
    return float(1 - np.sum((found[known] - truth[known]) ** 2) / total) if total else float("nan")


def _held_out_scores(scores: np.ndarray, predicted: np.ndarray, level: float) -> dict[str, float]:
    """R² over all held-out cells with its interval, and Spearman correlation."""
    value, low, high = jackknife(lambda keep: _r2(scores, predicted, keep), len(scores), level)
    known = np.isfinite(predicted)
    constant = np.ptp(predicted[known]) == 0
    return {
        "r2": value,
        "r2_low": float(low),
        "r2_high": min(float(high), 1.0),
        "spearman": float("nan") if constant else float(spearmanr(scores[known], predicted[known]).statistic),
    }


def _standardise(values: np.ndarray) -> np.ndarray:
    """Rows of values (n, m) with mean 0 and standard deviation 1; NaN stays NaN, a constant row becomes 0."""
    known = np.isfinite(values)
    count = np.maximum(known.sum(1, keepdims=True), 1)
    mean = np.where(known, values, 0).sum(1, keepdims=True) / count
    deviation = np.sqrt(np.where(known, (values - mean) ** 2, 0).sum(1, keepdims=True) / count)
    return np.where(known, (values - mean) / np.where(deviation > 0, deviation, 1.0), np.nan)


# Shared vocabulary of two languages, in [0, 1], by the codes of both.
VocabularyOverlap = Mapping[str, Mapping[str, float]]


def predict_missing_pairs(
    matrix: pd.DataFrame,
    adapted: pd.DataFrame,
    planted: Mapping[str, Mapping[str, Any]] | None,
    overlap: VocabularyOverlap | None,
    level: float,
    seed: int,
) -> dict[str, Any]:
    """Predicts the missing cells of a transfer matrix at one scale, and says how accurate the predictions are.

    Args:
      matrix: columns `matrix.SCORE_COLUMNS`. adapted: of `adaptation.adaptation_scores`.
      planted: the languages of a generated corpus. overlap: shared vocabulary of languages.

    Returns:
      A record with "cells" (status "predicted"), "reason" (why there are none) and, where there are predictions, the
      fields of `Predictions` and the names of the features.
    """
    languages = tuple(sorted(set(matrix["target"]) | set(matrix["source"])))
    scores = statistics.score_matrix(records(matrix[matrix["status"] == "measured"]), languages)
    counts = adapted[adapted["status"] == "measured"].groupby("scale").size()
    # The adaptation scores of the scale that has most of them.
    adapted = adapted[adapted["scale"] == counts.idxmax()] if len(counts) else adapted.head(0)
    features = PairFeatures(
        languages,
        adaptation_features(records(adapted), languages),
        inventory.pair_features(languages, planted, overlap),
    )
    try:
        found = predict_scores(scores, features, level=level, seed=seed)
    except MscaleError as error:
        return {"cells": [], "reason": str(error)}
    place = {name: index for index, name in enumerate(languages)}
    cells = []
    for row in records(matrix.loc[matrix["status"] == "missing", ["target", "source"]]):
        at = place[row["target"]], place[row["source"]]
        ends = {name: getattr(found, name)[at] for name in ("score", "low", "high")}
        cells.append({**row, **ends, "status": "predicted"})
    return {
        "cells": cells,
        "reason": "",
        "features": {"adaptation": list(features.adaptation), "language": list(features.language)},
        **{name: value for name, value in vars(found).items() if name not in ("score", "low", "high")},
    }
