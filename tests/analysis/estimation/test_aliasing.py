"""Aliased parameters are eliminated before the search and restored afterwards."""

import numpy as np
import pandas as pd
import pytest
from planted_chinchilla import TRUE

import analysis
from analysis.estimation import variance_components
from analysis.estimation.aliasing import remove_aliased
from analysis.validation import simulate


@pytest.fixture(scope="module")
def found():
    """Languages a and b at three sizes, c and d at one, where E and A are aliased."""
    tokens = (2e6, 4e6, 8e6)
    design = pd.concat(
        [
            simulate.monolingual_design((2e4, 8e4, 3e5), tokens, ("a", "b"), seeds=3),
            simulate.monolingual_design((8e4,), tokens, ("c", "d"), seeds=6),
        ]
    )
    table = simulate.draw_observations("chinchilla", design, TRUE, trunk=0.004, checkpoint=0.002, seed=2)
    return analysis.fit("chinchilla", table, share=("alpha", "beta"))


def test_E_and_A_of_languages_at_one_size_are_aliased(found):
    reduction = remove_aliased(found.problem)
    assert [found.names[index] for index in reduction.dropped] == ["A[c]", "A[d]"]
    assert [found.names[index] for index in reduction.partner] == ["E[c]", "E[d]"]
    assert not len(remove_aliased(reduction.reduced).dropped)


def test_full_and_reduced_problem_predict_the_same(found):
    problem, reduction = found.problem, remove_aliased(found.problem)
    theta = found.theta + np.random.default_rng(0).normal(0, 0.02, (4, problem.size))
    reduced = reduction.to_reduced(theta)
    np.testing.assert_allclose(reduction.reduced.predict(reduced), problem.predict(theta), rtol=1e-12)
    np.testing.assert_allclose(reduction.to_full(reduced, theta), theta, rtol=1e-10)
    np.testing.assert_allclose(
        problem.predict(reduction.to_full(reduced)), problem.predict(theta), rtol=1e-12
    )


def test_eliminated_parameters_are_restored_as_in_other_languages_and_within_bounds(found):
    A = found.params[["A_mean[a]", "A_mean[b]"]]
    for name in ("A_mean[c]", "A_mean[d]"):
        assert found.params[name] == pytest.approx(np.exp(np.log(A).mean()), rel=0.01)
    reduction = remove_aliased(found.problem)
    reduced = reduction.to_reduced(found.theta[None])
    at = [list(np.array(found.names)[reduction.kept]).index(name) for name in ("E[c]", "E[d]")]
    reduced[:, at] = 0.02  # the sum of the two is less than A of the other languages
    full = reduction.to_full(reduced)
    assert (full[:, reduction.partner] > 0).all()
    np.testing.assert_allclose(reduction.to_reduced(full), reduced, rtol=1e-9)


def test_the_noise_does_not_depend_on_how_an_aliased_pair_divides_its_sum(found):
    other = found.theta.copy()
    drop, partner = remove_aliased(found.problem).dropped, remove_aliased(found.problem).partner
    amount = remove_aliased(found.problem).contributions(other[None])[0]
    other[drop] -= 2.0
    other[partner] += amount * (1 - np.exp(-2.0))
    np.testing.assert_allclose(found.problem.predict(other[None]), found.problem.predict(found.theta[None]))
    here, there = (
        variance_components.estimate_noise(found.problem, theta[None]) for theta in (found.theta, other)
    )
    np.testing.assert_allclose(here.probability, there.probability, rtol=1e-5)
    np.testing.assert_allclose(here.sigma2, there.sigma2, rtol=1e-9)
    assert here.degrees_of_freedom == len(found.problem.y) - len(found.names) + len(drop)


def test_the_covariance_of_identified_quantities_is_that_of_the_full_problem(found):
    problem, theta = found.problem, found.theta[None]
    noise = variance_components.estimate_noise(problem, theta)
    best = noise.at_best(noise.theta)
    batch = problem.batch(ratio=noise.ratio[noise.best])
    information = problem.derivatives(best, batch)[3]
    flat = np.linalg.eigh(information[0])[1][:, :2]
    slopes = np.random.default_rng(1).normal(size=(20, problem.size))
    slopes -= slopes @ flat @ flat.T
    ours, pseudo_inverse = (
        np.einsum("mi,ij,mj->m", slopes, one, slopes)
        for one in (noise.at_best(noise.inverse)[0], np.linalg.pinv(information[0], rcond=1e-12))
    )
    np.testing.assert_allclose(ours, pseudo_inverse, rtol=1e-4)
