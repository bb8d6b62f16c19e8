"""Profile intervals of whatever follows from the parameters: how far can h(θ) go before the fit becomes too bad?

The profile of h at a is the lowest objective among the θ with h(θ) = a. It is found without constraints: a spring
½k(h(θ) − aim)² is added and the sum minimised, after which θ is on the profile at its own h. Aims are chosen so
that the rise of the objective closes in on its critical value, for all quantities, sides and studies together.
A profile does not depend on how the law is parametrised, so a prediction or an exponent is as good as a parameter.
"""

import dataclasses
from collections.abc import Sequence

import numpy as np

from analysis.engine import minimise
from analysis.problem import Problem
from analysis.quantities import Quantity
from analysis.uncertainty import Noise, critical

STIFFNESS = 4.0  # of the spring, over that of the profile
ROUNDS = 14
CLOSE = 0.02  # standard errors between the rise and its critical value that end the search
GROWTH = 3.0  # times farther out an aim goes at most
AHEAD = 1.2  # and at least, until the limit is passed
LEAST = 0.05  # standard errors an interval reaches to either side at least


def intervals(
    problem: Problem,
    theta: np.ndarray,
    noise: Noise,
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
    pinned = dataclasses.replace(problem, pins=tuple(quantities))
    study, which = np.repeat(np.arange(S), m), np.tile(np.arange(m), S)
    centre, slope = values(pinned, theta[study], which)
    low, high = critical(noise, study, slope, level)
    search = _Search(
        pinned,
        theta,
        noise,
        y,
        study=np.repeat(study, 2),
        which=np.repeat(which, 2),
        sign=np.tile([-1.0, 1.0], S * m),
        centre=np.repeat(centre, 2),
        slope=np.repeat(slope, 2, axis=0),
        wanted=np.maximum(np.stack([-low, high], axis=1).ravel(), LEAST),
    )
    limits = search.run().reshape(S, m, 2)
    return limits[:, :, 0], limits[:, :, 1]


def values(pinned: Problem, theta: np.ndarray, which: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Scalar which[b] of the problem's pins at theta[b], (B,), and its gradient (B, P)."""
    h, slope, first = np.empty(len(theta)), np.empty(theta.shape), 0
    for pin in pinned.pins:
        at = np.flatnonzero((which >= first) & (which < first + len(pin)))
        if len(at):
            h[at], slope[at] = pin.derivatives(pinned, theta[at], which[at] - first)[:2]
        first += len(pin)
    return h, slope


@dataclasses.dataclass
class _Search:
    """One task a (study, scalar, side); arrays are (tasks,) but for slope (tasks, P)."""

    problem: Problem
    theta: np.ndarray
    noise: Noise
    y: np.ndarray | None
    study: np.ndarray
    which: np.ndarray
    sign: np.ndarray
    centre: np.ndarray
    slope: np.ndarray
    wanted: np.ndarray

    def run(self) -> np.ndarray:
        noise, problem, study = self.noise, self.problem, self.study
        at = noise.best[study]
        self.sigma2 = noise.sigma2[study, at]
        self.best = self.theta[study]
        path = np.einsum("tij,tj->ti", noise.inverse[study, at], self.slope) * self.sigma2[:, None]
        variance = np.einsum("ti,ti->t", path, self.slope)
        spread = np.sqrt(np.maximum(variance, 1e-300))
        path /= spread[:, None]
        # Along a flat direction a standard error is no guide: step within a part of the bounds.
        room = (problem.upper - problem.lower) / 4
        scale = 1.0 / np.maximum(np.max(np.abs(path * self.wanted[:, None]) / room, axis=1), 1.0)
        spread = np.maximum(spread * scale, 1e-12 * (1.0 + np.abs(self.centre)))
        path *= (self.sign * scale)[:, None]
        self.stiffness = STIFFNESS * self.sigma2 / spread**2
        self.base = self._rise_base()
        return self._close_in(spread, path)

    def _members(self, tasks: np.ndarray, aim: np.ndarray):
        study = self.study[tasks]
        return self.problem.members(
            y=None if self.y is None else self.y[study],
            ratio=self.noise.ratio[self.noise.best[study]],
            which=self.which[tasks],
            aim=aim,
            stiffness=self.stiffness[tasks],
        )

    def _rise_base(self) -> np.ndarray:
        plain = dataclasses.replace(self.problem, pins=())
        ratio = self.noise.ratio[self.noise.best]
        return plain.system(self.theta, plain.members(y=self.y, ratio=ratio))[0][self.study]

    def _close_in(self, spread: np.ndarray, path: np.ndarray) -> np.ndarray:
        T = len(self.study)
        wanted, distance = self.wanted, self.wanted * spread
        near, near_z = np.zeros(T), np.zeros(T)  # farthest point known to be inside
        far, far_z = np.full(T, np.inf), np.full(T, np.inf)  # nearest known to be outside
        last, reached = self.best.copy(), np.zeros(T)
        curvature = np.ones(T)  # of the profile, over that at the optimum
        offset = np.zeros(T)  # of the aim from the optimum, the farthest so far
        limit = np.full(T, np.inf)
        live = np.arange(T)
        for number in range(ROUNDS):
            d = distance[live]
            pull = d * (1 + curvature[live] / STIFFNESS)
            # While nothing is known to be outside, every aim goes farther than the last: where the profile is steeper
            # than it was at the optimum (a parameter met its bound), the spring has given way.
            pull = np.where(np.isinf(far[live]), np.maximum(pull, offset[live] * AHEAD), pull)
            offset[live] = np.maximum(offset[live], pull)
            aim = self.centre[live] + self.sign[live] * pull
            members = self._members(live, aim)
            if number == 0:
                ahead = self.best[live] + path[live] * wanted[live, None]
            else:
                ahead = self.best[live] + (last[live] - self.best[live]) * (d / reached[live])[:, None]
            theta, f = self._lowest(members, ahead, last[live])
            h = values(self.problem, theta, self.which[live])[0]
            rise = np.maximum(f - 0.5 * self.stiffness[live] * (h - aim) ** 2 - self.base[live], 0.0)
            rise = np.where(np.isfinite(rise), rise, np.inf)
            z = np.sqrt(2 * rise / self.sigma2[live])
            out = self.sign[live] * (h - self.centre[live])
            stuck = (out <= near[live] * (1 + 1e-6)) & (z < wanted[live]) & np.isinf(far[live]) & (number > 0)
            inside, outside = (z < wanted[live]) & (out >= near[live]), z >= wanted[live]
            nearer = outside & (out < far[live])
            near[live[inside]], near_z[live[inside]] = out[inside], z[inside]
            far[live[nearer]], far_z[live[nearer]] = out[nearer], z[nearer]
            good = np.isfinite(f) & (out > 0)
            last[live[good]], reached[live[good]] = theta[good], out[good]
            curvature[live[good]] = np.clip((z[good] * spread[live[good]] / out[good]) ** 2, 1e-3, 1e3)
            close = np.abs(z - wanted[live]) <= CLOSE
            done = np.flatnonzero(close & (out > 0))
            limit[live[done]] = out[done] * wanted[live[done]] / np.maximum(z[done], 1e-9)
            live = live[~stuck & ~(close & (out > 0))]
            if not len(live):
                break
            bracketed = np.isfinite(far[live])
            share = (wanted[live] - near_z[live]) / np.maximum(far_z[live] - near_z[live], 1e-12)
            share = np.clip(np.where(np.isfinite(far_z[live]), share, 0.5), 0.05, 0.95)
            share = np.where(number % 3 == 2, 0.5, share)  # halve now and then: the profile may jump
            ratio = np.clip(wanted[live] / np.maximum(near_z[live], 1e-9) * 1.01, 1.1, GROWTH)
            farther = np.where(near[live] > 0, near[live], distance[live]) * ratio
            with np.errstate(invalid="ignore"):
                between = near[live] + share * (far[live] - near[live])
            distance[live] = np.where(bracketed, between, farther)
            reached[live] = np.where(reached[live] > 0, reached[live], distance[live])
        known = live[np.isfinite(far[live])]
        share = (wanted[known] - near_z[known]) / np.maximum(far_z[known] - near_z[known], 1e-12)
        limit[known] = near[known] + np.clip(share, 0, 1) * (far[known] - near[known])
        return self.centre + self.sign * limit

    def _lowest(self, members, *starts: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Minimised from the best of the starts: θ (B, P) and the objective with its spring (B,)."""
        problem = self.problem
        starts = tuple(np.clip(start, problem.lower, problem.upper) for start in starts)
        f = np.stack([problem.system(start, members, False)[0] for start in starts])
        start = np.choose(np.argmin(f, axis=0)[:, None], starts)
        found = minimise(problem, start, members, damping=1e-3, tolerance=1e-8, iterations=60)
        return found.theta, found.objective
