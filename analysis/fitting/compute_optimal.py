"""Compute-optimal N and D of a fit: those of the lowest predicted loss at C = 6·N·D FLOPs.

For a law whose loss is a·N^−α + b·D^−β plus terms without N and D (`Law.trade`), N* = (αa/βb)^(1/(α+β))·(C/6)^ω and
D* = C/(6N*), with ω = β/(α+β): Hoffmann et al. 2022, eq. 4.
"""

from collections.abc import Mapping
from types import SimpleNamespace
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike

from analysis.estimation.quantities import Derived
from analysis.laws.law import Predict
from analysis.uncertainty.fitted import FittedLaw
from mscale.errors import MscaleError
from mscale.scales import training_flops

UNIQUE_TOKENS = ("U", "U_t")  # variables for unique tokens: equal to D (nothing repeats) unless given


def compute_optimal(
    fit: FittedLaw, C: ArrayLike, level: float | None, at: Mapping[str, float]
) -> pd.DataFrame:
    """A row for each level of the fit and each C, with columns C, N, D, loss and in_range.

    Args:
      C: FLOPs, a number or several. at: values of the law's other variables.
      level: of intervals, added as N_low, N_high, D_low and D_high (None: no intervals).

    Raises:
      MscaleError: the law has no N and D to trade, C is not positive, or a variable is unknown or missing.
    """
    n_name, d_name, trade = _trade(fit)
    budgets = np.atleast_1d(np.asarray(C, float))
    if not (np.isfinite(budgets) & (budgets > 0)).all():
        raise MscaleError("compute_optimal: C must be positive, in FLOPs")
    law, at = fit.law, {name: float(value) for name, value in at.items()}
    for name in at:
        if name not in law.columns or name in (n_name, d_name):
            raise MscaleError(
                f"compute_optimal: {name}= is not a variable to set; law {law.name!r} has {', '.join(law.columns)}"
            )
    required = [
        v for v in law.columns if v not in (n_name, d_name, *UNIQUE_TOKENS) and v not in law.may_be_zero
    ]
    if missing := [name for name in required if name not in at]:
        raise MscaleError(f"compute_optimal: give {', '.join(f'{name}=' for name in missing)} too")
    others = {v: at.get(v, 0.0) for v in law.columns if v not in (n_name, d_name)}

    def log_size(p: Any, x: Any) -> Any:
        a, alpha, b, beta = trade(p, SimpleNamespace(**others))
        return (np.log(alpha * a) - np.log(beta * b) + beta * np.log(x.C / training_flops(1, 1))) / (
            alpha + beta
        )

    fitted_n, fitted_d = fit.problem.x[n_name], fit.problem.x[d_name]
    frames = []
    for cell, name in enumerate(fit.levels):
        quantity = Derived(cell, log_size, {"C": budgets}, len(budgets))
        estimate, low, high = fit.ends([quantity], level)
        N = np.exp(estimate)
        D = budgets / training_flops(N, 1)
        x = {v: np.full(len(N), value) for v, value in others.items()} | {n_name: N, d_name: D}
        x |= {v: D for v in UNIQUE_TOKENS if v in x and v not in at}
        frame = pd.DataFrame({fit.per: name} if fit.per else {}, index=range(len(N)))
        frame = frame.assign(C=budgets, N=N, D=D, loss=fit.evaluate(fit.theta[None], cell, x)[0])
        if level is not None:
            frame = frame.assign(N_low=np.exp(low), N_high=np.exp(high))
            with np.errstate(divide="ignore"):
                frame = frame.assign(
                    D_low=budgets / training_flops(np.exp(high), 1),
                    D_high=budgets / training_flops(np.exp(low), 1),
                )
        frame["in_range"] = (
            (fitted_n.min() <= N) & (fitted_n.max() >= N) & (fitted_d.min() <= D) & (fitted_d.max() >= D)
        )
        frames.append(frame)
    return pd.concat(frames, ignore_index=True)


def compute_optimal_exponent(fit: FittedLaw, level: float) -> pd.DataFrame:
    """ω of N* ∝ C^ω, a row for each level of the fit: estimate, low, high."""
    _trade(fit)
    return fit.interval_of(omega, level)


def omega(p: Any) -> Any:
    """ω = β/(α+β), of the parameters of a law."""
    return p.beta / (p.alpha + p.beta)


def _trade(fit: FittedLaw) -> tuple[str, str, Predict]:
    """The law's variables N and D, and its `trade`; raises MscaleError where it has none."""
    if fit.law.optimum is None or fit.law.trade is None:
        raise MscaleError(
            f"law {fit.law.name!r} has no N and D to trade at a fixed compute; declare optimum= and trade= in the law"
        )
    return (*fit.law.optimum, fit.law.trade)
