"""Smoothing of learning curves over log tokens: a penalty on curvature, chosen by generalised cross-validation.

The eigendecomposition depends on tokens and repeats only, so curves that share them are smoothed together.
"""

from dataclasses import dataclass

import numpy as np

_PENALTIES = np.logspace(-6, 4, 31)


@dataclass(frozen=True)
class Smoother:
    """Linear smoothers left·diag(shrink)·right of B curves at the same n points; shrink is (B, n)."""

    left: np.ndarray
    right: np.ndarray
    shrink: np.ndarray

    def __call__(self, losses: np.ndarray) -> np.ndarray:
        """Smoothed losses (B, R, n) of losses (B, R, n)."""
        return ((losses @ self.right.T) * self.shrink[:, None]) @ self.left.T

    def weights(self, average: np.ndarray) -> np.ndarray:
        """Weights (B, n) of the raw losses in a weighted sum, `average` (n,), of the smoothed losses."""
        return ((average @ self.left) * self.shrink) @ self.right

    @property
    def freedom(self) -> np.ndarray:
        """Residual degrees of freedom (B,)."""
        return len(self.left) - self.shrink.sum(axis=1)


def smoother(x: np.ndarray, repeats: np.ndarray, losses: np.ndarray) -> Smoother:
    """Smoothers of losses (B, n) at log tokens x (n,), each the mean of `repeats` (n,) losses.

    With fewer than five points the smoother is the identity.
    """
    n = len(x)
    if n < 5:
        return Smoother(np.eye(n), np.eye(n), np.ones((len(losses), n)))
    # Second divided differences, scaled so that the penalty does not depend on the units of x.
    step = np.diff(x) / np.mean(np.diff(x))
    left, right, row = step[:-1], step[1:], np.arange(n - 2)
    bend = np.zeros((n - 2, n))
    bend[row, row], bend[row, row + 1], bend[row, row + 2] = 1 / left, -1 / left - 1 / right, 1 / right
    bend *= np.sqrt(2 / (left + right))[:, None]
    root = 1 / np.sqrt(repeats)
    values, vectors = np.linalg.eigh(root[:, None] * (bend.T @ bend) * root[None, :])
    values = np.clip(values, 0, None)
    coordinates = (losses * np.sqrt(repeats)) @ vectors
    shrink = 1 / (1 + _PENALTIES[:, None] * values)
    squares = coordinates**2 @ ((1 - shrink) ** 2).T
    scores = squares / np.maximum(n - shrink.sum(axis=1), 1e-9) ** 2
    best, chosen = np.full(len(losses), np.inf), np.full(len(losses), len(shrink) - 1)
    for number, score in enumerate(scores.T):  # of equal scores the smoothest
        better = score < best * (1 + 1e-9)
        best, chosen = np.where(better, score, best), np.where(better, number, chosen)
    return Smoother(root[:, None] * vectors, vectors.T * np.sqrt(repeats)[None, :], shrink[chosen])
