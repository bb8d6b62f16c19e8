"""The compute-optimal size and tokens that a fit implies: where C = 6·N·D FLOPs buy the lowest loss.

For a law whose loss is a·N^−α + b·D^−β plus what depends on neither (`Law.trade`), N* = (αa/βb)^(1/(α+β))·(C/6)^ω and
D* = C/(6N*), with ω = β/(α+β): Hoffmann et al. 2022, eq. 4.
"""

from collections.abc import Mapping
from types import SimpleNamespace
from typing import Any

import numpy as np
import pandas as pd

from analysis.estimation.quantities import Derived
from mscale.errors import MscaleError

UNIQUE = ("U", "U_t")  # unique tokens: as many as are trained on, unless given


def compute_optimal(fit: Any, C: Any, level: float | None, at: Mapping[str, float]) -> pd.DataFrame:
    """A row a level and budget: C, N, D, loss, in_range and (with level) N_low, N_high, D_low, D_high."""
    n_name, d_name = _traded(fit)
    budgets = np.atleast_1d(np.asarray(C, float))
    if not (np.isfinite(budgets) & (budgets > 0)).all():
        raise MscaleError("compute_optimal: C must be positive, in FLOPs")
    law, at = fit.law, {name: float(value) for name, value in at.items()}
    for name in at:
        if name not in law.columns or name in law.optimum:
            raise MscaleError(
                f"compute_optimal: {name}= is not a variable to set; law {law.name!r} has {', '.join(law.columns)}"
            )
    asked = [v for v in law.columns if v not in (n_name, d_name, *UNIQUE) and v not in law.may_be_zero]
    if missing := [name for name in asked if name not in at]:
        raise MscaleError(f"compute_optimal: give {', '.join(f'{name}=' for name in missing)} too")
    others = {v: at.get(v, 0.0) for v in law.columns if v not in (n_name, d_name)}

    def log_size(p: Any, x: Any) -> Any:
        a, alpha, b, beta = law.trade(p, SimpleNamespace(**others))
        return (np.log(alpha * a) - np.log(beta * b) + beta * np.log(x.C / 6)) / (alpha + beta)

    seen_n, seen_d = fit.problem.x[n_name], fit.problem.x[d_name]
    frames = []
    for cell, name in enumerate(fit.levels):
        quantity = Derived(cell, log_size, {"C": budgets}, len(budgets))
        estimate, low, high = fit.ends([quantity], level)
        N = np.exp(estimate)
        D = budgets / 6 / N
        x = {v: np.full(len(N), value) for v, value in others.items()} | {n_name: N, d_name: D}
        x |= {v: D for v in UNIQUE if v in x and v not in at}
        frame = pd.DataFrame({fit.per: name} if fit.per else {}, index=range(len(N)))
        frame = frame.assign(C=budgets, N=N, D=D, loss=fit.evaluate(fit.theta[None], cell, x)[0])
        if level is not None:
            frame = frame.assign(N_low=np.exp(low), N_high=np.exp(high))
            with np.errstate(divide="ignore"):
                frame = frame.assign(D_low=budgets / 6 / np.exp(high), D_high=budgets / 6 / np.exp(low))
        frame["in_range"] = (
            (seen_n.min() <= N) & (seen_n.max() >= N) & (seen_d.min() <= D) & (seen_d.max() >= D)
        )
        frames.append(frame)
    return pd.concat(frames, ignore_index=True)


def exponent(fit: Any, level: float) -> pd.DataFrame:
    """ω = β/(α+β) of N* ∝ C^ω, a row a level of the fit: estimate, low, high."""
    _traded(fit)
    return fit.interval_of(omega, level)


def omega(p: Any) -> Any:
    """The exponent itself, of the parameters of a law."""
    return p.beta / (p.alpha + p.beta)


def _traded(fit: Any) -> tuple[str, str]:
    if fit.law.optimum is None or fit.law.trade is None:
        raise MscaleError(
            f"law {fit.law.name!r} has no N and D to trade at a fixed compute; declare optimum= and trade= in the law"
        )
    return fit.law.optimum
