"""Minimising a problem over its parameters within box constraints, for a batch of B problems at once.

`minimise` is a damped Newton method with exact Hessians, which converges from anywhere. `lbfgs` uses gradients alone;
it is for starts near the optimum, where a good approximation of the inverse Hessian is known.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from scipy.linalg.lapack import dposv, dpotrf

from analysis.estimation.problem import Batch, Problem

MAX_RELATIVE_DECREASE = 0.9  # largest part of an exponential parameter's exp(θ) that one step may take away
_MAX_RELATIVE_INCREASE = 1e6  # largest multiple of exp(θ) that one step may add
_LBFGS_MEMORY = 8  # pairs of steps and gradient changes that L-BFGS keeps
_SADDLE_DAMPING = 0.1  # of the majoriser's diagonal, added where the Hessian is indefinite
_CURVATURE_ROUNDING = 1e-9  # of the scaled curvature: what rounding may leave in a flat direction
_NEAR_BOUND = 0.01  # share of a step within which a bound counts as already reached
_ACTIVE_SET_ROUNDS = 8  # times a step is solved again because it passed a bound


@dataclass(frozen=True)
class Minimum:
    """theta (B, P), objective (B,), and whether each problem converged (B,)."""

    theta: np.ndarray
    objective: np.ndarray
    converged: np.ndarray


def minimise(
    problem: Problem,
    theta: np.ndarray,
    batch: Batch | None = None,
    *,
    metric: np.ndarray | None = None,
    damping: float = 0.1,
    iterations: int = 200,
    tolerance: float = 1e-10,
) -> Minimum:
    """Damped Newton (Levenberg-Marquardt) from each row of theta (B, P), within the bounds.

    Args:
      metric: (P, P) matrix that damps the steps of all problems. By default it is the majoriser at the current θ
        (iteratively reweighted Gauss-Newton), which then has to be computed in every step.
      damping: initial multiple of the metric that is added to the exact Hessian. 0 is Newton's method, which converges
        quadratically even where Huber's loss is nearly absolute; above 1 a step descends from anywhere. It adapts to
        the ratio of actual to predicted decrease.
      tolerance: a problem has converged when the decrease that the quadratic model predicts is below this share of
        its objective.
    """
    batch = problem.batch() if batch is None else batch
    lower, upper = problem.lower, problem.upper
    theta = np.clip(theta, lower, upper).astype(float)
    B, P = theta.shape
    f, g, H, M = problem.derivatives(theta, batch, metric is None)
    if metric is not None:
        M = np.broadcast_to(metric, (B, P, P))
    mu = np.full(B, damping)
    converged = np.zeros(B, bool)
    live = np.flatnonzero(np.isfinite(f))
    for _ in range(iterations):
        if not len(live):
            break
        step, predicted = _newton_step(theta[live], g[live], H[live], M[live], mu[live], problem)
        done = (predicted >= 0) & (predicted <= tolerance * np.abs(f[live])) & (mu[live] < 1e3)
        go = np.flatnonzero((predicted > 0) & ~done)
        damping_factor = np.full(len(live), 8.0)
        if len(go):
            at = live[go]
            trial = apply_step(theta[at], step[go], problem)
            parts = problem.derivatives(trial, batch.take(at), metric is None)
            better = parts[0] <= f[at]
            gain = (f[at] - parts[0]) / predicted[go]
            to = at[better]
            theta[to] = trial[better]
            for current, part in zip((f, g, H, M), parts if metric is None else parts[:3], strict=False):
                current[to] = part[better]
            damping_factor[go] = np.select([~better, gain > 0.5, gain > 0.25], [8.0, 0.2, 1.0], 2.0)
        harder = np.maximum(mu[live] * damping_factor, 1e-3)
        eased = np.where(mu[live] < 1e-6, 0.0, mu[live] * damping_factor)
        mu[live] = np.where(damping_factor > 1, harder, eased)
        converged[live[done]] = True
        live = live[~done & (mu[live] < 1e12)]
    return Minimum(theta, f, converged)


def lbfgs(
    problem: Problem,
    theta: np.ndarray,
    batch: Batch,
    precondition: Callable[[np.ndarray, np.ndarray], np.ndarray],
    tolerance: np.ndarray,
    origin: np.ndarray,
    iterations: int = 60,
) -> Minimum:
    """Preconditioned L-BFGS (Nocedal & Wright, algorithm 7.4) from each row of theta (B, P), within the bounds.

    Args:
      precondition: gradients (b, P) of the problems (b,) -> those times an approximate inverse Hessian.
      tolerance: (B,) predicted decrease below which a problem has converged.
      origin: (B, P). Of the exponential parameters (log A) exp(θ − origin) is searched and not θ: the predictions are
        linear in it, so that the objective is nearer to quadratic.
      iterations: after which the rest is left unconverged (for `minimise`).
    """
    (B, P), logs = theta.shape, problem.exponential

    def from_theta(theta: np.ndarray) -> np.ndarray:
        with np.errstate(over="ignore"):
            return np.where(logs, np.exp(np.where(logs, theta - origin, 0.0)), theta)

    def to_theta(x: np.ndarray, which: np.ndarray | slice = slice(None)) -> np.ndarray:
        return np.where(logs, np.log(np.where(logs, x, 1.0)) + origin[which], x)

    def value_and_gradient(x: np.ndarray, which: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        f, g = problem.value_and_gradient(to_theta(x, which), batch.take(which))
        return f, g / np.where(logs, x, 1.0)

    lower, upper = from_theta(problem.lower), from_theta(problem.upper)
    x = from_theta(np.clip(theta, problem.lower, problem.upper).astype(float))

    f, g = value_and_gradient(x, np.arange(B))
    steps, changes = np.zeros((_LBFGS_MEMORY, B, P)), np.zeros((_LBFGS_MEMORY, B, P))
    inverse_curvature = np.zeros((_LBFGS_MEMORY, B))
    size, direction, converged = np.ones(B), np.zeros((B, P)), np.zeros(B, bool)
    live = fresh = np.flatnonzero(np.isfinite(f))  # fresh: problems whose last step was accepted
    for spent in range(iterations + 1):
        fixed = (x[fresh] <= lower[fresh]) & (g[fresh] > 0) | (x[fresh] >= upper[fresh]) & (g[fresh] < 0)
        projected = np.where(fixed, 0.0, g[fresh])
        direction[fresh] = -_two_loop_recursion(
            projected, steps[:, fresh], changes[:, fresh], inverse_curvature[:, fresh], fresh, precondition
        )
        direction[fresh] = np.where(fixed, 0.0, direction[fresh])
        predicted = -0.5 * np.einsum("bi,bi->b", projected, direction[fresh])
        converged[fresh] = (predicted >= 0) & (predicted <= tolerance[fresh])
        live = live[~converged[live] & (size[live] > 1e-4)]
        if not len(live) or spent == iterations:
            break
        trial = np.clip(x[live] + size[live, None] * direction[live], lower[live], upper[live])
        moved = trial - x[live]
        value, gradient = value_and_gradient(trial, live)
        better = value <= f[live] + 1e-4 * np.einsum("bi,bi->b", g[live], moved)  # Armijo's condition
        fresh, moved, changed = live[better], moved[better], (gradient - g[live])[better]
        along = np.einsum("bi,bi->b", moved, changed)
        usable = along > 1e-10 * np.linalg.norm(moved, axis=1) * np.linalg.norm(changed, axis=1)
        kept = fresh[usable]
        histories = (steps, moved[usable]), (changes, changed[usable]), (inverse_curvature, 1 / along[usable])
        for history, new in histories:
            history[:-1, kept] = history[1:, kept]
            history[-1, kept] = new
        x[fresh], f[fresh], g[fresh] = trial[better], value[better], gradient[better]
        size[live] = np.where(better, 1.0, size[live] * 0.3)
    return Minimum(to_theta(x), f, converged)


def _two_loop_recursion(
    g: np.ndarray,
    steps: np.ndarray,
    changes: np.ndarray,
    inverse_curvature: np.ndarray,
    which: np.ndarray,
    precondition: Callable[[np.ndarray, np.ndarray], np.ndarray],
) -> np.ndarray:
    """The L-BFGS inverse Hessian times g (b, P), from the last steps and gradient changes (_LBFGS_MEMORY, b, P)."""
    q, shares = g.copy(), []
    for s, y, c in zip(steps[::-1], changes[::-1], inverse_curvature[::-1], strict=True):
        shares.append(c * np.einsum("bi,bi->b", s, q))
        q -= shares[-1][:, None] * y
    q = precondition(q, which)
    for s, y, c, share in zip(steps, changes, inverse_curvature, shares[::-1], strict=True):
        q += (share - c * np.einsum("bi,bi->b", y, q))[:, None] * s
    return q


def active_bounds(theta: np.ndarray, g: np.ndarray, problem: Problem) -> np.ndarray:
    """(B, P) bool: parameters at a bound beyond which the objective, with gradient g (B, P), would fall."""
    return ((theta <= problem.lower) & (g > 0)) | ((theta >= problem.upper) & (g < 0))


def _newton_step(
    theta: np.ndarray,
    g: np.ndarray,
    H: np.ndarray,
    M: np.ndarray,
    mu: np.ndarray,
    problem: Problem,
) -> tuple[np.ndarray, np.ndarray]:
    """The damped Newton step within the bounds (see `apply_step`), and the decrease its quadratic model predicts.

    The predicted decrease is −1 where there is no descent direction. For exponential parameters the step is in
    exp(θ)/exp(θ now), whose Hessian is that in θ less the gradient.
    """
    fixed = active_bounds(theta, g, problem)
    lowest, highest = problem.lower - theta, problem.upper - theta
    logs = problem.exponential
    H = H.copy()
    np.einsum("bii->bi", H)[:, logs] -= g[:, logs]
    lowest[:, logs] = np.maximum(np.expm1(lowest[:, logs]), -MAX_RELATIVE_DECREASE)
    highest[:, logs] = np.expm1(np.minimum(highest[:, logs], np.log(_MAX_RELATIVE_INCREASE)))
    diagonal = np.einsum("bii->bi", M)
    matrix = H + mu[:, None, None] * M
    # A ridge as small as rounding, so that a flat direction does not pass for negative curvature.
    ridge = (
        1e-12 * np.abs(np.einsum("bii->bi", matrix)).max(axis=1, keepdims=True)
        + _CURVATURE_ROUNDING * diagonal
    )
    np.einsum("bii->bi", matrix)[...] += ridge
    saddle = ~_is_positive_definite(matrix, fixed)
    if saddle.any():
        H = np.where(saddle[:, None, None], M, H)
        matrix[saddle] = M[saddle] * (1.0 + mu[saddle, None, None])
        np.einsum("bii->bi", matrix)[saddle] += (
            _SADDLE_DAMPING * mu[saddle, None] * diagonal[saddle] + ridge[saddle]
        )
    step = _bounded_step(matrix, -g, fixed, lowest, highest)
    bad = ~np.isfinite(step).all(axis=1)
    step[bad] = 0.0
    slope = np.einsum("bi,bi->b", g, step)
    predicted = -slope - 0.5 * np.einsum("bi,bi->b", np.matmul(H, step[:, :, None])[:, :, 0], step)
    return step, np.where((slope <= 0) & ~bad, predicted, -1.0)


def apply_step(theta: np.ndarray, step: np.ndarray, problem: Problem) -> np.ndarray:
    """θ (B, P) after a step, within the bounds. The step is relative, in exp(θ), for exponential parameters."""
    step = step.copy()
    step[:, problem.exponential] = np.log1p(step[:, problem.exponential])
    return np.clip(theta + step, problem.lower, problem.upper)


def _is_positive_definite(matrix: np.ndarray, fixed: np.ndarray) -> np.ndarray:
    """(B,) bool: whether each matrix (B, P, P) is, in the parameters that are not fixed (B, P)."""
    if fixed.any():
        matrix = np.where(~fixed[:, :, None] & ~fixed[:, None, :], matrix, 0.0)
        np.einsum("bii->bi", matrix)[fixed] = 1.0
    return np.array([dpotrf(one, lower=1, clean=0)[1] == 0 for one in matrix], bool)


def _bounded_step(
    matrix: np.ndarray, right: np.ndarray, fixed: np.ndarray, lowest: np.ndarray, highest: np.ndarray
) -> np.ndarray:
    """Steps x (B, P) between lowest and highest that approximately minimise ½·xᵀ·matrix·x − rightᵀ·x.

    Active-set iteration: components that pass a bound are set to it and the others solved again. Where the result
    does not decrease the quadratic, `step_to_first_bound` replaces it. fixed: (B, P) components that stay 0.
    """
    step, active = np.zeros_like(right), fixed.copy()
    again = np.arange(len(right))
    for _ in range(_ACTIVE_SET_ROUNDS):
        found = _solve_with_fixed(matrix[again], right[again], active[again], step[again])
        step[again] = np.clip(found, lowest[again], highest[again])
        passed = ((found < lowest[again]) | (found > highest[again])) & ~active[again]
        active[again] |= passed
        again = again[passed.any(axis=1)]
        if not len(again):
            break
    if (active == fixed).all():
        return step
    increase = np.einsum("bi,bi->b", 0.5 * np.matmul(matrix, step[:, :, None])[:, :, 0] - right, step)
    again = np.flatnonzero(increase > 0)
    if len(again):
        step[again] = step_to_first_bound(
            matrix[again], right[again], fixed[again].copy(), lowest[again], highest[again]
        )
    return step


def step_to_first_bound(
    matrix: np.ndarray, right: np.ndarray, fixed: np.ndarray, lowest: np.ndarray, highest: np.ndarray
) -> np.ndarray:
    """The step towards the solution of matrix·x = right that ends at the first bound, (B, P).

    fixed: (B, P) components that stay 0. A component that is nearly at a bound which it would pass is moved there,
    and the others are solved again. Otherwise a distance of the size of rounding would shorten all steps to nothing,
    and a search far from its optimum would count as converged.
    """
    reached = np.zeros_like(right)
    while True:
        step = _solve_with_fixed(matrix, right, fixed, reached)
        bound = np.where(step < 0, lowest, highest)
        with np.errstate(divide="ignore", invalid="ignore"):
            fraction = np.where((step == 0) | fixed, np.inf, bound / step)
        near = fraction < _NEAR_BOUND
        if not near.any():
            return step * np.clip(fraction.min(axis=1, keepdims=True), 0.0, 1.0)
        reached, fixed = np.where(near, bound, reached), fixed | near


def _solve_with_fixed(matrix: np.ndarray, right: np.ndarray, fixed: np.ndarray, at: np.ndarray) -> np.ndarray:
    """x (B, P) with matrix·x = right in the components that are not fixed (B, P) at the values `at`."""
    if fixed.any():
        right = np.where(fixed, at, right - np.matmul(matrix, (at * fixed)[:, :, None])[:, :, 0])
        matrix = np.where(~fixed[:, :, None] & ~fixed[:, None, :], matrix, 0.0)
        np.einsum("bii->bi", matrix)[fixed] = 1.0
    return _solve(matrix, right)


def _solve(matrix: np.ndarray, right: np.ndarray) -> np.ndarray:
    """x with matrix (B, P, P), symmetric, times x = right (B, P); NaN where the matrix is singular."""
    try:
        return np.linalg.solve(matrix, right[:, :, None])[:, :, 0]
    except np.linalg.LinAlgError:
        solved = [dposv(one, of, lower=1)[1:] for one, of in zip(matrix, right, strict=True)]
        return np.array([np.where(failed, np.nan, x) for x, failed in solved])
