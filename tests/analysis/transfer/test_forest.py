import numpy as np
import pytest
from planted_scores import KNOWN, LANGUAGES, hide, planted
from scipy.stats import spearmanr

from analysis.tables import languages as inventory
from analysis.tables import published
from analysis.tables.observations import validate_observations
from analysis.transfer import adaptation, collaborative_filtering, forest, statistics
from analysis.transfer.matrix import transfer_matrix
from analysis.validation import planted_study
from mscale.errors import MscaleError

FEATURES = forest.PairFeatures(LANGUAGES, {}, inventory.pair_features(LANGUAGES, KNOWN))
QUICK = {"trees": 100, "cv_trees": 30}


def test_the_held_out_accuracy_is_that_on_pairs_that_were_hidden():
    inside, expected, real = [], [], []
    for seed in range(4):
        scores, _ = planted(seed)
        part, gone = hide(scores, 0.3, seed)
        found = forest.predict_scores(part, FEATURES, **QUICK, seed=seed)
        error = np.mean((found.score[gone] - scores[gone]) ** 2)
        expected.append(found.r2)
        real.append(1 - error / np.var(scores[gone]))
        inside += list((found.low[gone] <= scores[gone]) & (scores[gone] <= found.high[gone]))
        assert found.groups == ["language", "other pairs"]
    assert np.mean(real) > 0.75 and abs(np.mean(expected) - np.mean(real)) < 0.1
    assert 0.84 <= np.mean(inside) <= 0.98


def test_the_ablation_shows_which_group_helps():
    scores, _ = planted(5, effects=0.15)
    found = forest.predict_scores(scores, FEATURES, **QUICK)
    by = {tuple(row["groups"]): row for row in found.ablation}
    assert set(by) == {("language",), ("other pairs",), ("language", "other pairs")}
    gains = {row["group"]: row for row in found.gains}
    assert gains["language"]["low"] > 0.2 and gains["other pairs"]["low"] > 0
    assert by["language", "other pairs"]["r2"] == pytest.approx(
        by["other pairs",]["r2"] + gains["language"]["r2"], abs=1e-9
    )
    noise, _ = planted(5, kin=0, effects=0.3)
    useless = {row["group"]: row for row in forest.predict_scores(noise, FEATURES, **QUICK).gains}
    assert useless["language"]["low"] < 0.02 and useless["language"]["r2"] < 0.05


def test_pure_noise_is_refused():
    scores, _ = planted(0, kin=0, effects=0, noise=1)
    with pytest.raises(MscaleError, match="no better than by their mean"):
        forest.predict_scores(scores, FEATURES, **QUICK)
    few, _ = hide(scores, 0.95, 0)
    with pytest.raises(MscaleError, match="needs 8 or more"):
        forest.predict_scores(few, FEATURES, **QUICK)


def test_rounding_of_scores_does_not_change_the_forest():
    """Machines differ in the last digits of a score."""
    scores, _ = planted(3)
    part, _ = hide(scores, 0.3, 3)
    found = forest.predict_scores(part, FEATURES, **QUICK)
    rounding = 1e-13 * np.random.default_rng(0).standard_normal(part.shape)
    again = forest.predict_scores(part + rounding, FEATURES, **QUICK)
    np.testing.assert_allclose(again.score, found.score, atol=1e-9)
    assert again.r2 == pytest.approx(found.r2, abs=1e-9)


def test_both_directions_of_a_pair_are_held_out_together():
    for fold in forest.pair_folds(40, 5, 3):
        pairs = np.argwhere(np.triu(np.ones((14, 14)), 1))[:40][fold]
        cells = forest.measured_cells(np.ones((14, 14)), pairs)
        assert len(cells) == 2 * len(fold)
        assert {tuple(cell) for cell in cells} == {tuple(cell[::-1]) for cell in cells}
    held = np.sort(np.concatenate(forest.pair_folds(40, 5, 3)))
    assert np.array_equal(held, np.arange(40))


def other_pairs(scores, in_bag=None):
    """The three features (T, T, 3) from the pairs in one bootstrap sample (P,), by default all."""
    pairs = np.argwhere(np.triu(np.ones_like(scores), 1))
    pair = np.full(scores.shape, -1)
    pair[tuple(pairs.T)] = pair[tuple(pairs.T[::-1])] = np.arange(len(pairs))
    in_bag = np.ones((1, len(pairs)), dtype=bool) if in_bag is None else in_bag[None]
    everywhere = np.argwhere(~np.eye(len(scores), dtype=bool))
    table = np.full((*scores.shape, 3), np.nan)
    table[tuple(everywhere.T)] = forest.other_pair_features(scores, pair, in_bag, everywhere)[0]
    return table, pair


def test_features_of_other_pairs_do_not_depend_on_the_pair_itself():
    scores, _ = planted(1)
    before, _ = other_pairs(scores)
    assert before[2, 5, 0] == pytest.approx(np.nanmean(np.delete(scores[2], 5)), abs=1e-6)
    assert before[2, 5, 1] == pytest.approx(np.nanmean(np.delete(scores[:, 5], 2)), abs=1e-6)
    changed = scores.copy()
    changed[2, 5], changed[5, 2] = 99, -99
    after, _ = other_pairs(changed)
    for at in ((2, 5), (5, 2)):
        assert after[at] == pytest.approx(before[at], abs=1e-5)
    assert after[2, 7, 0] != pytest.approx(before[2, 7, 0])


def test_features_of_other_pairs_do_not_depend_on_out_of_bag_pairs():
    scores, _ = planted(1)
    _, pair = other_pairs(scores)
    in_bag = np.random.default_rng(0).random(pair.max() + 1) < 0.6
    before, _ = other_pairs(scores, in_bag)
    out_of_bag = (pair >= 0) & ~in_bag[pair]
    after, _ = other_pairs(np.where(out_of_bag, 99.0, scores), in_bag)
    assert out_of_bag.any() and np.array_equal(before, after, equal_nan=True)


def prediction_by_definition(scores, known, target, source):
    """`neighbourhood_scores` computed from its definition, for one cell."""
    known = known.copy()
    known[target, source] = known[source, target] = False
    mean = scores[known].mean()
    centred = np.where(known, np.where(np.isfinite(scores), scores, 0.0) - mean, 0.0)
    weighted = weight = 0.0
    for one in range(len(scores)):
        if one in (target, source):
            continue
        for own, cell in ((target, (one, source)), (source, (target, one))):
            common = np.concatenate([known[own] & known[one], known[:, own] & known[:, one]])
            first, second = (np.concatenate([centred[who], centred[:, who]])[common] for who in (own, one))
            norm = np.linalg.norm(first) * np.linalg.norm(second)
            similarity = (
                first @ second / norm * common.sum() / (common.sum() + collaborative_filtering.SHRINKAGE)
                if norm
                else 0.0
            )
            similarity *= abs(similarity) ** (collaborative_filtering.AMPLIFICATION - 1)
            weighted += similarity * centred[cell]
            weight += abs(similarity) * known[cell]
    return mean + weighted / weight if weight else np.nan


def test_neighbourhood_scores_are_those_of_their_definition():
    rng = np.random.default_rng(0)
    scores = rng.normal(size=(7, 7))
    np.fill_diagonal(scores, np.nan)
    scores[1, 2] = scores[3, 4] = scores[4, 3] = np.nan
    given = np.isfinite(scores) & (rng.random((3, 7, 7)) < 0.8)
    cells = np.argwhere(~np.eye(7, dtype=bool))
    found = collaborative_filtering.neighbourhood_scores(scores, given, cells)
    for number, each in enumerate(given):
        expected = [prediction_by_definition(scores, each, *cell) for cell in cells]
        assert found[number] == pytest.approx(expected, nan_ok=True)


def test_families_are_found_from_the_scores_without_features_of_languages():
    """Three families of seven languages, of which no feature tells."""
    family = np.repeat(np.arange(3), 7)
    rng = np.random.default_rng(3)
    scores = 0.5 * (family[:, None] == family) + 0.05 * rng.normal(size=(21, 21))
    scores += 0.1 * (rng.normal(size=(21, 1)) + rng.normal(size=(1, 21)))
    np.fill_diagonal(scores, np.nan)
    part, gone = hide(scores, 0.3, 3)
    unnamed = forest.PairFeatures(tuple(map(str, range(21))), {}, {})
    found = forest.predict_scores(part, unnamed, **QUICK)
    real = 1 - np.mean((found.score[gone] - scores[gone]) ** 2) / np.var(scores[gone])
    assert found.r2 > 0.6 and real > 0.6
    assert max(found.importance, key=lambda name: found.importance[name]) == "languages alike"
    assert np.isnan(found.score[~gone]).all()  # what was measured is not predicted


def test_the_published_matrix_is_predicted_as_well_as_the_paper_says():
    """The paper: R² 0.85, Spearman 0.88, from adaptation runs that it does not publish."""
    paper = published.published_transfer().dropna()
    languages = tuple(sorted(set(paper["target"])))
    scores = statistics.score_matrix(paper.to_dict("records"), languages)
    known = forest.PairFeatures(languages, {}, inventory.pair_features(languages))
    found = forest.predict_scores(scores, known, trees=40, cv_trees=40)
    assert 0.85 < found.r2 < 0.96 and found.spearman == pytest.approx(0.88, abs=0.04)
    assert found.groups == ["language", "other pairs"]


def test_pairs_hidden_from_the_published_matrix_are_predicted():
    paper = published.published_transfer().dropna()
    languages = tuple(sorted(set(paper["target"])))
    scores = statistics.score_matrix(paper.to_dict("records"), languages)
    upper = np.argwhere(np.triu(np.isfinite(scores) | np.isfinite(scores.T), 1))
    gone = np.random.default_rng(0).permutation(len(upper))[: round(0.3 * len(upper))]
    part = scores.copy()
    part[tuple(upper[gone].T)] = part[tuple(upper[gone].T[::-1])] = np.nan
    hidden = np.isnan(part) & np.isfinite(scores)
    known = forest.PairFeatures(languages, {}, inventory.pair_features(languages))
    found = forest.predict_scores(part, known, trees=100)
    error = np.mean((found.score[hidden] - scores[hidden]) ** 2)
    assert 1 - error / np.var(scores[hidden]) == pytest.approx(found.r2, abs=0.05) and found.r2 > 0.8
    assert spearmanr(found.score[hidden], scores[hidden]).statistic > 0.82
    inside = (found.low <= scores)[hidden] & (scores <= found.high)[hidden]
    assert np.mean(inside) == pytest.approx(0.9, abs=0.04)


def test_the_papers_features_from_a_planted_study():
    observations, _, _ = planted_study.make_study(seed=2)
    rows = adaptation.adaptation_scores(validate_observations(observations)[0]).to_dict("records")
    made = forest.adaptation_features(rows, planted_study.LANGUAGES)
    source, target, difference, final = made.values()
    gains = source[0]
    assert np.isfinite(gains[:2]).all() and np.isnan(gains[4:]).all()  # continued on three languages only
    assert np.nanmean(gains) == pytest.approx(0) and np.nanstd(gains) == pytest.approx(1)
    assert np.array_equal(target, source.T, equal_nan=True)
    assert np.allclose(difference, source - target, equal_nan=True)
    assert np.allclose(np.nanmean(final, axis=1), 0)
    # The lowest final loss on a language is that of the run on the language itself.
    for index in range(3):
        assert np.nanargmin(final[index]) == index


def test_a_planted_study_without_some_pairs():
    """Five of fifteen pairs left out of a study: those within a family are predicted higher than all others."""
    observations, _, truth = planted_study.make_study(seed=11)
    observations = validate_observations(observations)[0]
    matrix = transfer_matrix(observations, scales=["nano2"])
    matrix = matrix[matrix["status"] == "measured"]
    scores = statistics.score_matrix(matrix.to_dict("records"), planted_study.LANGUAGES)
    part, gone = hide(scores, 1 / 3, 1)
    known = forest.PairFeatures(
        planted_study.LANGUAGES, {}, inventory.pair_features(planted_study.LANGUAGES, truth["languages"])
    )
    found = forest.predict_scores(part, known, cv_trees=30)
    kin = inventory.shared_trait(planted_study.LANGUAGES, truth["languages"], "family") == 1
    assert found.score[gone & kin].min() > found.score[gone & ~kin].max()
    assert np.mean((found.low <= scores)[gone] & (scores <= found.high)[gone]) >= 0.8
