"""Studies as data: cells of a grid, and the run specs that follow from them.

A cell is one line of a study's table: a scale, a mixture, a seed, a starting point and token budgets. At each budget
the learning rate has decayed (the model is *cooled*). The budgets of a cell share one warmup-stable-decay trunk, which
runs to 0.9 of the largest budget; each budget is a branch off the trunk that decays over its last 10%. Cells of
different tags with the same training share its trunk, so that monolingual baselines are trained once.
"""

import json
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property

from mscale.errors import MscaleError, nearest
from sweeps import spec as specs
from sweeps.run_graph import topological_order
from sweeps.spec import RunSpec


@dataclass(frozen=True)
class Cell:
    """One training configuration, with the token budgets at which its learning rate has decayed.

    Attributes:
      tag: the question of the study that it serves.
      scale: a rung of ``mscale.scales``.
      mixture: a name that ``mscale.data.mixture.resolve`` knows.
      tokens: total token budgets of all languages together, ascending; each must be whole steps.
      seed: of the initial parameters and of the data schedule.
      unique_tokens: ``(language, U)`` pairs that limit a language to its first U tokens, so that it repeats.
      init: the cell whose final checkpoint (of its largest budget) this one starts from, or None.
      evaluate: languages to evaluate; None for those of the mixture.
      vocabulary: name of a token store in the recipe's ``sources``; "" is the study's own store.
    """

    tag: str
    scale: int | str
    mixture: str
    tokens: tuple[int, ...]
    seed: int = 0
    unique_tokens: tuple[tuple[str, int], ...] = ()
    init: "Cell | None" = None
    evaluate: tuple[str, ...] | None = None
    vocabulary: str = ""

    def __post_init__(self) -> None:
        object.__setattr__(self, "tokens", tuple(sorted(set(self.tokens))))

    @property
    def training(self) -> tuple:
        """The fields in which two cells must agree to share a trunk."""
        init = (self.init.training, max(self.init.tokens)) if self.init else None
        return (str(self.scale), self.mixture, self.seed, self.unique_tokens, init, self.vocabulary)


@dataclass(frozen=True)
class Study:
    """A named set of runs, parents first.

    Attributes:
      cells: what the runs follow from; may be empty in a study built run by run.
      ends: for each cell and budget, the id of the run that ends at it.
      mixtures: mixture name to the sampling rate of each of its languages.
      unique: unique tokens U of each language of the store, in whole windows.
      notes: what was reduced or left out, and why; shown with the plan.
    """

    name: str
    runs: tuple[RunSpec, ...]
    cells: tuple[Cell, ...] = ()
    ends: tuple[tuple[str, ...], ...] = ()
    mixtures: Mapping[str, Mapping[str, float]] = field(default_factory=dict, hash=False)
    unique: Mapping[str, int] = field(default_factory=dict, hash=False)
    notes: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        """Checks that the runs form a graph that can be trained.

        Raises:
          MscaleError: no runs, two runs with one id, a parent that is not in the study, a branch point outside its
            trunk, or a cycle between parents.
        """
        if not self.runs:
            raise MscaleError(f"study {self.name}: it has no runs; add cells")
        for run_id, count in Counter(run.id for run in self.runs).items():
            if count > 1:
                raise MscaleError(f"study {self.name}: run id {run_id!r} occurs twice; give each run once")
        for run in self.runs:
            if run.parent is None:
                continue
            trunk = self.by_id.get(run.parent)
            if trunk is None:
                raise MscaleError(
                    f"study {self.name}: run {run.id} starts from {run.parent!r}, which is not in the study; "
                    f"add that run{nearest(run.parent, self.by_id)}"
                )
            if run.kind == "branch" and not 0 < (run.parent_step or 0) <= trunk.steps:
                raise MscaleError(
                    f"study {self.name}: run {run.id} branches off {run.parent} at step {run.parent_step}, "
                    f"but that trunk has {trunk.steps} steps"
                )
        topological_order(self.runs)

    @cached_property
    def by_id(self) -> dict[str, RunSpec]:
        """Run id to spec."""
        return {run.id: run for run in self.runs}


def with_ids_of(planned: Study, before: Study) -> Study:
    """The planned study, whose runs take the ids of the runs of an earlier study that determine the same result.

    Ids of earlier versions of mscale hashed the text of gin files, so that the same run has another id today.
    """
    if before.by_id.keys() <= planned.by_id.keys():
        return planned
    earlier = {key: run_id for run_id, key in _contents(before).items()}
    contents = _contents(planned)
    ids = {run.id: earlier.get(contents[run.id], run.id) for run in planned.runs}
    runs = tuple(
        replace(run, id=ids[run.id], group=ids[run.group], parent=run.parent and ids[run.parent])
        for run in planned.runs
    )
    return replace(planned, runs=runs, ends=tuple(tuple(ids[one] for one in ends) for ends in planned.ends))


def _contents(study: Study) -> dict[str, str]:
    """Run id to what determines its result apart from the text, as JSON; the same for a run in two studies."""
    found: dict[str, str] = {}
    for run in topological_order(study.runs):
        parameters = specs.determining(run.gin_files, run.bindings, run.kind)
        parent = [run.kind == "branch", found[run.parent], run.parent_step] if run.parent else None
        found[run.id] = json.dumps([parameters, parent], sort_keys=True)
    return found


def stem(run_id: str) -> str:
    """The readable part of a run's id."""
    return run_id.rpartition("-")[0]


def grown(before: Study, planned: Study) -> Study:
    """The study with the cells and runs of both; a trunk of both is as long as the longer, with all branch points.

    A run of one budget that has become a branch, since its cell has several now, is not kept: its loss would count
    twice.
    """
    branches = {stem(run.id) for run in planned.runs if run.kind == "branch"}
    moved = {one.store: planned.by_id[one.id].store for one in before.runs if one.id in planned.by_id}
    runs = {
        run.id: replace(run, store=moved.get(run.store, run.store))
        for run in before.runs
        if run.kind != "single" or stem(run.id) not in branches
    }
    runs |= {run.id: _longer(runs.get(run.id, run), run) for run in planned.runs}
    known = set(planned.cells)
    kept = [
        (cell, ends)
        for cell, ends in zip(before.cells, before.ends, strict=True)
        if cell not in known and set(ends) <= runs.keys()
    ]
    return Study(
        planned.name,
        tuple(topological_order(list(runs.values()))),
        (*planned.cells, *(cell for cell, _ in kept)),
        (*planned.ends, *(ends for _, ends in kept)),
        {**before.mixtures, **planned.mixtures},
        {**before.unique, **planned.unique},
        tuple(dict.fromkeys((*planned.notes, *before.notes))),
    )


def _longer(one: RunSpec, other: RunSpec) -> RunSpec:
    """Of two specs of one run the longer, else the second; a trunk has the branch points and evaluations of both."""
    longer = one if one.steps > other.steps else other
    if longer.kind != "trunk":
        return other
    steps = {
        name: tuple(sorted({*(one.bindings.get(name) or ()), *(other.bindings.get(name) or ())}))
        for name in ("CHECKPOINT_STEPS", "EVAL_STEPS")
    }
    return replace(longer, bindings={**longer.bindings, **steps})
