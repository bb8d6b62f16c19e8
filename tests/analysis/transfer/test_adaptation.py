import numpy as np
import pandas as pd
import pytest

from analysis.curves.curve import CurveNoise
from analysis.tables.observations import validate_observations
from analysis.transfer import adaptation, matrix, statistics
from analysis.validation import planted_study


def test_agreement_with_planted_relatedness():
    observations, _, truth = planted_study.make_study(seed=3)
    cells = matrix.transfer_cells(validate_observations(observations)[0])
    result = statistics.relatedness_agreement(matrix.transfer_matrix(cells, scales=["nano2"]), truth)
    assert result["pairs"] == 30 and result["spearman"] > 0.6
    assert result["p"] < 2 * result["smallest_p"] < 0.2


def test_adaptation_score_is_the_mean_gain():
    tokens = np.linspace(1, 1000, 200)
    base = pd.DataFrame(
        {"run": "ckpt", "scale": "s", "params": 10, "languages": "a+b", "tokens": 500, "phase": "stable",
         "language": ["a", "b"], "loss": 3.0, "target_tokens": 250, "init": "scratch", "init_tokens": 0},
        index=[0, 1],
    )  # fmt: skip
    gain = pd.DataFrame(
        {"run": "more", "scale": "s", "params": 10, "languages": "a", "tokens": tokens, "phase": "stable",
         "language": "b", "loss": 3.0 - tokens / 1000, "target_tokens": 0, "init": "ckpt", "init_tokens": 500}
    )  # fmt: skip
    observations, _, _ = validate_observations(pd.concat([base, gain]))
    row = adaptation.adaptation_scores(observations).iloc[0]
    assert (row["source"], row["target"]) == ("a", "b")
    assert row["score"] == pytest.approx(0.5, abs=1e-3)  # ∫₀¹ x dx


@pytest.mark.parametrize(
    ("tokens", "limit"), [((1.0, 3.0, 3.0, 8.0), 5.5), ((2.0, 5.0, 6.0), 7.0)], ids=["between", "beyond"]
)
def test_the_squared_weights_are_the_squared_derivatives_of_the_score(tokens, limit):
    """With unequal steps, a repeated one, a limit between two evaluations, and a curve that ends before its limit."""
    values = np.array([3.0, 2.5, 2.0, 2.1, 1.5][: 1 + len(tokens)])

    def gain(values):
        return adaptation.mean_gain(np.array(tokens), values[1:], values[0], limit)

    score, final, squares = gain(values)
    slopes = [(gain(values + step)[0] - score) / 1e-4 for step in 1e-4 * np.eye(len(values))]
    assert squares == pytest.approx(np.sum(np.square(slopes)), rel=1e-6)
    means = pd.Series(values[1:]).groupby(np.array(tokens)).mean()
    x, y = np.append(0.0, means.index), np.append(values[0], means)
    fine = np.linspace(0, limit, 100_001)
    assert score == pytest.approx(values[0] - np.mean(np.interp(fine, x, y)), abs=1e-4)
    assert final == pytest.approx(np.interp(limit, x, y))


def test_intervals_of_adaptation_scores_cover():
    rng = np.random.default_rng(0)
    count, points, limit = 2000, 25, 1000.0
    tokens = np.geomspace(20, limit, points)
    clean = 3.0 - 0.5 * (tokens / limit) ** 0.5
    checkpoint, run = 0.02, 0.01
    losses = clean + checkpoint * rng.standard_normal((count, points)) + run * rng.standard_normal((count, 1))
    base = 3.0 + checkpoint * rng.standard_normal(count)
    score, _, squares = np.transpose(
        [adaptation.mean_gain(tokens, *each, limit) for each in zip(losses, base, strict=True)]
    )
    truth = adaptation.mean_gain(tokens, clean, 3.0, limit)[0]
    away = adaptation.interval_half_widths(squares, CurveNoise(checkpoint, run, run_degrees=1_000_000), 0.9)
    assert 0.88 < np.mean(np.abs(score - truth) <= away) < 0.92
    few = adaptation.interval_half_widths(squares, CurveNoise(checkpoint, run, run_degrees=1), 0.9)
    assert (few > away).all()


def test_intervals_need_a_noise():
    observations = validate_observations(planted_study.make_study(seed=3, small=True)[0])[0]
    plain = adaptation.adaptation_scores(observations)
    assert plain["low"].isna().all() and (plain["status"] == "measured").any()
    noise = matrix.transfer_cells(observations).noise["stable"]
    known = adaptation.adaptation_scores(observations, noise=noise)
    assert np.array_equal(known["score"], plain["score"], equal_nan=True)
    measured = known[known["status"] == "measured"]
    assert (measured["low"] < measured["score"]).all() and (measured["score"] < measured["high"]).all()
