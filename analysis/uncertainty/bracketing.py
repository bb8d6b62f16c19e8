"""Root bracketing for profile-likelihood limits: where to look next, from the points of a profile that are known.

A profile is z as a function of `out`: out is the distance of a quantity h from its value at the optimum, z the square
root of twice the rise of the objective, in standard errors. A limit is where z reaches a critical value. Points are
found by minimising the objective plus a penalty ½k(out − target)², so the target, not out itself, is what is chosen.
"""

from dataclasses import dataclass

import numpy as np

_MAX_EXTRAPOLATION = 3.0  # factor by which a target may exceed the farthest point inside the limit
_MAX_SLOPE_CHANGE = 0.7  # of the slope at the optimum: beyond it a parabola is not trusted
_MAX_DEVIATION = 0.5  # share of a limit by which an extrapolation may differ from the straight line


@dataclass(frozen=True)
class ProfilePoints:
    """A point on each of T profiles, (T,) each. The arrays are updated in place.

    out: distance from the optimum. z: rise in standard errors. multiplier: of the constraint that holds h there (the
    penalty's derivative, k·(target − out)).
    """

    out: np.ndarray
    z: np.ndarray
    multiplier: np.ndarray

    @classmethod
    def of(cls, T: int, at: float) -> "ProfilePoints":
        """T points at out = z = at, without a multiplier."""
        return cls(np.full(T, at), np.full(T, at), np.zeros(T))

    def update(self, which: np.ndarray, out: np.ndarray, z: np.ndarray, multiplier: np.ndarray) -> None:
        """Replaces the points of profiles `which`."""
        self.out[which], self.z[which], self.multiplier[which] = out, z, multiplier

    def take(self, which: np.ndarray) -> "ProfilePoints":
        """The points of profiles `which`."""
        return ProfilePoints(self.out[which], self.z[which], self.multiplier[which])


def next_targets(
    inside: ProfilePoints,
    outside: ProfilePoints,
    last: ProfilePoints,
    extrapolated: np.ndarray,
    target: np.ndarray,
    penalty_weight: np.ndarray,
    critical: np.ndarray,
    iteration: int,
) -> tuple[np.ndarray, np.ndarray]:
    """How far out the next points are expected, and the targets that lead there, (T,) each.

    Between two points that bracket the limit z is interpolated (and the interval halved every third iteration, as the
    profile may jump); otherwise it is extrapolated. Targets are interpolated, not the points: z is a continuous
    function of the target even where out does not change, as when a parameter reaches its bound.

    Args:
      inside: farthest known points with z below the critical value. outside: nearest known points above it, at
        infinity if there are none. last: the points before the latest.
      extrapolated: (T,) limits, as from `extrapolate_limit`. target, penalty_weight, critical: (T,).
    """
    with np.errstate(divide="ignore", invalid="ignore"):
        low = inside.out + inside.multiplier / penalty_weight  # the targets of the two points
        high = outside.out + outside.multiplier / penalty_weight
        fraction = _bracket_fraction(inside.z, outside.z, critical, iteration % 3 == 2)
        interpolated = low + fraction * (high - low), inside.out + fraction * (outside.out - inside.out)
        use_extrapolated = (inside.out == 0) & (extrapolated < outside.out) & (iteration % 3 != 2)
        from_outside = extrapolated * high / outside.out, extrapolated
        # No point outside yet: the line through the last two points, or through the last and the optimum.
        before = last.out + last.multiplier / penalty_weight
        line = low + (critical - inside.z) * (low - before) / (inside.z - last.z)
        line = np.where(last.out > 0, line, extrapolated * low / inside.out)
        growth = np.clip(critical / np.maximum(inside.z, 1e-9) * 1.01, 1.1, _MAX_EXTRAPOLATION)
        start = np.where(inside.out > 0, low, target)
        limited = np.minimum(line, _MAX_EXTRAPOLATION * low)
        line = np.where((line > low) & (inside.out > 0), limited, start * growth)
        onwards = line, np.where(inside.out > 0, inside.out * line / start, line)
    bracketed = np.isfinite(outside.out)
    new, out = (
        np.where(bracketed, np.where(use_extrapolated, from_outside[i], interpolated[i]), onwards[i])
        for i in range(2)
    )
    return out, new


def extrapolate_limit(
    out: np.ndarray, z: np.ndarray, critical: np.ndarray, unit: np.ndarray, last: ProfilePoints
) -> tuple[np.ndarray, np.ndarray]:
    """Two extrapolations of where z reaches its critical value (T,), from points (out, z).

    The first uses the line through the point and the last one before it; if there is none, the parabola that leaves
    the optimum with slope 1/unit. The second is the line through the optimum, which replaces a first that is far off.
    """
    with np.errstate(divide="ignore", invalid="ignore"):
        straight = out * critical / z
        bend = (z * unit / out - 1.0) / out
        parabola = 2 * critical * unit / (1.0 + np.sqrt(1.0 + 4 * bend * critical * unit))
        secant = out + (critical - z) * (out - last.out) / (z - last.z)
        curved = np.where(np.abs(bend * out) < _MAX_SLOPE_CHANGE, parabola, straight)
        limit = np.where(last.out > 0, secant, curved)
        return np.where(np.abs(limit - straight) <= _MAX_DEVIATION * straight, limit, straight), straight


def _bracket_fraction(
    inside_z: np.ndarray, outside_z: np.ndarray, critical: np.ndarray, halve: bool
) -> np.ndarray:
    """(T,): where to look next between the two points that bracket the limit, as a fraction of their distance."""
    if halve:
        return np.full(len(critical), 0.5)
    fraction = (critical - inside_z) / np.maximum(outside_z - inside_z, 1e-12)
    return np.clip(np.where(np.isfinite(outside_z), fraction, 0.5), 0.05, 0.95)
