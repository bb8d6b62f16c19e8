"""Simulated studies: designs, and observations drawn from a law over a design.

The noise has two components, as in real studies: one that a group (root trunk) shares and one of each row (checkpoint).
The tests, the coverage benchmark and the power analysis (`validation.power`) use these.
"""

from collections.abc import Mapping, Sequence
from types import SimpleNamespace
from typing import Any

import numpy as np
import pandas as pd

from analysis.laws import registry
from analysis.laws.law import Law
from mscale.errors import MscaleError, nearest


def monolingual_design(
    sizes: Sequence[float], tokens: Sequence[float], languages: Sequence[str] = ("en",), seeds: int = 1
) -> pd.DataFrame:
    """A monolingual design: a group for each (language, size, seed), a row of phase `end` for each token budget."""
    records = []
    for language in languages:
        for N in sizes:
            for seed in range(seeds):
                group = f"{language}-{N:.3g}-{seed}"
                records += [_record(group, language, (language,), N, D, D, seed) for D in tokens]
    return pd.DataFrame(records)


def multilingual_design(
    cells: Sequence[tuple[Sequence[str], Sequence[float], Sequence[float]]],
    unique: Mapping[str, float] | None = None,
    seeds: int = 1,
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """A multilingual design and its exposure: a group for each cell, size and seed; a row for each budget and language.

    Args:
      cells: (languages, sampled uniformly; sizes; token budgets of all languages together).
      unique: {language: its unique tokens}, unlimited where missing.
    """
    records: list[dict] = []
    exposures: list[dict] = []
    for languages, sizes, tokens in cells:
        for N in sizes:
            for seed in range(seeds):
                group = f"{'+'.join(languages)}-{N:.3g}-{seed}-{len(records)}"
                for D in tokens:
                    each = D / len(languages)
                    for language in languages:
                        available = float((unique or {}).get(language, np.inf))
                        record = _record(group, language, languages, N, D, each, seed)
                        record["target_unique"] = min(available, 1e15)
                        records.append(record)
                        exposures.append(
                            {
                                "run": record["run"],
                                "step": record["step"],
                                "language": language,
                                "tokens": each,
                                "unique_tokens": min(available, each),
                            }
                        )
    exposure = pd.DataFrame(exposures).drop_duplicates(["run", "step", "language"])
    return pd.DataFrame(records), exposure


def _record(
    group: str, language: str, languages: Sequence[str], N: float, D: float, target_tokens: float, seed: int
) -> dict:
    """A row of a design, with the columns of the observations that laws read."""
    return {
        "run": f"{group}-{D:.3g}",
        "group": group,
        "scale": f"{N:.3g}",
        "params": float(N),
        "mixture": "+".join(languages),
        "languages": "+".join(languages),
        "init": "scratch",
        "seed": seed,
        "step": 1,
        "phase": "end",
        "language": language,
        "tokens": float(D),
        "target_tokens": float(target_tokens),
        "target_unique": 1e15,
    }


def draw_observations(
    law: str | Law,
    design: pd.DataFrame,
    params: Mapping[str, float],
    *,
    trunk: float = 0.003,
    checkpoint: float = 0.001,
    exposure: pd.DataFrame | None = None,
    per: str | None = "language",
    seed: int = 0,
    **options: Any,
) -> pd.DataFrame:
    """Observations: the law's response over a design, with noise.

    Args:
      design: the columns that the law reads, and `group`; ATLAS also needs `exposure`.
      params: true values in the paper's units: {"E": …} for all levels or {"E[sw]": …} for one; τ of source s to
        target t is "tau[t,s]".
      trunk, checkpoint: standard deviations of the noise of a group and of a row, relative for laws fitted in logs.
      per: column whose levels may have parameters of their own.
      options: of the law (ATLAS: variant, sources, count).

    Returns: the design with the response column and `truth`, its value without noise.

    Raises:
      MscaleError: a parameter is missing or unknown.
    """
    law, table, _ = registry.prepare_law(law, design, exposure=exposure, **options)
    truth = evaluate_law(law, table, params, per=per)
    rng = np.random.default_rng(seed)
    codes, names = pd.factorize(design.get("group", design.index))
    noise = rng.normal(0.0, trunk, len(names))[codes] + rng.normal(0.0, checkpoint, len(design))
    value = truth * np.exp(noise) if law.residual == "log" else truth + noise
    return design.assign(**{law.response: value, "truth": truth})


def evaluate_law(
    law: Law,
    table: pd.DataFrame,
    params: Mapping[str, float],
    *,
    per: str | None = "language",
) -> np.ndarray:
    """The law's prediction (n,) for the rows of a table that `registry.prepare_law` made.

    params: as in `draw_observations`.

    Raises:
      MscaleError: a column or a parameter is missing.
    """
    level = table[per].astype(str).to_numpy() if per in table else np.full(len(table), "")
    absent = [name for name in law.columns.values() if name not in table]
    if absent:
        raise MscaleError(f"design: column {absent[0]!r} is missing{nearest(absent[0], table.columns)}")
    result = np.empty(len(table))
    for name in np.unique(level):
        at = level == name
        x = SimpleNamespace(**{v: table[column].to_numpy(float)[at] for v, column in law.columns.items()})
        p = {}
        for parameter in law.parameters:
            label = f"{parameter.name}[{name}]"
            if parameter.labels is not None:
                if name not in parameter.labels:
                    p[parameter.name] = parameter.absent
                    continue
                label = f"{parameter.name.rsplit('_', 1)[0]}[{parameter.labels[name]}]"
            value = params.get(label, params.get(parameter.name))
            if value is None:
                raise MscaleError(f"params: {label} (or {parameter.name}) is missing{nearest(label, params)}")
            p[parameter.name] = float(value)
        result[at] = law.predict(SimpleNamespace(**p), x)
    return result
