"""Scaling laws, each a small declaration. `LAWS` maps names to laws; `prepare` readies a law for a table."""

from collections.abc import Callable
from typing import Any

import pandas as pd

from analysis.laws import atlas, capacity, mixing
from analysis.laws.capacity import CAPACITY
from analysis.laws.chinchilla import CHINCHILLA, POWER, PURE_POWER
from analysis.laws.data_constrained import DATA_CONSTRAINED
from analysis.laws.data_transfer import TRANSFER
from analysis.laws.examples import CONTEXT_AWARE, MONOLINGUAL_EQUIVALENT
from analysis.laws.law import Law, Parameter
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
NAMES = (*LAWS, "atlas", "mixing")
_DERIVES: dict[str, Callable[[pd.DataFrame], pd.DataFrame]] = {
    "capacity": capacity.prepare,
    "bimix": mixing.prepare_bimix,
}


def prepare(
    law: str | Law,
    table: pd.DataFrame,
    *,
    exposure: pd.DataFrame | None = None,
    target: Any = None,
    **options: Any,
) -> tuple[Law, pd.DataFrame, dict]:
    """The law, the table with the columns it derives, and the options that reproduce this on another table.

    Options: ATLAS takes variant, sources and count; "mixing" domains; "family" families.

    Raises:
      MscaleError: no such law, target or option.
    """
    if law == "atlas":
        _options(law, options, ("variant", "sources", "count"))
        return atlas.prepare(table, exposure, target=target, **options)
    if target is not None:
        table = _targets(table, target)
    if law == "mixing":
        _options(law, options, ("domains",))
        return mixing.prepare_mixing(table, exposure, options.get("domains"), True)
    if isinstance(law, str):
        if law not in LAWS:
            raise MscaleError(f"no law {law!r}{nearest(law, NAMES)}; there are {', '.join(NAMES)}")
        law = LAWS[law]
    _options(law.name, options, ("families",) if law.name == "family" else ())
    if law.name == "family":
        return law, mixing.prepare_family(table, exposure, options.get("families")), {}
    return law, _DERIVES.get(law.name, lambda same: same)(table), {}


def rebuild(name: str, options: Any) -> Law:
    """The law of a saved fit, from its name and options."""
    if name == "atlas":
        return atlas.atlas(options["variant"], options["sources"])
    if name == "mixing":
        return mixing.mixing(options["domains"], options["levels"])
    if name not in LAWS:
        raise MscaleError(f"the fit is of law {name!r}, which is not one of mscale's: pass it as law=")
    return LAWS[name]


def _options(law: str, given: dict, known: tuple[str, ...]) -> None:
    for name in given:
        if name not in known:
            has = f"it has {', '.join(known)}" if known else "it has none"
            raise MscaleError(f"law {law!r} has no option {name!r}{nearest(name, known)}; {has}")


def _targets(table: pd.DataFrame, target: Any) -> pd.DataFrame:
    targets = [target] if isinstance(target, str) else list(target)
    if "language" not in table:
        raise MscaleError(f"target={target!r}: the table has no column 'language'")
    present = sorted(map(str, table["language"].unique()))
    for name in targets:
        if name not in present:
            raise MscaleError(
                f"target {name!r} is not in column 'language', which has {', '.join(present)}"
                + nearest(name, present)
            )
    return table[table["language"].isin(targets)]


__all__ = ["LAWS", "NAMES", "Law", "Parameter", "prepare", "rebuild"]
