"""Draws from a multivariate normal truncated to a box, for decisions within the parameters' bounds."""

import numpy as np

_TRAJECTORIES = 6  # trajectories from the optimum to a draw


_MAX_REFLECTIONS = 2000  # of one trajectory, at most


def sample_truncated_normal(
    centre: np.ndarray,
    root: np.ndarray,
    spread: np.ndarray,
    low: np.ndarray,
    high: np.ndarray,
    start: np.ndarray,
    rng: np.random.Generator,
) -> np.ndarray:
    """(B, P) draws of N(centre, spread²·root·rootᵀ), spread (B,), within low and high (P,), from start (P,) inside.

    A particle in the normal's potential moves along centre + a·cos t + b·sin t, and is reflected at the bounds.
    """
    at, steepness = np.tile(start - centre, (len(spread), 1)), np.einsum("pq,pq->p", root, root)
    for _ in range(_TRAJECTORIES):
        speed = spread[:, None] * (rng.standard_normal((len(spread), root.shape[1])) @ root.T)
        left, live = np.full(len(spread), np.pi / 2), np.arange(len(spread))
        for _ in range(_MAX_REFLECTIONS):
            when, wall = _next_wall(at[live], speed[live], low - centre, high - centre)
            time = np.minimum(when, left[live])[:, None]
            a, b = at[live], speed[live]
            at[live] = a * np.cos(time) + b * np.sin(time)
            b = b * np.cos(time) - a * np.sin(time)
            # The part of the speed along the wall's normal, in the scale where the normal is round, turns.
            along = b[np.arange(len(live)), wall] / steepness[wall]
            speed[live] = b - 2 * along[:, None] * (root[wall] @ root.T)
            left[live] -= time[:, 0]
            live = live[left[live] > 0]
            if not len(live):
                break
        at = np.clip(at, low - centre, high - centre)
    return centre + at


def _next_wall(
    at: np.ndarray, speed: np.ndarray, low: np.ndarray, high: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """(B,) when the particles first leave low or high (P,), and in which coordinate; infinite where they never do."""
    reach, phase = np.hypot(at, speed), np.arctan2(speed, at)  # a·cos t + b·sin t = reach·cos(t − phase)
    first = np.full(at.shape, np.inf)
    for wall, side in ((low, -1.0), (high, 1.0)):
        crosses = reach > np.abs(wall)
        turn = np.arccos(np.where(crosses, wall / np.where(crosses, reach, 1.0), 0.0))
        # Outwards through the wall: the derivative −reach·sin(t − phase) has the wall's sign.
        time = np.mod(phase - side * turn, 2 * np.pi)
        here = np.abs(at - wall) <= 1e-12 * (1.0 + np.abs(wall))
        time = np.where(here & (side * speed > 0), 0.0, np.where(here & (time < 1e-9), 2 * np.pi, time))
        first = np.where(crosses, np.minimum(first, time), first)
    which = np.argmin(first, axis=1)
    return first[np.arange(len(at)), which], which
