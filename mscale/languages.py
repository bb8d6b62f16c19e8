"""Languages: MADLAD-400's codes, other codes for the same languages, and scripts.

The codes are those of Table B.4 of Longpre et al. 2026 (ATLAS, arXiv 2510.22037), which are MADLAD-400's (Kudugunta
et al. 2023). A corpus or store may also have languages with other codes.
"""

import csv
import unicodedata
from collections import Counter
from collections.abc import Collection
from functools import cache
from importlib import resources

# Other codes for languages of MADLAD-400: withdrawn ones (ISO 639-1: iw, in, ji, jw, mo), more specific ones that it
# does not distinguish (nb, tl, cmn) and those of ATLAS's figures (he).
CODE_ALIASES = {
    "he": "iw",
    "in": "id",
    "ji": "yi",
    "jw": "jv",
    "mo": "ro",
    "nb": "no",
    "tl": "fil",
    "cmn": "zh",
}

# First words of Unicode character names that differ from the name of the script.
_SCRIPTS = {
    "CJK": "Han",
    "FULLWIDTH": "Latin",
    "HALFWIDTH": "Japanese",
    "HIRAGANA": "Japanese",
    "KATAKANA": "Japanese",
    "CANADIAN": "Canadian Aboriginal",
    "OL": "Ol Chiki",
    "TAI": "Tai",
    "NEW": "New Tai Lue",
    "MEETEI": "Meetei Mayek",
    "PAHAWH": "Pahawh Hmong",
    "PAU": "Pau Cin Hau",
    "PHAGS-PA": "Phags-pa",
    "SYLOTI": "Syloti Nagri",
    "NKO": "N'Ko",
    "MODIFIER": "",  # no script of its own, nor have superscripts
    "SUPERSCRIPT": "",
}


@cache
def published_rates() -> dict[str, float]:
    """Returns ATLAS's UniMax rate of each language, summing to 1 (Table B.4: percentages, divided by their sum)."""
    percent = {row["language"]: float(row["percent"]) for row in _rows("atlas_unimax_rates.csv")}
    return {language: rate / sum(percent.values()) for language, rate in percent.items()}


@cache
def capacity_mixtures() -> dict[str, tuple[str, ...]]:
    """Returns the languages of ATLAS's twelve capacity mixtures, ``4v0`` to ``50v0`` (Table B.5), canonical codes."""
    return {
        row["mixture"]: tuple(canonical(code) for code in row["languages"].split())
        for row in _rows("atlas_mixtures.csv")
    }


@cache
def flores_codes() -> dict[str, str]:
    """Returns the FLORES-200 code (``eng_Latn``) of each of MADLAD-400's languages that it covers."""
    return {row["code"]: row["flores"] for row in _rows("flores_codes.csv")}


def codes() -> tuple[str, ...]:
    """Returns MADLAD-400's 419 codes in the order of Table B.4 (by falling rate)."""
    return tuple(published_rates())


def canonical(code: str) -> str:
    """Returns MADLAD-400's code for a language: ``he`` → ``iw``; a code that is not an alias is unchanged."""
    return CODE_ALIASES.get(code, code)


def find(code: str, known: Collection[str]) -> str | None:
    """Returns the code of ``known`` for a language: ``code`` itself or an alias of it; None if there is none."""
    if code in known:
        return code
    others = [canonical(code), *(alias for alias, own in CODE_ALIASES.items() if own == canonical(code))]
    return next((other for other in others if other in known), None)


def dominant_script(text: str, characters: int = 20_000) -> str:
    """Returns the script of most letters of ``text`` (``Latin``, ``Han``, …), or ``none`` without letters.

    The script of a letter is the first word of its Unicode name, so no table of languages is needed. Text with at
    least one kana in twenty letters is Japanese, whatever its share of Han.

    Args:
      text: any text.
      characters: number of characters at its start that are used.
    """
    counts: Counter[str] = Counter()
    for character, count in Counter(text[:characters]).items():
        if character.isalpha() or unicodedata.category(character) == "Mc":
            word = unicodedata.name(character, "").split(" ")[0]
            counts[_SCRIPTS.get(word, word.capitalize())] += count
    del counts[""]
    if not counts:
        return "none"
    if counts["Japanese"] * 20 >= counts.total():
        return "Japanese"
    return counts.most_common(1)[0][0]


def _rows(name: str) -> list[dict[str, str]]:
    text = resources.files("mscale").joinpath("data", name).read_text(encoding="utf-8")
    return list(csv.DictReader(line for line in text.splitlines() if not line.startswith("#")))
