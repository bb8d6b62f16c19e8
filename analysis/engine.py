"""Minimising a problem over its parameters, batched over starts, bootstraps, profile points.

Damped Newton gets there from anywhere; `settle` takes the way from a point nearby, for which a good guess of the
inverse Hessian is known, with gradients alone.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from analysis.problem import Members, Problem

PAIRS = 8  # steps that L-BFGS remembers
DIAGONAL = 0.1  # of the majoriser, in the damping where the Hessian has a saddle
ROUNDING = 1e-9  # of the scaled curvature, that a flat direction may seem to have
ACTIVE = 8  # times a step is worked out again because it passed a bound


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
    members: Members | None = None,
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
            trial = np.clip(theta[at] + step[go], lower, upper)
            majorise = metric is None and bool((mu[at] >= 1e-6).any())
            parts = problem.system(trial, members.take(at), majorise)
            better = parts[0] <= f[at]
            gain = (f[at] - parts[0]) / promised[go]
            to = at[better]
            theta[to], f[to] = trial[better], parts[0][better]
            g[to], H[to] = parts[1][better], parts[2][better]
            if metric is None:
                M[to] = parts[3][better]
                known[to] = majorise
            # Where the model promised far more than was gained, it is trusted less.
            ease[go] = np.select([~better, gain > 0.5, gain > 0.25], [8.0, 0.2, 1.0], 2.0)
        harder = np.maximum(mu[live] * ease, 1e-3)
        mu[live] = np.where(ease > 1, harder, np.where(mu[live] < 1e-6, 0.0, mu[live] * ease))
        converged[live[settled]] = True
        live = live[~settled & (mu[live] < 1e12)]
    return Minimum(theta, f, converged, spent)


def settle(
    problem: Problem,
    theta: np.ndarray,
    members: Members,
    precondition: Callable[[np.ndarray, np.ndarray], np.ndarray],
    enough: np.ndarray,
    iterations: int = 60,
) -> Minimum:
    """L-BFGS (Nocedal & Wright, algorithm 7.4) from each row of theta (B, P), within the bounds.

    precondition: gradients (b, P) of the members at (b,) -> about H⁻¹ of them. Stops a member when the decrease that is
    promised is below enough (B,); what has not converged after the iterations is for `minimise`.
    """
    theta = np.clip(theta, problem.lower, problem.upper).astype(float)
    f, g = problem.slope(theta, members)
    B, P = theta.shape
    steps, turns, curvature = np.zeros((PAIRS, B, P)), np.zeros((PAIRS, B, P)), np.zeros((PAIRS, B))
    size, direction, converged = np.ones(B), np.zeros((B, P)), np.zeros(B, bool)
    live = fresh = np.flatnonzero(np.isfinite(f))
    spent = 0
    while True:
        still = held(theta[fresh], g[fresh], problem)
        slope = np.where(still, 0.0, g[fresh])
        direction[fresh] = -_two_loops(
            slope, steps[:, fresh], turns[:, fresh], curvature[:, fresh], fresh, precondition
        )
        direction[fresh] = np.where(still, 0.0, direction[fresh])
        promised = -0.5 * np.einsum("bi,bi->b", slope, direction[fresh])
        converged[fresh] = (promised >= 0) & (promised <= enough[fresh])
        live = live[~converged[live] & (size[live] > 1e-4)]
        if not len(live) or spent == iterations:
            return Minimum(theta, f, converged, spent)
        spent += 1
        trial = np.clip(theta[live] + size[live, None] * direction[live], problem.lower, problem.upper)
        moved = trial - theta[live]
        value, gradient = problem.slope(trial, members.take(live))
        better = value <= f[live] + 1e-4 * np.einsum("bi,bi->b", g[live], moved)
        fresh, moved, turned = live[better], moved[better], (gradient - g[live])[better]
        along = np.einsum("bi,bi->b", moved, turned)
        usable = along > 1e-10 * np.linalg.norm(moved, axis=1) * np.linalg.norm(turned, axis=1)
        kept = fresh[usable]
        for history, new in ((steps, moved[usable]), (turns, turned[usable]), (curvature, 1 / along[usable])):
            history[:-1, kept] = history[1:, kept]
            history[-1, kept] = new
        theta[fresh], f[fresh], g[fresh] = trial[better], value[better], gradient[better]
        size[live] = np.where(better, 1.0, size[live] * 0.3)


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


def held(theta: np.ndarray, g: np.ndarray, problem: Problem) -> np.ndarray:
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
    still = held(theta, g, problem)
    matrix = _convex(H, M, mu, still)
    diagonal = np.einsum("bii->bi", matrix)
    diagonal += 1e-12 * np.abs(diagonal).max(axis=1, keepdims=True)
    step = _within(matrix, -g, still, problem.lower - theta, problem.upper - theta)
    bad = ~np.isfinite(step).all(axis=1)
    step[bad] = 0.0
    slope = np.einsum("bi,bi->b", g, step)
    promised = -slope - 0.5 * np.einsum("bi,bi->b", np.matmul(H, step[:, :, None])[:, :, 0], step)
    return step, np.where((slope <= 0) & ~bad, promised, -1.0)


def _convex(H: np.ndarray, M: np.ndarray, mu: np.ndarray, still: np.ndarray) -> np.ndarray:
    """H + mu·M (B, P, P), or where that has no minimum in what may move, H with its curvature made positive.

    There the majoriser, which may be flat in the same directions, damps together with a share of its diagonal.
    """
    matrix = H + mu[:, None, None] * M
    together = ~still[:, :, None] & ~still[:, None, :] | np.eye(still.shape[1], dtype=bool)
    scale = np.sqrt(np.maximum(np.einsum("bii->bi", M), 1e-300))
    both = scale[:, :, None] * scale[:, None, :]
    inner = np.where(together, matrix, 0.0) / both
    np.einsum("bii->bi", inner)[still] = 1.0
    np.einsum("bii->bi", inner)[...] += ROUNDING  # flat directions are no saddles
    if _positive(inner):
        return matrix
    saddle = np.array([b for b in range(len(inner)) if not _positive(inner[b])], int)
    eigen, vectors = np.linalg.eigh(np.where(together[saddle], H[saddle], 0.0) / both[saddle])
    eigen = np.maximum(np.abs(eigen), 1e-8 * eigen[:, -1:])
    damped = M[saddle] / both[saddle] + DIAGONAL * np.eye(still.shape[1])
    curved = (vectors * eigen[:, None]) @ vectors.swapaxes(1, 2) + mu[saddle, None, None] * damped
    matrix[saddle] = curved * both[saddle]
    return matrix


def _positive(matrix: np.ndarray) -> bool:
    """Whether a matrix, or all of a batch, is positive definite."""
    try:
        np.linalg.cholesky(matrix)
    except np.linalg.LinAlgError:
        return False
    return True


def _within(
    matrix: np.ndarray, right: np.ndarray, still: np.ndarray, lowest: np.ndarray, highest: np.ndarray
) -> np.ndarray:
    """Steps x (B, P) with matrix·x = right (B, P) in what does not keep still and reaches neither bound (B, P).

    What would pass a bound stops there, and the rest is solved again: it moves with them.
    """
    step = np.zeros_like(right)
    still = still.copy()
    again = np.arange(len(right))
    for _ in range(ACTIVE):
        A, b, fixed = matrix[again], right[again], still[again]
        if fixed.any():
            b = np.where(fixed, step[again], b - np.matmul(A, (step[again] * fixed)[:, :, None])[:, :, 0])
            A *= ~fixed[:, :, None] & ~fixed[:, None, :]
            np.einsum("bii->bi", A)[fixed] = 1.0
        found = solve(A, b)
        step[again] = np.clip(found, lowest[again], highest[again])
        passed = ((found < lowest[again]) | (found > highest[again])) & ~fixed
        still[again] |= passed
        again = again[passed.any(axis=1)]
        if not len(again):
            break
    return step


def solve(matrix: np.ndarray, right: np.ndarray) -> np.ndarray:
    """Solves (B, P, P) x = (B, P); rows that are singular come back as NaN."""
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
