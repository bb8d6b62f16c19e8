"""Scaling laws, each a small declaration. `LAWS` maps names to laws; `prepare` readies a law for a table."""

from typing import Any

import pandas as pd

from analysis.laws import atlas, capacity
from analysis.laws.capacity import CAPACITY
from analysis.laws.chinchilla import CHINCHILLA, POWER, PURE_POWER
from analysis.laws.law import Law, Parameter
from mscale.errors import MscaleError, nearest

LAWS: dict[str, Law] = {law.name: law for law in (CHINCHILLA, POWER, PURE_POWER, CAPACITY)}
NAMES = (*LAWS, "atlas")


def prepare(
    law: str | Law,
    table: pd.DataFrame,
    *,
    exposure: pd.DataFrame | None = None,
    target: Any = None,
    **options: Any,
) -> tuple[Law, pd.DataFrame, dict]:
    """The law, the table with the columns it derives, and the options that reproduce this on another table.

    Raises:
      MscaleError: no such law, or an option that it does not have.
    """
    if law == "atlas":
        return atlas.prepare(table, exposure, target=target, **options)
    if options:
        raise MscaleError(
            f"law {law if isinstance(law, str) else law.name!r} has no option {', '.join(options)}"
        )
    if isinstance(law, str):
        if law not in LAWS:
            raise MscaleError(f"no law {law!r}{nearest(law, NAMES)}; there are {', '.join(NAMES)}")
        law = LAWS[law]
    if target is not None:
        targets = [target] if isinstance(target, str) else list(target)
        if "language" not in table:
            raise MscaleError("target=: the table has no column 'language'")
        present = sorted(map(str, table["language"].unique()))
        for name in targets:
            if name not in present:
                raise MscaleError(
                    f"target {name!r} is not in column 'language', which has {', '.join(present)}{nearest(name, present)}"
                )
        table = table[table["language"].isin(targets)]
    if law.name == "capacity":
        table = capacity.prepare(table)
    return law, table, {}


def rebuild(name: str, options: Any) -> Law:
    """The law of a saved fit, from its name and options."""
    if name == "atlas":
        return atlas.atlas(options["variant"], options["sources"])
    if name not in LAWS:
        raise MscaleError(f"the fit is of law {name!r}, which is not one of mscale's: pass it as law=")
    return LAWS[name]


__all__ = ["LAWS", "Law", "NAMES", "Parameter", "prepare"]
