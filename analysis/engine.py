"""Minimising a problem over its parameters: damped Newton, batched over starts, bootstraps, profile points."""

from dataclasses import dataclass

import numpy as np

from analysis.problem import Members, Problem


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
        step, promised = _step(theta[live], g[live], H[live], M[live], mu[live], lower, upper)
        settled = (promised >= 0) & (promised <= tolerance * np.abs(f[live])) & (mu[live] < 1e3)
        go = np.flatnonzero((promised > 0) & ~settled)
        improved = np.zeros(len(live), bool)
        if len(go):
            at = live[go]
            trial = np.clip(theta[at] + step[go], lower, upper)
            majorise = metric is None and bool((mu[at] >= 1e-6).any())
            parts = problem.system(trial, members.take(at), majorise)
            better = parts[0] <= f[at]
            to = at[better]
            theta[to], f[to] = trial[better], parts[0][better]
            g[to], H[to] = parts[1][better], parts[2][better]
            if metric is None:
                M[to] = parts[3][better]
                known[to] = majorise
            improved[go[better]] = True
        eased = np.where(mu[live] < 1e-6, 0.0, mu[live] * 0.1)
        mu[live] = np.where(improved, eased, np.maximum(mu[live] * 8.0, 1e-3))
        converged[live[settled]] = True
        live = live[~settled & (mu[live] < 1e12)]
    return Minimum(theta, f, converged, spent)


def _step(
    theta: np.ndarray,
    g: np.ndarray,
    H: np.ndarray,
    M: np.ndarray,
    mu: np.ndarray,
    lower: np.ndarray,
    upper: np.ndarray,
) -> tuple[np.ndarray, np.ndarray]:
    """The damped Newton step within the bounds, and the decrease its quadratic model promises."""
    frozen = ((theta <= lower) & (g > 0)) | ((theta >= upper) & (g < 0))
    matrix = H + mu[:, None, None] * M
    diagonal = np.einsum("bii->bi", matrix)
    diagonal += 1e-12 * np.abs(diagonal).max(axis=1, keepdims=True)
    right = np.where(frozen, 0.0, -g)
    if frozen.any():
        moving = ~frozen
        matrix *= moving[:, :, None] & moving[:, None, :]
        diagonal[frozen] = 1.0
    step = solve(matrix, right)
    bad = ~np.isfinite(step).all(axis=1)
    step[bad] = 0.0
    # Stop at the bounds, so that the promise is about the step that is taken.
    clipped = np.clip(theta + step, lower, upper) - theta
    promised = -np.einsum("bi,bi->b", g, clipped) - 0.5 * np.einsum(
        "bi,bij,bj->b", clipped, np.where(frozen[:, :, None] | frozen[:, None, :], 0.0, H), clipped
    )
    downhill = np.einsum("bi,bi->b", g, clipped) <= 0
    promised = np.where(downhill & ~bad, promised, -1.0)
    return clipped, promised


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
