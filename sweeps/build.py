"""From cells to run specs: the budgets of one training share a trunk, and cells of different tags share runs."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Protocol

from mscale import scales
from mscale.data import mixture
from mscale.data.mixture import ATLAS_PREFIX, Sizes
from mscale.data.mixture import parse_mixture_name as parse_mixture
from mscale.errors import MscaleError, nearest
from sweeps import spec as specs
from sweeps.spec import RunSpec
from sweeps.study import Cell, Study


class PlannedStore(Sizes, Protocol):
    """The part of a token store that planning a study uses."""

    @property
    def path(self) -> Any: ...
    @property
    def vocabulary(self) -> Mapping[str, Any]: ...
    def data_hash(self, languages: Iterable[str]) -> str: ...


@dataclass(frozen=True)
class Recipe:
    """How every run of a study trains.

    Attributes:
      sequence_length: tokens of a sequence; batch_size: sequences of a step.
      learning_rate: peak rate; warmup_steps: steps of linear warmup to it.
      gin_files: that every run is launched with.
      decay: fraction of a budget over which the learning rate decays (ATLAS Table B.2: 0.1).
      evaluations: about how many times a trunk is evaluated, evenly in log steps, in addition to its branch points.
      unimax_budget: token budget from which UniMax computes its rates; one for the whole study, so that budgets of
        one mixture have the same rates and can share a trunk.
      bindings: further gin bindings of all runs.
      per_scale: scale → bindings that replace the others at that scale.
      sources: further token stores, such as one with a monolingual vocabulary, by the name that cells give as
        ``vocabulary``.
    """

    sequence_length: int
    batch_size: int
    learning_rate: float
    warmup_steps: int
    gin_files: tuple[str, ...] = ("gin/train/pretrain.gin",)
    decay: float = 0.1
    evaluations: int = 6
    unimax_budget: int | None = None
    bindings: Mapping[str, Any] = field(default_factory=dict, hash=False)
    per_scale: Mapping[str, Mapping[str, Any]] = field(default_factory=dict, hash=False)
    sources: Mapping[str, PlannedStore] = field(default_factory=dict, hash=False)

    def binding(self, scale: int | str, name: str) -> Any:
        """The value of the gin binding ``name`` at one scale."""
        defaults = {
            "SEQUENCE_LENGTH": self.sequence_length,
            "BATCH_SIZE": self.batch_size,
            "LEARNING_RATE": self.learning_rate,
            "WARMUP_STEPS": self.warmup_steps,
        }
        return {**defaults, **self.bindings, **self.per_scale.get(str(scale), {})}[name]

    def step_tokens(self, scale: int | str) -> int:
        """Tokens of one step: batch times sequence length."""
        return int(self.binding(scale, "BATCH_SIZE")) * int(self.binding(scale, "SEQUENCE_LENGTH"))


def build_study(
    name: str,
    cells: Iterable[Cell],
    recipe: Recipe,
    store: PlannedStore,
    notes: Sequence[str] = (),
) -> Study:
    """Returns the study of these cells, with their runs.

    Args:
      store: the token store of the cells that name no ``vocabulary``.
      notes: kept in the study.

    Raises:
      MscaleError: an unknown scale, mixture or language; a budget that is not whole steps or ends before the
        warmup; a cell that (through ``init``) would start from itself. The message has a line for each fault.
    """
    cells = tuple(cells)
    mixtures: dict[str, dict[str, float]] = {}
    resolved: dict[tuple, str] = {}
    merged: dict[tuple, Cell] = {}
    tag_by_budget: dict[tuple, str] = {}
    cells_by_fault: dict[tuple[str, str], dict[Cell, None]] = {}
    for cell in cells:
        for one in _lineage(cell):
            for fault in _cell_faults(one, recipe, store, mixtures, resolved):
                cells_by_fault.setdefault((one.tag, fault), {})[one] = None
    if cells_by_fault:
        raise MscaleError(_fault_lines(name, cells_by_fault))
    for cell in cells:
        for one in _lineage(cell):
            key = one.training
            for tokens in one.tokens:
                tag_by_budget.setdefault((key, tokens), one.tag)
            merged[key] = _merge(merged[key], one, mixtures) if key in merged else one
    run_by_budget: dict[tuple, dict[int, RunSpec]] = {}
    runs: list[RunSpec] = []
    for key, cell in merged.items():
        parent = None
        if cell.init is not None:
            parent = run_by_budget[cell.init.training][max(cell.init.tokens)]
        run_by_budget[key] = _cell_runs(name, cell, recipe, store, parent, mixtures, tag_by_budget, runs)
    ends = tuple(tuple(run_by_budget[cell.training][tokens].id for tokens in cell.tokens) for cell in cells)
    unique = {
        language: store.windows(language, recipe.sequence_length) * recipe.sequence_length
        for language in store.languages
    }
    return Study(name, tuple(runs), cells, ends, mixtures, unique, tuple(notes))


def _lineage(cell: Cell) -> list[Cell]:
    """The cells that this one starts from, directly or not, the earliest first; then the cell itself."""
    chain = [cell]
    while chain[0].init is not None:
        chain.insert(0, chain[0].init)
    return chain


def _merge(one: Cell, other: Cell, mixtures: Mapping[str, Mapping[str, float]]) -> Cell:
    """One cell with the budgets and the evaluated languages of both."""
    evaluate: tuple[str, ...] | None = None
    if one.evaluate is not None or other.evaluate is not None:
        evaluate = tuple(dict.fromkeys([*_evaluated(one, mixtures), *_evaluated(other, mixtures)]))
    return replace(one, tokens=(*one.tokens, *other.tokens), evaluate=evaluate)


def _evaluated(cell: Cell, mixtures: Mapping[str, Mapping[str, float]]) -> tuple[str, ...]:
    return cell.evaluate if cell.evaluate is not None else tuple(mixtures[cell.mixture])


def _fault_lines(study: str, cells_by_fault: Mapping[tuple[str, str], Mapping[Cell, None]]) -> str:
    """A line for each fault of the cells of one tag, which names the first cell that has it."""
    lines = []
    for (tag, fault), cells in cells_by_fault.items():
        first = next(iter(cells))
        more = f" and {len(cells) - 1} more" if len(cells) > 1 else ""
        lines.append(f"study {study}, {tag} cell {first.mixture!r} at scale {first.scale!r}{more}: {fault}")
    return "\n".join(lines)


def _cell_faults(
    cell: Cell,
    recipe: Recipe,
    store: PlannedStore,
    mixtures: dict[str, dict[str, float]],
    resolved: dict[tuple, str],
) -> Iterator[str]:
    """Yields what is wrong with one cell, and adds the rates of its mixture to ``mixtures``.

    ``resolved`` holds the faults of mixtures that have been resolved already: hundreds of cells share one.
    """
    store_of_cell = recipe.sources.get(cell.vocabulary) if cell.vocabulary else store
    if store_of_cell is None:
        yield (
            f"vocabulary {cell.vocabulary!r} has no token store; the recipe's sources are "
            f"{', '.join(recipe.sources) or 'none'}{nearest(cell.vocabulary, recipe.sources)}"
        )
        return
    try:
        scales.get(cell.scale)
    except MscaleError as error:
        yield str(error)
    sequence_length = int(recipe.binding(cell.scale, "SEQUENCE_LENGTH"))
    request = (cell.mixture, sequence_length, cell.unique_tokens, cell.vocabulary)
    if request not in resolved:
        resolved[request] = ""
        try:
            found = mixture.resolve(
                cell.mixture,
                store_of_cell,
                sequence_length,
                dict(cell.unique_tokens),
                mixture.SamplingOptions(budget_tokens=recipe.unimax_budget),
            )
            mixtures[cell.mixture] = dict(zip(found.languages, found.rates, strict=True))
        except MscaleError as error:
            resolved[request] = str(error)
    if resolved[request]:
        yield resolved[request]
    for language in cell.evaluate or ():
        if language not in store_of_cell.languages:
            yield (
                f"language {language!r} is to be evaluated but the token store does not have it"
                f"{nearest(language, store_of_cell.languages)}"
            )
    if not cell.tokens:
        yield "no token budgets; give at least one"
    step_tokens, warmup = recipe.step_tokens(cell.scale), int(recipe.binding(cell.scale, "WARMUP_STEPS"))
    for tokens in cell.tokens:
        steps = tokens // step_tokens
        if tokens <= 0 or tokens % step_tokens:
            yield (
                f"budget {tokens:,} is not whole steps of {step_tokens:,} tokens; use "
                f"{max(1, round(tokens / step_tokens)) * step_tokens:,}"
            )
        elif steps - decay_steps(steps, recipe.decay) < warmup + 1:
            yield (
                f"budget of {tokens:,} tokens is {steps} steps, which ends before {warmup} warmup "
                f"steps and the decay have room; raise it above {int(warmup / (1 - recipe.decay) + 2)} steps"
            )


def decay_steps(steps: int, fraction: float) -> int:
    """Steps over which a budget of ``steps`` decays, at least one."""
    return max(1, round(steps * fraction))


def _cell_runs(
    study: str,
    cell: Cell,
    recipe: Recipe,
    store: PlannedStore,
    parent: RunSpec | None,
    mixtures: Mapping[str, Mapping[str, float]],
    tag_by_budget: Mapping[tuple, str],
    runs: list[RunSpec],
) -> dict[int, RunSpec]:
    """Appends the cell's runs to ``runs``; returns budget in tokens → the run that ends at it."""
    step_tokens = recipe.step_tokens(cell.scale)
    shape = scales.get(cell.scale)
    warmup = int(recipe.binding(cell.scale, "WARMUP_STEPS"))
    budgets = [tokens // step_tokens for tokens in cell.tokens]
    branch_points = {steps: steps - decay_steps(steps, recipe.decay) for steps in budgets}
    common = {
        **{
            key: recipe.binding(cell.scale, key)
            for key in ("SEQUENCE_LENGTH", "BATCH_SIZE", "LEARNING_RATE", "WARMUP_STEPS")
        },
        **recipe.bindings,
        **recipe.per_scale.get(str(cell.scale), {}),
        "SCALE": cell.scale,
        "MIXTURE": cell.mixture,
        "SEED": cell.seed,
        "UNIQUE_TOKENS": dict(cell.unique_tokens) or None,
        "EVAL_LANGUAGES": _evaluated(cell, mixtures),
        **({"UNIMAX_BUDGET": recipe.unimax_budget} if parse_mixture(cell.mixture)[0] == "unimax" else {}),
    }

    store = recipe.sources.get(cell.vocabulary, store)
    # Rates of a keyword come from the store's sizes or the package's tables: the name alone does not fix them, so
    # they enter the id.
    is_keyword = parse_mixture(cell.mixture)[0] or cell.mixture.startswith(ATLAS_PREFIX)
    inputs = specs.RunInputs(
        str(store.path),
        f"{store.vocabulary['fingerprint']} {store.data_hash({*mixtures[cell.mixture], *common['EVAL_LANGUAGES']})}",
        recipe.gin_files,
        mixtures[cell.mixture] if is_keyword else None,
    )
    params = scales.parameter_count(shape, int(store.vocabulary["size"]))

    def add_run(kind: str, steps: int, start: specs.StartingPoint | None, **schedule: Any) -> RunSpec:
        tokens = steps * step_tokens
        tag = tag_by_budget.get((cell.training, tokens), cell.tag)
        mark = {"trunk": "trunk", "branch": f"{steps}", "single": f"{steps}"}[kind]
        mixture = cell.mixture if len(cell.mixture) <= 16 else f"{tag}{len(mixtures[cell.mixture])}"
        mixture += f"-{cell.vocabulary}" if cell.vocabulary else ""
        prefix = f"{cell.scale}-{mixture}{'-from' if cell.init else ''}-{mark}-s{cell.seed}"
        run = specs.make_run(
            specs.RunLabel(study, tag, prefix),
            kind,
            {**common, "STEPS": steps, **schedule},
            inputs,
            params=params,
            start=start,
        )
        runs.append(run)
        return run

    init = specs.StartingPoint(parent, parent.steps) if parent else None
    if len(budgets) == 1:
        steps = budgets[0]
        evals = log_steps(warmup, steps, recipe.evaluations, branch_points.values())
        decay = {"DECAY_STEPS": steps - branch_points[steps], "CHECKPOINT_STEPS": (), "EVAL_STEPS": evals}
        return {cell.tokens[0]: add_run("single", steps, init, **decay)}
    trunk_steps = max(branch_points.values())
    trunk = add_run(
        "trunk",
        trunk_steps,
        init,
        DECAY_STEPS=0,
        CHECKPOINT_STEPS=tuple(sorted(set(branch_points.values()))),
        EVAL_STEPS=log_steps(warmup, trunk_steps, recipe.evaluations, branch_points.values()),
    )
    return {
        steps * step_tokens: add_run(
            "branch",
            steps,
            specs.StartingPoint(trunk, branch_points[steps]),
            DECAY_STEPS=steps - branch_points[steps],
            CHECKPOINT_STEPS=(),
            EVAL_STEPS=(steps,),
        )
        for steps in budgets
    }


def log_steps(warmup: int, steps: int, count: int, points: Iterable[int] = ()) -> tuple[int, ...]:
    """About ``count`` steps, evenly spaced in log from the warmup to ``steps``, with ``points`` and ``steps``."""
    first = max(1, warmup)
    chosen = {steps, *points}
    for index in range(count):
        chosen.add(round(first * (steps / first) ** (index / max(1, count - 1))))
    return tuple(sorted(step for step in chosen if 0 < step <= steps))
