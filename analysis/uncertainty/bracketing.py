"""Where a profile reaches its critical value: guesses from the points that are known of it."""

from dataclasses import dataclass

import numpy as np

_MAX_EXTRAPOLATION = 3.0  # times farther out an aim goes at most
_MAX_SLOPE_CHANGE = 0.7  # of the slope at the optimum, by which a parabola may differ from the straight line
_MAX_DEVIATION = 0.5  # share of a limit that it may be from the straight line


@dataclass(frozen=True)
class ProfilePoints:
    """A point on each profile (T,): how far out, the rise in standard errors, and the force that holds it there."""

    out: np.ndarray
    z: np.ndarray
    force: np.ndarray

    @classmethod
    def of(cls, T: int, at: float) -> "Points":
        return cls(np.full(T, at), np.full(T, at), np.zeros(T))

    def move(self, which: np.ndarray, out: np.ndarray, z: np.ndarray, force: np.ndarray) -> None:
        self.out[which], self.z[which], self.force[which] = out, z, force

    def take(self, which: np.ndarray) -> "Points":
        return ProfilePoints(self.out[which], self.z[which], self.force[which])


def next_targets(
    near: ProfilePoints,
    far: ProfilePoints,
    before: ProfilePoints,
    reached: np.ndarray,
    aim: np.ndarray,
    stiffness: np.ndarray,
    wanted: np.ndarray,
    number: int,
) -> tuple[np.ndarray, np.ndarray]:
    """How far out the next points are expected, and what is aimed at for them, (T,) each.

    A point is where the spring's force meets the profile's. As a function of the aim its z has no walls, as it has
    where a parameter meets its bound: so aims are interpolated, not the points themselves.
    """
    with np.errstate(divide="ignore", invalid="ignore"):
        inner, outer = near.out + near.force / stiffness, far.out + far.force / stiffness
        share = _bracket_fraction(near.z, far.z, wanted, number % 3 == 2)  # now and then halved: the profile may jump
        between = inner + share * (outer - inner), near.out + share * (far.out - near.out)
        first = (near.out == 0) & (reached < far.out) & (number % 3 != 2)
        from_far = reached * outer / far.out, reached
        # Farther out: by the last two points, or by the one and the optimum.
        behind = before.out + before.force / stiffness
        run = inner + (wanted - near.z) * (inner - behind) / (near.z - before.z)
        run = np.where(before.out > 0, run, reached * inner / near.out)
        growth = np.clip(wanted / np.maximum(near.z, 1e-9) * 1.01, 1.1, _MAX_EXTRAPOLATION)
        start = np.where(near.out > 0, inner, aim)
        run = np.where((run > inner) & (near.out > 0), np.minimum(run, _MAX_EXTRAPOLATION * inner), start * growth)
        onwards = run, np.where(near.out > 0, near.out * run / start, run)
    bracketed = np.isfinite(far.out)
    new, out = (np.where(bracketed, np.where(first, from_far[i], between[i]), onwards[i]) for i in range(2))
    return out, new


def extrapolate_limit(
    out: np.ndarray, z: np.ndarray, wanted: np.ndarray, unit: np.ndarray, before: ProfilePoints
) -> tuple[np.ndarray, np.ndarray]:
    """Where z reaches what is wanted (T,): by the line through (out, z) and the point before, or where there is none by
    the parabola that leaves the optimum with a slope of 1/unit. And by the line through the optimum.
    """
    with np.errstate(divide="ignore", invalid="ignore"):
        even = out * wanted / z
        bend = (z * unit / out - 1.0) / out
        bent = 2 * wanted * unit / (1.0 + np.sqrt(1.0 + 4 * bend * wanted * unit))
        run = out + (wanted - z) * (out - before.out) / (z - before.z)
        guess = np.where(before.out > 0, run, np.where(np.abs(bend * out) < _MAX_SLOPE_CHANGE, bent, even))
        return np.where(np.abs(guess - even) <= _MAX_DEVIATION * even, guess, even), even


def _bracket_fraction(near_z: np.ndarray, far_z: np.ndarray, wanted: np.ndarray, halve: bool) -> np.ndarray:
    """How far between the two points on either side of the limit to look next."""
    if halve:
        return np.full(len(wanted), 0.5)
    share = (wanted - near_z) / np.maximum(far_z - near_z, 1e-12)
    return np.clip(np.where(np.isfinite(far_z), share, 0.5), 0.05, 0.95)
