"""What determines the result of a run: its parameters from gin, without those that only place, log or speed it up.

A study hashes them into the ids of its runs, and a run continues only in a folder whose run.json holds the same. So a
comment in a gin file, another folder or a longer trunk leave an id alone, and another learning rate does not.
"""

from collections.abc import Iterable, Mapping, Sequence
from functools import cache
from typing import Any, NamedTuple

from gin import config_parser

from mscale import launch
from mscale.errors import MscaleError

IRRELEVANT_CONFIGURABLES = ("hosts", "mesh", "logical_axis_rules")
"""They spread a run over devices; the result is the same up to rounding."""

IRRELEVANT_SETTINGS = (
    *("store", "workdir", "run", "study", "tag", "group", "branch_from", "init_from"),  # places and names
    *("checkpoint_steps", "checkpoint_every", "checkpoints_kept", "log_every"),
    *("steps_per_dispatch", "accumulate", "compile_cache", "peak_flops"),
    *("progress", "tensorboard", "wandb"),
)
"""Settings of ``train`` that do not determine the result. The store counts by the hash of the text that is read."""

LENGTH_SETTINGS = ("steps", "eval_steps", "eval_per_decade", "eval_first")
"""Settings of ``train`` that say how far a trunk goes and where it is evaluated: it can go further in its folder."""


class _Reference(NamedTuple):
    """A macro (``%NAME``) or a configurable (``@name``) in a value of a gin file."""

    kind: str
    name: str


class _Delegate(config_parser.ParserDelegate):
    def configurable_reference(self, scoped_configurable_name: str, evaluate: bool) -> _Reference:
        return _Reference("@()" if evaluate else "@", scoped_configurable_name)

    def macro(self, macro_name: str) -> _Reference:
        return _Reference("%", macro_name)


def resolved_parameters(gin_files: Sequence[str], bindings: Mapping[str, Any]) -> dict[str, Any]:
    """The value of each parameter that the files and the bindings set, with macros replaced by their values.

    Args:
      gin_files: as given to ``--gin_file``; later ones override earlier ones.
      bindings: macro or parameter to its Python value; they override the files.

    Returns:
      {"train.steps": 100, …}: scope, name of the configurable without its module, parameter. Macros among the bindings
      that no parameter reads are kept under their own names.

    Raises:
      MscaleError: a file is missing, does not parse or includes itself, or a macro is defined by itself.
    """
    values: dict[str, Any] = {}
    for name in gin_files:
        values |= _parse(name)
    values |= {_key(name): value for name, value in bindings.items()}

    read: set[str] = set()

    def replace(value: Any, where: str, seen: tuple[str, ...] = ()) -> Any:
        if isinstance(value, _Reference):
            if value.kind != "%":
                return value.kind + value.name
            read.add(value.name)
            if value.name not in values:
                return value
            if value.name in seen:
                raise MscaleError(f"{' and '.join(gin_files)}: the macro {value.name} is defined by itself")
            return replace(values[value.name], where, (*seen, value.name))
        if isinstance(value, Mapping):
            return {str(replace(key, where, seen)): replace(item, where, seen) for key, item in value.items()}
        if isinstance(value, (list, tuple)):
            return [replace(item, where, seen) for item in value]
        return value

    parameters = {name: replace(value, name) for name, value in values.items() if "." in name}
    return parameters | {
        name: value for name, value in bindings.items() if "." not in name and name not in read
    }


def determining_parameters(parameters: Mapping[str, Any], *, trunk: bool = False) -> dict[str, Any]:
    """Those of ``resolved_parameters`` that determine the result; of a trunk, not how far it goes.

    Raises:
      MscaleError: one of them is a macro that has no value.
    """
    trunk = trunk and parameters.get("optimizer.schedule") != "cosine"
    ignored = {f"train.{name}" for name in (*IRRELEVANT_SETTINGS, *(LENGTH_SETTINGS if trunk else ()))}
    found = {
        name: value
        for name, value in sorted(parameters.items())
        if name not in ignored and name.partition(".")[0] not in IRRELEVANT_CONFIGURABLES
    }
    for name, value in found.items():
        if isinstance(value, _Reference):
            raise MscaleError(f"{name} = %{value.name} has no value: bind it in the study or a gin file")
    return found


def _key(name: str) -> str:
    """``scope/module.configurable.parameter`` without the module; a macro's name unchanged."""
    scope, slash, rest = name.rpartition("/")
    return scope + slash + ".".join(rest.split(".")[-2:])


def _parse(name: str, including: tuple[str, ...] = ()) -> dict[str, Any]:
    path = str(launch.find_gin_file(name))
    if path in including:
        raise MscaleError(f"{path}: this gin file includes itself; remove the circular include")
    values: dict[str, Any] = {}
    for statement in _statements(path):
        if isinstance(statement, config_parser.IncludeStatement):
            values |= _parse(statement.filename, (*including, path))
        elif isinstance(statement, config_parser.BindingStatement):
            scope = f"{statement.scope}/" if statement.scope else ""
            parameter = f".{statement.arg_name}" if statement.arg_name else ""
            values[_key(f"{scope}{statement.selector}{parameter}")] = statement.value
    return values


def _statements(path: str) -> Iterable[Any]:
    with launch.gin_errors(path), open(path, encoding="utf-8") as file:
        return _parsed(file.read())


@cache
def _parsed(text: str) -> tuple[Any, ...]:
    return tuple(config_parser.ConfigParser(text, _Delegate()))
