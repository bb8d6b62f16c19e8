"""The laws by name, and what makes one ready for a table: derived columns, sources, domains."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import pandas as pd

from analysis.laws import atlas, capacity, mixing
from analysis.laws.capacity import CAPACITY
from analysis.laws.chinchilla import CHINCHILLA, POWER, PURE_POWER
from analysis.laws.data_constrained import DATA_CONSTRAINED
from analysis.laws.data_transfer import TRANSFER
from analysis.laws.examples import CONTEXT_AWARE, MONOLINGUAL_EQUIVALENT
from analysis.laws.law import Law
from analysis.laws.mixing import BIMIX, FAMILY
from mscale.errors import MscaleError, nearest

LAWS: dict[str, Law] = {
    law.name: law
    for law in (
        CHINCHILLA,
        DATA_CONSTRAINED,
        FAMILY,
        CAPACITY,
        TRANSFER,
        BIMIX,
        POWER,
        PURE_POWER,
        MONOLINGUAL_EQUIVALENT,
        CONTEXT_AWARE,
    )
}
LAW_NAMES = (*LAWS, "atlas", "mixing")
_DERIVED_COLUMNS: dict[str, Callable[[pd.DataFrame], pd.DataFrame]] = {
    "capacity": capacity.prepare_capacity,
    "bimix": mixing.prepare_bimix,
}


def prepare_law(
    law: str | Law,
    table: pd.DataFrame,
    *,
    exposure: pd.DataFrame | None = None,
    target: str | Sequence[str] | None = None,
    **options: Any,
) -> tuple[Law, pd.DataFrame, dict]:
    """The law, the table with the columns that it derives, and the options that reproduce both on another table.

    Args:
      law: a name in `LAW_NAMES`, or a law of the caller's own.
      target: fit these languages' rows only (None: all).
      options: ATLAS takes variant, sources, scores and count; "mixing" domains; "family" families.

    Raises:
      MscaleError: no such law, target or option.
    """
    targets = None if target is None else _targets(table, target)
    if law == "atlas":
        _check_options(law, options, ("variant", "sources", "scores", "count"))
        return atlas.prepare_atlas(table, exposure, targets=targets, **options)
    if targets is not None:
        table = table[table["language"].isin(targets)]
    if law == "mixing":
        _check_options(law, options, ("domains",))
        return mixing.prepare_mixing(table, exposure, options.get("domains"))
    if isinstance(law, str):
        if law not in LAWS:
            raise MscaleError(f"no law {law!r}{nearest(law, LAW_NAMES)}; there are {', '.join(LAW_NAMES)}")
        law = LAWS[law]
    _check_options(law.name, options, ("families",) if law.name == "family" else ())
    if law.name == "family":
        return law, mixing.prepare_family(table, exposure, options.get("families")), {}
    return law, _DERIVED_COLUMNS.get(law.name, lambda same: same)(table), {}


def law_of_saved_fit(name: str, options: Mapping[str, Any]) -> Law:
    """The law of a saved fit, from its name and options.

    Raises:
      MscaleError: the law is not in `LAWS`: one of the user's own.
    """
    if name == "atlas":
        return atlas.atlas_law(options["variant"], options["sources"])
    if name == "mixing":
        return mixing.mixing_law(options["domains"], options["levels"])
    if name not in LAWS:
        raise MscaleError(f"the fit is of law {name!r}, which is not one of mscale's: pass it as law=")
    return LAWS[name]


def _check_options(law: str, options: dict, known: tuple[str, ...]) -> None:
    """Raises MscaleError for an option that the law does not have."""
    for name in options:
        if name not in known:
            has = f"it has {', '.join(known)}" if known else "it has none"
            raise MscaleError(f"law {law!r} has no option {name!r}{nearest(name, known)}; {has}")


def _targets(table: pd.DataFrame, target: str | Sequence[str]) -> list[str]:
    """The target languages; raises MscaleError for a language that the table lacks."""
    targets = [target] if isinstance(target, str) else list(target)
    if "language" not in table:
        raise MscaleError(f"target={target!r}: the table has no column 'language'")
    present = sorted(map(str, table["language"].dropna().unique()))
    for name in targets:
        if name not in present:
            raise MscaleError(
                f"target {name!r} is not in column 'language', which has {', '.join(present)}"
                + nearest(name, present)
            )
    return targets
