"""What determines the result of a run: its parameters from gin, without those that only place, log or speed it up.

A study hashes them into the ids of its runs, and a run continues only in a folder whose run.json holds the same. So a
comment in a gin file, another folder or a longer trunk leave an id alone, and another learning rate does not.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from mscale.errors import MscaleError
from mscale.gin_files import Reference, binding_key, read_bindings, without_macros

IRRELEVANT_CONFIGURABLES = ("hosts", "mesh", "logical_axis_rules")
"""They spread a run over devices; the result is the same up to rounding."""

IRRELEVANT_SETTINGS = (
    *("store", "workdir", "run", "study", "tag", "group", "branch_from", "init_from"),  # places and names
    *("checkpoint_steps", "checkpoint_every", "checkpoints_kept", "log_every", "lengthen"),
    *("steps_per_dispatch", "accumulate", "compile_cache", "peak_flops"),
    *("progress", "tensorboard", "wandb"),
)
"""Settings of ``train`` that do not determine the result. The store counts by the hash of the text that is read."""

LENGTH_SETTINGS = ("steps", "eval_steps", "eval_per_decade", "eval_first")
"""Settings of ``train`` that say how far a trunk goes and where it is evaluated: it can go further in its folder."""


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
    values = {binding.name: binding.value for binding in read_bindings(gin_files)}
    values |= {binding_key(name): value for name, value in bindings.items()}
    read: set[str] = set()
    parameters = {
        name: _plain(without_macros(value, values, read)) for name, value in values.items() if "." in name
    }
    return parameters | {
        name: value for name, value in bindings.items() if "." not in name and name not in read
    }


def _plain(value: Any) -> Any:
    """The value as it is hashed: keys as text, sequences as lists, configurables as ``@name``."""
    if isinstance(value, Reference):
        return value if value.kind == "%" else value.kind + value.name
    if isinstance(value, Mapping):
        return {str(_plain(key)): _plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    return value


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
        if isinstance(value, Reference):
            raise MscaleError(f"{name} = %{value.name} has no value: bind it in the study or a gin file")
    return found
