"""Laws in the proportions of a mixture: He et al. 2024 (family), Ye et al. 2024 (mixing), Ge et al. 2024 (BiMix)."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd

from analysis.laws.chinchilla import ALPHA, BETA, A, B, E, size_and_data_terms
from analysis.laws.law import Law, Parameter
from mscale.errors import MscaleError, nearest

FAMILY = Law(
    name="family",
    equation="L = (E + A/N^alpha + B/D^beta)*p^(-gamma)",
    source="He et al. 2024; p is the sampling share of the language's family, D the tokens of all languages",
    columns={"N": "params", "D": "tokens", "p": "family_share"},
    parameters=(
        E,
        A,
        ALPHA,
        B,
        BETA,
        Parameter("gamma", (0.0, 0.3), (-1.0, 3.0), meaning="what a smaller share costs"),
    ),
    predict=lambda p, x: (p.E + p.A * x.N**-p.alpha + p.B * x.D**-p.beta) * x.p**-p.gamma,
    parameters_per="language",
    share=("alpha", "beta", "gamma"),
    optimum=("N", "D"),
    trade=size_and_data_terms,  # p^−gamma multiplies both terms
)

BIMIX = Law(
    name="bimix",
    equation="L = (1/r^alpha)*(B/D^beta + C)",
    source="BiMix, Ge et al. 2024; gauge A = 1, r the proportion of the domain, D the tokens of all",
    columns={"D": "tokens", "r": "proportion"},
    parameters=(
        Parameter("alpha", (0.0, 0.4), (-1.0, 3.0), meaning="what a smaller proportion costs"),
        Parameter(
            "B",
            (0.01, 5.0),
            (1e-8, 1e3),
            log=True,
            linear=True,
            reference=(("beta", "D", -1.0),),
            unit="loss at mean D",
        ),
        BETA,
        Parameter("C", (0.05, 5.0), (0.0, 1e3), linear=True, unit="loss"),
    ),
    predict=lambda p, x: x.r**-p.alpha * (p.B * x.D**-p.beta + p.C),
    parameters_per="language",
)


def mixing_law(domains: Sequence[str], levels: Sequence[str]) -> Law:
    """The data mixing law of Ye et al. over the proportions of `domains`.

    Args:
      levels: target languages, each with a t_j of its own for every domain; [""] for a single curve.

    Raises:
      MscaleError: fewer than two domains.
    """
    J = len(domains)
    if J < 2:
        raise MscaleError(f"data mixing needs at least two domains; found {', '.join(domains) or 'none'}")

    def t(j: int) -> Parameter:
        labels = {level: f"{level},{domains[j]}" if level else domains[j] for level in levels}
        return Parameter(f"t_{j}", (-2.0, 2.0), (-50.0, 50.0), meaning="pull of a domain", labels=labels)

    def predict(p: Any, x: Any) -> Any:
        last = getattr(x, f"r_{J - 1}")
        exponent: Any = 0.0
        for j in range(J - 1):  # gauge: Σ_j t_j = 0, so the last is minus the others
            exponent = exponent + getattr(p, f"t_{j}") * (getattr(x, f"r_{j}") - last)
        return p.c + p.k * np.exp(exponent)

    return Law(
        name="mixing",
        equation="L = c + k*exp(sum_j t_j*r_j), sum_j t_j = 0",
        source="Ye et al. 2024 (data mixing laws); gauge Σt = 0, so t of the last domain is minus the others' sum",
        columns={f"r_{j}": f"r_{j}" for j in range(J)},
        parameters=(
            Parameter("c", (0.05, 5.0), (0.0, 1e3), linear=True, unit="loss"),
            Parameter("k", (0.05, 5.0), (1e-8, 1e3), log=True, linear=True, unit="loss at equal proportions"),
            *(t(j) for j in range(J - 1)),
        ),
        predict=predict,
        may_be_zero=tuple(f"r_{j}" for j in range(J)),
        parameters_per="language",
    )


def exposure_of_rows(table: pd.DataFrame, exposure: pd.DataFrame, column: str = "tokens") -> pd.DataFrame:
    """What each row's (run, step) has seen so far: a column of the exposure, a column here for every language.

    Raises:
      MscaleError: an evaluated (run, step) has no exposure.
    """
    seen = exposure.drop_duplicates(["run", "step", "language"], keep="last")
    wide = seen.pivot(index=["run", "step"], columns="language", values=column).fillna(0.0).astype(float)
    keys = pd.MultiIndex.from_frame(table[["run", "step"]])
    rows = wide.index.get_indexer(keys)
    if (rows < 0).any():
        run, step = keys[int(np.argmax(rows < 0))]
        raise MscaleError(
            f"exposure: no rows for run {run!r} at step {step}, which the observations evaluate "
            f"({int((rows < 0).sum())} such rows); write the exposure at every evaluated step"
        )
    return wide.iloc[rows].set_axis(table.index)


def mixture_proportions(table: pd.DataFrame, exposure: pd.DataFrame) -> pd.DataFrame:
    """Proportion of every training language in the tokens so far of each row; a column a language."""
    tokens = exposure_of_rows(table, exposure)
    return tokens.div(tokens.sum(axis=1), axis=0)


def prepare_mixing(
    table: pd.DataFrame, exposure: pd.DataFrame | None, domains: Sequence[str] | None
) -> tuple[Law, pd.DataFrame, dict]:
    """The data mixing law for a table: proportions from the exposure, or from the table's columns `domains`.

    Returns: the law, the table with r_0, r_1, … added, and {"domains", "levels"}.

    Raises:
      MscaleError: neither is given, a domain is missing, or proportions of a row do not add up to 1.
    """
    if exposure is not None:
        found = mixture_proportions(table, exposure)
        domains = list(found.columns) if domains is None else list(domains)
    elif domains is not None:
        found = table
    else:
        raise MscaleError(
            "data mixing: pass exposure=, or domains=[columns of the table holding proportions]"
        )
    for name in domains:
        if name not in found:
            raise MscaleError(f"domain {name!r} is not a column{nearest(name, found.columns)}")
    table = table.assign(**{f"r_{j}": found[name].astype(float) for j, name in enumerate(domains)})
    total = table[[f"r_{j}" for j in range(len(domains))]].sum(axis=1).to_numpy(float)
    if (abs(total - 1) > 1e-3).any():
        at = int(np.argmax(abs(total - 1) > 1e-3))
        raise MscaleError(
            f"proportions of {', '.join(map(str, domains))} add up to {total[at]:g} in row {table.index[at]}, not 1"
        )
    levels = sorted(map(str, table["language"].unique())) if "language" in table else [""]
    levels = levels if len(levels) > 1 else [""]
    return mixing_law(list(domains), levels), table, {"domains": list(domains), "levels": levels}


def prepare_family(
    table: pd.DataFrame, exposure: pd.DataFrame | None, families: Mapping[str, str] | None
) -> pd.DataFrame:
    """Adds `family_share`, the share of all tokens in the family of the row's language.

    Args:
      families: {language: family}; None takes every language as a family of its own.

    Raises:
      MscaleError: families without exposure, or a language without a family.
    """
    if "family_share" in table:
        return table
    if families is None:
        if {"target_tokens", "tokens"} <= set(table.columns):
            return table.assign(family_share=table["target_tokens"] / table["tokens"])
        return table
    if exposure is None:
        raise MscaleError(
            "law 'family': families= also needs exposure=, the tokens of every training language"
        )
    found = mixture_proportions(table, exposure)
    missing = sorted({*map(str, table["language"]), *map(str, found.columns)} - set(families))
    if missing:
        raise MscaleError(f"families: no family given for {', '.join(missing)}")
    by_family = found.T.groupby([families[str(name)] for name in found.columns]).sum().T
    of_row = table["language"].map(families)
    value = by_family.to_numpy()[np.arange(len(table)), by_family.columns.get_indexer(pd.Index(of_row))]
    return table.assign(family_share=value)


def prepare_bimix(table: pd.DataFrame) -> pd.DataFrame:
    """Adds `proportion` = target_tokens / tokens."""
    if "proportion" in table or not {"target_tokens", "tokens"} <= set(table.columns):
        return table
    return table.assign(proportion=table["target_tokens"] / table["tokens"])
