"""The order in which a language's windows are visited: a keyed pseudo-random permutation per epoch."""

from collections.abc import Sequence
from math import isqrt
from typing import NamedTuple

import numpy as np


class FeistelDomains(NamedTuple):
    """Per language: n windows numbered in a grid of a × b ≥ n cells, and its key."""

    n: np.ndarray
    a: np.ndarray
    b: np.ndarray
    key: np.ndarray


def feistel_domains(windows: Sequence[int], keys: Sequence[int]) -> FeistelDomains:
    a = [isqrt(n - 1) + 1 for n in windows]
    b = [-(-n // side) for n, side in zip(windows, a, strict=True)]
    return FeistelDomains(*(np.array(column, np.uint64) for column in (windows, a, b, keys)))


def permuted_windows(domains: FeistelDomains, language: np.ndarray, item: np.ndarray) -> np.ndarray:
    """Returns the window that is the ``item``-th of its language, in a permutation per epoch.

    A Feistel network on Z_a × Z_b, walked until it lands below n (Black and Rogaway 2002, "Ciphers with
    arbitrary finite domains"). As a·b < n + a, hardly any item walks twice.
    """
    n, a, b = domains.n[language], domains.a[language], domains.b[language]
    epoch, x = np.divmod(item.astype(np.uint64), n)
    key = splitmix64(domains.key[language] + epoch * GOLDEN_RATIO_64)
    x = _feistel(x, a, b, key)
    outside = np.flatnonzero(x >= n)
    while outside.size:
        x[outside] = _feistel(x[outside], a[outside], b[outside], key[outside])
        outside = outside[x[outside] >= n[outside]]
    return x.astype(np.int64)


def _feistel(x: np.ndarray, a: np.ndarray, b: np.ndarray, key: np.ndarray) -> np.ndarray:
    left, right = np.divmod(x, b)
    for constant in _ROUNDS:
        left = (left + _below(right + (key ^ constant), a)) % a
        right = (right + _below(left + (key + constant), b)) % b
    return left * b + right


def _below(x: np.ndarray, m: np.ndarray) -> np.ndarray:
    """A pseudo-random number in [0, m) from x, m < 2^32."""
    return ((splitmix64(x) >> np.uint64(32)) * m) >> np.uint64(32)


GOLDEN_RATIO_64 = np.uint64(0x9E3779B97F4A7C15)
_ROUNDS = (np.uint64(0x243F6A8885A308D3), np.uint64(0x13198A2E03707344), np.uint64(0xA4093822299F31D0))


def splitmix64(x: np.ndarray) -> np.ndarray:
    """The finaliser of splitmix64 (Steele et al. 2014)."""
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))
