"""Curves of a whole study equal those collected one by one, without loss spikes."""

import numpy as np
import pytest

from analysis.curves.curve import MAX_POINTS, bin_points, collect_points, points_by_curve
from analysis.curves.study import CURVE_PHASES, study_curves
from analysis.tables.observations import validate_observations
from analysis.validation import planted_study


@pytest.fixture(scope="module")
def observations():
    return validate_observations(planted_study.make_study(seed=5, small=True)[0])[0]


def test_points_of_all_curves_equal_those_collected_curve_by_curve(observations):
    study = study_curves(observations)
    curve = study.run * len(study.languages) + study.language
    for phase in CURVE_PHASES:
        found = study.points(curve, study.trained, phase)
        rows = observations[study.kept & study.trained]
        kinds = rows.groupby(["run", "language"], sort=False)
        expected = {keys: collect_points(part, phase) for keys, part in kinds}
        assert len(found) == sum(points is not None for points in expected.values()) > 10
        for key, points in found.items():
            run, language = divmod(key, len(study.languages))
            other = expected[study.runs["run"].iloc[run], study.languages[language]]
            assert points.groups == other.groups and points.phase == phase
            for name in ("tokens", "loss", "repeats"):
                assert np.allclose(getattr(points, name), getattr(other, name), rtol=1e-12)


def test_long_curves_are_binned_alike_in_both_ways():
    rng = np.random.default_rng(0)
    curve, group = rng.integers(-1, 2, 1000), rng.integers(0, 3, 1000)
    tokens, losses = rng.integers(1, 10**6, 1000).astype(float), rng.random(1000)
    found = points_by_curve(curve, tokens, losses, group, ["c", "a", "b"], "stable")
    assert set(found) == {0, 1}
    for number, points in found.items():
        of_curve = curve == number
        other = bin_points(tokens[of_curve], losses[of_curve], ("a", "b", "c"), "stable")
        assert len(set(tokens[of_curve])) > MAX_POINTS >= len(points.tokens)
        assert points.groups == other.groups and np.array_equal(points.repeats, other.repeats)
        assert np.allclose(points.tokens, other.tokens) and np.allclose(points.loss, other.loss)


def test_loss_spikes_are_in_no_curve(observations):
    spiky = observations.copy()
    trained = spiky[(spiky["target_tokens"] > 0) & (spiky["phase"] == "stable")]
    _, longest = max(trained.groupby(["run", "language"]), key=lambda item: len(item[1]))
    at = longest.sort_values("tokens").index[8]
    spiky.loc[at, "loss"] += 3
    study = study_curves(spiky)
    place = spiky.index.get_loc(at)
    assert not study.kept[place] and study.exclusions[0]["rows"] >= 1
    assert not any(rows[place] for rows in study.phases.values())
    assert study.noise["stable"].checkpoint == pytest.approx(
        study_curves(observations).noise["stable"].checkpoint, rel=0.05
    )
