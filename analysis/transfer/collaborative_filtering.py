"""Scores of a pair read off pairs of languages that fare alike: who transfers to the same languages, and from them.

Two languages are alike where their scores, less the mean of all, agree with the same third languages: both as targets
and as sources. The score of s for t is then that of languages like t with s, and of t with languages like s. This is
neighbourhood-based collaborative filtering, with likeness amplified (Breese, Heckerman & Kadie 1998, sections 2.1 and
2.2.3), and with both directions of a pair left out.
"""

import dataclasses

import numpy as np

SHRINK = 4.0  # scores in common, below which agreement is mostly discounted
AMPLIFIED = 2.5  # power of likeness: who is much alike counts far more than who is a little
BLOCK = 200_000  # numbers worked on at once
TINY = 1e-9  # what rounding may leave of nothing


def by_likeness(scores: np.ndarray, given: np.ndarray, cells: np.ndarray) -> np.ndarray:
    """(B, m): for cells (m, 2) of target and source, what languages like the two score; NaN where none is known.

    Nothing of a cell's own pair enters, in either direction.

    Args:
      scores: (T, T), row = target and column = source. given: (B, T, T) bool, which of them are known.
    """
    known = _Known.of(scores, given)
    t, s = cells.T
    found = known.elsewhere()[:, t, s]
    own = np.argwhere(given[:, t, s] | given[:, s, t])
    size = max(BLOCK // len(scores), 1)
    for start in range(0, len(own), size):
        b, cell = own[start : start + size].T
        found[b, cell] = known.without(b, t[cell], s[cell])
    return found


@dataclasses.dataclass(frozen=True)
class _Known:
    """Scores S and which are given u, (B, T, T), and of every two languages over what both have in common: how many,
    the products, and the sums and squares of the first's.
    """

    S: np.ndarray
    u: np.ndarray
    numbers: np.ndarray
    products: np.ndarray
    sums: np.ndarray
    squares: np.ndarray

    @classmethod
    def of(cls, scores: np.ndarray, given: np.ndarray) -> "_Known":
        u, S = given.astype(float), np.where(given, scores, 0.0)
        turned, turned_u = S.swapaxes(1, 2), u.swapaxes(1, 2)

        def common(first: np.ndarray, second: np.ndarray) -> np.ndarray:
            """As targets of the same sources, and as sources of the same targets."""
            return first @ second.swapaxes(1, 2) + first.swapaxes(1, 2) @ second

        return cls(S, u, common(u, u), common(S, S), S @ turned_u + turned @ u, common(S**2, u))

    def elsewhere(self) -> np.ndarray:
        """(B, T, T): what is said of pairs that are not given."""
        with np.errstate(invalid="ignore", divide="ignore"):
            mean = (self.S.sum(axis=(1, 2)) / self.u.sum(axis=(1, 2)))[:, None, None]
        its = (table.swapaxes(1, 2) for table in (self.sums, self.squares))
        like = _likeness(mean, self.numbers, self.products, self.sums, self.squares, *its)
        np.einsum("btt->bt", like)[...] = 0.0
        away, turned = self.S - mean * self.u, like.swapaxes(1, 2)
        return _average(mean, like @ away + away @ turned, np.abs(like) @ self.u + self.u @ np.abs(turned))

    def without(self, b: np.ndarray, t: np.ndarray, s: np.ndarray) -> np.ndarray:
        """(n,): what is said of cells (t, s) by the rest of the scores b, their own pair left out."""
        S, u = self.S, self.u
        row, a, back, a_u, back_u = np.arange(len(b)), S[b, t, s], S[b, s, t], u[b, t, s], u[b, s, t]
        total, count = S.sum(axis=(1, 2))[b] - a - back, u.sum(axis=(1, 2))[b] - a_u - back_u
        with np.errstate(invalid="ignore", divide="ignore"):
            mean = (total / count)[:, None]

        def like(one: np.ndarray, other: np.ndarray) -> np.ndarray:
            """(n, T): how language `one` of each cell agrees with all, without its scores with `other`."""
            x, y, x_u, y_u = (
                table[b, p, q][:, None] for table in (S, u) for p, q in ((one, other), (other, one))
            )
            column, line, column_u, line_u = (
                part for table in (S, u) for part in (table[b, :, other], table[b, other])
            )
            found = _likeness(
                mean,
                self.numbers[b, one] - x_u * column_u - y_u * line_u,
                self.products[b, one] - x * column - y * line,
                self.sums[b, one] - x * column_u - y * line_u,
                self.squares[b, one] - x**2 * column_u - y**2 * line_u,
                self.sums[b, :, one] - x_u * column - y_u * line,
                self.squares[b, :, one] - x_u * column**2 - y_u * line**2,
            )
            found[row, one] = found[row, other] = 0.0
            return found

        like_t, like_s = like(t, s), like(s, t)
        above = (like_t * (S[b, :, s] - mean * u[b, :, s])).sum(axis=1)
        above += (like_s * (S[b, t] - mean * u[b, t])).sum(axis=1)
        weight = (np.abs(like_t) * u[b, :, s]).sum(axis=1) + (np.abs(like_s) * u[b, t]).sum(axis=1)
        return _average(mean[:, 0], above, weight)


def _likeness(
    mean: np.ndarray,
    number: np.ndarray,
    product: np.ndarray,
    mine: np.ndarray,
    my_squares: np.ndarray,
    its: np.ndarray,
    its_squares: np.ndarray,
) -> np.ndarray:
    """The cosine of scores less their mean, shrunk where few are in common, and amplified."""
    agreement = product - mean * (mine + its) + mean**2 * number
    my_size = np.maximum(my_squares - mean * (2 * mine - mean * number), 0.0)
    size = np.sqrt(my_size * np.maximum(its_squares - mean * (2 * its - mean * number), 0.0))
    cosine = np.where(size > TINY, agreement / np.where(size > TINY, size, 1.0), 0.0)
    found = cosine * number / (number + SHRINK)
    return found * np.abs(found) ** (AMPLIFIED - 1)


def _average(mean: np.ndarray, above: np.ndarray, weight: np.ndarray) -> np.ndarray:
    return np.where(weight > TINY, mean + above / np.where(weight > TINY, weight, 1.0), np.nan)
