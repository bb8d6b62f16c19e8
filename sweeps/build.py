"""From cells to run specs: budgets of one training share a trunk, cells of different tags share runs."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from mscale import scales
from mscale.data import mixture
from mscale.data.mixture import ATLAS, Sizes
from mscale.data.mixture import parse as parse_mixture
from mscale.errors import MscaleError, nearest
from sweeps import spec as specs
from sweeps.spec import RunSpec
from sweeps.study import Cell, Study, validate


@dataclass(frozen=True)
class Source:
    """A token store beside the study's own, such as one with a monolingual vocabulary.

    Attributes:
      store, fingerprint, vocabulary_size: as in ``Recipe``; sizes: its languages and their tokens.
    """

    store: str
    fingerprint: str
    vocabulary_size: int
    sizes: Sizes


@dataclass(frozen=True)
class Recipe:
    """How every run of a study trains; ``per_scale`` holds bindings that replace these for one scale.

    Attributes:
      store: folder of the token store; fingerprint: its ``spec.store_fingerprint``.
      decay: fraction of a budget over which the learning rate decays (ATLAS Table B.2: 0.1).
      evaluations: roughly how many times a trunk is evaluated, evenly in log steps, beside its branch points.
      unimax_budget: tokens that UniMax mixtures plan for, one for the whole study, so that their rates are
        fixed and budgets can share a trunk.
      bindings: further gin bindings of all runs.
      sources: the other token stores of the study, by the name that cells give as ``vocabulary``.
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
    unimax_budget: int | None = None
    bindings: Mapping[str, Any] = field(default_factory=dict, hash=False)
    per_scale: Mapping[str, Mapping[str, Any]] = field(default_factory=dict, hash=False)
    sources: Mapping[str, Source] = field(default_factory=dict, hash=False)

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


def build(
    name: str,
    cells: Iterable[Cell],
    recipe: Recipe,
    store: Sizes,
    notes: Sequence[str] = (),
) -> Study:
    """Works out the runs of a study's cells.

    Args:
      store: the token store, or anything that knows its languages and their sizes.
      notes: kept in the study.

    Raises:
      MscaleError: an unknown scale, mixture or language; a budget that is not whole steps or ends before the
        warmup; a cell that (through ``init``) would start from itself.
    """
    cells = tuple(replace(cell, tokens=tuple(sorted(set(cell.tokens)))) for cell in cells)
    mixtures: dict[str, dict[str, float]] = {}
    resolved: set[tuple] = set()
    digests = tuple(specs.gin_digest(file) for file in recipe.gin_files)
    merged: dict[tuple, Cell] = {}
    tag_of: dict[tuple, str] = {}
    for cell in cells:
        for one in _lineage(cell):
            _check_cell(name, one, recipe, store, mixtures, resolved)
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
        made[key] = _expand(name, cell, recipe, parent, mixtures, tag_of, digests, runs)
    ends = tuple(tuple(made[cell.training][tokens].id for tokens in cell.tokens) for cell in cells)
    unique = {
        language: store.windows(language, recipe.sequence_length) * recipe.sequence_length
        for language in store.languages
    }
    study = Study(name, tuple(runs), cells, ends, mixtures, unique, tuple(notes))
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


def _check_cell(
    study: str,
    cell: Cell,
    recipe: Recipe,
    store: Sizes,
    mixtures: dict[str, dict[str, float]],
    resolved: set[tuple],
) -> None:
    """Checks one cell, and adds the rates of its mixture to ``mixtures`` (once: hundreds of cells share one)."""
    where = f"study {study}, {cell.tag} cell {cell.mixture!r} at scale {cell.scale!r}"
    if cell.vocabulary:
        if cell.vocabulary not in recipe.sources:
            raise MscaleError(
                f"{where}: vocabulary {cell.vocabulary!r} has no token store; the recipe's sources are "
                f"{', '.join(recipe.sources) or 'none'}{nearest(cell.vocabulary, recipe.sources)}"
            )
        store = recipe.sources[cell.vocabulary].sizes
    sequence_length = int(recipe.of(cell.scale, "SEQUENCE_LENGTH"))
    asked = (cell.mixture, sequence_length, cell.unique_tokens, cell.vocabulary)
    try:
        scales.get(cell.scale)
        if asked not in resolved:
            found = mixture.resolve(
                cell.mixture,
                store,
                sequence_length,
                unique_tokens=dict(cell.unique_tokens),
                budget_tokens=recipe.unimax_budget,
            )
            mixtures[cell.mixture] = dict(zip(found.languages, found.rates, strict=True))
            resolved.add(asked)
    except MscaleError as error:
        raise MscaleError(f"{where}: {error}") from None
    for language in cell.evaluate or ():
        if language not in store.languages:
            raise MscaleError(
                f"{where}: language {language!r} is to be evaluated but the token store does not have it"
                f"{nearest(language, store.languages)}"
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
    digests: tuple[str, ...],
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
        **({"UNIMAX_BUDGET": recipe.unimax_budget} if cell.mixture.startswith("unimax") else {}),
    }

    source = recipe.sources.get(cell.vocabulary)
    place = source.store if source else recipe.store
    fingerprint = source.fingerprint if source else recipe.fingerprint
    size = source.vocabulary_size if source else recipe.vocabulary_size
    # Worked-out rates come from the store's sizes or the package's tables: runs of other rates are other runs.
    worked_out = parse_mixture(cell.mixture)[0] or cell.mixture.startswith(ATLAS)
    rates = mixtures[cell.mixture] if worked_out else None

    def make(kind: str, steps: int, parent: RunSpec | None, parent_step: int | None, **extra) -> RunSpec:
        tokens = steps * step_tokens
        tag = tag_of.get((cell.training, tokens), cell.tag)
        mark = {"trunk": "trunk", "branch": f"{steps}", "single": f"{steps}"}[kind]
        mixture = cell.mixture if len(cell.mixture) <= 16 else f"{tag}{len(mixtures[cell.mixture])}"
        mixture += f"-{cell.vocabulary}" if cell.vocabulary else ""
        prefix = f"{cell.scale}-{mixture}{'-from' if cell.init else ''}-{mark}-s{cell.seed}"
        run = specs.make(
            study=study,
            tag=tag,
            kind=kind,
            prefix=prefix,
            gin_files=recipe.gin_files,
            gin_digests=digests,
            bindings={**common, "STEPS": steps, **extra},
            store=place,
            fingerprint=fingerprint,
            rates=rates,
            params=scales.parameter_count(shape, size),
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
