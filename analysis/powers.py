"""The fast way through a law that is a sum of power laws: derivatives without a Jacobian.

If f = rest + Σ_t exp(z_t) with every z_t affine in the parameters, then ∂f/∂θ_i = exp(z_t)·Z_ti, where Z_ti is a row
that all members of a batch share. Gradients and Hessians are then matrix products of one array a term with such rows.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from analysis.derivatives import Jet, Sum
from analysis.losses import huber

LEAST = 5_000  # elements of a batch in a cell, from which a few matrix products for it pay


@dataclass(frozen=True)
class Term:
    """One exponential: its exponent (B, n), the parameters it depends on and their rows Z (k, n)."""

    exponent: np.ndarray
    which: list[int]
    Z: np.ndarray


def terms(out: Any, n: int) -> tuple[list[Term], Term] | None:
    """The terms of a prediction and its affine rest (exponent: the rest's value), or None if it is no such sum."""
    if not isinstance(out, Sum):
        return None
    rest = out.rest if isinstance(out.rest, Jet) else Jet(out.rest, {}, {})
    found = []
    for z in [*(term.log for term in out.terms), rest]:
        if z is not rest and (np.ndim(z.value) != 2 or z.value.shape[1] != n):
            return None
        if z.hess or any(np.ndim(g) > 1 and len(g) > 1 for g in z.grad.values()):
            return None
        Z = np.empty((len(z.grad), n))
        for row, slope in enumerate(z.grad.values()):
            Z[row] = slope
        found.append(Term(z.value, list(z.grad), Z))
    return found[:-1], found[-1]


def pays(found: tuple[list[Term], Term], n: int, cells: int) -> bool:
    """Whether a batch over n rows in so many cells is large enough that this way is the faster one."""
    return max((len(term.exponent) for term in found[0]), default=0) * n >= LEAST * cells


def system(
    found: tuple[list[Term], Term],
    place: dict[int, int],
    log: bool,
    y: np.ndarray,
    w: np.ndarray,
    delta: float | None,
    majorise: bool,
    cells: Sequence[slice],
) -> tuple[Any, ...]:
    """Objective, and gradients, Hessians and majorisers of the cells, as `objective.rows_system` returns them."""
    powers, rest = found
    raised = [np.exp(term.exponent) for term in powers]
    value = raised[0] + rest.exponent
    for e in raised[1:]:
        value += e
    if log:
        inverse = np.reciprocal(value)
        value *= 1.0 / y
        r = np.log(value, out=value)
        for e in raised:
            e *= inverse
    else:
        inverse = np.ones(value.shape)
        r = value
        r -= y
    B, k = len(r), len(place)
    rho, psi, steep, ratio = huber(r, delta, majorise)
    f = np.einsum("bn,bn->b", np.broadcast_to(w, r.shape), rho)
    pull = np.multiply(w, psi, out=psi if psi is not r else None)
    flat = w * steep if steep is not None else np.broadcast_to(w, r.shape)
    C = len(cells)
    g = np.zeros((C, B, k))
    H, M = np.zeros((C, B, k, k)), np.zeros((C, B, k, k))
    sides = [(e, term) for e, term in zip(raised, powers, strict=True)]
    if rest.which:
        sides.append((inverse, rest))
    weights = [(H, flat - pull if log else flat)]
    if majorise:
        weights.append((M, flat if ratio is None else w * ratio))
    at = [np.array([place[index] for index in term.which]) for _, term in sides]
    for number, (q, term) in enumerate(sides):
        pulled = pull * q
        for mine, rows in zip(g, cells, strict=True):
            mine[:, at[number]] += pulled[:, rows] @ term.Z[:, rows].T
        for matrix, weight in weights:
            mine = weight * q
            for other in range(number + 1):
                product = mine * sides[other][0]
                if other == number and matrix is H and term is not rest:
                    product += pulled
                X = sides[other][1].Z
                for block, rows in zip(matrix, cells, strict=True):
                    pair = (at[number], term.Z[:, rows], at[other], X[:, rows])
                    _scatter(block, product[:, rows], *pair, other == number)
    return f, g, H, M, None


def _scatter(
    matrix: np.ndarray,
    product: np.ndarray,
    rows: np.ndarray,
    Z: np.ndarray,
    columns: np.ndarray,
    X: np.ndarray,
    own: bool,
) -> None:
    """Adds Σ_n product·Z_i·X_j to the entries (rows_i, columns_j) and, but for a term with itself, their mirror."""
    block = product @ (Z[:, None] * X[None]).reshape(-1, Z.shape[1]).T
    for i, row in enumerate(rows):
        for j, column in enumerate(columns):
            part = block[:, i * len(columns) + j]
            matrix[:, row, column] += part
            if not own:
                matrix[:, column, row] += part
