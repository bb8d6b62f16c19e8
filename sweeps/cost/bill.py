"""What a study costs before it runs: tokens, FLOPs, the savings of shared trunks, and the critical path.

All counts are exact integers; C = 6·N·D with N all parameters (ATLAS.md). Hours are an estimate for a named
accelerator at a stated share of its peak (model FLOPs utilisation).
"""

from dataclasses import dataclass, fields

from mscale import scales
from mscale.chips import ACCELERATORS
from mscale.errors import MscaleError, nearest
from sweeps.cost import memory
from sweeps.run_graph import children_of, longest_chain_costs, makespan
from sweeps.spec import RunSpec
from sweeps.study import Study


@dataclass(frozen=True)
class Bill:
    """Counts of a part of a study.

    Attributes:
      configurations: lines of the study's table (a scale, a mixture, a seed, a start); cells: those at each of
        their budgets.
      trainings: distinct among the configurations, billed to the tag that names them first.
      runs: calls of the trainer: trunks, branches and whole runs.
      naive_tokens, naive_flops: of training every cell from its own start, sharing nothing.
    """

    tag: str
    cells: int
    runs: int
    trunks: int
    tokens: int
    flops: int
    naive_tokens: int
    naive_flops: int
    configurations: int
    trainings: int


@dataclass(frozen=True)
class StudyBill:
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


def study_bill(study: Study) -> StudyBill:
    """Works out the bill of a study, without touching a disk or an accelerator."""
    tags = dict.fromkeys([cell.tag for cell in study.cells] + [run.tag for run in study.runs])
    bills = tuple(_bill(study, tag) for tag in tags)
    total = Bill(
        "total",
        *(sum(getattr(bill, name) for bill in bills) for name in [item.name for item in fields(Bill)][1:]),
    )
    remaining = longest_chain_costs(study.runs)
    path: list[str] = []
    children = children_of(study.runs)
    level = [run.id for run in study.runs if run.parent is None]
    while level:
        path.append(max(level, key=lambda run_id: remaining[run_id]))
        level = children.get(path[-1], [])
    return StudyBill(study.name, bills, total, max(remaining.values(), default=0), tuple(path), study.notes)


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
        configurations=len(cells),
        trainings=sum(run.kind != "branch" for run in runs),
    )


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


def run_placement(run: RunSpec, accelerator: str, chips: int | None = None) -> memory.Placement:
    """The mesh to suggest for a run, on ``chips`` chips or on as few as hold it.

    Raises:
      MscaleError: it does not fit.
    """
    shape = scales.get(run.bindings["SCALE"])
    vocabulary = (run.params - scales.parameter_count_nonembedding(shape)) // shape.embed
    batch, sequence = int(run.bindings["BATCH_SIZE"]), int(run.bindings["SEQUENCE_LENGTH"])
    return memory.smallest_placement(memory.Workload(shape, vocabulary, batch, sequence), accelerator, chips)


@dataclass(frozen=True)
class WallClock:
    """Where a study would run and how long that takes.

    Attributes:
      chips: of each slice; slices: how many work at once.
      largest: tag to the placement of its most demanding run.
      hours: wall-clock on all slices; critical_hours: of the longest chain of runs, a bound however many slices.
    """

    accelerator: str
    mfu: float
    chips: int
    slices: int
    largest: dict[str, memory.Placement]
    hours: float
    critical_hours: float


def estimate_wall_clock(
    study: Study, accelerator: str, *, mfu: float = 0.4, slices: int = 1, chips: int | None = None
) -> WallClock:
    """Works out placements and wall-clock; ``chips`` a slice is by default the fewest that hold every run.

    Raises:
      MscaleError: a run does not fit on ``chips``, or slices, mfu or accelerator make no sense.
    """
    if slices < 1:
        raise MscaleError(f"slices is {slices}: expected at least 1")
    device_hours(1, accelerator, mfu)
    shapes = {run.shape: run for run in study.runs}
    count = chips or max(run_placement(run, accelerator).mesh.chips for run in shapes.values())
    placed = {shape: run_placement(run, accelerator, count) for shape, run in shapes.items()}
    largest: dict[str, memory.Placement] = {}
    for run in study.runs:
        one = placed[run.shape]
        if run.tag not in largest or (one.mesh.fsdp * one.mesh.tensor, one.bytes_per_chip) > (
            largest[run.tag].mesh.fsdp * largest[run.tag].mesh.tensor,
            largest[run.tag].bytes_per_chip,
        ):
            largest[run.tag] = one

    def hours(run: RunSpec) -> float:
        return device_hours(run.flops, accelerator, mfu) / count

    return WallClock(
        accelerator,
        mfu,
        count,
        slices,
        largest,
        makespan(study.runs, slices, hours),
        max(longest_chain_costs(study.runs, hours).values(), default=0.0),
    )
