"""Language metadata known before any run (script, family, genealogy), and features of language pairs made of it.

For generated corpora the metadata are those that the generator wrote; for natural languages those of the package's
table (`analysis/data/languages.csv`). The relatedness that a generator planted is never a feature: it is the answer.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from analysis.tables import published

PairMatrix = np.ndarray  # (T, T) for T languages: row = target, column = source


def language_metadata(
    languages: Sequence[str], planted: Mapping[str, Mapping[str, Any]] | None = None
) -> dict[str, dict[str, Any]]:
    """{language: {"script", "family", "genealogy"}} of languages with metadata; genealogy: a path from the family.

    Args:
      planted: `languages` of a generated corpus' truth.json. It replaces the package's table completely, because a
        generated corpus may use the codes of natural languages.
    """
    if planted:
        known = {}
        for name in languages:
            entry = planted.get(name, {})
            family = entry.get("family")
            if family is not None or entry.get("script") is not None:
                known[name] = {"family": family, "script": entry.get("script"), "genealogy": [family]}
        return known
    rows = published.published_table("languages").set_index("language")
    found = {}
    for name in languages:
        code = published.MADLAD_OF_ISO.get(name, name)
        if code in rows.index:
            path = str(rows.at[code, "genealogy"]).split("/")
            found[name] = {"family": path[0], "script": str(rows.at[code, "script"]), "genealogy": path}
    return found


def shared_trait(languages: Sequence[str], known: Mapping[str, Mapping[str, Any]], key: str) -> PairMatrix:
    """(T, T): 1 where target and source share the trait `key` (family, script), 0 where not, NaN where unknown.

    known: metadata as `language_metadata` returns them.
    """
    values = [known.get(name, {}).get(key) for name in languages]
    table = np.array([[float(a == b) if a and b else np.nan for b in values] for a in values])
    return table.reshape(len(languages), len(languages))


def genealogical_distance(languages: Sequence[str], known: Mapping[str, Mapping[str, Any]]) -> PairMatrix:
    """(T, T): 1 − 2·(shared steps)/(steps of one + steps of the other) of the genealogies; NaN unknown."""
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
) -> dict[str, PairMatrix]:
    """{name: (T, T)}: the features of pairs that are known and not the same for all pairs.

    Args:
      planted: see `language_metadata`.
      overlap: shared vocabulary of two languages, Σ_v min(p_t(v), p_s(v)) of their unigram frequencies.
    """
    known = language_metadata(languages, planted)
    features = {
        "same script": shared_trait(languages, known, "script"),
        "same family": shared_trait(languages, known, "family"),
        "genealogical distance": genealogical_distance(languages, known),
    }
    if overlap:
        features["shared vocabulary"] = np.array(
            [[overlap.get(t, {}).get(s, np.nan) for s in languages] for t in languages], dtype=float
        )
    off_diagonal = ~np.eye(len(languages), dtype=bool)
    useful = {}
    for name, values in features.items():
        finite = values[off_diagonal & np.isfinite(values)]
        if len(finite) and np.ptp(finite) > 0:
            useful[name] = values
    # Where no family has branches, the distance is 1 − same family.
    if "genealogical distance" in useful and "same family" in useful:
        both = useful["genealogical distance"] + useful["same family"]
        if np.nanmax(abs(both[off_diagonal] - 1)) < 1e-9:
            del useful["genealogical distance"]
    return useful
