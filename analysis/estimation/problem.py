"""A law over data as a numerical problem: objective, gradient and Hessian, for a batch of B problems at once.

Parameters `theta` are (B, P). The batch runs over starts, bootstraps, simulated studies or profile points alike.
Rows are sorted into cells: the rows of a level (a language), on which every parameter of the law is one number.
The law is evaluated on the rows of all cells at once, on forward-mode jets (`autodiff.Jet`). Its derivatives are summed
cell by cell, and added to the entries of the gradient and Hessian that belong to the cell's own parameters.

With weights w and residuals r the objective is Σ w·ρ(r), its Hessian Σ w·(ρ''(r)·∇r·∇rᵀ + ρ'(r)·∇²r). Its majoriser is
Σ w·(ρ'(r)/r)·∇r·∇rᵀ: iteratively reweighted Gauss-Newton. Noise that the rows of a group share is integrated out: with
ρ its variance over that of a row, the quadratic form of the residuals uses the inverse of W⁻¹ + ρ·11ᵀ in each group (a
random intercept), by the Woodbury identity.
"""

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from functools import cached_property
from types import SimpleNamespace

import numpy as np
from scipy.sparse import csr_array

from analysis.estimation.autodiff import Jet, dense_gradient, value_of
from analysis.estimation.objective import HuberLoss, huber
from analysis.estimation.quantities import Linear, Quantity
from analysis.laws.law import Law, Parameter

JetOrArray = Jet | np.ndarray


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

    def take(self, index: np.ndarray | slice) -> "Batch":
        """The problems of the batch at an index, slice or mask."""

        def pick(values: np.ndarray | None) -> np.ndarray | None:
            return values if values is None or len(values) == 1 else values[index]

        return Batch(*(pick(getattr(self, one.name)) for one in fields(self)))  # type: ignore[arg-type]


@dataclass
class _Derivatives:
    """Sums over rows: f (B,), g (B, P), H and its majoriser M (B, P, P); matrices: those of H and M that are wanted."""

    f: np.ndarray
    g: np.ndarray
    H: np.ndarray
    M: np.ndarray
    matrices: tuple[np.ndarray, ...]

    @classmethod
    def zeros(cls, B: int, P: int, order: int, majorise: bool) -> "_Derivatives":
        H, M = (np.zeros((B, P, P) if order > 1 else (B, 0, 0)) for _ in range(2))
        return cls(np.zeros(B), np.zeros((B, P)), H, M, (H, M)[: 0 if order < 2 else 1 + majorise])


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

    @cached_property
    def columns(self) -> np.ndarray:
        """Indices of the parameters in θ that the cell depends on."""
        return np.flatnonzero(self.selection.any(axis=0))

    @cached_property
    def own(self) -> np.ndarray:
        """(k, columns): the selection without the columns of other cells."""
        return self.selection[:, self.columns]

    def values(self, theta: np.ndarray) -> np.ndarray:
        """(B, k): the law's parameters here, in the fitted scale."""
        return theta[:, self.columns] @ self.own.T + self.offset


@dataclass(frozen=True)
class Problem:
    """A law over data. Shapes: n rows (sorted by cell), k parameters of the law, P parameters fitted, G groups.

    Attributes:
      x: {variable: (n,)}. y: (n,) response. weight: (n,).
      lower, upper: (P,) bounds of θ, in the fitted scale (logarithms for parameters with `log`).
      delta: Huber's threshold on the residuals, None for least squares.
      group: (n,) int, from 0 to G − 1.
      shift: (k, k) what a parameter's reference point (a geometric mean) adds to it per unit of the others.
      logs: (k,) bool, parameters of the law that are fitted as logarithms.
      prior: Gaussian, (mean (P,), precision (P,)), or None.
      penalised: quantities that a batch may add a quadratic penalty on.
      barrier: weight of the logarithmic barrier of the law's constraint.
      ratio: ρ, variance of the noise that a group shares over that of a row.
      names: of θ, such as "A[sw]". fitted_parameters: the law's parameter that each of θ is.
      inactive: names of parameters on which no row depends, which are not among θ.
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
    names: tuple[str, ...] = ()
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
    def exponential(self) -> np.ndarray:
        """(P,) bool: logarithms of parameters that the predictions are linear in."""
        return np.array([q.log and q.linear for q in self.fitted_parameters], bool)

    @cached_property
    def variables(self) -> SimpleNamespace:
        """The law's variables on all rows, (n,) each, by attribute."""
        return SimpleNamespace(**self.x)

    @cached_property
    def start_ranges(self) -> np.ndarray:
        """(P, 2): where searches start, in the fitted scale."""
        ranges = [np.log(q.start) if q.log else q.start for q in self.fitted_parameters]
        return np.array(ranges, float).reshape(-1, 2)

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
            prior=None if self.prior is None else (self.prior[0][fitted], self.prior[1][fitted]),
            names=tuple(itertools.compress(self.names, fitted)),
            fitted_parameters=tuple(itertools.compress(self.fitted_parameters, fitted)),
        )

    # Parameters of cells -----------------------------------------------------------------------------------

    def all_cell_parameters(self, theta: np.ndarray) -> np.ndarray:
        """(B, C, k): the law's parameters in every cell, in the fitted scale."""
        return np.stack([cell.values(theta) for cell in self.cells], axis=1)

    @cached_property
    def cell_of_row(self) -> np.ndarray:
        """(n,) int."""
        return np.repeat(
            np.arange(len(self.cells)), [cell.rows.stop - cell.rows.start for cell in self.cells]
        )

    @cached_property
    def _fitted(self) -> np.ndarray:
        """Indices of the law's parameters that are fitted in any cell."""
        return np.flatnonzero(np.any([cell.own.any(axis=1) for cell in self.cells], axis=0))

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

    def law_parameters(self, values: Sequence[np.ndarray], order: int = 0) -> SimpleNamespace:
        """The law's parameters by name in the paper's units, from their k values in the fitted scale.

        order: 0 (plain arrays), 1 (jets with gradients in the values that are fitted) or 2 (and Hessians).
        """
        parts: list[JetOrArray] = list(values)
        for index in self._fitted if order else ():
            parts[index] = Jet.variable(parts[index], int(index), order)
        made = {}
        for index, parameter in enumerate(self.law.parameters):
            part = parts[index]
            for other in np.flatnonzero(self.shift[index]):
                part = part + parts[other] * self.shift[index, other]
            made[parameter.name] = np.exp(part) if self.logs[index] else part
        return SimpleNamespace(**made)

    def cell_parameters(self, theta: np.ndarray, cell: ParameterCell, order: int = 0) -> SimpleNamespace:
        """As `law_parameters`, in one cell: (B, 1) each."""
        return self.law_parameters(list(cell.values(theta).T[:, :, None]), order)

    def row_parameters(self, theta: np.ndarray, order: int = 0) -> SimpleNamespace:
        """As `law_parameters`, on every row: (B, n) each, or (B, 1) where all rows have the same."""
        local = self.all_cell_parameters(theta)
        values = [
            local[:, :1, index] if same else local[:, self.cell_of_row, index]
            for index, same in enumerate(self._same_in_all_cells)
        ]
        return self.law_parameters(values, order)

    # Predictions -------------------------------------------------------------------------------------------

    def predict(self, theta: np.ndarray) -> np.ndarray:
        """Predictions (B, n) in the units of the response."""
        predicted = self.law.predict(self.row_parameters(theta), self.variables)
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
        inside = self.law.constraint(self.row_parameters(theta), self.variables)
        return np.broadcast_to(inside, (len(theta), len(self.y)))

    def slopes(self, theta: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Predictions (B, n), and their derivatives in the law's parameters of the row's cell, (B, k, n)."""
        shape = len(theta), len(self.y)
        with np.errstate(all="ignore"):
            out = self.law.predict(self.row_parameters(theta, 1), self.variables)
            return np.broadcast_to(value_of(out), shape), dense_gradient(out, range(len(self.logs)), shape)

    def quantity_values(self, quantity: Quantity, theta: np.ndarray) -> np.ndarray:
        """(B, m): every scalar of a quantity at every theta (B, P)."""
        if isinstance(quantity, Linear):
            return theta @ quantity.rows.T + quantity.offset
        p = self.cell_parameters(theta, self.cells[quantity.cell])
        with np.errstate(all="ignore"):
            out = quantity.function(p, SimpleNamespace(**quantity.x))
        return np.broadcast_to(out, (len(theta), len(quantity)))

    def quantity_derivatives(
        self, quantity: Quantity, theta: np.ndarray, scalar: np.ndarray, order: int = 1
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Value (B,) and gradient (B, P) of the scalar of index scalar[b] of a quantity at theta[b] (B, P).

        order: 1, or 2 for their Hessians (B, P, P) too.
        """
        B, P = theta.shape
        slope, curved = np.zeros((B, P)), np.zeros((B, P, P) if order > 1 else (B, 0, 0))
        if isinstance(quantity, Linear):
            slope[:] = quantity.rows[scalar]
            return np.einsum("bp,bp->b", slope, theta) + quantity.offset[scalar], slope, curved
        cell, k = self.cells[quantity.cell], len(self.logs)
        x = SimpleNamespace(**{name: values[scalar, None] for name, values in quantity.x.items()})
        with np.errstate(all="ignore"):
            out = quantity.function(self.cell_parameters(theta, cell, order), x)
        slope[:, cell.columns] = dense_gradient(out, range(k), (B, 1))[:, :, 0] @ cell.own
        if order > 1 and isinstance(out, Jet):
            local = np.zeros((B, k, k))
            for (i, j), part in (out.hess or {}).items():
                local[:, i, j] = local[:, j, i] = np.broadcast_to(part, (B, 1))[:, 0]
            curved[:, cell.columns[:, None], cell.columns] = cell.own.T @ local @ cell.own
        return np.broadcast_to(value_of(out), (B, 1))[:, 0], slope, curved

    def penalised_derivatives(
        self, theta: np.ndarray, which: np.ndarray, order: int = 1
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """As `quantity_derivatives`, of scalar which[b] among all those of the penalised quantities."""
        B, P = theta.shape
        found = np.empty(B), np.zeros((B, P)), np.zeros((B, P, P) if order > 1 else (B, 0, 0))
        first = 0
        for quantity in self.penalised:
            at = np.flatnonzero((which >= first) & (which < first + len(quantity)))
            if len(at):
                parts = self.quantity_derivatives(quantity, theta[at], which[at] - first, order)
                for whole, part in zip(found, parts, strict=True):
                    whole[at] = part
            first += len(quantity)
        return found

    # Objective ---------------------------------------------------------------------------------------------

    def objective(self, theta: np.ndarray, batch: Batch | None = None) -> np.ndarray:
        """(B,): Σ w·ρ(residual) less what the predicted group effects explain; no prior, penalty or barrier."""
        batch = self.batch() if batch is None else batch
        r = self.residuals(theta, batch.y)
        return self._value_and_influence(r, huber(r, self.delta), batch)[0]

    def total_objective(self, theta: np.ndarray, batch: Batch) -> np.ndarray:
        """(B,): with prior, penalty and barrier; infinite where it is not defined."""
        return self._in_blocks(theta, batch, 0)[0]

    def value_and_gradient(self, theta: np.ndarray, batch: Batch) -> tuple[np.ndarray, np.ndarray]:
        """The total objective (B,) and its gradient (B, P), at a fifth of the cost of all `derivatives`."""
        f, g, _, _ = self._in_blocks(theta, batch, 1)
        return f, g

    def derivatives(self, theta: np.ndarray, batch: Batch, majorise: bool = True) -> tuple[np.ndarray, ...]:
        """The total objective with all its derivatives.

        Returns: objective (B,), gradient (B, P), Hessian (B, P, P), and a positive semi-definite majoriser of it
          (B, P, P) (that of iteratively reweighted Gauss-Newton; zeros if not wanted).
        """
        return self._in_blocks(theta, batch, 2, majorise)

    def _in_blocks(
        self, theta: np.ndarray, batch: Batch, order: int, majorise: bool = False
    ) -> tuple[np.ndarray, ...]:
        """The derivatives up to `order`, for as many problems at a time as `_BLOCK_ELEMENTS` allows."""
        size = max(1, _BLOCK_ELEMENTS // len(self.y))
        pieces = [slice(start, start + size) for start in range(0, len(theta), size)]
        with np.errstate(all="ignore"):
            done = [self._derivatives(theta[piece], batch.take(piece), order, majorise) for piece in pieces]
        return (
            done[0] if len(done) == 1 else tuple(np.concatenate(parts) for parts in zip(*done, strict=True))
        )

    def _derivatives(
        self, theta: np.ndarray, batch: Batch, order: int, majorise: bool
    ) -> tuple[np.ndarray, ...]:
        (B, P), weights = theta.shape, self.weights(batch)
        sums = _Derivatives.zeros(B, P, order, majorise)
        out, inside = self._law_on_rows(theta, order)
        predicted = np.broadcast_to(value_of(out), (B, len(self.y)))
        residual, chain = predicted - batch.y, np.ones((1, 1))
        if self.law.residual == "log":
            residual, chain = np.log(predicted * (1.0 / batch.y)), 1.0 / predicted
        loss = huber(residual, self.delta)
        sums.f, influence = self._value_and_influence(residual, loss, batch)
        if order:
            outer: tuple[np.ndarray, ...] = ()
            if order > 1:
                # For the logarithm, ∇²r = ∇²out/out − ∇r·∇rᵀ: the second term is subtracted here.
                curvature = weights * loss.curvature - (influence if self.law.residual == "log" else 0.0)
                outer = curvature * chain**2, weights * loss.irls_weight * chain**2
            J = self._add_jet(sums, out, influence * chain, outer)
            if order > 1 and batch.ratio.any():
                self._subtract_group_effects(sums, J * chain[:, None], batch)
        if inside is not None:
            value = np.broadcast_to(value_of(inside), predicted.shape)
            sums.f -= self.barrier * np.log(value).sum(axis=1)
            if order:
                self._add_jet(sums, inside, -self.barrier / value, (self.barrier / value**2,) * 2)
        if self.prior is not None:
            mean, precision = self.prior
            sums.f += 0.5 * ((theta - mean) ** 2 * precision).sum(axis=1)
            sums.g += (theta - mean) * precision
            for matrix in sums.matrices:
                np.einsum("bii->bi", matrix)[...] += precision
        if self.penalised:
            self._add_penalty(theta, batch, sums)
        sums.f[~np.isfinite(sums.f)] = np.inf
        return sums.f, sums.g, sums.H, sums.M

    def _law_on_rows(self, theta: np.ndarray, order: int) -> tuple[JetOrArray, JetOrArray | None]:
        """The prediction, and the law's constraint where it is a barrier."""
        p, x, law = self.row_parameters(theta, order), self.variables, self.law
        return law.predict(p, x), law.constraint(p, x) if law.constraint and self.barrier else None

    def _value_and_influence(
        self, residual: np.ndarray, loss: HuberLoss, batch: Batch
    ) -> tuple[np.ndarray, np.ndarray]:
        """The objective (B,) of residuals (B, n), and its derivative in each: w·(ψ − predicted group effect)."""
        weights = self.weights(batch)
        f = np.einsum("bn,bn->b", np.broadcast_to(weights, residual.shape), loss.rho)
        if not batch.ratio.any():
            return f, weights * loss.psi
        coefficients, sums = self._woodbury_coefficients(batch), self.group_sums(self.weight * residual)
        f -= 0.5 * np.sum(self._group_multiplicity(batch) * coefficients * sums**2, axis=1)
        return f, weights * (loss.psi - (coefficients * sums)[:, self.group])

    def _add_jet(
        self, sums: _Derivatives, out: JetOrArray, first: np.ndarray, outer: tuple[np.ndarray, ...]
    ) -> np.ndarray:
        """Adds Σ_rows φ(out): first is φ' (B, n); outer are the weights (B, n) of ∇out·∇outᵀ in H and in M.

        Returns: ∇out (B, k', n) in the law's fitted parameters.
        """
        B, n = len(sums.g), len(self.y)
        J = dense_gradient(out, self._fitted, (B, n))
        place = {int(index): position for position, index in enumerate(self._fitted)}
        hessian = out.hess if isinstance(out, Jet) and out.hess else {}
        entries = np.empty((len(hessian), B, n))
        for entry, second in zip(entries, hessian.values(), strict=True):
            np.multiply(first, second, out=entry)
        at = [(place[i], place[j]) for i, j in hessian]
        for cell in self.cells:
            own, here = cell.own[self._fitted], J[:, :, cell.rows]
            sums.g[:, cell.columns] += (here @ first[:, cell.rows, None])[:, :, 0] @ own
            curved = entries[:, :, cell.rows].sum(axis=2)
            for matrix, weight in zip(sums.matrices, outer, strict=False):
                local = (here * weight[:, None, cell.rows]) @ here.swapaxes(1, 2)
                if matrix is sums.H:
                    for (i, j), entry in zip(at, curved, strict=True):
                        local[:, i, j] += entry
                        if i != j:
                            local[:, j, i] += entry
                matrix[:, cell.columns[:, None], cell.columns] += own.T @ local @ own
        return J

    def _subtract_group_effects(self, sums: _Derivatives, J: np.ndarray, batch: Batch) -> None:
        """What the predicted group effects explain, in the Hessian and its majoriser; J (B, k', n) of the residuals."""
        by_group, weighted = np.zeros((len(J), self.size, self.groups)), J * self.weight
        for cell in self.cells:
            rows = weighted[:, :, cell.rows]
            of_cell = (self._membership[cell.rows].T @ rows.reshape(-1, rows.shape[2]).T).T
            by_group[:, cell.columns] += cell.own[self._fitted].T @ of_cell.reshape(*rows.shape[:2], -1)
        scale = self._group_multiplicity(batch) * self._woodbury_coefficients(batch)
        common = (by_group * scale[:, None]) @ by_group.swapaxes(1, 2)
        for matrix in sums.matrices:
            matrix -= common

    def _add_penalty(self, theta: np.ndarray, batch: Batch, sums: _Derivatives) -> None:
        """Adds ½·penalty_weight·(h(θ) − target)² to the objective and its derivatives."""
        which, target, weight = batch.quantity, batch.target, batch.penalty_weight
        assert which is not None and target is not None and weight is not None
        h, slope, curved = self.penalised_derivatives(theta, which, 2 if sums.matrices else 1)
        away = h - target
        sums.f += 0.5 * weight * away**2
        sums.g += (weight * away)[:, None] * slope
        if sums.matrices:
            outer = weight[:, None, None] * slope[:, :, None] * slope[:, None, :]
            sums.H += outer + (weight * away)[:, None, None] * curved
            for majoriser in sums.matrices[1:]:
                majoriser += outer

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
    def _membership(self) -> csr_array:
        """(n, G) 1 where a row is of a group."""
        n = len(self.group)
        return csr_array((np.ones(n), (np.arange(n), self.group)), shape=(n, self.groups))

    def group_sums(self, values: np.ndarray) -> np.ndarray:
        """Sums over the rows of each group, (B, n) -> (B, G)."""
        return (self._membership.T @ values.T).T

    def _woodbury_coefficients(self, batch: Batch) -> np.ndarray:
        """(B, G) c = ρ/(1 + ρ·Σw) of each group, with which (W⁻¹ + ρ·11ᵀ)⁻¹ = W − c·W11ᵀW."""
        ratio = batch.ratio[:, None]
        return ratio / (1.0 + ratio * self.group_sums(self.weight[None]))
