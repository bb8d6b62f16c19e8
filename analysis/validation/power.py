"""How many runs a study needs to tell a quantity from none, by planting it: `mscale power tau --effect 0.3`.

A design like the demo's is drawn many times with the noise that runs have, fitted without the truth, and counted how
often the interval leaves the null value out. Power is bought with seeds (trunks): checkpoints of one trunk share
most of their noise.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd

from analysis.validation import simulate
from mscale.errors import MscaleError, nearest
from mscale.progress import progress

SIZES = (16e3, 34e3, 72e3, 155e3, 330e3)  # parameters of the demo's five scales
TOKENS = (2e6, 4e6, 8e6)
CURVE = {"E": 1.0, "A": 14.0, "alpha": 0.35, "B": 22.0, "beta": 0.30}  # of the demo's order
TARGET, SOURCE = "t", "s"
EFFECTS = {"tau": 0.3, "lambda": 0.25, "phi": 0.11, "psi": -0.04, "alpha": 0.35, "beta": 0.30}
NULLS = {"lambda": 0.01}  # positive by its definition: repeated data as good as fresh
MEANING = {
    "tau": "what a source token is worth to the target (ATLAS): monolingual and 50/50 trunks",
    "lambda": "how fast repeated data lose worth (ATLAS): monolingual trunks, some repeating their data",
    "phi": "what a language costs in size (capacity law): uniform mixtures of 1, 2, 4 and 8 languages",
    "psi": "what a language costs or gives in data (capacity law): the same mixtures",
    "alpha": "exponent of size (Chinchilla): monolingual trunks",
    "beta": "exponent of data (Chinchilla): monolingual trunks",
}


def power(
    quantity: str = "tau",
    *,
    effect: float | None = None,
    null: float | None = None,
    seeds: Sequence[int] = (1, 2, 4),
    sizes: Sequence[float] = SIZES,
    tokens: Sequence[float] = TOKENS,
    trunk: float = 0.003,
    checkpoint: float = 0.001,
    level: float = 0.9,
    studies: int = 40,
    seed: int = 0,
) -> pd.DataFrame:
    """The chance that a study tells `quantity` from `null`, for each number of seeds a cell.

    Args:
      quantity: a name in `MEANING`. effect: its true value (default: about what was found in the literature).
      null: the value to be told from (0, or 0.01 for lambda).
      seeds: trunks a (size, mixture) cell. sizes: parameters. tokens: budgets, a cooled run each.
      trunk, checkpoint: relative standard deviation of the noise that a trunk's runs share, and of each run.
      level: of the interval. studies: planted a row; the power's own 90% interval is given with it.

    Returns: a row a number of seeds: seeds, trunks, runs, power, power_low, power_high, coverage, median_width,
    not_identified (share of studies that cannot say; they count against power and coverage).

    Raises:
      MscaleError: an unknown quantity, or a design that no law can be fitted to.
    """
    if quantity not in MEANING:
        raise MscaleError(
            f"quantity {quantity!r}: expected one of {', '.join(MEANING)}{nearest(quantity, MEANING)}"
        )
    if studies < 1 or not len(seeds) or min(seeds) < 1:
        raise MscaleError(f"studies={studies}, seeds={list(seeds)}: expected positive counts")
    effect = EFFECTS[quantity] if effect is None else effect
    null = NULLS.get(quantity, 0.0) if null is None else null
    records = []
    with progress(f"planted studies of {quantity}", len(seeds) * studies, "studies") as advance:
        for count in seeds:
            planted = design(quantity, effect, sizes, tokens, count)
            found = simulate.power(
                planted.pop("law"),
                planted["design"],
                planted["params"],
                planted["name"],
                null=null,
                level=level,
                studies=studies,
                seed=seed,
                trunk=trunk,
                checkpoint=checkpoint,
                exposure=planted["exposure"],
                options=planted["options"],
                how=planted["how"],
                advance=advance,
            )
            low, high = _wilson(found["power"], studies)
            table = planted["design"]
            records.append(
                {
                    "seeds": count,
                    "trunks": table["group"].nunique(),
                    "runs": table["run"].nunique(),
                    "power": found["power"],
                    "power_low": low,
                    "power_high": high,
                    **{key: found[key] for key in ("coverage", "median_width", "not_identified")},
                }
            )
    return pd.DataFrame(records)


def answer(table: pd.DataFrame, quantity: str, wanted: float = 0.8) -> str:
    """One sentence from what `power` returned: how many runs reach the `wanted` power."""
    enough = table[table["power"] >= wanted]
    if not len(enough):
        last = table.iloc[-1]
        return (
            f"{int(last['runs'])} runs of {int(last['trunks'])} trunks tell {quantity} only {last['power']:.0%} of "
            f"the time (wanted {wanted:.0%}): more seeds, a wider range of sizes, or a larger effect are needed"
        )
    row = enough.iloc[0]
    return (
        f"{int(row['runs'])} runs of {int(row['trunks'])} trunks ({int(row['seeds'])} seeds a cell) tell {quantity} "
        f"{row['power']:.0%} of the time [{row['power_low']:.0%}, {row['power_high']:.0%}]"
    )


def design(
    quantity: str, effect: float, sizes: Sequence[float], tokens: Sequence[float], seeds: int
) -> dict[str, Any]:
    """The planted study of `quantity`: law, design, exposure, params, options (of the law), how (to fit), name."""
    if quantity in ("alpha", "beta"):
        table = simulate.grid(sizes, tokens, (TARGET,), seeds)
        return _planted("chinchilla", table, {**CURVE, quantity: effect}, quantity)
    if quantity in ("phi", "psi"):
        cells = [
            (tuple(f"{TARGET}{i}" for i in range(K)), sizes, [K * D for D in tokens]) for K in (1, 2, 4, 8)
        ]
        table, exposure = simulate.mixtures(cells, seeds=seeds)
        table = table[table["language"] == f"{TARGET}0"].reset_index(drop=True)
        params = {**CURVE, "phi": EFFECTS["phi"], "psi": EFFECTS["psi"], quantity: effect}
        return _planted("capacity", table, params, quantity, exposure)
    params = {**CURVE, "lambda": EFFECTS["lambda"], "tau": EFFECTS["tau"], quantity: effect}
    mono: tuple[tuple[str, ...], Sequence[float], Sequence[float]] = ((TARGET,), sizes, tokens)
    if quantity == "tau":
        table, exposure = simulate.mixtures(
            [mono, ((TARGET, SOURCE), sizes, [2 * D for D in tokens])], seeds=seeds
        )
        table = table[table["language"] == TARGET].reset_index(drop=True)
        params[f"tau[{TARGET},{SOURCE}]"] = params.pop("tau")
        params["tau_other"] = 0.0
        name = f"tau[{TARGET},{SOURCE}]"
        return _planted("atlas", table, params, name, exposure, {"sources": {TARGET: [SOURCE]}})
    parts = []
    for epochs in (1, 4, 8):
        part, _ = simulate.mixtures([mono], {TARGET: max(tokens) / epochs} if epochs > 1 else None, seeds)
        parts.append(part.assign(run=part["run"] + f"-e{epochs}", group=part["group"] + f"-e{epochs}"))
    table = pd.concat(parts, ignore_index=True)
    return _planted("atlas", table, params, "lambda", None, {"variant": "D_t"})


def _planted(
    law: str,
    table: pd.DataFrame,
    params: dict[str, float],
    name: str,
    exposure: pd.DataFrame | None = None,
    options: dict[str, Any] | None = None,
) -> dict[str, Any]:
    return {
        "law": law,
        "design": table,
        "params": params,
        "name": name,
        "exposure": exposure if law == "atlas" else None,
        "options": options or {},
        "how": {"per": None} if law != "atlas" else {},
    }


def _wilson(share: float, count: int, z: float = 1.645) -> tuple[float, float]:
    """90% interval of a share seen in `count` trials (Wilson 1927)."""
    centre = (share + z * z / (2 * count)) / (1 + z * z / count)
    half = z / (1 + z * z / count) * np.sqrt(share * (1 - share) / count + z * z / (4 * count * count))
    return max(0.0, centre - half), min(1.0, centre + half)
