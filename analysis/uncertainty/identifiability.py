"""Which parameters the data do not determine, and why: no row depends on it, it is aliased, or its profile is flat."""

import numpy as np

from analysis.uncertainty.fitted import FittedLaw

_FLAT_SINGULAR_VALUE = 1e-7  # of the scaled Jacobian, over the largest: below it a direction is flat
_MIN_SHARE = 0.05  # share of a flat direction from which a parameter counts as part of it


def identification(fit: FittedLaw, low: np.ndarray, high: np.ndarray) -> dict[str, str]:
    """{parameter: reason} of those that are not determined; low and high (P,) are limits in the fitted scale."""
    reasons = {name: "no row depends on it" for name in fit.problem.inactive}
    predicted, slopes = fit.problem.slopes(fit.theta[None])
    slopes = slopes[0] / predicted if fit.problem.law.residual == "log" else slopes[0]  # of the residuals
    J = np.concatenate([slopes[:, cell.rows].T @ cell.selection for cell in fit.problem.cells])
    norms = np.linalg.norm(J, axis=0)
    _, singular, rows = np.linalg.svd(J / np.where(norms > 0, norms, 1.0), full_matrices=True)
    singular = np.concatenate([singular, np.zeros(len(rows) - len(singular))])
    flat = rows[singular <= _FLAT_SINGULAR_VALUE * singular[0]]
    # The projector on all flat directions together, because the SVD may return any mixture of several.
    projector = flat.T @ flat
    for at in np.flatnonzero(np.diag(projector) > _MIN_SHARE**2):
        involved = np.flatnonzero(np.abs(projector[at]) > _MIN_SHARE**2)
        others = ", ".join(fit.names[other] for other in involved if other != at)
        reason = f"cannot be told apart from {others}" if others else "the data do not depend on it"
        reasons[fit.names[at]] = reason
    for index, (name, q) in enumerate(zip(fit.names, fit.problem.fitted_parameters, strict=True)):
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
