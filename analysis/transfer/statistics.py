"""Statistics of a transfer matrix: is it symmetric, and do script and family matter.

The cells of a matrix are not independent, since those of one language share it. So probabilities come from
permuting whole languages (quadratic assignment procedure: Mantel 1967; Krackhardt 1988), and intervals from
leaving out one language at a time (Snijders & Borgatti 1999).
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
from scipy.stats import rankdata, spearmanr
from scipy.stats import t as student

LEAST_LANGUAGES = 4
PERMUTATIONS = 2000


def to_matrix(
    rows: Sequence[Mapping[str, Any]], languages: Sequence[str], value: str = "score"
) -> np.ndarray:
    """(T, T) of the rows' values, row = target, column = source; NaN where there is none."""
    place = {name: index for index, name in enumerate(languages)}
    table = np.full((len(languages), len(languages)), np.nan)
    for row in rows:
        if row[value] is not None and row["target"] != row["source"]:
            table[place[row["target"]], place[row["source"]]] = row[value]
    return table


def jackknife(
    statistic: Callable[[np.ndarray], float], count: int, level: float
) -> tuple[float, float, float]:
    """A statistic of languages and its interval, leaving out one language at a time.

    Args:
      statistic: of the indices of the languages that stay, (n,) integers.
    """
    everyone = np.arange(count)
    whole = statistic(everyone)
    left = np.array([statistic(np.delete(everyone, index)) for index in everyone])
    left = left[np.isfinite(left)]
    if len(left) < LEAST_LANGUAGES or not np.isfinite(whole):
        return whole, float("nan"), float("nan")
    error = np.sqrt((len(left) - 1) / len(left) * np.sum((left - left.mean()) ** 2))
    reach = student.ppf((1 + level) / 2, len(left) - 1) * error
    return whole, whole - reach, whole + reach


def symmetry(
    matrix: np.ndarray, *, level: float = 0.9, permutations: int = PERMUTATIONS, seed: int = 0
) -> dict[str, Any] | None:
    """Correlation of score(A→B) with score(B→A) over the pairs that have both; None for too few of them.

    Returns: {"pairs", "correlation", "low", "high", "p"}; p (two-sided) by permuting the languages of the
      transposed matrix.
    """

    def correlation(keep: np.ndarray) -> float:
        part = matrix[np.ix_(keep, keep)]
        return _correlation(part, part.T)

    pairs = int(np.isfinite(matrix + matrix.T)[np.triu_indices(len(matrix), 1)].sum())
    if pairs < 4 or len(matrix) < LEAST_LANGUAGES or not np.isfinite(correlation(np.arange(len(matrix)))):
        return None
    found, low, high = jackknife(correlation, len(matrix), level)

    targets, sources = np.nonzero(np.isfinite(matrix) & ~np.eye(len(matrix), dtype=bool))

    def shuffled(labels: np.ndarray) -> np.ndarray:
        return correlations(matrix[targets, sources], matrix[labels[:, sources], labels[:, targets]], 4)

    p, _ = _permute(shuffled, found, len(matrix), permutations, seed)
    return {"pairs": pairs, "correlation": found, "low": max(low, -1.0), "high": min(high, 1.0), "p": p}


def same_or_different(
    matrix: np.ndarray,
    same: np.ndarray,
    others: Sequence[np.ndarray] = (),
    *,
    level: float = 0.9,
    permutations: int = PERMUTATIONS,
    seed: int = 0,
) -> dict[str, Any] | None:
    """Scores of pairs that share a property against those that do not; None where either kind is missing.

    Args:
      matrix (T, T): scores. same (T, T): 1, 0 or NaN. others: further such tables to adjust for.

    Returns:
      {"same", "different"}: mean scores; {"difference", "low", "high"}; "size": the difference in standard
      deviations within the two kinds; "p" (two-sided, permuting languages) and "smallest_p", the least that so
      few languages can give; {"adjusted", "adjusted_low", "adjusted_high"}: the difference beside `others` and an
      effect of each language as target and as source; "pairs_same", "pairs_different".
    """
    known = np.isfinite(matrix) & np.isfinite(same)
    ones, zeros = known & (same == 1), known & (same == 0)
    if min(ones.sum(), zeros.sum()) < 2 or len(matrix) < LEAST_LANGUAGES:
        return None

    def difference(scores: np.ndarray, kind: np.ndarray) -> float:
        known = np.isfinite(scores) & np.isfinite(kind)
        one, zero = scores[known & (kind == 1)], scores[known & (kind == 0)]
        return float(one.mean() - zero.mean()) if len(one) and len(zero) else float("nan")

    def of(keep: np.ndarray) -> float:
        at = np.ix_(keep, keep)
        return difference(matrix[at], same[at])

    def adjusted(keep: np.ndarray) -> float:
        at = np.ix_(keep, keep)
        return _adjusted(matrix[at], same[at], [other[at] for other in others])

    found, low, high = jackknife(of, len(matrix), level)
    within = np.concatenate([matrix[kind] - matrix[kind].mean() for kind in (ones, zeros)])
    spread = float(np.sqrt(np.sum(within**2) / (len(within) - 2))) if len(within) > 2 else float("nan")
    targets, sources = np.nonzero(np.isfinite(matrix))
    sums = np.stack([matrix[targets, sources], np.ones(len(targets))], axis=1)
    kinds = [(same == value).astype(float) for value in (1, 0)]

    def shuffled(labels: np.ndarray) -> np.ndarray:
        at = labels[:, targets] * len(matrix) + labels[:, sources]
        one, zero = (np.einsum("pk,ks->ps", kind.take(at), sums) for kind in kinds)
        with np.errstate(invalid="ignore"):
            return one[:, 0] / one[:, 1] - zero[:, 0] / zero[:, 1]

    p, smallest = _permute(shuffled, found, len(matrix), permutations, seed)
    beside, beside_low, beside_high = jackknife(adjusted, len(matrix), level)
    return {
        "same": float(matrix[ones].mean()),
        "different": float(matrix[zeros].mean()),
        "difference": found,
        "low": low,
        "high": high,
        "size": found / spread if spread > 0 else None,
        "p": p,
        "smallest_p": smallest,
        "adjusted": beside,
        "adjusted_low": beside_low,
        "adjusted_high": beside_high,
        "pairs_same": int(ones.sum()),
        "pairs_different": int(zeros.sum()),
    }


def top_sources(matrix: np.ndarray, languages: Sequence[str], most: int = 5) -> dict[str, int]:
    """For how many targets each language is among the `most` best sources, most often first.

    Only targets with more sources than that count; equal scores at the edge are all counted.
    """
    counts = dict.fromkeys(languages, 0)
    for row in matrix:
        known = np.flatnonzero(np.isfinite(row))
        if len(known) > most:
            edge = np.sort(row[known])[-most]
            for index in known[row[known] >= edge]:
                counts[languages[index]] += 1
    return dict(sorted(counts.items(), key=lambda item: (-item[1], item[0])))


def _correlation(one: np.ndarray, other: np.ndarray) -> float:
    upper = np.triu_indices(len(one), 1)
    a, b = one[upper], other[upper]
    # Which of a pair comes first is an accident: both orders count.
    a, b = np.concatenate([a, one.T[upper]]), np.concatenate([b, other.T[upper]])
    known = np.isfinite(a) & np.isfinite(b)
    if known.sum() < 4 or np.ptp(a[known]) == 0 or np.ptp(b[known]) == 0:
        return float("nan")
    return float(np.corrcoef(a[known], b[known])[0, 1])


def _adjusted(matrix: np.ndarray, same: np.ndarray, others: Sequence[np.ndarray]) -> float:
    """The coefficient of `same` beside `others`, targets and sources in a linear regression."""
    known = np.isfinite(matrix) & np.isfinite(same)
    for other in others:
        known &= np.isfinite(other)
    targets, sources = np.nonzero(known)
    size = len(matrix)
    design = np.zeros((len(targets), 1 + len(others) + 2 * size))
    design[:, 0] = same[known]
    for index, other in enumerate(others):
        design[:, 1 + index] = other[known]
    rows = np.arange(len(targets))
    design[rows, 1 + len(others) + targets] = 1
    design[rows, 1 + len(others) + size + sources] = 1
    # By normal equations: indicators are well scaled, and their redundant directions drop out of the inverse.
    rest, both = design[:, 1:], np.column_stack([design[:, 0], matrix[known]])
    inverse = np.linalg.pinv(rest.T @ rest, rcond=1e-10, hermitian=True)
    property_, score = (both - rest @ (inverse @ (rest.T @ both))).T
    strength = float(property_ @ property_)
    # Nothing of the property is left once languages (or the others) are known.
    return float(property_ @ score) / strength if strength > 1e-8 * len(targets) else float("nan")


def correlations(a: np.ndarray, b: np.ndarray, least: int) -> np.ndarray:
    """Correlation of a (n,) with each row of b (P, n) where both are known; NaN for fewer than `least` or constants."""
    known = np.isfinite(a) & np.isfinite(b)
    count = known.sum(axis=1)
    # From their means over all rows, which hardly differ from those over one: sums of squares then lose no digits.
    one = np.where(known, a - np.mean(a[np.isfinite(a)]), 0.0)
    other = np.where(known, b - np.mean(b[np.isfinite(b)]), 0.0)
    with np.errstate(invalid="ignore", divide="ignore"):
        both = (one * other).sum(axis=1) - one.sum(axis=1) * other.sum(axis=1) / count
        squares = [(table**2).sum(axis=1) - table.sum(axis=1) ** 2 / count for table in (one, other)]
        found = both / np.sqrt(squares[0] * squares[1])
    constant = np.zeros(len(b), dtype=bool)
    for table in (one, other):
        low, high = (np.where(known, table, end) for end in (np.inf, -np.inf))
        constant |= low.min(axis=1, initial=np.inf) >= high.max(axis=1, initial=-np.inf)
    return np.where((count < least) | constant, np.nan, found)


def _permute(
    statistic: Callable[[np.ndarray], np.ndarray], found: float, count: int, permutations: int, seed: int
) -> tuple[float, float]:
    """Two-sided p of `found`, and the share of permutations that change nothing: what p cannot be below.

    Args:
      statistic: of languages in other orders, (P, count), one each.
    """
    rng = np.random.default_rng(seed)
    labels = np.array([rng.permutation(count) for _ in range(permutations)])
    values = np.concatenate([statistic(part) for part in np.array_split(labels, max(permutations // 250, 1))])
    values = values[np.isfinite(values)]
    centre = float(values.mean())
    further = np.sum(abs(values - centre) >= abs(found - centre) - 1e-12)
    equal = np.sum(abs(values - found) < 1e-12)
    return (float(further) + 1) / (len(values) + 1), (float(equal) + 1) / (len(values) + 1)


def relatedness_agreement(
    matrix: pd.DataFrame, truth: dict, *, permutations: int = 2000, seed: int = 0
) -> dict:
    """Spearman correlation of measured scores with planted relatedness, and its permutation p-value.

    Pairs share languages, so labels of whole languages are permuted (a Mantel test), not pairs.

    Returns:
      {"pairs", "spearman", "p", "smallest_p", "table"}: the pairs with their planted value; `smallest_p` is
      what a perfect agreement could reach at best with so few languages. No correlation for fewer than four
      measured pairs.
    """
    planted = truth.get("relatedness", {})
    rows = matrix[matrix["status"] == "measured"].copy()
    rows["relatedness"] = [
        planted.get(target, {}).get(source, np.nan)
        for target, source in zip(rows["target"], rows["source"], strict=True)
    ]
    families = {code: entry.get("family") for code, entry in truth.get("languages", {}).items()}
    rows["same_family"] = [
        families.get(target) is not None and families.get(target) == families.get(source)
        for target, source in zip(rows["target"], rows["source"], strict=True)
    ]
    rows = rows[rows["relatedness"].notna()]
    result: dict = {"pairs": len(rows), "spearman": None, "p": None, "smallest_p": None, "table": rows}
    if len(rows) < 4 or rows["relatedness"].nunique() < 2:
        return result
    found = float(spearmanr(rows["score"], rows["relatedness"]).statistic)
    names = sorted(set(rows["target"]) | set(rows["source"]))
    place = {name: index for index, name in enumerate(names)}
    wide = np.array([[planted.get(t, {}).get(s, np.nan) for s in names] for t in names], dtype=float)
    targets = rows["target"].map(place).to_numpy()
    sources = rows["source"].map(place).to_numpy()
    # All permutations give nearly the same values to rank, so ranks are taken once over the whole matrix.
    ranked = rankdata(wide.ravel(), nan_policy="omit").reshape(wide.shape)
    scores = rankdata(rows["score"])
    reference = np.corrcoef(scores, ranked[targets, sources])[0, 1]
    rng = np.random.default_rng(seed)
    labels = np.array([rng.permutation(len(names)) for _ in range(permutations)])
    shuffled = ranked[labels[:, targets], labels[:, sources]]
    above = int(np.sum(correlations(scores, shuffled, 3) >= reference - 1e-12))
    same = int(np.sum((shuffled == ranked[targets, sources]).all(axis=1)))
    p, floor = (above + 1) / (permutations + 1), (same + 1) / (permutations + 1)
    return {**result, "spearman": found, "p": p, "smallest_p": floor}
