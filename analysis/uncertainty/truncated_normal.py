"""Draws from a multivariate normal truncated to a box, by exact Hamiltonian Monte Carlo (Pakman & Paninski 2014)."""

import numpy as np

_TRAJECTORIES = 6  # from the start to a draw
_MAX_REFLECTIONS = 2000  # of one trajectory


def sample_truncated_normal(
    centre: np.ndarray,
    root: np.ndarray,
    sigma: np.ndarray,
    low: np.ndarray,
    high: np.ndarray,
    start: np.ndarray,
    rng: np.random.Generator,
) -> np.ndarray:
    """(B, P) draws of N(centre, sigma²·root·rootᵀ), sigma (B,), within low and high (P,), from start (P,) inside.

    In the potential of the normal, a particle moves along centre + a·cos t + b·sin t, and is reflected at the bounds.
    """
    at, normal_norm2 = np.tile(start - centre, (len(sigma), 1)), np.einsum("pq,pq->p", root, root)
    for _ in range(_TRAJECTORIES):
        velocity = sigma[:, None] * (rng.standard_normal((len(sigma), root.shape[1])) @ root.T)
        remaining, live = np.full(len(sigma), np.pi / 2), np.arange(len(sigma))
        for _ in range(_MAX_REFLECTIONS):
            when, wall = _next_wall(at[live], velocity[live], low - centre, high - centre)
            time = np.minimum(when, remaining[live])[:, None]
            a, b = at[live], velocity[live]
            at[live] = a * np.cos(time) + b * np.sin(time)
            b = b * np.cos(time) - a * np.sin(time)
            # Reflect the component along the wall's normal, in coordinates where the normal distribution is round.
            along = b[np.arange(len(live)), wall] / normal_norm2[wall]
            velocity[live] = b - 2 * along[:, None] * (root[wall] @ root.T)
            remaining[live] -= time[:, 0]
            live = live[remaining[live] > 0]
            if not len(live):
                break
        at = np.clip(at, low - centre, high - centre)
    return centre + at


def _next_wall(
    at: np.ndarray, velocity: np.ndarray, low: np.ndarray, high: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """(B,) times at which particles (B, P) first leave low or high (P,), infinite for never, and the coordinates."""
    reach, phase = (
        np.hypot(at, velocity),
        np.arctan2(velocity, at),
    )  # a·cos t + b·sin t = reach·cos(t − phase)
    first = np.full(at.shape, np.inf)
    for wall, side in ((low, -1.0), (high, 1.0)):
        crosses = reach > np.abs(wall)
        turn = np.arccos(np.where(crosses, wall / np.where(crosses, reach, 1.0), 0.0))
        # Outwards through the wall: the derivative −reach·sin(t − phase) has the wall's sign.
        time = np.mod(phase - side * turn, 2 * np.pi)
        here = np.abs(at - wall) <= 1e-12 * (1.0 + np.abs(wall))
        time = np.where(here & (side * velocity > 0), 0.0, np.where(here & (time < 1e-9), 2 * np.pi, time))
        first = np.where(crosses, np.minimum(first, time), first)
    which = np.argmin(first, axis=1)
    return first[np.arange(len(at)), which], which
