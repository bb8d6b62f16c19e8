"""Scalars that follow from a fit's parameters (a parameter, a prediction, an exponent), with their derivatives."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any, Protocol

import numpy as np

from analysis.estimation.autodiff import Jet
from analysis.estimation.objective import dense_derivatives


class _Cell(Protocol):
    """As `analysis.estimation.problem.ParameterCell`."""

    @property
    def selection(self) -> np.ndarray: ...

    @property
    def free(self) -> np.ndarray: ...


class Parametrised(Protocol):
    """What the quantities need of a problem: how the parameters of its cells follow from θ (`Problem` is one)."""

    @property
    def cells(self) -> Sequence[_Cell]: ...

    def cell_parameters(self, theta: np.ndarray, cell: Any) -> np.ndarray: ...

    def jets(self, local: np.ndarray, free: np.ndarray, order: int) -> SimpleNamespace: ...


@dataclass(frozen=True)
class Linear:
    """m scalars rows (m, P) @ θ + offset (m,), θ in the fitted scale."""

    rows: np.ndarray
    offset: np.ndarray

    def __len__(self) -> int:
        return len(self.rows)

    def derivatives(
        self, problem: Parametrised, theta: np.ndarray, which: np.ndarray
    ) -> tuple[np.ndarray, ...]:
        """Value (B,), gradient (B, P) and Hessian (B or 1, P or 1, P or 1) of scalar which[b] at theta[b] (B, P)."""
        slope = self.rows[which]
        return np.einsum("bp,bp->b", slope, theta) + self.offset[which], slope, np.zeros((1, 1, 1))


@dataclass(frozen=True)
class Derived:
    """m scalars function(p, x): p the parameters of one cell in the paper's units, by name, and x {variable: (m,)}.

    cell: its index in the problem. size: m.
    """

    cell: int
    function: Callable[[Any, Any], Any]
    x: Mapping[str, np.ndarray]
    size: int

    def __len__(self) -> int:
        return self.size

    def derivatives(
        self, problem: Parametrised, theta: np.ndarray, which: np.ndarray
    ) -> tuple[np.ndarray, ...]:
        """As `Linear.derivatives`."""
        cell = problem.cells[self.cell]
        x = SimpleNamespace(**{name: values[which, None] for name, values in self.x.items()})
        with np.errstate(all="ignore"):
            out = self.function(problem.jets(problem.cell_parameters(theta, cell), cell.free, 2), x)
            value, slope, curved = dense_derivatives(
                out if isinstance(out, Jet) else Jet(out, {}, {}), len(cell.selection), len(theta)
            )
        return value, slope @ cell.selection, cell.selection.T @ curved @ cell.selection


Quantity = Linear | Derived


def values(problem: Parametrised, quantity: Quantity, theta: np.ndarray) -> np.ndarray:
    """(B, m): every scalar of a quantity at every theta (B, P)."""
    B, m = len(theta), len(quantity)
    if isinstance(quantity, Linear):
        return theta @ quantity.rows.T + quantity.offset
    p = problem.jets(problem.cell_parameters(theta, problem.cells[quantity.cell]), np.zeros(0, bool), 0)
    with np.errstate(all="ignore"):
        return np.broadcast_to(quantity.function(p, SimpleNamespace(**quantity.x)), (B, m))
