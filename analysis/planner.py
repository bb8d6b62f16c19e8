"""Decisions from a study's results (`answers.analyse`) or from the published figures, each with its interval.

Where both can answer, the study does. The published figures carry no intervals, and the answers say so. What
neither supports is refused with the fit that is missing.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy.optimize import minimize

from analysis import capacity, crossover, reference
from analysis.transfer import effective_transfer
from analysis.transfer_findings import main_matrix
from analysis.wording import count, signed, span
from mscale.errors import MscaleError, nearest

PUBLISHED = "published (Longpre et al. 2026; interval not published)"
STUDY = "this study"
# The published runs reach from 9M to 8B parameters; a decade beyond is flagged, more is refused.
PUBLISHED_PARAMS = (9e6, 8e9)


@dataclass(frozen=True)
class Answer:
    """A decision: what to do, the rows behind it, where they are from, and the reasons for and against it."""

    text: str
    rows: tuple[dict, ...]
    basis: str
    reasons: tuple[str, ...] = ()


def languages(target: str, results: Mapping[str, Any] | None = None) -> Answer:
    """Sources to train together with ``target``, best first: score, interval, and the worth τ of a token.

    Raises:
      MscaleError: neither the study nor the paper has a score for the target.
    """
    rows = []
    measured = main_matrix(dict(results)) if results else []
    for row in measured:
        if row["target"] == target and row["status"] == "measured":
            keep = {name: row[name] for name in ("source", "score", "low", "high", "tau")}
            rows.append({**keep, "basis": STUDY})
    known = {row["source"] for row in rows}
    paper = reference.published_transfer()
    alias = reference.ALIASES.get(target, target)
    for entry in paper[paper["target"] == alias].dropna().to_dict("records"):
        if entry["source"] not in known:
            tau = float(effective_transfer(entry["score"]))
            keep = {"source": entry["source"], "score": entry["score"], "low": None, "high": None, "tau": tau}
            rows.append({**keep, "basis": PUBLISHED})
    if not rows:
        names = sorted({row["target"] for row in measured} | set(paper["target"]))
        raise MscaleError(
            f"no transfer score for {target!r}{nearest(target, names)}: neither the study nor the paper "
            "(38 languages) "
            "measured it; run it alone and in 50/50 pairs with the candidates"
        )
    rows.sort(key=lambda row: (row["basis"] != STUDY, -row["score"]))
    best = rows[0]
    helps = best["score"] > 0 if best["low"] is None else best["low"] > 0
    worth = f"a token of {best['source']} is worth {best['tau']:.2f} tokens of {target}"
    interval = f" ({span(best['low'], best['high'])})" if best["basis"] == STUDY else ""
    text = (
        f"Train {target} with {best['source']}: score {signed(best['score'])}{interval}; {worth}."
        if helps
        else f"No source is known to help {target}; the best is {best['source']}, {signed(best['score'])}{interval}."
    )
    reasons = [
        "scores do not add: two sources together may give less than either promises",
        f"scores are from {best['basis']} and drift with size and budget",
    ]
    return Answer(text, tuple(rows), best["basis"], tuple(reasons))


def expand(
    k_from: float, k_to: float, params: float, tokens: float, results: Mapping[str, Any] | None = None
) -> Answer:
    """Parameters, tokens (of all languages) and compute that keep the loss when K grows.

    Raises:
      MscaleError: numbers that are not positive.
    """
    if not (k_from > 0 and k_to > 0 and params > 0 and tokens > 0):
        raise MscaleError("expand: languages, parameters and tokens must be positive")
    ratio = k_to / k_from
    answer = results["capacity"] if results else None
    reasons = ["assumes uniform sampling and a compute-optimal start"]
    if answer and answer["identified"]:
        values = {row["name"]: row for row in results["laws"]["capacity"]["parameters"]}  # type: ignore[index]
        growth = capacity.growth(
            ratio, *(values[name]["estimate"] for name in ("phi", "psi", "alpha", "beta"))
        )
        basis = STUDY
        low, high = results_range(results or {})
        if not low / 10 <= params <= high * 10:
            reasons.append(
                f"{count(params)} parameters are far from the study's {count(low)} to {count(high)}"
            )
    else:
        growth, basis = capacity.published_growth(ratio), PUBLISHED
        if answer:
            reasons.append(f"the study's own growth is not identified: {answer['reason']}")
        _check_published(params, reasons)
    row = {
        "parameters": params * growth.N,
        "tokens": tokens * growth.D_tot,
        "flops": 6 * params * tokens * growth.C,
        "times_parameters": growth.N,
        "times_tokens": growth.D_tot,
        "times_flops": growth.C,
    }
    text = (
        f"From {k_from:g} to {k_to:g} languages at the same loss: {count(row['parameters'])} parameters "
        f"(×{growth.N:.2f}), "
        f"{count(row['tokens'])} tokens (×{growth.D_tot:.2f}), {count(row['flops'])} FLOPs "
        f"(×{growth.C:.2f}); {basis}."
    )
    return Answer(text, (row,), basis, tuple(reasons))


def start(target: str, params: float, tokens: float, results: Mapping[str, Any] | None = None) -> Answer:
    """From scratch or from a multilingual checkpoint, for so many tokens of ``target`` at N ``params``.

    Raises:
      MscaleError: a size too far from any that was measured.
    """
    if not (params > 0 and tokens > 0):
        raise MscaleError("start: parameters and tokens must be positive")
    mine = [
        row
        for row in (results["crossover"]["table"] if results else [])
        if row["language"] == target and row["status"] != "missing" and 0.5 <= row["params"] / params <= 2
    ]
    if mine:
        row = min(mine, key=lambda row: abs(np.log(row["params"] / params)))
        low, high = row["low"] or 0.0, row["high"] or np.inf
        if row["status"] == "bound":
            low, high = (row["tokens"], np.inf) if row["bound"] == "at least" else (0.0, row["tokens"])
        close = low < tokens < high
        what = "too close to call" if close else "from scratch" if tokens >= high else "from the checkpoint"
        text = (
            f"{target} at {count(params)} parameters and {count(tokens)} tokens: {what}. The crossover lies "
            f"{span(low or None, high if np.isfinite(high) else None, count)} tokens."
        )
        return Answer(text, (dict(row),), STUDY, ("one multilingual checkpoint was continued",))
    reasons: list[str] = []
    _check_published(params, reasons)
    law = float(crossover.PUBLISHED.tokens(params))
    other = float(crossover.PUBLISHED_LEGEND.tokens(params))
    table = reference.published_crossovers().set_index("language")["tokens"].astype(float)
    name = reference.ALIASES.get(target, target)
    if name in table.index:
        factor = float(table[name]) / float(crossover.PUBLISHED.tokens(2e9))
        law, other = law * factor, other * factor
        reasons.append(f"{target} itself crosses at {count(float(table[name]))} tokens at 2B parameters")
    else:
        low, high = float(table.min()), float(table.max())
        reasons.append(
            f"{target} is none of the eight published languages, which cross from {count(low)} to {count(high)}"
        )
    reasons.append(
        "the paper prints two sets of constants; the text's are used, the legend's give the second figure"
    )
    ends = sorted((law, other))
    closeness = tokens / law
    close = 0.5 < closeness < 2
    what = "too close to call" if close else "from scratch" if closeness >= 2 else "from the checkpoint"
    text = (
        f"{target} at {count(params)} parameters and {count(tokens)} tokens: {what}; the crossover is at about "
        f"{count(law)} tokens ({count(ends[0])} to {count(ends[1])} by the paper's two sets of constants)."
    )
    row = {"crossover_tokens": law, "other_constants": other, "tokens_over_crossover": closeness}
    return Answer(text, (row,), PUBLISHED, tuple(reasons))


@dataclass(frozen=True)
class Laws:
    """ATLAS laws of T languages over the same L languages: E, A, B (T,), α, β, and τ (T, L), τ_tt = 1."""

    targets: tuple[str, ...]
    sources: tuple[str, ...]
    E: np.ndarray
    A: np.ndarray
    B: np.ndarray
    alpha: float
    beta: float
    tau: np.ndarray

    def loss(self, rates: np.ndarray, params: float, tokens: float) -> np.ndarray:
        """Loss (T,) at sampling rates (L,); NaN where the law has nothing to say (D_eff ≤ 0.01·D_t)."""
        effective = tokens * (self.tau @ rates)
        own = tokens * rates[[self.sources.index(name) for name in self.targets]]
        bad = (effective <= 0.01 * own) | (effective <= 0)
        data = self.B * np.where(bad, np.nan, effective) ** -self.beta
        return self.E + self.A * params**-self.alpha + data


def atlas_laws(results: Mapping[str, Any], targets: Sequence[str]) -> Laws:
    """The fitted ATLAS laws of ``targets`` from results.

    Raises:
      MscaleError: the law was not fitted, or not for one of the targets.
    """
    law = results["laws"]["atlas"]
    if not law["fitted"]:
        raise MscaleError(f"mixture: the ATLAS law is not fitted ({law['reason']})")
    values = {row["name"]: row["estimate"] for row in law["parameters"]}
    sources = tuple(results["study"]["trained_languages"])
    for name in targets:
        if f"E[{name}]" not in values and not ("E" in values and len(sources) == 1):
            raise MscaleError(
                f"mixture: no ATLAS law of {name!r}{nearest(name, sources)}; fitted: {', '.join(sources)}"
            )

    def get(name: str, target: str) -> float:
        return float(values.get(f"{name}[{target}]", values.get(name, np.nan)))

    tau = np.array(
        [
            [
                1.0
                if source == target
                else values.get(
                    f"tau[{target},{source}]",
                    values.get(f"tau_other[{target}]", values.get("tau_other", 0.0)),
                )
                for source in sources
            ]
            for target in targets
        ],
        dtype=float,
    )
    E, A, B = (np.array([get(name, target) for target in targets]) for name in ("E", "A", "B"))
    return Laws(tuple(targets), sources, E, A, B, float(values["alpha"]), float(values["beta"]), tau)


def best_mixture(
    laws: Laws, flops: float, weights: np.ndarray, *, worst: bool = False, starts: int = 6, seed: int = 0
) -> tuple[np.ndarray, float, float]:
    """Rates (L,), N and the objective that minimise the weighted (or the worst) loss at C = 6·N·D FLOPs.

    By gradient on the simplex (rates are a softmax) and log N together, from several starts. Data are taken as
    never repeated.
    """
    L = len(laws.sources)
    weights = np.asarray(weights, dtype=float) / np.sum(weights)
    middle = 0.5 * np.log(flops / 6 / 20)

    def objective(theta: np.ndarray) -> float:
        rates, n = _softmax(theta[:L]), float(np.exp(theta[L]))
        losses = laws.loss(rates, n, flops / 6 / n)
        if not np.isfinite(losses).all():
            return 1e6
        # The worst loss as a smooth maximum, sharp to 1/500 nat.
        return (
            float(np.log(np.exp(500 * (losses - losses.max())).sum()) / 500 + losses.max())
            if worst
            else float(weights @ losses)
        )

    rng = np.random.default_rng(seed)
    best = None
    for index in range(starts):
        theta = np.append(
            rng.normal(0, 0 if index == 0 else 1.5, L), middle + (0 if index == 0 else rng.normal())
        )
        bounds = [(-14.0, 14.0)] * L + [(np.log(1e2), np.log(flops / 6e2))]
        found = minimize(
            objective, theta, method="L-BFGS-B", bounds=bounds, options={"maxiter": 2000, "maxfun": 60_000}
        )
        if best is None or found.fun < best.fun:
            best = found
    assert best is not None
    return _softmax(best.x[:L]), float(np.exp(best.x[L])), float(best.fun)


def mixture(
    targets: Sequence[str],
    flops: float,
    results: Mapping[str, Any],
    *,
    weights: Sequence[float] | None = None,
    worst: bool = False,
) -> Answer:
    """The mixture, size and tokens that minimise the targets' loss at a compute budget, beside uniform sampling.

    Raises:
      MscaleError: no fitted ATLAS law, or weights that do not match the targets.
    """
    if weights is not None and (len(weights) != len(targets) or min(weights) < 0 or sum(weights) <= 0):
        raise MscaleError(
            f"mixture: {len(targets)} targets need as many weights, none negative, not all zero"
        )
    if not flops > 0:
        raise MscaleError("mixture: FLOPs must be positive")
    laws = atlas_laws(results, targets)
    shares = np.ones(len(targets)) if weights is None else np.asarray(weights, dtype=float)
    rates, params, value = best_mixture(laws, flops, shares, worst=worst)
    tokens = flops / 6 / params
    uniform = np.isin(laws.sources, targets) / len(targets)
    plain = laws.loss(uniform, params, tokens)
    plain_value = float(plain.max() if worst else shares @ plain / shares.sum())
    rows = [
        {"language": name, "rate": float(rate), "tokens": float(rate * tokens)}
        for name, rate in sorted(zip(laws.sources, rates, strict=True), key=lambda item: -item[1])
        if rate > 1e-4
    ]
    shown = ", ".join(f"{row['language']} {row['rate']:.0%}" for row in rows[:6])
    what = "worst loss" if worst else "weighted loss"
    low, high = results_range(results)
    reasons = [f"uniform sampling of the targets at this size gives {plain_value:.4f} by the same laws"]
    if not low <= params <= high:
        reasons.append(
            f"{count(params)} parameters are outside the study's {count(low)} to {count(high)}: extrapolated"
        )
    text = f"Train {count(params)} parameters on {count(tokens)} tokens of {shown}: {what} {value:.4f}."
    return Answer(text, tuple(rows), STUDY, tuple(reasons))


def results_range(results: Mapping[str, Any]) -> tuple[float, float]:
    """The smallest and largest N of a study."""
    sizes = [scale["params"] for scale in results["study"]["scales"]]
    return float(min(sizes)), float(max(sizes))


def _softmax(theta: np.ndarray) -> np.ndarray:
    shifted = np.exp(theta - theta.max())
    return shifted / shifted.sum()


def _check_published(params: float, reasons: list[str]) -> None:
    low, high = PUBLISHED_PARAMS
    if not low / 10 <= params <= high * 10:
        raise MscaleError(
            f"{count(params)} parameters are more than tenfold outside the published runs ({count(low)} "
            f"to {count(high)}): "
            "the published figures support no answer; fit your own runs"
        )
    if not low <= params <= high:
        reasons.append(
            f"{count(params)} parameters are outside the published runs, {count(low)} to {count(high)}"
        )
