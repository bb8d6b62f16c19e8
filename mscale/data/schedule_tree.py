"""The tree that assigns rows to languages: exact, with random access, and close to the rates at every row.

Global row g (= step·B + row) is the g-th item to enter a binary tree whose leaves are the languages. Of its first k
items a node sends ⌊kp + c⌋ to its left child, where p is the left child's share of the node's weight and c is an
offset near 1/2 that depends on the seed. So item k goes left iff ⌊(k+1)p + c⌋ > ⌊kp + c⌋, and its index in the child
is known too: row → (language, index) takes one descent, and counts at any step are nested floors.

**Bound.** Let E be a node's error: items received − its share of all rows. A child has error pE + e, with |e| ≤ 17/32
by the choice of c. So a leaf at depth d has |E| ≤ 17d/32, and no leaf is deeper than 12 (up to 4,096 languages):
|E| ≤ 6.375 after every row. The bound is smaller where the depth limit does not bind. There, a language with at least
1/3 of a node's weight becomes a leaf directly (the rest has ≤ 2/3); else all languages are below 1/3, and the prefix
of them with weight nearest to 1/2 is within 1/6 of it. Errors of inner nodes are then at most 17/32·Σ(2/3)^i ≤ 51/32,
those of leaves 17/8. Shares are 60-bit fixed-point integers; over 2^42 rows their rounding adds less than 1e-3.

**Weights that change at a step** keep the tree and carry every node's error over. (A new language becomes the sibling
of the shallowest leaf, which changes no earlier row.) From the change on, of a node's first q items
⌊qp + pE − E_left + c⌋ go to the left, clipped to 0 and q, with E and E_left the errors at the change. While the
clipping does not apply, the left error is again pE + e, as if the weights had always been the new ones. Errors of
earlier phases are therefore compensated, not added. Rows before a change do not depend on it, so a run can be
continued on other weights. A language that a change drops may still receive the rows that it lacks (fewer than the
bound, most often none). While the clipping applies, a child that is ahead receives nothing and its sibling receives
all items. `Schedule.bound` follows the interval of every node's error through all phases, including that case, and a
schedule whose bound is above 8 is refused. Every rule without knowledge of later weights needs such a limit: spread
one row over n languages, then over the n − 1 that did not receive it, and so on, and the last lacks 1/n + … + 1/2
(the cup game, Dietz and Sleator 1987). This takes n phases of one row.
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
    """A binary tree over languages; node 0 is the root, and parents come before their children.

    A slot is a position in ``child``: slot 2i holds the right child of node i, slot 2i + 1 the left one.

    Attributes:
      child: int64 (2·nodes,): a node, ~language for a leaf, or 0 for none.
      c: uint64 (nodes,), offset of each node in units of 2^-60.
    """

    child: np.ndarray
    c: np.ndarray


class Phase(NamedTuple):
    """Of its first q items in this phase, node i sends clip(⌊q·share + whole + fraction⌋, 0, q) to the left.

    Attributes:
      first: first global row of the phase.
      share: uint64 (nodes,), in units of 2^-60.
      whole: int64 (nodes,), integer part of the carried error.
      fraction: uint64 (nodes,), its fractional part in units of 2^-60.
      limited: whether the clipping can apply.
      before: int64 (languages,), rows of each language before the phase.
    """

    first: int
    share: np.ndarray
    whole: np.ndarray
    fraction: np.ndarray
    limited: bool
    before: np.ndarray


def build_tree(phases: Sequence[Mapping[int, int]], key: int) -> Tree:
    """Returns the tree over the languages of all phases.

    Appending a phase does not change earlier rows: nodes keep their numbers, and a leaf that becomes a node sends
    all items to the old language while the new one has no weight.

    Args:
      phases: of each phase, language → weight in units of 2^-60.
      key: 64 bits that determine the offsets and which side a child is on.
    """
    weighted = sorted(phases[0].items(), key=lambda pair: (-pair[1], pair[0]))
    cumulative = [0]
    for _, weight in weighted:
        cumulative.append(cumulative[-1] + weight)
    child: list[int] = []
    leaves: list[tuple[int, int]] = []  # (depth, slot)

    def side(node: int) -> int:
        return int(splitmix64(np.array([key ^ node], np.uint64))[0] >> np.uint64(63))

    # First and end of the languages below, slot of the parent (-1: none), depth.
    pending = [(0, len(weighted), -1, 0)]
    max_depth = max(_MAX_DEPTH, (len(weighted) - 1).bit_length())
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
        if end - first == 1:  # a single language: the other slot stays empty
            pending.append((first, end, 1, 1))
            leaves.append((0, 0))
            continue
        node_weight = cumulative[end] - cumulative[first]
        split = first + 1
        if 3 * weighted[first][1] < node_weight:
            while cumulative[split] - cumulative[first] < node_weight - (
                cumulative[split + 1] - cumulative[first]
            ):
                split += 1
        max_leaves = 1 << (max_depth - depth - 1)  # of each child
        split = min(max(split, end - max_leaves), first + max_leaves)
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
            old_slot = 2 * node + side(node)
            child += [0, 0]
            child[old_slot], child[old_slot ^ 1], child[slot] = child[slot], ~language, node
            heapq.heappush(leaves, (depth + 1, old_slot))
            heapq.heappush(leaves, (depth + 1, old_slot ^ 1))
    noise = splitmix64(np.arange(len(child) // 2, dtype=np.uint64) * GOLDEN_RATIO_64 + np.uint64(key))
    return Tree(np.array(child, np.int64), np.uint64(FIXED_POINT_ONE // 32 * 15) + (noise >> np.uint64(8)))


def plan_phases(
    tree: Tree, firsts: Sequence[int], weights: Sequence[Mapping[int, int]], languages: int
) -> tuple[tuple[Phase, ...], float]:
    """Returns the state of the nodes in each phase, and the bound of all languages' errors.

    Expected rows and errors are integers in units of 2^-60, one for each slot.

    Args:
      tree: over all languages.
      firsts: first row of each phase.
      weights: of each phase, language → weight in units of 2^-60.
      languages: number of languages.
    """
    child, c = tree.child.tolist(), tree.c.tolist()
    received = [0] * len(child)
    expected = [0] * len(child)
    phases: list[Phase] = []
    bound = 0.0
    for index, (first, of_language) in enumerate(zip(firsts, weights, strict=True)):
        rows = first - phases[-1].first if phases else 0
        if rows:
            total = sum(weights[index - 1].values())
            expected_in_phase = _slot_sums(
                child,
                [weights[index - 1].get(i, 0) * rows * FIXED_POINT_ONE // total for i in range(languages)],
            )
            received_in_phase = items_received(tree, phases[-1], rows)
            received = [a + b for a, b in zip(received, received_in_phase, strict=True)]
            expected = [a + b for a, b in zip(expected, expected_in_phase, strict=True)]
        weight = _slot_sums(child, [of_language.get(i, 0) for i in range(languages)])
        error = [(n << 60) - w for n, w in zip(received, expected, strict=True)]
        shares, wholes, fractions = [], [], []
        for node, offset_of_node in enumerate(c):
            right, left = weight[2 * node], weight[2 * node + 1]
            # A node without weight can still lack rows: its items are halved.
            shares.append((left << 60) // (left + right) if left + right else FIXED_POINT_ONE // 2)
            node_error = error[2 * node] + error[2 * node + 1]
            offset = (shares[-1] * node_error >> 60) - error[2 * node + 1] + offset_of_node
            wholes.append(offset >> 60)
            fractions.append(offset & (FIXED_POINT_ONE - 1))
        before = np.zeros(languages, np.int64)
        for slot, below in enumerate(child):
            if below < 0:
                before[~below] = received[slot]
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
    """Sum of ``of_language`` over the languages below each slot."""
    sums = [0] * len(child)
    for slot in reversed(range(len(child))):
        below = child[slot]
        if below < 0:
            sums[slot] = of_language[~below]
        elif below > 0:
            sums[slot] = sums[2 * below] + sums[2 * below + 1]
    return sums


def _bound(tree: Tree, phase: Phase, error: Sequence[float], weight: Sequence[int], length: float) -> float:
    """Bound on the error of all languages at all rows of ``phase`` (see the module's docstring).

    Args:
      tree: the tree.
      phase: the phase.
      error: E of each slot at the start of the phase.
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
        node_low, node_high = (low[parent[node]], high[parent[node]]) if node else (0.0, 0.0)
        right, left, p = 2 * node, 2 * node + 1, shares[node]
        low[left], high[left] = p * node_low + c[node] - 1, p * node_high + c[node]
        low[right], high[right] = (1 - p) * node_low - c[node], (1 - p) * node_high + 1 - c[node]
        if p in (0, 1):  # all items go to one side, so the rounding error is constant
            rounding = wholes[node] - (p * (error[left] + error[right]) - error[left])
            low[left], high[left] = p * node_low + rounding, p * node_high + rounding
            low[right], high[right] = (1 - p) * node_low - rounding, (1 - p) * node_high - rounding
        for ahead, behind in ((left, right), (right, left)):
            if wholes[node] < 0 if ahead == left else wholes[node] > 0:
                high[ahead] = max(high[ahead], error[ahead])  # clipped: its sibling receives all items
                low[behind] = min(low[behind], node_low - error[ahead])
        for slot in (left, right):
            low[slot] = max(low[slot], error[slot] - weight[slot] / total * length)
            high[slot] = min(high[slot], error[slot] + length)
            if child[slot] < 0:
                worst = max(worst, -low[slot], high[slot])
    return worst


def locate_items(tree: Tree, phase: Phase, q: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Returns the language id of the q-th items of a phase, and their index among its items of that phase.

    q·share + fraction is computed exactly modulo 1 by 64-bit products with overflow, and to within 2^-9 in floating
    point, as q < 2^42. Both together give the floor exactly.

    Args:
      tree: the tree.
      phase: the phase.
      q: int64 (items,), rows counted from the start of the phase.
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
    """Returns how many of the first ``rows`` items of a phase each slot receives, in integers of any size."""
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
