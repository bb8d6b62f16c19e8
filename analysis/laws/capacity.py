"""The capacity law (ATLAS eq. 7): loss against size N, tokens per language D_t and number of languages K."""

import dataclasses
from dataclasses import dataclass

import numpy as np
import pandas as pd

from analysis.laws.chinchilla import ALPHA, BETA, A, B, E
from analysis.laws.law import Law, Parameter
from mscale.errors import MscaleError


@dataclass(frozen=True)
class Growth:
    """Factors by which N, tokens per language, all tokens and compute grow so that the loss stays when K grows.

    ratio: r, the factor of K.
    """

    ratio: float
    N: float
    D_t: float
    D_tot: float
    C: float


def growth(ratio: float, phi: float, psi: float, alpha: float, beta: float) -> Growth:
    """The growth of N and D_t that keeps both loss terms of eq. 7 when K becomes r·K.

    N′/N = r^(φ/α), D_t′/D_t = r^(ψ/β), D_tot′/D_tot = r^(1+ψ/β), C′/C = r^(1+φ/α+ψ/β). If the start is
    compute-optimal, no other growth that keeps the loss needs less compute.

    Raises:
      MscaleError: ratio is not positive.
    """
    return growth_from_ratios(ratio, phi / alpha, psi / beta)


def growth_from_ratios(ratio: float, size: float, data: float) -> Growth:
    """As `growth`, from φ/α (`size`) and ψ/β (`data`), which is what the paper prints."""
    if not ratio > 0:
        raise MscaleError(f"languages must grow by a positive factor, got {ratio}")
    n, d = ratio**size, ratio**data
    return Growth(ratio, n, d, ratio * d, ratio * n * d)


def size_share_of_loss(params: dict[str, float], K: float, N: float, D_t: float) -> float:
    """w_N, the share of the size term A·K^φ/N^α in the reducible loss of eq. 7."""
    size = params["A"] * K ** params["phi"] / N ** params["alpha"]
    data = params["B"] * K ** params["psi"] / D_t ** params["beta"]
    return size / (size + data)


def iso_loss_curve(
    ratio: float,
    weight_N: float,
    phi: float,
    psi: float,
    alpha: float,
    beta: float,
    *,
    largest: float = 8.0,
    points: int = 80,
) -> pd.DataFrame:
    """The iso-loss curve: multipliers (s of N, t of D_t) at which r times the languages keep the loss.

    r^φ·w_N·s^−α + r^ψ·w_D·t^−β = 1 with w_N = `weight_N` and w_D = 1 − w_N. Feasible for s above
    `feasibility_limit`, where t goes to infinity.

    Args:
      largest: largest s (where feasible); rows outside 1/largest … largest·10³ in t are left out.
      points: points of the curve, evenly spaced in log s.

    Returns:
      Columns s, t, D_tot (growth of all tokens, r·t) and C (growth of compute, s·r·t).
    """
    limit = feasibility_limit(ratio, weight_N, phi, alpha)
    s = limit * np.geomspace(1.002, max(largest / limit, 2.0), points)
    data_share = 1 - ratio**phi * weight_N * s**-alpha
    t = (ratio**psi * (1 - weight_N) / data_share) ** (1 / beta)
    frame = pd.DataFrame({"s": s, "t": t, "D_tot": ratio * t, "C": s * ratio * t})
    return frame[(frame["t"] < largest * 1e3) & (frame["t"] > 1 / largest)].reset_index(drop=True)


def feasibility_limit(ratio: float, weight_N: float, phi: float, alpha: float) -> float:
    """The growth of N above which some growth of data keeps the loss: s^α = r^φ·w_N."""
    return float((ratio**phi * weight_N) ** (1 / alpha))


def cheapest_growth(
    ratio: float, weight_N: float, phi: float, psi: float, alpha: float, beta: float
) -> Growth:
    """The point of least compute on the iso-loss curve; equal to `growth` where w_N = β/(α+β).

    At it α times the size term of the loss equals β times the data term.
    """
    s = (ratio**phi * weight_N * (alpha + beta) / beta) ** (1 / alpha)
    t = (ratio**psi * (1 - weight_N) * (alpha + beta) / alpha) ** (1 / beta)
    return Growth(ratio, s, t, ratio * t, s * ratio * t)


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


def prepare_capacity(table: pd.DataFrame) -> pd.DataFrame:
    """Adds `languages_trained`, K, counted from the observations' "+"-joined `languages`.

    Raises:
      MscaleError: `languages` has empty cells.
    """
    if "languages_trained" in table or "languages" not in table:
        return table
    if table["languages"].isna().any():
        raise MscaleError("column 'languages': empty cells; expected codes joined by '+', such as 'en+fr'")
    return table.assign(languages_trained=table["languages"].astype(str).str.count(r"\+") + 1)
