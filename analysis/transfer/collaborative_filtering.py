"""Collaborative filtering: the transfer score of a pair predicted from pairs of similar languages.

The similarity of two languages is the cosine of their centred scores with the same third languages, as targets and as
sources. The score of s for t is predicted from the scores of languages similar to t with s, and of t with languages
similar to s. This is neighbourhood-based collaborative filtering with case amplification (Breese, Heckerman & Kadie
1998, sections 2.1 and 2.2.3); both directions of the pair itself are left out.
"""

import numpy as np

SHRINKAGE = 4.0  # a similarity from n common scores is multiplied by n/(n + SHRINKAGE)
AMPLIFICATION = 2.5  # exponent of the similarity in the weights (case amplification)
_BLOCK_NUMBERS = 200_000  # numbers of a block that is computed at once
_TINY = 1e-9  # sums below this are zero but for rounding


def neighbourhood_scores(scores: np.ndarray, known: np.ndarray, cells: np.ndarray) -> np.ndarray:
    """Scores (B, m) predicted for `cells` (m, 2) of target and source; NaN where no similar language has a score.

    The scores of a cell's own pair, in both directions, are left out of its prediction.

    Args:
      scores: (T, T), row = target and column = source.
      known: (B, T, T) bool, the scores that each of B predictors may use.
    """
    # S: scores, 0 where not known. u: 1.0 where known.
    u, S = known.astype(float), np.where(known, scores, 0.0)
    S_T, u_T = S.swapaxes(1, 2), u.swapaxes(1, 2)
    # Sums over the third languages with which two languages both have scores, for all pairs of languages (B, T, T), as
    # sources and as targets: how many such scores there are, their products, the first language's scores, and squares.
    sums = (u @ u_T + u_T @ u, S @ S_T + S_T @ S, S @ u_T + S_T @ u, S**2 @ u_T + (S**2).swapaxes(1, 2) @ u)
    found = np.empty((len(known), len(cells)))
    size = max(_BLOCK_NUMBERS // len(scores), 1)
    for start in range(0, found.size, size):
        at = np.arange(start, min(start + size, found.size))
        b, cell = np.divmod(at, len(cells))
        found.ravel()[at] = _without_own_pair(S, u, sums, b, *cells[cell].T)
    return found


def _without_own_pair(
    S: np.ndarray, u: np.ndarray, sums: tuple[np.ndarray, ...], b: np.ndarray, t: np.ndarray, s: np.ndarray
) -> np.ndarray:
    """Predictions (n,) of cells (t, s) by the predictors b, from tables (B, T, T) without the scores of the pair."""
    counts, products, firsts, squares = sums
    row = np.arange(len(b))
    total = S.sum(axis=(1, 2))[b] - S[b, t, s] - S[b, s, t]
    count = u.sum(axis=(1, 2))[b] - u[b, t, s] - u[b, s, t]
    with np.errstate(invalid="ignore", divide="ignore"):
        mean = (total / count)[:, None]

    def similarity_to_all(one: np.ndarray, other: np.ndarray) -> np.ndarray:
        """(n, T): similarity of language `one` of each cell to all, without its scores with `other`."""
        x, y, x_u, y_u = (
            table[b, p, q][:, None] for table in (S, u) for p, q in ((one, other), (other, one))
        )
        column, line, column_u, line_u = (
            part for table in (S, u) for part in (table[b, :, other], table[b, other])
        )
        found = _similarity(
            mean,
            counts[b, one] - x_u * column_u - y_u * line_u,
            products[b, one] - x * column - y * line,
            firsts[b, one] - x * column_u - y * line_u,
            squares[b, one] - x**2 * column_u - y**2 * line_u,
            firsts[b, :, one] - x_u * column - y_u * line,
            squares[b, :, one] - x_u * column**2 - y_u * line**2,
        )
        found[row, one] = found[row, other] = 0.0
        return found

    like_t, like_s = similarity_to_all(t, s), similarity_to_all(s, t)
    weighted = (like_t * (S[b, :, s] - mean * u[b, :, s])).sum(axis=1)
    weighted += (like_s * (S[b, t] - mean * u[b, t])).sum(axis=1)
    weight = (np.abs(like_t) * u[b, :, s]).sum(axis=1) + (np.abs(like_s) * u[b, t]).sum(axis=1)
    return np.where(weight > _TINY, mean[:, 0] + weighted / np.where(weight > _TINY, weight, 1.0), np.nan)


def _similarity(
    mean: np.ndarray,
    count: np.ndarray,
    product: np.ndarray,
    first: np.ndarray,
    first_squares: np.ndarray,
    second: np.ndarray,
    second_squares: np.ndarray,
) -> np.ndarray:
    """The cosine of centred scores, shrunk where few are in common, and amplified.

    Args:
      count, product: number of common scores of two languages, and sum of their products.
      first, first_squares, second, second_squares: sums of each language's common scores, and of their squares.
    """
    covariance = product - mean * (first + second) + mean**2 * count
    first_norm = np.maximum(first_squares - mean * (2 * first - mean * count), 0.0)
    norm = np.sqrt(first_norm * np.maximum(second_squares - mean * (2 * second - mean * count), 0.0))
    cosine = np.where(norm > _TINY, covariance / np.where(norm > _TINY, norm, 1.0), 0.0)
    found = cosine * count / (count + SHRINKAGE)
    return found * np.abs(found) ** (AMPLIFICATION - 1)
