"""What a study costs before it runs: tokens, FLOPs, the savings of shared trunks, and the critical path.

All counts are exact integers; C = 6·N·D with N all parameters, embeddings included. Hours are an estimate for a named
accelerator at a stated share of its peak (model FLOPs utilisation, MFU).
"""

from dataclasses import dataclass, fields

from mscale import scales
from mscale.chips import find_chip
from mscale.errors import MscaleError
from sweeps.cost import memory
from sweeps.run_graph import children_of, longest_chain_costs, makespan
from sweeps.spec import RunSpec
from sweeps.study import Study


@dataclass(frozen=True)
class Bill:
    """Counts of one tag of a study, or of the whole study.

    Attributes:
      configurations: lines of the study's table (a scale, a mixture, a seed, a start).
      cells: configurations times their budgets.
      trainings: distinct configurations, counted for the tag that names them first.
      runs: calls of the trainer: trunks, branches and whole runs; trunks: those that are trunks.
      tokens, flops: that these runs compute.
      naive_tokens, naive_flops: of training every cell from its start, without shared trunks.
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
      study: its name.
      tags: one bill a tag, in the study's order; a run that several tags share is on the first one's bill.
      total: of all tags.
      critical_flops: FLOPs of the critical path, the longest chain of dependent runs.
      critical_path: ids of its runs.
      notes: of the study.
    """

    study: str
    tags: tuple[Bill, ...]
    total: Bill
    critical_flops: int
    critical_path: tuple[str, ...]
    notes: tuple[str, ...]

    @property
    def saving(self) -> float:
        """Fraction of the naive FLOPs that shared trunks save."""
        return 1 - self.total.flops / self.total.naive_flops if self.total.naive_flops else 0.0


def study_bill(study: Study) -> StudyBill:
    """Returns the bill of a study; reads no files and needs no accelerator."""
    tags = dict.fromkeys([cell.tag for cell in study.cells] + [run.tag for run in study.runs])
    bills = tuple(_bill(study, tag) for tag in tags)
    total = Bill(
        "total",
        *(sum(getattr(bill, name) for bill in bills) for name in [item.name for item in fields(Bill)][1:]),
    )
    chain_costs = longest_chain_costs(study.runs)
    path: list[str] = []
    children = children_of(study.runs)
    level = [run.id for run in study.runs if run.parent is None]
    while level:
        path.append(max(level, key=lambda run_id: chain_costs[run_id]))
        level = children.get(path[-1], [])
    return StudyBill(study.name, bills, total, max(chain_costs.values(), default=0), tuple(path), study.notes)


def _bill(study: Study, tag: str) -> Bill:
    runs = [run for run in study.runs if run.tag == tag]
    cells = [(cell, ends) for cell, ends in zip(study.cells, study.ends, strict=True) if cell.tag == tag]
    naive = [
        (tokens, scales.training_flops(study.by_id[end].params, tokens))
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


# Measured on one 2-GHz-class server core: a line through the five nano scales at 128 tokens a sequence (141,000
# tokens/s at nano0 to 22,000 at nano4) without evaluations, a constant for each run, and compilation for each shape.
NANO_SECONDS_PER_TOKEN = 6e-6
NANO_SECONDS_PER_TOKEN_AND_PARAMETER = 1.25e-10
NANO_RUN_SECONDS = 0.5
NANO_COMPILE_SECONDS = 6.5


def nano_seconds(run: RunSpec) -> float:
    """Seconds of a nano run on one CPU core, without compilation."""
    per_token = NANO_SECONDS_PER_TOKEN + NANO_SECONDS_PER_TOKEN_AND_PARAMETER * run.params
    return NANO_RUN_SECONDS + run.tokens * per_token


def nano_study_seconds(study: Study, slots: int) -> float:
    """Wall-clock seconds of a nano study on ``slots`` CPU cores, compilation included."""
    compiling = NANO_COMPILE_SECONDS * len({run.shape for run in study.runs})
    return makespan(study.runs, slots, nano_seconds) + compiling / slots


def device_hours(flops: float, accelerator: str, mfu: float = 0.4) -> float:
    """Hours of one chip at a share ``mfu`` of its peak.

    Raises:
      MscaleError: the accelerator is not known, or ``mfu`` is not in (0, 1].
    """
    chip = find_chip(accelerator)
    if not 0 < mfu <= 1:
        raise MscaleError(f"model FLOPs utilisation is {mfu}: expected a fraction above 0, at most 1")
    return flops / (chip.peak_flops * mfu) / 3600


def is_nano(study: Study) -> bool:
    """Whether every run is of a nano scale, so that ``nano_seconds`` applies."""
    return all(str(run.bindings.get("SCALE")) in scales.NANO for run in study.runs)


def run_placement(run: RunSpec, accelerator: str, chips: int | None = None) -> memory.Placement:
    """The suggested mesh for a run, of ``chips`` chips or of the fewest that hold it.

    Raises:
      MscaleError: the run does not fit.
    """
    shape = scales.get(run.bindings["SCALE"])
    vocabulary = (run.params - scales.parameter_count_nonembedding(shape)) // shape.embed
    batch, sequence = int(run.bindings["BATCH_SIZE"]), int(run.bindings["SEQUENCE_LENGTH"])
    return memory.smallest_placement(memory.Workload(shape, vocabulary, batch, sequence), accelerator, chips)


@dataclass(frozen=True)
class WallClock:
    """Slices on which a study would run, and for how long.

    Attributes:
      accelerator, mfu: kind of chip and model FLOPs utilisation.
      chips: of each slice; slices: that train at once.
      largest: tag to the placement of its most demanding run.
      hours: wall-clock time on all slices.
      critical_hours: of the critical path, a lower bound for any number of slices.
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
    """Returns placements and wall-clock time; ``chips`` a slice is by default the fewest that hold every run.

    Raises:
      MscaleError: a run does not fit on ``chips``, fewer than one slice, an unknown accelerator, or an MFU outside
        (0, 1].
    """
    if slices < 1:
        raise MscaleError(f"slices is {slices}: expected at least 1")
    device_hours(1, accelerator, mfu)
    shapes = {run.shape: run for run in study.runs}
    count = chips or max(run_placement(run, accelerator).mesh.chips for run in shapes.values())
    placements = {shape: run_placement(run, accelerator, count) for shape, run in shapes.items()}
    largest: dict[str, memory.Placement] = {}
    for run in study.runs:
        one = placements[run.shape]
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
