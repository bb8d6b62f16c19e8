"""Why the data do not determine a parameter: no row depends on it, it moves with others, or its profile is flat."""

from typing import Any

import numpy as np

_FLAT_SINGULAR_VALUE = 1e-7  # singular value, over the largest, of a direction that the predictions do not depend on
_MIN_SHARE = 0.05  # share in such a direction from which a parameter is named


def identification(fit: Any, low: np.ndarray, high: np.ndarray) -> dict[str, str]:
    """{parameter: reason} of those that are not determined; low and high (P,) are limits in the fitted scale."""
    reasons = {name: "no row depends on it" for name in fit.problem.held["inactive"]}
    J = jacobian(fit.problem, fit.theta)
    norms = np.linalg.norm(J, axis=0)
    _, singular, rows = np.linalg.svd(J / np.where(norms > 0, norms, 1.0), full_matrices=True)
    singular = np.concatenate([singular, np.zeros(len(rows) - len(singular))])
    flat = rows[singular <= _FLAT_SINGULAR_VALUE * singular[0]]
    # The projector on all flat directions together: of several, any mixture is as flat as they are.
    together = flat.T @ flat
    for mine in np.flatnonzero(np.diag(together) > _MIN_SHARE**2):
        involved = np.flatnonzero(np.abs(together[mine]) > _MIN_SHARE**2)
        others = ", ".join(fit.names[other] for other in involved if other != mine)
        reason = f"cannot be told apart from {others}" if others else "the data do not depend on it"
        reasons[fit.names[mine]] = reason
    for index, (name, q) in enumerate(zip(fit.names, fit.problem.held["parameters"], strict=True)):
        if name in reasons or np.isfinite([low[index], high[index]]).all():
            continue
        known = ""
        if np.isfinite(high[index]):
            known = f" (at most {np.exp(high[index]) if q.log else high[index]:.3g})"
        elif np.isfinite(low[index]):
            known = f" (at least {np.exp(low[index]) if q.log else low[index]:.3g})"
        sides = [
            side for side, end in (("below", low[index]), ("above", high[index])) if not np.isfinite(end)
        ]
        reasons[name] = f"the data do not bound it {' or '.join(sides)}{known}"
    return reasons


def jacobian(problem: Any, theta: np.ndarray) -> np.ndarray:
    """d residual / d theta at one theta (P,), dense (n, P)."""
    out = problem.law.predict(problem.rows_jets(theta[None], 1), problem._variables)
    scale = 1.0 / out.value if problem.law.residual == "log" else 1.0
    local = np.zeros((len(problem.y), len(problem.law.parameters)))
    for index, g in out.grad.items():
        local[:, index] = np.broadcast_to(g * scale, (1, len(local)))[0]
    return np.concatenate([local[cell.rows] @ cell.select for cell in problem.cells])
