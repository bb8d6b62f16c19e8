"""Configuration of a run from gin files and overrides, as in T5X, with checked names.

    python -m mscale.train --gin_file=gin/train/pretrain.gin --gin.SCALE='"nano2"' --gin.STEPS=500 ...

Values are Python literals, so text needs quotes inside the shell's quotes. Gin itself accepts an unknown macro on the
command line, and a binding that nothing reads; here both are errors that suggest the nearest name. Bindings in files
may remain unread, since one file serves several configurations.
"""

import contextlib
import logging
import os
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gin

from mscale.errors import MscaleError, nearest

_PACKAGE = Path(__file__).resolve().parent
SEARCH_PATHS = (_PACKAGE.parent, _PACKAGE)
"""Folders with ``gin/train/pretrain.gin``: the parent of ``mscale/`` in a checkout, ``mscale/`` in a wheel."""

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


def find_gin_file(name: str, search_paths: Sequence[str | os.PathLike] = ()) -> Path:
    """Finds a gin file by an absolute path, or in the current folder, ``search_paths`` or ``SEARCH_PATHS``.

    Raises:
      MscaleError: it is in none of them.
    """
    roots = [Path.cwd(), *map(Path, search_paths), *SEARCH_PATHS]
    for root in roots:
        if (root / name).is_file():
            return root / name
    known = {str(path.relative_to(root)) for root in SEARCH_PATHS for path in root.glob("gin/**/*.gin")}
    raise MscaleError(
        f"no gin file {name!r}{nearest(name, sorted(known))}; looked in {', '.join(map(str, roots))}"
    )


@contextlib.contextmanager
def configured(launch: Launch) -> Iterator[None]:
    """Sets gin's global configuration to the launch's inside the block and clears it afterwards.

    Raises:
      MscaleError: a file is missing or does not parse, an override has an unknown name or is not a Python literal,
        or a macro that a file requires has no value.
    """
    clear_config()
    try:
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
        _check_required()
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
    with gin.unlock_config():
        gin.clear_config()


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
    config = gin.config._CONFIG
    defined = {scope for scope, selector in config if selector == "gin.macro"}
    referred = {
        reference.scoped_selector.rpartition("/")[0]
        for reference in gin.config.iterate_references(config, to=gin.get_configurable("gin.macro"))
    }
    return defined | referred


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
    missing, undefined = [], []
    config = gin.config._CONFIG
    for (scope, selector), parameters in config.items():
        for parameter, value in parameters.items():
            if getattr(value, "scoped_selector", "") == "gin.REQUIRED/gin.constant":
                missing.append(scope if selector == "gin.macro" else f"{selector}.{parameter}")
    for reference in gin.config.iterate_references(config, to=gin.get_configurable("gin.macro")):
        name = reference.scoped_selector.rpartition("/")[0]
        if (name, "gin.macro") not in config:
            undefined.append(name)
    if missing or undefined:
        names = sorted({*missing, *undefined})
        raise MscaleError(
            f"no value for {', '.join(names)}; give one in a gin file or as "
            + " ".join(f"--gin.{name}=..." for name in names)
        )


@contextlib.contextmanager
def gin_errors(where: str) -> Iterator[None]:
    """Converts gin's errors for an invalid binding into a ``MscaleError`` that names its place."""
    try:
        yield
    except MscaleError:
        raise
    except SyntaxError as error:
        place = f":{error.lineno}" if error.lineno and not where.startswith("--") else ""
        raise MscaleError(
            f"{where}{place}: not a gin value ({error.msg}); values are Python literals, so text needs "
            "quotes of its own, as in --gin.NAME='\"text\"'"
        ) from error
    except (ValueError, TypeError, ImportError, OSError, RuntimeError, UnicodeDecodeError) as error:
        text = str(error)
        unknown = re.search(r"No configurable matching '([\w./]+)'\.?", text)
        if unknown:
            known = {name.rpartition(".")[2] for name in gin.config._REGISTRY._selector_map}
            text = text.replace(
                unknown[0], f"no configurable {unknown[1]!r}{nearest(unknown[1], sorted(known))}"
            )
        raise MscaleError(f"{where}: {text}") from error
