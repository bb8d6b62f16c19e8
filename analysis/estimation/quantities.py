"""Scalars that follow from a fit's parameters (a parameter, a prediction, an exponent), with their derivatives."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import numpy as np

from analysis.estimation.autodiff import Jet
from analysis.estimation.objective import dense_derivatives


@dataclass(frozen=True)
class Linear:
    """m scalars rows (m, P) @ θ + offset (m,), θ in the fitted scale."""

    rows: np.ndarray
    offset: np.ndarray

    def __len__(self) -> int:
        return len(self.rows)

    def derivatives(self, problem: Any, theta: np.ndarray, which: np.ndarray) -> tuple[np.ndarray, ...]:
        """Value (B,), gradient (B, P) and Hessian (that broadcasts) of scalar which[b] at theta[b] (B, P)."""
        slope = self.rows[which]
        return np.einsum("bp,bp->b", slope, theta) + self.offset[which], slope, np.zeros((1, 1, 1))


@dataclass(frozen=True)
class Derived:
    """m scalars of(p, x): p the parameters of one cell in the paper's units, by name, and x {variable: (m,)}."""

    cell: int
    of: Callable[[Any, Any], Any]
    x: Mapping[str, np.ndarray]
    size: int

    def __len__(self) -> int:
        return self.size

    def derivatives(self, problem: Any, theta: np.ndarray, which: np.ndarray) -> tuple[np.ndarray, ...]:
        """As `Linear.derivatives`."""
        cell = problem.cells[self.cell]
        x = SimpleNamespace(**{name: values[which, None] for name, values in self.x.items()})
        with np.errstate(all="ignore"):
            out = self.of(problem.jets(problem.locals(theta, cell), cell.free, 2), x)
            value, slope, curved = dense_derivatives(
                out if isinstance(out, Jet) else Jet(out, {}, {}), len(cell.select), len(theta)
            )
        return value, slope @ cell.select, cell.select.T @ curved @ cell.select


Quantity = Linear | Derived


def values(problem: Any, quantity: Quantity, theta: np.ndarray) -> np.ndarray:
    """(B, m): every scalar at every theta (B, P)."""
    B, m = len(theta), len(quantity)
    if isinstance(quantity, Linear):
        return theta @ quantity.rows.T + quantity.offset
    p = problem.jets(problem.locals(theta, problem.cells[quantity.cell]), np.zeros(0, bool), 0)
    with np.errstate(all="ignore"):
        return np.broadcast_to(quantity.of(p, SimpleNamespace(**quantity.x)), (B, m))
