"""Huber's loss and its derivatives."""

from typing import Any

import numpy as np


def huber(
    r: np.ndarray, delta: float | None, majorise: bool = True
) -> tuple[np.ndarray, np.ndarray, Any, Any]:
    """ρ(r), ψ = ρ', ρ'' and (if wanted) ψ/r, of Huber's loss (r²/2 within ±δ, then linear).

    For δ None it is r²/2, and the last two, which are 1, come back as None.
    """
    if delta is None:
        return 0.5 * r * r, r, None, None
    psi = np.clip(r, -delta, delta)
    size = np.abs(r)
    rho = psi * (-0.5)
    rho += r
    rho *= psi
    return rho, psi, size <= delta, delta / np.maximum(size, delta) if majorise else None
