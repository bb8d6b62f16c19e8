"""How often to draw each language: pure functions from sizes to rates.

Sizes ``c`` are one-dimensional (tokens, or anything in proportion to them); rates are float64 and sum to 1.
"""

import numpy as np
from numpy.typing import ArrayLike

from mscale.errors import MscaleError


def proportional(c: ArrayLike) -> np.ndarray:
    """Returns p_l = c_l / Σ c: every token of every language is equally likely."""
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
    """Returns UniMax rates (Chung et al. 2023, Algorithm 1): as uniform as ``max_epochs`` lets them be.

    Languages in ascending order of what they can give; each takes min(budget left / languages left,
    c_l·max_epochs). The rates are the shares taken. A cap is the largest rate a language may get; what it
    leaves goes to the others. Where the budget is more than all languages can give, all take their
    max_epochs and the budget shrinks to that (rates in proportion to c, caps still kept).

    Args:
      c: (K,) sizes in tokens.
      budget: tokens to be drawn in all.
      max_epochs: times that a language's tokens may be seen.
      caps: (K,) largest rate of each language, 1 (or infinity) for none.

    Raises:
      MscaleError: a budget, epoch limit or cap that is not above 0, or caps that leave part of the budget
        to nobody.
    """
    sizes = _sizes(c)
    if not (budget > 0 and np.isfinite(budget)):
        raise MscaleError(f"UniMax budget is {budget} tokens, expected a finite number above 0")
    if not max_epochs > 0:
        raise MscaleError(f"UniMax max_epochs is {max_epochs}, expected a number above 0")
    cap = np.ones_like(sizes) if caps is None else np.minimum(np.asarray(caps, np.float64), 1.0)
    if cap.shape != sizes.shape or not (cap > 0).all():
        raise MscaleError(f"UniMax caps {cap}: expected one rate above 0 for each of {sizes.size} languages")
    can_give = sizes * max_epochs
    if not (can_give > 0).any():
        raise MscaleError("UniMax over languages that are all empty: expected a size above 0")
    if cap[can_give > 0].sum() < 1 - 1e-12:
        raise MscaleError(
            f"UniMax caps of the languages with text sum to {cap[can_give > 0].sum():g}: under 1, "
            "nobody may take the rest"
        )
    # A cap is a share of what is taken in all, T. Where languages run out, T is less than the budget: then
    # T = Σ min(can_give, cap·T), by Newton's method from above (piecewise linear, so in at most K steps).
    left = float(budget)
    while (limits := np.minimum(can_give, cap * left)).sum() < left * (1 - 1e-12):
        capped = cap * left < can_give
        left = can_give[~capped].sum() / (1 - cap[capped].sum())
    taken = _water_fill(limits, left)
    return taken / taken.sum()


def _water_fill(limits: np.ndarray, budget: float) -> np.ndarray:
    """Shares min(limit_l, level) with the one level at which they sum to the budget (or all limits)."""
    taken = np.empty_like(limits)
    left = budget
    for served, language in enumerate(np.argsort(limits, kind="stable")):
        taken[language] = min(left / (limits.size - served), limits[language])
        left = max(left - taken[language], 0.0)
    return taken


def _sizes(c: ArrayLike) -> np.ndarray:
    sizes = np.asarray(c, np.float64)
    if sizes.ndim != 1 or sizes.size == 0 or not np.isfinite(sizes).all() or (sizes < 0).any():
        raise MscaleError(f"language sizes {c!r}: expected one finite number, 0 or above, per language")
    return sizes
