"""The curse of multilinguality: what more languages cost in parameters, tokens and compute.

ATLAS (Longpre et al. 2026, section 5, eq. 7), for K languages sampled uniformly:

    L(K, N, D_t) = L∞ + A·K^φ/N^α + B·K^ψ/D_t^β,   D_tot = K·D_t
"""

from dataclasses import dataclass

import numpy as np
import pandas as pd

from analysis import reference
from analysis.tables import describe_mixtures, one_split
from analysis.transfer import MOST_EPOCHS
from mscale.errors import MscaleError


@dataclass(frozen=True)
class Growth:
    """Factors that keep the loss when K grows r-fold."""

    ratio: float
    N: float
    D_t: float
    D_tot: float
    C: float


def capacity_rows(observations: pd.DataFrame, *, split: str | None = None) -> pd.DataFrame:
    """The cooled rows that the law describes: from scratch, no repeats, uniform over K ≥ 1 languages.

    Only languages that are trained on are rows; a column `K` is added.
    """
    rows = one_split(observations, split)
    runs = describe_mixtures(rows).set_index("run")
    chosen = runs[
        runs["kind"].isin(["mono", "bilingual", "uniform"])
        & (runs["init"] == "scratch")
        & (runs["repeats"] <= MOST_EPOCHS)
    ]
    rows = rows[rows["run"].isin(chosen.index) & (rows["phase"] == "end") & (rows["target_tokens"] > 0)]
    return rows.assign(K=rows["run"].map(chosen["K"]))


def unidentified(rows: pd.DataFrame) -> str:
    """Why `capacity_rows` cannot identify the law, or the empty string where they can."""
    if rows["K"].nunique() < 3:
        return f"mixtures of {rows['K'].nunique()} different K: the law needs three or more"
    spread = rows.groupby("K")["params"].nunique()
    if (spread >= 3).sum() < 2:
        return "fewer than two values of K at three sizes or more: φ and α cannot be told apart"
    if rows["target_tokens"].max() < 2 * rows["target_tokens"].min():
        return "tokens per language span less than a factor of two: ψ and β cannot be told apart"
    return ""


def growth(ratio: float, phi: float, psi: float, alpha: float, beta: float) -> Growth:
    """What keeps the loss when K becomes r·K, from the exponents of eq. 7.

    N′/N = r^(φ/α), D_t′/D_t = r^(ψ/β), D_tot′/D_tot = r^(1+ψ/β), C′/C = r^(1+φ/α+ψ/β). It is also the least
    compute if the start is compute-optimal.
    """
    return growth_from_ratios(ratio, phi / alpha, psi / beta)


def growth_from_ratios(ratio: float, size: float, data: float) -> Growth:
    """As `growth`, from φ/α (`size`) and ψ/β (`data`), which is what the paper prints."""
    if not ratio > 0:
        raise MscaleError(f"languages must grow by a positive factor, got {ratio}")
    n, d = ratio**size, ratio**data
    return Growth(ratio, n, d, ratio * d, ratio * n * d)


def published_growth(ratio: float) -> Growth:
    """The paper's multipliers at any r, from its printed exponents (intervals not published)."""
    printed = reference.published_exponents()
    return growth_from_ratios(ratio, printed["size"], printed["data"] - 1)


def weight_of_size(params: dict[str, float], K: float, N: float, D_t: float) -> float:
    """w_N, the share of the reducible loss that parameters are responsible for, by eq. 7."""
    size = params["A"] * K ** params["phi"] / N ** params["alpha"]
    data = params["B"] * K ** params["psi"] / D_t ** params["beta"]
    return size / (size + data)


def iso_loss(
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
    """The multipliers (s of N, t of D_t) at which r times the languages keep the loss.

    r^φ·w_N·s^−α + r^ψ·w_D·t^−β = 1 with w_D = 1 − w_N; feasible for s > `feasibility_limit`, where t goes to
    infinity. Rows outside 1/largest … largest·10³ in t are not returned.

    Returns:
      Columns s, t, D_tot (growth of all tokens, r·t) and C (growth of compute, s·r·t).
    """
    limit = feasibility_limit(ratio, weight_N, phi, alpha)
    s = limit * np.geomspace(1.002, max(largest / limit, 2.0), points)
    left = 1 - ratio**phi * weight_N * s**-alpha
    t = (ratio**psi * (1 - weight_N) / left) ** (1 / beta)
    frame = pd.DataFrame({"s": s, "t": t, "D_tot": ratio * t, "C": s * ratio * t})
    return frame[(frame["t"] < largest * 1e3) & (frame["t"] > 1 / largest)].reset_index(drop=True)


def feasibility_limit(ratio: float, weight_N: float, phi: float, alpha: float) -> float:
    """The least growth of N that can keep the loss at all: s^α > r^φ·w_N."""
    return float((ratio**phi * weight_N) ** (1 / alpha))


def cheapest_growth(
    ratio: float, weight_N: float, phi: float, psi: float, alpha: float, beta: float
) -> Growth:
    """The point of the iso-loss curve of least compute; `growth` itself where w_N = β/(α+β).

    There α times the share of the loss that N is responsible for equals β times that of the data.
    """
    s = (ratio**phi * weight_N * (alpha + beta) / beta) ** (1 / alpha)
    t = (ratio**psi * (1 - weight_N) * (alpha + beta) / alpha) ** (1 / beta)
    return Growth(ratio, s, t, ratio * t, s * ratio * t)
