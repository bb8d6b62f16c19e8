"""Sampling rates of languages from their sizes.

Sizes ``c`` are (languages,), in tokens or any other unit; rates are (languages,) float64 and sum to 1.
"""

import numpy as np
from numpy.typing import ArrayLike

from mscale.errors import MscaleError


def proportional(c: ArrayLike) -> np.ndarray:
    """Returns p_l = c_l / Σ c, which gives every token of every language the same probability."""
    sizes = _sizes(c)
    if not sizes.sum() > 0:
        raise MscaleError("proportional sampling of languages that are all empty: expected a size above 0")
    return sizes / sizes.sum()


def uniform(k: int) -> np.ndarray:
    """Returns 1/k for each of ``k`` languages."""
    if k < 1:
        raise MscaleError(f"a uniform mixture of {k} languages: expected at least 1")
    return np.full(k, 1.0 / k)


def temperature(c: ArrayLike, T: float) -> np.ndarray:
    """Returns p_l ∝ c_l^(1/T): T = 1 is proportional, T → ∞ uniform (Arivazhagan et al. 2019).

    Raises:
      MscaleError: T is not a positive number (infinity is allowed), or no size is positive.
    """
    sizes = _sizes(c)
    if not T > 0:
        raise MscaleError(
            f"sampling temperature is {T}, expected a number above 0 (1: proportional, inf: uniform)"
        )
    present = sizes > 0
    if not present.any():
        raise MscaleError("temperature sampling of languages that are all empty: expected a size above 0")
    log_c = np.log(sizes, where=present, out=np.full_like(sizes, -np.inf))
    p = np.exp((log_c - log_c.max()) / T, where=present, out=np.zeros_like(sizes))
    return p / p.sum()


def unimax(c: ArrayLike, budget: float, max_epochs: float, caps: ArrayLike | None = None) -> np.ndarray:
    """Returns UniMax rates (Chung et al. 2023, Algorithm 1): as uniform as ``max_epochs`` allows.

    In ascending order of size, each language is assigned min(remaining budget / remaining languages, c_l·max_epochs)
    tokens; rates are proportional to these. A cap is the largest rate of a language; the tokens above it go to the
    other languages. If the budget is larger than all languages repeated max_epochs times, the budget is reduced to
    that (rates proportional to c, within the caps).

    Args:
      c: (K,) sizes in tokens.
      budget: tokens of the run.
      max_epochs: largest number of epochs of a language's tokens.
      caps: (K,) largest rate of each language, 1 (or infinity) for none.

    Raises:
      MscaleError: budget, epoch limit or a cap is not above 0, or the caps sum to less than 1.
    """
    sizes = _sizes(c)
    if not (budget > 0 and np.isfinite(budget)):
        raise MscaleError(f"UniMax budget is {budget} tokens, expected a finite number above 0")
    if not max_epochs > 0:
        raise MscaleError(f"UniMax max_epochs is {max_epochs}, expected a number above 0")
    cap = np.ones_like(sizes) if caps is None else np.minimum(np.asarray(caps, np.float64), 1.0)
    if cap.shape != sizes.shape or not (cap > 0).all():
        raise MscaleError(f"UniMax caps {cap}: expected one rate above 0 for each of {sizes.size} languages")
    available = sizes * max_epochs
    if not (available > 0).any():
        raise MscaleError("UniMax over languages that are all empty: expected a size above 0")
    if cap[available > 0].sum() < 1 - 1e-12:
        raise MscaleError(
            f"UniMax caps of the languages with text sum to {cap[available > 0].sum():g}: under 1, "
            "nobody may take the rest"
        )
    # A cap is a share of the total T. If languages run out of text, T is below the budget and solves
    # T = Σ min(available, cap·T). Newton's method from above; piecewise linear, so at most K steps.
    total = float(budget)
    while (limits := np.minimum(available, cap * total)).sum() < total * (1 - 1e-12):
        capped = cap * total < available
        total = available[~capped].sum() / (1 - cap[capped].sum())
    assigned = _water_fill(limits, total)
    return assigned / assigned.sum()


def _water_fill(limits: np.ndarray, budget: float) -> np.ndarray:
    """Returns min(limit_l, level) for the level at which they sum to the budget (or to the sum of all limits)."""
    assigned = np.empty_like(limits)
    remaining = budget
    for served, language in enumerate(np.argsort(limits, kind="stable")):
        assigned[language] = min(remaining / (limits.size - served), limits[language])
        remaining = max(remaining - assigned[language], 0.0)
    return assigned


def _sizes(c: ArrayLike) -> np.ndarray:
    sizes = np.asarray(c, np.float64)
    if sizes.ndim != 1 or sizes.size == 0 or not np.isfinite(sizes).all() or (sizes < 0).any():
        raise MscaleError(f"language sizes {c!r}: expected one finite number, 0 or above, per language")
    return sizes
