"""Smoothing of learning curves over log tokens: penalised curvature, its penalty chosen by cross-validation.

What is costly depends on tokens and repeats alone, so curves that share them are smoothed together.
"""

from dataclasses import dataclass

import numpy as np

_PENALTIES = np.logspace(-6, 4, 31)


@dataclass(frozen=True)
class Smoother:
    """Linear smoothers of B curves with the same n points: left·diag(shrink)·right, `shrink` (B, n) each its own."""

    left: np.ndarray
    right: np.ndarray
    shrink: np.ndarray

    def __call__(self, losses: np.ndarray) -> np.ndarray:
        """Smoothed losses (B, R, n) of losses (B, R, n)."""
        return ((losses @ self.right.T) * self.shrink[:, None]) @ self.left.T

    def weights(self, average: np.ndarray) -> np.ndarray:
        """What each loss counts (B, n) in the average (n,) of the smoothed ones."""
        return ((average @ self.left) * self.shrink) @ self.right

    @property
    def freedom(self) -> np.ndarray:
        """Degrees of freedom (B,) left in the residuals."""
        return len(self.left) - self.shrink.sum(axis=1)


def smoother(x: np.ndarray, repeats: np.ndarray, losses: np.ndarray) -> Smoother:
    """Smoothers for losses (B, n) at log tokens (n,), each the mean of so many repeats (n,).

    Fewer than five points stay as they are.
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
    for number, score in enumerate(scores.T):  # of equals the smoothest
        better = score < best * (1 + 1e-9)
        best, chosen = np.where(better, score, best), np.where(better, number, chosen)
    return Smoother(root[:, None] * vectors, vectors.T * np.sqrt(repeats)[None, :], shrink[chosen])
