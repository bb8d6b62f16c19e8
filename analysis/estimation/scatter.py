"""From what the rows of a cell say of its own parameters to what they say of θ: sums as sparse products.

`selects` are the maps of the cells, (k, P) each: local = select @ θ. Almost all of their entries are 0.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy.sparse import csr_array


@dataclass(frozen=True)
class Scatter:
    """A sum of entries of many small arrays into the places of a large one, for a whole batch at once."""

    places: np.ndarray
    matrix: Any  # (places, sources), sparse

    @classmethod
    def of(cls, parts: Sequence[tuple[np.ndarray, np.ndarray, np.ndarray]], sources: int) -> "Scatter":
        """From parts (place, source, factor), arrays of one length each."""
        place, source, factor = (np.concatenate(part) for part in zip(*parts, strict=True))
        places, row = np.unique(place, return_inverse=True)
        return cls(places, csr_array((factor, (row, source)), shape=(len(places), sources)))

    def add(self, values: np.ndarray, total: np.ndarray) -> None:
        """Adds values (..., B), the sources, to total (B, all places)."""
        total[:, self.places] += (self.matrix @ values.reshape(-1, len(total))).T


def to_gradient(selects: Sequence[np.ndarray]) -> Scatter:
    """From the gradients of the cells (C, k) to that in θ (P,)."""
    parts = []
    for number, S in enumerate(selects):
        local, column = np.nonzero(S)
        parts.append((column, number * len(S) + local, S[local, column]))
    return Scatter.of(parts, sum(map(len, selects)))


def to_hessian(selects: Sequence[np.ndarray]) -> Scatter:
    """From the Hessians of the cells (C, k, k) to that in θ, (P·P,)."""
    parts = []
    for number, S in enumerate(selects):
        local, column = np.nonzero(S)
        factor, k = S[local, column], len(S)
        i, j = (axis.ravel() for axis in np.indices((len(local), len(local))))
        source = (number * k + local[i]) * k + local[j]
        parts.append((column[i] * S.shape[1] + column[j], source, factor[i] * factor[j]))
    return Scatter.of(parts, sum(len(S) ** 2 for S in selects))


def to_group_jacobian(selects: Sequence[np.ndarray], group: np.ndarray, cell: np.ndarray, groups: int) -> Scatter:
    """From slopes summed over runs (k, R), the rows of a group (R,) in a cell (R,), to θ and groups, (P·G,)."""
    R, parts = len(group), []
    for number, S in enumerate(selects):
        local, column = np.nonzero(S)
        mine = np.flatnonzero(cell == number)
        target = column[:, None] * groups + group[mine]
        source = local[:, None] * R + mine
        parts.append((target.ravel(), source.ravel(), np.repeat(S[local, column], len(mine))))
    return Scatter.of(parts, len(selects[0]) * R)
