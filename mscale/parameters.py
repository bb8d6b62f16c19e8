"""Types and ranges of the parameters that gin sets, from the annotations of what they configure.

``Annotated[int, Meta(ge=1)]`` (msgspec) is a type with a range. Gin itself checks neither.
"""

import ast
import re
import types
import typing
from collections.abc import Callable, Mapping, Sequence
from typing import Annotated, Any, Literal, get_args, get_origin

import msgspec

from mscale import launch
from mscale.errors import MscaleError
from mscale.gin_files import Reference

_NAMES = {int: "a whole number", float: "a number", str: "text", bool: "True or False", type(None): "None"}
_SHOWN = 80  # characters of a value


def check_types(configurables: Mapping[str, Callable]) -> None:
    """Checks every parameter that files and overrides set, inside ``launch.configured``.

    Args:
      configurables: name in gin files to the function or dataclass; only annotations that msgspec knows are checked.

    Raises:
      MscaleError: a line for each value that has another type or is out of range: where it was set, what was found,
        what is expected, and what was probably meant.
    """
    faults = []
    for parameter in launch.bound_parameters():
        configurable, _, name = parameter.name.rpartition("/")[2].rpartition(".")
        if configurable not in configurables:
            continue
        hints = typing.get_type_hints(configurables[configurable], include_extras=True)
        if name in hints and not _fits(parameter.value, hints[name]):
            source, found = parameter.source, repr(parameter.value)
            found = found if len(found) <= _SHOWN else found[: _SHOWN - 1] + "…"
            faults.append(
                f"{source.name} is {found} ({source.place[: 2 * _SHOWN]}): expected {_expected(hints[name])}"
                f"{_meant(parameter.value, hints[name])}"
            )
    if faults:
        raise MscaleError("\n".join(faults))


def _has_reference(value: Any) -> bool:
    if isinstance(value, Mapping):
        return any(map(_has_reference, [*value.keys(), *value.values()]))
    return isinstance(value, Reference) or (
        isinstance(value, list | tuple) and any(map(_has_reference, value))
    )


def _fits(value: Any, hint: Any) -> bool:
    if isinstance(value, Reference) and value.kind == "@":
        return get_origin(hint) is Callable
    if _has_reference(value):  # what its call returns is not known yet
        return True
    try:
        msgspec.convert(value, hint)
    except msgspec.ValidationError:
        return False
    except TypeError:  # a type that msgspec does not know, such as a function's
        return True
    return True


def _expected(hint: Any) -> str:
    """A type and its range in words."""
    origin, arguments = get_origin(hint), get_args(hint)
    if origin is Annotated:
        meta = arguments[1]
        return (
            _expected(arguments[0]) + (f" of {meta.description}" if meta.description else "") + _range(meta)
        )
    if origin in (typing.Union, types.UnionType):
        return " or ".join(map(_expected, arguments))
    if origin is Literal:
        return " or ".join(f'"{one}"' for one in arguments)
    if origin in (tuple, Sequence):
        return f"a tuple, each of it {_expected(arguments[0])}"
    if origin is Mapping:
        return f"a dictionary, each value of it {_expected(arguments[1])}"
    if origin is Callable:
        return "a function, as in @my_module.my_function"
    return _NAMES.get(hint, str(hint))


def _range(meta: msgspec.Meta) -> str:
    if meta.ge is not None and meta.le is not None:
        return f" from {meta.ge:,} to {meta.le:,}"
    parts = {"of at least": meta.ge, "above": meta.gt, "of at most": meta.le, "below": meta.lt}
    return "".join(
        f" {words} {bound:,}" if at == 0 else f" and {words} {bound:,}"
        for at, (words, bound) in enumerate((w, b) for w, b in parts.items() if b is not None)
    )


def _meant(value: Any, hint: Any) -> str:
    """What was probably meant, as the end of a sentence; "" where nothing suggests itself."""
    if isinstance(value, str):
        try:
            literal = ast.literal_eval(value)
        except (ValueError, SyntaxError):
            literal = tuple(one for one in re.split(r"[+,\s]+", value) if one)
            return f"; did you mean {literal!r}?" if literal and _fits(literal, hint) else ""
        return f"; did you mean {literal!r}, without quotes?" if _fits(literal, hint) else ""
    if isinstance(value, int | float) and value > 2**31 and "of steps" in _expected(hint):
        return "; did you mean tokens? A step has BATCH_SIZE * SEQUENCE_LENGTH of them"
    if value is None:
        return "; leave it out for its default"
    if _fits((value,), hint):
        return f"; did you mean ({value!r},)? A tuple of one has a comma"
    if isinstance(value, float) and value.is_integer() and _fits(int(value), hint):
        return f"; did you mean {int(value)}?"
    if isinstance(value, float) and 0 < value < 1:
        return "; shares are not taken, give the number itself"
    if isinstance(value, bool):
        return f"; did you mean {int(value)}?" if _fits(int(value), hint) else ""
    if value in (0, 1) and _fits(bool(value), hint):
        return f"; did you mean {bool(value)}?"
    return ""
