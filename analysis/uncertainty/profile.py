"""Profile intervals of whatever follows from the parameters: how far can h(θ) go before the fit becomes too bad?

The profile of h at a is the lowest objective among the θ with h(θ) = a. It is found without constraints: a spring
½k(h(θ) − aim)² is added and the sum minimised, after which θ is on the profile at its own h. Aims are chosen so
that the rise of the objective closes in on its critical value, for all quantities, sides and studies together.
A profile does not depend on how the law is parametrised, so a prediction or an exponent is as good as a parameter.
Where the data tell nothing of h, to first order, there is no profile to follow and no limit.
"""

import dataclasses
from collections.abc import Sequence

import numpy as np

from analysis.estimation.aliasing import Reduction
from analysis.estimation.optimize import MAX_RELATIVE_DECREASE, active_bounds, minimise, lbfgs, apply_step
from analysis.estimation.problem import Batch, Problem
from analysis.estimation.quantities import Linear, Quantity
from analysis.estimation.variance_components import FLAT_EIGENVALUE, GroupNoise, inverse_by_cholesky
from analysis.uncertainty.bracketing import ProfilePoints, extrapolate_limit, next_targets
from analysis.uncertainty.critical_values import critical_values

_PENALTY_FACTOR = 4.0  # of the spring, over that of the profile
_PENALTY_GROWTH = 8.0  # times what it was, that it becomes where it let go
_MAX_POINTS = 14
_Z_TOLERANCE = 0.02  # standard errors between the rise and its critical value that end the search
_STRAIGHT_Z_TOLERANCE = 0.1  # and where the profile hardly bends:
_STRAIGHT_TOLERANCE = 0.0025  # share of a limit by which a parabola and a straight line differ there
_MAX_FAILURES = 2  # points that do not settle, after which a profile counts as having no end
_MIN_CRITICAL_VALUE = 0.05  # standard errors an interval reaches to either side at least
_MANY_PARAMETERS = 40  # parameters, from which Hessians cost so much that gradients alone are given more
_LBFGS_ITERATIONS = (8, 24)  # with gradients alone before Newton's, of few parameters and of many
_LBFGS_TOLERANCE = 1e-5  # share of the wanted rise that a step must promise less than; what is left may be far more
MAX_FLAT_SHARE = 1e-3  # share of a quantity's slope in such directions from which its profile never rises


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
      theta: (S, P) least-squares optima. y: (S, n) responses of planted studies (None: the problem's own).
      quantities: blocks of scalars, m in all. level: such as 0.9.
    """
    S, m = len(theta), sum(map(len, quantities))
    if m == 0:
        return np.zeros((S, 0)), np.zeros((S, 0))
    reduced, outer = noise.reduced, theta
    noise, theta = noise.inwards, reduced.inwards(theta)
    pinned = dataclasses.replace(reduced.inner, pins=tuple(_in_reduced_parameters(q, reduced) for q in quantities))
    ratio = noise.ratio[noise.best]
    base, slope, hessian, information = reduced.inner.system(theta, problem.members(y=y, ratio=ratio))
    scale = np.sqrt(np.maximum(np.einsum("spp->sp", information), 1e-300))
    flat = _flat_directions(information, scale)
    inverse = _approximate_inverse(hessian, scale, flat, active_bounds(theta, slope, reduced.inner))
    valley, away = _eliminated_slopes(
        dataclasses.replace(problem, pins=tuple(quantities)), outer, pinned, theta, reduced, scale
    )
    tasks = _limit_searches(pinned, theta, noise, level, inverse, flat, scale, valley)
    limits = np.tile([-np.inf, np.inf], S * m)
    limits[tasks.place] = _find_limits(pinned, tasks, base, ratio, y, inverse)
    return limits[0::2].reshape(S, m) + away, limits[1::2].reshape(S, m) + away


def _in_reduced_parameters(quantity: Quantity, reduced: Reduction) -> Quantity:
    """The quantity of the inner problem's parameters."""
    if not isinstance(quantity, Linear):
        return quantity
    offset = quantity.offset + quantity.rows[:, reduced.drop] @ reduced.outer.lower[reduced.drop]
    return Linear(quantity.rows[:, reduced.kept], offset)


def _eliminated_slopes(
    outer: Problem, at: np.ndarray, pinned: Problem, theta: np.ndarray, reduced: Reduction, scale: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Of each scalar, the size of its slope along the valleys that were left out, (S·m,), and by how much it differs
    between the outer problem, whose optima are `at`, and the inner one (S, m).
    """
    S, m = len(theta), sum(map(len, outer.pins))
    if not len(reduced.drop):
        return np.zeros(S * m), np.zeros((S, m))
    study, which = np.repeat(np.arange(S), m), np.tile(np.arange(m), S)
    h, slope = penalised_values(outer, at[study], which)
    place = np.searchsorted(np.flatnonzero(reduced.kept), reduced.partner)
    along = slope[:, reduced.drop] / reduced.amounts(at)[study] - slope[:, reduced.partner]
    along /= np.sqrt(2) * scale[:, place][study]
    away = (h - penalised_values(pinned, theta[study], which)[0]).reshape(S, m)
    return np.linalg.norm(along, axis=1), away


def _flat_directions(information: np.ndarray, scale: np.ndarray) -> np.ndarray:
    """(S, P, P): rows that are unit vectors of directions of θ·scale in which nothing changes, or else 0."""
    scaled = information / scale[:, :, None] / scale[:, None, :]
    if scaled.shape[1] >= _MANY_PARAMETERS and inverse_by_cholesky(scaled) is not None:
        return np.zeros_like(scaled)
    eigen, vectors = np.linalg.eigh(scaled)
    return np.where((eigen <= FLAT_EIGENVALUE * eigen[:, -1:])[:, :, None], vectors.swapaxes(1, 2), 0.0)


def _approximate_inverse(hessian: np.ndarray, scale: np.ndarray, flat: np.ndarray, still: np.ndarray) -> np.ndarray:
    """About H⁻¹ (S, P, P), with no step in flat directions, and what keeps still (S, P) apart from the rest."""
    together = ~still[:, :, None] & ~still[:, None, :] | np.eye(still.shape[1], dtype=bool)
    eigen, vectors = np.linalg.eigh(np.where(together, hessian / scale[:, :, None] / scale[:, None, :], 0.0))
    weight = 1.0 / np.maximum(np.abs(eigen), 1e-8 * eigen[:, -1:])
    inverse = (vectors * weight[:, None]) @ vectors.swapaxes(1, 2)
    solid = np.eye(still.shape[1]) - flat.swapaxes(1, 2) @ flat
    return (solid @ inverse @ solid) / scale[:, :, None] / scale[:, None, :]


def penalised_values(pinned: Problem, theta: np.ndarray, which: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Scalar which[b] of the problem's pins at theta[b], (B,), and its gradient (B, P)."""
    h, slope, first = np.empty(len(theta)), np.empty(theta.shape), 0
    for pin in pinned.pins:
        at = np.flatnonzero((which >= first) & (which < first + len(pin)))
        if len(at):
            h[at], slope[at] = pin.derivatives(pinned, theta[at], which[at] - first)[:2]
        first += len(pin)
    return h, slope


@dataclasses.dataclass(frozen=True)
class _LimitSearches:
    """One a (study, scalar, side), side fastest. Arrays (T,), but for best and path (T, P).

    Those whose profile never rises are left out; place: among all. which scalar, to which side (sign), of a study's
    optimum (best), where it is centre; path: the step in θ that changes it by a standard error (spread) at least cost;
    wanted: standard errors that the profile is to rise. slope: of the scalar at the optimum, and give: H⁻¹·slope.
    """

    place: np.ndarray
    study: np.ndarray
    which: np.ndarray
    sign: np.ndarray
    best: np.ndarray
    centre: np.ndarray
    spread: np.ndarray
    path: np.ndarray
    wanted: np.ndarray
    sigma2: np.ndarray
    give: np.ndarray
    slope: np.ndarray

    @property
    def stiffness(self) -> np.ndarray:
        return _PENALTY_FACTOR * self.sigma2 / self.spread**2


def _limit_searches(
    pinned: Problem,
    theta: np.ndarray,
    noise: GroupNoise,
    level: float,
    inverse: np.ndarray,
    flat: np.ndarray,
    scale: np.ndarray,
    valley: np.ndarray,
) -> _LimitSearches:
    """The tasks of all studies, of which inverse, flat and scale are `_inverse`, `_flat` and their scale.

    valley (S·m,): size of the slope of each scalar along directions that the problem does without.
    """
    S, m = len(theta), sum(map(len, pinned.pins))
    study, which = np.repeat(np.arange(S), m), np.tile(np.arange(m), S)
    centre, slope = penalised_values(pinned, theta[study], which)
    along = slope.reshape(S, m, -1) / scale[:, None, :]
    inside = np.hypot(np.linalg.norm(along @ flat.swapaxes(1, 2), axis=2), valley.reshape(S, m))
    place = np.flatnonzero(inside <= MAX_FLAT_SHARE * np.hypot(np.linalg.norm(along, axis=2), valley.reshape(S, m)))
    study, which, centre, slope = study[place], which[place], centre[place], slope[place]
    best = theta[study]
    low, high = critical_values(noise, study, slope, level)
    sigma2 = noise.at_best(noise.sigma2)[study]
    path = _by_study(noise.at_best(noise.inverse), slope, study) * sigma2[:, None]
    spread = np.sqrt(np.maximum(np.einsum("ti,ti->t", path, slope), 1e-300))
    path /= spread[:, None]

    def sides(values: np.ndarray) -> np.ndarray:
        return np.repeat(values, 2, axis=0)

    sign = np.tile([-1.0, 1.0], len(place))
    wanted = np.maximum(np.stack([-low, high], axis=1).ravel(), _MIN_CRITICAL_VALUE)
    path, spread, centre = sides(path), sides(spread), sides(centre)
    # Along a flat direction a standard error is no guide: step within a part of the bounds.
    room = (pinned.upper - pinned.lower) / 4
    scale = 1.0 / np.maximum(np.max(np.abs(path * wanted[:, None]) / room, axis=1), 1.0)
    return _LimitSearches(
        place=(2 * place[:, None] + [0, 1]).ravel(),
        study=sides(study),
        which=sides(which),
        sign=sign,
        best=sides(best),
        centre=centre,
        spread=np.maximum(spread * scale, 1e-12 * (1.0 + np.abs(centre))),
        path=path * (sign * scale)[:, None],
        wanted=wanted,
        sigma2=sides(sigma2),
        give=sides(_by_study(inverse, slope, study)),
        slope=sides(slope),
    )


def _by_study(matrices: np.ndarray, vectors: np.ndarray, study: np.ndarray) -> np.ndarray:
    """(T, P): matrices (S, P, P), symmetric, of the study of each times vectors (T, P)."""
    if len(matrices) == 1:
        return vectors @ matrices[0]
    return np.matmul(matrices[study], vectors[:, :, None])[:, :, 0]


def _find_limits(
    pinned: Problem,
    tasks: _LimitSearches,
    base: np.ndarray,
    ratio: np.ndarray,
    y: np.ndarray | None,
    inverse: np.ndarray,
) -> np.ndarray:
    """(T,) the limits. base, ratio, inverse (S, ...): objective at the optimum of a study, ρ̂, and `_inverse`."""
    T = len(tasks.study)
    stiffness = tasks.stiffness
    unit = np.sqrt(np.maximum(tasks.sigma2 * np.einsum("ti,ti->t", tasks.slope, tasks.give), 1e-300))
    near, far = ProfilePoints.of(T, 0.0), ProfilePoints.of(T, np.inf)  # farthest known to be inside, nearest outside
    last, theta_last = ProfilePoints.of(T, 0.0), tasks.best.copy()
    expected = tasks.wanted * tasks.spread
    aim = expected * (1 + 1 / _PENALTY_FACTOR)  # out from the optimum
    limit = np.full(T, np.inf)
    failed = np.zeros(T, int)
    live = np.arange(T)
    for number in range(_MAX_POINTS):
        study, wanted, sign = tasks.study[live], tasks.wanted[live], tasks.sign[live]
        members = pinned.members(
            y=None if y is None else y[study],
            ratio=ratio[study],
            which=tasks.which[live],
            aim=tasks.centre[live] + sign * aim[live],
            stiffness=stiffness[live],
        )
        best = tasks.best[live]
        if number == 0:
            step = tasks.path[live] * wanted[:, None]
            # Whichever is lower: straight in θ, or in what predictions are linear in.
            starts = [best + step, apply_step(best, np.maximum(step, -MAX_RELATIVE_DECREASE), pinned)]
        else:
            away = expected[live] / np.where(last.out[live] > 0, last.out[live], expected[live])
            starts = [best + (theta_last[live] - best) * away[:, None]]
        starts.append(theta_last[live])
        theta, f, settled = _minimise_penalised(pinned, members, tasks, stiffness, live, inverse, *starts)
        failed[live[~settled]] += 1
        h = penalised_values(pinned, theta, tasks.which[live])[0]
        out = sign * (h - tasks.centre[live])
        force = stiffness[live] * (aim[live] - out)
        rise = np.maximum(f - 0.5 * force**2 / stiffness[live] - base[study], 0.0)
        z = np.sqrt(2 * np.where(np.isfinite(rise), rise, np.inf) / tasks.sigma2[live])
        before, inner, outer = last.take(live), near.take(live), far.take(live)
        stuck = (out <= inner.out * (1 + 1e-6)) & (z < np.minimum(wanted, inner.z + _Z_TOLERANCE))
        stuck &= np.isinf(outer.out) & (number > 0)
        inside, outside = (z < wanted) & (out >= inner.out), (z >= wanted) & (out < outer.out)
        near.move(live[inside], out[inside], z[inside], force[inside])
        far.move(live[outside], out[outside], z[outside], force[outside])
        good = np.isfinite(f) & (out > 0)
        last.move(live[good], out[good], z[good], force[good])
        theta_last[live[good]] = theta[good]
        reached, even = extrapolate_limit(out, z, wanted, unit[live], before)
        missed = np.abs(z - wanted)
        close = (missed <= _Z_TOLERANCE) | (missed <= _STRAIGHT_Z_TOLERANCE) & (np.abs(reached - even) <= _STRAIGHT_TOLERANCE * even)
        close &= out > 0
        limit[live[close]] = reached[close]
        # Where the profile bends back, a soft spring lets go of it between two points.
        stiffness[live[np.isfinite(outer.out) & ~inside & ~outside]] *= _PENALTY_GROWTH
        left = ~stuck & ~close & (failed[live] < _MAX_FAILURES)
        live, before = live[left], before.take(left)
        if not len(live):
            break
        expected[live], aim[live] = next_targets(
            near.take(live),
            far.take(live),
            before,
            reached[left],
            aim[live],
            stiffness[live],
            wanted[left],
            number,
        )
    known = live[np.isfinite(far.out[live])]
    share = (tasks.wanted[known] - near.z[known]) / np.maximum(far.z[known] - near.z[known], 1e-12)
    limit[known] = near.out[known] + np.clip(share, 0, 1) * (far.out[known] - near.out[known])
    return tasks.centre + tasks.sign * limit


def _minimise_penalised(
    pinned: Problem,
    members: Batch,
    tasks: _LimitSearches,
    stiffness: np.ndarray,
    live: np.ndarray,
    inverse: np.ndarray,
    *starts: np.ndarray,
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Minimised from the best of the starts, for the tasks live (B,).

    Returns: θ (B, P), the objective with its spring (B,), and whether that is its minimum (B,).
    """
    starts = tuple(np.clip(start, pinned.lower, pinned.upper) for start in starts)
    f = np.stack([pinned.value(start, members) for start in starts])
    start = np.choose(np.argmin(f, axis=0)[:, None], starts)
    bend = stiffness / (1.0 + stiffness * np.einsum("ti,ti->t", tasks.slope, tasks.give))

    def precondition(g: np.ndarray, which: np.ndarray) -> np.ndarray:
        """(H + k·slope·slopeᵀ)⁻¹ g, by Sherman and Morrison."""
        at = live[which]
        give = tasks.give[at]
        pushed = np.einsum("bi,bi->b", give, g) * bend[at]
        return _by_study(inverse, g, tasks.study[at]) - pushed[:, None] * give

    enough = _LBFGS_TOLERANCE * tasks.sigma2[live] * np.minimum(tasks.wanted[live], 1.0) ** 2
    steps = _LBFGS_ITERATIONS[pinned.size >= _MANY_PARAMETERS]
    found = lbfgs(pinned, start, members, precondition, enough, steps, tasks.best[live])
    rest = np.flatnonzero(~found.converged & np.isfinite(found.objective))
    if len(rest):
        last = minimise(
            pinned, found.theta[rest], members.take(rest), damping=1e-3, tolerance=1e-8, iterations=60
        )
        found.theta[rest], found.objective[rest] = last.theta, last.objective
        found.converged[rest] = last.converged
    return found.theta, found.objective, found.converged
