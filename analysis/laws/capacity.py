"""The capacity law: what adding languages to a mixture costs (ATLAS eq. 7)."""

import dataclasses

import pandas as pd

from analysis.laws.chinchilla import ALPHA, BETA, A, B, E
from analysis.laws.law import Law, Parameter
from mscale.errors import MscaleError

CAPACITY = Law(
    name="capacity",
    equation="L = E + A*K^phi/N^alpha + B*K^psi/D_t^beta",
    source="Longpre et al. 2026 (ATLAS), eq. 7; D_tot = K*D_t, uniform sampling",
    columns={"N": "params", "D": "target_tokens", "K": "languages_trained"},
    parameters=(
        E,
        dataclasses.replace(A, reference=(("alpha", "N", -1.0), ("phi", "K", 1.0))),
        Parameter("phi", (0.0, 0.3), (-2.0, 2.0), meaning="what a language costs in size"),
        ALPHA,
        dataclasses.replace(B, reference=(("beta", "D", -1.0), ("psi", "K", 1.0))),
        Parameter("psi", (-0.1, 0.1), (-2.0, 2.0), meaning="what a language costs (or gives) in data"),
        BETA,
    ),
    predict=lambda p, x: p.E + p.A * x.K**p.phi * x.N**-p.alpha + p.B * x.K**p.psi * x.D**-p.beta,
    parameters_per="language",
    share=("phi", "alpha", "psi", "beta"),
    optimum=("N", "D"),
    trade=lambda p, x: (p.A * x.K**p.phi, p.alpha, p.B * x.K**p.psi, p.beta),
)


def prepare(table: pd.DataFrame) -> pd.DataFrame:
    """Adds `languages_trained`, K, counted from the observations' "+"-joined `languages`."""
    if "languages_trained" in table or "languages" not in table:
        return table
    if table["languages"].isna().any():
        raise MscaleError("column 'languages': empty cells; expected codes joined by '+', such as 'en+fr'")
    return table.assign(languages_trained=table["languages"].astype(str).str.count(r"\+") + 1)
