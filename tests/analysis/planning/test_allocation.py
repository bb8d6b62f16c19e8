import dataclasses
import itertools

import numpy as np
import planted_mixtures
import pytest
from scipy.optimize import approx_fprime

from analysis.planning import allocation
from analysis.uncertainty.posterior import draws
from mscale.errors import MscaleError

FLOPS = 6 * 3e5 * 1.2e7
WEIGHTS = np.array([2.0, 1.0, 1.0, 1.0])


def loss(laws, rates, params, weights, worst):
    return float(allocation.objective(laws.loss(rates, params, FLOPS / 6 / params), weights, worst)[0])


def brute_force(laws, weights, worst, steps=12):
    """The lowest loss over a grid of the simplex and of N."""
    best = np.inf
    for cut in itertools.product(range(steps + 1), repeat=len(laws.sources) - 1):
        if sum(cut) > steps:
            continue
        rates = np.array([*cut, steps - sum(cut)]) / steps
        for n in np.geomspace(4e4, 1e6, 20):
            value = loss(laws, rates, n, weights, worst)
            best = min(best, value if np.isfinite(value) else np.inf)
    return best


@pytest.mark.parametrize(("seed", "worst"), [(0, False), (1, False), (2, True), (3, True)])
def test_no_grid_point_is_better_and_some_is_near(seed, worst):
    laws = planted_mixtures.true_laws(planted_mixtures.planted(seed))
    found = allocation.best_allocation(laws, FLOPS, WEIGHTS, worst=worst)
    assert found.rates.sum() == pytest.approx(1) and (found.rates >= 0).all()
    assert 6 * found.params * found.tokens == pytest.approx(FLOPS)
    assert found.value == pytest.approx(loss(laws, found.rates, found.params, WEIGHTS, worst))
    grid = brute_force(laws, WEIGHTS, worst)
    assert grid - 0.02 < found.value <= grid + (1e-4 if worst else 1e-7)


def test_slopes_are_those_of_the_loss():
    laws = planted_mixtures.true_laws(planted_mixtures.planted(4))
    rates, params = np.array([0.5, 0.2, 0.2, 0.1]), 2e5

    def total(x):
        n = np.exp(x[4])
        return float(laws.loss(x[:4], n, FLOPS / 6 / n)[0] @ WEIGHTS)

    _, in_rates, in_size = laws.loss_and_slope(rates, params, FLOPS / 6 / params)
    numeric = approx_fprime(np.append(rates, np.log(params)), total, 1e-7)
    assert np.allclose(np.append(WEIGHTS @ in_rates[0], WEIGHTS @ in_size[0]), numeric, rtol=1e-4)


def test_repeats_are_counted():
    """Twice the data of a language draws more to it, and the loss falls."""
    params = planted_mixtures.planted(0)
    scarce = planted_mixtures.true_laws(params)
    plenty = planted_mixtures.true_laws(params, planted_mixtures.UNIQUE | {"d": 4e7})
    some = allocation.best_allocation(scarce, FLOPS, np.array([0.0, 0, 0, 1]))
    more = allocation.best_allocation(plenty, FLOPS, np.array([0.0, 0, 0, 1]))
    assert more.value < some.value - 0.01
    assert more.rates[3] == pytest.approx(1, abs=1e-3) and some.rates[3] < 0.9
    unlimited = dataclasses.replace(scarce, unique=np.full(4, np.inf))
    ends = [allocation.best_allocation(laws, FLOPS, WEIGHTS, starts=2).value for laws in (unlimited, scarce)]
    assert ends[0] < ends[1] - 1e-3


def test_a_held_size_or_mixture_is_held():
    laws = planted_mixtures.true_laws(planted_mixtures.planted(1))
    held = allocation.best_allocation(laws, FLOPS, WEIGHTS, params=7e4)
    assert held.params == 7e4
    free = allocation.best_allocation(laws, FLOPS, WEIGHTS)
    given = allocation.best_allocation(laws, FLOPS, WEIGHTS, rates=np.full(4, 0.25))
    assert np.array_equal(given.rates, np.full(4, 0.25))
    assert free.value < held.value and free.value < given.value


@pytest.mark.parametrize("worst", [False, True])
def test_from_noisy_fits_it_beats_what_people_use_on_the_planted_truth(worst):
    """Every seed is a world of its own; all are judged by the true loss, each rival at its own best size."""
    lost = []
    for seed in range(3):
        fit = planted_mixtures.fitted(seed)
        theta = np.concatenate([fit.theta[None], draws(fit, 12)])
        laws = allocation.law_draws(fit, theta, planted_mixtures.NAMES, planted_mixtures.UNIQUE)
        truth = planted_mixtures.true_laws(planted_mixtures.planted(seed))
        found = allocation.best_allocation(laws, FLOPS, WEIGHTS, worst=worst, starts=2)
        mine = loss(truth, found.rates, found.params, WEIGHTS, worst)
        ideal = allocation.best_allocation(truth, FLOPS, WEIGHTS, worst=worst, starts=2).value
        lost.append(mine - ideal)
        rivals = allocation.baseline_mixtures(laws, found.tokens)
        assert {"uniform over the targets", "temperature 3.3", "UniMax"} <= set(rivals)
        for rates in rivals.values():
            other = allocation.best_allocation(laws, FLOPS, WEIGHTS, worst=worst, rates=rates)
            assert mine < loss(truth, rates, other.params, WEIGHTS, worst) - 1e-4
    assert np.mean(lost) < 2e-3


def test_laws_of_a_fit_are_its_laws():
    fit = planted_mixtures.fitted(0)
    laws = allocation.law_draws(fit, fit.theta[None], ["b", "d"])
    rows = {"params": [1e5], "D_t": [2e6], "U_t": [2e6], "language": ["b"]}
    rows |= {"D_1": [1e6], "U_1": [1e6], "D_2": [0.0], "U_2": [0.0], "D_3": [5e5], "U_3": [5e5]}
    rows |= {"D_other": [0.0], "U_other": [0.0]}
    expected = fit.predict(rows)["prediction"].iloc[0]
    rates = np.array([1e6, 2e6, 0.0, 5e5]) / 3.5e6  # SOURCES["b"] is a, c, d
    assert laws.loss(rates, 1e5, 3.5e6)[0, 0] == pytest.approx(expected)
    with pytest.raises(MscaleError, match="no ATLAS law of 'e'"):
        allocation.law_draws(fit, fit.theta[None], ["e"])


def test_at_the_floor_a_law_says_nothing():
    laws = planted_mixtures.true_laws(planted_mixtures.planted(0))
    hostile = dataclasses.replace(laws, tau=np.where(laws.tau == 1, 1.0, -2.0))
    assert np.isnan(hostile.loss(np.array([0.1, 0.5, 0.2, 0.2]), 1e5, 1e7)[0, 0])
    found = allocation.best_allocation(hostile, FLOPS, np.array([1.0, 0, 0, 0]))
    assert found.rates[0] > 0.99 and np.isfinite(found.value)
