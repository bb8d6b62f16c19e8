"""Languages: ATLAS's published rates and mixtures, aliases of codes, and scripts of text."""

import csv

import pytest

from mscale import languages
from mscale.data.corpus import documents, language_files


def test_published_rates_are_table_b4(published_tables):
    rates = languages.published_rates()
    assert len(rates) == 419
    assert sum(rates.values()) == pytest.approx(1, abs=1e-12)
    with open(published_tables / "atlas_table_b4.csv") as file:
        percent = {row["language"]: float(row["percent"]) for row in csv.DictReader(file)}
    assert list(rates) == list(percent)
    for language, rate in percent.items():
        assert rates[language] == pytest.approx(rate / 99.92524, rel=1e-4)
    assert languages.codes()[:2] == ("en", "af")


def test_capacity_mixtures_are_table_b5():
    mixtures = languages.capacity_mixtures()
    assert len(mixtures) == 12
    for name, members in mixtures.items():
        assert len(set(members)) == len(members) == int(name.split("v")[0])
        assert set(members) <= set(languages.codes())
    for smaller, larger in [("12v0", "16v0"), ("16v0", "24v0"), ("24v0", "32v0")]:
        assert set(mixtures[smaller]) < set(mixtures[larger])
    assert "iw" in mixtures["50v0"]
    assert mixtures["4v2"] == ("hi", "ja", "vi", "zh")


def test_names_of_one_language_find_each_other():
    assert languages.canonical("he") == "iw"
    assert languages.canonical("en") == "en"
    assert languages.find("he", ("en", "iw")) == "iw"
    assert languages.find("iw", ("en", "he")) == "he"
    assert languages.find("he", ("he", "iw")) == "he"
    assert languages.find("nb", ("no",)) == "no"
    assert languages.find("xx", ("en",)) is None
    assert not set(languages.CODE_ALIASES) & set(languages.codes())
    assert set(languages.CODE_ALIASES.values()) <= set(languages.codes())


@pytest.mark.parametrize(
    ("text", "script"),
    [
        ("Déjà vu, 1999!", "Latin"),
        ("Привет, world", "Cyrillic"),
        ("日本語のテキスト", "Japanese"),
        ("中文文本", "Han"),
        ("한국어", "Hangul"),
        ("नमस्ते", "Devanagari"),
        ("ᐃᓄᒃᑎᑐᑦ", "Canadian Aboriginal"),
        ("Ａｂ", "Latin"),
        ("ｱｲｳ", "Japanese"),
        ("12 ab жзи", "Cyrillic"),
        ("ʰ 1999 …", "none"),
        ("", "none"),
    ],
)
def test_script_of_a_text(text, script):
    assert languages.dominant_script(text) == script


def test_script_of_text_in_all_languages(many_languages):
    with open(many_languages / "languages.csv") as file:
        listed = {row["code"]: row["script"] for row in csv.DictReader(file)}
    named = {"Cjk": "Han", "Hiragana": "Japanese", "Canadian": "Canadian Aboriginal"}
    wrong = {}
    for code, expected in listed.items():
        text = next(documents(language_files(many_languages, code)[0]))
        found = languages.dominant_script(text)
        if found != named.get(expected, expected):
            wrong[code] = (expected, found)
    # The real Chinese text begins with a document of Python's documentation that is mostly code.
    assert set(wrong) <= ({"zh"} if many_languages.name == "madlad_mini" else set()), wrong
