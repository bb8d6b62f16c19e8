"""Studies as data: cells of a grid, and the run specs that follow from them.

A cell is one line of a study's table: a scale, a mixture, a seed, a starting point and token budgets. At each budget
the learning rate has decayed (the model is *cooled*). The budgets of a cell share one warmup-stable-decay trunk, which
runs to 0.9 of the largest budget; each budget is a branch off the trunk that decays over its last 10%. Cells of
different tags with the same training share its trunk, so that monolingual baselines are trained once.
"""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from functools import cached_property
from typing import Any

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
      tokens: total token budgets of all languages together; each must be whole steps.
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

    @cached_property
    def by_id(self) -> dict[str, RunSpec]:
        """Run id to spec."""
        return {run.id: run for run in self.runs}


# ---------------------------------------------------------------------------------------------------------
# Checks, order, files


def check_study(study: Study) -> None:
    """Checks that a study's runs form a graph that can be trained.

    Raises:
      MscaleError: no runs, two runs with one id, a parent that is not in the study, a branch point outside its trunk,
        or a cycle between parents.
    """
    if not study.runs:
        raise MscaleError(f"study {study.name}: it has no runs; add cells")
    seen: set[str] = set()
    for run in study.runs:
        if run.id in seen:
            raise MscaleError(f"study {study.name}: run id {run.id!r} occurs twice; give each run once")
        seen.add(run.id)
    for run in study.runs:
        if run.parent is not None and run.parent not in seen:
            raise MscaleError(
                f"study {study.name}: run {run.id} starts from {run.parent!r}, which is not in the study; "
                f"add that run{nearest(run.parent, seen)}"
            )
        if run.kind == "branch" and not 0 < (run.parent_step or 0) <= study.by_id[run.parent or ""].steps:
            raise MscaleError(
                f"study {study.name}: run {run.id} branches off {run.parent} at step {run.parent_step}, "
                f"but that trunk has {study.by_id[run.parent or ''].steps} steps"
            )
    topological_order(study.runs)


def study_to_json(study: Study) -> dict[str, Any]:
    """Returns the study as JSON-serialisable data; ``study_from_json`` inverts it."""
    return json.loads(
        json.dumps(
            {
                "name": study.name,
                "notes": study.notes,
                "mixtures": study.mixtures,
                "unique": study.unique,
                "cells": [asdict(cell) for cell in study.cells],
                "ends": study.ends,
                "runs": [specs.spec_to_json(run) for run in study.runs],
            }
        )
    )


def study_from_json(data: Mapping[str, Any], *, where: str = "study.json") -> Study:
    """Reads what ``study_to_json`` wrote.

    Raises:
      MscaleError: a field is missing, or the runs do not pass ``check_study``; ``where`` names the file.
    """
    try:
        study = Study(
            name=data["name"],
            runs=tuple(specs.spec_from_json(run, where=where) for run in data["runs"]),
            cells=tuple(_cell_from_json(cell) for cell in data["cells"]),
            ends=tuple(tuple(ids) for ids in data["ends"]),
            mixtures=data["mixtures"],
            unique=data["unique"],
            notes=tuple(data["notes"]),
        )
    except (KeyError, TypeError) as error:
        raise MscaleError(
            f"{where}: not a study file of this version ({error}); plan the study again"
        ) from None
    check_study(study)
    return study


def _cell_from_json(data: Mapping[str, Any]) -> Cell:
    values = dict(data)
    values["tokens"] = tuple(values["tokens"])
    values["unique_tokens"] = tuple((language, unique) for language, unique in values["unique_tokens"])
    values["evaluate"] = None if values["evaluate"] is None else tuple(values["evaluate"])
    values["init"] = None if values["init"] is None else _cell_from_json(values["init"])
    return Cell(**values)
