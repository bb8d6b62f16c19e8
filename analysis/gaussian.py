"""A Gaussian vector given noisy measurements, and the greedy choice of what to measure next."""

from collections.abc import Callable, Iterator, Sequence
from typing import TypeVar

import numpy as np
from scipy.linalg import cho_factor, cho_solve

_TIE = 1e-9  # relative difference below which two candidates are equal but for rounding


def posterior(
    mean: np.ndarray, covariance: np.ndarray, measured: np.ndarray, values: np.ndarray, noise: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Mean (n,) and covariance (n, n) of a Gaussian vector given measurements of k linear combinations of its entries.

    Args:
      mean, covariance: before the measurements.
      measured: (k, n) weights of the entries; rows of the identity where entries themselves are measured.
      values: (k,) measured. noise: (k, k) covariance of their errors.
    """
    across = measured @ covariance
    gain = cho_solve(cho_factor(across @ measured.T + noise), across)
    return mean + (values - measured @ mean) @ gain, covariance - across.T @ gain


def posterior_covariance(covariance: np.ndarray, measured: np.ndarray, noise: np.ndarray) -> np.ndarray:
    """The covariance of `posterior`, which does not depend on the values measured."""
    return posterior(np.zeros(len(covariance)), covariance, measured, np.zeros(len(measured)), noise)[1]


State = TypeVar("State")
Candidate = TypeVar("Candidate")


def greedy_design(
    state: State,
    offered: Callable[[State], Sequence[Candidate]],
    reductions: Callable[[State, Sequence[Candidate]], np.ndarray],
    measure: Callable[[State, Candidate], State],
    price: Callable[[Candidate], float],
    budget: float = np.inf,
) -> Iterator[tuple[Candidate, State]]:
    """The candidates that take most variance away per unit of price, one by one (Krause, Singh & Guestrin 2008).

    Of equal candidates the first is taken. It ends where no candidate is within what is left of the budget.

    Args:
      state: what is known before the first. offered: the candidates at a state.
      reductions: variance that each candidate is expected to take away; −∞ for one that is not to be taken.
      measure: what is known after a candidate.

    Yields: each candidate, and the state after it.
    """
    while candidates := [one for one in offered(state) if price(one) <= budget]:
        gains = reductions(state, candidates) / np.array([price(one) for one in candidates])
        largest = gains.max()
        if largest == -np.inf:
            return
        best = candidates[int(np.argmax(gains >= largest - _TIE * abs(largest)))]
        state, budget = measure(state, best), budget - price(best)
        yield best, state
