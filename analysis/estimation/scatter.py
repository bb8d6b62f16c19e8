"""Sums over cells, from derivatives in the parameters of each cell to derivatives in θ, as sparse matrix products.

`selections` are the maps of the C cells, (k, P) each: parameters of the cell = selection @ θ + constant. Almost all of
their entries are 0, so dense products Sᵀ·H·S would mostly multiply zeros.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy.sparse import csr_array


@dataclass(frozen=True)
class Scatter:
    """A linear map that adds entries of many small arrays to entries of a large one, for a whole batch at once.

    places: flat indices in the large array. matrix: (len(places), sources), sparse.
    """

    places: np.ndarray
    matrix: Any

    @classmethod
    def of(cls, parts: Sequence[tuple[np.ndarray, np.ndarray, np.ndarray]], sources: int) -> "Scatter":
        """From triplets (place, source, factor), arrays of one length each."""
        place, source, factor = (np.concatenate(part) for part in zip(*parts, strict=True))
        places, row = np.unique(place, return_inverse=True)
        return cls(places, csr_array((factor, (row, source)), shape=(len(places), sources)))

    def add(self, values: np.ndarray, total: np.ndarray) -> None:
        """Adds values (..., B), the sources, to total (B, all places)."""
        total[:, self.places] += (self.matrix @ values.reshape(-1, len(total))).T


def to_gradient(selections: Sequence[np.ndarray]) -> Scatter:
    """From the gradients of the cells (C, k) to the gradient in θ (P,)."""
    parts = []
    for number, S in enumerate(selections):
        local, column = np.nonzero(S)
        parts.append((column, number * len(S) + local, S[local, column]))
    return Scatter.of(parts, sum(map(len, selections)))


def to_hessian(selections: Sequence[np.ndarray]) -> Scatter:
    """From the Hessians of the cells (C, k, k) to the Hessian in θ, (P·P,)."""
    parts = []
    for number, S in enumerate(selections):
        local, column = np.nonzero(S)
        factor, k = S[local, column], len(S)
        i, j = (axis.ravel() for axis in np.indices((len(local), len(local))))
        source = (number * k + local[i]) * k + local[j]
        parts.append((column[i] * S.shape[1] + column[j], source, factor[i] * factor[j]))
    return Scatter.of(parts, sum(len(S) ** 2 for S in selections))


def to_group_jacobian(
    selections: Sequence[np.ndarray], group: np.ndarray, cell: np.ndarray, groups: int
) -> Scatter:
    """From Jacobians summed over segments (k, R) to those summed over groups, in θ, (P·groups,).

    group, cell: (R,) of each segment (the rows of one group in one cell).
    """
    R, parts = len(group), []
    for number, S in enumerate(selections):
        local, column = np.nonzero(S)
        segments = np.flatnonzero(cell == number)
        target = column[:, None] * groups + group[segments]
        source = local[:, None] * R + segments
        parts.append((target.ravel(), source.ravel(), np.repeat(S[local, column], len(segments))))
    return Scatter.of(parts, len(selections[0]) * R)
