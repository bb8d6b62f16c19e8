"""The tree that deals rows to languages: exact, with random access, and close to the rates at every row.

Global row g (= step·B + row) is the g-th item to enter a binary tree whose leaves are the languages. Of its
first k items a node sends ⌊kp + c⌋ left, p the left share of its weight and c a phase near 1/2 that depends
on the seed. So the k-th item goes left iff ⌊(k+1)p + c⌋ > ⌊kp + c⌋, and its index there is known too: row →
(language, index) costs one descent, and counts at any step are nested floors. Random access is what makes
the batches the same on any number of hosts, resuming a matter of a step number, and exposure arithmetic.

**Bound.** Let E be a node's error: items received − share of all rows. A child has pE + e, |e| ≤ 17/32 by
the choice of c. So a leaf at depth d has |E| ≤ 17d/32, and no leaf is deeper than 12 (up to 4,096
languages): |E| ≤ 6.375 at every prefix. It is less where the tree can follow the weights: a language that
holds at least 1/3 of a node becomes a leaf alone (the rest holds ≤ 2/3); else all are under 1/3 and the
prefix of them nearest to 1/2 is within 1/6 of it. Where the depth limit does not bind, errors of inner
nodes are at most 17/32·Σ(2/3)^i ≤ 51/32, those of leaves 17/8. Shares are 60-bit fixed-point integers;
over 2^42 rows rounding them adds under 1e-3.

**Weights that change at a step** keep the tree (a new language joins as the sibling of the shallowest leaf,
which changes nothing before) and carry every node's error: from then on a node's first q items give
⌊qp + pE − E_left + c⌋ to the left, at least 0 and at most q, E and E_left the errors at the change. Once
neither limit holds, the left error is pE + e again, as if the weights had never been others. So errors of
earlier phases are paid back, not added, and what came before a change does not depend on it: a run can be
continued on other weights. A language that a change drops may so receive the windows it is still owed (fewer
than the bound, most often none). While a limit holds, a child that is ahead waits and its sibling takes all;
`Schedule.bound` follows the interval of every node's error through all phases, that waiting included, and a
schedule whose bound is above 8 is refused. No rule that leaves the past alone can do without: spread one
window over n languages, then over the n − 1 that did not get it, and so on, and the last is owed
1/n + … + 1/2 (the cup game, Dietz and Sleator 1987), whatever the rule; it takes n phases of one row.
"""

import heapq
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np

from mscale.data.permutation import GOLDEN_RATIO_64, splitmix64

FIXED_POINT_ONE = 1 << 60
_MASK = np.uint64(FIXED_POINT_ONE - 1)
_MAX_DEPTH = 12


class Tree(NamedTuple):
    """Node i (0: the root; parents before children) has its right child at 2i, its left one at 2i + 1."""

    child: np.ndarray  # int64 (2·nodes,): a node, ~language for a leaf, or 0 for none
    c: np.ndarray  # uint64 (nodes,), in 2^-60


class Phase(NamedTuple):
    """Of its first q items in this phase, node i sends clip(⌊q·share + whole + fraction⌋, 0, q) left."""

    first: int  # row
    share: np.ndarray  # uint64 (nodes,), in 2^-60
    whole: np.ndarray  # int64 (nodes,)
    fraction: np.ndarray  # uint64 (nodes,), in 2^-60
    limited: bool  # a limit of clip can hold
    before: np.ndarray  # int64 (languages,): windows before this phase


def build_tree(phases: Sequence[Mapping[int, int]], key: int) -> Tree:
    """The tree over all languages of all phases (language → weight in 2^-60 each).

    Appending phases changes nothing of what the earlier ones see of it: nodes keep their numbers, and a leaf
    that becomes a node sends all to the old language while the new one has no weight.
    """
    weighted = sorted(phases[0].items(), key=lambda pair: (-pair[1], pair[0]))
    total = [0]
    for _, weight in weighted:
        total.append(total[-1] + weight)
    child: list[int] = []
    leaves: list[tuple[int, int]] = []  # (depth, slot)

    def side(node: int) -> int:
        return int(splitmix64(np.array([key ^ node], np.uint64))[0] >> np.uint64(63))

    # (first, end) of the languages below, where the parent keeps the child, depth of the child.
    pending = [(0, len(weighted), -1, 0)]
    deepest = max(_MAX_DEPTH, (len(weighted) - 1).bit_length())
    while pending:
        first, end, slot, depth = pending.pop()
        if end - first == 1 and slot >= 0:
            child[slot] = ~weighted[first][0]
            leaves.append((depth, slot))
            continue
        node = len(child) // 2
        child += [0, 0]
        if slot >= 0:
            child[slot] = node
        if end - first == 1:  # a single language: the other side stays free
            pending.append((first, end, 1, 1))
            leaves.append((0, 0))
            continue
        whole = total[end] - total[first]
        split = first + 1
        if 3 * weighted[first][1] < whole:
            while total[split] - total[first] < whole - (total[split + 1] - total[first]):
                split += 1
        room = 1 << (deepest - depth - 1)  # leaves that a child may have below it
        split = min(max(split, end - room), first + room)
        heavy = 2 * node + side(node)
        pending += [(split, end, heavy ^ 1, depth + 1), (first, split, heavy, depth + 1)]
    heapq.heapify(leaves)
    known = set(phases[0])
    for weights in phases[1:]:
        for language, _ in sorted(weights.items(), key=lambda pair: (-pair[1], pair[0])):
            if language in known:
                continue
            known.add(language)
            depth, slot = heapq.heappop(leaves)
            if child[slot] == 0:
                child[slot] = ~language
                heapq.heappush(leaves, (1, slot))
                continue
            node = len(child) // 2
            kept = 2 * node + side(node)
            child += [0, 0]
            child[kept], child[kept ^ 1], child[slot] = child[slot], ~language, node
            heapq.heappush(leaves, (depth + 1, kept))
            heapq.heappush(leaves, (depth + 1, kept ^ 1))
    noise = splitmix64(np.arange(len(child) // 2, dtype=np.uint64) * GOLDEN_RATIO_64 + np.uint64(key))
    return Tree(np.array(child, np.int64), np.uint64(FIXED_POINT_ONE // 32 * 15) + (noise >> np.uint64(8)))


def plan_phases(
    tree: Tree, firsts: Sequence[int], weights: Sequence[Mapping[int, int]], languages: int
) -> tuple[tuple[Phase, ...], float]:
    """Returns what the nodes do in each phase, and the bound of all languages' errors.

    A slot below is a position in ``tree.child``; expected windows W and errors E are integers in 2^-60.
    """
    child, c = tree.child.tolist(), tree.c.tolist()
    got = [0] * len(child)
    expected = [0] * len(child)
    phases: list[Phase] = []
    bound = 0.0
    for index, (first, of_language) in enumerate(zip(firsts, weights, strict=True)):
        rows = first - phases[-1].first if phases else 0
        if rows:
            total = sum(weights[index - 1].values())
            share = _slot_sums(
                child,
                [weights[index - 1].get(i, 0) * rows * FIXED_POINT_ONE // total for i in range(languages)],
            )
            got = [a + b for a, b in zip(got, items_received(tree, phases[-1], rows), strict=True)]
            expected = [a + b for a, b in zip(expected, share, strict=True)]
        weight = _slot_sums(child, [of_language.get(i, 0) for i in range(languages)])
        error = [(n << 60) - w for n, w in zip(got, expected, strict=True)]
        shares, wholes, fractions = [], [], []
        for node, own in enumerate(c):
            right, left = weight[2 * node], weight[2 * node + 1]
            # A node without weight can still be owed windows: halves.
            shares.append((left << 60) // (left + right) if left + right else FIXED_POINT_ONE // 2)
            of_node = error[2 * node] + error[2 * node + 1]
            offset = (shares[-1] * of_node >> 60) - error[2 * node + 1] + own
            wholes.append(offset >> 60)
            fractions.append(offset & (FIXED_POINT_ONE - 1))
        before = np.zeros(languages, np.int64)
        for slot, below in enumerate(child):
            if below < 0:
                before[~below] = got[slot]
        phases.append(
            Phase(
                first,
                np.array(shares, np.uint64),
                np.array(wholes, np.int64),
                np.array(fractions, np.uint64),
                any(wholes),
                before,
            )
        )
        length = firsts[index + 1] - first if index + 1 < len(firsts) else np.inf
        bound = max(bound, _bound(tree, phases[-1], [e / FIXED_POINT_ONE for e in error], weight, length))
    return tuple(phases), bound


def _slot_sums(child: Sequence[int], of_language: Sequence[int]) -> list[int]:
    """The sum of the languages below each slot."""
    sums = [0] * len(child)
    for slot in reversed(range(len(child))):
        below = child[slot]
        if below < 0:
            sums[slot] = of_language[~below]
        elif below > 0:
            sums[slot] = sums[2 * below] + sums[2 * below + 1]
    return sums


def _bound(tree: Tree, phase: Phase, error: Sequence[float], weight: Sequence[int], length: float) -> float:
    """The largest error that a language can have in ``phase``, whatever its rows (see the module's text).

    Args:
      error: E of each slot at the start.
      weight: of each slot.
      length: rows of the phase.
    """
    child, c = tree.child.tolist(), (tree.c / FIXED_POINT_ONE).tolist()
    shares, wholes = (phase.share / FIXED_POINT_ONE).tolist(), phase.whole.tolist()
    total = weight[0] + weight[1]
    low, high = [0.0] * len(child), [0.0] * len(child)
    parent = {below: slot for slot, below in enumerate(child) if below > 0}
    worst = 0.0
    for node in range(len(c)):
        down, up = (low[parent[node]], high[parent[node]]) if node else (0.0, 0.0)
        right, left, p = 2 * node, 2 * node + 1, shares[node]
        low[left], high[left] = p * down + c[node] - 1, p * up + c[node]
        low[right], high[right] = (1 - p) * down - c[node], (1 - p) * up + 1 - c[node]
        if p in (0, 1):  # all items go to one side, and the rounding stays what it is
            lost = wholes[node] - (p * (error[left] + error[right]) - error[left])
            low[left], high[left] = p * down + lost, p * up + lost
            low[right], high[right] = (1 - p) * down - lost, (1 - p) * up - lost
        for ahead, behind in ((left, right), (right, left)):
            if wholes[node] < 0 if ahead == left else wholes[node] > 0:
                high[ahead] = max(high[ahead], error[ahead])  # it waits, and its sibling takes all
                low[behind] = min(low[behind], down - error[ahead])
        for slot in (left, right):
            low[slot] = max(low[slot], error[slot] - weight[slot] / total * length)
            high[slot] = min(high[slot], error[slot] + length)
            if child[slot] < 0:
                worst = max(worst, -low[slot], high[slot])
    return worst


def locate_items(tree: Tree, phase: Phase, q: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Returns the leaf (language id) of the q-th items of a phase and their index there, in that phase.

    q·share + fraction is known exactly modulo 1 from wrapping 64-bit products, and to within 2^-9 in
    floating point, as q < 2^42; both together give the floor exactly.
    """
    languages = np.empty(q.size, np.int64)
    items = np.empty(q.size, np.int64)
    rows = np.arange(q.size)
    node = np.zeros(q.size, np.int64)
    share_float = phase.share.astype(np.float64) / FIXED_POINT_ONE
    fraction_float = phase.fraction.astype(np.float64) / FIXED_POINT_ONE
    while rows.size:
        share = phase.share[node]
        fraction = (q.astype(np.uint64) * share + phase.fraction[node]) & _MASK
        left = ((fraction + share) >> np.uint64(60)).astype(np.int64)  # 1 where the item goes left
        before = np.rint(
            q * share_float[node] + (fraction_float[node] - fraction * (1.0 / FIXED_POINT_ONE))
        ).astype(np.int64)
        if phase.limited:
            before += phase.whole[node]
            left = np.clip(before + left, 0, q + 1)
            before = np.clip(before, 0, q)
            left -= before
        q = np.where(left, before, q - before)
        node = tree.child[2 * node + left]
        at_leaf = node < 0
        if at_leaf.any():
            languages[rows[at_leaf]] = ~node[at_leaf]
            items[rows[at_leaf]] = q[at_leaf]
            inner = ~at_leaf
            rows, node, q = rows[inner], node[inner], q[inner]
    return languages, items


def items_received(tree: Tree, phase: Phase, rows: int) -> list[int]:
    """How many of the first ``rows`` items of a phase go to each slot, in exact integers of any size."""
    received = [0] * len(tree.child)
    of_node = [rows] + [0] * (len(tree.c) - 1)
    child = tree.child.tolist()
    columns = (phase.share.tolist(), phase.whole.tolist(), phase.fraction.tolist())
    for node, (share, whole, fraction) in enumerate(zip(*columns, strict=True)):
        left = min(max((of_node[node] * share + fraction >> 60) + whole, 0), of_node[node])
        for slot, count in ((2 * node, of_node[node] - left), (2 * node + 1, left)):
            received[slot] = count
            if child[slot] > 0:
                of_node[child[slot]] = count
    return received
