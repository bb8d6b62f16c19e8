"""The data-constrained law (Muennighoff et al. 2023): diminishing returns of repeats and of surplus N."""

from typing import Any

import numpy as np

from analysis.laws.chinchilla import ALPHA, BETA, A, B, E, size_and_data_terms
from analysis.laws.law import Law, Parameter


def compute_optimal_size(p: Any, U: Any) -> Any:
    """N_opt(U) = (αA/(βB))^(1/α)·U^(β/α): the parameters for which U unique tokens are compute-optimal."""
    return np.exp((np.log(p.alpha * p.A / (p.beta * p.B)) + p.beta * np.log(U)) / p.alpha)


def saturating_amount(total: Any, unique: Any, decay: Any) -> Any:
    """U + U·R*·(1 − e^(−R/R*)) with R = total/U − 1 repeats and R* = `decay`: the effective amount of eqs. 5-6."""
    repeats = total / unique - 1.0
    return unique - unique * decay * np.expm1(-repeats / decay)


def data_constrained_loss(p: Any, x: Any) -> Any:
    """E + A/N'^α + B/D'^β, N' saturating above N_opt(U) and D' above the unique tokens U."""
    U_D = np.minimum(x.D, x.U)
    D = saturating_amount(x.D, U_D, p.R_D) if np.any(x.D > x.U) else x.D
    U_N = np.minimum(compute_optimal_size(p, U_D), x.N)
    N = saturating_amount(x.N, U_N, p.R_N)
    return p.E + p.A * N**-p.alpha + p.B * D**-p.beta


DATA_CONSTRAINED = Law(
    name="data_constrained",
    equation="L = E + A/N'^alpha + B/D'^beta, X' = U_X + U_X*R_X*(1 - exp(-(X/U_X - 1)/R_X))",
    source="Muennighoff et al. 2023, eqs. 5-6 and appendix A (R_D* 15.39, R_N* 5.31); jointly unless two_stage=True",
    columns={"N": "params", "D": "target_tokens", "U": "target_unique"},
    parameters=(
        E,
        A,
        ALPHA,
        B,
        BETA,
        Parameter("R_D", (2.0, 40.0), (0.02, 1e4), log=True, unit="epochs", meaning="R_D*: worth of repeats"),
        Parameter("R_N", (1.0, 20.0), (0.02, 1e4), log=True, meaning="R_N*: worth of surplus parameters"),
    ),
    predict=data_constrained_loss,
    parameters_per="language",
    share=("alpha", "beta", "R_D", "R_N"),
    optimum=("N", "D"),  # where N = N_opt(D), so that no parameter is surplus
    trade=size_and_data_terms,
)
