"""How sure a fit is: noise that groups share, profiles, bootstraps, and draws for whatever follows from them.

Two ways. Where each row is a run of its own and there are many, groups are resampled (pairs bootstrap). Else the
log residual of row i of group g is modelled as u_g + e_i: the ratio ρ = var(u)/var(e) is estimated by restricted
maximum likelihood, its uncertainty is carried by averaging over ρ, and parameters get profile intervals, which
hold with few groups where bootstraps do not.
"""

import dataclasses
import functools

import numpy as np
from scipy.stats import t as student

from analysis.engine import Minimum, minimise
from analysis.problem import Problem
from analysis.resampling import Surrogate, at_optimum

RATIOS = np.concatenate([[0.0], np.geomspace(0.02, 200.0, 15)])
STEPS = np.array([0.8, 1.4, 2.0, 2.8, 4.0])
LARGE = 5_000_000  # rows × bootstraps from which the expansion at the optimum is tried
PROOF = 16  # bootstraps that are then worked out exactly too
EXACT = 0.02  # standard deviations that they may differ by
COARSE = 1.0  # a jump of the profile, in standard errors, that is looked into


@dataclasses.dataclass(frozen=True)
class Noise:
    """The noise of a least-squares fit, R values of ρ averaged over.

    ratio (R,), chance (R,) of each, theta (R, P) the optimum given it, sigma2 (R,) variance of a row,
    inverse (R, P, P) such that sigma2·inverse is the covariance of theta, freedom: n − P, best: index of ρ̂.
    """

    ratio: np.ndarray
    chance: np.ndarray
    theta: np.ndarray
    sigma2: np.ndarray
    inverse: np.ndarray
    freedom: int
    best: int

    @property
    def deviation(self) -> np.ndarray:
        """(P,) standard errors at ρ̂."""
        variance = np.einsum("ii->i", self.inverse[self.best]) * self.sigma2[self.best]
        return np.sqrt(np.maximum(variance, 0.0))


def noise(problem: Problem, theta: np.ndarray) -> Noise:
    """Estimates ρ and the noise at a least-squares optimum theta (P,); ρ = 0 where no group has two rows."""
    repeated = np.bincount(problem.group).max() > 1
    ratio = RATIOS if repeated else np.zeros(1)
    found = minimise(problem, np.tile(theta, (len(ratio), 1)), problem.members(ratio=ratio), damping=1e-3)
    information = problem.system(found.theta, problem.members(ratio=ratio))[3]
    freedom = max(1, len(problem.y) - problem.size)
    rss = 2 * problem.objective(found.theta, problem.members(ratio=ratio))
    sigma2 = np.maximum(rss, 1e-300) / freedom
    inverse, log_determinant = _invert(information)
    total = np.bincount(problem.group, problem.weight)
    log_V = np.log1p(ratio[:, None] * total).sum(axis=1)
    restricted = -0.5 * (freedom * np.log(sigma2) + log_V + log_determinant)
    # The reference prior, 1/σ² for the variance within and for that between groups: uniform in log(1 + m·ρ) for
    # groups of m rows, which makes an interval between groups Student's with the freedom of the groups.
    size = len(problem.y) / problem.groups
    share = np.log1p(size * ratio)
    edges = np.concatenate([share[:1], (share[1:] + share[:-1]) / 2, share[-1:]])
    chance = np.exp(restricted - restricted.max()) * (np.diff(edges) if len(ratio) > 1 else 1.0)
    return Noise(
        ratio, chance / chance.sum(), found.theta, sigma2, inverse, freedom, int(np.argmax(restricted))
    )


def _invert(information: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Pseudo-inverses of (R, P, P) and the log determinants of what is not flat."""
    scale = np.sqrt(np.maximum(np.einsum("rii->ri", information), 1e-300))
    values, vectors = np.linalg.eigh(information / scale[:, :, None] / scale[:, None, :])
    solid = values > 1e-12 * values[:, -1:]
    inverse = (vectors * np.where(solid, 1 / np.where(solid, values, 1.0), 1e12)[:, None]) @ vectors.swapaxes(
        1, 2
    )
    log_determinant = np.where(solid, np.log(np.where(solid, values, 1.0)), 0.0).sum(1) + 2 * np.log(
        scale
    ).sum(1)
    return inverse / scale[:, :, None] / scale[:, None, :], log_determinant


def critical(noise: Noise, slope: np.ndarray, level: float) -> tuple[float, float]:
    """Lower and upper critical value, in standard errors at ρ̂, of the quantity with gradient slope (P,)."""
    centre = noise.theta @ slope
    spread = np.sqrt(np.maximum(np.einsum("i,rij,j->r", slope, noise.inverse, slope) * noise.sigma2, 1e-300))
    at = noise.best
    shift, width = (centre - centre[at]) / spread[at], spread / spread[at]
    grid, table = _student(noise.freedom)
    mass = noise.chance @ np.interp((grid - shift[:, None]) / width[:, None], grid, table)
    return (
        float(np.interp((1 - level) / 2, mass, grid)),
        float(np.interp((1 + level) / 2, mass, grid)),
    )


@functools.lru_cache(maxsize=64)
def _student(freedom: int) -> tuple[np.ndarray, np.ndarray]:
    """Student's distribution function on a grid, fine where intervals end."""
    half = np.concatenate([np.linspace(0.0, 8.0, 801), np.geomspace(8.1, 1e4, 200)])
    grid = np.concatenate([-half[:0:-1], half])
    return grid, student.cdf(grid, freedom)


def profile_intervals(
    problem: Problem, theta: np.ndarray, noise: Noise, level: float
) -> tuple[np.ndarray, np.ndarray]:
    """(P,) lower and upper limits in the fitted scale; ∓inf where the profile stays flat to the bound."""
    P = problem.size
    span = problem.upper - problem.lower
    deviation = np.clip(noise.deviation, 1e-12 * span, span / 4)
    which = np.repeat(np.arange(P), 2)
    sign = np.tile([-1.0, 1.0], P)
    wanted = np.abs([critical(noise, np.eye(P)[j], level) for j in range(P)]).ravel()
    room = np.where(sign > 0, problem.upper[which] - theta[which], theta[which] - problem.lower[which])
    points, heights = np.zeros((2 * P, 1)), np.zeros((2 * P, 1))

    def climb(tasks: np.ndarray, away: np.ndarray) -> None:
        """Adds profile points at distances away (len(tasks), K)."""
        nonlocal points, heights
        away = np.minimum(away, room[tasks, None])
        goals = theta[which[tasks], None] + sign[tasks, None] * away
        z = _profile(problem, theta, noise, which[tasks], goals)
        new = np.full((2, 2 * P, away.shape[1]), np.nan)
        new[0, tasks], new[1, tasks] = away, z
        points, heights = np.concatenate([points, new[0]], axis=1), np.concatenate([heights, new[1]], axis=1)

    climb(np.arange(2 * P), deviation[which, None] * STEPS)
    for widen in (5.0, 25.0, 1e6):
        short = np.nanmax(heights, axis=1) < wanted
        tasks = np.flatnonzero(short & (np.nanmax(points, axis=1) < room * (1 - 1e-9)))
        if not len(tasks):
            break
        climb(tasks, deviation[which[tasks], None] * STEPS[1::2] * widen)
    for _ in range(6):  # close in on the crossing where the height jumps over it
        brackets = [_bracket(points[i], heights[i], wanted[i]) for i in range(2 * P)]
        tasks = np.array([i for i, b in enumerate(brackets) if b and b[3] - b[2] > COARSE], int)
        if not len(tasks):
            break
        low, high = np.array([brackets[i][:2] for i in tasks]).T  # type: ignore[index]
        climb(tasks, low[:, None] + (high - low)[:, None] * np.array([0.25, 0.5, 0.75]))
    limits = np.empty(2 * P)
    for i in range(2 * P):
        found = _bracket(points[i], heights[i], wanted[i])
        if found is None:
            limits[i] = sign[i] * np.inf
            continue
        near, far, below, above = found
        share = (wanted[i] - below) / (above - below)
        limits[i] = theta[which[i]] + sign[i] * (near + share * (far - near))
    return limits[0::2], limits[1::2]


def _bracket(
    points: np.ndarray, heights: np.ndarray, wanted: float
) -> tuple[float, float, float, float] | None:
    """Distances and heights on either side of where the profile first rises past `wanted`, or None."""
    known = ~np.isnan(points) & ~np.isnan(heights)
    order = np.argsort(points[known], kind="stable")
    distance = points[known][order]
    height = np.maximum.accumulate(np.minimum(heights[known][order], 1e6))
    if height[-1] < wanted:
        return None
    at = int(np.argmax(height >= wanted))
    if at == 0:
        return 0.0, 0.0, wanted - 1.0, wanted
    return distance[at - 1], distance[at], height[at - 1], height[at]


def _profile(
    problem: Problem, theta: np.ndarray, noise: Noise, which: np.ndarray, goals: np.ndarray
) -> np.ndarray:
    """Root of the rise of the objective, in standard errors, with parameter which[i] held at goals[i, :]."""
    inverse, base = noise.inverse[noise.best], problem.objective(theta[None])[0]
    P, K = problem.size, goals.shape[1]
    diagonal = np.einsum("ii->i", inverse)[which]
    path = inverse[which] / np.maximum(diagonal, 1e-300)[:, None]
    start = theta + (goals - theta[which, None])[:, :, None] * path[:, None, :]
    start = np.clip(start, problem.lower, problem.upper)
    start[np.arange(len(which))[:, None], np.arange(K), which[:, None]] = goals
    hold = np.zeros((len(which), K, P), bool)
    hold[np.arange(len(which)), :, which] = True
    flat = start.reshape(-1, P)
    # Along a nearly flat direction the straight path leads nowhere: keep the better of it and no path at all.
    plain = np.tile(theta, (len(flat), 1))
    plain[np.arange(len(flat)), np.repeat(which, K)] = goals.ravel()
    with np.errstate(all="ignore"):
        worse = ~(problem.system(flat, problem.members())[0] <= problem.system(plain, problem.members())[0])
    flat[worse] = plain[worse]
    found = minimise(problem, flat, hold=hold.reshape(-1, P), damping=1e-3, tolerance=1e-8, iterations=60)
    value = np.where(np.isfinite(found.objective), problem.objective(found.theta), np.inf)
    rise = np.maximum(value - base, 0.0).reshape(len(which), K)
    return np.sqrt(2 * rise / noise.sigma2[noise.best])


def laplace_draws(problem: Problem, theta: np.ndarray, noise: Noise, count: int, seed: int) -> np.ndarray:
    """(count, P) draws from Student mixtures around the optima given ρ, resampled towards the exact objective."""
    rng = np.random.default_rng(seed)
    proposals = 4 * count
    which = rng.choice(len(noise.ratio), proposals, p=noise.chance)
    P = problem.size
    result = np.empty((proposals, P))
    log_weight = np.empty(proposals)
    for r in np.unique(which):
        at = np.flatnonzero(which == r)
        values, vectors = np.linalg.eigh((noise.inverse[r] + noise.inverse[r].T) / 2 * noise.sigma2[r])
        spread = np.sqrt(np.clip(values, 0.0, 25.0))
        chi = rng.chisquare(noise.freedom, len(at)) / noise.freedom
        normal = rng.standard_normal((len(at), P))
        away = (normal * spread) @ vectors.T / np.sqrt(chi)[:, None]
        result[at] = noise.theta[r] + away
        quadratic = (normal**2).sum(axis=1) / chi
        members = problem.members(ratio=noise.ratio[r : r + 1])
        rss = 2 * problem.objective(np.clip(result[at], problem.lower, problem.upper), members)
        best = noise.freedom * noise.sigma2[r]
        log_weight[at] = (
            -0.5
            * (noise.freedom + P)
            * (np.log(np.maximum(rss, 1e-300) / best) - np.log1p(quadratic / noise.freedom))
        )
    inside = ((result >= problem.lower) & (result <= problem.upper)).all(axis=1)
    if problem.law.constraint is not None:
        inside &= (problem.constraint(np.clip(result, problem.lower, problem.upper)) > 0).all(axis=1)
    log_weight[~inside | ~np.isfinite(log_weight)] = -np.inf
    if not np.isfinite(log_weight).any():
        return np.tile(theta, (count, 1))
    weight = np.exp(np.minimum(log_weight - np.max(log_weight), 0.0))
    # A few heavy draws would stand for the whole interval: cap the weights at the square-root-n rule.
    weight = np.minimum(weight, weight.mean() * np.sqrt(proposals))
    return result[rng.choice(proposals, count, p=weight / weight.sum())]


def bootstrap(problem: Problem, theta: np.ndarray, count: int, seed: int) -> np.ndarray:
    """(count, P): the fit repeated on resampled groups, all rows of a group together."""
    return refit(problem, theta, resamples(problem.groups, count, seed)[:, problem.group]).theta


def resamples(groups: int, count: int, seed: int) -> np.ndarray:
    """(count, groups): how often each group is drawn, with replacement."""
    drawn = np.random.default_rng(seed).integers(groups, size=(count, groups))
    drawn += groups * np.arange(count)[:, None]
    return np.bincount(drawn.ravel(), minlength=count * groups).reshape(count, groups).astype(float)


def refit(problem: Problem, theta: np.ndarray, times: np.ndarray) -> Minimum:
    """The optima of problems whose rows count times (B, n) as often, from the optimum theta (P,) of this one.

    On a large sample they are taken from the expansion at theta, if a few of them, worked out exactly, lie within
    `EXACT` standard deviations of the exact ones in every parameter; else all are polished exactly.
    """
    *first, metric = at_optimum(problem, theta, times)
    start = np.tile(theta, (len(times), 1))
    if times.size >= LARGE and problem.pin is None:
        close = minimise(
            Surrogate(problem, theta),  # type: ignore[arg-type]
            start,
            problem.members(times=times),
            metric=metric,
            first=tuple(first),
            damping=0.0,
            tolerance=1e-9,
            iterations=30,
        )
        proof = _polish(problem, close.theta[:PROOF], times[:PROOF], metric, None)
        away = np.abs(proof.theta - close.theta[:PROOF]).max(axis=0)
        if (away <= EXACT * np.std(close.theta, axis=0) + 1e-12).all():
            close.theta[:PROOF], close.objective[:PROOF] = proof.theta, proof.objective
            return close
        feasible = problem.constraint(close.theta).min(axis=1) > 0 if problem.law.constraint else True
        start = np.where(np.reshape(feasible, (-1, 1)), close.theta, start)
        return _polish(problem, start, times, metric, None)
    return _polish(problem, start, times, metric, tuple(first))


def _polish(
    problem: Problem, start: np.ndarray, times: np.ndarray, metric: np.ndarray, first: tuple | None
) -> Minimum:
    members = problem.members(times=times)
    return minimise(
        problem, start, members, metric=metric, first=first, damping=1e-3, tolerance=1e-8, iterations=200
    )
