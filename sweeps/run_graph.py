"""The graph of runs by parent: dependencies, critical paths, an order to train in, and its wall-clock time."""

import heapq
from collections.abc import Callable, Sequence
from typing import Any

from mscale.errors import MscaleError
from sweeps.spec import RunSpec


def children_of(runs: Sequence[RunSpec]) -> dict[str, list[str]]:
    """Run id to the ids of the runs that start from it; runs without any are absent."""
    children: dict[str, list[str]] = {}
    for run in runs:
        if run.parent is not None:
            children.setdefault(run.parent, []).append(run.id)
    return children


def longest_chain_costs(
    runs: Sequence[RunSpec], cost: Callable[[RunSpec], float] = lambda run: run.flops
) -> dict[str, Any]:
    """Run id to the cost of the longest chain of descendants, the run itself included.

    In scheduling this is the bottom level (upward rank). ``cost`` is exact FLOPs by default.
    """
    result: dict[str, Any] = {}
    longest: dict[str, Any] = {}
    for run in reversed(topological_order(runs)):
        result[run.id] = cost(run) + longest.get(run.id, 0)
        if run.parent is not None:
            longest[run.parent] = max(longest.get(run.parent, 0), result[run.id])
    return result


def longest_chain_first(runs: Sequence[RunSpec]) -> list[RunSpec]:
    """Runs in the order to start them: of the runs whose parents come earlier, the longest chain first."""
    order, _ = _list_schedule(runs, 1, lambda run: run.flops)
    return order


def makespan(runs: Sequence[RunSpec], slots: int, seconds: Callable[[RunSpec], float]) -> float:
    """Wall-clock seconds on ``slots`` equal devices, a free one of which starts the longest chain."""
    _, total = _list_schedule(runs, slots, seconds)
    return total


def _list_schedule(
    runs: Sequence[RunSpec], slots: int, cost: Callable[[RunSpec], float]
) -> tuple[list[RunSpec], float]:
    """List scheduling by the longest chain: the order in which runs start, and when the last one ends."""
    chain_costs, children = longest_chain_costs(runs, cost), children_of(runs)
    by_id = {run.id: run for run in runs}
    ready = [(-chain_costs[run.id], run.id) for run in runs if run.parent not in by_id]
    heapq.heapify(ready)
    running: list[tuple[float, str]] = []
    order: list[RunSpec] = []
    now = 0.0
    while ready or running:
        while ready and len(running) < slots:
            _, run_id = heapq.heappop(ready)
            order.append(by_id[run_id])
            heapq.heappush(running, (now + cost(by_id[run_id]), run_id))
        now, run_id = heapq.heappop(running)
        for child in children.get(run_id, ()):
            heapq.heappush(ready, (-chain_costs[child], child))
    return order, now


def topological_order(runs: Sequence[RunSpec]) -> list[RunSpec]:
    """Runs with parents before children, otherwise in the order given.

    Raises:
      MscaleError: there is a cycle between parents.
    """
    by_id = {run.id: run for run in runs}
    result: dict[str, RunSpec] = {}
    for run in runs:
        chain: list[RunSpec] = []
        at: RunSpec | None = run
        while at is not None and at.id not in result:
            if at in chain:
                names = " → ".join(one.id for one in [*chain[chain.index(at) :], at])
                raise MscaleError(f"the runs' parents form a cycle: {names}; a run cannot start from itself")
            chain.append(at)
            at = by_id.get(at.parent) if at.parent else None
        for one in reversed(chain):
            result[one.id] = one
    return list(result.values())
