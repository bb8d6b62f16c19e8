"""A law over data as a numerical problem: objective, gradient and Hessian, for a batch of B problems at once.

Parameters `theta` are (B, P). The batch runs over starts, bootstraps, simulated studies or profile points alike.
Rows are sorted into cells: the rows of a level (a language), on which every parameter of the law is one number.
The law is evaluated on the rows of all cells at once. Its derivatives are summed cell by cell, and the sums of a
cell are added to the entries of the gradient and Hessian that belong to its own parameters.

Noise that the rows of a group share is integrated out: with ρ its variance over that of a row, the quadratic form of
the residuals uses the inverse of W⁻¹ + ρ·11ᵀ in each group (a random intercept), by the Woodbury identity.
"""

import itertools
from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from functools import cached_property
from types import SimpleNamespace
from typing import Any

import numpy as np
from scipy.sparse import csr_array

from analysis.estimation import scatter
from analysis.estimation.autodiff import Jet
from analysis.estimation.objective import (
    GroupEffects,
    RowTerms,
    evaluate_in_blocks,
    huber,
    row_derivatives,
    row_gradient,
)
from analysis.estimation.quantities import Quantity
from analysis.estimation.scatter import Scatter
from analysis.laws.law import Law, Parameter


@dataclass(frozen=True)
class Batch:
    """What differs between the problems of a batch. Each array has B rows, or one that holds for all.

    Attributes:
      multiplicity: (B, n) how often a row counts in a bootstrap; constant within a group.
      ratio: (B,) ρ, the variance of the noise that a group shares over that of a row.
      y: (B, n) the response.
      quantity, target, penalty_weight: (B,) the quadratic penalty ½·penalty_weight·(h(θ) − target)² that is added to
        the objective; h is the scalar of index `quantity` among the problem's `penalised` quantities.
    """

    multiplicity: np.ndarray
    ratio: np.ndarray
    y: np.ndarray
    quantity: np.ndarray | None = None
    target: np.ndarray | None = None
    penalty_weight: np.ndarray | None = None

    def take(self, index: Any) -> "Batch":
        """The problems of the batch at an index, slice or mask."""

        def pick(values: np.ndarray | None) -> np.ndarray | None:
            return values if values is None or len(values) == 1 else values[index]

        return Batch(*(pick(getattr(self, one.name)) for one in fields(self)))  # type: ignore[arg-type]


# Elements of a (B, rows) block that is evaluated at once: large beside the cost of a call, small beside the cache. Fits
# and intervals of 400 simulated studies take 1.6 to 2.1 s of CPU so, and 2.2 to 2.4 s as one block.
_BLOCK_ELEMENTS = 1 << 17


@dataclass(frozen=True)
class ParameterCell:
    """Rows with the same parameters: the law's k parameters there are selection @ θ + offset, in the fitted scale.

    selection: (k, P), a row of zeros for a parameter that is fixed at its offset. offset: (k,).
    """

    rows: slice
    selection: np.ndarray
    offset: np.ndarray

    @property
    def free(self) -> np.ndarray:
        """(k,) bool: which of the law's parameters are fitted here."""
        return np.count_nonzero(self.selection, axis=1) > 0


@dataclass(frozen=True)
class Problem:
    """A law over data. Shapes: n rows (sorted by cell), k parameters of the law, P parameters fitted, G groups.

    Attributes:
      x: {variable: (n,)}. y: (n,) response. weight: (n,).
      lower, upper: (P,) bounds of θ, in the fitted scale (logarithms for parameters with `log`).
      delta: Huber's threshold on the residuals, None for least squares.
      group: (n,) int, from 0 to G − 1; the rows of a group in a cell are adjacent.
      shift: (k, k) what a parameter's reference point (a geometric mean) adds to it per unit of the others.
      logs: (k,) bool, parameters of the law that are fitted as logarithms.
      prior: Gaussian, (mean (P,), precision (P,)), or None.
      penalised: quantities that a batch may add a quadratic penalty on.
      barrier: weight of the logarithmic barrier of the law's constraint.
      ratio: ρ, variance of the noise that a group shares over that of a row.
      exponential: (P,) bool, logarithms of parameters that the predictions are linear in; None for none.
      fitted_parameters: the law's parameter that each of θ is. inactive: names of those on which no row depends.
      log_means: {variable: mean of its logarithm}, of the reference point.
    """

    law: Law
    x: dict[str, np.ndarray]
    y: np.ndarray
    weight: np.ndarray
    cells: tuple[ParameterCell, ...]
    lower: np.ndarray
    upper: np.ndarray
    delta: float | None
    group: np.ndarray
    shift: np.ndarray
    logs: np.ndarray
    prior: tuple[np.ndarray, np.ndarray] | None = None
    penalised: tuple[Quantity, ...] = ()
    barrier: float = 0.0
    ratio: float = 0.0
    exponential: np.ndarray | None = None
    fitted_parameters: tuple[Parameter, ...] = ()
    inactive: tuple[str, ...] = ()
    log_means: Mapping[str, float] = field(default_factory=dict)

    @property
    def size(self) -> int:
        """P, the number of fitted parameters."""
        return len(self.lower)

    @cached_property
    def groups(self) -> int:
        """G, the number of groups."""
        return int(self.group.max()) + 1

    @cached_property
    def block_size(self) -> int:
        """How many problems of a batch are evaluated together."""
        return max(1, _BLOCK_ELEMENTS // len(self.y))

    @cached_property
    def variables(self) -> SimpleNamespace:
        """The law's variables on all rows, (n,) each, by attribute."""
        return SimpleNamespace(**self.x)

    def batch(self, **changes: np.ndarray | None) -> Batch:
        """A batch of problems like this one but for the changes (fields of `Batch`; None: no change)."""
        alike = {
            "multiplicity": np.ones((1, len(self.y))),
            "ratio": np.full(1, self.ratio),
            "y": self.y[None],
        }
        return Batch(**{**alike, **{name: values for name, values in changes.items() if values is not None}})

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

    def hold(self, fitted: np.ndarray, values: np.ndarray) -> "Problem":
        """The problem in the parameters where fitted (P,) holds; the others are held at values (P,)."""
        held = np.where(fitted, 0.0, values)
        return replace(
            self,
            cells=tuple(
                replace(cell, selection=cell.selection[:, fitted], offset=cell.offset + cell.selection @ held)
                for cell in self.cells
            ),
            lower=self.lower[fitted],
            upper=self.upper[fitted],
            exponential=None if self.exponential is None else self.exponential[fitted],
            prior=None if self.prior is None else (self.prior[0][fitted], self.prior[1][fitted]),
            fitted_parameters=tuple(itertools.compress(self.fitted_parameters, fitted)),
        )

    # Parameters of cells -----------------------------------------------------------------------------------

    def cell_parameters(self, theta: np.ndarray, cell: ParameterCell) -> np.ndarray:
        """(B, k): the law's parameters in a cell, in the fitted scale."""
        return theta @ cell.selection.T + cell.offset

    def all_cell_parameters(self, theta: np.ndarray) -> np.ndarray:
        """(B, C, k): the law's parameters in every cell, in the fitted scale."""
        selection, offset = self._affine_maps
        return (selection @ theta.T).T.reshape(len(theta), len(self.cells), -1) + offset

    @cached_property
    def _affine_maps(self) -> tuple[Any, np.ndarray]:
        """From θ to the parameters of all cells: a sparse (C·k, P) matrix, and what is added, (C, k)."""
        selection = csr_array(np.concatenate([cell.selection for cell in self.cells]))
        return selection, np.stack([cell.offset for cell in self.cells])

    @cached_property
    def cell_of_row(self) -> np.ndarray:
        """(n,) int."""
        return np.repeat(
            np.arange(len(self.cells)), [cell.rows.stop - cell.rows.start for cell in self.cells]
        )

    @cached_property
    def _free(self) -> np.ndarray:
        """(k,) bool: which of the law's parameters are fitted in any cell."""
        return np.any([cell.free for cell in self.cells], axis=0)

    @cached_property
    def _same_in_all_cells(self) -> np.ndarray:
        """(k,) bool: which of the law's parameters are one number in all cells."""
        first = self.cells[0]
        return np.all(
            [(c.selection == first.selection).all(axis=1) & (c.offset == first.offset) for c in self.cells],
            axis=0,
        )

    def natural(self, local: np.ndarray) -> np.ndarray:
        """Parameters of a cell (..., k), from the fitted scale to the units of the paper."""
        shifted = local + local @ self.shift.T
        return np.where(self.logs, np.exp(np.where(self.logs, shifted, 0.0)), shifted)

    def jets(self, local: np.ndarray, free: np.ndarray, order: int) -> SimpleNamespace:
        """The parameters of one cell, local (B, k), as jets in those that are free (k,); (B, 1) each, by name."""
        return self._jets([local[:, index, None] for index in range(local.shape[1])], free, order)

    def rows_jets(self, theta: np.ndarray, order: int) -> SimpleNamespace:
        """The law's parameters on every row, (B, n) or (B, 1), by name: jets in the parameters of the row's cell.

        order: 0 (plain arrays), 1 (gradients) or 2 (and Hessians).
        """
        local = self.all_cell_parameters(theta)
        parts = [
            local[:, :1, index] if same else local[:, self.cell_of_row, index]
            for index, same in enumerate(self._same_in_all_cells)
        ]
        return self._jets(parts, self._free, order)

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

    # Predictions -------------------------------------------------------------------------------------------

    def predict(self, theta: np.ndarray) -> np.ndarray:
        """Predictions (B, n) in the units of the response."""
        predicted = self.law.predict(self.rows_jets(theta, 0), self.variables)
        return np.broadcast_to(predicted, (len(theta), len(self.y)))

    def residuals(self, theta: np.ndarray, y: np.ndarray | None = None) -> np.ndarray:
        """(B, n): log predicted − log observed, or the plain difference; y (B, n) in place of the problem's own."""
        predicted, y = self.predict(theta), self.y if y is None else y
        if self.law.residual == "additive":
            return predicted - y
        with np.errstate(invalid="ignore", divide="ignore"):
            return np.log(predicted) - np.log(y)

    def constraint(self, theta: np.ndarray) -> np.ndarray:
        """(B, n) of the law's constraint, positive where it holds; ones for a law without one."""
        if self.law.constraint is None:
            return np.ones((len(theta), len(self.y)))
        inside = self.law.constraint(self.rows_jets(theta, 0), self.variables)
        return np.broadcast_to(inside, (len(theta), len(self.y)))

    # Objective ---------------------------------------------------------------------------------------------

    def objective(self, theta: np.ndarray, batch: Batch | None = None) -> np.ndarray:
        """(B,): Σ w·ρ(residual) less what the predicted group effects explain; no prior, penalty or barrier."""
        batch = self.batch() if batch is None else batch
        r = self.residuals(theta, batch.y)
        value = np.sum(self.weights(batch) * huber(r, self.delta)[0], axis=1)
        if batch.ratio.any():
            value -= self._group_effects(batch)(r)[0]
        return value

    def total_objective(self, theta: np.ndarray, batch: Batch) -> np.ndarray:
        """(B,): with prior, penalty and barrier, as `derivatives` gives it; infinite where it is not defined."""
        return evaluate_in_blocks(self._total_objective, theta, batch, self.block_size)[0]

    def value_and_gradient(self, theta: np.ndarray, batch: Batch) -> tuple[np.ndarray, np.ndarray]:
        """The objective (B,) and its gradient (B, P), as `derivatives` gives them, at a fifth of the cost."""
        return evaluate_in_blocks(self._value_and_gradient, theta, batch, self.block_size)  # type: ignore[return-value]

    def derivatives(self, theta: np.ndarray, batch: Batch, majorise: bool = True) -> tuple[np.ndarray, ...]:
        """The objective with all its derivatives.

        Returns: objective (B,), gradient (B, P), Hessian (B, P, P), and a positive semi-definite majoriser of it
          (B, P, P) (that of iteratively reweighted Gauss-Newton; zeros if not wanted).
        """

        def evaluate(theta: np.ndarray, batch: Batch) -> tuple[np.ndarray, ...]:
            return self._derivatives(theta, batch, majorise)

        return evaluate_in_blocks(evaluate, theta, batch, self.block_size)

    def _total_objective(self, theta: np.ndarray, batch: Batch) -> tuple[np.ndarray]:
        f = self.objective(theta, batch)
        if self.law.constraint is not None and self.barrier:
            inside = self.constraint(theta)
            f[(inside <= 0).any(axis=1)] = np.inf
            f -= self.barrier * np.log(inside).sum(axis=1)
        if self.prior is not None:
            self._add_prior(theta, batch, f, np.zeros(theta.shape))
        if self.penalised:
            self._add_penalty(theta, batch, f, np.zeros(theta.shape))
        f[~np.isfinite(f)] = np.inf
        return (f,)

    def _value_and_gradient(self, theta: np.ndarray, batch: Batch) -> tuple[np.ndarray, np.ndarray]:
        f, slope = row_gradient(self._row_terms(batch), self.rows_jets(theta, 1))
        g = np.zeros(theta.shape)
        self._to_gradient.add(slope.swapaxes(1, 2), g)
        if self.prior is not None:
            self._add_prior(theta, batch, f, g)
        if self.penalised:
            self._add_penalty(theta, batch, f, g)
        f[~np.isfinite(f)] = np.inf
        return f, g

    def _derivatives(self, theta: np.ndarray, batch: Batch, majorise: bool) -> tuple[np.ndarray, ...]:
        B, P = theta.shape
        f, slope, curved, bound, J = row_derivatives(
            self._row_terms(batch), self.rows_jets(theta, 2), majorise
        )
        g, H, M = np.zeros((B, P)), np.zeros((B, P, P)), np.zeros((B, P, P))
        self._to_gradient.add(slope.swapaxes(1, 2), g)
        for total, part in ((H, curved), (M, bound)) if majorise else ((H, curved),):
            self._to_hessian.add(part.transpose(0, 2, 3, 1), total.reshape(B, P * P))
        if batch.ratio.any():
            scale = self._group_multiplicity(batch) * self._woodbury_coefficients(batch)
            by_group = self._group_jacobian(J, batch)
            common = np.matmul(by_group * scale[:, None], by_group.swapaxes(1, 2))
            H -= common
            M -= common
        if self.prior is not None:
            precision = self._add_prior(theta, batch, f, g)
            for matrix in (H, M):
                np.einsum("bii->bi", matrix)[...] += precision
        if self.penalised:
            self._add_penalty(theta, batch, f, g, H, M)
        f[~np.isfinite(f)] = np.inf
        return f, g, H, M

    def _row_terms(self, batch: Batch) -> RowTerms:
        return RowTerms(
            law=self.law,
            variables=self.variables,
            y=batch.y,
            weights=self.weights(batch),
            free=np.flatnonzero(self._free),
            cells=[cell.rows for cell in self.cells],
            delta=self.delta,
            barrier=self.barrier,
            group_effects=self._group_effects(batch) if batch.ratio.any() else None,
        )

    def _add_prior(self, theta: np.ndarray, batch: Batch, f: np.ndarray, g: np.ndarray) -> np.ndarray:
        """Adds the prior's negative log density to the objective and its gradient; its precision, (P,)."""
        mean, precision = self.prior  # type: ignore[misc]
        f += 0.5 * ((theta - mean) ** 2 * precision).sum(axis=1)
        g += (theta - mean) * precision
        return precision

    def _add_penalty(
        self,
        theta: np.ndarray,
        batch: Batch,
        f: np.ndarray,
        g: np.ndarray,
        H: np.ndarray | None = None,
        M: np.ndarray | None = None,
    ) -> None:
        """Adds ½·penalty_weight·(h(θ) − target)² to the objective and its derivatives."""
        which, target, weight = batch.quantity, batch.target, batch.penalty_weight
        assert which is not None and target is not None and weight is not None
        first = 0
        for quantity in self.penalised:
            at = np.flatnonzero((which >= first) & (which < first + len(quantity)))
            if len(at):
                h, slope, curved = quantity.derivatives(self, theta[at], which[at] - first)
                away, stiff = h - target[at], weight[at]
                f[at] += 0.5 * stiff * away**2
                g[at] += (stiff * away)[:, None] * slope
                if H is not None and M is not None:
                    outer = stiff[:, None, None] * slope[:, :, None] * slope[:, None, :]
                    H[at] += outer + (stiff * away)[:, None, None] * curved
                    M[at] += outer
            first += len(quantity)

    # Sums over cells, from their parameters to θ -----------------------------------------------------------

    @cached_property
    def _selections(self) -> list[np.ndarray]:
        """(k', P) of each cell: from θ to the k' parameters that are free in any cell."""
        return [cell.selection[self._free] for cell in self.cells]

    @cached_property
    def _to_gradient(self) -> Scatter:
        return scatter.to_gradient(self._selections)

    @cached_property
    def _to_hessian(self) -> Scatter:
        return scatter.to_hessian(self._selections)

    @cached_property
    def _to_group_jacobian(self) -> Scatter:
        return scatter.to_group_jacobian(self._selections, *self._segments[1:], self.groups)

    # Weights and groups ------------------------------------------------------------------------------------

    def weights(self, batch: Batch) -> np.ndarray:
        """(B, n) or (1, n): weights of the rows times their multiplicities."""
        return batch.multiplicity * self.weight

    @cached_property
    def _first_row_of_group(self) -> np.ndarray:
        return np.unique(self.group, return_index=True)[1]

    def _group_multiplicity(self, batch: Batch) -> np.ndarray:
        """(B, G)."""
        return batch.multiplicity[:, self._first_row_of_group]

    @cached_property
    def _segments(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """First row, group and cell of every segment: the rows of a group in a cell, which are adjacent."""
        cell = self.cell_of_row
        change = (np.diff(self.group, prepend=-1) != 0) | (np.diff(cell, prepend=-1) != 0)
        starts = np.flatnonzero(change)
        group, cell = self.group[starts], cell[starts]
        if len(np.unique(cell * self.groups + group)) != len(starts):
            raise ValueError("rows of a group must be adjacent within a cell")
        return starts, group, cell

    @cached_property
    def _segments_by_group(self) -> tuple[np.ndarray, np.ndarray]:
        """The order of segments by group, and where each group starts in it."""
        group = self._segments[1]
        order = np.argsort(group, kind="stable")
        return order, np.searchsorted(group[order], np.arange(self.groups))

    def group_sums(self, values: np.ndarray) -> np.ndarray:
        """Sums over the rows of each group, (B, n) -> (B, G)."""
        order, starts = self._segments_by_group
        return np.add.reduceat(np.add.reduceat(values, self._segments[0], axis=1)[:, order], starts, axis=1)

    def _woodbury_coefficients(self, batch: Batch) -> np.ndarray:
        """(B, G) c = ρ/(1 + ρ·Σw) of each group, with which (W⁻¹ + ρ·11ᵀ)⁻¹ = W − c·W11ᵀW."""
        ratio = batch.ratio[:, None]
        return ratio / (1.0 + ratio * self.group_sums(self.weight[None]))

    def _group_effects(self, batch: Batch) -> GroupEffects:
        coefficients = self._woodbury_coefficients(batch)

        def group_effects(residual: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
            sums = self.group_sums(self.weight * residual)
            saved = 0.5 * np.sum(self._group_multiplicity(batch) * coefficients * sums**2, axis=1)
            return saved, (coefficients * sums)[:, self.group]

        return group_effects

    def _group_jacobian(self, J: np.ndarray, batch: Batch) -> np.ndarray:
        """(B, P, G): the Jacobian of the residuals J (B, k, n), weighted, summed over the rows of each group."""
        sums = np.add.reduceat(J * self.weight, self._segments[0], axis=2)
        result = np.zeros((len(J), self.size * self.groups))
        self._to_group_jacobian.add(sums.transpose(1, 2, 0), result)
        return result.reshape(len(J), self.size, self.groups)
