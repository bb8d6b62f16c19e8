"""The order of a language's windows: a keyed pseudo-random permutation (Feistel network) for each epoch."""

from collections.abc import Sequence
from math import isqrt
from typing import NamedTuple

import numpy as np


class FeistelDomains(NamedTuple):
    """Of each language: n windows, a grid of a × b ≥ n cells that numbers them, and a key; all (languages,) uint64."""

    n: np.ndarray
    a: np.ndarray
    b: np.ndarray
    key: np.ndarray


def feistel_domains(windows: Sequence[int], keys: Sequence[int]) -> FeistelDomains:
    """Returns the domains of languages with these numbers of windows and 64-bit keys."""
    a = [isqrt(n - 1) + 1 for n in windows]
    b = [-(-n // side) for n, side in zip(windows, a, strict=True)]
    return FeistelDomains(*(np.array(column, np.uint64) for column in (windows, a, b, keys)))


def permuted_windows(domains: FeistelDomains, language: np.ndarray, item: np.ndarray) -> np.ndarray:
    """Returns the window of each item, int64: item m is element m mod n of the permutation of epoch m div n.

    A Feistel network on Z_a × Z_b with cycle walking: it is applied again until the result is below n (Black and
    Rogaway 2002, "Ciphers with arbitrary finite domains"). As a·b < n + a, few items need a second application.

    Args:
      domains: of all languages.
      language: language id of each item.
      item: number of each item within its language, from 0 over all epochs.
    """
    n, a, b = domains.n[language], domains.a[language], domains.b[language]
    epoch, x = np.divmod(item.astype(np.uint64), n)
    key = splitmix64(domains.key[language] + epoch * GOLDEN_RATIO_64)
    x = _feistel(x, a, b, key)
    out_of_range = np.flatnonzero(x >= n)
    while out_of_range.size:
        x[out_of_range] = _feistel(x[out_of_range], a[out_of_range], b[out_of_range], key[out_of_range])
        out_of_range = out_of_range[x[out_of_range] >= n[out_of_range]]
    return x.astype(np.int64)


def _feistel(x: np.ndarray, a: np.ndarray, b: np.ndarray, key: np.ndarray) -> np.ndarray:
    left, right = np.divmod(x, b)
    for constant in _ROUNDS:
        left = (left + _hash_below(right + (key ^ constant), a)) % a
        right = (right + _hash_below(left + (key + constant), b)) % b
    return left * b + right


def _hash_below(x: np.ndarray, m: np.ndarray) -> np.ndarray:
    """A hash of x in [0, m), for m < 2^32."""
    return ((splitmix64(x) >> np.uint64(32)) * m) >> np.uint64(32)


# 2^64 over the golden ratio, the increment of splitmix64; and the round keys, from the digits of π.
GOLDEN_RATIO_64 = np.uint64(0x9E3779B97F4A7C15)
_ROUNDS = (np.uint64(0x243F6A8885A308D3), np.uint64(0x13198A2E03707344), np.uint64(0xA4093822299F31D0))


def splitmix64(x: np.ndarray) -> np.ndarray:
    """The finaliser of splitmix64, a hash of 64 bits (Steele et al. 2014)."""
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))
