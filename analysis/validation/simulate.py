"""Planted studies: observations drawn from a law over a design, with the noise that real studies have.

What a group (root trunk) shares is drawn once for it; what a checkpoint adds is drawn for every row. Used by the
tests, the coverage tables, and to ask before a study is run whether it could tell what it is meant to tell.
"""

from collections.abc import Callable, Mapping, Sequence
from types import SimpleNamespace
from typing import Any

import numpy as np
import pandas as pd

from analysis import laws
from analysis.fitting.fit import fit
from analysis.laws.law import Law
from mscale.errors import MscaleError, nearest


def grid(
    sizes: Sequence[float], tokens: Sequence[float], languages: Sequence[str] = ("en",), seeds: int = 1
) -> pd.DataFrame:
    """A monolingual design: a trunk for each (language, size, seed), a cooled row for each token budget."""
    records = []
    for language in languages:
        for N in sizes:
            for seed in range(seeds):
                group = f"{language}-{N:.3g}-{seed}"
                records += [_record(group, language, (language,), N, D, D, seed) for D in tokens]
    return pd.DataFrame(records)


def mixtures(
    cells: Sequence[tuple[Sequence[str], Sequence[float], Sequence[float]]],
    unique: Mapping[str, float] | None = None,
    seeds: int = 1,
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """A multilingual design and its exposure: cells of (languages sampled uniformly, sizes, tokens of all).

    `unique` bounds the unique tokens of a language in all its cells.
    """
    records: list[dict] = []
    seen: list[dict] = []
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
                        seen.append(
                            {
                                "run": record["run"],
                                "step": record["step"],
                                "language": language,
                                "tokens": each,
                                "unique_tokens": min(available, each),
                            }
                        )
    exposure = pd.DataFrame(seen).drop_duplicates(["run", "step", "language"])
    return pd.DataFrame(records), exposure


def _record(
    group: str, language: str, languages: Sequence[str], N: float, D: float, own: float, seed: int
) -> dict:
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
        "target_tokens": float(own),
        "target_unique": 1e15,
    }


def study(
    law: str | Law,
    design: pd.DataFrame,
    params: Mapping[str, float],
    *,
    trunk: float = 0.003,
    checkpoint: float = 0.001,
    exposure: pd.DataFrame | None = None,
    columns: Mapping[str, str] | None = None,
    per: str | None = "language",
    censored_above: float | None = None,
    missing: float = 0.0,
    seed: int = 0,
    **options: Any,
) -> pd.DataFrame:
    """Draws the law's response over a design.

    Args:
      design: the columns the law reads, and `group`; ATLAS also needs `exposure`.
      params: true values in the paper's units: {"E": …} for all levels or {"E[sw]": …} for one; τ of source s to
        target t is "tau[t,s]".
      trunk, checkpoint: standard deviations of the noise of a group and of a row, relative for laws fitted in logs.
      censored_above: rows whose response lies above are dropped (runs given up early). missing: share of groups lost.

    Returns: the design with the response column, `truth` (noiseless), and the rows that survived.

    Raises:
      MscaleError: a parameter is missing or unknown.
    """
    law, table, _ = laws.prepare(law, design, exposure=exposure, **options)
    truth = evaluate(law, table, params, columns=columns, per=per)
    rng = np.random.default_rng(seed)
    group = (
        design["group"].astype(str) if "group" in design else pd.Series(np.arange(len(design)).astype(str))
    )
    codes, names = pd.factorize(group)
    noise = rng.normal(0.0, trunk, len(names))[codes] + rng.normal(0.0, checkpoint, len(design))
    value = truth * np.exp(noise) if law.residual == "log" else truth + noise
    keep = (
        ~np.isin(codes, np.flatnonzero(rng.random(len(names)) < missing))
        if missing
        else np.ones(len(codes), bool)
    )
    if censored_above is not None:
        keep &= value <= censored_above
    return design.assign(**{law.response: value, "truth": truth})[keep]


def evaluate(
    law: Law,
    table: pd.DataFrame,
    params: Mapping[str, float],
    *,
    columns: Mapping[str, str] | None = None,
    per: str | None = "language",
) -> np.ndarray:
    """The law's prediction (n,) for the rows of a prepared table, from parameters in the paper's units."""
    level = table[per].astype(str).to_numpy() if per in table else np.full(len(table), "")
    names = {variable: (columns or {}).get(variable, default) for variable, default in law.columns.items()}
    absent = [name for name in names.values() if name not in table]
    if absent:
        raise MscaleError(f"design: column {absent[0]!r} is missing{nearest(absent[0], table.columns)}")
    result = np.empty(len(table))
    for name in np.unique(level):
        at = level == name
        x = SimpleNamespace(**{v: table[column].to_numpy(float)[at] for v, column in names.items()})
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


def power(
    law: str | Law,
    design: pd.DataFrame,
    params: Mapping[str, float],
    quantity: str,
    *,
    null: float = 0.0,
    level: float = 0.9,
    studies: int = 50,
    seed: int = 0,
    trunk: float = 0.003,
    checkpoint: float = 0.001,
    exposure: pd.DataFrame | None = None,
    how: Mapping[str, Any] | None = None,
    options: Mapping[str, Any] | None = None,
    advance: Callable[[], Any] = lambda: None,
) -> dict[str, float]:
    """How often a study of this design would tell `quantity` (a parameter's name) from `null`.

    `how` goes to `analysis.fit`, `options` are the law's own (ATLAS: sources, variant); `advance` is called after
    every study.

    Returns: power (share of studies whose interval leaves null out), coverage (share that holds the truth), the
    median width, and the share of studies that did not identify it; a fit that fails counts against both.
    """
    told = held = unknown = 0
    widths = []
    target = params.get(quantity, params.get(quantity.split("[")[0]))
    if target is None:
        raise MscaleError(
            f"quantity {quantity!r} is not among the planted parameters{nearest(quantity, params)}"
        )
    for number in range(studies):
        table = study(
            law,
            design,
            params,
            trunk=trunk,
            checkpoint=checkpoint,
            exposure=exposure,
            seed=seed * 100_003 + number,
            **(options or {}),
        )
        advance()
        try:
            found = fit(law, table, exposure=exposure, **(how or {}), **(options or {})).interval(level)
        except MscaleError:
            unknown += 1
            continue
        if quantity not in found.index:
            raise MscaleError(f"quantity {quantity!r} is not fitted{nearest(quantity, found.index)}")
        row = found.loc[quantity]
        unknown += not row["identified"]
        told += not row["low"] <= null <= row["high"]
        held += bool(row["low"] <= target <= row["high"])
        widths.append(row["high"] - row["low"])
    return {
        "power": told / studies,
        "coverage": held / studies,
        "median_width": float(np.median(widths)) if widths else float("nan"),
        "not_identified": unknown / studies,
    }
