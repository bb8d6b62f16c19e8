"""Optimisers: derivatives are exact, and Newton and L-BFGS find minima from saddles and at bounds."""

import dataclasses

import numpy as np
import pytest
from planted_chinchilla import TRUE

import analysis
from analysis.estimation import optimize
from analysis.estimation.problem import Batch, Problem
from analysis.laws import Parameter
from analysis.study.law_comparison import atlas_rows
from analysis.validation import planted_study, simulate

CAPACITY = {**TRUE, "phi": 0.1, "psi": -0.05}


@pytest.fixture(scope="module")
def several():
    """The capacity law of three languages, one of which has E at its bound; rows of a run share noise."""
    cells = [(("a",), (2e4, 8e4, 3e5), (2e6, 4e6)), (("a", "b"), (2e4, 8e4, 3e5), (4e6, 8e6))]
    cells.append((("a", "b", "c"), (2e4, 8e4, 3e5), (6e6, 12e6)))
    design = simulate.multilingual_design(cells, seeds=2)[0]
    design["languages_trained"] = design["languages"].str.count(r"\+") + 1
    table = simulate.draw_observations(
        "capacity", design, {**CAPACITY, "E[c]": 0.01}, trunk=0.01, checkpoint=0.003, seed=4
    )
    return analysis.fit("capacity", table, loss="squares")


@pytest.fixture(scope="module")
def constrained():
    """ATLAS with other languages, a prior, an A fixed in the paper's units, and its constraint as a barrier."""
    observations, exposure, _ = planted_study.make_study(seed=3, small=True)
    return analysis.fit(
        "atlas",
        atlas_rows(observations),
        exposure=exposure,
        variant="D_other",
        priors={"tau_other": (0.1, 0.3)},
        fixed={"A[aka]": 14.0},
        few_groups=True,
    )


def around(found, count=5, seed=0):
    """Points near a fit, and a batch whose problems differ in weights, variance ratio and penalty."""
    rng = np.random.default_rng(seed)
    problem = dataclasses.replace(found.problem, penalised=(found.parameters_and_constants(),))
    P = problem.size
    theta = np.clip(found.theta + 0.01 * rng.normal(size=(count, P)), problem.lower, problem.upper)
    batch = problem.batch(
        multiplicity=rng.integers(1, 3, (count, problem.groups)).astype(float)[:, problem.group],
        ratio=rng.uniform(0.1, 3, count),
        quantity=rng.integers(P, size=count),
        target=theta[:, 0],
        penalty_weight=np.full(count, 0.1),
    )
    return problem, theta, batch


@pytest.mark.parametrize("which", ["several", "constrained"])
def test_derivatives_agree_with_each_other_and_with_finite_differences(which, request):
    problem, theta, batch = around(request.getfixturevalue(which))
    f, g, H, _ = problem.derivatives(theta, batch)
    value, slope = problem.value_and_gradient(theta, batch)
    np.testing.assert_allclose(value, f, rtol=1e-12)
    np.testing.assert_allclose(problem.total_objective(theta, batch), f, rtol=1e-12)
    np.testing.assert_allclose(slope, g, rtol=1e-9, atol=1e-12 * np.abs(g).max())
    for index in range(0, problem.size, 3):
        step = np.zeros(problem.size)
        step[index] = 1e-6
        up, down = (problem.value_and_gradient(theta + sign * step, batch) for sign in (1, -1))
        np.testing.assert_allclose(
            (up[0] - down[0]) / 2e-6, g[:, index], rtol=1e-4, atol=1e-5 * np.abs(g).max()
        )
        np.testing.assert_allclose(
            (up[1] - down[1]) / 2e-6, H[:, index], rtol=1e-4, atol=1e-5 * np.abs(H).max()
        )


def test_lbfgs_finds_the_minimum_that_newton_finds(several):
    problem, theta, batch = around(several, seed=2)
    H = problem.derivatives(theta, batch)[2]
    inverse = np.linalg.pinv(H)
    tolerance = 1e-9 * problem.derivatives(theta, batch)[0]
    found = optimize.lbfgs(
        problem,
        theta,
        batch,
        lambda g, at: np.einsum("bij,bj->bi", inverse[at], g),
        tolerance,
        theta,
        iterations=300,
    )
    newton = optimize.minimise(problem, theta, batch)
    assert found.converged.any()
    np.testing.assert_allclose(found.objective[found.converged], newton.objective[found.converged], rtol=1e-5)


class Hills(Problem):
    """f = Σ cos(θ) within bounds: a saddle at 0, minima at ±π, and at the bounds where they come first."""

    def __init__(self, lower, upper):
        object.__setattr__(self, "lower", np.array(lower))
        object.__setattr__(self, "upper", np.array(upper))
        object.__setattr__(self, "fitted_parameters", (Parameter("x", (0, 1), (-5, 5)),) * len(lower))

    def batch(self, **_):
        return Batch(*(np.ones((1, 1)),) * 3)

    def derivatives(self, theta, batch, majorise=True):
        H = np.einsum("bi,ij->bij", -np.cos(theta), np.eye(theta.shape[1]))
        return (
            3.0 + np.cos(theta).sum(1),
            -np.sin(theta),
            H,
            np.broadcast_to(np.eye(theta.shape[1]), H.shape).copy(),
        )


def test_newton_leaves_saddle_points_and_stops_at_bounds():
    hills = Hills([-5.0, -2.0], [5.0, 5.0])
    found = optimize.minimise(hills, np.array([[0.1, -0.1], [2.0, 2.0], [-3.0, -1.9]]))
    assert found.converged.all()
    np.testing.assert_allclose(found.theta[0], [np.pi, -2.0], atol=1e-4)
    np.testing.assert_allclose(found.theta[1], [np.pi, np.pi], atol=1e-4)
    np.testing.assert_allclose(found.theta[2], [-np.pi, -2.0], atol=1e-4)


class Bowl(Hills):
    """A quadratic whose minimum within the bounds is not the unconstrained minimum clipped to them."""

    matrix = np.array([[1.0, 0.95, 0.0], [0.95, 1.0, 0.0], [0.0, 0.0, 1.0]])
    least = np.array([-1.0, 1.5, 2.0])

    def derivatives(self, theta, batch, majorise=True):
        away = theta - self.least
        g = away @ self.matrix
        H = np.broadcast_to(self.matrix, (len(theta), 3, 3)).copy()
        return 1.0 + 0.5 * np.einsum("bi,bi->b", g, away), g, H, H.copy()


def test_a_quadratic_is_minimised_within_bounds():
    bowl = Bowl([0.0, 0.0, 0.0], [3.0, 1.0, 1.0])
    start = np.random.default_rng(0).uniform([0, 0, 0], [3, 1, 1], (50, 3))
    start[:20][start[:20] < 0.3] = 0.0
    found = optimize.minimise(bowl, start)
    assert found.converged.all()
    np.testing.assert_allclose(found.theta, np.tile([0.0, 0.55, 1.0], (50, 1)), atol=1e-5)


def test_a_step_is_not_ended_by_a_distance_of_the_size_of_rounding():
    rng = np.random.default_rng(0)
    shape = (50, 4)
    root = rng.normal(size=(*shape, 4))
    matrix, right = root @ root.swapaxes(1, 2) + 0.1 * np.eye(4), rng.normal(size=shape)
    highest = np.full(shape, 9.0)
    steps = []
    for gap in (0.0, 1e-18):
        lowest = np.tile([-gap, -gap, -0.5, -9.0], (len(right), 1))
        step = optimize.step_to_first_bound(matrix, right, np.zeros(shape, bool), lowest, highest)
        assert (step >= lowest - 1e-12).all() and (step <= highest + 1e-12).all()
        steps.append(step)
    np.testing.assert_allclose(*steps, atol=1e-12)
    assert np.median(np.abs(steps[1]).max(axis=1)) > 0.01
