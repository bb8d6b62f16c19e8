"""The mixture, size and tokens that minimise the loss of some languages under compute and data limits.

The losses are those of fitted ATLAS laws, L_t = E + A/N^α + B/D_eff^β with D_eff = Σ_i τ_ti·S(D_i; U_i): data that
repeat saturate. Rates are a softmax of free numbers, so the descent stays on the simplex; N is free along C = 6·N·D.
The loss is averaged over draws of the laws, so that no τ is chosen for having been overestimated.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from scipy.optimize import minimize

from analysis.fitting.result import Fit
from analysis.laws.atlas import FLOOR
from mscale.errors import MscaleError, nearest
from mscale.sampling import temperature, unimax

# How sharp the smooth maximum is that stands for the worst loss: rounds of growing sharpness, per nat.
SHARPNESS = (50.0, 500.0)
LOGIT = 14.0  # rates lie within e^∓14 of each other: less than a millionth is none


@dataclass(frozen=True)
class Laws:
    """R draws of the ATLAS laws of T targets over L languages; the first draw is the estimate.

    Attributes:
      E, A, B, alpha, beta, lambda_: (R, T). tau: (R, T, L), 1 for a target's own. unique: (L,) tokens that there
      are of each language, infinite where no limit is known.
    """

    targets: tuple[str, ...]
    sources: tuple[str, ...]
    E: np.ndarray
    A: np.ndarray
    B: np.ndarray
    alpha: np.ndarray
    beta: np.ndarray
    lambda_: np.ndarray
    tau: np.ndarray
    unique: np.ndarray

    def at(self, which: slice) -> "Laws":
        """Some of the draws."""
        fields = ("E", "A", "B", "alpha", "beta", "lambda_", "tau")
        chosen = {name: getattr(self, name)[which] for name in fields}
        return Laws(self.targets, self.sources, **chosen, unique=self.unique)

    def loss(self, rates: np.ndarray, params: float, tokens: float) -> np.ndarray:
        """(R, T) at sampling rates (L,); NaN where a law has nothing to say (D_eff at its floor)."""
        effective, own, _ = self._effective(rates, tokens)
        value = self._loss(np.maximum(effective, FLOOR * own), params)
        return np.where(effective > FLOOR * own, value, np.nan)

    def loss_and_slope(self, rates: np.ndarray, params: float, tokens: float) -> tuple[np.ndarray, ...]:
        """Loss (R, T), its slope in the rates (R, T, L), and in log N along C = 6·N·D (R, T)."""
        effective, own, marginal = self._effective(rates, tokens)
        floored = effective <= FLOOR * own
        # At the floor only the target's own data move the loss; without any of them it has no end.
        mine = np.array([[name == source for source in self.sources] for name in self.targets])
        slope = np.where(floored[..., None], FLOOR * marginal * mine, marginal * self.tau)
        effective = np.maximum(np.maximum(effective, FLOOR * own), 1e-3)
        worth = -self.beta * self.B * effective ** (-self.beta - 1)
        in_rates = worth[..., None] * slope * tokens
        size = -self.alpha * self.A * params**-self.alpha
        return self._loss(effective, params), in_rates, size - (in_rates * rates).sum(axis=-1)

    def _loss(self, effective: np.ndarray, params: float) -> np.ndarray:
        with np.errstate(divide="ignore"):
            return self.E + self.A * params**-self.alpha + self.B * effective**-self.beta

    def _effective(self, rates: np.ndarray, tokens: float) -> tuple[np.ndarray, ...]:
        """D_eff and S of the target's own data (R, T), and dS/dD of each language's (R, T, L)."""
        seen = tokens * rates
        lambda_ = self.lambda_[..., None]
        repeats = np.maximum(seen / self.unique - 1.0, 0.0)
        faded = np.exp(-lambda_ * repeats)
        again = np.where(repeats > 0, -np.expm1(-lambda_ * repeats) / lambda_, 0.0)
        whole = np.minimum(seen, self.unique)
        # 0·inf where there is no limit: nothing is seen again there.
        saturated = whole + np.where(
            again > 0, again * np.where(np.isfinite(self.unique), self.unique, 0.0), 0.0
        )
        own = np.stack(
            [saturated[:, t, self.sources.index(name)] for t, name in enumerate(self.targets)], axis=1
        )
        return (self.tau * saturated).sum(axis=-1), own, np.where(repeats > 0, faded, 1.0)


@dataclass(frozen=True)
class Allocation:
    """Rates (L,), N, D and the minimised loss (mean over draws)."""

    rates: np.ndarray
    params: float
    tokens: float
    value: float


def laws_of(
    fit: Fit, theta: np.ndarray, targets: Sequence[str], unique: Mapping[str, float] | None = None
) -> Laws:
    """The laws of ``targets`` at draws theta (R, P) of a fitted ATLAS law.

    Args:
      unique: tokens that there are of each language; no limit where it is not named.

    Raises:
      MscaleError: the fit is of another law, or has none of a target.
    """
    if fit.law.name != "atlas":
        raise MscaleError(f"a mixture needs a fitted ATLAS law, this fit is of {fit.law.name!r}")
    for name in targets:
        if name not in fit.levels:
            raise MscaleError(
                f"mixture: no ATLAS law of {name!r}{nearest(name, fit.levels)}; fitted: {', '.join(fit.levels)}"
            )
    values = dict(zip(fit.params.index, fit.natural(theta).T, strict=True))
    named: Mapping[str, Sequence[str]] = fit.spec["options"].get("sources") or {}
    sources = tuple(sorted({*fit.levels, *(name for found in named.values() for name in found)}))
    ones = np.ones(len(theta))

    def get(name: str, target: str, otherwise: float | None = None) -> np.ndarray:
        found = values.get(f"{name}[{target}]", values.get(name))
        if found is None and name in fit.spec["fixed"]:
            found = ones * fit.spec["fixed"][name]
        if found is None and otherwise is not None:
            return ones * otherwise
        if found is None:
            raise MscaleError(f"mixture: the ATLAS law of {target!r} has no {name}; fit it again")
        return found

    def worth(target: str, source: str) -> np.ndarray:
        if target == source:
            return ones
        found = values.get(f"tau[{target},{source}]")
        return found if found is not None else get("tau_other", target, 0.0)

    def table(name: str, otherwise: float | None = None) -> np.ndarray:
        return np.stack([get(name, target, otherwise) for target in targets], axis=1)

    return Laws(
        tuple(targets),
        sources,
        table("E"),
        table("A"),
        table("B"),
        table("alpha"),
        table("beta"),
        # Without a repeated run λ is held out of the fit; data then count once, which a large λ says.
        table("lambda", 1e3),
        np.stack([np.stack([worth(t, s) for s in sources], axis=1) for t in targets], axis=1),
        np.array([float((unique or {}).get(name, np.inf)) for name in sources]),
    )


def objective(losses: np.ndarray, weights: np.ndarray, worst: bool) -> np.ndarray:
    """(R,): the weighted mean over targets of losses (R, T), or the worst one."""
    return losses.max(axis=1) if worst else losses @ weights / weights.sum()


def best_allocation(
    laws: Laws,
    flops: float,
    weights: np.ndarray,
    *,
    worst: bool = False,
    params: float | None = None,
    rates: np.ndarray | None = None,
    near: Allocation | None = None,
    starts: int = 4,
    seed: int = 0,
) -> Allocation:
    """The rates and N that minimise the weighted (or the worst) loss at C = 6·N·D FLOPs.

    Args:
      params, rates: given ones are held (N; the mixture). near: where to start from, in place of several starts.
    """
    L = len(laws.sources)
    weights = np.asarray(weights, dtype=float) / np.sum(weights)
    middle = 0.5 * np.log(flops / 6 / 20)
    bounds = (np.log(1e2), np.log(flops / 6e2))

    def value(theta: np.ndarray, sharpness: float | None) -> tuple[float, np.ndarray]:
        p = _softmax(theta[:L]) if rates is None else rates
        log_n = theta[L] if params is None else np.log(params)
        n = float(np.exp(log_n))
        losses, in_rates, in_size = laws.loss_and_slope(p, n, flops / 6 / n)
        if sharpness is None:
            share = np.broadcast_to(weights, losses.shape)
            total = float(np.mean(losses @ weights))
        else:
            top = losses.max(axis=1, keepdims=True)
            share = np.exp(sharpness * (losses - top))
            total = float(np.mean(np.log(share.sum(1)) / sharpness + top[:, 0]))
            share = share / share.sum(axis=1, keepdims=True)
        slope = np.einsum("rt,rtl->l", share, in_rates) / len(losses)
        in_theta = p * (slope - p @ slope) if rates is None else np.zeros(L)
        size = float(np.einsum("rt,rt->", share, in_size)) / len(losses) if params is None else 0.0
        return total, np.append(in_theta, size)

    rng = np.random.default_rng(seed)
    wanted = np.array([name in laws.targets for name in laws.sources])
    best = None
    for index in range(1 if rates is not None or near is not None else starts):
        logits = np.where(wanted, 0.0, -2.0) if index == 0 else rng.normal(0, 1.5, L)
        size = middle + (0 if index == 0 else rng.normal())
        if near is not None:
            logits, size = np.log(np.maximum(near.rates, 1e-4)), np.log(near.params)
        theta = np.append(logits, np.clip(size, *bounds))
        for sharpness in SHARPNESS if worst else (None,):
            found = minimize(
                value,
                theta,
                args=(sharpness,),
                jac=True,
                method="L-BFGS-B",
                bounds=[(-LOGIT, LOGIT)] * L + [bounds],
                options={"maxiter": 150, "ftol": 1e-10, "gtol": 1e-8},
            )
            theta = found.x
        if best is None or found.fun < best.fun:
            best = found
    assert best is not None
    chosen = _softmax(best.x[:L]) if rates is None else rates
    n = float(np.exp(best.x[L])) if params is None else params
    losses = laws.loss_and_slope(chosen, n, flops / 6 / n)[0]
    return Allocation(chosen, n, flops / 6 / n, float(np.mean(objective(losses, weights, worst))))


def _softmax(theta: np.ndarray) -> np.ndarray:
    shifted = np.exp(theta - theta.max())
    return shifted / shifted.sum()


def rivals(laws: Laws, tokens: float) -> dict[str, np.ndarray]:
    """Rates (L,) that people choose without a law: uniform, temperature and UniMax over the targets.

    Temperature and UniMax need to know how much there is of each target; without that they are left out.
    """
    wanted = np.array([name in laws.targets for name in laws.sources])
    made = {"uniform over the targets": wanted / wanted.sum()}
    made["uniform over all languages"] = np.full(len(wanted), 1 / len(wanted))
    sizes = np.where(wanted, laws.unique, 0.0)
    if np.isfinite(sizes).all() and sizes.sum() > 0:
        made["proportional"] = temperature(sizes, 1.0)
        made["temperature 3.3"] = temperature(sizes, 10 / 3)
        made["UniMax"] = unimax(sizes, tokens, 4.0)
    if wanted.all():
        del made["uniform over all languages"]
    return made
