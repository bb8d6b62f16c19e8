"""Aliased parameters: pairs that the data determine only together, such as E and A of a language run at one size.

A pair is aliased where the prediction changes in the same way with both on every row of their cell. The objective is
then constant along a curve in the two: searches do not converge, the Hessian is singular, and a likelihood counts one
piece of information twice. So one parameter of each pair is eliminated: it is held at its lower bound, where its
contribution is least, and its partner carries the sum. Afterwards the sum is divided again between the two.
"""

import dataclasses

import numpy as np

from analysis.estimation.problem import ParameterCell, Problem

_SLOPE_TOLERANCE = 1e-9  # relative difference, over the rows of a cell, of two slopes that count as equal
_PROBE_POINTS = (0.3, 0.7)  # shares of the range of starts, at which slopes are compared


@dataclasses.dataclass(frozen=True)
class Reduction:
    """A problem (`full`, P parameters) and the same without m aliased ones (`reduced`, P − m parameters).

    Attributes:
      dropped: (m,) indices, in the full problem, of the parameters that are eliminated.
      partner: (m,) indices of the parameters that carry their contributions.
      location: (m, 3) of each pair: the first row of its cell, and which of the law's parameters the dropped one and
        its partner are.
    """

    full: Problem
    reduced: Problem
    dropped: np.ndarray
    partner: np.ndarray
    location: np.ndarray

    @property
    def kept(self) -> np.ndarray:
        """(P,) bool: parameters that the reduced problem has."""
        return ~np.isin(np.arange(self.full.size), self.dropped)

    def contributions(self, theta: np.ndarray) -> np.ndarray:
        """(B, m): what each dropped parameter contributes to predictions at theta (B, P), in units of its partner."""
        row, own, other = self.location.T
        slopes = self.full.slopes(theta)[1]
        return slopes[:, own, row] / slopes[:, other, row]

    def covariance(self, theta: np.ndarray, inverse: np.ndarray) -> np.ndarray:
        """(B, P, P) covariance in the full problem, from that in the reduced problem, inverse (B, P − m, P − m).

        The dropped parameters are held at their values in theta (B, P), so their rows and columns are 0. The others
        follow by the delta method.
        """
        if not len(self.dropped):
            return inverse
        kept = np.flatnonzero(self.kept)
        full_slopes = self.full.slopes(theta)[1]
        reduced_slopes = self.reduced.slopes(self.to_reduced(theta))[1]
        jacobian = np.tile(np.eye(len(kept)), (len(theta), 1, 1))
        for partner in np.unique(self.partner):
            row, _, other = self.location[np.flatnonzero(self.partner == partner)[0]]
            # The partner has to offset the change in the dropped contribution that the other parameters cause.
            cell = self.full.cell_of_row[row]
            full = full_slopes[:, :, row] @ self.full.cells[cell].selection[:, kept]
            change = full - reduced_slopes[:, :, row] @ self.reduced.cells[cell].selection
            jacobian[:, np.searchsorted(kept, partner)] -= change / full_slopes[:, other, row, None]
        whole = np.zeros((len(theta), self.full.size, self.full.size))
        whole[np.ix_(np.arange(len(theta)), kept, kept)] = jacobian @ inverse @ jacobian.swapaxes(1, 2)
        return whole

    def to_reduced(self, theta: np.ndarray) -> np.ndarray:
        """(B, P − m) at which the reduced problem predicts what the full one does at theta (B, P)."""
        if not len(self.dropped):
            return theta
        theta = theta.copy()
        at_lower_bound = np.exp(self.full.lower[self.dropped] - theta[:, self.dropped])
        moved = self.contributions(theta) * (1.0 - at_lower_bound)
        for number, partner in enumerate(self.partner):
            theta[:, partner] += moved[:, number]
        return theta[:, self.kept]

    def to_full(self, theta: np.ndarray, like: np.ndarray | None = None) -> np.ndarray:
        """(B, P) at which the full problem predicts what the reduced one does at theta (B, P − m).

        The dropped parameters are as in like (B, P); without it, the mean of the parameters of the same name. Their
        contributions are limited to half of the sum that they share with their partner.
        """
        if not len(self.dropped):
            return theta
        whole = np.empty((len(theta), self.full.size))
        whole[:, self.kept] = theta
        whole[:, self.dropped] = self.full.lower[self.dropped]
        least = self.contributions(whole)
        whole[:, self.dropped] = self._typical(theta) if like is None else like[:, self.dropped]
        amount = least * np.exp(whole[:, self.dropped] - self.full.lower[self.dropped])
        for partner in np.unique(self.partner):
            pairs = self.partner == partner
            total = whole[:, partner] + least[:, pairs].sum(axis=1) - self.full.lower[partner]
            share = np.minimum(1.0, 0.5 * total / amount[:, pairs].sum(axis=1))[:, None]
            share = np.maximum(share, least[:, pairs] / amount[:, pairs])
            whole[:, self.dropped[pairs]] += np.log(share)
            whole[:, partner] += (least[:, pairs] - amount[:, pairs] * share).sum(axis=1)
        return np.where(np.isfinite(theta).all(axis=1)[:, None], whole, np.nan)

    def _typical(self, theta: np.ndarray) -> np.ndarray:
        """(B, m): of each dropped parameter, the mean of those of the same name at theta (B, P − m); if there are
        none, the middle of its range of starts.
        """
        kept, full = self.reduced.fitted_parameters, self.full.fitted_parameters
        typical = np.empty((len(theta), len(self.dropped)))
        for number, dropped in enumerate(self.dropped):
            same_name = [index for index, q in enumerate(kept) if q.name == full[dropped].name]
            middle = np.mean(np.log(full[dropped].start))
            typical[:, number] = theta[:, same_name].mean(axis=1) if same_name else middle
        return typical


def remove_aliased(problem: Problem) -> Reduction:
    """Eliminates logarithms (of A, B) that are aliased with a plain linear parameter (E) of their cell."""
    pairs = _aliased_pairs(problem)
    if not pairs:
        return identity_reduction(problem)
    dropped = np.array([np.flatnonzero(cell.selection[own])[0] for cell, own, _ in pairs])
    partner = np.array([np.flatnonzero(cell.selection[other])[0] for cell, _, other in pairs])
    location = np.array([(cell.rows.start, own, other) for cell, own, other in pairs])
    reduced = problem.hold(~np.isin(np.arange(problem.size), dropped), problem.lower)
    return Reduction(problem, reduced, dropped, partner, location)


def identity_reduction(problem: Problem) -> Reduction:
    """The reduction that keeps all parameters of a problem."""
    nothing = np.zeros(0, int)
    return Reduction(problem, problem, nothing, nothing, np.zeros((0, 3), int))


def _aliased_pairs(problem: Problem) -> list[tuple[ParameterCell, int, int]]:
    """(cell, own, other): law parameters of a cell whose slopes have one ratio on all its rows.

    `own` is fitted as a logarithm and `other` plainly. Both belong to this cell alone and are without a prior.
    """
    which = problem.fitted_parameters
    selections = np.stack([cell.selection for cell in problem.cells])
    cells_of = np.count_nonzero(selections.any(axis=1), axis=0)
    no_prior = np.ones(problem.size, bool) if problem.prior is None else problem.prior[1] == 0
    candidates = []
    for cell in problem.cells:
        own_parameters = {}
        for local, row in enumerate(cell.selection):
            at = np.flatnonzero(row)
            if len(at) == 1 and row[at[0]] == 1.0 and cells_of[at[0]] == 1 and no_prior[at[0]]:
                own_parameters[local] = which[at[0]]
        plain = [local for local, q in own_parameters.items() if q.linear and not q.log]
        logs = [local for local, q in own_parameters.items() if q.linear and q.log]
        candidates += [(cell, own, plain[0]) for own in logs if plain]
    if not candidates:
        return []
    for share in _PROBE_POINTS:
        theta = np.clip(problem.start_ranges @ [1 - share, share], problem.lower, problem.upper)
        slopes, aliased = problem.slopes(theta[None])[1][0], []
        for cell, own, other in candidates:
            with np.errstate(divide="ignore", invalid="ignore"):
                ratio = slopes[own, cell.rows] / slopes[other, cell.rows]
            if np.ptp(ratio) <= _SLOPE_TOLERANCE * np.abs(ratio).min() and np.all(ratio > 0):
                aliased.append((cell, own, other))
        candidates = aliased
    return candidates
