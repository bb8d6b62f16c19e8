import numpy as np
import pytest
from planted_scores import KNOWN, LANGUAGES, hide, planted

from analysis.tables import languages as inventory
from analysis.tables.observations import validate_observations
from analysis.transfer import pair_selection, statistics
from analysis.transfer.matrix import transfer_matrix
from analysis.validation import planted_study
from mscale.errors import MscaleError

FEATURES = inventory.pair_features(LANGUAGES, KNOWN)


def reveal(scores, languages, pairs, shown=None):
    """The scores of the named pairs, and those already in `shown`; NaN elsewhere."""
    place = {name: index for index, name in enumerate(languages)}
    part = np.full_like(scores, np.nan) if shown is None else shown.copy()
    for one, other in pairs:
        i, j = place[one], place[other]
        part[i, j], part[j, i] = scores[i, j], scores[j, i]
    return part


def error(part, truth, languages, features):
    """Root mean square error of all scores, from the pairs that were run."""
    mean, _ = pair_selection.fit_pair_model(languages, features, part, 0.05).posterior(part)
    off = ~np.eye(len(languages), dtype=bool)
    return float(np.sqrt(np.mean((mean - truth)[off] ** 2)))


def every_pair(languages):
    return [(a, b) for i, a in enumerate(languages) for b in languages[i + 1 :]]


@pytest.mark.parametrize(("before", "more"), [(0, 14), (10, 12)])
def test_chosen_pairs_lead_to_smaller_errors_than_random_ones(before, more):
    chosen, random = [], []
    for seed in range(10):
        rng = np.random.default_rng(seed)
        scores, truth = planted(seed)
        pairs = every_pair(LANGUAGES)
        rng.shuffle(pairs)
        part = reveal(scores, LANGUAGES, pairs[:before])
        process = pair_selection.fit_pair_model(LANGUAGES, FEATURES, part, 0.05)
        picked = [choice.pair for choice in pair_selection.select_pairs(process, part, more)]
        assert len(set(picked)) == more and not set(map(tuple, pairs[:before])) & set(picked)
        chosen.append(error(reveal(scores, LANGUAGES, picked, part), truth, LANGUAGES, FEATURES))
        drawn = pairs[before : before + more], pairs[before + more : before + 2 * more]
        random.append(
            np.mean([error(reveal(scores, LANGUAGES, p, part), truth, LANGUAGES, FEATURES) for p in drawn])
        )
    assert np.mean(chosen) < 0.93 * np.mean(random)
    assert np.mean(np.array(chosen) < np.array(random)) >= 0.7


def test_on_the_planted_study_it_beats_random_choice():
    """Pairs are chosen from the measured scores of a noisy study and judged by the planted scores."""
    names = planted_study.LANGUAGES
    tau = np.array([[planted_study.planted_tau(s, t) for s in names] for t in names])
    truth = 2 * tau / (1 + tau)
    chosen, random = [], []
    for seed in range(4):
        observations, _, planted_truth = planted_study.make_study(seed=seed)
        rows = observations[(observations["scale"] == "nano2") & observations["tag"].isin(["mono", "pairs"])]
        matrix = transfer_matrix(validate_observations(rows)[0])
        scores = statistics.score_matrix(matrix[matrix["status"] == "measured"].to_dict("records"), names)
        features = inventory.pair_features(names, planted_truth["languages"])
        process = pair_selection.fit_pair_model(names, features, noise=0.05)
        picked = [
            choice.pair for choice in pair_selection.select_pairs(process, np.full_like(scores, np.nan), 6)
        ]
        chosen.append(error(reveal(scores, names, picked), truth, names, features))
        rng = np.random.default_rng(seed)
        for _ in range(5):
            drawn = [every_pair(names)[k] for k in rng.permutation(15)[:6]]
            random.append(error(reveal(scores, names, drawn), truth, names, features))
    assert np.mean(chosen) < 0.9 * np.mean(random)


def test_uncertainty_falls_with_every_pair_and_prices_and_budgets_are_kept():
    scores, _ = planted(0)
    part, _ = hide(scores, 0.8, 0)
    process = pair_selection.fit_pair_model(LANGUAGES, FEATURES, part, 0.05)
    choices = pair_selection.select_pairs(process, part, 20)
    left = [choice.remaining_variance for choice in choices]
    assert all(later < earlier for earlier, later in zip(left, left[1:], strict=False)) and left[-1] > 0
    assert pair_selection.select_pairs(process, part, 20, price=2.0, budget=7.0) == choices[:3]


def test_pairs_of_the_weighted_target_are_chosen():
    scores = np.full((len(LANGUAGES),) * 2, np.nan)
    weight = np.array([[float(name == "b4")] * len(LANGUAGES) for name in LANGUAGES])
    process = pair_selection.fit_pair_model(LANGUAGES, FEATURES, noise=0.05)
    picked = [choice.pair for choice in pair_selection.select_pairs(process, scores, 5, weight=weight)]
    assert all("b4" in pair for pair in picked)


def test_the_posterior_covers_the_scores_that_were_hidden():
    scores, _ = planted(3)
    part, _ = hide(scores, 0.5, 3)
    process = pair_selection.fit_pair_model(LANGUAGES, FEATURES, part, 0.05)
    mean, covariance = process.posterior(part)
    deviation = np.full_like(mean, np.nan)
    deviation[tuple(process.cells.T)] = np.sqrt(np.diag(covariance))
    shown = np.isfinite(part)
    assert np.abs(mean - part)[shown].max() < 0.2 and deviation[shown].max() < 0.05
    hidden = ~shown & np.isfinite(scores)
    z = (scores - mean)[hidden] / np.hypot(deviation[hidden], 0.05)
    assert 0.7 < np.std(z) < 1.4


def test_too_few_languages():
    with pytest.raises(MscaleError, match="3 to 90"):
        pair_selection.fit_pair_model(("a", "b"), {})


def test_pairs_that_were_run_are_not_chosen_again():
    """Also where they gave only a bound: the same run would give the same bound."""
    cells = [
        {"target": target, "source": source, "status": status}
        for target, source, status in (
            ("a0", "a1", "measured"),
            ("a1", "a0", "bound"),
            ("a0", "b4", "bound"),
            ("b4", "a0", "missing"),
        )
    ]
    assert pair_selection.pairs_already_run(cells) == {("a0", "a1")}
    process = pair_selection.fit_pair_model(LANGUAGES, FEATURES, noise=0.05)
    scores = np.full((len(LANGUAGES),) * 2, np.nan)
    every = every_pair(process.languages)
    picked = pair_selection.select_pairs(process, scores, 3, ran=every[3:])
    assert {choice.pair for choice in picked} == set(every[:3])
