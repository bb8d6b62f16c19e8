"""Conditioning of a Gaussian vector, and the greedy design, against textbook formulas and exhaustive search."""

import itertools

import numpy as np
import pytest

from analysis.gaussian import greedy_design, posterior, posterior_covariance


def problem(seed=0, size=6, measurements=3):
    """A prior, and measurements of linear combinations of the entries with correlated errors."""
    rng = np.random.default_rng(seed)
    root, errors = rng.normal(size=(size, size)), rng.normal(size=(measurements, measurements))
    measured, values = rng.normal(size=(measurements, size)), rng.normal(size=measurements)
    return rng.normal(size=size), root @ root.T, measured, values, errors @ errors.T + np.eye(measurements)


def test_the_posterior_is_that_of_the_information_form():
    """Precisions add: Σ⁻¹ + HᵀR⁻¹H (Rasmussen & Williams 2006, A.2)."""
    mean, covariance, measured, values, noise = problem()
    found, spread = posterior(mean, covariance, measured, values, noise)
    weight = measured.T @ np.linalg.inv(noise)
    expected = np.linalg.inv(np.linalg.inv(covariance) + weight @ measured)
    np.testing.assert_allclose(spread, expected, atol=1e-9)
    np.testing.assert_allclose(
        found, expected @ (np.linalg.solve(covariance, mean) + weight @ values), atol=1e-9
    )
    np.testing.assert_allclose(posterior_covariance(covariance, measured, noise), expected, atol=1e-9)


def test_measurements_one_by_one_are_as_all_at_once():
    mean, covariance, measured, values, _ = problem(1)
    noise = np.diag([0.5, 1.0, 2.0])
    found = mean, covariance
    for k in range(3):
        found = posterior(*found, measured[k : k + 1], values[k : k + 1], noise[k : k + 1, k : k + 1])
    for one, other in zip(found, posterior(mean, covariance, measured, values, noise), strict=True):
        np.testing.assert_allclose(one, other, atol=1e-9)


def test_without_measurements_nothing_changes():
    mean, covariance, *_ = problem(2)
    found, spread = posterior(mean, covariance, np.zeros((0, 6)), np.zeros(0), np.zeros((0, 0)))
    np.testing.assert_array_equal(found, mean)
    np.testing.assert_array_equal(spread, covariance)


def design(covariance, prices, budget, noise=0.3):
    """The entries that are chosen so that the trace of the covariance falls most per unit of price."""

    def measure(now, entry):
        return posterior_covariance(now, np.eye(len(now))[[entry]], np.array([[noise]]))

    def reductions(now, entries):
        return np.array([np.trace(now) - np.trace(measure(now, entry)) for entry in entries])

    return greedy_design(
        covariance, lambda _: range(len(prices)), reductions, measure, prices.__getitem__, budget
    )


def test_each_choice_takes_most_variance_away_per_price_and_the_budget_is_kept():
    now, left = problem(3)[1], 7.0
    prices = np.array([1.0, 2.0, 4.0, 1.0, 2.0, 4.0])
    chosen = list(design(now, prices, left))
    for entry, after in chosen:
        gain = (now**2).sum(axis=0) / (np.diag(now) + 0.3) / prices
        assert entry == np.argmax(np.where(prices <= left, gain, -1.0))
        assert np.trace(now) - np.trace(after) == pytest.approx(gain[entry] * prices[entry])
        now, left = after, left - prices[entry]
    assert len(chosen) > 2 and 0 <= left < prices.min()


def test_ties_go_to_the_first_and_candidates_may_be_refused():
    assert [entry for entry, _ in itertools.islice(design(np.eye(4), np.ones(4), np.inf), 4)] == [0, 1, 2, 3]
    refused = greedy_design(
        0, lambda _: "ab", lambda *_: np.array([-np.inf, -np.inf]), lambda *_: 1, lambda _: 1.0
    )
    assert list(refused) == []
