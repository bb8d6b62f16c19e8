"""Minimising a problem over its parameters, batched over starts, bootstraps, profile points.

Damped Newton gets there from anywhere; `settle` takes the way from a point nearby, for which a good guess of the
inverse Hessian is known, with gradients alone.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from scipy.linalg.lapack import dposv, dpotrf

from analysis.estimation.problem import Batch, Problem

_LBFGS_MEMORY = 8  # steps that L-BFGS remembers
_SADDLE_DAMPING = 0.1  # of the majoriser, in the damping where the Hessian has a saddle
MAX_RELATIVE_DECREASE = 0.9  # of what is fitted as a logarithm, that a step may take away
_MAX_RELATIVE_INCREASE = 1e6  # times what it was, that a step may add
LARGE_PROBLEM = 40  # parameters from which a step is tried before its Hessian is worked out
_CURVATURE_ROUNDING = 1e-9  # of the scaled curvature, that a flat direction may seem to have
_NEAR_BOUND = 0.01  # share of a step after which a bound ends it, where the bound is taken to be reached already
_ACTIVE_SET_ROUNDS = 8  # times a step is worked out again because it passed a bound


@dataclass(frozen=True)
class Minimum:
    """theta (B, P), objective (B,), whether each member converged (B,), and the iterations spent."""

    theta: np.ndarray
    objective: np.ndarray
    converged: np.ndarray
    iterations: int


def minimise(
    problem: Problem,
    theta: np.ndarray,
    members: Batch | None = None,
    *,
    metric: np.ndarray | None = None,
    first: tuple[np.ndarray, ...] | None = None,
    damping: float = 0.1,
    iterations: int = 200,
    tolerance: float = 1e-10,
) -> Minimum:
    """Damped Newton from each row of theta (B, P), within the bounds.

    The damping adds a multiple of the majoriser (iteratively reweighted Gauss-Newton) to the exact Hessian.
    At 0 it is Newton, which converges quadratically even where Huber's loss is nearly absolute; above 1 a
    step descends from anywhere. `metric` (P, P) damps instead of the majoriser of every step, which is then
    not worked out; `first` are objective, gradient and Hessian of every member at theta, where they are known
    already. Stops a member when the decrease that the quadratic model promises is below `tolerance` of its objective.
    """
    members = problem.members() if members is None else members
    lower, upper = problem.lower, problem.upper
    theta = np.clip(theta, lower, upper).astype(float)
    B, P = theta.shape
    if metric is None:
        f, g, H, M = problem.system(theta, members, damping > 0)
    else:
        f, g, H = first or problem.system(theta, members, False)[:3]
        M = np.broadcast_to(metric, (B, P, P))
    known = np.full(
        B, damping > 0 or metric is not None
    )  # whose majoriser is at hand; pure Newton does without
    mu = np.full(B, damping)
    converged = np.zeros(B, bool)
    live = np.flatnonzero(np.isfinite(f))
    spent = 0
    while len(live) and spent < iterations:
        spent += 1
        lacking = live[(mu[live] > 0) & ~known[live]]
        if len(lacking):
            M[lacking] = problem.system(theta[lacking], members.take(lacking))[3]
            known[lacking] = True
        step, promised = _step(theta[live], g[live], H[live], M[live], mu[live], problem)
        settled = (promised >= 0) & (promised <= tolerance * np.abs(f[live])) & (mu[live] < 1e3)
        go = np.flatnonzero((promised > 0) & ~settled)
        ease = np.full(len(live), 8.0)
        if len(go):
            at = live[go]
            trial = apply_step(theta[at], step[go], problem)
            majorise = metric is None and bool((mu[at] >= 1e-6).any())
            # Near the optimum (a metric is known) few steps lead up, and small Hessians cost little.
            tried = problem.value(trial, members.take(at)) if metric is None and P >= LARGE_PROBLEM else None
            down = slice(None) if tried is None else tried <= f[at]
            parts = problem.system(trial[down], members.take(at[down]), majorise)
            value = parts[0] if tried is None else tried
            better = value <= f[at]
            gain = (f[at] - value) / promised[go]
            to = at[better]
            theta[to] = trial[better]
            for known_part, part in zip((f, g, H, M), parts if metric is None else parts[:3], strict=False):
                known_part[to] = part[better] if tried is None else part
            if metric is None:
                known[to] = majorise
            # Where the model promised far more than was gained, it is trusted less.
            ease[go] = np.select([~better, gain > 0.5, gain > 0.25], [8.0, 0.2, 1.0], 2.0)
        harder = np.maximum(mu[live] * ease, 1e-3)
        mu[live] = np.where(ease > 1, harder, np.where(mu[live] < 1e-6, 0.0, mu[live] * ease))
        converged[live[settled]] = True
        live = live[~settled & (mu[live] < 1e12)]
    return Minimum(theta, f, converged, spent)


def lbfgs(
    problem: Problem,
    theta: np.ndarray,
    members: Batch,
    precondition: Callable[[np.ndarray, np.ndarray], np.ndarray],
    enough: np.ndarray,
    iterations: int = 60,
    origin: np.ndarray | None = None,
) -> Minimum:
    """L-BFGS (Nocedal & Wright, algorithm 7.4) from each row of theta (B, P), within the bounds.

    precondition: gradients (b, P) of the members at (b,) -> about H⁻¹ of them. Stops a member when the decrease that is
    promised is below enough (B,); what has not converged after the iterations is for `minimise`. With an origin (B, P)
    logarithms are searched as what they are of, over what it is there, in which predictions are straight.
    """
    B, P = theta.shape
    logs = np.zeros(P, bool) if origin is None or problem.exponential is None else problem.exponential
    chart = _Chart(logs, np.zeros((B, P)) if origin is None else origin)
    x = chart.into(np.clip(theta, problem.lower, problem.upper).astype(float))
    lower, upper = (chart.into(np.broadcast_to(end, (B, P))) for end in (problem.lower, problem.upper))

    def slope(x: np.ndarray, which: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        f, g = problem.slope(chart.out(x, which), members.take(which))
        return f, g / np.where(logs, x, 1.0)

    f, g = slope(x, np.arange(B))
    steps, turns, curvature = np.zeros((_LBFGS_MEMORY, B, P)), np.zeros((_LBFGS_MEMORY, B, P)), np.zeros((_LBFGS_MEMORY, B))
    size, direction, converged = np.ones(B), np.zeros((B, P)), np.zeros(B, bool)
    live = fresh = np.flatnonzero(np.isfinite(f))
    spent = 0
    while True:
        still = (x[fresh] <= lower[fresh]) & (g[fresh] > 0) | (x[fresh] >= upper[fresh]) & (g[fresh] < 0)
        downhill = np.where(still, 0.0, g[fresh])
        direction[fresh] = -_two_loops(
            downhill, steps[:, fresh], turns[:, fresh], curvature[:, fresh], fresh, precondition
        )
        direction[fresh] = np.where(still, 0.0, direction[fresh])
        promised = -0.5 * np.einsum("bi,bi->b", downhill, direction[fresh])
        converged[fresh] = (promised >= 0) & (promised <= enough[fresh])
        live = live[~converged[live] & (size[live] > 1e-4)]
        if not len(live) or spent == iterations:
            return Minimum(chart.out(x), f, converged, spent)
        spent += 1
        trial = np.clip(x[live] + size[live, None] * direction[live], lower[live], upper[live])
        moved = trial - x[live]
        value, gradient = slope(trial, live)
        better = value <= f[live] + 1e-4 * np.einsum("bi,bi->b", g[live], moved)
        fresh, moved, turned = live[better], moved[better], (gradient - g[live])[better]
        along = np.einsum("bi,bi->b", moved, turned)
        usable = along > 1e-10 * np.linalg.norm(moved, axis=1) * np.linalg.norm(turned, axis=1)
        kept = fresh[usable]
        for history, new in ((steps, moved[usable]), (turns, turned[usable]), (curvature, 1 / along[usable])):
            history[:-1, kept] = history[1:, kept]
            history[-1, kept] = new
        x[fresh], f[fresh], g[fresh] = trial[better], value[better], gradient[better]
        size[live] = np.where(better, 1.0, size[live] * 0.3)


@dataclass(frozen=True)
class _Chart:
    """θ (b, P) of members which as x: exp(θ − origin) of what is fitted as a logarithm, and θ itself of the rest."""

    logs: np.ndarray
    origin: np.ndarray

    def into(self, theta: np.ndarray, which: np.ndarray | slice = slice(None)) -> np.ndarray:
        with np.errstate(over="ignore"):
            return np.where(self.logs, np.exp(np.where(self.logs, theta - self.origin[which], 0.0)), theta)

    def out(self, x: np.ndarray, which: np.ndarray | slice = slice(None)) -> np.ndarray:
        return np.where(self.logs, np.log(np.where(self.logs, x, 1.0)) + self.origin[which], x)


def _two_loops(
    slope: np.ndarray,
    steps: np.ndarray,
    turns: np.ndarray,
    curvature: np.ndarray,
    which: np.ndarray,
    precondition: Callable,
) -> np.ndarray:
    """The inverse Hessian that the last steps and turns of the gradient (PAIRS, b, P) suggest, times slope (b, P)."""
    q, shares = slope.copy(), []
    for s, y, c in zip(steps[::-1], turns[::-1], curvature[::-1], strict=True):
        shares.append(c * np.einsum("bi,bi->b", s, q))
        q -= shares[-1][:, None] * y
    q = precondition(q, which)
    for s, y, c, share in zip(steps, turns, curvature, shares[::-1], strict=True):
        q += (share - c * np.einsum("bi,bi->b", y, q))[:, None] * s
    return q


def active_bounds(theta: np.ndarray, g: np.ndarray, problem: Problem) -> np.ndarray:
    """(B, P) bool: at a bound, beyond which the objective would fall."""
    return ((theta <= problem.lower) & (g > 0)) | ((theta >= problem.upper) & (g < 0))


def _step(
    theta: np.ndarray,
    g: np.ndarray,
    H: np.ndarray,
    M: np.ndarray,
    mu: np.ndarray,
    problem: Problem,
) -> tuple[np.ndarray, np.ndarray]:
    """The damped Newton step within the bounds, and the decrease its quadratic model promises."""
    still = active_bounds(theta, g, problem)
    lowest, highest = problem.lower - theta, problem.upper - theta
    if (logs := problem.exponential) is not None:
        H = H.copy()
        np.einsum("bii->bi", H)[:, logs] -= g[:, logs]
        lowest[:, logs] = np.maximum(np.expm1(lowest[:, logs]), -MAX_RELATIVE_DECREASE)
        highest[:, logs] = np.expm1(np.minimum(highest[:, logs], np.log(_MAX_RELATIVE_INCREASE)))
    diagonal = np.einsum("bii->bi", M)
    matrix = H + mu[:, None, None] * M
    ridge = 1e-12 * np.abs(np.einsum("bii->bi", matrix)).max(axis=1, keepdims=True) + _CURVATURE_ROUNDING * diagonal
    np.einsum("bii->bi", matrix)[...] += ridge  # flat directions are no saddles
    saddle = ~_positive(matrix, still)
    if saddle.any():
        H = np.where(saddle[:, None, None], M, H)
        matrix[saddle] = M[saddle] * (1.0 + mu[saddle, None, None])
        np.einsum("bii->bi", matrix)[saddle] += _SADDLE_DAMPING * mu[saddle, None] * diagonal[saddle] + ridge[saddle]
    step = _within(matrix, -g, still, lowest, highest)
    bad = ~np.isfinite(step).all(axis=1)
    step[bad] = 0.0
    slope = np.einsum("bi,bi->b", g, step)
    promised = -slope - 0.5 * np.einsum("bi,bi->b", np.matmul(H, step[:, :, None])[:, :, 0], step)
    return step, np.where((slope <= 0) & ~bad, promised, -1.0)


def apply_step(theta: np.ndarray, step: np.ndarray, problem: Problem) -> np.ndarray:
    """θ (B, P) after a step, which is relative in what is fitted as a logarithm, within the bounds."""
    if problem.exponential is not None:
        step = step.copy()
        step[:, problem.exponential] = np.log1p(step[:, problem.exponential])
    return np.clip(theta + step, problem.lower, problem.upper)


def _positive(matrix: np.ndarray, still: np.ndarray) -> np.ndarray:
    """(B,) bool: whether what may move of each matrix (B, P, P) is positive definite."""
    if still.any():
        matrix = np.where(~still[:, :, None] & ~still[:, None, :], matrix, 0.0)
        np.einsum("bii->bi", matrix)[still] = 1.0
    if matrix.shape[1] >= LARGE_PROBLEM:
        return np.array([dpotrf(one, lower=1, clean=0)[1] == 0 for one in matrix], bool)
    try:
        np.linalg.cholesky(matrix)
    except np.linalg.LinAlgError:
        if len(matrix) == 1:
            return np.zeros(1, bool)
        half = len(matrix) // 2
        return np.concatenate([_positive(part, np.zeros(0)) for part in (matrix[:half], matrix[half:])])
    return np.ones(len(matrix), bool)


def _within(
    matrix: np.ndarray, right: np.ndarray, still: np.ndarray, lowest: np.ndarray, highest: np.ndarray
) -> np.ndarray:
    """Steps x (B, P) with matrix·x = right (B, P) in what does not keep still and reaches neither bound (B, P).

    What would pass a bound stops there, and the rest is solved again: it moves with them. Where that leads up, all
    move until the first bound.
    """
    step, keeps = np.zeros_like(right), still.copy()
    again = np.arange(len(right))
    for _ in range(_ACTIVE_SET_ROUNDS):
        found = _solve_but(matrix[again], right[again], keeps[again], step[again])
        step[again] = np.clip(found, lowest[again], highest[again])
        passed = ((found < lowest[again]) | (found > highest[again])) & ~keeps[again]
        keeps[again] |= passed
        again = again[passed.any(axis=1)]
        if not len(again):
            break
    if (keeps == still).all():
        return step
    up = np.einsum("bi,bi->b", 0.5 * np.matmul(matrix, step[:, :, None])[:, :, 0] - right, step)
    again = np.flatnonzero(up > 0)
    if len(again):
        step[again] = step_to_first_bound(
            matrix[again], right[again], still[again].copy(), lowest[again], highest[again]
        )
    return step


def step_to_first_bound(
    matrix: np.ndarray, right: np.ndarray, still: np.ndarray, lowest: np.ndarray, highest: np.ndarray
) -> np.ndarray:
    """The step towards matrix·x = right that ends at the first bound.

    What is nearly at one that it would pass goes there, and the rest is solved again: otherwise a distance that is
    only rounding would end all steps, and a search far from its optimum would seem to have settled.
    """
    goes = np.zeros_like(right)
    while True:
        step = _solve_but(matrix, right, still, goes)
        bound = np.where(step < 0, lowest, highest)
        with np.errstate(divide="ignore", invalid="ignore"):
            room = np.where((step == 0) | still, np.inf, bound / step)
        out = room < _NEAR_BOUND
        if not out.any():
            return step * np.clip(room.min(axis=1, keepdims=True), 0.0, 1.0)
        goes, still = np.where(out, bound, goes), still | out


def _solve_but(matrix: np.ndarray, right: np.ndarray, fixed: np.ndarray, at: np.ndarray) -> np.ndarray:
    """x (B, P) with matrix·x = right, but for what is fixed (B, P) at a value."""
    if fixed.any():
        right = np.where(fixed, at, right - np.matmul(matrix, (at * fixed)[:, :, None])[:, :, 0])
        matrix = np.where(~fixed[:, :, None] & ~fixed[:, None, :], matrix, 0.0)
        np.einsum("bii->bi", matrix)[fixed] = 1.0
    return solve(matrix, right)


def solve(matrix: np.ndarray, right: np.ndarray) -> np.ndarray:
    """Solves (B, P, P) x = (B, P), symmetric; rows that are singular come back as NaN."""
    if matrix.shape[1] >= LARGE_PROBLEM:
        found = [dposv(one, of, lower=1)[1:] for one, of in zip(matrix, right, strict=True)]
        if all(failed == 0 for _, failed in found):
            return np.array([x for x, _ in found])
    try:
        return np.linalg.solve(matrix, right[:, :, None])[:, :, 0]
    except np.linalg.LinAlgError:
        result = np.full_like(right, np.nan)
        for b in range(len(matrix)):
            try:
                result[b] = np.linalg.solve(matrix[b], right[b])
            except np.linalg.LinAlgError:
                continue
        return result
