"""The mixture schedule: which window of which language is in which row of which batch, with no state.

Global row g (= step·B + row) is the g-th item to enter a binary tree whose leaves are the languages. A node
sends its k-th item (from 0) left iff ⌊(k+1)p + c⌋ > ⌊kp + c⌋, with p the left share of its weight and c a
phase in [1/4, 3/4) that depends on the seed. So ⌊kp + c⌋ of its first k items went left, which is also the
index k that the item has there: row → (language, index) costs one descent, and counts at any step are
nested floors. Random access is what makes the batches the same on any number of hosts, resuming a matter of
a step number, and exposure arithmetic.

**Bound.** The count of each language differs from rate × rows by at most 3 at every prefix. A child of a
node with error E (items received − share of all rows) has error pE + e, |e| ≤ 3/4 by the choice of c. The
tree is built so that an inner node never holds more than 2/3 of its parent: if a language holds at least
1/3 of a node it becomes a leaf alone (the rest holds ≤ 2/3); else all are under 1/3 and the prefix of them
nearest to 1/2 is within 1/6 of it. So inner nodes have |E| ≤ 3/4·Σ(2/3)^i = 9/4, leaves ≤ 9/4 + 3/4 = 3.
The depth is at most log_1.5(1/smallest rate) + 1. Shares are 60-bit fixed-point integers; over 2^42 rows
rounding them adds under 1e-3. Weights that change at a step start a new tree, so after j changes the bound
is 3(j + 1), and an index goes on from the count of the earlier phases.

**Epochs.** Item m of a language with n windows is window π(m mod n) of epoch m div n, with π a Feistel
permutation keyed by (seed, language, epoch): a language's windows come in the same order whatever it is
mixed with.
"""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from math import isqrt
from typing import NamedTuple

import numpy as np

from mscale.errors import MscaleError
from mscale.mixture import Mixture

_ONE = 1 << 60
_MASK = np.uint64(_ONE - 1)
MAX_ROWS = 1 << 42  # of a whole run; ⌊kp + c⌋ is exact up to here


@dataclass(frozen=True)
class Schedule:
    """A pure function step → (languages, windows) of the global batch.

    Args:
      phases: (first step, mixture), the first at step 0, in ascending order; usually one.
      windows: n of each language, whole windows of S tokens; its windows are 0..n-1.
      batch_size: B, rows of the global batch.
      seed: another seed, another order of languages and windows; counts stay within the same bound.

    Raises:
      MscaleError: phases out of order, a batch size or window count below 1, or a language without windows.
    """

    phases: tuple[tuple[int, Mixture], ...]
    windows: Mapping[str, int]
    batch_size: int
    seed: int = 0

    def __post_init__(self) -> None:
        starts = [start for start, _ in self.phases]
        if not starts or starts[0] != 0 or any(a >= b for a, b in zip(starts, starts[1:], strict=False)):
            raise MscaleError(f"mixture phases start at steps {starts}, expected ascending steps from 0")
        if self.batch_size < 1:
            raise MscaleError(f"batch size is {self.batch_size}, expected at least 1 row")
        for _, mixture in self.phases:
            for language, rate in zip(mixture.languages, mixture.rates, strict=True):
                if rate > 0 and self.windows.get(language, 0) < 1:
                    raise MscaleError(
                        f"mixture {mixture.name!r}: {language} has rate {rate:g} but "
                        f"{self.windows.get(language, 0)} "
                        "windows, expected at least 1"
                    )

    @cached_property
    def languages(self) -> tuple[str, ...]:
        """All languages of all phases, in order of first appearance; language ids index this tuple."""
        return tuple(dict.fromkeys(language for _, mixture in self.phases for language in mixture.languages))

    def batch(self, step: int, rows: slice | None = None) -> tuple[np.ndarray, np.ndarray]:
        """Returns (language ids int32, window ids int64) of ``rows`` of the batch at ``step`` (all B by
        default)."""
        return self.batches(step, step + 1, rows)

    def batches(self, start: int, stop: int, rows: slice | None = None) -> tuple[np.ndarray, np.ndarray]:
        """Returns the batches of steps ``start`` to ``stop`` - 1, one after the other, as ``batch`` does
        one."""
        if not 0 <= start <= stop or stop * self.batch_size > MAX_ROWS:
            raise MscaleError(
                f"steps {start} to {stop} of {self.batch_size} rows: expected 0 ≤ start ≤ stop and at most "
                f"{MAX_ROWS:,} rows in all"
            )
        chosen = np.arange(self.batch_size, dtype=np.int64)[rows or slice(None)]
        steps = np.arange(start, stop, dtype=np.int64)
        return self._lookup((steps[:, None] * self.batch_size + chosen).ravel())

    def windows_seen(self, step: int) -> dict[str, int]:
        """Returns how many windows of each language the steps before ``step`` held; exact, no
        enumeration."""
        if step < 0:
            raise MscaleError(f"windows seen before step {step}: expected a step of 0 or above")
        counts = dict.fromkeys(self.languages, 0)
        for index, (start, _) in enumerate(self.phases):
            end = self.phases[index + 1][0] if index + 1 < len(self.phases) else step
            rows = max(min(end, step) - start, 0) * self.batch_size
            for language, count in _counts(self._trees[index], rows).items():
                counts[self.languages[language]] += count
        return counts

    def exposure(self, step: int, sequence_length: int) -> dict[str, tuple[int, int]]:
        """Returns language → (tokens, unique tokens) that a run has seen before ``step``."""
        return {
            language: (
                count * sequence_length,
                min(count, self.windows[language]) * sequence_length if count else 0,
            )
            for language, count in self.windows_seen(step).items()
        }

    @cached_property
    def _trees(self) -> tuple["_Tree", ...]:
        ids = {language: i for i, language in enumerate(self.languages)}
        return tuple(
            _tree(
                [ids[language] for language in mixture.languages],
                mixture.rates,
                _key("phase", self.seed, index),
            )
            for index, (_, mixture) in enumerate(self.phases)
        )

    @cached_property
    def _carried(self) -> np.ndarray:
        """(phases, languages) windows of each language before each phase."""
        return np.array([list(self.windows_seen(start).values()) for start, _ in self.phases], np.int64)

    @cached_property
    def _domains(self) -> "_Domains":
        return _domains(
            [max(self.windows.get(language, 0), 1) for language in self.languages],
            [_key("windows", self.seed, language) for language in self.languages],
        )

    def _lookup(self, positions: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        starts = np.array([start * self.batch_size for start, _ in self.phases], np.int64)
        languages = np.empty(positions.size, np.int32)
        items = np.empty(positions.size, np.int64)
        phase = np.searchsorted(starts, positions, side="right") - 1
        for index in np.unique(phase):
            of_phase = slice(None) if len(starts) == 1 else np.flatnonzero(phase == index)
            leaf, k = _descend(self._trees[index], positions[of_phase] - starts[index])
            languages[of_phase] = leaf
            items[of_phase] = k + self._carried[index, leaf]
        return languages, _permuted(self._domains, languages, items)


def single(mixture: Mixture, batch_size: int, seed: int = 0) -> Schedule:
    """Returns the schedule of one mixture from step 0 on."""
    return from_phases(((0, mixture),), batch_size, seed)


def from_phases(phases: Sequence[tuple[int, Mixture]], batch_size: int, seed: int = 0) -> Schedule:
    """Returns the schedule of mixtures that follow each other, with the windows that they give.

    Raises:
      MscaleError: two phases allow a language different numbers of windows, or cut windows of different
        lengths.
    """
    windows: dict[str, int] = {}
    for _, mixture in phases:
        if mixture.sequence_length != phases[0][1].sequence_length:
            raise MscaleError(
                f"phases with windows of {phases[0][1].sequence_length} and {mixture.sequence_length} "
                "tokens: "
                "expected one sequence length"
            )
        for language, count in zip(mixture.languages, mixture.unique_windows, strict=True):
            if windows.setdefault(language, count) != count:
                raise MscaleError(
                    f"mixture {mixture.name!r}: {language} has {count} unique windows, an earlier "
                    "phase gave it "
                    f"{windows[language]}; expected the same in all phases"
                )
    return Schedule(tuple(phases), windows, batch_size, seed)


class _Tree(NamedTuple):
    """Inner nodes in pre-order (a parent before its children); node 0 is the root."""

    share: np.ndarray  # uint64, left share in 2^-60
    phase: np.ndarray  # uint64, c in 2^-60
    children: np.ndarray  # int64 (2·nodes,): [right, left] of node i at 2i, 2i+1; ~language for a leaf
    depth: int


def _tree(languages: Sequence[int], rates: Sequence[float], key: int) -> _Tree:
    weighted = sorted(
        (
            (max(round(rate * _ONE), 1), language)
            for rate, language in zip(rates, languages, strict=True)
            if rate > 0
        ),
        key=lambda pair: (-pair[0], pair[1]),
    )
    total = [0]
    for weight, _ in weighted:
        total.append(total[-1] + weight)
    share: list[int] = []
    children: list[int] = []
    deepest = 0
    # (first, end) of the leaves below, where the parent keeps the child, depth. Ranges stay sorted by
    # weight.
    pending = [(0, len(weighted), -1, 0)]
    while pending:
        first, end, slot, depth = pending.pop()
        if end - first == 1:
            node = ~weighted[first][1]
        else:
            node = len(share)
            whole = total[end] - total[first]
            split = first + 1
            if 3 * weighted[first][0] < whole:
                while total[split] - total[first] < whole - (total[split + 1] - total[first]):
                    split += 1
            share.append(((total[split] - total[first]) << 60) // whole)
            children += [0, 0]
            pending += [(split, end, 2 * node, depth + 1), (first, split, 2 * node + 1, depth + 1)]
            deepest = max(deepest, depth + 1)
        if slot >= 0:
            children[slot] = node
    if not share:  # one language: a node that sends all left
        share, children, deepest = [_ONE], [~weighted[0][1], ~weighted[0][1]], 1
    quarter = np.uint64(_ONE // 4)
    noise = _mix(np.arange(len(share), dtype=np.uint64) * _GOLDEN + np.uint64(key))
    return _Tree(
        np.array(share, np.uint64), quarter + (noise >> np.uint64(5)), np.array(children, np.int64), deepest
    )


def _descend(tree: _Tree, k: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Returns the leaf (language id) of the k-th items and their index there.

    kp + c is known exactly modulo 1 from wrapping 64-bit products, and to within 2^-9 in floating point, as
    k < 2^42; both together give the floor exactly.
    """
    languages = np.empty(k.size, np.int64)
    items = np.empty(k.size, np.int64)
    rows = np.arange(k.size)
    node = np.zeros(k.size, np.int64)
    share_float = tree.share.astype(np.float64) / _ONE
    phase_float = tree.phase.astype(np.float64) / _ONE
    while rows.size:
        share = tree.share[node]
        fraction = (k.astype(np.uint64) * share + tree.phase[node]) & _MASK
        left = (fraction + share) >> np.uint64(60)  # 1 where the item goes left
        floor = np.rint(k * share_float[node] + (phase_float[node] - fraction * (1.0 / _ONE))).astype(
            np.int64
        )
        k = np.where(left, floor, k - floor)
        node = tree.children[2 * node + left.astype(np.int64)]
        at_leaf = node < 0
        if at_leaf.any():
            languages[rows[at_leaf]] = ~node[at_leaf]
            items[rows[at_leaf]] = k[at_leaf]
            inner = ~at_leaf
            rows, node, k = rows[inner], node[inner], k[inner]
    return languages, items


def _counts(tree: _Tree, rows: int) -> dict[int, int]:
    """Language id → how many of the first ``rows`` items it gets, in exact integers of any size."""
    received = [0] * len(tree.share)
    received[0] = rows
    counts: dict[int, int] = {}
    children = iter(tree.children.tolist())
    for node, (share, phase) in enumerate(zip(tree.share.tolist(), tree.phase.tolist(), strict=True)):
        left = (received[node] * share + phase) >> 60
        for child, count in ((next(children), received[node] - left), (next(children), left)):
            if child >= 0:
                received[child] = count
            else:
                counts[~child] = counts.get(~child, 0) + count
    return counts


class _Domains(NamedTuple):
    """Per language: n windows numbered in a grid of a × b ≥ n cells, and its key."""

    n: np.ndarray
    a: np.ndarray
    b: np.ndarray
    key: np.ndarray


def _domains(windows: Sequence[int], keys: Sequence[int]) -> _Domains:
    a = [isqrt(n - 1) + 1 for n in windows]
    b = [-(-n // side) for n, side in zip(windows, a, strict=True)]
    return _Domains(*(np.array(column, np.uint64) for column in (windows, a, b, keys)))


def _permuted(domains: _Domains, language: np.ndarray, item: np.ndarray) -> np.ndarray:
    """Returns the window that is the ``item``-th of its language, in a permutation per epoch.

    A Feistel network on Z_a × Z_b, walked until it lands below n (Black and Rogaway 2002, "Ciphers with
    arbitrary finite domains"). As a·b < n + a, hardly any item walks twice.
    """
    n, a, b = domains.n[language], domains.a[language], domains.b[language]
    epoch, x = np.divmod(item.astype(np.uint64), n)
    key = _mix(domains.key[language] + epoch * _GOLDEN)
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
    return ((_mix(x) >> np.uint64(32)) * m) >> np.uint64(32)


_GOLDEN = np.uint64(0x9E3779B97F4A7C15)
_ROUNDS = (np.uint64(0x243F6A8885A308D3), np.uint64(0x13198A2E03707344), np.uint64(0xA4093822299F31D0))


def _mix(x: np.ndarray) -> np.ndarray:
    """The finaliser of splitmix64 (Steele et al. 2014)."""
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))


def _key(*parts: object) -> int:
    """64 bits that depend on all parts, the same on every machine and Python."""
    return int.from_bytes(hashlib.blake2b(repr(parts).encode(), digest_size=8).digest(), "little")
