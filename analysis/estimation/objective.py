"""The objective that is minimised: Huber's loss or squares of the residuals, with derivatives, cell by cell.

The law is evaluated on forward-mode jets (`autodiff.Jet`), so a residual r comes with its first and second
derivatives in the law's own parameters. With weights w, the objective of the rows is Σ w·ρ(r). Its Hessian is
Σ w·(ρ''(r)·∇r·∇rᵀ + ρ'(r)·∇²r). Its majoriser is Σ w·(ρ'(r)/r)·∇r·∇rᵀ: iteratively reweighted Gauss-Newton.
"""

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

import numpy as np
from threadpoolctl import threadpool_limits

from analysis.estimation.autodiff import Jet, value_of
from analysis.laws.law import Law

# Residuals (B, n) -> by how much group effects lower the objective, (B,), and the predicted effect of each row's
# group, (B, n): ρ/(1 + ρ·Σw)·Σ w·r, its best linear unbiased prediction.
GroupEffects = Callable[[np.ndarray], tuple[np.ndarray, np.ndarray]]


@dataclass(frozen=True)
class RowTerms:
    """All that the objective of the rows depends on besides the parameters. B problems, n rows, C cells.

    Attributes:
      variables: the law's variables by attribute, (n,) each.
      y: responses, (1, n) or (B, n). weights: of the rows, (1, n) or (B, n).
      free: indices of the k parameters of the law that are fitted.
      cells: the rows of each cell, C slices in order.
      delta: Huber's threshold, None for least squares.
      barrier: weight of −Σ log(constraint), for laws that have a constraint.
      group_effects: of rows whose noise is partly common to their group, None without groups.
    """

    law: Law
    variables: Any
    y: np.ndarray
    weights: np.ndarray
    free: np.ndarray
    cells: Sequence[slice]
    delta: float | None
    barrier: float = 0.0
    group_effects: GroupEffects | None = None

    @property
    def has_barrier(self) -> bool:
        return self.law.constraint is not None and self.barrier > 0

    @property
    def column_of(self) -> dict[int, int]:
        """From the index of a fitted parameter of the law to its column in derivatives, 0 to k − 1."""
        return {int(index): position for position, index in enumerate(self.free)}

    @property
    def starts(self) -> list[int]:
        """The first row of each cell."""
        return [rows.start for rows in self.cells]


def huber(
    r: np.ndarray, delta: float | None, majorise: bool = True
) -> tuple[np.ndarray, np.ndarray, Any, Any]:
    """Huber's loss (1964): r²/2 within ±δ, linear beyond.

    Returns ρ(r), its influence function ψ = ρ', ρ'', and ψ/r (None unless `majorise`). For δ None ρ = r²/2; the last
    two, which are 1 everywhere, are then None.
    """
    if delta is None:
        return 0.5 * r * r, r, None, None
    psi = np.clip(r, -delta, delta)
    size = np.abs(r)
    rho = psi * (-0.5)
    rho += r
    rho *= psi
    return rho, psi, size <= delta, delta / np.maximum(size, delta) if majorise else None


def row_derivatives(terms: RowTerms, p: Any, majorise: bool) -> tuple[Any, ...]:
    """The objective of the rows with all its derivatives, at parameters p (second-order jets, by attribute).

    Returns: objective (B,); gradients (C, B, k), Hessians (C, B, k, k) and majorisers (C, B, k, k; (0, B, k, k) if not
      wanted) of the cells, all in the law's free parameters; and the Jacobian of the residuals (B, k, n).
    """
    law, y, w, cells = terms.law, terms.y, terms.weights, terms.cells
    column_of = terms.column_of
    k, n = len(terms.free), y.shape[-1]
    out, constraint = _evaluate_law(terms, p)
    log = law.residual == "log"
    if not isinstance(out, Jet):
        out = Jet(out, {}, {})
    B = max(len(w), len(np.atleast_2d(out.value)), len(np.atleast_2d(y)))
    inverse: Any = 1.0
    if log:
        inverse = 1.0 / out.value
        residual = np.log(out.value * (1.0 / y))
    else:
        residual = out.value - y
    residual = np.broadcast_to(residual, (B, n))
    rho, psi, curvature, irls_weight = huber(residual, terms.delta, majorise)
    J = np.empty((B, k, n))
    for index, grad in out.grad.items():
        np.multiply(grad, inverse, out=J[:, column_of[index]])
    for index in terms.free:
        if int(index) not in out.grad:
            J[:, column_of[int(index)]] = 0.0
    f, influence = _value_and_influence(residual, rho, psi, w, terms.group_effects)
    # For least squares ρ'' = ψ/r = 1.
    curvature = np.broadcast_to(w, (B, n)) if curvature is None else w * curvature
    # ∇² log f = ∇²f/f − ∇log f·∇log fᵀ: the second term is subtracted here, the first added below (`second`).
    newton = J * (curvature - influence if log else curvature)[:, None]
    gauss_newton = J * (curvature if irls_weight is None else w * irls_weight)[:, None] if majorise else J
    second = influence * inverse if log else influence
    C = len(cells)
    g, H = np.empty((C, B, k)), np.empty((C, B, k, k))
    M = np.empty((C, B, k, k) if majorise else (0, B, k, k))
    for number, rows in enumerate(cells):
        J_cell = J[:, :, rows]
        np.matmul(J_cell, influence[:, rows, None], out=g[number, :, :, None])
        np.matmul(newton[:, :, rows], J_cell.swapaxes(1, 2), out=H[number])
        if majorise:
            np.matmul(gauss_newton[:, :, rows], J_cell.swapaxes(1, 2), out=M[number])
    if out.hess:
        parts = np.empty((len(out.hess), B, n))
        for part, entry in zip(parts, out.hess.values(), strict=True):
            np.multiply(second, entry, out=part)
        _add_entries((H,), np.array([(column_of[i], column_of[j]) for i, j in out.hess]), parts, terms.starts)
    if terms.has_barrier:
        _add_barrier(terms, constraint, f, g, (H, M) if majorise else (H,))
    return f, g, H, M, J


def row_gradient(terms: RowTerms, p: Any) -> tuple[np.ndarray, np.ndarray]:
    """The objective (B,) and the gradients of the cells (C, B, k), at parameters p (first-order jets)."""
    y, w, cells = terms.y, terms.weights, terms.cells
    out, constraint = _evaluate_law(terms, p)
    log = terms.law.residual == "log"
    residual = np.log(value_of(out) * (1.0 / y)) if log else value_of(out) - y
    B = max(len(w), len(residual))
    residual = np.broadcast_to(residual, (B, y.shape[-1]))
    rho, psi, _, _ = huber(residual, terms.delta, False)
    f, influence = _value_and_influence(residual, rho, psi, w, terms.group_effects)
    if log:
        influence = influence / value_of(out)
    starts = terms.starts
    g = np.zeros((len(cells), B, len(terms.free)))
    for position, index in enumerate(terms.free):
        if isinstance(out, Jet) and int(index) in out.grad:
            g[:, :, position] = np.add.reduceat(influence * out.grad[int(index)], starts, axis=1).T
    if terms.has_barrier:
        _add_barrier(terms, constraint, f, g, ())
    return f, g


def _evaluate_law(terms: RowTerms, p: Any) -> tuple[Any, Any]:
    """The prediction, and the law's constraint if there is a barrier."""
    law, x = terms.law, terms.variables
    if law.constraint is None or not terms.has_barrier:
        return law.predict(p, x), None
    return (law.predict(p, x), law.constraint(p, x)) if law.both is None else law.both(p, x)


def _value_and_influence(
    residual: np.ndarray, rho: np.ndarray, psi: np.ndarray, w: np.ndarray, group_effects: GroupEffects | None
) -> tuple[np.ndarray, np.ndarray]:
    """The objective (B,) and its derivative in every residual, w·(ψ − group effect), (B, n)."""
    f = np.einsum("bn,bn->b", np.broadcast_to(w, residual.shape), rho)
    if group_effects is None:
        return f, w * psi
    saved, effect = group_effects(residual)
    return f - saved, w * (psi - effect)


def _add_entries(matrices: Sequence[np.ndarray], at: np.ndarray, parts: np.ndarray, starts: list) -> None:
    """Adds parts (m, B, n), summed over cells, to entries at (m, 2), and their mirrors, of matrices (C, B, k, k)."""
    sums = np.add.reduceat(parts, starts, axis=2).T
    i, j = at.T
    off = i != j
    for matrix in matrices:
        matrix[:, :, i, j] += sums
        matrix[:, :, j[off], i[off]] += sums[:, :, off]


def _add_barrier(
    terms: RowTerms, constraint: Any, f: np.ndarray, g: np.ndarray, matrices: Sequence[np.ndarray]
) -> None:
    """Adds the logarithmic barrier −barrier·Σ log(constraint) to f (B,), g (C, B, k) and matrices (C, B, k, k).

    Where a row violates the constraint, f is infinite.
    """
    barrier, column_of, starts = terms.barrier, terms.column_of, terms.starts
    f[np.any(value_of(constraint) <= 0, axis=-1)] = np.inf
    if not isinstance(constraint, Jet):
        return
    which = list(constraint.grad)
    at = np.array([column_of[index] for index in which], int)
    shape = constraint.value.shape
    slopes = np.empty((len(which), *shape))
    for slope, entry in zip(slopes, constraint.grad.values(), strict=True):
        np.divide(entry, constraint.value, out=slope)
    f -= barrier * np.sum(np.log(constraint.value), axis=1)
    g[:, :, at] -= barrier * np.add.reduceat(slopes, starts, axis=2).T
    if not matrices:
        return
    i, j = np.triu_indices(len(which))
    _add_entries(matrices, np.stack([at[i], at[j]], axis=1), barrier * slopes[i] * slopes[j], starts)
    if constraint.hess:
        parts = np.empty((len(constraint.hess), *shape))
        for part, entry in zip(parts, constraint.hess.values(), strict=True):
            np.multiply(entry, -barrier / constraint.value, out=part)
        _add_entries(
            matrices, np.array([(column_of[a], column_of[b]) for a, b in constraint.hess]), parts, starts
        )


def dense_derivatives(out: Jet, count: int, B: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """A scalar jet as value (B,), gradient (B, count) and Hessian (B, count, count)."""
    slope, curved = np.zeros((B, count)), np.zeros((B, count, count))
    for index, part in out.grad.items():
        slope[:, index] = np.broadcast_to(part, (B, 1))[:, 0]
    for (i, j), part in (out.hess or {}).items():
        curved[:, i, j] = curved[:, j, i] = np.broadcast_to(part, (B, 1))[:, 0]
    return np.broadcast_to(out.value, (B, 1))[:, 0], slope, curved


def evaluate_in_blocks(
    evaluate: Callable, theta: np.ndarray, batch: Any, size: int
) -> tuple[np.ndarray, ...]:
    """evaluate(theta, batch) for `size` problems at a time, so that the working arrays fit the processor's cache."""
    B = len(theta)
    pieces = [slice(start, min(B, start + size)) for start in range(0, B, size)]
    with np.errstate(all="ignore"):
        done = [evaluate(theta[piece], batch.take(piece)) for piece in pieces]
    return done[0] if len(done) == 1 else tuple(np.concatenate(parts) for parts in zip(*done, strict=True))


def one_blas_thread() -> AbstractContextManager:
    """A context in which BLAS uses one thread: a large report takes 6 s of CPU so, and 33 s with two threads."""
    return threadpool_limits(1, user_api="blas")
