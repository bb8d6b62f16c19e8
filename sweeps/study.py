"""Studies as data: cells of a grid, and the run specs that follow from them.

A cell is one line of a study's table: a scale, a mixture, a seed, a starting point and the token budgets at
which a cooled model is wanted. Budgets of a cell share one warmup-stable-decay trunk that runs to 0.9 of the
largest budget; every budget is a branch off it that decays over that budget's last 10%. Cells of different
tags that ask for the same training share its trunk, so that monolingual baselines are trained once.
"""

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import cached_property
from typing import Any

from mscale import scales
from mscale.errors import MscaleError, nearest
from sweeps import spec as specs
from sweeps.spec import RunSpec


@dataclass(frozen=True)
class Cell:
    """One training configuration with the budgets at which it is cooled.

    Attributes:
      tag: which question of the study it serves.
      scale: a rung of ``mscale.scales``.
      mixture: a name that ``mscale.mixture.resolve`` knows.
      tokens: total token budgets of all languages together; each must be whole steps.
      seed: of the initial parameters and of the schedule.
      unique_tokens: ``(language, U)`` pairs limiting a language to its first U tokens, to repeat it.
      init: the cell whose cooled checkpoint (of its largest budget) this one continues, or None.
      evaluate: languages to evaluate; None means those of the mixture.
    """

    tag: str
    scale: int | str
    mixture: str
    tokens: tuple[int, ...]
    seed: int = 0
    unique_tokens: tuple[tuple[str, int], ...] = ()
    init: "Cell | None" = None
    evaluate: tuple[str, ...] | None = None

    @property
    def training(self) -> tuple:
        """What two cells must agree on to share a trunk."""
        init = (self.init.training, max(self.init.tokens)) if self.init else None
        return (str(self.scale), self.mixture, self.seed, self.unique_tokens, init)


@dataclass(frozen=True)
class Recipe:
    """How every run of a study trains; ``per_scale`` holds bindings that replace these for one scale.

    Attributes:
      store: folder of the token store; fingerprint: its ``spec.store_fingerprint``.
      decay: fraction of a budget over which the learning rate decays (ATLAS Table B.2: 0.1).
      evaluations: roughly how many times a trunk is evaluated, evenly in log steps, beside its branch points.
      bindings: further gin bindings of all runs.
    """

    store: str
    fingerprint: str
    vocabulary_size: int
    sequence_length: int
    batch_size: int
    learning_rate: float
    warmup_steps: int
    gin_files: tuple[str, ...] = ("gin/train/pretrain.gin",)
    decay: float = 0.1
    evaluations: int = 6
    bindings: Mapping[str, Any] = field(default_factory=dict, hash=False)
    per_scale: Mapping[str, Mapping[str, Any]] = field(default_factory=dict, hash=False)

    def of(self, scale: int | str, name: str) -> Any:
        """A binding as it holds at one scale."""
        defaults = {
            "SEQUENCE_LENGTH": self.sequence_length,
            "BATCH_SIZE": self.batch_size,
            "LEARNING_RATE": self.learning_rate,
            "WARMUP_STEPS": self.warmup_steps,
        }
        return {**defaults, **self.bindings, **self.per_scale.get(str(scale), {})}[name]

    def step_tokens(self, scale: int | str) -> int:
        """Tokens of one step: batch times sequence length."""
        return int(self.of(scale, "BATCH_SIZE")) * int(self.of(scale, "SEQUENCE_LENGTH"))


@dataclass(frozen=True)
class Study:
    """A named set of runs, parents first.

    Attributes:
      cells: what was asked for; may be empty in a study put together by hand.
      ends: per cell, per budget, the id of the run that cools it.
      mixtures: mixture name to the sampling rate of each of its languages.
      notes: what was reduced or left out, and why; to be shown with the plan.
    """

    name: str
    runs: tuple[RunSpec, ...]
    cells: tuple[Cell, ...] = ()
    ends: tuple[tuple[str, ...], ...] = ()
    mixtures: Mapping[str, Mapping[str, float]] = field(default_factory=dict, hash=False)
    notes: tuple[str, ...] = ()

    @cached_property
    def by_id(self) -> dict[str, RunSpec]:
        """Run id to spec."""
        return {run.id: run for run in self.runs}


def build(
    name: str,
    cells: Iterable[Cell],
    recipe: Recipe,
    mixtures: Mapping[str, Mapping[str, float]],
    notes: Sequence[str] = (),
) -> Study:
    """Works out the runs of a study's cells.

    Args:
      mixtures: rates of every mixture that a cell names (``rates`` makes them from a name and a store).
      notes: kept in the study.

    Raises:
      MscaleError: an unknown scale, mixture or language; a budget that is not whole steps or ends before the
        warmup; a cell that (through ``init``) would start from itself.
    """
    cells = tuple(replace(cell, tokens=tuple(sorted(set(cell.tokens)))) for cell in cells)
    merged: dict[tuple, Cell] = {}
    tag_of: dict[tuple, str] = {}
    for cell in cells:
        for one in _lineage(cell):
            _check_cell(name, one, recipe, mixtures)
            key = one.training
            for tokens in one.tokens:
                tag_of.setdefault((key, tokens), one.tag)
            merged[key] = _merge(merged[key], one, mixtures) if key in merged else one
    made: dict[tuple, dict[int, RunSpec]] = {}
    runs: list[RunSpec] = []
    for key, cell in merged.items():
        parent = None
        if cell.init is not None:
            parent = made[cell.init.training][max(cell.init.tokens)]
        made[key] = _expand(name, cell, recipe, parent, mixtures, tag_of, runs)
    ends = tuple(tuple(made[cell.training][tokens].id for tokens in cell.tokens) for cell in cells)
    study = Study(name, tuple(runs), cells, ends, dict(mixtures), tuple(notes))
    validate(study)
    return study


def _lineage(cell: Cell) -> list[Cell]:
    """The cell after all that it starts from."""
    chain = [cell]
    while chain[0].init is not None:
        chain.insert(0, chain[0].init)
    return [replace(one, tokens=tuple(sorted(set(one.tokens)))) for one in chain]


def _merge(one: Cell, other: Cell, mixtures: Mapping[str, Mapping[str, float]]) -> Cell:
    """Both cells' budgets and evaluations on one trunk."""
    evaluate: tuple[str, ...] | None = None
    if one.evaluate is not None or other.evaluate is not None:
        languages = dict.fromkeys(
            [*_evaluated(one, mixtures), *_evaluated(other, mixtures)],
        )
        evaluate = tuple(languages)
    return replace(one, tokens=tuple(sorted({*one.tokens, *other.tokens})), evaluate=evaluate)


def _evaluated(cell: Cell, mixtures: Mapping[str, Mapping[str, float]]) -> tuple[str, ...]:
    return cell.evaluate if cell.evaluate is not None else tuple(mixtures[cell.mixture])


def _check_cell(study: str, cell: Cell, recipe: Recipe, mixtures: Mapping[str, Mapping[str, float]]) -> None:
    where = f"study {study}, {cell.tag} cell {cell.mixture!r} at scale {cell.scale!r}"
    try:
        scales.get(cell.scale)
    except MscaleError as error:
        raise MscaleError(f"{where}: {error}") from None
    if cell.mixture not in mixtures:
        raise MscaleError(
            f"{where}: unknown mixture; the study defines {', '.join(list(mixtures)[:8]) or 'none'}"
            f"{nearest(cell.mixture, mixtures)}"
        )
    known = {language for rates_of in mixtures.values() for language in rates_of}
    for language in cell.evaluate or ():
        if language not in known:
            raise MscaleError(
                f"{where}: language {language!r} is to be evaluated but no mixture of the study has it"
                f"{nearest(language, known)}"
            )
    for language, unique in cell.unique_tokens:
        if language not in mixtures[cell.mixture]:
            raise MscaleError(f"{where}: unique_tokens names {language!r}, which the mixture does not hold")
        if unique <= 0 or unique % recipe.of(cell.scale, "SEQUENCE_LENGTH"):
            raise MscaleError(
                f"{where}: unique_tokens of {language!r} is {unique}; expected a positive multiple of the "
                f"sequence length {recipe.of(cell.scale, 'SEQUENCE_LENGTH')}"
            )
    if not cell.tokens:
        raise MscaleError(f"{where}: no token budgets; give at least one")
    step_tokens, warmup = recipe.step_tokens(cell.scale), int(recipe.of(cell.scale, "WARMUP_STEPS"))
    for tokens in cell.tokens:
        if tokens <= 0 or tokens % step_tokens:
            raise MscaleError(
                f"{where}: budget {tokens:,} is not whole steps of {step_tokens:,} tokens; use "
                f"{max(1, round(tokens / step_tokens)) * step_tokens:,}"
            )
        steps = tokens // step_tokens
        if steps - decay_steps(steps, recipe.decay) < warmup + 1:
            raise MscaleError(
                f"{where}: budget of {tokens:,} tokens is {steps} steps, which ends before {warmup} warmup "
                f"steps and the decay have room; raise it above {int(warmup / (1 - recipe.decay) + 2)} steps"
            )


def decay_steps(steps: int, fraction: float) -> int:
    """Steps over which a budget of ``steps`` decays, at least one."""
    return max(1, round(steps * fraction))


def _expand(
    study: str,
    cell: Cell,
    recipe: Recipe,
    parent: RunSpec | None,
    mixtures: Mapping[str, Mapping[str, float]],
    tag_of: Mapping[tuple, str],
    runs: list[RunSpec],
) -> dict[int, RunSpec]:
    """Appends the cell's runs; returns budget → the run that ends it."""
    step_tokens = recipe.step_tokens(cell.scale)
    shape = scales.get(cell.scale)
    warmup = int(recipe.of(cell.scale, "WARMUP_STEPS"))
    budgets = [tokens // step_tokens for tokens in cell.tokens]
    points = {steps: steps - decay_steps(steps, recipe.decay) for steps in budgets}
    common = {
        **{
            key: recipe.of(cell.scale, key)
            for key in ("SEQUENCE_LENGTH", "BATCH_SIZE", "LEARNING_RATE", "WARMUP_STEPS")
        },
        **recipe.bindings,
        **recipe.per_scale.get(str(cell.scale), {}),
        "SCALE": cell.scale,
        "MIXTURE": cell.mixture,
        "SEED": cell.seed,
        "UNIQUE_TOKENS": dict(cell.unique_tokens) or None,
        "EVAL_LANGUAGES": _evaluated(cell, mixtures),
    }

    def make(kind: str, steps: int, parent: RunSpec | None, parent_step: int | None, **extra) -> RunSpec:
        tokens = steps * step_tokens
        tag = tag_of.get((cell.training, tokens), cell.tag)
        mark = {"trunk": "trunk", "branch": f"{steps}", "single": f"{steps}"}[kind]
        mixture = cell.mixture if len(cell.mixture) <= 16 else f"{tag}{len(mixtures[cell.mixture])}"
        prefix = f"{cell.scale}-{mixture}{'-from' if cell.init else ''}-{mark}-s{cell.seed}"
        run = specs.make(
            study=study,
            tag=tag,
            kind=kind,
            prefix=prefix,
            gin_files=recipe.gin_files,
            bindings={**common, "STEPS": steps, **extra},
            store=recipe.store,
            fingerprint=recipe.fingerprint,
            params=scales.parameter_count(shape, recipe.vocabulary_size),
            parent=parent,
            parent_step=parent_step,
        )
        runs.append(run)
        return run

    init_step = parent.steps if parent else None
    if len(budgets) == 1:
        steps = budgets[0]
        evals = log_steps(warmup, steps, recipe.evaluations, points.values())
        decay = {"DECAY_STEPS": steps - points[steps], "CHECKPOINT_STEPS": (), "EVAL_STEPS": evals}
        return {cell.tokens[0]: make("single", steps, parent, init_step, **decay)}
    trunk_steps = max(points.values())
    trunk = make(
        "trunk",
        trunk_steps,
        parent,
        init_step,
        DECAY_STEPS=0,
        CHECKPOINT_STEPS=tuple(sorted(set(points.values()))),
        EVAL_STEPS=log_steps(warmup, trunk_steps, recipe.evaluations, points.values()),
    )
    return {
        steps * step_tokens: make(
            "branch",
            steps,
            trunk,
            points[steps],
            DECAY_STEPS=steps - points[steps],
            CHECKPOINT_STEPS=(),
            EVAL_STEPS=(steps,),
        )
        for steps in budgets
    }


def log_steps(warmup: int, steps: int, count: int, points: Iterable[int] = ()) -> tuple[int, ...]:
    """About ``count`` steps, even in log from the warmup to ``steps``, with ``points`` and the end."""
    first = max(1, warmup)
    chosen = {steps, *points}
    for index in range(count):
        chosen.add(round(first * (steps / first) ** (index / max(1, count - 1))))
    return tuple(sorted(step for step in chosen if 0 < step <= steps))


# ---------------------------------------------------------------------------------------------------------
# Mixtures by name


def rates(name: str, languages: Sequence[str]) -> dict[str, float]:
    """Sampling rates of a mixture given by its languages: ``en``, ``en+fr``, ``en=0.7+fr=0.3``, ``uniform``.

    Rates that follow from corpus sizes (UniMax, proportional) are written out by whoever makes the study, so
    that they are fixed for all its runs and enter their ids.

    Raises:
      MscaleError: a language the store does not have, a rate that is no number, rates that do not sum to 1.
    """
    if name == "uniform":
        return {language: 1 / len(languages) for language in languages}
    parts = [part.partition("=") for part in name.split("+")]
    for language, _, _ in parts:
        if language not in languages:
            raise MscaleError(
                f"mixture {name!r}: language {language!r} is not in the token store, which has "
                f"{', '.join(list(languages)[:12])}{' …' if len(languages) > 12 else ''}"
                f"{nearest(language, languages)}"
            )
    if len({language for language, _, _ in parts}) < len(parts):
        raise MscaleError(f"mixture {name!r}: a language is listed twice; list each once")
    if not any(equals for _, equals, _ in parts):
        return {language: 1 / len(parts) for language, _, _ in parts}
    try:
        given = {language: float(rate) for language, _, rate in parts}
    except ValueError:
        raise MscaleError(
            f"mixture {name!r}: expected a rate for each language, as in 'en=0.7+fr=0.3'"
        ) from None
    if min(given.values()) <= 0 or abs(sum(given.values()) - 1) > 1e-6:
        raise MscaleError(
            f"mixture {name!r}: rates must be above 0 and sum to 1, found {sum(given.values())}"
        )
    return given


def explicit(given: Mapping[str, float], digits: int = 6) -> str:
    """Writes rates as a mixture name, rounded to ``digits`` with the largest taking up the remainder."""
    units = {language: max(1, round(rate * 10**digits)) for language, rate in given.items()}
    largest = max(units, key=lambda language: units[language])
    units[largest] += 10**digits - sum(units.values())
    return "+".join(f"{language}={units[language] / 10**digits:.{digits}f}" for language in units)


# ---------------------------------------------------------------------------------------------------------
# Checks, order, files


def validate(study: Study) -> None:
    """Checks a study, whoever put it together.

    Raises:
      MscaleError: no runs, two runs of one id, a parent that is not there, or a cycle between parents.
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
    ordered(study.runs)


def ordered(runs: Sequence[RunSpec]) -> list[RunSpec]:
    """Runs with parents before children, otherwise as given.

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


def to_json(study: Study) -> dict[str, Any]:
    """Returns the study as JSON-serialisable data; ``from_json`` inverts it."""
    return json.loads(
        json.dumps(
            {
                "name": study.name,
                "notes": study.notes,
                "mixtures": study.mixtures,
                "cells": [asdict(cell) for cell in study.cells],
                "ends": study.ends,
                "runs": [specs.to_json(run) for run in study.runs],
            }
        )
    )


def from_json(data: Mapping[str, Any], *, where: str = "study.json") -> Study:
    """Reads what ``to_json`` wrote.

    Raises:
      MscaleError: a field is missing, or the runs do not make a study.
    """
    try:
        study = Study(
            name=data["name"],
            runs=tuple(specs.from_json(run, where=where) for run in data["runs"]),
            cells=tuple(_cell_from_json(cell) for cell in data["cells"]),
            ends=tuple(tuple(ids) for ids in data["ends"]),
            mixtures=data["mixtures"],
            notes=tuple(data["notes"]),
        )
    except (KeyError, TypeError) as error:
        raise MscaleError(
            f"{where}: not a study file of this version ({error}); plan the study again"
        ) from None
    validate(study)
    return study


def _cell_from_json(data: Mapping[str, Any]) -> Cell:
    values = dict(data)
    values["tokens"] = tuple(values["tokens"])
    values["unique_tokens"] = tuple((language, unique) for language, unique in values["unique_tokens"])
    values["evaluate"] = None if values["evaluate"] is None else tuple(values["evaluate"])
    values["init"] = None if values["init"] is None else _cell_from_json(values["init"])
    return Cell(**values)
