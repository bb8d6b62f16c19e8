"""Huber's loss, and the threads that evaluate it."""

from contextlib import AbstractContextManager
from typing import NamedTuple

import numpy as np
from threadpoolctl import threadpool_limits


class HuberLoss(NamedTuple):
    """ρ(r), its influence function ψ = ρ', its curvature ρ'', and ψ/r, the weights of iterated least squares."""

    rho: np.ndarray
    psi: np.ndarray
    curvature: np.ndarray
    irls_weight: np.ndarray


def huber(r: np.ndarray, delta: float | None) -> HuberLoss:
    """Huber's loss (1964): r²/2 within ±δ, linear beyond; r²/2 everywhere for δ None (least squares)."""
    if delta is None:
        one = np.ones((1, 1))
        return HuberLoss(0.5 * r * r, r, one, one)
    psi, size = np.clip(r, -delta, delta), np.abs(r)
    return HuberLoss(psi * (r - 0.5 * psi), psi, size <= delta, delta / np.maximum(size, delta))


def one_blas_thread() -> AbstractContextManager:
    """A context in which BLAS uses one thread: a large report takes 6 s of CPU so, and 33 s with two threads."""
    return threadpool_limits(1, user_api="blas")
