"""Optimal allocation: the mixture, size and tokens that minimise the loss of some languages at a compute budget.

The losses are those of fitted ATLAS laws, L_t = E + A/N^α + B/D_eff^β with D_eff = Σ_i τ_ti·S(D_i; U_i), where S
saturates as data repeat. The sampling rates are the softmax of logits, and N varies along C = 6·N·D; both are found by
L-BFGS-B. The loss is averaged over posterior draws of the laws: the minimum for point estimates would favour sources
whose τ happens to be overestimated.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from scipy.optimize import minimize

from analysis.fitting.result import Fit
from analysis.laws.atlas import EFFECTIVE_DATA_FLOOR
from mscale.errors import MscaleError, nearest
from mscale.sampling import temperature, unimax
from mscale.scales import training_flops

# Successive sharpness (per nat) of the log-sum-exp that replaces the maximum over targets.
_SHARPNESS = (50.0, 500.0)
_MAX_LOGIT = 14.0  # bound of the logits: rates differ by at most a factor of e²⁸


@dataclass(frozen=True)
class LawDraws:
    """R draws of the ATLAS laws of T targets with data of L languages; the first draw is the estimate.

    Attributes:
      E, A, B, alpha, beta, lambda_: (R, T). tau: (R, T, L), 1 for the target itself.
      unique: (L,) unique tokens of each language, infinite where no limit is known.
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

    def select(self, which: slice) -> "LawDraws":
        """A subset of the draws."""
        fields = ("E", "A", "B", "alpha", "beta", "lambda_", "tau")
        chosen = {name: getattr(self, name)[which] for name in fields}
        return LawDraws(self.targets, self.sources, **chosen, unique=self.unique)

    def loss(self, rates: np.ndarray, params: float, tokens: float) -> np.ndarray:
        """Losses (R, T) at sampling rates (L,); NaN where D_eff is at its floor, below which the law is not defined."""
        effective, own, _ = self._effective(rates, tokens)
        value = self._loss(np.maximum(effective, EFFECTIVE_DATA_FLOOR * own), params)
        return np.where(effective > EFFECTIVE_DATA_FLOOR * own, value, np.nan)

    def loss_and_slope(self, rates: np.ndarray, params: float, tokens: float) -> tuple[np.ndarray, ...]:
        """Loss (R, T), its derivatives by the rates (R, T, L), and by log N along C = 6·N·D (R, T)."""
        effective, own, marginal = self._effective(rates, tokens)
        floored = effective <= EFFECTIVE_DATA_FLOOR * own
        # At the floor D_eff depends on the target's own data only; 1e-3 avoids an infinite loss without any.
        is_target = np.array([[name == source for source in self.sources] for name in self.targets])
        slope = np.where(floored[..., None], EFFECTIVE_DATA_FLOOR * marginal * is_target, marginal * self.tau)
        effective = np.maximum(np.maximum(effective, EFFECTIVE_DATA_FLOOR * own), 1e-3)
        by_effective = -self.beta * self.B * effective ** (-self.beta - 1)
        in_rates = by_effective[..., None] * slope * tokens
        size = -self.alpha * self.A * params**-self.alpha
        return self._loss(effective, params), in_rates, size - (in_rates * rates).sum(axis=-1)

    def _loss(self, effective: np.ndarray, params: float) -> np.ndarray:
        with np.errstate(divide="ignore"):
            return self.E + self.A * params**-self.alpha + self.B * effective**-self.beta

    def _effective(self, rates: np.ndarray, tokens: float) -> tuple[np.ndarray, ...]:
        """D_eff and S of the target's own data (R, T), and dS/dD of each language (R, T, L)."""
        seen = tokens * rates
        lambda_ = self.lambda_[..., None]
        repeats = np.maximum(seen / self.unique - 1.0, 0.0)
        marginal = np.exp(-lambda_ * repeats)
        repeated = np.where(repeats > 0, -np.expm1(-lambda_ * repeats) / lambda_, 0.0)
        whole = np.minimum(seen, self.unique)
        # Without a limit nothing is repeated; the inner `where` avoids 0·∞.
        saturated = whole + np.where(
            repeated > 0, repeated * np.where(np.isfinite(self.unique), self.unique, 0.0), 0.0
        )
        own = np.stack(
            [saturated[:, t, self.sources.index(name)] for t, name in enumerate(self.targets)], axis=1
        )
        return (self.tau * saturated).sum(axis=-1), own, np.where(repeats > 0, marginal, 1.0)


@dataclass(frozen=True)
class Allocation:
    """Sampling rates (L,), N, D, and the minimised loss (mean over draws)."""

    rates: np.ndarray
    params: float
    tokens: float
    value: float


def law_draws(
    fit: Fit, theta: np.ndarray, targets: Sequence[str], unique: Mapping[str, float] | None = None
) -> LawDraws:
    """The laws of `targets` at draws theta (R, P) of the parameters of a fitted ATLAS law.

    Args:
      unique: unique tokens of each language; a language that is not named has no limit.

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
    ones = np.ones(len(theta))
    values = {name: ones * value for name, value in fit.spec.fixed.items()}
    values |= dict(zip(fit.params.index, fit.natural(theta).T, strict=True))
    own_sources: Mapping[str, Sequence[str]] = fit.spec.options.get("sources") or {}
    sources = tuple(sorted({*fit.levels, *(name for found in own_sources.values() for name in found)}))

    def get(name: str, target: str, otherwise: float | None = None) -> np.ndarray:
        found = values.get(f"{name}[{target}]", values.get(name))
        if found is not None:
            return found
        if otherwise is None:
            raise MscaleError(f"mixture: the ATLAS law of {target!r} has no {name}; fit it again")
        return ones * otherwise

    def tau(target: str, source: str) -> np.ndarray:
        if target == source:
            return ones
        found = values.get(f"tau[{target},{source}]")
        return found if found is not None else get("tau_other", target, 0.0)

    def table(name: str, otherwise: float | None = None) -> np.ndarray:
        return np.stack([get(name, target, otherwise) for target in targets], axis=1)

    return LawDraws(
        tuple(targets),
        sources,
        table("E"),
        table("A"),
        table("B"),
        table("alpha"),
        table("beta"),
        # Without repeated data the fit has no λ. A large λ then means that repeated tokens add nothing.
        table("lambda", 1e3),
        np.stack([np.stack([tau(t, s) for s in sources], axis=1) for t in targets], axis=1),
        np.array([float((unique or {}).get(name, np.inf)) for name in sources]),
    )


@dataclass(frozen=True)
class Objective:
    """What is minimised: the mean of the targets' losses by weights (T,), or with `worst` the largest of them."""

    weights: np.ndarray
    worst: bool = False

    def of(self, losses: np.ndarray) -> np.ndarray:
        """The objective (R,) of losses (R, T)."""
        return losses.max(axis=1) if self.worst else losses @ self.weights / self.weights.sum()


def best_allocation(
    laws: LawDraws,
    flops: float,
    objective: Objective,
    *,
    params: float | None = None,
    rates: np.ndarray | None = None,
    near: Allocation | None = None,
    starts: int = 4,
    seed: int = 0,
) -> Allocation:
    """The sampling rates and N that minimise the objective at C = 6·N·D FLOPs.

    Args:
      params, rates: fix N or the sampling rates (L,).
      near: where to start the search, in place of `starts` random starts.
    """
    L = len(laws.sources)
    weights = np.asarray(objective.weights, dtype=float) / np.sum(objective.weights)
    middle = 0.5 * np.log(flops / training_flops(1, 20))
    bounds = (np.log(1e2), np.log(flops / training_flops(1, 1e2)))

    def value(theta: np.ndarray, sharpness: float | None) -> tuple[float, np.ndarray]:
        p = _softmax(theta[:L]) if rates is None else rates
        log_n = theta[L] if params is None else np.log(params)
        n = float(np.exp(log_n))
        losses, in_rates, in_size = laws.loss_and_slope(p, n, flops / training_flops(n, 1))
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
    is_target = np.array([name in laws.targets for name in laws.sources])
    best = None
    for index in range(1 if rates is not None or near is not None else starts):
        logits = np.where(is_target, 0.0, -2.0) if index == 0 else rng.normal(0, 1.5, L)
        size = middle + (0 if index == 0 else rng.normal())
        if near is not None:
            logits, size = np.log(np.maximum(near.rates, 1e-4)), np.log(near.params)
        theta = np.append(logits, np.clip(size, *bounds))
        for sharpness in _SHARPNESS if objective.worst else (None,):
            found = minimize(
                value,
                theta,
                args=(sharpness,),
                jac=True,
                method="L-BFGS-B",
                bounds=[(-_MAX_LOGIT, _MAX_LOGIT)] * L + [bounds],
                options={"maxiter": 150, "ftol": 1e-10, "gtol": 1e-8},
            )
            theta = found.x
        if best is None or found.fun < best.fun:
            best = found
    assert best is not None
    chosen = _softmax(best.x[:L]) if rates is None else rates
    n = float(np.exp(best.x[L])) if params is None else params
    losses = laws.loss_and_slope(chosen, n, flops / training_flops(n, 1))[0]
    return Allocation(
        chosen,
        n,
        flops / training_flops(n, 1),
        float(np.mean(Objective(weights, objective.worst).of(losses))),
    )


def _softmax(theta: np.ndarray) -> np.ndarray:
    shifted = np.exp(theta - theta.max())
    return shifted / shifted.sum()


def baseline_mixtures(laws: LawDraws, tokens: float) -> dict[str, np.ndarray]:
    """Sampling rates (L,) of the usual heuristics by name: uniform, proportional, temperature and UniMax.

    Those that depend on the amount of data are left out where it is not known for each target.
    """
    is_target = np.array([name in laws.targets for name in laws.sources])
    mixtures = {"uniform over the targets": is_target / is_target.sum()}
    mixtures["uniform over all languages"] = np.full(len(is_target), 1 / len(is_target))
    sizes = np.where(is_target, laws.unique, 0.0)
    if np.isfinite(sizes).all() and sizes.sum() > 0:
        mixtures["proportional"] = temperature(sizes, 1.0)
        mixtures["temperature 3.3"] = temperature(sizes, 10 / 3)
        mixtures["UniMax"] = unimax(sizes, tokens, 4.0)
    if is_target.all():
        del mixtures["uniform over all languages"]
    return mixtures
