"""What a study costs before it runs: tokens, FLOPs, the savings of shared trunks, and the critical path.

All counts are exact integers; C = 6·N·D with N all parameters (ATLAS.md). Hours are an estimate for a named
accelerator at a stated share of its peak (model FLOPs utilisation).
"""

import heapq
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from mscale import scales
from mscale.errors import MscaleError, nearest
from sweeps.spec import RunSpec
from sweeps.study import Study, ordered

# Peak dense bfloat16 FLOP/s of one chip, from the makers' data sheets.
ACCELERATORS = {
    "a100": 312e12,
    "h100": 989e12,
    "h200": 989e12,
    "b200": 2250e12,
    "v4": 275e12,
    "v5e": 197e12,
    "v5p": 459e12,
    "v6e": 918e12,
}


@dataclass(frozen=True)
class Bill:
    """Counts of a part of a study: ``cells`` are printed table cells (a configuration at one budget)."""

    tag: str
    cells: int
    runs: int
    trunks: int
    tokens: int
    flops: int
    naive_tokens: int
    naive_flops: int


@dataclass(frozen=True)
class Plan:
    """The bill of a study.

    Attributes:
      tags: one bill a tag, in the study's order; a run that tags share is billed to the first.
      total: of all tags; ``naive`` counts train every cell from its own start, sharing nothing.
      critical_flops: FLOPs of the longest chain of runs that must follow each other.
      critical_path: ids of that chain.
    """

    study: str
    tags: tuple[Bill, ...]
    total: Bill
    critical_flops: int
    critical_path: tuple[str, ...]
    notes: tuple[str, ...]

    @property
    def saving(self) -> float:
        """Fraction of the naive FLOPs that sharing saves."""
        return 1 - self.total.flops / self.total.naive_flops if self.total.naive_flops else 0.0


def plan(study: Study) -> Plan:
    """Works out the bill of a study, without touching a disk or an accelerator."""
    tags = dict.fromkeys([cell.tag for cell in study.cells] + [run.tag for run in study.runs])
    bills = tuple(_bill(study, tag) for tag in tags)
    total = Bill(
        "total",
        *(
            sum(getattr(bill, name) for bill in bills)
            for name in ("cells", "runs", "trunks", "tokens", "flops", "naive_tokens", "naive_flops")
        ),
    )
    remaining = downstream(study.runs)
    path: list[str] = []
    children = children_of(study.runs)
    level = [run.id for run in study.runs if run.parent is None]
    while level:
        path.append(max(level, key=lambda run_id: remaining[run_id]))
        level = children.get(path[-1], [])
    return Plan(study.name, bills, total, max(remaining.values(), default=0), tuple(path), study.notes)


def _bill(study: Study, tag: str) -> Bill:
    runs = [run for run in study.runs if run.tag == tag]
    cells = [(cell, ends) for cell, ends in zip(study.cells, study.ends, strict=True) if cell.tag == tag]
    naive = [
        (tokens, 6 * study.by_id[end].params * tokens)
        for cell, ends in cells
        for tokens, end in zip(cell.tokens, ends, strict=True)
    ]
    return Bill(
        tag=tag,
        cells=len(naive),
        runs=len(runs),
        trunks=sum(run.kind == "trunk" for run in runs),
        tokens=sum(run.tokens for run in runs),
        flops=sum(run.flops for run in runs),
        naive_tokens=sum(tokens for tokens, _ in naive),
        naive_flops=sum(flops for _, flops in naive),
    )


def children_of(runs: Sequence[RunSpec]) -> dict[str, list[str]]:
    """Run id to the ids of the runs that start from it."""
    children: dict[str, list[str]] = {}
    for run in runs:
        if run.parent is not None:
            children.setdefault(run.parent, []).append(run.id)
    return children


def downstream(
    runs: Sequence[RunSpec], cost: Callable[[RunSpec], float] = lambda run: run.flops
) -> dict[str, Any]:
    """Cost (exact FLOPs unless given) of the longest chain that starts with each run, itself included."""
    result: dict[str, Any] = {}
    longest: dict[str, Any] = {}
    for run in reversed(ordered(runs)):
        result[run.id] = cost(run) + longest.get(run.id, 0)
        if run.parent is not None:
            longest[run.parent] = max(longest.get(run.parent, 0), result[run.id])
    return result


def schedule(runs: Sequence[RunSpec]) -> list[RunSpec]:
    """Runs in the order to start them: parents first, else the longest chain first."""
    remaining, children = downstream(runs), children_of(runs)
    by_id = {run.id: run for run in runs}
    ready = [(-remaining[run.id], run.id) for run in runs if run.parent not in by_id]
    heapq.heapify(ready)
    order = []
    while ready:
        _, run_id = heapq.heappop(ready)
        order.append(by_id[run_id])
        for child in children.get(run_id, ()):
            heapq.heappush(ready, (-remaining[child], child))
    return order


def makespan(runs: Sequence[RunSpec], slots: int, seconds: Callable[[RunSpec], float]) -> float:
    """Wall-clock seconds on ``slots`` equal devices, each taking the longest chain as soon as it is free."""
    remaining, children = downstream(runs, seconds), children_of(runs)
    by_id = {run.id: run for run in runs}
    ready = [(-remaining[run.id], run.id) for run in runs if run.parent not in by_id]
    heapq.heapify(ready)
    running: list[tuple[float, str]] = []
    now = 0.0
    while ready or running:
        while ready and len(running) < slots:
            _, run_id = heapq.heappop(ready)
            heapq.heappush(running, (now + seconds(by_id[run_id]), run_id))
        now, run_id = heapq.heappop(running)
        for child in children.get(run_id, ()):
            heapq.heappush(ready, (-remaining[child], child))
    return now


# Of one 2-GHz-class server core, measured: a line through the five rungs at 128 tokens a sequence (141,000
# tokens/s at nano0 to 22,000 at nano4), evaluations apart, and what a run and a first run of a shape cost.
NANO_SECONDS_PER_TOKEN = 6e-6
NANO_SECONDS_PER_TOKEN_AND_PARAMETER = 1.25e-10
NANO_RUN_SECONDS = 0.5
NANO_COMPILE_SECONDS = 6.5


def nano_seconds(run: RunSpec) -> float:
    """Seconds of a nano run on one CPU core, once its shape is compiled."""
    per_token = NANO_SECONDS_PER_TOKEN + NANO_SECONDS_PER_TOKEN_AND_PARAMETER * run.params
    return NANO_RUN_SECONDS + run.tokens * per_token


def nano_study_seconds(study: Study, slots: int) -> float:
    """Wall-clock seconds of a nano study on ``slots`` CPU cores, its compiling included."""
    compiling = NANO_COMPILE_SECONDS * len({run.shape for run in study.runs})
    return makespan(study.runs, slots, nano_seconds) + compiling / slots


def device_hours(flops: float, accelerator: str, mfu: float = 0.4) -> float:
    """Hours of one chip at a share ``mfu`` of its peak.

    Raises:
      MscaleError: the accelerator is not known, or ``mfu`` is not in (0, 1].
    """
    if accelerator not in ACCELERATORS:
        raise MscaleError(
            f"unknown accelerator {accelerator!r}: expected one of {', '.join(ACCELERATORS)}"
            f"{nearest(accelerator, ACCELERATORS)}"
        )
    if not 0 < mfu <= 1:
        raise MscaleError(f"model FLOPs utilisation is {mfu}: expected a fraction above 0, at most 1")
    return flops / (ACCELERATORS[accelerator] * mfu) / 3600


def is_nano(study: Study) -> bool:
    """Whether every run is a nano rung, so that ``nano_seconds`` applies."""
    return all(str(run.bindings.get("SCALE")) in scales.NANO for run in study.runs)


def plan_table(
    study: Study, *, slots: int = 2, accelerator: str | None = None, mfu: float = 0.4, slices: int = 1
):
    """Returns the plan as a ``rich`` table; its caption says what sharing saves and how long it takes.

    Args:
      slots: CPU cores, for the time of a nano study.
      accelerator, mfu: for device-hours, where a name of ``ACCELERATORS`` is given.
      slices: how many such devices run at once, for the wall-clock by critical path.
    """
    from rich.table import Table

    result = plan(study)
    table = Table(title=f"Study {study.name}", title_justify="left", caption_justify="left")
    table.add_column("tag")
    for name in ("cells", "runs", "trunks", "tokens", "FLOPs"):
        table.add_column(name, justify="right")
    if accelerator:
        table.add_column(f"{accelerator} hours", justify="right")
    for bill in (*result.tags, result.total):
        if bill is result.total:
            table.add_section()
        row = [bill.tag, f"{bill.cells:,}", f"{bill.runs:,}", f"{bill.trunks:,}"]
        row += [f"{bill.tokens:,}", f"{bill.flops:.3g}"]
        if accelerator:
            row.append(f"{device_hours(bill.flops, accelerator, mfu):,.3g}")
        table.add_row(*row)
    lines = [
        f"Shared trunks and baselines save {result.saving:.0%} of the {result.total.naive_flops:.3g} FLOPs "
        f"that the {result.total.cells:,} cells would take one by one.",
        f"Longest chain of dependent runs: {len(result.critical_path)} runs, "
        f"{result.critical_flops:.3g} FLOPs.",
    ]
    if accelerator:
        hours = makespan(study.runs, slices, lambda run: device_hours(run.flops, accelerator or "", mfu))
        lines.append(f"On {slices} {accelerator} at {mfu:.0%} of its peak: about {hours:,.3g} hours.")
    elif is_nano(study):
        seconds = nano_study_seconds(study, slots)
        lines.append(f"On {slots} CPU cores: about {seconds:,.0f} s.")
    lines += [f"Note: {note}" for note in result.notes]
    table.caption = "\n".join(lines)
    return table
