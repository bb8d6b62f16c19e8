"""Scalars that follow from a fit's parameters: a parameter, a prediction, an exponent. `Problem` evaluates them."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np


@dataclass(frozen=True)
class Linear:
    """m scalars rows (m, P) @ θ + offset (m,), θ in the fitted scale."""

    rows: np.ndarray
    offset: np.ndarray

    def __len__(self) -> int:
        return len(self.rows)


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


Quantity = Linear | Derived
