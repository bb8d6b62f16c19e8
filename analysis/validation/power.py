"""Power analysis by simulation: how many runs a study needs to tell a quantity from its null value.

Observations are drawn many times over a design like the demo's with the noise of real runs, and fitted; power is the
share of intervals that exclude the null value. Additional seeds (trunks) raise power; additional checkpoints of a trunk
hardly do, because they share most of their noise.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from scipy.stats import binomtest

from analysis.estimation.specify import FitOptions
from analysis.fitting.fit import fit_with_options
from analysis.validation import simulate
from mscale.errors import MscaleError, nearest
from mscale.progress import progress

MODEL_SIZES = (16e3, 34e3, 72e3, 155e3, 330e3)  # parameters of the demo's five scales
TOKEN_BUDGETS = (2e6, 4e6, 8e6)
# True values, of the size that the demo has.
_CHINCHILLA_TRUTH = {"E": 1.0, "A": 14.0, "alpha": 0.35, "B": 22.0, "beta": 0.30}
TARGET, SOURCE = "t", "s"
DEFAULT_EFFECTS = {"tau": 0.3, "lambda": 0.25, "phi": 0.11, "psi": -0.04, "alpha": 0.35, "beta": 0.30}
DEFAULT_NULLS = {"lambda": 0.01}  # λ must be positive; near 0 repeated data are as good as fresh
QUANTITIES = {
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
    sizes: Sequence[float] = MODEL_SIZES,
    tokens: Sequence[float] = TOKEN_BUDGETS,
    trunk: float = 0.003,
    checkpoint: float = 0.001,
    level: float = 0.9,
    studies: int = 40,
    seed: int = 0,
) -> pd.DataFrame:
    """The probability that a study's interval of `quantity` excludes `null`, for each number of seeds per cell.

    Args:
      quantity: a name in `QUANTITIES`. effect: its true value (default: about the value in the literature).
      null: the value to be excluded (default 0, 0.01 for lambda).
      seeds: trunks per (size, mixture) cell, one design each. sizes: parameters. tokens: budgets, a run each.
      trunk, checkpoint: relative standard deviations of the noise that a trunk's runs share, and of each run.
      level: of the interval. studies: simulated for each design.

    Returns: a row for each number of seeds: seeds, trunks, runs, power with its 90% interval power_low and power_high,
    coverage, median_width, and not_identified (share of studies that do not identify it, which counts against both).

    Raises:
      MscaleError: an unknown quantity, or a design that no law can be fitted to.
    """
    if quantity not in QUANTITIES:
        raise MscaleError(
            f"quantity {quantity!r}: expected one of {', '.join(QUANTITIES)}{nearest(quantity, QUANTITIES)}"
        )
    if studies < 1 or not len(seeds) or min(seeds) < 1:
        raise MscaleError(f"studies={studies}, seeds={list(seeds)}: expected positive counts")
    effect = DEFAULT_EFFECTS[quantity] if effect is None else effect
    null = DEFAULT_NULLS.get(quantity, 0.0) if null is None else null
    records = []
    with progress(f"planted studies of {quantity}", len(seeds) * studies, "studies") as advance:
        for count in seeds:
            experiment = power_experiment(quantity, effect, sizes, tokens, count)
            studies_found = []
            for number in range(studies):
                study_seed = seed * 100_003 + number
                studies_found.append(_simulated(experiment, null, level, (trunk, checkpoint), study_seed))
                advance()
            found = pd.DataFrame(studies_found)
            interval = binomtest(int(found["excludes_null"].sum()), studies).proportion_ci(0.9, "wilson")
            records.append(
                {
                    "seeds": count,
                    "trunks": experiment.design["group"].nunique(),
                    "runs": experiment.design["run"].nunique(),
                    "power": found["excludes_null"].mean(),
                    "power_low": interval.low,
                    "power_high": interval.high,
                    "coverage": found["covers"].mean(),
                    "median_width": found["width"].median(),
                    "not_identified": 1 - found["identified"].mean(),
                }
            )
    return pd.DataFrame(records)


def power_sentence(table: pd.DataFrame, quantity: str, wanted: float = 0.8) -> str:
    """A sentence on what `power` returned: how many runs reach the `wanted` power."""
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


@dataclass(frozen=True)
class Experiment:
    """A study to simulate, and the parameter that it is to detect.

    Attributes:
      law, design, params: as `simulate.draw_observations` takes them. quantity: a fitted parameter's name.
      options: of the fit; exposure and the law's own options are those of the drawn observations, too.
    """

    law: str
    design: pd.DataFrame
    params: Mapping[str, float]
    quantity: str
    options: FitOptions


def _simulated(
    experiment: Experiment, null: float, level: float, noise: tuple[float, float], seed: int
) -> dict[str, Any]:
    """Whether the interval of a simulated study excludes the null value, covers the true one, and is identified.

    A fit that fails does neither. noise: of a trunk and of a checkpoint.
    """
    options, truth = experiment.options, experiment.params[experiment.quantity]
    table = simulate.draw_observations(
        experiment.law,
        experiment.design,
        experiment.params,
        trunk=noise[0],
        checkpoint=noise[1],
        exposure=options.exposure,
        seed=seed,
        **options.of_law,
    )
    try:
        row = fit_with_options(experiment.law, table, options).interval(level).loc[experiment.quantity]
    except MscaleError:
        return {"excludes_null": False, "covers": False, "identified": False, "width": np.nan}
    return {
        "excludes_null": not row["low"] <= null <= row["high"],
        "covers": row["low"] <= truth <= row["high"],
        "identified": bool(row["identified"]),
        "width": row["high"] - row["low"],
    }


def power_experiment(
    quantity: str, effect: float, sizes: Sequence[float], tokens: Sequence[float], seeds: int
) -> Experiment:
    """The experiment that detects `quantity`: Chinchilla for alpha and beta, capacity for phi and psi, else ATLAS."""
    if quantity in ("alpha", "beta"):
        table = simulate.monolingual_design(sizes, tokens, (TARGET,), seeds)
        truth = {**_CHINCHILLA_TRUTH, quantity: effect}
        return Experiment("chinchilla", table, truth, quantity, FitOptions(per=None))
    if quantity in ("phi", "psi"):
        cells = [
            (tuple(f"{TARGET}{i}" for i in range(K)), sizes, [K * D for D in tokens]) for K in (1, 2, 4, 8)
        ]
        table, _ = simulate.multilingual_design(cells, seeds=seeds)
        table = table[table["language"] == f"{TARGET}0"].reset_index(drop=True)
        truth = {
            **_CHINCHILLA_TRUTH,
            **{name: DEFAULT_EFFECTS[name] for name in ("phi", "psi")},
            quantity: effect,
        }
        return Experiment("capacity", table, truth, quantity, FitOptions(per=None))
    truth = {**_CHINCHILLA_TRUTH, "lambda": DEFAULT_EFFECTS["lambda"]}
    mono: tuple[tuple[str, ...], Sequence[float], Sequence[float]] = ((TARGET,), sizes, tokens)
    if quantity == "tau":
        table, exposure = simulate.multilingual_design(
            [mono, ((TARGET, SOURCE), sizes, [2 * D for D in tokens])], seeds=seeds
        )
        table = table[table["language"] == TARGET].reset_index(drop=True)
        name = f"tau[{TARGET},{SOURCE}]"
        options = FitOptions(exposure=exposure, of_law={"sources": {TARGET: [SOURCE]}})
        return Experiment("atlas", table, {**truth, name: effect, "tau_other": 0.0}, name, options)
    parts = []
    for epochs in (1, 4, 8):
        part, _ = simulate.multilingual_design(
            [mono], {TARGET: max(tokens) / epochs} if epochs > 1 else None, seeds
        )
        parts.append(part.assign(run=part["run"] + f"-e{epochs}", group=part["group"] + f"-e{epochs}"))
    table = pd.concat(parts, ignore_index=True)
    options = FitOptions(of_law={"variant": "D_t"})
    return Experiment("atlas", table, {**truth, "lambda": effect}, "lambda", options)
