"""Bootstraps from the optimum of the whole sample, where all of them have the same residuals.

The first step of each then costs a matrix product (`at_optimum`). On large samples, whose bootstraps stay close to
the optimum, residuals are replaced by their second-order Taylor polynomial there (`Surrogate`), which also costs
matrix products only; `uncertainty.refit` proves on a sample of the members that this is exact enough.
"""

from dataclasses import dataclass

import numpy as np

from analysis.losses import huber
from analysis.problem import Members, Problem, cell_derivatives, threaded


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
