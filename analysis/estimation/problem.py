"""A law over data as a numerical problem: objective, gradient and Hessian, batched over members.

`theta` is (B, P): the batch runs over starts, bootstraps, planted studies and profile points alike. Rows are sorted
in cells (a language) within which every parameter of the law is one number. The law is worked out on all rows of all
cells at once; only its sums are taken cell by cell, and a cell touches only its own columns of the Hessian.
"""

from dataclasses import dataclass, field, fields, replace
from functools import cached_property
from types import SimpleNamespace
from typing import Any

import numpy as np
from scipy.sparse import csr_array

from analysis.estimation import scatter
from analysis.estimation.autodiff import Jet
from analysis.estimation.objective import GroupEffects, huber, evaluate_in_blocks, rows_slope, rows_system
from analysis.estimation.quantities import Quantity
from analysis.estimation.scatter import Scatter
from analysis.laws.law import Law


@dataclass(frozen=True)
class Batch:
    """What differs between the problems of a batch: B of each, or 1 for all alike.

    times (B, n): how often a row counts (a bootstrap's multiplicities; constant within a group).
    ratio (B,): variance of the noise that a group shares over that of a row; only where rows are grouped.
    y (B, n): the response.
    which, aim, stiffness (B,): the pinned quantity h (an index into the problem's `pins`), the value it is drawn
    to, and how strongly: ½·stiffness·(h(θ) − aim)² is added to the objective.
    precision (B, P): of the prior, in place of the problem's own.
    kept (B, n) bool: rows that are there; the others count nothing, nor does the law's constraint hold on them.
    """

    times: np.ndarray
    ratio: np.ndarray
    y: np.ndarray
    which: np.ndarray | None = None
    aim: np.ndarray | None = None
    stiffness: np.ndarray | None = None
    precision: np.ndarray | None = None
    kept: np.ndarray | None = None

    def take(self, index: Any) -> "Members":
        def pick(values: np.ndarray | None) -> np.ndarray | None:
            return values if values is None or len(values) == 1 else values[index]

        return Batch(*(pick(getattr(self, one.name)) for one in fields(self)))  # type: ignore[arg-type]


_BLOCK_ELEMENTS = 1 << 17  # elements of a (B, rows) block: large beside the cost of a call, small beside the cache


@dataclass(frozen=True)
class ParameterCell:
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

    `exponential` (P,) bool: parameters that are logarithms of what the predictions are linear in, or None for none.
    `delta` is Huber's threshold on the residuals, None for least squares. `shift` (k, k): what the reference
    (geometric mean) adds to a log parameter per unit of the others. `prior` is (mean (P,), precision (P,)).
    """

    law: Law
    x: dict[str, np.ndarray]
    y: np.ndarray
    weight: np.ndarray
    cells: tuple[ParameterCell, ...]
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
    exponential: np.ndarray | None = None
    held: dict[str, Any] = field(default_factory=dict)

    def members(self, **given: np.ndarray | None) -> Batch:
        """A batch alike but for what is given (fields of `Members`)."""
        alike = {"times": np.ones((1, len(self.y))), "ratio": np.full(1, self.ratio), "y": self.y[None]}
        return Batch(**{**alike, **{name: values for name, values in given.items() if values is not None}})

    def shared(self, members: Batch) -> np.ndarray:
        """(B, G) c_g = ρ/(1 + ρ·Σw), with which V⁻¹ = W − c·W11ᵀW inverts the noise of a group."""
        ratio = members.ratio[:, None]
        return ratio / (1.0 + ratio * self.group_sums(self._once(members)))

    @cached_property
    def _runs(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """First row, group and cell of every run: the rows of a group in a cell, which are adjacent."""
        cell = self.cell_of_row
        change = (np.diff(self.group, prepend=-1) != 0) | (np.diff(cell, prepend=-1) != 0)
        starts = np.flatnonzero(change)
        group, cell = self.group[starts], cell[starts]
        if len(np.unique(cell * self.groups + group)) != len(starts):
            raise ValueError("rows of a group must be adjacent within a cell")
        return starts, group, cell

    def group_sums(self, values: np.ndarray) -> np.ndarray:
        """(B, n) -> (B, G)."""
        order, starts = self._runs_of_groups
        return np.add.reduceat(np.add.reduceat(values, self._runs[0], axis=1)[:, order], starts, axis=1)

    @cached_property
    def _runs_of_groups(self) -> tuple[np.ndarray, np.ndarray]:
        """The order of runs by group, and where each group starts in it."""
        group = self._runs[1]
        order = np.argsort(group, kind="stable")
        return order, np.searchsorted(group[order], np.arange(self.groups))

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

    def locals(self, theta: np.ndarray, cell: ParameterCell) -> np.ndarray:
        return theta @ cell.select.T + cell.offset

    def all_locals(self, theta: np.ndarray) -> np.ndarray:
        """(B, C, k): the local parameters of every cell."""
        select, offset = self._maps
        return (select @ theta.T).T.reshape(len(theta), len(self.cells), -1) + offset

    @cached_property
    def _maps(self) -> tuple[Any, np.ndarray]:
        """From θ to the local parameters of all cells, as a sparse matrix, and what is added, (C, k)."""
        select = csr_array(np.concatenate([cell.select for cell in self.cells]))
        return select, np.stack([cell.offset for cell in self.cells])

    @cached_property
    def cell_of_row(self) -> np.ndarray:
        return np.repeat(
            np.arange(len(self.cells)), [cell.rows.stop - cell.rows.start for cell in self.cells]
        )

    @cached_property
    def _free(self) -> np.ndarray:
        """(k,) bool: which of the law's parameters are fitted in any cell."""
        return np.any([cell.free for cell in self.cells], axis=0)

    @cached_property
    def _alike(self) -> np.ndarray:
        """(k,) bool: which of the law's parameters are one number in all cells."""
        first = self.cells[0]
        return np.all(
            [(c.select == first.select).all(axis=1) & (c.offset == first.offset) for c in self.cells], axis=0
        )

    @cached_property
    def _selects(self) -> list[np.ndarray]:
        """(k, P) of each cell: from θ to the parameters that are free somewhere."""
        return [cell.select[self._free] for cell in self.cells]

    @cached_property
    def _to_gradient(self) -> Scatter:
        return scatter.to_gradient(self._selects)

    @cached_property
    def _to_hessian(self) -> Scatter:
        return scatter.to_hessian(self._selects)

    @cached_property
    def _to_leverage(self) -> Scatter:
        return scatter.to_group_jacobian(self._selects, *self._runs[1:], self.groups)

    def rows_jets(self, theta: np.ndarray, order: int) -> SimpleNamespace:
        """The law's parameters on every row, (B, n) or (B, 1), as jets in the local parameters that are free."""
        local = self.all_locals(theta)
        parts = [
            local[:, :1, index] if alike else local[:, self.cell_of_row, index]
            for index, alike in enumerate(self._alike)
        ]
        return self._jets(parts, self._free, order)

    def natural(self, local: np.ndarray) -> np.ndarray:
        """Local parameters (..., k) in the units of the paper."""
        shifted = local + local @ self.shift.T
        return np.where(self.logs, np.exp(np.where(self.logs, shifted, 0.0)), shifted)

    def variables(self, cell: ParameterCell) -> SimpleNamespace:
        return SimpleNamespace(**{name: values[cell.rows] for name, values in self.x.items()})

    def jets(self, local: np.ndarray, free: np.ndarray, order: int) -> SimpleNamespace:
        """The law's parameters in one cell as jets in the free local parameters; local is (B, k)."""
        return self._jets([local[:, index, None] for index in range(local.shape[1])], free, order)

    def _jets(self, values: list[np.ndarray], free: np.ndarray, order: int) -> SimpleNamespace:
        parts: list[Any] = [
            Jet.variable(value, index, order) if order and free[index] else value
            for index, value in enumerate(values)
        ]
        made = {}
        for index, parameter in enumerate(self.law.parameters):
            part = parts[index]
            for other in np.flatnonzero(self.shift[index]):
                part = part + parts[other] * self.shift[index, other]
            made[parameter.name] = np.exp(part) if self.logs[index] else part
        return SimpleNamespace(**made)

    def predict(self, theta: np.ndarray) -> np.ndarray:
        """Predictions (B, n) in the units of the response."""
        predicted = self.law.predict(self.rows_jets(theta, 0), self._variables)
        return np.broadcast_to(predicted, (len(theta), len(self.y)))

    @cached_property
    def _variables(self) -> SimpleNamespace:
        return SimpleNamespace(**self.x)

    def residuals(self, theta: np.ndarray, y: np.ndarray | None = None) -> np.ndarray:
        """(B, n): log predicted − log observed, or the plain difference; y (B, n) in place of the problem's own."""
        predicted, y = self.predict(theta), self.y if y is None else y
        if self.law.residual == "additive":
            return predicted - y
        with np.errstate(invalid="ignore", divide="ignore"):
            return np.log(predicted) - np.log(y)

    def constraint(self, theta: np.ndarray) -> np.ndarray:
        """(B, n) of the law's constraint, positive where it holds; ones without one."""
        if self.law.constraint is None:
            return np.ones((len(theta), len(self.y)))
        inside = self.law.constraint(self.rows_jets(theta, 0), self._variables)
        return np.broadcast_to(inside, (len(theta), len(self.y)))

    def system(self, theta: np.ndarray, members: Batch, majorise: bool = True) -> tuple[np.ndarray, ...]:
        """Objective (B,), gradient (B, P), Hessian and (if wanted, else zeros) a positive majoriser (B, P, P)."""

        def run(part: np.ndarray, of: Batch) -> tuple[np.ndarray, ...]:
            return self._system(part, of, majorise)

        return evaluate_in_blocks(run, theta, members, self.block)

    @cached_property
    def block(self) -> int:
        """Members that are worked on together."""
        return max(1, _BLOCK_ELEMENTS // len(self.y))

    def objective(self, theta: np.ndarray, members: Batch | None = None) -> np.ndarray:
        """Σ w·ρ(residual), less what the groups share; without priors, pins or barriers."""
        members = self.members() if members is None else members
        r = self.residuals(theta, members.y)
        value = np.sum(self.weights(members) * huber(r, self.delta)[0], axis=1)
        if members.ratio.any():
            value -= self._relieve(members)(r)[0]
        return value

    def value(self, theta: np.ndarray, members: Batch) -> np.ndarray:
        """The objective (B,), as `system` gives it."""
        return evaluate_in_blocks(self._value, theta, members, self.block)[0]

    def _value(self, theta: np.ndarray, members: Batch) -> tuple[np.ndarray]:
        f = self.objective(theta, members)
        if self.law.constraint is not None and self.barrier:
            inside = self.constraint(theta)
            inside = inside if members.kept is None else np.where(members.kept, inside, 1.0)
            f[(inside <= 0).any(axis=1)] = np.inf
            f -= self.barrier * np.log(inside).sum(axis=1)
        if self.prior is not None:
            self._drawn(theta, members, f, np.zeros(theta.shape))
        if self.pins:
            self._pinned(theta, members, f, np.zeros(theta.shape))
        f[~np.isfinite(f)] = np.inf
        return (f,)

    def _group_times(self, members: Batch) -> np.ndarray:
        return members.times[:, self._first]

    def _system(self, theta: np.ndarray, members: Batch, majorise: bool) -> tuple[np.ndarray, ...]:
        B, P = theta.shape
        grouped = bool(members.ratio.any())
        f, slope, curved, bound, J = rows_system(
            self.law,
            self.rows_jets(theta, 2),
            self._variables,
            members.y,
            np.flatnonzero(self._free),
            self.weights(members),
            self._relieve(members) if grouped else None,
            self.delta,
            self.barrier,
            majorise,
            [cell.rows for cell in self.cells],
            members.kept,
        )
        g, H, M = np.zeros((B, P)), np.zeros((B, P, P)), np.zeros((B, P, P))
        self._to_gradient.add(slope.swapaxes(1, 2), g)
        for total, part in ((H, curved), (M, bound)) if majorise else ((H, curved),):
            self._to_hessian.add(part.transpose(0, 2, 3, 1), total.reshape(B, P * P))
        if grouped:
            scale = self._group_times(members) * self.shared(members)
            leverage = self._leverage(J, members)
            common = np.matmul(leverage * scale[:, None], leverage.swapaxes(1, 2))
            H -= common
            M -= common
        if self.prior is not None:
            precision = self._drawn(theta, members, f, g)
            for matrix in (H, M):
                np.einsum("bii->bi", matrix)[...] += precision
        if self.pins:
            self._pinned(theta, members, f, g, H, M)
        f[~np.isfinite(f)] = np.inf
        return f, g, H, M

    def slope(self, theta: np.ndarray, members: Batch) -> tuple[np.ndarray, np.ndarray]:
        """The objective (B,) and its gradient (B, P), as `system` gives them, at a fifth of the cost."""
        return evaluate_in_blocks(self._slope, theta, members, self.block)  # type: ignore[return-value]

    def _slope(self, theta: np.ndarray, members: Batch) -> tuple[np.ndarray, np.ndarray]:
        f, slope = rows_slope(
            self.law,
            self.rows_jets(theta, 1),
            self._variables,
            members.y,
            np.flatnonzero(self._free),
            self.weights(members),
            self._relieve(members) if members.ratio.any() else None,
            self.delta,
            self.barrier,
            [cell.rows for cell in self.cells],
            members.kept,
        )
        g = np.zeros(theta.shape)
        self._to_gradient.add(slope.swapaxes(1, 2), g)
        if self.prior is not None:
            self._drawn(theta, members, f, g)
        if self.pins:
            self._pinned(theta, members, f, g)
        f[~np.isfinite(f)] = np.inf
        return f, g

    def _once(self, members: Batch) -> np.ndarray:
        """(B, n) or (1, n): weights of rows that count once."""
        return self.weight[None] if members.kept is None else self.weight * members.kept

    def weights(self, members: Batch) -> np.ndarray:
        """(B, n) or (1, n): of rows as often as they count."""
        alike = members.kept is None and self._unweighted
        return members.times if alike else members.times * self._once(members)

    def _relieve(self, members: Batch) -> GroupEffects:
        shared, once = self.shared(members), self._once(members)

        def relieve(residual: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
            sums = self.group_sums(once * residual)
            saved = 0.5 * np.sum(self._group_times(members) * shared * sums**2, axis=1)
            return saved, (shared * sums)[:, self.group]

        return relieve

    def _leverage(self, J: np.ndarray, members: Batch) -> np.ndarray:
        """(B, P, G): slopes J (B, k, n) of the rows in the free local parameters, summed over the rows of a group."""
        runs = np.add.reduceat(J * self._once(members)[:, None], self._runs[0], axis=2)
        result = np.zeros((len(J), self.size * self.groups))
        self._to_leverage.add(runs.transpose(1, 2, 0), result)
        return result.reshape(len(J), self.size, self.groups)

    def _drawn(self, theta: np.ndarray, members: Batch, f: np.ndarray, g: np.ndarray) -> np.ndarray:
        """Adds what the prior says to the objective and its gradient; its precision, (P,) or (B, P)."""
        mean, precision = self.prior  # type: ignore[misc]
        precision = precision if members.precision is None else members.precision
        f += 0.5 * ((theta - mean) ** 2 * precision).sum(axis=1)
        g += (theta - mean) * precision
        return precision

    def _pinned(
        self, theta: np.ndarray, members: Batch, f: Any, g: Any, H: Any = None, M: Any = None
    ) -> None:
        which, aim, stiffness = members.which, members.aim, members.stiffness
        assert which is not None and aim is not None and stiffness is not None
        first = 0
        for pin in self.pins:
            at = np.flatnonzero((which >= first) & (which < first + len(pin)))
            if len(at):
                h, slope, curved = pin.derivatives(self, theta[at], which[at] - first)
                away, stiff = h - aim[at], stiffness[at]
                f[at] += 0.5 * stiff * away**2
                g[at] += (stiff * away)[:, None] * slope
                if H is not None:
                    outer = stiff[:, None, None] * slope[:, :, None] * slope[:, None, :]
                    H[at] += outer + (stiff * away)[:, None, None] * curved
                    M[at] += outer
            first += len(pin)
