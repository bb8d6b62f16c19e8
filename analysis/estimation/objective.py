"""What the rows contribute to the objective: its value, and cell by cell its gradient, Hessian and majoriser."""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from threadpoolctl import threadpool_limits

from analysis.estimation.autodiff import Jet, value_of, where
from analysis.laws.law import Law


def huber(
    r: np.ndarray, delta: float | None, majorise: bool = True
) -> tuple[np.ndarray, np.ndarray, Any, Any]:
    """ρ(r), ψ = ρ', ρ'' and (if wanted) ψ/r, of Huber's loss (r²/2 within ±δ, then linear).

    For δ None it is r²/2, and the last two, which are 1, come back as None.
    """
    if delta is None:
        return 0.5 * r * r, r, None, None
    psi = np.clip(r, -delta, delta)
    size = np.abs(r)
    rho = psi * (-0.5)
    rho += r
    rho *= psi
    return rho, psi, size <= delta, delta / np.maximum(size, delta) if majorise else None


GroupEffects = Callable[[np.ndarray], tuple[np.ndarray, np.ndarray]]


def rows_system(
    law: Law,
    p: Any,
    x: Any,
    y: np.ndarray,
    kept: np.ndarray,
    w: np.ndarray,
    relieve: GroupEffects | None,
    delta: float | None,
    barrier: float,
    majorise: bool,
    cells: Sequence[slice],
    kept_rows: np.ndarray | None = None,
) -> tuple[Any, ...]:
    """Objective (B,); of each cell gradient (B, k), Hessian and majoriser (B, k, k); Jacobian (B, k, n) if relieved.

    Args:
      p, x: parameters as jets in the local parameters `kept` (k,), and variables (n,).
      y: response, (n,) or (B, n). w: weights, (1, n) or (B, n). cells: the rows of each.
      relieve: residuals (B, n) -> the objective that groups take off, (B,), and the part of the residuals that is put
        down to the noise they share, (B, n); None without groups.
      barrier: weight of −Σ log(constraint), for laws that have one, over kept_rows (B, n) bool (None: all).
    """
    place = {int(index): position for position, index in enumerate(kept)}
    k, n = len(kept), y.shape[-1]
    walled = law.constraint is not None and barrier > 0
    out, inside = _predicted(law, p, x, walled)
    log = law.residual == "log"
    if not isinstance(out, Jet):
        out = Jet(out, {}, {})
    B = max(len(w), len(np.atleast_2d(out.value)), len(np.atleast_2d(y)))
    inverse: Any = 1.0
    if log:
        inverse = 1.0 / out.value
        residual = np.log(out.value * (1.0 / y))
    else:
        residual = out.value - y
    residual = np.broadcast_to(residual, (B, n))
    rho, psi, steep, ratio = huber(residual, delta, majorise)
    J = np.empty((B, k, n))
    for index, grad in out.grad.items():
        np.multiply(grad, inverse, out=J[:, place[index]])
    for index in kept:
        if int(index) not in out.grad:
            J[:, place[int(index)]] = 0.0
    f, pull = _pull(residual, rho, psi, w, relieve)
    steep = np.broadcast_to(w, (B, n)) if steep is None else w * steep  # least squares: ρ'' = ψ/r = 1
    weighted = J * (steep - pull if log else steep)[:, None]
    bounded = J * (steep if ratio is None else w * ratio)[:, None] if majorise else J
    second = pull * inverse if log else pull
    C = len(cells)
    g, H = np.empty((C, B, k)), np.empty((C, B, k, k))
    M = np.empty((C, B, k, k) if majorise else (0, B, k, k))
    for number, rows in enumerate(cells):
        mine = J[:, :, rows]
        np.matmul(mine, pull[:, rows, None], out=g[number, :, :, None])
        np.matmul(weighted[:, :, rows], mine.swapaxes(1, 2), out=H[number])
        if majorise:
            np.matmul(bounded[:, :, rows], mine.swapaxes(1, 2), out=M[number])
    starts = [rows.start for rows in cells]
    if out.hess:
        curved = np.empty((len(out.hess), B, n))
        for part, of in zip(curved, out.hess.values(), strict=True):
            np.multiply(second, of, out=part)
        _add((H,), np.array([(place[i], place[j]) for i, j in out.hess]), curved, starts)
    if walled:
        inside = _of_kept(inside, kept_rows)
        _barrier(inside, barrier, place, f, g, (H, M) if majorise else (H,), starts)
    return f, g, H, M, J


def _predicted(law: Law, p: Any, x: Any, walled: bool) -> tuple[Any, Any]:
    """The prediction, and the constraint if it is wanted."""
    if walled and law.both is not None:
        return law.both(p, x)
    return law.predict(p, x), law.constraint(p, x) if walled and law.constraint is not None else None


def _pull(
    residual: np.ndarray, rho: np.ndarray, psi: np.ndarray, w: np.ndarray, relieve: GroupEffects | None
) -> tuple[np.ndarray, np.ndarray]:
    """The objective (B,) and its slope in every residual (B, n)."""
    f = np.einsum("bn,bn->b", np.broadcast_to(w, residual.shape), rho)
    if relieve is None:
        return f, w * psi
    saved, relief = relieve(residual)
    return f - saved, w * (psi - relief)


def rows_slope(
    law: Law,
    p: Any,
    x: Any,
    y: np.ndarray,
    kept: np.ndarray,
    w: np.ndarray,
    relieve: GroupEffects | None,
    delta: float | None,
    barrier: float,
    cells: Sequence[slice],
    kept_rows: np.ndarray | None = None,
) -> tuple[np.ndarray, np.ndarray]:
    """Objective (B,) and the gradients of the cells (C, B, k); arguments as of `rows_system`."""
    walled = law.constraint is not None and barrier > 0
    out, inside = _predicted(law, p, x, walled)
    log = law.residual == "log"
    residual = np.log(value_of(out) * (1.0 / y)) if log else value_of(out) - y
    B = max(len(w), len(residual))
    residual = np.broadcast_to(residual, (B, y.shape[-1]))
    rho, psi, _, _ = huber(residual, delta, False)
    f, pull = _pull(residual, rho, psi, w, relieve)
    if log:
        pull = pull / value_of(out)
    starts = [rows.start for rows in cells]
    g = np.zeros((len(cells), B, len(kept)))
    for position, index in enumerate(kept):
        if isinstance(out, Jet) and int(index) in out.grad:
            g[:, :, position] = np.add.reduceat(pull * out.grad[int(index)], starts, axis=1).T
    if walled:
        place = {int(index): position for position, index in enumerate(kept)}
        _barrier(_of_kept(inside, kept_rows), barrier, place, f, g, (), starts)
    return f, g


def _add(matrices: Sequence[np.ndarray], at: np.ndarray, parts: np.ndarray, starts: list) -> None:
    """Adds parts (m, B, n), summed over cells, to entries at (m, 2), and their mirrors, of matrices (C, B, k, k)."""
    sums = np.add.reduceat(parts, starts, axis=2).T
    i, j = at.T
    off = i != j
    for matrix in matrices:
        matrix[:, :, i, j] += sums
        matrix[:, :, j[off], i[off]] += sums[:, :, off]


def _of_kept(inside: Any, kept_rows: np.ndarray | None) -> Any:
    return inside if kept_rows is None else where(kept_rows, inside, 1.0)


def _barrier(
    inside: Any,
    barrier: float,
    place: dict,
    f: np.ndarray,
    g: np.ndarray,
    matrices: Sequence[np.ndarray],
    starts: list,
) -> None:
    """Adds −barrier·Σ log(inside), which keeps every row strictly inside its constraint."""
    f[np.any(value_of(inside) <= 0, axis=-1)] = np.inf
    if not isinstance(inside, Jet):
        return
    which = list(inside.grad)
    at = np.array([place[index] for index in which], int)
    shape = inside.value.shape
    slopes = np.empty((len(which), *shape))
    for slope, of in zip(slopes, inside.grad.values(), strict=True):
        np.divide(of, inside.value, out=slope)
    f -= barrier * np.sum(np.log(inside.value), axis=1)
    g[:, :, at] -= barrier * np.add.reduceat(slopes, starts, axis=2).T
    if not matrices:
        return
    i, j = np.triu_indices(len(which))
    _add(matrices, np.stack([at[i], at[j]], axis=1), barrier * slopes[i] * slopes[j], starts)
    if inside.hess:
        curved = np.empty((len(inside.hess), *shape))
        for part, bend in zip(curved, inside.hess.values(), strict=True):
            np.multiply(bend, -barrier / inside.value, out=part)
        _add(matrices, np.array([(place[a], place[b]) for a, b in inside.hess]), curved, starts)


def dense_derivatives(out: Jet, count: int, B: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """A scalar jet as value (B,), gradient (B, count) and Hessian (B, count, count)."""
    slope, curved = np.zeros((B, count)), np.zeros((B, count, count))
    for index, part in out.grad.items():
        slope[:, index] = np.broadcast_to(part, (B, 1))[:, 0]
    for (i, j), part in (out.hess or {}).items():
        curved[:, i, j] = curved[:, j, i] = np.broadcast_to(part, (B, 1))[:, 0]
    return np.broadcast_to(out.value, (B, 1))[:, 0], slope, curved


def evaluate_in_blocks(run: Callable, theta: np.ndarray, members: Any, block: int) -> tuple[np.ndarray, ...]:
    """Runs over blocks of the batch, each small beside the cache."""
    B = len(theta)
    pieces = [slice(start, min(B, start + block)) for start in range(0, B, block)]
    with np.errstate(all="ignore"):
        done = [run(theta[piece], members.take(piece)) for piece in pieces]
    return done[0] if len(done) == 1 else tuple(np.concatenate(parts) for parts in zip(*done, strict=True))


def one_blas_thread() -> Any:
    """A context in which BLAS uses one thread: a large report takes 6 s of CPU so, and 33 s with two threads."""
    return threadpool_limits(1, user_api="blas")
