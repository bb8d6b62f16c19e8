"""Curves of a study hold the rows of one run, language and phase, without loss spikes."""

import numpy as np
import pytest

from analysis.curves.curve import points_by_curve
from analysis.curves.study import CURVE_PHASES, study_curves
from analysis.tables.observations import validate_observations
from analysis.validation import planted_study


@pytest.fixture(scope="module")
def observations():
    return validate_observations(planted_study.make_study(seed=5, small=True)[0])[0]


def test_curves_hold_the_rows_of_one_run_language_and_phase(observations):
    study = study_curves(observations)
    curve = study.run * len(study.languages) + study.language
    for phase in CURVE_PHASES:
        found = study.points(curve, study.trained, phase)
        rows = observations[study.kept & study.trained & (observations["phase"] == phase).to_numpy()]
        expected = {keys: part for keys, part in rows.groupby(["run", "language"])}
        assert len(found) == len(expected) > 10
        for key, points in found.items():
            run, language = divmod(key, len(study.languages))
            part = expected[study.runs["run"].iloc[run], study.languages[language]].sort_values("tokens")
            assert points.groups == tuple(part["group"].unique()) and points.phase == phase
            assert np.allclose(points.tokens, part["tokens"]) and np.allclose(points.loss, part["loss"])


def test_points_at_the_same_tokens_are_averaged_and_their_groups_named():
    curve, group = np.array([1, 0, -1, 1, 1]), np.array([0, 1, 0, 2, 0])
    tokens, losses = np.array([2.0, 9.0, 1.0, 2.0, 1.0]), np.array([3.0, 1.0, 7.0, 4.0, 5.0])
    found = points_by_curve(curve, tokens, losses, group, ["c", "a", "b"], "stable")
    assert set(found) == {0, 1} and found[1].groups == ("b", "c")
    assert found[1].tokens.tolist() == [1.0, 2.0] and found[1].loss.tolist() == [5.0, 3.5]
    assert found[1].repeats.tolist() == [1.0, 2.0]


def test_loss_spikes_are_in_no_curve(observations):
    spiky = observations.copy()
    trained = spiky[(spiky["target_tokens"] > 0) & (spiky["phase"] == "stable")]
    _, longest = max(trained.groupby(["run", "language"]), key=lambda item: len(item[1]))
    at = longest.sort_values("tokens").index[8]
    spiky.loc[at, "loss"] += 3
    study = study_curves(spiky)
    place = spiky.index.get_loc(at)
    assert not study.kept[place] and study.exclusions[0].rows >= 1
    assert not any(rows[place] for rows in study.phases.values())
    assert study.noise["stable"].checkpoint == pytest.approx(
        study_curves(observations).noise["stable"].checkpoint, rel=0.05
    )
