"""Statistics of a transfer matrix: symmetry, the effect of script and family, agreement with planted relatedness.

The cells of a matrix are not independent, since all cells of one language share it. So p-values come from permuting
whole languages (Mantel test: Mantel 1967; as quadratic assignment procedure: Krackhardt 1988), and intervals from the
jackknife over languages (Snijders & Borgatti 1999).
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
from scipy.stats import rankdata, spearmanr
from scipy.stats import t as student

MIN_LANGUAGES = 4
PERMUTATIONS = 2000


def score_matrix(
    rows: Sequence[Mapping[str, Any]], languages: Sequence[str], value: str = "score"
) -> np.ndarray:
    """The rows' values as a matrix (T, T), row = target and column = source; NaN where there is none."""
    index = {name: number for number, name in enumerate(languages)}
    table = np.full((len(languages), len(languages)), np.nan)
    for row in rows:
        if row[value] is not None and row["target"] != row["source"]:
            table[index[row["target"]], index[row["source"]]] = row[value]
    return table


def jackknife(
    statistic: Callable[[np.ndarray], float], count: int, level: float
) -> tuple[float, float, float]:
    """A statistic of `count` languages and its jackknife interval, which leaves out one language at a time.

    Args:
      statistic: of the languages that are kept: called with their indices (n,).

    Returns:
      The statistic and the ends of its interval; NaN for these where too few of the jackknife values are finite.
    """
    languages = np.arange(count)
    whole = statistic(languages)
    values = np.array([statistic(np.delete(languages, index)) for index in languages])
    values = values[np.isfinite(values)]
    if len(values) < MIN_LANGUAGES or not np.isfinite(whole):
        return whole, float("nan"), float("nan")
    error = np.sqrt((len(values) - 1) / len(values) * np.sum((values - values.mean()) ** 2))
    half_width = student.ppf((1 + level) / 2, len(values) - 1) * error
    return whole, whole - half_width, whole + half_width


def symmetry(
    matrix: np.ndarray, *, level: float = 0.9, permutations: int = PERMUTATIONS, seed: int = 0
) -> dict[str, Any] | None:
    """Correlation of score(A→B) with score(B→A) over the pairs that have both; None for too few of them.

    Returns:
      {"pairs", "correlation", "low", "high", "p"}; the two-sided p permutes the languages of the transposed matrix.
    """

    def correlation(keep: np.ndarray) -> float:
        part = matrix[np.ix_(keep, keep)]
        return _correlation(part, part.T)

    pairs = int(np.isfinite(matrix + matrix.T)[np.triu_indices(len(matrix), 1)].sum())
    if pairs < 4 or len(matrix) < MIN_LANGUAGES or not np.isfinite(correlation(np.arange(len(matrix)))):
        return None
    found, low, high = jackknife(correlation, len(matrix), level)

    targets, sources = np.nonzero(np.isfinite(matrix) & ~np.eye(len(matrix), dtype=bool))

    def shuffled(labels: np.ndarray) -> np.ndarray:
        return rowwise_correlations(
            matrix[targets, sources], matrix[labels[:, sources], labels[:, targets]], 4
        )

    p, _ = _permutation_test(shuffled, found, len(matrix), permutations, seed)
    return {"pairs": pairs, "correlation": found, "low": max(low, -1.0), "high": min(high, 1.0), "p": p}


def kinship_difference(
    matrix: np.ndarray,
    same: np.ndarray,
    others: Sequence[np.ndarray] = (),
    *,
    level: float = 0.9,
    permutations: int = PERMUTATIONS,
    seed: int = 0,
) -> dict[str, Any] | None:
    """Difference in score between pairs that share a property (such as their script) and pairs that do not.

    Args:
      matrix: (T, T) scores. same: (T, T), 1 where the pair shares the property, 0 where not, NaN where unknown.
      others: further such tables to adjust for.

    Returns:
      None where fewer than two pairs share the property or do not. Else a record with
      "same", "different": mean scores, over "pairs_same" and "pairs_different" cells;
      "difference", "low", "high": their difference and its jackknife interval;
      "size": the difference in units of the standard deviation within the two kinds;
      "p": two-sided, by permuting languages, and "smallest_p": the smallest p that this few languages can give;
      "adjusted", "adjusted_low", "adjusted_high": the difference in a linear regression that also holds `others` and an
      effect of each language as target and as source.
    """
    known = np.isfinite(matrix) & np.isfinite(same)
    ones, zeros = known & (same == 1), known & (same == 0)
    if min(ones.sum(), zeros.sum()) < 2 or len(matrix) < MIN_LANGUAGES:
        return None

    def difference(scores: np.ndarray, kind: np.ndarray) -> float:
        known = np.isfinite(scores) & np.isfinite(kind)
        one, zero = scores[known & (kind == 1)], scores[known & (kind == 0)]
        return float(one.mean() - zero.mean()) if len(one) and len(zero) else float("nan")

    def kept_difference(keep: np.ndarray) -> float:
        at = np.ix_(keep, keep)
        return difference(matrix[at], same[at])

    def adjusted(keep: np.ndarray) -> float:
        at = np.ix_(keep, keep)
        return _adjusted(matrix[at], same[at], [other[at] for other in others])

    found, low, high = jackknife(kept_difference, len(matrix), level)
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

    p, smallest = _permutation_test(shuffled, found, len(matrix), permutations, seed)
    adjustment, adjusted_low, adjusted_high = jackknife(adjusted, len(matrix), level)
    return {
        "same": float(matrix[ones].mean()),
        "different": float(matrix[zeros].mean()),
        "difference": found,
        "low": low,
        "high": high,
        "size": found / spread if spread > 0 else None,
        "p": p,
        "smallest_p": smallest,
        "adjusted": adjustment,
        "adjusted_low": adjusted_low,
        "adjusted_high": adjusted_high,
        "pairs_same": int(ones.sum()),
        "pairs_different": int(zeros.sum()),
    }


def top_sources(matrix: np.ndarray, languages: Sequence[str], count: int = 5) -> dict[str, int]:
    """For how many targets each language is among the `count` best sources, in descending order.

    Targets with `count` sources or fewer are skipped. Scores equal to the last of the best are all counted.
    """
    counts = dict.fromkeys(languages, 0)
    for row in matrix:
        known = np.flatnonzero(np.isfinite(row))
        if len(known) > count:
            threshold = np.sort(row[known])[-count]
            for index in known[row[known] >= threshold]:
                counts[languages[index]] += 1
    return dict(sorted(counts.items(), key=lambda item: (-item[1], item[0])))


def _correlation(one: np.ndarray, other: np.ndarray) -> float:
    """Correlation of the off-diagonal cells of two matrices (T, T); NaN for fewer than four or constants."""
    upper = np.triu_indices(len(one), 1)
    a, b = one[upper], other[upper]
    # The order of a pair's languages is arbitrary: count both.
    a, b = np.concatenate([a, one.T[upper]]), np.concatenate([b, other.T[upper]])
    known = np.isfinite(a) & np.isfinite(b)
    if known.sum() < 4 or np.ptp(a[known]) == 0 or np.ptp(b[known]) == 0:
        return float("nan")
    return float(np.corrcoef(a[known], b[known])[0, 1])


def _adjusted(matrix: np.ndarray, same: np.ndarray, others: Sequence[np.ndarray]) -> float:
    """Coefficient of `same` in a regression on it, `others`, targets and sources; NaN where it is aliased."""
    known = np.isfinite(matrix) & np.isfinite(same)
    for other in others:
        known &= np.isfinite(other)
    indicators = [np.eye(len(matrix))[side] for side in np.nonzero(known)]
    rest = np.column_stack([*(other[known] for other in others), *indicators])
    both = np.column_stack([same[known], matrix[known]])
    # Frisch-Waugh by normal equations: indicators are well scaled, and the pseudo-inverse drops their redundant
    # directions.
    inverse = np.linalg.pinv(rest.T @ rest, rcond=1e-10, hermitian=True)
    property_, score = (both - rest @ (inverse @ (rest.T @ both))).T
    strength = float(property_ @ property_)
    # Aliased where the property is a linear combination of the other columns.
    return float(property_ @ score) / strength if strength > 1e-8 * known.sum() else float("nan")


def rowwise_correlations(a: np.ndarray, b: np.ndarray, min_count: int) -> np.ndarray:
    """Correlation (P,) of a (n,) with each row of b (P, n) over the columns where both are finite.

    NaN for fewer than `min_count` such columns, and where either is constant on them.
    """
    known = np.isfinite(a) & np.isfinite(b)
    count = known.sum(axis=1)
    # Subtract the mean over all rows first, so that the sums of squares lose no digits to cancellation.
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
    return np.where((count < min_count) | constant, np.nan, found)


def _permutation_test(
    statistic: Callable[[np.ndarray], np.ndarray], found: float, count: int, permutations: int, seed: int
) -> tuple[float, float]:
    """The two-sided p of `found`, and the smallest possible p: the share of permutations that leave it unchanged.

    Args:
      statistic: the values (P,) of the statistic for P permutations of the languages, (P, count).
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
    """Spearman correlation of measured scores with planted relatedness, and its one-sided p-value (Mantel test).

    Args:
      matrix: columns `matrix.SCORE_COLUMNS`. truth: truth.json of a generated corpus.

    Returns:
      {"pairs", "spearman", "p", "smallest_p", "table"}: "table" holds the pairs with their planted value; "smallest_p"
      is the p of a perfect agreement. The correlation and both p are None for fewer than four measured pairs.
    """
    planted = truth.get("relatedness", {})
    rows = matrix[matrix["status"] == "measured"].copy()
    pairs = list(zip(rows["target"], rows["source"], strict=True))
    rows["relatedness"] = [planted.get(t, {}).get(s, np.nan) for t, s in pairs]
    families = {code: entry.get("family") for code, entry in truth.get("languages", {}).items()}
    rows["same_family"] = [
        families.get(t) is not None and families.get(t) == families.get(s) for t, s in pairs
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
    # Rank once over the whole matrix: the values to rank are nearly the same in all permutations.
    ranked = rankdata(wide.ravel(), nan_policy="omit").reshape(wide.shape)
    scores = rankdata(rows["score"])
    reference = np.corrcoef(scores, ranked[targets, sources])[0, 1]
    rng = np.random.default_rng(seed)
    labels = np.array([rng.permutation(len(names)) for _ in range(permutations)])
    shuffled = ranked[labels[:, targets], labels[:, sources]]
    above = int(np.sum(rowwise_correlations(scores, shuffled, 3) >= reference - 1e-12))
    same = int(np.sum((shuffled == ranked[targets, sources]).all(axis=1)))
    p, floor = (above + 1) / (permutations + 1), (same + 1) / (permutations + 1)
    return {**result, "spearman": found, "p": p, "smallest_p": floor}
