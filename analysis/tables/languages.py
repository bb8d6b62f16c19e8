"""What is known of languages before any run: script, genealogy, shared vocabulary; as features of pairs.

For generated corpora it is what the generator wrote of each language; for natural ones the package's table
(`analysis/data/languages.csv`). Planted relatedness is never among the features: it is what is looked for.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from analysis.tables import published

Matrix = np.ndarray  # (T, T), row = target, column = source


def describe(
    languages: Sequence[str], planted: Mapping[str, Mapping[str, Any]] | None = None
) -> dict[str, dict[str, Any]]:
    """Script, family and genealogy (a path from family to branch) of each language that is known.

    Args:
      planted: `languages` of a generated corpus' truth.json; it stands in for the package's table wholly, since
        codes of a generated corpus may be those of natural languages.
    """
    if planted:
        known = {}
        for name in languages:
            entry = planted.get(name, {})
            family = entry.get("family")
            if family is not None or entry.get("script") is not None:
                known[name] = {"family": family, "script": entry.get("script"), "genealogy": [family]}
        return known
    rows = published.table("languages").set_index("language")
    found = {}
    for name in languages:
        code = published.MADLAD.get(name, name)
        if code in rows.index:
            path = str(rows.at[code, "genealogy"]).split("/")
            found[name] = {"family": path[0], "script": str(rows.at[code, "script"]), "genealogy": path}
    return found


def same(languages: Sequence[str], known: Mapping[str, Mapping[str, Any]], key: str) -> Matrix:
    """1 where target and source share `key` (family, script), 0 where not, NaN where either is not known."""
    values = [known.get(name, {}).get(key) for name in languages]
    table = np.array([[float(a == b) if a and b else np.nan for b in values] for a in values])
    return table.reshape(len(languages), len(languages))


def distance(languages: Sequence[str], known: Mapping[str, Mapping[str, Any]]) -> Matrix:
    """Genealogical distance: 1 − 2·(shared steps)/(steps of one + steps of the other); 1 between families."""
    paths = [known.get(name, {}).get("genealogy") for name in languages]
    table = np.full((len(paths), len(paths)), np.nan)
    for i, one in enumerate(paths):
        for j, other in enumerate(paths):
            if one and other and None not in (*one, *other):
                shared = next(
                    (k for k, (a, b) in enumerate(zip(one, other, strict=False)) if a != b),
                    min(len(one), len(other)),
                )
                table[i, j] = 1 - 2 * shared / (len(one) + len(other))
    return table


def pair_features(
    languages: Sequence[str],
    planted: Mapping[str, Mapping[str, Any]] | None = None,
    overlap: Mapping[str, Mapping[str, float]] | None = None,
) -> dict[str, Matrix]:
    """Features (T, T) of pairs that are known of the languages and differ between pairs.

    Args:
      overlap: shared vocabulary of two languages, Σ_v min(p_t(v), p_s(v)) of their unigram frequencies.
    """
    known = describe(languages, planted)
    made = {
        "same script": same(languages, known, "script"),
        "same family": same(languages, known, "family"),
        "genealogical distance": distance(languages, known),
    }
    if overlap:
        made["shared vocabulary"] = np.array(
            [[overlap.get(t, {}).get(s, np.nan) for s in languages] for t in languages], dtype=float
        )
    off = ~np.eye(len(languages), dtype=bool)
    useful = {}
    for name, values in made.items():
        finite = values[off & np.isfinite(values)]
        if len(finite) and np.ptp(finite) > 0:
            useful[name] = values
    # Where families have no branches, distance says what family says.
    if "genealogical distance" in useful and "same family" in useful:
        both = useful["genealogical distance"] + useful["same family"]
        if np.nanmax(abs(both[off] - 1)) < 1e-9:
            del useful["genealogical distance"]
    return useful
