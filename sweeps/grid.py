"""A user's own study, written as a grid in gin or Python.

In gin, the scope of each group of cells is their tag; values are in Python's syntax:

    study.name = "swahili"
    study.cells = (@alone/cells(), @together/cells(), @continued/cells())
    alone/cells.scales = ("nano0", "nano1", "nano2")
    alone/cells.mixtures = ("en", "sw")
    alone/cells.tokens = (1e5, 2e5)
    together/cells.scales = ("nano0", "nano1", "nano2")
    together/cells.mixtures = ("en+sw",)
    together/cells.tokens = (2e5,)
    continued/cells.start = @together/cells()
    continued/cells.mixtures = ("sw",)
    continued/cells.tokens = (1e5,)

    mscale sweep plan swahili.gin --store my-store

In Python, a file defines ``study(store)`` and returns what `sweeps.grid.study` or `sweeps.build.build_study` returns.
"""

import math
import re
import runpy
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from itertools import product
from pathlib import Path
from typing import Any

import gin

from mscale import gin_files, launch
from mscale.data.mixture import parse_mixture_name
from mscale.data.store import Store, open_store
from mscale.errors import MscaleError
from sweeps.build import Recipe, build_study
from sweeps.study import Cell, Study

# A cell, or cells in groups of any depth.
CellGroup = Cell | Iterable["CellGroup"]


@gin.configurable(module="sweeps.grid")
def cells(
    mixtures: Sequence[str],
    tokens: Sequence[float],
    scales: Sequence[int | str] = (),
    seeds: Sequence[int] = (0,),
    start: Iterable[Cell] = (),
    evaluate: Sequence[str] | None = None,
    unique_tokens: Mapping[str, int] | None = None,
    vocabulary: str = "",
    tag: str | None = None,
) -> tuple[Cell, ...]:
    """Returns the cells of the grid scales × mixtures × seeds, each with every budget of ``tokens``.

    Args:
      mixtures: names that ``mscale.data.mixture.resolve`` knows.
      tokens: budgets of all languages together; ``study`` rounds them to whole steps.
      scales: rungs of ``mscale.scales``.
      start: cells to continue, each at its own scale and seed; ``scales`` and ``seeds`` are then not given.
      evaluate: languages to evaluate; None for those of the mixture.
      unique_tokens: language → U, to train on its first U tokens only.
      vocabulary: one of the study's ``stores``; "" for its own store.
      tag: the question that the cells serve; by default gin's scope.

    Raises:
      MscaleError: both or neither of ``scales`` and ``start``, or a value of another type than expected. The message
        has a line for each fault.
    """
    scopes = gin.config.current_scope()
    tag = tag or (scopes[-1] if scopes else "grid")
    faults = [
        f"cells {tag!r}: {fault}"
        for name, value, kind in (
            ("mixtures", mixtures, str),
            ("tokens", tokens, float),
            ("scales", scales, (int, str)),
            ("seeds", seeds, int),
            ("evaluate", () if evaluate is None else evaluate, str),
        )
        if (fault := _fault_of_sequence(name, value, kind))
    ]
    if faults:
        raise MscaleError("\n".join(faults))
    origins: list[tuple[int | str, int, Cell | None]] = [(one.scale, one.seed, one) for one in _flat(start)]
    if bool(origins) == bool(scales):
        raise MscaleError(
            f"cells {tag!r}: give either scales, to train from scratch, or start, to continue cells"
        )
    points = origins or [(scale, seed, None) for scale, seed in product(scales, seeds)]
    return tuple(
        Cell(
            tag,
            scale,
            mixture,
            tuple(tokens),  # type: ignore[arg-type]  # rounded to whole steps by `study`
            seed,
            tuple(sorted((unique_tokens or {}).items())),
            init,
            None if evaluate is None else tuple(evaluate),
            vocabulary,
        )
        for mixture, (scale, seed, init) in product(mixtures, points)
    )


_WORDS = {str: "text in quotes", int: "whole numbers", float: "numbers", (int, str): "names or whole numbers"}


def _fault_of_sequence(name: str, value: Any, kind: Any) -> str:
    """What is wrong with a value that is to be several of ``kind``; "" if nothing is."""
    if isinstance(value, str):
        return f"{name} is the text {value!r}, expected several: ({value!r},)"
    if not isinstance(value, Iterable) or isinstance(value, Mapping):
        return f"{name} is {value!r}, expected several: ({value!r},)"
    wrong = [one for one in value if not _is(one, kind)]
    return f"{name} has {wrong[0]!r}, expected {_WORDS[kind]}" if wrong else ""


def _is(value: Any, kind: Any) -> bool:
    """Whether a value is of a kind; a whole number is a float, a bool is no number."""
    if kind is float:
        return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)
    return isinstance(value, kind) and not isinstance(value, bool)


@gin.configurable(module="sweeps.grid")
def study(
    store: Store,
    name: str,
    cells: Iterable[CellGroup],
    sequence_length: int = 128,
    batch_size: int = 8,
    learning_rate: float = 0.005,
    warmup_steps: int = 20,
    decay: float = 0.1,
    evaluations: int = 8,
    unimax_budget: float | None = None,
    bindings: Mapping[str, Any] | None = None,
    per_scale: Mapping[str, Mapping[str, Any]] | None = None,
    stores: Mapping[str, str] | None = None,
    gin_files: Sequence[str] = ("gin/train/pretrain.gin",),
) -> Study:
    """Returns a study over an open token store.

    Args:
      name: of the study.
      cells: as ``cells`` returns them, singly or in groups.
      sequence_length, batch_size, learning_rate, warmup_steps, decay, evaluations: as in ``sweeps.build.Recipe``.
      unimax_budget: token budget of UniMax mixtures; None for the largest budget of a cell with one.
      bindings: further gin bindings of every run, such as {"EVAL_TOKENS": 65536}.
      per_scale: scale → bindings for that scale alone, such as {"20": {"BATCH_SIZE": 256}}.
      stores: name → folder of the same text in another vocabulary, for cells that name it as ``vocabulary``.
      gin_files: that every run is launched with.

    Raises:
      MscaleError: as ``sweeps.build.build_study``, or a value of another type than expected.
    """
    faults = [
        f"study {name}: {field} is {value!r}, expected a {'whole ' if kind is int else ''}number of at least {least}"
        for field, value, kind, least in (
            ("sequence_length", sequence_length, int, 1),
            ("batch_size", batch_size, int, 1),
            ("learning_rate", learning_rate, float, 0),
            ("warmup_steps", warmup_steps, int, 0),
            ("decay", decay, float, 0),
            ("evaluations", evaluations, int, 1),
            ("unimax_budget", 1 if unimax_budget is None else unimax_budget, float, 1),
        )
        if not _is(value, kind) or value < least
    ]
    faults += [
        f"study {name}: {field} is {value!r}, expected a dictionary"
        for field, value in (("bindings", bindings), ("per_scale", per_scale), ("stores", stores))
        if value is not None and not isinstance(value, Mapping)
    ]
    if faults:
        raise MscaleError("\n".join(faults))
    grid = _flat(cells)
    if unimax_budget is None:
        budgets = [max(one.tokens) for one in grid if parse_mixture_name(one.mixture)[0] == "unimax"]
        unimax_budget = max(budgets, default=None)
    recipe = Recipe(
        sequence_length=sequence_length,
        batch_size=batch_size,
        learning_rate=learning_rate,
        warmup_steps=warmup_steps,
        gin_files=tuple(gin_files),
        decay=decay,
        evaluations=evaluations,
        unimax_budget=None if unimax_budget is None else int(unimax_budget),
        bindings={"PROGRESS": False, **(bindings or {})},
        per_scale={str(scale): dict(values) for scale, values in (per_scale or {}).items()},
        sources={name: open_store(folder) for name, folder in (stores or {}).items()},
    )
    return build_study(name, [_whole_steps(one, recipe) for one in grid], recipe, store)


def load(path: str | Path, store: Store) -> Study:
    """Returns the study that a .gin or .py file describes, over ``store``.

    A .gin file is looked up as for a launch: in the working folder, else among the project's own.

    Raises:
      MscaleError: the file is missing, is neither, does not parse, or defines no study; or the study has faults, of
        which the message lists all.
    """
    path = Path(path)
    if path.suffix == ".gin":
        path = gin_files.find_gin_file(str(path))
        with launch.configured(launch.Launch((str(path),), ())):
            if not launch.is_configured("sweeps.grid.study"):
                raise MscaleError(f"{path}: says nothing of study; expected study.name and study.cells")
            # First each group of cells, since the call of ``study`` ends at the first one with a fault.
            faults = []
            for group in launch.references_to(cells):
                try:
                    group.scoped_configurable_fn()
                except (MscaleError, TypeError) as error:
                    faults.append(_message(error, group.scoped_selector))
            if not faults:
                try:
                    return study(store)  # type: ignore[call-arg]  # gin gives the others
                except (MscaleError, TypeError) as error:
                    faults.append(_message(error, "study"))
        lines = [line for fault in faults for line in fault.splitlines()]
        raise MscaleError("\n".join(f"{path}: {line}" for line in dict.fromkeys(lines)))
    if path.suffix != ".py":
        raise MscaleError(f"{path}: a study is a .gin or .py file")
    if not path.is_file():
        raise MscaleError(f"{path}: no such study file")
    made = runpy.run_path(str(path)).get("study")
    if not callable(made):
        raise MscaleError(f"{path}: defines no function study(store); expected one that returns a study")
    found = made(store)
    if not isinstance(found, Study):
        raise MscaleError(
            f"{path}: study(store) returned a {type(found).__name__}; expected a Study, as sweeps.grid.study returns"
        )
    return found


def _message(error: Exception, configurable: str) -> str:
    """The fault that gin met when it called a configurable, in the words of the gin file."""
    text = launch.plain_message(error)
    if missing := re.search(r"missing \d+ required positional arguments?: (.*)", text):
        names = re.findall(r"'(\w+)'", missing[1])
        return f"no value for {', '.join(names)}; add {' and '.join(f'{configurable}.{name} = ...' for name in names)}"
    return text if isinstance(error, MscaleError) else f"{configurable}: {text.splitlines()[0]}"


def _flat(groups: Iterable[CellGroup]) -> list[Cell]:
    return [one for group in groups for one in ([group] if isinstance(group, Cell) else _flat(group))]


def _whole_steps(cell: Cell, recipe: Recipe) -> Cell:
    """The cell, and those it continues, with budgets rounded to whole steps."""
    step_tokens = recipe.step_tokens(cell.scale)
    tokens = tuple(max(1, round(one / step_tokens)) * step_tokens for one in cell.tokens)
    init = None if cell.init is None else _whole_steps(cell.init, recipe)
    return replace(cell, tokens=tokens, init=init)
