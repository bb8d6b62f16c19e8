"""What differs between the problems of a batch."""

from dataclasses import dataclass, fields
from typing import Any

import numpy as np


@dataclass(frozen=True)
class Members:
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

        return Members(*(pick(getattr(self, one.name)) for one in fields(self)))  # type: ignore[arg-type]
