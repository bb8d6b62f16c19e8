"""Profile-likelihood intervals of any scalar h(θ) that follows from the parameters.

The profile of h at a is the lowest objective among the θ with h(θ) = a; the interval ends where it has risen to a
critical value. It is found without constraints: the quadratic penalty ½k(h(θ) − target)² is added to the objective and
the sum minimised (penalty method; Nocedal & Wright, section 17.1). The minimum then lies on the profile, at its own h.
Targets are chosen so that the rise approaches its critical value (`bracketing`), for all quantities, sides and studies
at once. A profile does not depend on the parametrisation, so predictions and exponents are treated as parameters are.
Where h, to first order, changes only in directions that the data do not determine, it has no limits.
"""

import dataclasses
from collections.abc import Sequence

import numpy as np

from analysis.estimation.aliasing import Reduction
from analysis.estimation.optimize import MAX_RELATIVE_DECREASE, active_bounds, apply_step, lbfgs, minimise
from analysis.estimation.problem import Batch, Problem
from analysis.estimation.quantities import Linear, Quantity
from analysis.estimation.variance_components import FLAT_EIGENVALUE, GroupNoise
from analysis.uncertainty.bracketing import ProfilePoints, extrapolate_limit, next_targets
from analysis.uncertainty.critical_values import critical_values

MAX_FLAT_SHARE = 1e-3  # share of a gradient along flat directions above which a quantity is not identified
_PENALTY_FACTOR = 4.0  # the penalty's weight k, over the curvature of the profile at the optimum
_PENALTY_GROWTH = 8.0  # factor on k where a point fell outside its bracket
_MAX_POINTS = 14  # of one profile
_Z_TOLERANCE = 0.02  # standard errors between rise and critical value within which a limit is found
_STRAIGHT_Z_TOLERANCE = 0.1  # the same, where the profile is nearly straight:
_STRAIGHT_TOLERANCE = 0.0025  # share of the limit by which two extrapolations may differ there
_MAX_FAILURES = 2  # minimisations that did not converge, after which a limit counts as infinite
_MIN_CRITICAL_VALUE = 0.05  # standard errors, so that every interval has some width
_MANY_PARAMETERS = (
    40  # from which L-BFGS gets more iterations, because a Hessian costs so much more than a gradient
)
# Of L-BFGS, with few and with many parameters, before Newton's method takes over. CPU time of all intervals of an ATLAS
# fit with (without) the L-BFGS stage: 38 languages, 269 parameters, 1.0 s (13.5 s); 20 languages, 143 parameters, 0.5 s
# (2.7 s). A report on them: 14 s (19 to 25 s) and 12.9 s (14.7 s). With 5 parameters there is no difference.
_LBFGS_ITERATIONS = (8, 24)
_LBFGS_TOLERANCE = (
    1e-5  # predicted decrease, over the wanted rise of the objective; the true one may be far larger
)


def intervals(
    problem: Problem,
    theta: np.ndarray,
    noise: GroupNoise,
    quantities: Sequence[Quantity],
    level: float,
    y: np.ndarray | None = None,
) -> tuple[np.ndarray, np.ndarray]:
    """(S, m) lower and upper limits of m scalars in S studies; ∓inf where the profile never rises enough.

    Args:
      theta: (S, P) least-squares optima. y: (S, n) responses of simulated studies (None: the problem's own).
      quantities: blocks of scalars, m in all. level: such as 0.9.
    """
    S, m = len(theta), sum(map(len, quantities))
    if m == 0:
        return np.zeros((S, 0)), np.zeros((S, 0))
    reduction, full_theta = noise.reduction, theta
    noise, theta = noise.in_reduced_parameters, reduction.to_reduced(theta)
    full = dataclasses.replace(problem, penalised=tuple(quantities))
    penalised = dataclasses.replace(
        reduction.reduced, penalised=tuple(_in_reduced_parameters(q, reduction) for q in quantities)
    )
    ratio = noise.ratio[noise.best]
    base, slope, hessian, information = reduction.reduced.derivatives(theta, problem.batch(y=y, ratio=ratio))
    scale = np.sqrt(np.maximum(np.einsum("spp->sp", information), 1e-300))
    flat = _flat_directions(information, scale)
    inverse = _approximate_inverse(hessian, scale, flat, active_bounds(theta, slope, reduction.reduced))
    aliased_slope, difference = _aliased_slopes(full, full_theta, penalised, theta, reduction, scale)
    searches = _limit_searches(penalised, theta, noise, level, inverse, flat, scale, aliased_slope)
    limits = np.tile([-np.inf, np.inf], S * m)
    limits[searches.place] = _find_limits(penalised, searches, base, ratio, y, inverse)
    return limits[0::2].reshape(S, m) + difference, limits[1::2].reshape(S, m) + difference


def _in_reduced_parameters(quantity: Quantity, reduction: Reduction) -> Quantity:
    """The quantity as a function of the reduced problem's parameters."""
    if not isinstance(quantity, Linear):
        return quantity
    dropped = reduction.dropped
    offset = quantity.offset + quantity.rows[:, dropped] @ reduction.full.lower[dropped]
    return Linear(quantity.rows[:, reduction.kept], offset)


def _aliased_slopes(
    full: Problem,
    full_theta: np.ndarray,
    penalised: Problem,
    theta: np.ndarray,
    reduction: Reduction,
    scale: np.ndarray,
) -> tuple[np.ndarray, np.ndarray]:
    """How the m scalars depend on the division between aliased parameters.

    Returns: the norm of each scalar's scaled gradient along the eliminated directions, (S·m,), and by how much it
      differs between the full problem at full_theta (S, P) and the reduced one at theta, (S, m).
    """
    S, m = len(theta), sum(map(len, full.penalised))
    if not len(reduction.dropped):
        return np.zeros(S * m), np.zeros((S, m))
    study, which = np.repeat(np.arange(S), m), np.tile(np.arange(m), S)
    h, slope, _ = full.penalised_derivatives(full_theta[study], which)
    place = np.searchsorted(np.flatnonzero(reduction.kept), reduction.partner)
    contributions = reduction.contributions(full_theta)[study]
    along = slope[:, reduction.dropped] / contributions - slope[:, reduction.partner]
    along /= np.sqrt(2) * scale[:, place][study]
    difference = (h - penalised.penalised_derivatives(theta[study], which)[0]).reshape(S, m)
    return np.linalg.norm(along, axis=1), difference


def _flat_directions(information: np.ndarray, scale: np.ndarray) -> np.ndarray:
    """(S, P, P): rows are unit vectors, in θ·scale, along which the objective does not change; the others are 0."""
    scaled = information / scale[:, :, None] / scale[:, None, :]
    eigen, vectors = np.linalg.eigh(scaled)
    return np.where((eigen <= FLAT_EIGENVALUE * eigen[:, -1:])[:, :, None], vectors.swapaxes(1, 2), 0.0)


def _approximate_inverse(
    hessian: np.ndarray, scale: np.ndarray, flat: np.ndarray, fixed: np.ndarray
) -> np.ndarray:
    """An approximate inverse Hessian (S, P, P) to precondition with.

    Negative eigenvalues are made positive, flat directions are projected out, and parameters at active bounds,
    fixed (S, P), are decoupled from the others.
    """
    coupled = ~fixed[:, :, None] & ~fixed[:, None, :] | np.eye(fixed.shape[1], dtype=bool)
    eigen, vectors = np.linalg.eigh(np.where(coupled, hessian / scale[:, :, None] / scale[:, None, :], 0.0))
    weight = 1.0 / np.maximum(np.abs(eigen), 1e-8 * eigen[:, -1:])
    inverse = (vectors * weight[:, None]) @ vectors.swapaxes(1, 2)
    projector = np.eye(fixed.shape[1]) - flat.swapaxes(1, 2) @ flat
    return (projector @ inverse @ projector) / scale[:, :, None] / scale[:, None, :]


@dataclasses.dataclass(frozen=True)
class _LimitSearches:
    """T searches for a limit, one for each study, scalar and side (side varies fastest). Arrays are (T,) unless noted.

    Attributes:
      place: index among the searches for all scalars; those that are not identified are left out.
      study, which: the study and the scalar. sign: −1 for the lower, 1 for the upper limit.
      best: (T, P) optimum of the study. centre: the scalar there. slope: (T, P) its gradient there.
      spread: standard error of the scalar. path: (T, P) step in θ that changes it by this at the least rise of the
        objective.
      critical: standard errors by which the profile has to rise. sigma2: variance of a row.
      inverse_slope: (T, P) H⁻¹·slope.
    """

    place: np.ndarray
    study: np.ndarray
    which: np.ndarray
    sign: np.ndarray
    best: np.ndarray
    centre: np.ndarray
    spread: np.ndarray
    path: np.ndarray
    critical: np.ndarray
    sigma2: np.ndarray
    inverse_slope: np.ndarray
    slope: np.ndarray

    @property
    def penalty_weight(self) -> np.ndarray:
        return _PENALTY_FACTOR * self.sigma2 / self.spread**2


def _limit_searches(
    penalised: Problem,
    theta: np.ndarray,
    noise: GroupNoise,
    level: float,
    inverse: np.ndarray,
    flat: np.ndarray,
    scale: np.ndarray,
    aliased_slope: np.ndarray,
) -> _LimitSearches:
    """The searches for all identified scalars of all studies.

    inverse, flat: from `_approximate_inverse` and `_flat_directions`, with their scale (S, P). aliased_slope: from
    `_aliased_slopes`.
    """
    S, m = len(theta), sum(map(len, penalised.penalised))
    study, which = np.repeat(np.arange(S), m), np.tile(np.arange(m), S)
    centre, slope, _ = penalised.penalised_derivatives(theta[study], which)
    scaled_slope = slope.reshape(S, m, -1) / scale[:, None, :]
    aliased = aliased_slope.reshape(S, m)
    flat_part = np.hypot(np.linalg.norm(scaled_slope @ flat.swapaxes(1, 2), axis=2), aliased)
    whole = np.hypot(np.linalg.norm(scaled_slope, axis=2), aliased)
    place = np.flatnonzero(flat_part <= MAX_FLAT_SHARE * whole)
    study, which, centre, slope = study[place], which[place], centre[place], slope[place]
    best = theta[study]
    low, high = critical_values(noise, study, slope, level)
    sigma2 = noise.at_best(noise.sigma2)[study]
    path = _by_study(noise.at_best(noise.inverse), slope, study) * sigma2[:, None]
    spread = np.sqrt(np.maximum(np.einsum("ti,ti->t", path, slope), 1e-300))
    path /= spread[:, None]

    def both_sides(values: np.ndarray) -> np.ndarray:
        return np.repeat(values, 2, axis=0)

    sign = np.tile([-1.0, 1.0], len(place))
    critical = np.maximum(np.stack([-low, high], axis=1).ravel(), _MIN_CRITICAL_VALUE)
    path, spread, centre = both_sides(path), both_sides(spread), both_sides(centre)
    # A standard error may be wider than the bounds, along nearly flat directions: limit the first step to a part.
    largest = (penalised.upper - penalised.lower) / 4
    shrink = 1.0 / np.maximum(np.max(np.abs(path * critical[:, None]) / largest, axis=1), 1.0)
    return _LimitSearches(
        place=(2 * place[:, None] + [0, 1]).ravel(),
        study=both_sides(study),
        which=both_sides(which),
        sign=sign,
        best=both_sides(best),
        centre=centre,
        spread=np.maximum(spread * shrink, 1e-12 * (1.0 + np.abs(centre))),
        path=path * (sign * shrink)[:, None],
        critical=critical,
        sigma2=both_sides(sigma2),
        inverse_slope=both_sides(_by_study(inverse, slope, study)),
        slope=both_sides(slope),
    )


def _by_study(matrices: np.ndarray, vectors: np.ndarray, study: np.ndarray) -> np.ndarray:
    """(T, P): the symmetric matrix, of (S, P, P), of each vector's study times the vector, of (T, P)."""
    if len(matrices) == 1:
        return vectors @ matrices[0]
    return np.matmul(matrices[study], vectors[:, :, None])[:, :, 0]


def _find_limits(
    penalised: Problem,
    searches: _LimitSearches,
    base: np.ndarray,
    ratio: np.ndarray,
    y: np.ndarray | None,
    inverse: np.ndarray,
) -> np.ndarray:
    """The limits (T,).

    base, ratio, inverse: (S, ...) objective at the optimum, most likely ρ, and `_approximate_inverse`, of each study.
    """
    T = len(searches.study)
    penalty_weight = searches.penalty_weight
    curvature = searches.sigma2 * np.einsum("ti,ti->t", searches.slope, searches.inverse_slope)
    unit = np.sqrt(np.maximum(curvature, 1e-300))
    # The farthest known point inside the limit, the nearest outside, and the latest.
    inside_points, outside_points = ProfilePoints.of(T, 0.0), ProfilePoints.of(T, np.inf)
    last, theta_last = ProfilePoints.of(T, 0.0), searches.best.copy()
    expected = searches.critical * searches.spread
    target = expected * (1 + 1 / _PENALTY_FACTOR)  # distance from the optimum
    limit = np.full(T, np.inf)
    failed = np.zeros(T, int)
    live = np.arange(T)
    for iteration in range(_MAX_POINTS):
        study, critical, sign = searches.study[live], searches.critical[live], searches.sign[live]
        batch = penalised.batch(
            y=None if y is None else y[study],
            ratio=ratio[study],
            quantity=searches.which[live],
            target=searches.centre[live] + sign * target[live],
            penalty_weight=penalty_weight[live],
        )
        best = searches.best[live]
        if iteration == 0:
            step = searches.path[live] * critical[:, None]
            # Start from the better of two points: along a line in θ, or in exp(θ) of the exponential parameters.
            starts = [best + step, apply_step(best, np.maximum(step, -MAX_RELATIVE_DECREASE), penalised)]
        else:
            factor = expected[live] / np.where(last.out[live] > 0, last.out[live], expected[live])
            starts = [best + (theta_last[live] - best) * factor[:, None]]
        starts.append(theta_last[live])
        theta, f, converged = _minimise_penalised(
            penalised, batch, searches, penalty_weight, live, inverse, *starts
        )
        failed[live[~converged]] += 1
        h = penalised.penalised_derivatives(theta, searches.which[live])[0]
        out = sign * (h - searches.centre[live])
        multiplier = penalty_weight[live] * (target[live] - out)
        rise = np.maximum(f - 0.5 * multiplier**2 / penalty_weight[live] - base[study], 0.0)
        z = np.sqrt(2 * np.where(np.isfinite(rise), rise, np.inf) / searches.sigma2[live])
        before, inner, outer = last.take(live), inside_points.take(live), outside_points.take(live)
        stuck = (out <= inner.out * (1 + 1e-6)) & (z < np.minimum(critical, inner.z + _Z_TOLERANCE))
        stuck &= np.isinf(outer.out) & (iteration > 0)
        inside, outside = (z < critical) & (out >= inner.out), (z >= critical) & (out < outer.out)
        inside_points.update(live[inside], out[inside], z[inside], multiplier[inside])
        outside_points.update(live[outside], out[outside], z[outside], multiplier[outside])
        good = np.isfinite(f) & (out > 0)
        last.update(live[good], out[good], z[good], multiplier[good])
        theta_last[live[good]] = theta[good]
        extrapolated, straight = extrapolate_limit(out, z, critical, unit[live], before)
        missed = np.abs(z - critical)
        is_straight = np.abs(extrapolated - straight) <= _STRAIGHT_TOLERANCE * straight
        close = (missed <= _Z_TOLERANCE) | (missed <= _STRAIGHT_Z_TOLERANCE) & is_straight
        close &= out > 0
        limit[live[close]] = extrapolated[close]
        # A point between the brackets is missed where the profile is concave and the penalty too weak to hold h there.
        penalty_weight[live[np.isfinite(outer.out) & ~inside & ~outside]] *= _PENALTY_GROWTH
        unfinished = ~stuck & ~close & (failed[live] < _MAX_FAILURES)
        live, before = live[unfinished], before.take(unfinished)
        if not len(live):
            break
        expected[live], target[live] = next_targets(
            inside_points.take(live),
            outside_points.take(live),
            before,
            extrapolated[unfinished],
            target[live],
            penalty_weight[live],
            critical[unfinished],
            iteration,
        )
    # Searches that ran out of points: interpolate linearly between the brackets.
    known = live[np.isfinite(outside_points.out[live])]
    low, high = inside_points.take(known), outside_points.take(known)
    fraction = (searches.critical[known] - low.z) / np.maximum(high.z - low.z, 1e-12)
    limit[known] = low.out + np.clip(fraction, 0, 1) * (high.out - low.out)
    return searches.centre + searches.sign * limit


def _minimise_penalised(
    penalised: Problem,
    batch: Batch,
    searches: _LimitSearches,
    penalty_weight: np.ndarray,
    live: np.ndarray,
    inverse: np.ndarray,
    *starts: np.ndarray,
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Minimises from the best of the starts (B, P), for the searches live (B,): L-BFGS, then Newton's method.

    Returns: θ (B, P), the objective with its penalty (B,), and whether the search converged (B,).
    """
    starts = tuple(np.clip(start, penalised.lower, penalised.upper) for start in starts)
    f = np.stack([penalised.total_objective(start, batch) for start in starts])
    start = np.choose(np.argmin(f, axis=0)[:, None], starts)
    slope, inverse_slope = searches.slope, searches.inverse_slope
    correction = penalty_weight / (1.0 + penalty_weight * np.einsum("ti,ti->t", slope, inverse_slope))

    def precondition(g: np.ndarray, which: np.ndarray) -> np.ndarray:
        """(H + k·slope·slopeᵀ)⁻¹ g, by the Sherman-Morrison formula."""
        at = live[which]
        own = inverse_slope[at]
        along = np.einsum("bi,bi->b", own, g) * correction[at]
        return _by_study(inverse, g, searches.study[at]) - along[:, None] * own

    tolerance = _LBFGS_TOLERANCE * searches.sigma2[live] * np.minimum(searches.critical[live], 1.0) ** 2
    iterations = _LBFGS_ITERATIONS[penalised.size >= _MANY_PARAMETERS]
    found = lbfgs(penalised, start, batch, precondition, tolerance, searches.best[live], iterations)
    rest = np.flatnonzero(~found.converged & np.isfinite(found.objective))
    if len(rest):
        newton = minimise(
            penalised, found.theta[rest], batch.take(rest), damping=1e-3, tolerance=1e-8, iterations=60
        )
        found.theta[rest], found.objective[rest] = newton.theta, newton.objective
        found.converged[rest] = newton.converged
    return found.theta, found.objective, found.converged
