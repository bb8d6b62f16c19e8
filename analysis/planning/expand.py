"""Growth to more languages: the parameters, tokens and compute that keep the loss (`mscale plan expand`)."""

from typing import Any

import numpy as np

from analysis.laws import capacity
from analysis.laws.capacity import Growth, growth_from_ratios
from analysis.planning.answer import (
    BASIS_PUBLISHED,
    BASIS_STUDY,
    PUBLISHED_MAX_LANGUAGES,
    Answer,
    check_positive,
    check_published_range,
    check_study_range,
)
from analysis.study.results import Results, saved_fit
from analysis.tables import published
from analysis.text import count
from analysis.uncertainty.delta_method import delta_interval
from mscale.errors import MscaleError
from mscale.scales import training_flops


def published_growth(ratio: float) -> Growth:
    """The paper's growth at any ratio of languages, from its printed exponents (without intervals)."""
    printed = published.published_exponents()
    return growth_from_ratios(ratio, printed["size"], printed["data"] - 1)


def least_compute(
    results: Results, k_from: float, ratio: float, params: float, tokens: float
) -> dict[str, Any] | None:
    """Growth of N, D and C to the point of least compute that keeps the mean loss of the fitted languages.

    Args:
      k_from, params, tokens: languages, N and D (of all languages) at the start. ratio: languages after to before.

    Returns:
      A row of an answer; its entry "why" says how far the start is from compute-optimal. None where the results hold no
      capacity fit.
    """
    fit = saved_fit(results, "capacity")
    if fit is None:
        return None
    names = list(fit.params.index)
    levels = [name[2:-1] for name in names if name.startswith("A[")]

    def grown(theta: np.ndarray) -> tuple[capacity.Growth, np.ndarray]:
        """At draws theta (B, P): the growth with fields (B,), and w_N (B,) of the start."""
        values = dict(zip(names, fit.natural(theta).T, strict=True))
        A, B = (
            np.mean([values[f"{name}[{level}]"] for level in levels], axis=0) if levels else values[name]
            for name in ("A", "B")
        )
        powers = {name: values[name] for name in ("phi", "psi", "alpha", "beta")}
        weight = capacity.size_share_of_loss({**powers, "A": A, "B": B}, k_from, params, tokens / k_from)
        return capacity.cheapest_growth(ratio, weight, **powers), np.asarray(weight)

    level = float(results.level)
    row: dict[str, Any] = {"what": "least compute"}
    point, weight = grown(fit.theta[None])
    factors = {}
    for column, name in (("parameters", "N"), ("tokens", "D_tot"), ("flops", "C")):
        ends = delta_interval(fit, lambda theta, name=name: np.log(getattr(grown(theta)[0], name)), level)  # type: ignore[misc]
        factors[column] = np.exp(np.clip(ends, -700.0, 700.0))
    row |= {
        "parameters": params * float(factors["parameters"][0]),
        "tokens": tokens * float(factors["tokens"][0]),
        "flops": training_flops(params, tokens) * float(factors["flops"][0]),
    }
    for column, ends in factors.items():
        row |= {f"times_{column}": ends[0], f"times_{column}_low": ends[1], f"times_{column}_high": ends[2]}
    best = float(fit.params["beta"] / (fit.params["alpha"] + fit.params["beta"]))
    what = "too small for its tokens" if weight[0] > best else "too large for its tokens"
    now = capacity.cheapest_growth(
        1.0, weight[0], *(float(fit.params[n]) for n in ("phi", "psi", "alpha", "beta"))
    )
    row["why"] = (
        f"the start is {what}: size is responsible for {weight[0]:.0%} of its reducible loss, {best:.0%} would be "
        f"compute-optimal; the same loss without more languages could be had for ×{now.C:.2f} its compute"
        if abs(weight[0] - best) > 0.02
        else f"the start is all but compute-optimal (size is responsible for {weight[0]:.1%} of its reducible loss, "
        f"{best:.1%} would be): near there compute hardly depends on the size"
    )
    return row


def expand(
    k_from: float, k_to: float, params: float, tokens: float, results: Results | None = None
) -> Answer:
    """Parameters, tokens (of all languages) and compute that keep the loss as the number of languages K grows.

    With a fit of the study also the point of least compute, which differs unless the start is compute-optimal.

    Raises:
      MscaleError: numbers that are not positive, or a size too far outside the measured ones.
    """
    check_positive("plan expand", **{"from": k_from, "to": k_to, "params": params, "tokens": tokens})
    if min(k_from, k_to) < 1:
        raise MscaleError(f"plan expand: {min(k_from, k_to):g} languages, expected 1 or more")
    ratio = k_to / k_from
    reasons = []
    if results and results.capacity.identified:
        return _expand_from_fit(k_from, ratio, params, tokens, results)
    growth, basis = published_growth(ratio), BASIS_PUBLISHED
    if results:
        reasons.append(f"the study's own growth is not identified: {results.capacity.reason}")
    check_published_range(params, reasons)
    reasons += ["assumes uniform sampling and a compute-optimal start"]
    if k_to > PUBLISHED_MAX_LANGUAGES:
        reasons.append(
            f"the paper fitted mixtures of up to {PUBLISHED_MAX_LANGUAGES} languages: extrapolated"
        )
    row = _grown(growth, params, tokens)
    return Answer(_grown_text(k_from, ratio, row, basis), (row,), basis, tuple(reasons))


def _grown(growth: capacity.Growth, params: float, tokens: float) -> dict[str, Any]:
    """A row of an answer: the start, multiplied by the growth."""
    return {
        "what": "same balance of size and data",
        "parameters": params * growth.N,
        "tokens": tokens * growth.D_tot,
        "flops": training_flops(params, tokens) * growth.C,
        "times_parameters": growth.N,
        "times_tokens": growth.D_tot,
        "times_flops": growth.C,
    }


def _grown_text(k_from: float, ratio: float, row: dict, basis: str, interval: str = "") -> str:
    return (
        f"From {k_from:g} to {k_from * ratio:g} languages at the same loss: {count(row['parameters'])} parameters "
        f"(×{row['times_parameters']:.2f}), {count(row['tokens'])} tokens (×{row['times_tokens']:.2f}), "
        f"{count(row['flops'])} FLOPs (×{row['times_flops']:.2f}{interval}); {basis}."
    )


def _expand_from_fit(k_from: float, ratio: float, params: float, tokens: float, results: Results) -> Answer:
    values = {row["name"]: row for row in results.laws["capacity"].parameters}
    powers = tuple(values[name]["estimate"] for name in ("phi", "psi", "alpha", "beta"))
    row = _grown(capacity.growth(ratio, *powers), params, tokens)
    for name, exponent in results.capacity.exponents.items():
        ends = sorted((ratio ** exponent["low"], ratio ** exponent["high"]))
        column = {"N": "times_parameters", "D_tot": "times_tokens", "C": "times_flops"}[name]
        row[f"{column}_low"], row[f"{column}_high"] = ends
    low, high = row.get("times_flops_low"), row.get("times_flops_high")
    interval = f", {low:.2f} to {high:.2f}" if low is not None else ""
    reasons = ["assumes uniform sampling; exponents are common to the languages"]
    check_study_range(params, results.study, reasons)
    ks = [point["K"] for point in results.capacity.points]
    if ks and not min(ks) <= k_from * ratio <= max(ks):
        reasons.append(
            f"{k_from * ratio:g} languages are outside the mixtures that were run, {min(ks):g} to {max(ks):g}"
        )
    rows, text = [row], _grown_text(k_from, ratio, row, BASIS_STUDY, interval)
    cheapest = least_compute(results, k_from, ratio, params, tokens)
    if cheapest:
        rows.append(cheapest)
        reasons.append(cheapest.pop("why"))
        text += (
            f" Least compute at that loss: {count(cheapest['parameters'])} parameters, "
            f"{count(cheapest['tokens'])} tokens, {count(cheapest['flops'])} FLOPs "
            f"(×{cheapest['times_flops']:.2f}, {cheapest['times_flops_low']:.2f} to "
            f"{cheapest['times_flops_high']:.2f})."
        )
    return Answer(text, tuple(rows), BASIS_STUDY, tuple(reasons))
