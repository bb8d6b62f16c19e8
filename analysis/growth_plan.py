"""More languages from a start that is not compute-optimal: the cheapest size and tokens that keep the loss."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from analysis import capacity
from analysis.saved import saved_fit
from analysis.sensitivity import interval


def least_compute(
    results: Mapping[str, Any], k_from: float, ratio: float, params: float, tokens: float
) -> dict[str, Any] | None:
    """Growth of N, D and C to the point of least compute that keeps the mean loss of the fitted languages.

    None where the results hold no saved fit. `why` tells how far the start is from compute-optimal.
    """
    fit = saved_fit(results, "capacity")
    if fit is None:
        return None
    names = list(fit.params.index)
    levels = [name[2:-1] for name in names if name.startswith("A[")]

    def grown(theta: np.ndarray) -> tuple[capacity.Growth, np.ndarray]:
        """At draws θ (B, P): the growth, fields (B,), and w_N of the start."""
        values = dict(zip(names, fit.natural(theta).T, strict=True))
        A, B = (
            np.mean([values[f"{name}[{level}]"] for level in levels], axis=0) if levels else values[name]
            for name in ("A", "B")
        )
        powers = {name: values[name] for name in ("phi", "psi", "alpha", "beta")}
        weight = capacity.weight_of_size({**powers, "A": A, "B": B}, k_from, params, tokens / k_from)
        return capacity.cheapest_growth(ratio, weight, **powers), np.asarray(weight)

    level = float(results["level"])
    row: dict[str, Any] = {"what": "least compute"}
    point, weight = grown(fit.theta[None])
    factors = {}
    for column, name in (("parameters", "N"), ("tokens", "D_tot"), ("flops", "C")):
        ends = interval(fit, lambda theta, name=name: np.log(getattr(grown(theta)[0], name)), level)  # type: ignore[misc]
        factors[column] = np.exp(np.clip(ends, -700.0, 700.0))
    row |= {
        "parameters": params * float(factors["parameters"][0]),
        "tokens": tokens * float(factors["tokens"][0]),
        "flops": 6 * params * tokens * float(factors["flops"][0]),
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
