import dataclasses
import itertools

import numpy as np
import planted_mixtures
import pytest
from scipy.optimize import approx_fprime

from analysis.planning import allocation
from analysis.planning.allocation import Objective
from analysis.uncertainty.posterior import draws
from mscale.errors import MscaleError

FLOPS = 6 * 3e5 * 1.2e7
WEIGHTS = np.array([2.0, 1.0, 1.0, 1.0])


def loss(laws, rates, params, objective):
    return float(objective.of(laws.loss(rates, params, FLOPS / 6 / params))[0])


def brute_force(laws, objective, steps=12):
    """The lowest loss over a grid of the simplex and of N."""
    best = np.inf
    for cut in itertools.product(range(steps + 1), repeat=len(laws.sources) - 1):
        if sum(cut) > steps:
            continue
        rates = np.array([*cut, steps - sum(cut)]) / steps
        for n in np.geomspace(4e4, 1e6, 20):
            value = loss(laws, rates, n, objective)
            best = min(best, value if np.isfinite(value) else np.inf)
    return best


@pytest.mark.parametrize(("seed", "worst"), [(0, False), (1, False), (2, True), (3, True)])
def test_no_grid_point_is_better_and_the_best_one_is_close(seed, worst):
    laws = planted_mixtures.true_laws(planted_mixtures.planted(seed))
    objective = Objective(WEIGHTS, worst)
    found = allocation.best_allocation(laws, FLOPS, objective)
    assert found.rates.sum() == pytest.approx(1) and (found.rates >= 0).all()
    assert 6 * found.params * found.tokens == pytest.approx(FLOPS)
    assert found.value == pytest.approx(loss(laws, found.rates, found.params, objective))
    grid = brute_force(laws, objective)
    assert grid - 0.02 < found.value <= grid + (1e-4 if worst else 1e-7)


def test_derivatives_are_those_of_the_loss():
    laws = planted_mixtures.true_laws(planted_mixtures.planted(4))
    rates, params = np.array([0.5, 0.2, 0.2, 0.1]), 2e5

    def total(x):
        n = np.exp(x[4])
        return float(laws.loss(x[:4], n, FLOPS / 6 / n)[0] @ WEIGHTS)

    _, in_rates, in_size = laws.loss_and_slope(rates, params, FLOPS / 6 / params)
    numeric = approx_fprime(np.append(rates, np.log(params)), total, 1e-7)
    assert np.allclose(np.append(WEIGHTS @ in_rates[0], WEIGHTS @ in_size[0]), numeric, rtol=1e-4)


def test_repeated_data_count_less():
    """With more unique data of a language its rate is higher and the loss lower."""
    params, only_d = planted_mixtures.planted(0), Objective(np.array([0.0, 0, 0, 1]))
    scarce = planted_mixtures.true_laws(params)
    plenty = planted_mixtures.true_laws(params, planted_mixtures.UNIQUE | {"d": 4e7})
    some = allocation.best_allocation(scarce, FLOPS, only_d)
    more = allocation.best_allocation(plenty, FLOPS, only_d)
    assert more.value < some.value - 0.01
    assert more.rates[3] == pytest.approx(1, abs=1e-3) and some.rates[3] < 0.9
    unlimited = dataclasses.replace(scarce, unique=np.full(4, np.inf))
    ends = [
        allocation.best_allocation(laws, FLOPS, Objective(WEIGHTS), starts=2).value
        for laws in (unlimited, scarce)
    ]
    assert ends[0] < ends[1] - 1e-3


def test_a_fixed_size_or_mixture_stays_fixed():
    laws = planted_mixtures.true_laws(planted_mixtures.planted(1))
    objective = Objective(WEIGHTS)
    held = allocation.best_allocation(laws, FLOPS, objective, params=7e4)
    assert held.params == 7e4
    free = allocation.best_allocation(laws, FLOPS, objective)
    given = allocation.best_allocation(laws, FLOPS, objective, rates=np.full(4, 0.25))
    assert np.array_equal(given.rates, np.full(4, 0.25))
    assert free.value < held.value and free.value < given.value


@pytest.mark.parametrize("worst", [False, True])
def test_from_noisy_fits_it_beats_the_usual_mixtures_on_the_planted_truth(worst):
    """Several planted laws; every mixture is judged by the true loss, each usual one at its own best size."""
    lost, objective = [], Objective(WEIGHTS, worst)
    for seed in range(3):
        fit = planted_mixtures.fitted(seed)
        theta = np.concatenate([fit.theta[None], draws(fit, 12)])
        laws = allocation.law_draws(fit, theta, planted_mixtures.NAMES, planted_mixtures.UNIQUE)
        truth = planted_mixtures.true_laws(planted_mixtures.planted(seed))
        found = allocation.best_allocation(laws, FLOPS, objective, starts=2)
        achieved = loss(truth, found.rates, found.params, objective)
        ideal = allocation.best_allocation(truth, FLOPS, objective, starts=2).value
        lost.append(achieved - ideal)
        usual = allocation.baseline_mixtures(laws, found.tokens)
        assert {"uniform over the targets", "temperature 3.3", "UniMax"} <= set(usual)
        for rates in usual.values():
            other = allocation.best_allocation(laws, FLOPS, objective, rates=rates)
            assert achieved < loss(truth, rates, other.params, objective) - 1e-4
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


def test_below_the_floor_of_effective_data_the_loss_is_undefined():
    laws = planted_mixtures.true_laws(planted_mixtures.planted(0))
    hostile = dataclasses.replace(laws, tau=np.where(laws.tau == 1, 1.0, -2.0))
    assert np.isnan(hostile.loss(np.array([0.1, 0.5, 0.2, 0.2]), 1e5, 1e7)[0, 0])
    found = allocation.best_allocation(hostile, FLOPS, Objective(np.array([1.0, 0, 0, 0])))
    assert found.rates[0] > 0.99 and np.isfinite(found.value)
