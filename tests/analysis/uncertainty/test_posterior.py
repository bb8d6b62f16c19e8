"""Draws of the parameters are from a normal distribution truncated at their bounds."""

import numpy as np
import planted_mixtures
import pytest

from analysis.uncertainty.delta_method import covariance, delta_interval
from analysis.uncertainty.posterior import draws, local_posterior
from analysis.uncertainty.truncated_normal import sample_truncated_normal


def by_rejection(root, centre, low, high, count=400_000):
    """Draws of the same distribution by rejection sampling."""
    found = centre + np.random.default_rng(1).standard_normal((count, len(root))) @ root.T
    return found[((found >= low) & (found <= high)).all(axis=1)]


@pytest.mark.parametrize("centre", [(0.3, -0.2), (2.0, 1.0), (-1.0, 0.5)])
def test_the_sampler_has_the_moments_of_rejection_sampling(centre):
    """Also where the centre lies outside, and where one bound is far."""
    root, centre = np.linalg.cholesky(np.array([[1.0, -0.9], [-0.9, 1.0]])), np.array(centre)
    low, high = np.array([0.0, 0.0]), np.array([1.5, 9.0])
    start = np.array([0.5, 0.5])
    found = sample_truncated_normal(centre, root, np.ones(20_000), low, high, start, np.random.default_rng(0))
    other = by_rejection(root, centre, low, high)
    assert ((found >= low) & (found <= high)).all()
    scale = other.std(axis=0)
    assert np.allclose(found.mean(axis=0), other.mean(axis=0), atol=0.04 * scale.max())
    assert np.allclose(np.cov(found.T), np.cov(other.T), atol=0.06 * scale.max() ** 2)


def test_draws_far_from_bounds_have_the_covariance_of_the_fit():
    fit = planted_mixtures.fitted(0)
    found = draws(fit, 4000)
    standard = np.sqrt(np.diag(covariance(fit)))
    names = [index for index, name in enumerate(fit.names) if name.startswith(("alpha", "beta", "tau["))]
    assert np.allclose(found[:, names].std(axis=0), standard[names], rtol=0.15)
    assert np.allclose(found[:, names].mean(axis=0), fit.theta[names], atol=0.15 * standard[names].max())


def test_draws_divide_an_aliased_sum_but_keep_it():
    """For a language at one size E is drawn from 0 to the whole sum, while predictions on the rows stay the same."""
    fit = planted_mixtures.fitted(0, lone="d")
    assert {
        name for name, moves in zip(fit.names, local_posterior(fit).in_flat_directions, strict=True) if moves
    } == {
        "E[d]",
        "A[d]",
    }
    found = draws(fit, 300)
    values = fit.natural(found)[:, list(fit.params.index).index("E[d]")]
    assert values.min() < 0.3 and values.max() > values.min() + 1.0
    error = np.sqrt((fit.problem.residuals(found) ** 2).mean(axis=1))
    best = float(np.sqrt((fit.problem.residuals(fit.theta[None]) ** 2).mean()))
    assert error.max() < 3 * best
    # A number that depends on how the sum is divided is not identified; one that does not is.
    at = list(fit.names).index("E[d]")
    assert delta_interval(fit, lambda theta: theta[:, at], 0.9)[1:] == (-np.inf, np.inf)
    row = int(np.flatnonzero(fit.level == "d")[0])
    value, low, high = delta_interval(fit, lambda theta: fit.problem.predict(theta)[:, row], 0.9)
    assert low < value < high < low * 1.02
