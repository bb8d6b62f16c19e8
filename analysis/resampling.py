"""Bootstraps: groups are resampled and the fit repeated, from the optimum of the whole sample.

There all bootstraps have the same residuals. The first step of each then costs a matrix product (`at_optimum`). On
large samples, whose bootstraps stay close to the optimum, residuals are replaced by their second-order Taylor
polynomial there (`Surrogate`), which also costs matrix products only; `refit` proves on a sample of the members that
this is exact enough.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np

from analysis.derivatives import Jet
from analysis.engine import Minimum, minimise
from analysis.losses import huber
from analysis.objective import threaded
from analysis.problem import Members, Problem

LARGE = 5_000_000  # rows × bootstraps from which the expansion at the optimum is tried
PROOF = 16  # bootstraps that are then worked out exactly too
EXACT = 0.02  # standard deviations that they may differ by


def bootstrap(problem: Problem, theta: np.ndarray, count: int, seed: int) -> np.ndarray:
    """(count, P): the fit repeated on resampled groups, all rows of a group together."""
    return refit(problem, theta, resamples(problem.groups, count, seed)[:, problem.group]).theta


def resamples(groups: int, count: int, seed: int) -> np.ndarray:
    """(count, groups): how often each group is drawn, with replacement."""
    drawn = np.random.default_rng(seed).integers(groups, size=(count, groups))
    drawn += groups * np.arange(count)[:, None]
    return np.bincount(drawn.ravel(), minlength=count * groups).reshape(count, groups).astype(float)


def refit(problem: Problem, theta: np.ndarray, times: np.ndarray) -> Minimum:
    """The optima of problems whose rows count times (B, n) as often, from the optimum theta (P,) of this one.

    On a large sample they are taken from the expansion at theta, if a few of them, worked out exactly, lie within
    `EXACT` standard deviations of the exact ones in every parameter; else all are polished exactly.
    """
    *first, metric = at_optimum(problem, theta, times)
    start = np.tile(theta, (len(times), 1))
    if times.size >= LARGE:
        close = minimise(
            Surrogate(problem, theta),  # type: ignore[arg-type]
            start,
            problem.members(times=times),
            metric=metric,
            first=tuple(first),
            damping=0.0,
            tolerance=1e-9,
            iterations=30,
        )
        proof = _polish(problem, close.theta[:PROOF], times[:PROOF], metric, None)
        away = np.abs(proof.theta - close.theta[:PROOF]).max(axis=0)
        if (away <= EXACT * np.std(close.theta, axis=0) + 1e-12).all():
            close.theta[:PROOF], close.objective[:PROOF] = proof.theta, proof.objective
            return close
        feasible = problem.constraint(close.theta).min(axis=1) > 0 if problem.law.constraint else True
        start = np.where(np.reshape(feasible, (-1, 1)), close.theta, start)
        return _polish(problem, start, times, metric, None)
    return _polish(problem, start, times, metric, tuple(first))


def _polish(
    problem: Problem, start: np.ndarray, times: np.ndarray, metric: np.ndarray, first: tuple | None
) -> Minimum:
    members = problem.members(times=times)
    return minimise(
        problem, start, members, metric=metric, first=first, damping=0.2, tolerance=1e-8, iterations=200
    )


def at_optimum(problem: Problem, theta: np.ndarray, times: np.ndarray) -> tuple[np.ndarray, ...]:
    """Objective (B,), gradient (B, P), Hessian (B, P, P) at theta (P,), and the majoriser (P, P) of the whole sample.

    times (B, n): how often a row counts. Only for problems without noise that groups share.
    """
    B = len(times)
    whole = problem.system(theta[None], problem.members())
    f, g, H = (np.repeat(part, B, axis=0) for part in whole[:3])
    for number, cell in enumerate(problem.cells):
        kept, r, J, K = cell_derivatives(problem, theta, number)
        S = cell.select[kept]
        columns = np.flatnonzero(S.any(axis=0))
        S = S[:, columns]
        i, j = np.triu_indices(len(kept))
        rho, psi, steep, _ = huber(r, problem.delta, False)
        curved = psi * K + (J[i] * J[j] if steep is None else steep * (J[i] * J[j]))
        rows = np.concatenate([rho[None], psi * J, curved]) * problem.weight[cell.rows]
        sums = (times[:, cell.rows] - 1.0) @ rows.T
        k = len(kept)
        full = np.empty((B, k, k))
        full[:, i, j] = full[:, j, i] = sums[:, 1 + k :]
        f += sums[:, 0]
        g[:, columns] += sums[:, 1 : 1 + k] @ S
        H[np.ix_(np.arange(B), columns, columns)] += S.T @ full @ S
    return f, g, H, whole[3][0]


@dataclass(frozen=True)
class Expansion:
    """A cell's residuals r0 + F·[d, d_i·d_j (i <= j)] in its local parameters d = (θ − θ̂)[columns]·Sᵀ.

    S (k, columns); r0 (n,); F (k + m, n); JJ (m, n), the products of the slopes.
    """

    rows: slice
    columns: np.ndarray
    S: np.ndarray
    r0: np.ndarray
    F: np.ndarray
    JJ: np.ndarray


class Surrogate:
    """What `engine.minimise` asks of a problem, of one whose residuals are expanded about theta (P,).

    The Hessian leaves out how the slopes change, so that steps converge fast but not quadratically.
    """

    exponential = None

    def __init__(self, problem: Problem, theta: np.ndarray):
        self.problem, self.theta = problem, theta
        self.lower, self.upper = problem.lower, problem.upper
        self.expansions = [_expand(problem, theta, number) for number in range(len(problem.cells))]

    def system(self, theta: np.ndarray, members: Members, majorise: bool = False) -> tuple[np.ndarray, ...]:
        def run(part: np.ndarray, of: Members) -> tuple[np.ndarray, ...]:
            return self._system(part, of)

        return threaded(run, theta, members, self.problem.block)

    def _system(self, theta: np.ndarray, members: Members) -> tuple[np.ndarray, ...]:
        B, P = theta.shape
        f, g, H = np.zeros(B), np.zeros((B, P)), np.zeros((B, P, P))
        for e in self.expansions:
            k = len(e.S)
            i, j = np.triu_indices(k)
            w = members.times[:, e.rows] * self.problem.weight[e.rows]
            d = (theta - self.theta)[:, e.columns] @ e.S.T
            r = np.concatenate([d, d[:, i] * d[:, j]], axis=1) @ e.F
            r += e.r0
            rho, psi, steep, _ = huber(r, self.problem.delta, False)
            f += np.einsum("bn,bn->b", np.broadcast_to(w, r.shape), rho)
            pulled = (w * psi) @ e.F.T
            curved = _symmetric(pulled[:, k:] * np.where(i == j, 2.0, 1.0), i, j, k)
            steep = np.broadcast_to(w, r.shape) if steep is None else w * steep
            g[:, e.columns] += (pulled[:, :k] + np.einsum("bij,bj->bi", curved, d)) @ e.S
            curved += _symmetric(steep @ e.JJ.T, i, j, k)
            H[np.ix_(np.arange(B), e.columns, e.columns)] += e.S.T @ curved @ e.S
        if self.problem.prior is not None:
            mean, precision = self.problem.prior
            f += 0.5 * ((theta - mean) ** 2 * precision).sum(axis=1)
            g += (theta - mean) * precision
            H += np.diag(precision)
        return f, g, H, np.zeros((B, 1, 1))


def _symmetric(packed: np.ndarray, i: np.ndarray, j: np.ndarray, k: int) -> np.ndarray:
    """(B, m) entries i <= j -> (B, k, k)."""
    full = np.empty((len(packed), k, k))
    full[:, i, j] = full[:, j, i] = packed
    return full


def _expand(problem: Problem, theta: np.ndarray, number: int) -> Expansion:
    cell = problem.cells[number]
    kept, r0, J, K = cell_derivatives(problem, theta, number)
    S = cell.select[kept]
    columns = np.flatnonzero(S.any(axis=0))
    i, j = np.triu_indices(len(kept))
    K[i == j] *= 0.5
    return Expansion(cell.rows, columns, S[:, columns], r0, np.concatenate([J, K]), J[i] * J[j])


def cell_derivatives(problem: Problem, theta: np.ndarray, number: int) -> tuple[np.ndarray, ...]:
    """A cell's residuals r (n,), slopes J (k, n) and curvatures (k(k+1)/2, n; pairs i <= j) at theta (P,).

    In the local parameters that are fitted in the cell, whose indices come first: (k,).
    """
    cell = problem.cells[number]
    kept = np.flatnonzero(cell.free)
    y = problem.y[cell.rows]
    out: Any = problem.law.predict(
        problem.jets(problem.locals(theta[None], cell), cell.free, 2), problem.variables(cell)
    )
    if not isinstance(out, Jet):
        out = Jet(out, {}, {})
    if problem.law.residual == "log":
        out = out.map(np.log(out.value), 1.0 / out.value, -1.0 / out.value**2)
    r = np.broadcast_to(out.value, (1, len(y)))[0] - (np.log(y) if problem.law.residual == "log" else y)
    i, j = np.triu_indices(len(kept))
    J, K = np.zeros((len(kept), len(y))), np.zeros((len(i), len(y)))
    for position, index in enumerate(kept):
        J[position] = out.grad.get(int(index), 0.0)
    for position, (a, b) in enumerate(zip(kept[i], kept[j], strict=True)):
        K[position] = (out.hess or {}).get((int(a), int(b)), 0.0)
    return kept, r, J, K
