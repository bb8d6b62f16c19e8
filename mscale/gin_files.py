"""Gin files as text: what they bind, in the order in which gin applies it, where it stands, and the comments beside it.

Gin itself keeps neither the place of a binding nor its comment.
"""

import contextlib
import os
import re
import tokenize
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import gin
from gin import config_parser

from mscale.errors import MscaleError, nearest

_PACKAGE = Path(__file__).resolve().parent
SEARCH_PATHS = (_PACKAGE.parent, _PACKAGE)
"""Folders with ``gin/train/pretrain.gin``: the parent of ``mscale/`` in a checkout, ``mscale/`` in a wheel."""


class Reference(NamedTuple):
    """A macro (``%NAME``) or a configurable (``@name``, ``@name()``) in a value."""

    kind: str
    name: str

    def __repr__(self) -> str:
        return f"@{self.name}()" if self.kind == "@()" else self.kind + self.name


@dataclass(frozen=True)
class Binding:
    """One statement ``name = value``.

    Attributes:
      name: of a macro; of a parameter, ``scope/configurable.parameter`` without the configurable's module.
      value: in Python, with ``Reference`` where it names something.
      place: file and line, or the override as it was given.
      comment: after it on its line, without the ``#``.
      heading: the lines of comment above it, if it is the first below them.
    """

    name: str
    value: Any
    place: str
    comment: str = ""
    heading: str = ""

    @property
    def is_macro(self) -> bool:
        return "." not in self.name


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


def is_ours(place: str) -> bool:
    """Whether a binding's place is in a gin file of the project."""
    return any(Path(place).resolve().is_relative_to(root / "gin") for root in SEARCH_PATHS)


def read_bindings(names: Sequence[str], search_paths: Sequence[str | os.PathLike] = ()) -> list[Binding]:
    """The bindings of gin files and of those that they include; later ones override earlier ones.

    Raises:
      MscaleError: a file is missing, does not parse or includes itself, or a binding stands above an ``include``
        that overrides it.
    """
    return [binding for name in names for binding in _read(name, search_paths, ())]


def _read(name: str, search_paths: Sequence[str | os.PathLike], including: tuple[str, ...]) -> list[Binding]:
    path = str(find_gin_file(name, search_paths))
    if path in including:
        raise MscaleError(f"{path}: this gin file includes itself; remove the circular include")
    with gin_errors(path), open(path, encoding="utf-8") as file:
        text = file.read()
        statements, comments = _parsed(text), _comments(text)
    found: list[Binding] = []
    own: dict[str, Binding] = {}
    shown_above = 0
    for statement in statements:
        line = statement.location.line_num
        if isinstance(statement, config_parser.IncludeStatement):
            included = _read(statement.filename, search_paths, (*including, path))
            for other in included:
                if other.name in own:
                    raise MscaleError(
                        f"{own[other.name].place}: {other.name} has no effect: {other.place}, which is included below "
                        "it, sets it again; put the include first"
                    )
            found += included
        elif isinstance(statement, config_parser.BindingStatement):
            parameter = f".{statement.arg_name}" if statement.arg_name else ""
            scope = f"{statement.scope}/" if statement.scope else ""
            key = binding_key(f"{scope}{statement.selector}{parameter}")
            above = [text for at, text in comments.above.items() if shown_above < at < line]
            binding = Binding(
                key, statement.value, f"{path}:{line}", comments.beside.get(line, ""), "\n".join(above)
            )
            found.append(binding)
            own[key] = binding
            shown_above = line
    return found


def binding_key(name: str) -> str:
    """``scope/module.configurable.parameter`` without the module; a macro's name unchanged."""
    scope, slash, rest = name.rpartition("/")
    return scope + slash + ".".join(rest.split(".")[-2:])


def parse_override(name: str, value: str) -> Binding:
    """The binding of ``--gin.NAME=VALUE``.

    Raises:
      MscaleError: VALUE is not a gin value.
    """
    place = f"--gin.{name}={value}"
    with gin_errors(place):
        return Binding(binding_key(name), _parsed(f"{name} = {value}")[0].value, place)


def without_macros(value: Any, values: Mapping[str, Any], read: set[str] | None = None) -> Any:
    """A binding's value with macros replaced by theirs; those that have none, and configurables, stay references.

    Args:
      values: name of a macro to its value.
      read: the names of all macros that were read are added to it.

    Raises:
      MscaleError: a macro is defined by itself.
    """

    def replace(value: Any, seen: tuple[str, ...]) -> Any:
        if isinstance(value, Reference):
            if value.kind == "%" and read is not None:
                read.add(value.name)
            if value.kind != "%" or value.name not in values:
                return value
            if value.name in seen:
                raise MscaleError(f"the macro {value.name} is defined by itself; give it a value")
            return replace(values[value.name], (*seen, value.name))
        if isinstance(value, Mapping):
            return {replace(key, seen): replace(item, seen) for key, item in value.items()}
        if isinstance(value, (list, tuple)):
            return type(value)(replace(item, seen) for item in value)
        return value

    return replace(value, ())


def macros_in(value: Any) -> set[str]:
    """The macros that a value refers to."""
    found: set[str] = set()
    without_macros(value, {}, found)
    return found


class _Delegate(config_parser.ParserDelegate):
    def configurable_reference(self, scoped_configurable_name: str, evaluate: bool) -> Reference:
        return Reference("@()" if evaluate else "@", scoped_configurable_name)

    def macro(self, macro_name: str) -> Reference:
        return Reference("%", macro_name)


@cache
def _parsed(text: str) -> tuple[Any, ...]:
    return tuple(config_parser.ConfigParser(text, _Delegate()))


@dataclass
class _Comments:
    """Comments of a file by line: beside a statement, and on lines of their own (an empty line is one too)."""

    beside: dict[int, str] = field(default_factory=dict)
    above: dict[int, str] = field(default_factory=dict)


@cache
def _comments(text: str) -> _Comments:
    found, lines = _Comments(), text.splitlines()
    reader = iter(text.splitlines(keepends=True))
    for token in tokenize.generate_tokens(lambda: next(reader, "")):
        if token.type == tokenize.COMMENT:
            line = token.start[0]
            alone = not lines[line - 1][: token.start[1]].strip()
            (found.above if alone else found.beside)[line] = token.string.lstrip("#").strip()
    return found


@contextlib.contextmanager
def gin_errors(where: str) -> Iterator[None]:
    """Converts gin's errors for an invalid binding into a ``MscaleError`` that names its place."""
    try:
        yield
    except MscaleError:
        raise
    except (SyntaxError, tokenize.TokenError) as error:
        line = getattr(error, "lineno", None)
        place = f":{line}" if line and not where.startswith("--") else ""
        message = str(getattr(error, "msg", error.args[0])).strip().splitlines()[-1].strip()
        raise MscaleError(
            f"{where}{place}: not a gin value ({message}); values are Python literals, so text needs quotes of its "
            "own, as in --gin.NAME='\"text\"'"
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
