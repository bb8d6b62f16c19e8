"""Parameters that only do what another does (A of a language at one size, beside its E), held while the rest is fitted.

Such a pair is flat along a whole valley: every search in it wanders, Hessians are singular, and a likelihood counts
one piece of information twice. So the one is put at its lower bound and the other carries both; afterwards they share
again what the data tell of them together.
"""

import dataclasses

import numpy as np

from analysis.estimation.autodiff import Jet
from analysis.estimation.problem import Problem

_SLOPE_TOLERANCE = 1e-9  # relative difference, over the rows of a cell, of two slopes that are one
_PROBE_POINTS = (0.3, 0.7)  # of the range of starts, where slopes are compared


@dataclasses.dataclass(frozen=True)
class Reduction:
    """A problem (`inner`) without the parameters drop (m,) of `outer`, whose part their partners (m,) carry.

    first: `outer` on one row (of rows) of each such cell. place (m, 3): the cell there of each that is dropped, and the
    law's parameters that it and its partner are in it.
    """

    outer: Problem
    inner: Problem
    drop: np.ndarray
    partner: np.ndarray
    place: np.ndarray
    first: Problem
    rows: np.ndarray

    @property
    def kept(self) -> np.ndarray:
        """(P,) bool."""
        return ~np.isin(np.arange(self.outer.size), self.drop)

    def amounts(self, theta: np.ndarray) -> np.ndarray:
        """(B, m): what each dropped parameter contributes at theta (B, P), in units of its partner."""
        row, own, other = self.place.T
        slopes = _slopes(self.first, theta)
        return slopes[:, row, own] / slopes[:, row, other]

    def covariance(self, theta: np.ndarray, inverse: np.ndarray) -> np.ndarray:
        """(B, P, P) of the outer problem's parameters, what was dropped held at its value in theta (B, P), from that of
        the inner problem's (B, P − m, P − m).
        """
        if not len(self.drop):
            return inverse
        kept = np.flatnonzero(self.kept)
        inside = self.inner.subset(np.isin(np.arange(len(self.inner.y)), self.rows))
        here, there = _slopes(self.first, theta), _slopes(inside, self.inwards(theta))
        turn = np.tile(np.eye(len(kept)), (len(theta), 1, 1))
        for partner in np.unique(self.partner):
            row, _, other = self.place[np.flatnonzero(self.partner == partner)[0]]
            # The partner makes up for what the others change in what was dropped.
            outer = here[:, row] @ self.first.cells[row].select[:, kept]
            change = outer - there[:, row] @ inside.cells[row].select
            turn[:, np.searchsorted(kept, partner)] -= change / here[:, row, other, None]
        whole = np.zeros((len(theta), self.outer.size, self.outer.size))
        whole[np.ix_(np.arange(len(theta)), kept, kept)] = turn @ inverse @ turn.swapaxes(1, 2)
        return whole

    def inwards(self, theta: np.ndarray) -> np.ndarray:
        """(B, P − m) where the inner problem predicts what the outer one does at theta (B, P)."""
        if not len(self.drop):
            return theta
        theta = theta.copy()
        away = np.exp(self.outer.lower[self.drop] - theta[:, self.drop])
        moved = self.amounts(theta) * (1.0 - away)
        for number, partner in enumerate(self.partner):
            theta[:, partner] += moved[:, number]
        return theta[:, self.kept]

    def outwards(self, theta: np.ndarray, like: np.ndarray | None = None) -> np.ndarray:
        """(B, P) where the outer problem predicts what the inner one does at theta (B, P − m).

        What was dropped is as in like (B, P), or as its kind is elsewhere, but at most half of what there is to share.
        """
        if not len(self.drop):
            return theta
        whole = np.empty((len(theta), self.outer.size))
        whole[:, self.kept] = theta
        whole[:, self.drop] = self.outer.lower[self.drop]
        least = self.amounts(whole)
        whole[:, self.drop] = self._typical(theta) if like is None else like[:, self.drop]
        amount = least * np.exp(whole[:, self.drop] - self.outer.lower[self.drop])
        for partner in np.unique(self.partner):
            mine = self.partner == partner
            room = whole[:, partner] + least[:, mine].sum(axis=1) - self.outer.lower[partner]
            share = np.minimum(1.0, 0.5 * room / amount[:, mine].sum(axis=1))[:, None]
            share = np.maximum(share, least[:, mine] / amount[:, mine])
            whole[:, self.drop[mine]] += np.log(share)
            whole[:, partner] += (least[:, mine] - amount[:, mine] * share).sum(axis=1)
        return np.where(np.isfinite(theta).all(axis=1)[:, None], whole, np.nan)

    def _typical(self, theta: np.ndarray) -> np.ndarray:
        """(B, m): the mean of the parameters of the same name at theta (B, P − m), or the middle of its starts."""
        inside, outside = self.inner.held["parameters"], self.outer.held["parameters"]
        typical = np.empty((len(theta), len(self.drop)))
        for number, drop in enumerate(self.drop):
            alike = [index for index, q in enumerate(inside) if q.name == outside[drop].name]
            middle = np.mean(np.log(outside[drop].start))
            typical[:, number] = theta[:, alike].mean(axis=1) if alike else middle
        return typical


def remove_aliased(problem: Problem) -> Reduction:
    """The problem without logarithms whose slopes, in the rows of their cell, are those of a plain linear parameter."""
    drop, partner, place, rows = [], [], [], []
    for cell, own, other in _aliased_pairs(problem):
        row = cell.rows.start
        if row not in rows:
            rows.append(row)
        drop.append(int(np.flatnonzero(cell.select[own])[0]))
        partner.append(int(np.flatnonzero(cell.select[other])[0]))
        place.append((rows.index(row), own, other))
    if not drop:
        return identity_reduction(problem)
    keep = ~np.isin(np.arange(problem.size), drop)
    held = np.where(keep, 0.0, problem.lower)
    inner = dataclasses.replace(
        problem,
        cells=tuple(
            dataclasses.replace(cell, select=cell.select[:, keep], offset=cell.offset + cell.select @ held)
            for cell in problem.cells
        ),
        lower=problem.lower[keep],
        upper=problem.upper[keep],
        exponential=None if problem.exponential is None else problem.exponential[keep],
        prior=None if problem.prior is None else (problem.prior[0][keep], problem.prior[1][keep]),
        held={
            **problem.held,
            "parameters": tuple(q for q, kept in zip(problem.held["parameters"], keep, strict=True) if kept),
        },
    )
    first = problem.subset(np.isin(np.arange(len(problem.y)), rows))
    return Reduction(problem, inner, np.array(drop), np.array(partner), np.array(place), first, np.array(rows))


def identity_reduction(problem: Problem) -> Reduction:
    """The problem with all its parameters."""
    nothing = np.zeros(0, int)
    return Reduction(problem, problem, nothing, nothing, np.zeros((0, 3), int), problem, nothing)


def _slopes(problem: Problem, theta: np.ndarray) -> np.ndarray:
    """(B, n, k): derivatives of the predictions at theta (B, P) in the law's parameters."""
    with np.errstate(all="ignore"):
        out = problem.law.predict(problem.rows_jets(theta, 1), problem._variables)
    found = np.zeros((len(theta), len(problem.y), len(problem.law.parameters)))
    for index, slope in out.grad.items() if isinstance(out, Jet) else ():
        found[:, :, index] = slope
    return found


def _aliased_pairs(problem: Problem) -> list[tuple]:
    """(cell, own, other) of every logarithm `own` that does in its cell what `other`, plain and linear, does."""
    which = problem.held["parameters"]
    selects = np.stack([cell.select for cell in problem.cells])
    cells_of = np.count_nonzero(selects.any(axis=1), axis=0)
    free = np.ones(problem.size, bool) if problem.prior is None else problem.prior[1] == 0
    candidates = []
    for cell in problem.cells:
        alone = {}
        for local, row in enumerate(cell.select):
            at = np.flatnonzero(row)
            if len(at) == 1 and row[at[0]] == 1.0 and cells_of[at[0]] == 1 and free[at[0]]:
                alone[local] = which[at[0]]
        plain = [local for local, q in alone.items() if q.linear and not q.log]
        logs = [local for local, q in alone.items() if q.linear and q.log]
        candidates += [(cell, own, plain[0]) for own in logs if plain]
    if not candidates:
        return []
    for share in _PROBE_POINTS:
        ranges = np.array([np.log(q.start) if q.log else q.start for q in which], float).reshape(-1, 2)
        theta = np.clip(ranges @ [1 - share, share], problem.lower, problem.upper)
        slopes, left = _slopes(problem, theta[None])[0].T, []
        for cell, own, other in candidates:
            with np.errstate(divide="ignore", invalid="ignore"):
                ratio = slopes[own, cell.rows] / slopes[other, cell.rows]
            if np.ptp(ratio) <= _SLOPE_TOLERANCE * np.abs(ratio).min() and np.all(ratio > 0):
                left.append((cell, own, other))
        candidates = left
    return candidates
