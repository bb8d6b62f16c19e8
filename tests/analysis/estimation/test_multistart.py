"""Multistart: linear parameters are solved exactly, given the others."""

import numpy as np
import pytest
from planted_chinchilla import TRUE

import analysis
from analysis.estimation import multistart
from analysis.validation import simulate


@pytest.fixture(scope="module")
def table():
    design = simulate.monolingual_design((2e4, 8e4, 3e5), (2e6, 4e6, 8e6), ("a", "b"), seeds=2)
    return simulate.draw_observations(
        "chinchilla", design, {**TRUE, "E[b]": 2.1}, trunk=0.003, checkpoint=0.001, seed=1
    )


@pytest.mark.parametrize(
    "how",
    [{"share": ("alpha", "beta")}, {"share": ("E", "alpha", "beta")}, {"per": None, "tie": {"B": "A"}}],
    ids=["own", "shared", "tied"],
)
def test_no_other_linear_parameters_fit_a_start_better(table, how):
    problem = analysis.fit("chinchilla", table, loss="squares", **how).problem
    which = problem.fitted_parameters
    linear = [index for index, q in enumerate(which) if q.linear]
    nonlinear = np.array([[0.3, 0.35], [0.5, 0.2]])
    theta = np.zeros((2, problem.size))
    theta[:, [index for index, q in enumerate(which) if not q.linear]] = nonlinear
    y = np.stack([problem.y, problem.y * np.exp(np.random.default_rng(0).normal(0, 0.01, len(problem.y)))])
    solved = multistart.solve_linear_parameters(problem, theta, linear, y)
    one_by_one = [multistart.solve_linear_parameters(problem, theta, linear, one[None])[0] for one in y]
    np.testing.assert_allclose(solved, one_by_one, rtol=1e-8)

    def squared_error(at, s):
        return (((problem.predict(at[None])[0] - y[s]) / y[s]) ** 2).sum()

    rng = np.random.default_rng(1)
    for s in range(2):
        for k in range(2):
            best = squared_error(solved[s, k], s)
            for _ in range(20):
                other = solved[s, k].copy()
                other[linear] += rng.normal(0, 0.02, len(linear))
                assert squared_error(np.clip(other, problem.lower, problem.upper), s) >= best * (1 - 1e-9)
