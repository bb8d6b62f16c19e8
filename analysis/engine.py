"""Minimising a robust loss over a law's parameters: exact derivatives, second order, batched over problems.

The batch runs over starts, bootstraps and profile points alike: `theta` is (B, P), the weights (B, n). Rows are
grouped in cells (a language) within which every parameter of the law is one number, so that all arithmetic is
on (B, rows) blocks and a cell touches only its own columns of the Hessian.
"""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

import numpy as np

from analysis.derivatives import Jet, value_of
from analysis.laws.law import Law

BLOCK = 1 << 15  # elements of a (B, rows) block: small enough for its temporaries to stay in the cache
THREADS = 2


@dataclass(frozen=True)
class Cell:
    """Rows with the same parameters: local = theta @ select.T + offset, (k,) in the fitted (log) scale."""

    rows: slice
    select: np.ndarray  # (k, P)
    offset: np.ndarray  # (k,)


@dataclass(frozen=True)
class Problem:
    """A law over data. Shapes: n rows (sorted by cell), k parameters of the law, P parameters fitted.

    `delta` is Huber's threshold on the residuals, None for least squares. `shift` (k, k): what the reference
    (geometric mean) adds to a log parameter per unit of the others. `prior` is (mean (P,), precision (P,)).
    """

    law: Law
    x: dict[str, np.ndarray]
    y: np.ndarray
    weight: np.ndarray
    cells: tuple[Cell, ...]
    lower: np.ndarray
    upper: np.ndarray
    delta: float | None
    shift: np.ndarray
    logs: np.ndarray  # (k,) bool
    prior: tuple[np.ndarray, np.ndarray] | None = None
    barrier: float = 0.0
    held: dict[str, Any] = field(default_factory=dict)

    @property
    def size(self) -> int:
        return len(self.lower)

    def locals(self, theta: np.ndarray, cell: Cell) -> np.ndarray:
        return theta @ cell.select.T + cell.offset

    def natural(self, local: np.ndarray) -> np.ndarray:
        """Local parameters (..., k) in the units of the paper."""
        shifted = local + local @ self.shift.T
        return np.where(self.logs, np.exp(np.where(self.logs, shifted, 0.0)), shifted)

    def variables(self, cell: Cell) -> SimpleNamespace:
        return SimpleNamespace(**{name: values[cell.rows] for name, values in self.x.items()})

    def jets(self, local: np.ndarray, free: np.ndarray, order: int) -> SimpleNamespace:
        """The law's parameters as jets in the free local parameters; local is (B, k)."""
        parts: list[Any] = []
        for index in range(local.shape[1]):
            value = local[:, index, None]
            parts.append(Jet.variable(value, index, order) if order and free[index] else value)
        made = {}
        for index, parameter in enumerate(self.law.parameters):
            part = parts[index]
            for other in np.flatnonzero(self.shift[index]):
                part = part + parts[other] * self.shift[index, other]
            made[parameter.name] = np.exp(part) if self.logs[index] else part
        return SimpleNamespace(**made)

    def predict(self, theta: np.ndarray) -> np.ndarray:
        """Predictions (B, n) in the units of the response."""
        result = np.empty((len(theta), len(self.y)))
        for cell in self.cells:
            p = self.jets(self.locals(theta, cell), np.zeros(0, bool), 0)
            result[:, cell.rows] = self.law.predict(p, self.variables(cell))
        return result

    def residuals(self, theta: np.ndarray) -> np.ndarray:
        """(B, n): log predicted − log observed, or the plain difference."""
        predicted = self.predict(theta)
        if self.law.residual == "additive":
            return predicted - self.y
        with np.errstate(invalid="ignore", divide="ignore"):
            return np.log(predicted) - np.log(self.y)

    def constraint(self, theta: np.ndarray) -> np.ndarray:
        """(B, n) of the law's constraint, positive where it holds; ones without one."""
        result = np.ones((len(theta), len(self.y)))
        if self.law.constraint is not None:
            for cell in self.cells:
                p = self.jets(self.locals(theta, cell), np.zeros(0, bool), 0)
                result[:, cell.rows] = self.law.constraint(p, self.variables(cell))
        return result

    def jacobian(self, theta: np.ndarray) -> np.ndarray:
        """d residual / d theta at one theta (P,), dense (n, P)."""
        result = np.zeros((len(self.y), self.size))
        for cell in self.cells:
            free = cell.select.any(axis=1)
            out = self.law.predict(self.jets(self.locals(theta[None], cell), free, 1), self.variables(cell))
            scale = 1.0 / out.value if self.law.residual == "log" else 1.0
            local = np.zeros((cell.rows.stop - cell.rows.start, len(free)))
            for index, g in out.grad.items():
                local[:, index] = np.broadcast_to(g * scale, (1, len(local)))[0]
            result[cell.rows] = local @ cell.select
        return result

    def system(self, theta: np.ndarray, weight: np.ndarray) -> tuple[np.ndarray, ...]:
        """Objective (B,), gradient (B, P), Hessian and a positive majoriser of it (B, P, P)."""
        return _threaded(self._system, theta, weight, max(1, BLOCK // max(1, len(self.y))))

    def objective(self, theta: np.ndarray, weight: np.ndarray | None = None) -> np.ndarray:
        weight = self.weight[None] if weight is None else weight
        return np.sum(weight * huber(self.residuals(theta), self.delta)[0], axis=1)

    def _system(self, theta: np.ndarray, weight: np.ndarray) -> tuple[np.ndarray, ...]:
        B, P = theta.shape
        f, g = np.zeros(B), np.zeros((B, P))
        H, M = np.zeros((B, P, P)), np.zeros((B, P, P))
        for cell in self.cells:
            free = cell.select.any(axis=1)
            kept = np.flatnonzero(free)
            local = self.locals(theta, cell)
            w = weight[:, cell.rows]
            x = self.variables(cell)
            parts = self._cell(local, free, x, self.y[cell.rows], w)
            S = cell.select[kept]
            f += parts[0]
            columns = np.flatnonzero(S.any(axis=0))
            S = S[:, columns]
            g[:, columns] += parts[1] @ S
            where = np.ix_(range(B), columns, columns)
            if np.array_equal(S, np.eye(len(S))):
                H[where] += parts[2]
                M[where] += parts[3]
            else:
                H[where] += S.T @ parts[2] @ S
                M[where] += S.T @ parts[3] @ S
        if self.prior is not None:
            mean, precision = self.prior
            f += 0.5 * ((theta - mean) ** 2 * precision).sum(axis=1)
            g += (theta - mean) * precision
            H += np.diag(precision)
            M += np.diag(precision)
        return f, g, H, M

    def _cell(
        self, local: np.ndarray, free: np.ndarray, x: SimpleNamespace, y: np.ndarray, w: np.ndarray
    ) -> tuple[np.ndarray, ...]:
        kept = np.flatnonzero(free)
        place = {int(index): position for position, index in enumerate(kept)}
        B, n, k = len(local), len(y), len(kept)
        p = self.jets(local, free, 2)
        out = self.law.predict(p, x)
        if not isinstance(out, Jet):
            out = Jet(np.broadcast_to(out, (B, n)), {}, {})
        inverse: Any = 1.0
        if self.law.residual == "log":
            inverse = 1.0 / out.value
            residual = np.log(out.value * (1.0 / y))
        else:
            residual = out.value - y
        rho, psi, steep, ratio = huber(residual, self.delta)
        J = np.empty((B, k, n))
        for index, grad in out.grad.items():
            np.multiply(grad, inverse, out=J[:, place[index]])
        for index in kept:
            if int(index) not in out.grad:
                J[:, place[int(index)]] = 0.0
        pull = w * psi
        f = np.einsum("bn,bn->b", np.broadcast_to(w, (B, n)), rho)
        g = np.matmul(J, pull[:, :, None])[:, :, 0]
        Jt = J.swapaxes(1, 2)
        M = np.matmul(J * (w * ratio)[:, None], Jt)
        steep = w * steep
        if self.law.residual == "log":
            H = np.matmul(J * (steep - pull)[:, None], Jt)
            pull = pull * inverse
        else:
            H = np.matmul(J * steep[:, None], Jt)
        for (i, j), curved in (out.hess or {}).items():
            part = np.einsum("bn,bn->b", pull, np.broadcast_to(curved, (B, n)))
            H[:, place[i], place[j]] += part
            if i != j:
                H[:, place[j], place[i]] += part
        if self.law.constraint is not None and self.barrier:
            self._barrier(p, x, place, f, g, H, M)
        bad = ~np.isfinite(f)
        f[bad] = np.inf
        return f, g, H, M

    def _barrier(self, p: Any, x: Any, place: dict, f: Any, g: Any, H: Any, M: Any) -> None:
        """Adds −barrier·Σ log(constraint), which keeps every row strictly inside."""
        inside = self.law.constraint(p, x)  # type: ignore[misc]
        value = value_of(inside)
        f[np.any(value <= 0, axis=1)] = np.inf
        if not isinstance(inside, Jet):
            return
        wall = -self.barrier * np.log(inside)
        total = {key: np.sum(part, axis=1) for key, part in (wall.hess or {}).items()}
        f += np.sum(wall.value, axis=1)
        for index, part in wall.grad.items():
            g[:, place[index]] += np.sum(part, axis=1)
        for (i, j), part in total.items():
            for matrix in (H, M):
                matrix[:, place[i], place[j]] += part
                if i != j:
                    matrix[:, place[j], place[i]] += part


def huber(r: np.ndarray, delta: float | None) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """ρ(r), ψ = ρ', ρ'' and ψ/r, of Huber's loss (r²/2 within ±δ, then linear) or of r²/2."""
    if delta is None:
        one = np.ones_like(r)
        return 0.5 * r * r, r, one, one
    psi = np.clip(r, -delta, delta)
    size = np.abs(r)
    return psi * (r - 0.5 * psi), psi, (size <= delta).astype(float), delta / np.maximum(size, delta)


def _threaded(run: Callable, theta: np.ndarray, weight: np.ndarray, block: int) -> tuple[np.ndarray, ...]:
    """Runs over blocks of the batch, on two threads where there is enough work (NumPy frees the lock)."""
    B = len(theta)
    pieces = [slice(start, min(B, start + block)) for start in range(0, B, block)]

    def one(piece: slice) -> tuple[np.ndarray, ...]:
        with np.errstate(all="ignore"):
            return run(theta[piece], weight if len(weight) == 1 else weight[piece])

    if len(pieces) == 1:
        return one(pieces[0])
    if len(pieces) < 8:
        done = [one(piece) for piece in pieces]
    else:
        with ThreadPoolExecutor(THREADS) as pool:
            done = list(pool.map(one, pieces))
    return tuple(np.concatenate(parts) for parts in zip(*done, strict=True))


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
    weight: np.ndarray | None = None,
    *,
    hold: np.ndarray | None = None,
    damping: float = 0.1,
    iterations: int = 200,
    tolerance: float = 1e-10,
) -> Minimum:
    """Damped Newton from each row of theta (B, P), within the bounds.

    The damping adds a multiple of the majoriser (iteratively reweighted Gauss-Newton) to the exact Hessian: at 0
    it is Newton, which converges quadratically even where Huber's loss is nearly absolute, and above 1 a step
    that descends from anywhere. `hold` (P,) bool freezes parameters. Stops a member when the decrease that the
    quadratic model promises is below `tolerance` of its objective.
    """
    weight = problem.weight[None] if weight is None else weight
    lower, upper = problem.lower, problem.upper
    theta = np.clip(theta, lower, upper).astype(float)
    B, P = theta.shape
    hold = np.zeros(P, bool) if hold is None else hold
    f, g, H, M = problem.system(theta, weight)
    mu = np.full(B, damping)
    converged = np.zeros(B, bool)
    live = np.flatnonzero(np.isfinite(f))
    spent = 0
    while len(live) and spent < iterations:
        spent += 1
        step, promised = _step(theta[live], g[live], H[live], M[live], mu[live], lower, upper, hold)
        settled = (promised >= 0) & (promised <= tolerance * np.abs(f[live])) & (mu[live] < 1e3)
        uphill = ~(promised > 0)
        trial = np.clip(theta[live] + step, lower, upper)
        go = ~uphill
        new = np.full(len(live), np.inf)
        if go.any():
            at = live[go]
            parts = problem.system(trial[go], weight if len(weight) == 1 else weight[at])
            new[go] = parts[0]
            better = parts[0] <= f[at]
            to = at[better]
            theta[to], f[to] = trial[go][better], parts[0][better]
            g[to], H[to], M[to] = parts[1][better], parts[2][better], parts[3][better]
            improved = np.zeros(len(live), bool)
            improved[np.flatnonzero(go)[better]] = True
        else:
            improved = np.zeros(len(live), bool)
        mu[live] = np.where(
            improved, np.where(mu[live] < 1e-6, 0.0, mu[live] * 0.1), np.maximum(mu[live] * 8.0, 1e-3)
        )
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
    hold: np.ndarray,
) -> tuple[np.ndarray, np.ndarray]:
    """The damped Newton step within the bounds, and the decrease its quadratic model promises."""
    P = theta.shape[1]
    frozen = hold | ((theta <= lower) & (g > 0)) | ((theta >= upper) & (g < 0))
    matrix = H + mu[:, None, None] * M
    diagonal = np.einsum("bii->bi", matrix)
    scale = np.einsum("bii->bi", M)
    diagonal += 1e-12 * scale.max(axis=1, keepdims=True) + 1e-13 * mu[:, None] * scale.max(
        axis=1, keepdims=True
    )
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
    assert clipped.shape[1] == P
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
