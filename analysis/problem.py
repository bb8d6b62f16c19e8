"""A law over data as a numerical problem: objective, gradient and Hessian, batched over members.

`theta` is (B, P): the batch runs over starts, bootstraps and profile points alike. Rows are sorted in cells (a
language) within which every parameter of the law is one number, so that all arithmetic is on (B, rows) blocks
and a cell touches only its own columns of the Hessian.
"""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from functools import cached_property
from types import SimpleNamespace
from typing import Any

import numpy as np

from analysis import powers
from analysis.derivatives import Jet, value_of
from analysis.laws.law import Law
from analysis.losses import huber

BLOCK = 1 << 16  # elements of a (B, rows) block: small enough for its temporaries to stay in the cache
THREADS = 2


@dataclass(frozen=True)
class Members:
    """What differs between the problems of a batch: B of each, or 1 for all alike.

    times (B, n): how often a row counts (a bootstrap's multiplicities; constant within a group).
    ratio (B,): variance of the noise that a group shares over that of a row; only where rows are grouped.
    aim (B,): value that the pinned quantity is drawn to.
    """

    times: np.ndarray
    ratio: np.ndarray
    aim: np.ndarray | None = None

    def take(self, index: Any) -> "Members":
        def pick(values: np.ndarray) -> np.ndarray:
            return values if len(values) == 1 else values[index]

        return Members(pick(self.times), pick(self.ratio), None if self.aim is None else pick(self.aim))


@dataclass(frozen=True)
class Pin:
    """A quantity h(θ) drawn towards an aim by ½·stiffness·(h − aim)².

    The minimum is then the constrained minimum at its own h, whatever the stiffness: a profile needs no more.
    """

    cell: int
    quantity: Callable[[Any], Any]  # p -> jet (B, 1)
    stiffness: float


@dataclass(frozen=True)
class Cell:
    """Rows with the same parameters: local = theta @ select.T + offset, (k,) in the fitted (log) scale."""

    rows: slice
    select: np.ndarray  # (k, P)
    offset: np.ndarray  # (k,)

    @property
    def free(self) -> np.ndarray:
        """(k,) bool: which of the law's parameters are fitted here."""
        return np.count_nonzero(self.select, axis=1) > 0


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
    group: np.ndarray  # (n,) int
    shift: np.ndarray
    logs: np.ndarray  # (k,) bool
    prior: tuple[np.ndarray, np.ndarray] | None = None
    pin: Pin | None = None
    barrier: float = 0.0
    ratio: float = 0.0
    held: dict[str, Any] = field(default_factory=dict)

    def members(
        self, times: np.ndarray | None = None, ratio: np.ndarray | None = None, aim: np.ndarray | None = None
    ) -> Members:
        return Members(
            np.ones((1, len(self.y))) if times is None else times,
            np.full(1, self.ratio) if ratio is None else ratio,
            aim,
        )

    def shared(self, ratio: np.ndarray) -> np.ndarray:
        """(B, G) c_g = ρ/(1 + ρ·Σw), with which V⁻¹ = W − c·W11ᵀW inverts the noise of a group."""
        total = np.bincount(self.group, self.weight)
        return ratio[:, None] / (1.0 + ratio[:, None] * total)

    def group_sums(self, values: np.ndarray, number: int) -> np.ndarray:
        """Sums (..., G) over the groups of a cell's values (..., rows); rows of a group are adjacent in a cell."""
        starts, ids = self._runs[number]
        result = np.zeros((*values.shape[:-1], self.groups))
        result[..., ids] = np.add.reduceat(values, starts, axis=-1)
        return result

    @cached_property
    def _runs(self) -> list[tuple[np.ndarray, np.ndarray]]:
        found = []
        for cell in self.cells:
            ids = self.group[cell.rows]
            starts = np.flatnonzero(np.concatenate([[True], ids[1:] != ids[:-1]]))
            if len(np.unique(ids)) != len(starts):
                raise ValueError("rows of a group must be adjacent within a cell")
            found.append((starts, ids[starts]))
        return found

    def all_group_sums(self, values: np.ndarray) -> np.ndarray:
        """(B, n) -> (B, G), over all cells."""
        result = np.zeros((len(values), self.groups))
        for number, cell in enumerate(self.cells):
            result += self.group_sums(values[:, cell.rows], number)
        return result

    @cached_property
    def groups(self) -> int:
        return int(self.group.max()) + 1

    @cached_property
    def _first(self) -> np.ndarray:
        return np.unique(self.group, return_index=True)[1]

    def subset(self, keep: np.ndarray) -> "Problem":
        """The problem on the rows where keep (n,) holds."""
        before = np.concatenate([[0], np.cumsum(keep)])
        return replace(
            self,
            x={name: values[keep] for name, values in self.x.items()},
            y=self.y[keep],
            weight=self.weight[keep],
            group=np.unique(self.group[keep], return_inverse=True)[1],
            cells=tuple(
                replace(cell, rows=slice(int(before[cell.rows.start]), int(before[cell.rows.stop])))
                for cell in self.cells
                if keep[cell.rows].any()
            ),
        )

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
            free = cell.free
            out = self.law.predict(self.jets(self.locals(theta[None], cell), free, 1), self.variables(cell))
            scale = 1.0 / out.value if self.law.residual == "log" else 1.0
            local = np.zeros((cell.rows.stop - cell.rows.start, len(free)))
            for index, g in out.grad.items():
                local[:, index] = np.broadcast_to(g * scale, (1, len(local)))[0]
            result[cell.rows] = local @ cell.select
        return result

    def system(self, theta: np.ndarray, members: Members, majorise: bool = True) -> tuple[np.ndarray, ...]:
        """Objective (B,), gradient (B, P), Hessian and (if wanted, else zeros) a positive majoriser (B, P, P)."""

        def run(part: np.ndarray, of: Members) -> tuple[np.ndarray, ...]:
            return self._system(part, of, majorise)

        return threaded(run, theta, members, self.block)

    @cached_property
    def block(self) -> int:
        """Members that are worked on together."""
        return max(1, BLOCK // max(cell.rows.stop - cell.rows.start for cell in self.cells))

    def objective(self, theta: np.ndarray, members: Members | None = None) -> np.ndarray:
        """Σ w·ρ(residual), less what the groups share; without priors, pins or barriers."""
        members = self.members() if members is None else members
        r = self.residuals(theta)
        value = np.sum(members.times * self.weight * huber(r, self.delta)[0], axis=1)
        if members.ratio.any():
            value -= 0.5 * np.sum(
                self._group_times(members)
                * self.shared(members.ratio)
                * self.all_group_sums(self.weight * r) ** 2,
                axis=1,
            )
        return value

    def _group_times(self, members: Members) -> np.ndarray:
        return members.times[:, self._first]

    def _system(self, theta: np.ndarray, members: Members, majorise: bool) -> tuple[np.ndarray, ...]:
        B, P = theta.shape
        f, g = np.zeros(B), np.zeros((B, P))
        H, M = np.zeros((B, P, P)), np.zeros((B, P, P))
        grouped = bool(members.ratio.any())
        weight = members.times * self.weight
        relief = None
        if grouped:
            sums = self.all_group_sums(self.weight * self.residuals(theta))
            scale = self._group_times(members) * self.shared(members.ratio)
            f -= 0.5 * np.sum(scale * sums**2, axis=1)
            relief = (self.shared(members.ratio) * sums)[:, self.group]
            leverage = np.zeros((B, P, sums.shape[1]))
        for number, cell in enumerate(self.cells):
            kept = np.flatnonzero(cell.free)
            S = cell.select[kept]
            columns = np.flatnonzero(S.any(axis=0))
            S = S[:, columns]
            parts = self._cell(
                number,
                theta,
                kept,
                weight[:, cell.rows],
                None if relief is None else relief[:, cell.rows],
                majorise,
            )
            f += parts[0]
            g[:, columns] += parts[1] @ S
            where = np.ix_(np.arange(B), columns, columns)
            if np.array_equal(S, np.eye(len(S))):
                H[where] += parts[2]
                M[where] += parts[3]
            else:
                H[where] += S.T @ parts[2] @ S
                M[where] += S.T @ parts[3] @ S
            if grouped:
                sums_J = self.group_sums(parts[4] * self.weight[cell.rows], number)
                leverage[:, columns] += S.T @ sums_J
        if grouped:
            common = np.matmul(leverage * scale[:, None], leverage.swapaxes(1, 2))
            H -= common
            M -= common
        if self.prior is not None:
            mean, precision = self.prior
            f += 0.5 * ((theta - mean) ** 2 * precision).sum(axis=1)
            g += (theta - mean) * precision
            H += np.diag(precision)
            M += np.diag(precision)
        if self.pin is not None:
            self._pinned(theta, members, f, g, H, M)
        f[~np.isfinite(f)] = np.inf
        return f, g, H, M

    def _pinned(self, theta: np.ndarray, members: Members, f: Any, g: Any, H: Any, M: Any) -> None:
        pin = self.pin
        assert pin is not None and members.aim is not None
        cell = self.cells[pin.cell]
        free = cell.free
        h = pin.quantity(self.jets(self.locals(theta, cell), free, 2))
        away = h.value[:, 0] - members.aim
        slope = np.zeros((len(theta), len(free)))
        for index, part in h.grad.items():
            slope[:, index] = np.broadcast_to(part, (len(theta), 1))[:, 0]
        curved = np.zeros((len(theta), len(free), len(free)))
        for (i, j), part in h.hess.items():
            curved[:, i, j] = curved[:, j, i] = np.broadcast_to(part, (len(theta), 1))[:, 0]
        S = cell.select
        slope = slope @ S
        outer = pin.stiffness * slope[:, :, None] * slope[:, None, :]
        f += 0.5 * pin.stiffness * away**2
        g += pin.stiffness * away[:, None] * slope
        H += outer + pin.stiffness * away[:, None, None] * (S.T @ curved @ S)
        M += outer

    def _cell(
        self,
        number: int,
        theta: np.ndarray,
        kept: np.ndarray,
        w: np.ndarray,
        relief: np.ndarray | None,
        majorise: bool,
    ) -> tuple[np.ndarray, ...]:
        """Objective, gradient, Hessian, majoriser of a cell's parameters; with relief its Jacobian (B, k, rows)."""
        cell = self.cells[number]
        x, y = self.variables(cell), self.y[cell.rows]
        free = np.zeros(len(cell.select), bool)
        free[kept] = True
        place = {int(index): position for position, index in enumerate(kept)}
        B, n, k = len(theta), len(y), len(kept)
        p = self.jets(self.locals(theta, cell), free, 2)
        out = self.law.predict(p, x)
        log = self.law.residual == "log"
        found = powers.terms(out, n) if relief is None and self.law.constraint is None else None
        if found is not None:
            return powers.system(found, place, log, y, w, self.delta, majorise)
        if not isinstance(out, Jet):
            out = Jet(np.broadcast_to(out, (B, n)), {}, {})
        inverse: Any = 1.0
        if self.law.residual == "log":
            inverse = 1.0 / out.value
            residual = np.log(out.value * (1.0 / y))
        else:
            residual = out.value - y
        rho, psi, steep, ratio = huber(residual, self.delta, majorise)
        J = np.empty((B, k, n))
        for index, grad in out.grad.items():
            np.multiply(grad, inverse, out=J[:, place[index]])
        for index in kept:
            if int(index) not in out.grad:
                J[:, place[int(index)]] = 0.0
        f = np.einsum("bn,bn->b", np.broadcast_to(w, (B, n)), rho)
        pull = w * psi if relief is None else w * (psi - relief)
        g = np.matmul(J, pull[:, :, None])[:, :, 0]
        Jt = J.swapaxes(1, 2)
        steep = np.broadcast_to(w, (B, n)) if steep is None else w * steep  # least squares: ρ'' = ψ/r = 1
        M = np.zeros((B, k, k))
        if majorise:
            M = np.matmul(J * (steep if ratio is None else w * ratio)[:, None], Jt)
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
        return f, g, H, M, J

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


def threaded(run: Callable, theta: np.ndarray, members: Members, block: int) -> tuple[np.ndarray, ...]:
    """Runs over blocks of the batch, on two threads where there is enough work (NumPy frees the lock)."""
    B = len(theta)
    pieces = [slice(start, min(B, start + block)) for start in range(0, B, block)]

    def one(piece: slice) -> tuple[np.ndarray, ...]:
        with np.errstate(all="ignore"):
            return run(theta[piece], members.take(piece))

    if len(pieces) == 1:
        return one(pieces[0])
    if len(pieces) < 4:
        done = [one(piece) for piece in pieces]
    else:
        with ThreadPoolExecutor(THREADS) as pool:
            done = list(pool.map(one, pieces))
    return tuple(np.concatenate(parts) for parts in zip(*done, strict=True))
