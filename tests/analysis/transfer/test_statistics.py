import numpy as np
import pytest

from analysis.tables import languages as inventory
from analysis.tables import published as reference
from analysis.transfer import statistics


def matrix(seed, size=12, kin=0.0, effects=0.3, noise=0.1, reciprocity=0.0):
    """Scores with an effect of every language as target and as source, and two families."""
    rng = np.random.default_rng(seed)
    family = (np.arange(size)[:, None] % 2 == np.arange(size)[None, :] % 2).astype(float)
    pair = rng.normal(size=(size, size))
    pair = reciprocity * (pair + pair.T) / np.sqrt(2) + (1 - reciprocity) * rng.normal(size=(size, size))
    scores = kin * family + effects * (rng.normal(size=(size, 1)) + rng.normal(size=(1, size))) + noise * pair
    np.fill_diagonal(scores, np.nan)
    return scores, family


def published():
    rows = reference.published_transfer().dropna()
    languages = sorted(set(rows["target"]))
    return statistics.score_matrix(rows.to_dict("records"), languages), languages


def test_the_published_matrix_has_the_published_statistics():
    scores, languages = published()
    known = inventory.language_metadata(languages)
    script, family = (inventory.shared_trait(languages, known, key) for key in ("script", "family"))
    assert len(known) == 38 and np.isfinite(script).all()
    paper = reference.published_findings()
    found = statistics.kinship_difference(scores, script, [family], permutations=300)
    assert found["same"] == pytest.approx(paper["same_script"], abs=0.01)
    assert found["different"] == pytest.approx(paper["different_script"], abs=0.01)
    assert found["low"] > 0 and found["p"] < 0.05
    symmetric = statistics.symmetry(scores, permutations=300)
    assert symmetric["pairs"] == 703
    assert symmetric["correlation"] == pytest.approx(paper["symmetry"], abs=0.02)
    assert statistics.top_sources(scores, languages)["en"] == max(
        statistics.top_sources(scores, languages).values()
    )


def test_a_planted_difference_is_found_and_its_interval_holds_it():
    inside = 0
    for seed in range(30):
        scores, family = matrix(seed, kin=0.2)
        found = statistics.kinship_difference(scores, family, permutations=1)
        inside += found["low"] <= 0.2 <= found["high"]
        assert found["adjusted"] == pytest.approx(0.2, abs=0.08)
    assert 24 <= inside <= 30


def test_p_values_without_an_effect_are_not_too_small():
    """A test that takes cells as independent finds two thirds of these matrices significant: languages differ."""
    small = [
        statistics.kinship_difference(*matrix(seed, noise=0.05), permutations=120, seed=seed)["p"] < 0.1
        for seed in range(60)
    ]
    assert np.mean(small) <= 0.2


def test_symmetry_is_found_where_it_is_planted_only():
    strong = statistics.symmetry(matrix(0, effects=0.0, noise=0.3, reciprocity=1.0)[0], permutations=300)
    assert strong["correlation"] == pytest.approx(1.0) and strong["p"] < 0.01
    small = [
        statistics.symmetry(matrix(seed, noise=0.3)[0], permutations=120, seed=seed)["p"] < 0.1
        for seed in range(60)
    ]
    assert np.mean(small) <= 0.2


def test_missing_cells_and_too_few_languages():
    scores, family = matrix(3, kin=0.5)
    holes = scores.copy()
    holes[np.random.default_rng(0).random(scores.shape) < 0.3] = np.nan
    found = statistics.kinship_difference(holes, family, permutations=200)
    assert found["pairs_same"] + found["pairs_different"] == np.isfinite(holes).sum()
    assert found["p"] < 0.05 and found["smallest_p"] <= found["p"]
    assert statistics.kinship_difference(scores[:3, :3], family[:3, :3]) is None
    assert statistics.kinship_difference(scores, np.full_like(family, np.nan)) is None
    assert statistics.symmetry(scores[:3, :3]) is None


def test_an_aliased_property_has_no_adjusted_difference():
    scores, family = matrix(1)
    found = statistics.kinship_difference(scores, family, [family], permutations=1)
    assert np.isnan(found["adjusted"])


def test_genealogical_distance():
    languages = ["es", "pt", "de", "ru", "zh", "iw", "he", "xx"]
    known = inventory.language_metadata(languages)
    distance = inventory.genealogical_distance(languages, known)
    place = {name: index for index, name in enumerate(languages)}

    def between(one, other):
        return distance[place[one], place[other]]

    assert between("es", "pt") == 0 < between("es", "de") < 1 == between("es", "zh")
    assert between("iw", "he") == 0 and known["he"]["script"] == "Hebr" and "xx" not in known
    assert np.isnan(between("es", "xx")) and np.array_equal(distance, distance.T, equal_nan=True)
    planted = {"es": {"family": "q", "script": "s"}, "pt": {"family": "r", "script": "s"}}
    features = inventory.pair_features(["es", "pt", "de"], planted, {"es": {"pt": 0.4}, "pt": {"es": 0.4}})
    assert "same script" not in features  # no pair differs in it
    assert set(inventory.pair_features(["es", "pt", "de"])) == {"genealogical distance"}
