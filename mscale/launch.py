"""Configuration of a run from gin files and overrides, as in T5X, with checked names.

    python -m mscale.train --gin_file=gin/train/pretrain.gin --gin.SCALE='"nano2"' --gin.STEPS=500 ...

Values are Python literals, so text needs quotes inside the shell's quotes. Gin itself accepts an unknown macro on the
command line, and a binding that nothing reads; here both are errors that suggest the nearest name. Parameters in files
may remain unread, since one file serves several configurations; a macro that no parameter refers to is an error.
"""

import contextlib
import logging
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import gin

from mscale.errors import MscaleError, nearest
from mscale.gin_files import (
    SEARCH_PATHS,
    Binding,
    Reference,
    find_gin_file,
    gin_errors,
    is_ours,
    macros_in,
    parse_override,
    read_bindings,
    without_macros,
)

_bindings: dict[str, Binding] = {}  # the last one of each name, inside ``configured``
_OVERRIDE = re.compile(r"^--gin\.([^=]+)=(.*)$", re.DOTALL)


@dataclass(frozen=True)
class Launch:
    """A parsed command line.

    Attributes:
      gin_files: in order; later files override earlier ones.
      bindings: overrides (name, value as gin text), which are applied after the files.
      search_paths: folders in which gin files are looked for.
    """

    gin_files: tuple[str, ...]
    bindings: tuple[tuple[str, str], ...]
    search_paths: tuple[str, ...] = ()


def parse_arguments(argv: Sequence[str]) -> Launch:
    """Reads ``--gin_file=PATH``, ``--gin.NAME=VALUE`` and ``--gin_search_paths=A,B`` (``--flag value`` too).

    Raises:
      MscaleError: any other argument, an override without a value, or no gin file at all.
    """
    files: list[str] = []
    bindings: list[tuple[str, str]] = []
    paths: list[str] = []
    arguments = list(argv)
    while arguments:
        argument = arguments.pop(0)
        override = _OVERRIDE.match(argument)
        if override:
            bindings.append((override[1].strip(), override[2]))
            continue
        flag, equals, value = argument.partition("=")
        if flag.startswith("--gin."):
            raise MscaleError(f"{argument}: an override needs a value, as in {flag}=VALUE")
        if flag not in ("--gin_file", "--gin_search_paths"):
            known = ("--gin_file", "--gin_search_paths", "--gin.NAME=VALUE")
            raise MscaleError(
                f"unknown argument {argument!r}{nearest(flag, known)}; known: {', '.join(known)}"
            )
        if not equals:
            if not arguments:
                raise MscaleError(f"{flag} needs a value, as in {flag}=gin/train/pretrain.gin")
            value = arguments.pop(0)
        if flag == "--gin_file":
            files.append(value)
        else:
            paths.extend(path for path in value.split(",") if path)
    if not files:
        raise MscaleError("no gin file given; pass --gin_file=gin/train/pretrain.gin and overrides after it")
    return Launch(tuple(files), tuple(bindings), tuple(paths))


USAGE = """\
Trains one run, or continues it.

  --gin_file FILE           a configuration; repeatable, later files override earlier ones
  --gin.NAME=VALUE          sets a macro or parameter; text needs quotes of its own: --gin.STORE='"my-store"'
  --gin_search_paths A,B    folders in which gin files are looked for
"""


def help_text(argv: Sequence[str]) -> str:
    """Usage, and the macros and parameters of the gin files that are given, with the comments that document them.

    Args:
      argv: a command line with ``--help`` in it; without gin files those of gin/train/pretrain.gin are listed.

    Raises:
      MscaleError: as ``parse_arguments`` and ``read_bindings``.
    """
    given = [argument for argument in argv if argument not in ("--help", "-h")]
    if not any(argument.startswith("--gin_file") for argument in given):
        given.append("--gin_file=gin/train/pretrain.gin")
    parsed = parse_arguments(given)
    bindings = read_bindings(parsed.gin_files, parsed.search_paths)
    bindings += [parse_override(name, value) for name, value in parsed.bindings]
    values = {one.name: one.value for one in bindings}
    shown: set[str] = set()
    documented = {one.name: one.comment for one in bindings if one.comment}
    lines = [USAGE, f"In {' and '.join(parsed.gin_files)}:"]
    for one in bindings:
        if one.heading:
            lines += ["", *(f"# {line}" for line in one.heading.splitlines())]
        connects = isinstance(one.value, Reference) and one.value.kind == "%" and not one.is_macro
        if not connects and one.name not in shown:
            shown.add(one.name)
            found = values[one.name]
            value = "(required)" if found == Reference("%", "gin.REQUIRED") else repr(found)
            lines.append(f"  {one.name} = {value}".ljust(34) + f"  {documented.get(one.name, '')}".rstrip())
    return "\n".join(lines)


@contextlib.contextmanager
def configured(launch: Launch) -> Iterator[None]:
    """Sets gin's global configuration to the launch's inside the block and clears it afterwards.

    Raises:
      MscaleError: a file is missing or does not parse, an override has an unknown name or is not a Python literal,
        a macro that a file requires has no value, or nothing refers to a macro of a user's file.
    """
    clear_config()
    try:
        bindings = read_bindings(launch.gin_files, launch.search_paths)
        for root in (*launch.search_paths, *SEARCH_PATHS):
            if str(root) not in gin.config._LOCATION_PREFIXES:
                gin.add_config_file_search_path(str(root))
        for name in launch.gin_files:
            path = find_gin_file(name, launch.search_paths)
            with gin_errors(str(path)), _quiet_search():
                gin.parse_config_file(str(path))
        macros = _macros()
        for name, value in launch.bindings:
            _check_name(name, macros, launch.gin_files)
            with gin_errors(f"--gin.{name}={value}"):
                gin.parse_config(f"{name} = {value}")
            bindings.append(parse_override(name, value))
        _bindings.update({one.name: one for one in bindings})
        _check_required()
        _check_macros_read(bindings)
        yield
    finally:
        clear_config()


@contextlib.contextmanager
def _quiet_search() -> Iterator[None]:
    """Hides the error that gin logs at the first folder in which a file that is included is not."""

    def shown(record: logging.LogRecord) -> bool:
        return not record.getMessage().startswith("Path not found: ")

    logging.getLogger().addFilter(shown)
    try:
        yield
    finally:
        logging.getLogger().removeFilter(shown)


def clear_config() -> None:
    """Removes every binding, so that a run does not see those of an earlier one in the same process."""
    _bindings.clear()
    with gin.unlock_config():
        gin.clear_config()


@dataclass(frozen=True)
class BoundParameter:
    """A parameter that a file or an override sets.

    Attributes:
      name: ``scope/configurable.parameter``.
      value: with macros replaced.
      source: the binding that holds the value: that of the macro, where it comes from one.
    """

    name: str
    value: Any
    source: Binding


def bound_parameters() -> list[BoundParameter]:
    """The parameters that are set, inside ``configured``."""
    values = {name: one.value for name, one in _bindings.items()}
    found = []
    for name, binding in _bindings.items():
        if binding.is_macro:
            continue
        value = without_macros(binding.value, values)  # raises if a macro is defined by itself
        source = binding
        while isinstance(source.value, Reference) and source.value.name in _bindings:
            source = _bindings[source.value.name]
        found.append(BoundParameter(name, value, source))
    return found


def check_overrides_used(launch: Launch) -> None:
    """Checks that each override was read; call it after all configurable functions have been called.

    Raises:
      MscaleError: nothing read an override, such as one for a mixture that this run does not use.
    """
    operative = gin.config._OPERATIVE_CONFIG
    for name, value in launch.bindings:
        scope, selector, parameter = _split_name(name)
        if parameter is None:
            if (name, "gin.macro") not in operative:
                raise MscaleError(
                    f"--gin.{name}={value} has no effect: nothing that this run uses reads the macro {name}"
                )
            continue
        full = gin.config._REGISTRY.get_match(selector).selector
        used = any(
            key == full and parameter in values and (not scope or f"{where}/".startswith(f"{scope}/"))
            for (where, key), values in operative.items()
        )
        if not used:
            raise MscaleError(f"--gin.{name}={value} has no effect: this run never reads {name}")


def is_configured(configurable: str) -> bool:
    """Whether the gin files read so far set a parameter of ``configurable``, such as "sweeps.grid.study"."""
    return any(selector == configurable for _, selector in gin.config._CONFIG)


def operative_config() -> str:
    """Returns the values of all configurable parameters that were read so far, with defaults, as gin text."""
    return gin.operative_config_str(max_line_length=110)


def plain_message(error: BaseException) -> str:
    """Returns an error's text without the call stack of configurables that gin appends to it."""
    return re.split(r"\n\s+In call to configurable ", str(error))[0]


def _split_name(name: str) -> tuple[str, str, str | None]:
    """Splits ``scope/configurable.parameter``; the parameter of a macro is None."""
    scope, _, rest = name.rpartition("/")
    selector, dot, parameter = rest.rpartition(".")
    return (scope, selector, parameter) if dot else (scope, rest, None)


def _macros() -> set[str]:
    """Returns the macros that the files parsed so far define or refer to."""
    defined = {scope for scope, selector in gin.config._CONFIG if selector == "gin.macro"}
    return defined | _macros_referred_to()


def references_to(configurable: Any) -> list[Any]:
    """gin's references to a configurable (or its name) in the files parsed so far."""
    found = gin.config.iterate_references(gin.config._CONFIG, to=gin.get_configurable(configurable))
    return list(found)


def _macros_referred_to() -> set[str]:
    return {one.scoped_selector.rpartition("/")[0] for one in references_to("gin.macro")}


def _check_macros_read(bindings: Sequence[Binding]) -> None:
    """Checks that each macro of a user's file is read, or was until another file or an override set its parameter."""
    last = {one.name: (at, one) for at, one in enumerate(bindings)}
    readers: dict[str, list[Binding]] = {}
    for one in bindings:
        for name in macros_in(one.value):
            readers.setdefault(name, []).append(one)

    def is_read(at: int, macro: Binding) -> bool:
        for reader in readers.get(macro.name, ()):
            later, instead = last[reader.name]
            if instead is reader or (later > at and _file(instead) != _file(macro)):
                return True
        return False

    unread = [
        f"{one.place}: nothing reads the macro {one.name}{nearest(one.name, sorted(readers))}"
        for at, one in last.values()
        if one.is_macro and not (is_ours(one.place) or _is_override(one) or is_read(at, one))
    ]
    if unread:
        raise MscaleError("\n".join(unread))


def _is_override(binding: Binding) -> bool:
    return binding.place.startswith("--")


def _file(binding: Binding) -> str:
    return "" if _is_override(binding) else binding.place.rpartition(":")[0]


def _check_name(name: str, macros: set[str], files: Sequence[str]) -> None:
    _, selector, parameter = _split_name(name)
    if parameter is None:
        if name not in macros:
            raise MscaleError(
                f"--gin.{name}: unknown name{nearest(name, sorted(macros))}; "
                f"{' and '.join(files)} define{'s' if len(files) == 1 else ''} {', '.join(sorted(macros))}"
            )
        return
    registry = gin.config._REGISTRY
    matches = registry.matching_selectors(selector)
    if not matches:
        names = sorted({known.rpartition(".")[2] for known in registry._selector_map})
        raise MscaleError(f"--gin.{name}: there is no configurable {selector!r}{nearest(selector, names)}")
    if len(matches) > 1:
        raise MscaleError(f"--gin.{name}: {selector!r} may be any of {', '.join(matches)}; write one out")
    configurable = registry.get_match(selector)
    known = _parameters(configurable)
    if parameter not in known:
        raise MscaleError(
            f"--gin.{name}: {selector} has no parameter {parameter!r}{nearest(parameter, known)}; "
            f"it has {', '.join(known)}"
        )


def _parameters(configurable: Any) -> list[str]:
    import inspect

    return [name for name in inspect.signature(configurable.wrapped).parameters if name != "self"]


def _check_required() -> None:
    missing = []
    config = gin.config._CONFIG
    for (scope, selector), parameters in config.items():
        for parameter, value in parameters.items():
            if getattr(value, "scoped_selector", "") == "gin.REQUIRED/gin.constant":
                missing.append(scope if selector == "gin.macro" else f"{selector}.{parameter}")
    undefined = [name for name in _macros_referred_to() if (name, "gin.macro") not in config]
    if missing or undefined:
        names = sorted({*missing, *undefined})
        raise MscaleError(
            f"no value for {', '.join(names)}; give one in a gin file or as "
            + " ".join(f"--gin.{name}=..." for name in names)
        )
