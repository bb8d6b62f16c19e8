"""A law over data as a numerical problem: objective, gradient and Hessian, batched over members.

`theta` is (B, P): the batch runs over starts, bootstraps, planted studies and profile points alike. Rows are sorted
in cells (a language) within which every parameter of the law is one number, so that all arithmetic is on (B, rows)
blocks and a cell touches only its own columns of the Hessian.
"""

from dataclasses import dataclass, field, fields, replace
from functools import cached_property
from types import SimpleNamespace
from typing import Any

import numpy as np

from analysis.derivatives import Jet
from analysis.laws.law import Law
from analysis.losses import huber
from analysis.objective import cell_system, threaded
from analysis.quantities import Quantity

BLOCK = 1 << 17  # elements of a (B, rows) block: large beside the cost of a call, small beside the cache


@dataclass(frozen=True)
class Members:
    """What differs between the problems of a batch: B of each, or 1 for all alike.

    times (B, n): how often a row counts (a bootstrap's multiplicities; constant within a group).
    ratio (B,): variance of the noise that a group shares over that of a row; only where rows are grouped.
    y (B, n): the response.
    which, aim, stiffness (B,): the pinned quantity h (an index into the problem's `pins`), the value it is drawn
    to, and how strongly: ½·stiffness·(h(θ) − aim)² is added to the objective.
    """

    times: np.ndarray
    ratio: np.ndarray
    y: np.ndarray
    which: np.ndarray | None = None
    aim: np.ndarray | None = None
    stiffness: np.ndarray | None = None

    def take(self, index: Any) -> "Members":
        def pick(values: np.ndarray | None) -> np.ndarray | None:
            return values if values is None or len(values) == 1 else values[index]

        return Members(*(pick(getattr(self, one.name)) for one in fields(self)))  # type: ignore[arg-type]


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
    pins: tuple[Quantity, ...] = ()
    barrier: float = 0.0
    ratio: float = 0.0
    held: dict[str, Any] = field(default_factory=dict)

    def members(self, **given: np.ndarray | None) -> Members:
        """A batch alike but for what is given (fields of `Members`)."""
        alike = {"times": np.ones((1, len(self.y))), "ratio": np.full(1, self.ratio), "y": self.y[None]}
        return Members(**{**alike, **{name: values for name, values in given.items() if values is not None}})

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
    def _unweighted(self) -> bool:
        return bool((self.weight == 1.0).all())

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

    def residuals(self, theta: np.ndarray, y: np.ndarray | None = None) -> np.ndarray:
        """(B, n): log predicted − log observed, or the plain difference; y (B, n) in place of the problem's own."""
        predicted, y = self.predict(theta), self.y if y is None else y
        if self.law.residual == "additive":
            return predicted - y
        with np.errstate(invalid="ignore", divide="ignore"):
            return np.log(predicted) - np.log(y)

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
        r = self.residuals(theta, members.y)
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
        weight = members.times if self._unweighted else members.times * self.weight
        relief = None
        if grouped:
            sums = self.all_group_sums(self.weight * self.residuals(theta, members.y))
            scale = self._group_times(members) * self.shared(members.ratio)
            f -= 0.5 * np.sum(scale * sums**2, axis=1)
            relief = (self.shared(members.ratio) * sums)[:, self.group]
            leverage = np.zeros((B, P, sums.shape[1]))
        for number, cell in enumerate(self.cells):
            kept = np.flatnonzero(cell.free)
            S = cell.select[kept]
            columns = np.flatnonzero(S.any(axis=0))
            S = S[:, columns]
            free = np.zeros(len(cell.select), bool)
            free[kept] = True
            parts = cell_system(
                self.law,
                self.jets(self.locals(theta, cell), free, 2),
                self.variables(cell),
                members.y[:, cell.rows],
                kept,
                weight[:, cell.rows],
                None if relief is None else relief[:, cell.rows],
                self.delta,
                self.barrier,
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
        if self.pins:
            self._pinned(theta, members, f, g, H, M)
        f[~np.isfinite(f)] = np.inf
        return f, g, H, M

    def _pinned(self, theta: np.ndarray, members: Members, f: Any, g: Any, H: Any, M: Any) -> None:
        which, aim, stiffness = members.which, members.aim, members.stiffness
        assert which is not None and aim is not None and stiffness is not None
        first = 0
        for pin in self.pins:
            at = np.flatnonzero((which >= first) & (which < first + len(pin)))
            if len(at):
                h, slope, curved = pin.derivatives(self, theta[at], which[at] - first)
                away, stiff = h - aim[at], stiffness[at]
                outer = stiff[:, None, None] * slope[:, :, None] * slope[:, None, :]
                f[at] += 0.5 * stiff * away**2
                g[at] += (stiff * away)[:, None] * slope
                H[at] += outer + (stiff * away)[:, None, None] * curved
                M[at] += outer
            first += len(pin)
