"""A corpus of all languages of MADLAD-400 in their scripts, generated: `write(folder)` in MADLAD-400's layout.

The text means nothing. A language is a lexicon of words over a small set of letters, drawn from the Unicode blocks of
its script by general category, so what decides about a script here (blocks) is not what `mscale.languages` goes by
(names of characters). Text depends on the code of its language alone. It holds what real text does to tokenizers:
combining marks, NFC and NFD, joiners, right-to-left marks, words without spaces, astral letters, emoji, and white space
that SentencePiece normalises by default.

Languages of MADLAD-400 come under its codes. Scripts that none of them is written in come under a code and the script's
ISO 15924 code (`ff-Adlm`).
"""

import bisect
import csv
import itertools
import random
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import tiny_corpus

from mscale import languages

# ISO 15924 code → the script's name, as in Unicode (but one for Tai Le, Tai Tham and Tai Viet), and its blocks (first
# and last character, hexadecimal). A comment names blocks of which only a part is taken.
_SCRIPTS = {
    "Latn": ("Latin", "0061-007A 00DF-00F6 00F8-024F 1E00-1EFF"),  # Basic Latin: lower case
    "Cyrl": ("Cyrillic", "0400-052F"),
    "Grek": ("Greek", "0386-03CE 1F00-1FFF"),  # Greek and Coptic: Greek
    "Armn": ("Armenian", "0530-058F"),
    "Hebr": ("Hebrew", "0590-05FF"),
    "Arab": ("Arabic", "0600-06FF 0750-077F"),
    "Syrc": ("Syriac", "0700-074F"),
    "Thaa": ("Thaana", "0780-07BF"),
    "Nkoo": ("N'Ko", "07C0-07FF"),
    "Deva": ("Devanagari", "0900-097F"),
    "Beng": ("Bengali", "0980-09FF"),
    "Guru": ("Gurmukhi", "0A00-0A7F"),
    "Gujr": ("Gujarati", "0A80-0AFF"),
    "Orya": ("Oriya", "0B00-0B7F"),
    "Taml": ("Tamil", "0B80-0BFF"),
    "Telu": ("Telugu", "0C00-0C7F"),
    "Knda": ("Kannada", "0C80-0CFF"),
    "Mlym": ("Malayalam", "0D00-0D7F"),
    "Sinh": ("Sinhala", "0D80-0DFF"),
    "Thai": ("Thai", "0E00-0E7F"),
    "Laoo": ("Lao", "0E80-0EFF"),
    "Tibt": ("Tibetan", "0F00-0FFF"),
    "Mymr": ("Myanmar", "1000-109F"),
    "Geor": ("Georgian", "10D0-10FF"),  # Georgian: lower case
    "Hang": ("Hangul", "AC00-D7A3"),
    "Ethi": ("Ethiopic", "1200-137F"),
    "Cher": ("Cherokee", "13A0-13FF"),
    "Cans": ("Canadian Aboriginal", "1400-167F"),
    "Tglg": ("Tagalog", "1700-171F"),
    "Khmr": ("Khmer", "1780-17FF"),
    "Mong": ("Mongolian", "1800-18AF"),
    "Limb": ("Limbu", "1900-194F"),
    "Tale": ("Tai", "1950-197F"),
    "Talu": ("New Tai Lue", "1980-19DF"),
    "Bugi": ("Buginese", "1A00-1A1F"),
    "Lana": ("Tai", "1A20-1AAF"),
    "Bali": ("Balinese", "1B00-1B7F"),
    "Sund": ("Sundanese", "1B80-1BBF"),
    "Batk": ("Batak", "1BC0-1BFF"),
    "Lepc": ("Lepcha", "1C00-1C4F"),
    "Olck": ("Ol Chiki", "1C50-1C7F"),
    "Glag": ("Glagolitic", "2C00-2C5F"),
    "Copt": ("Coptic", "2C80-2CFF"),
    "Tfng": ("Tifinagh", "2D30-2D7F"),
    "Bopo": ("Bopomofo", "3105-312F"),
    "Jpan": ("Japanese", "3041-3096 30A1-30FA"),  # kana, to which _HAN is added
    "Hani": ("Han", "4E00-9FFF 20000-2A6D6"),
    "Yiii": ("Yi", "A000-A48F"),
    "Lisu": ("Lisu", "A4D0-A4FF"),
    "Vaii": ("Vai", "A500-A63F"),
    "Bamu": ("Bamum", "A6A0-A6FF"),
    "Sylo": ("Syloti Nagri", "A800-A82F"),
    "Phag": ("Phags-pa", "A840-A87F"),
    "Saur": ("Saurashtra", "A880-A8DF"),
    "Java": ("Javanese", "A980-A9DF"),
    "Cham": ("Cham", "AA00-AA5F"),
    "Tavt": ("Tai", "AA80-AADF"),
    "Mtei": ("Meetei Mayek", "ABC0-ABFF"),
    "Goth": ("Gothic", "10330-1034F"),
    "Dsrt": ("Deseret", "10400-1044F"),
    "Shaw": ("Shavian", "10450-1047F"),
    "Osge": ("Osage", "104B0-104FF"),
    "Cakm": ("Chakma", "11100-1114F"),
    "Gran": ("Grantha", "11300-1137F"),
    "Pauc": ("Pau Cin Hau", "11AC0-11AFF"),
    "Mroo": ("Mro", "16A40-16A6F"),
    "Hmng": ("Pahawh Hmong", "16B00-16B8F"),
    "Adlm": ("Adlam", "1E900-1E95F"),
    "Zxxx": ("none", ""),
}
_HAN = "4E00-9FFF"

# Scripts of the languages that FLORES-200 does not cover (mscale.languages.flores_codes has those of the others). What
# is not here is written in Latin letters, as are all codes that end in _Latn.
_LANGUAGES = {
    "Arab": "bgp lrc ms_Arab ms_Arab_BN skr tks tly_IR",
    "Cans": "iu oj",
    "Cher": "chr",
    "Cyrl": "ady alt av az_RU bua ce chm cv kaa kbd kjh koi krc kum kv mdf mrj myv nog os sah tab tyv udm xal",
    "Deva": "brx doi gbm gom new raj suz taj",
    "Grek": "grc",
    "Knda": "tcy",
    "Laoo": "kjg",
    "Mymr": "ksw rki",
    "Syrc": "syr",
    "Tfng": "ber",
    "Thaa": "dv",
    "Zxxx": "zxx_xx_dtynoise",  # what the crawl took for a language and is none: no letters
}
_FURTHER = """
    ban-Bali bax-Bamu bbc-Batk zh-Bopo bug-Bugi ccp-Cakm cjm-Cham cop-Copt en-Dsrt ff-Adlm cu-Glag got-Goth sa-Gran
    hmn-Hmng jv-Java nod-Lana lep-Lepc lif-Limb lis-Lisu mn-Mong mro-Mroo mni-Mtei nqo-Nkoo sat-Olck osa-Osge
    ctd-Pauc mn-Phag saz-Saur en-Shaw su-Sund syl-Sylo tl-Tglg tdd-Tale khb-Talu blt-Tavt vai-Vaii ii-Yiii
"""
_FLORES_SCRIPTS = {"Hans": "Hani"}

_RIGHT_TO_LEFT = {"Hebr", "Arab", "Syrc", "Thaa", "Nkoo", "Adlm"}
_BETWEEN_WORDS = dict.fromkeys(
    ("Hani", "Jpan", "Thai", "Laoo", "Mymr", "Lana", "Tavt", "Java", "Bali"), ""
) | {
    "Khmr": "\u200b",  # zero width space
    "Tibt": "\u0f0b",  # tsheg
}
_DIACRITICS = {"Latn", "Cyrl", "Grek"}  # take the marks of U+0300 to U+0314 too
_WIDE = {"Hani", "Jpan", "Hang"}

_EMOJI = ("🙂", "👩🏽‍🔬", "🇰🇪", "❤️", "1️⃣", "🏴󠁧󠁢󠁳󠁣󠁴󠁿")
_AWKWARD = ("\t", "  ", "\u00a0", "\u3000", "\u2581", "\ufeff", "\ufffd", "ﬁ", "①", "<0x41>", "<unk>", "…",
            "\r")  # fmt: skip
# Languages that come in many documents, of which whole ones are held out; of the others, lines are.
_RICH = 40


@dataclass(frozen=True)
class _Alphabet:
    """The characters of a script by what they do in a text."""

    letters: str
    marks: str
    viramas: str
    digits: str
    punctuation: str


def scripts() -> dict[str, str]:
    """Returns the ISO 15924 code of the script of each language that `write` writes."""
    listed = {code: script for script, codes in _LANGUAGES.items() for code in codes.split()}
    for code, flores in languages.flores_codes().items():
        script = flores.split("_")[1]
        listed[code] = _FLORES_SCRIPTS.get(script, script)
    found = {code: listed.get(code, "Latn") for code in languages.codes()}
    return found | {code: code.split("-")[1] for code in _FURTHER.split()}


def write(folder: Path) -> Path:
    """Writes the corpus, and languages.csv with the script of each (as `madlad_mini` has), and returns ``folder``."""
    listed = scripts()
    tiny_corpus.write(folder, {code: documents(code) for code in listed})
    with open(folder / "languages.csv", "w", encoding="utf-8", newline="") as file:
        rows = csv.writer(file)
        rows.writerow(("code", "script"))
        rows.writerows((code, _SCRIPTS[script][0]) for code, script in listed.items())
    return folder


def documents(code: str) -> list[str]:
    """Returns the text of one language: one to three documents (about 2 kB), or 24 for the richest (about 12 kB)."""
    script = scripts()[code]
    rng = random.Random(code)
    letters = _own_letters(script, rng)
    lexicon = [_word(script, letters, rng) for _ in range(60)]
    awkward = [one for one in _AWKWARD if letters or not any(map(str.isalpha, one))]
    lines_of_documents = ([30], [20, 10], [16, 8, 6])[_below(rng, 3)]
    if code in languages.codes()[:_RICH]:
        lines_of_documents = [6] * 24
    texts = []
    for number, size in enumerate(lines_of_documents):
        lines = [_sentence(script, lexicon, rng) for _ in range(size)]
        lines[-1] += _pick(rng, awkward) + _pick(rng, _EMOJI) + _pick(rng, awkward)
        texts.append(unicodedata.normalize("NFD" if number % 2 else "NFC", "\n".join(lines)))
    if len(texts) == 1:  # both forms in one document
        half = len(texts[0]) // 2
        texts[0] = texts[0][:half] + unicodedata.normalize("NFD", texts[0][half:])
    return texts


def _below(rng: random.Random, stop: int) -> int:
    """A number from 0 to ``stop`` - 1; Python promises the same stream in all versions for `random()` alone."""
    return int(rng.random() * stop)


def _pick(rng: random.Random, among: Sequence[str]) -> str:
    return among[_below(rng, len(among))]


def _frequent(rng: random.Random, among: Sequence[str]) -> str:
    """Zipf's law: the frequency of the i-th falls as 1/i."""
    weights = _zipf(len(among))
    return among[bisect.bisect(weights, rng.random() * weights[-1])]


@cache
def _zipf(count: int) -> list[float]:
    return list(itertools.accumulate(1 / (1 + i) for i in range(count)))


@cache
def _alphabet(script: str) -> _Alphabet:
    characters = _characters(_SCRIPTS[script][1])
    marks = _of_category(characters, "M")
    if script in _DIACRITICS:
        marks += "".join(map(chr, range(0x300, 0x315)))
    return _Alphabet(
        letters=_of_category(characters, "L"),
        marks="".join(mark for mark in marks if unicodedata.combining(mark) != 9),
        viramas="".join(mark for mark in marks if unicodedata.combining(mark) == 9),
        digits=_of_category(characters, "Nd") or "0123456789",
        punctuation=_of_category(characters, "P") + ("。、！？「」" if script in _WIDE else ".,!?«»"),
    )


def _characters(blocks: str) -> list[str]:
    bounds = [block.split("-") for block in blocks.split()]
    return [chr(point) for first, last in bounds for point in range(int(first, 16), int(last, 16) + 1)]


def _of_category(characters: list[str], category: str) -> str:
    return "".join(one for one in characters if unicodedata.category(one).startswith(category))


def _own_letters(script: str, rng: random.Random) -> str:
    """Letters of one language, most frequent first: 24 of its script, or 120 where a script has hundreds."""
    letters = _alphabet(script).letters
    if not letters:
        return ""
    chosen = "".join(_pick(rng, letters) for _ in range(24 if len(letters) < 1000 else 120))
    if script == "Latn":  # mostly those of ASCII
        chosen = "".join(_pick(rng, letters[:26]) for _ in range(16)) + chosen[:8]
    if script == "Jpan":
        han = _characters(_HAN)
        chosen += "".join(_pick(rng, han) for _ in range(60))
    if script == "Hani":  # a twelfth beyond the basic plane
        chosen += "".join(_pick(rng, letters[-0xA000:]) for _ in range(10))
    return chosen


def _word(script: str, letters: str, rng: random.Random) -> str:
    """Letters with marks, and joiners where Unicode has them matter: after a virama, or between Arabic letters."""
    alphabet = _alphabet(script)
    if not letters:
        return "".join(_pick(rng, alphabet.digits) for _ in range(1 + _below(rng, 5)))
    often = 0.1 if script in _DIACRITICS else 0.3
    word = ""
    for _ in range(1 + _below(rng, 3 if script in _WIDE else 7)):
        word += _frequent(rng, letters)
        if alphabet.viramas and rng.random() < 0.15:
            word += _pick(rng, alphabet.viramas) + _pick(rng, ("", "\u200c", "\u200d")) + _pick(rng, letters)
        if alphabet.marks and rng.random() < often:
            word += _pick(rng, alphabet.marks)
        if script == "Arab" and rng.random() < 0.05:
            word += "\u200c" + _pick(rng, letters)
    return word.lower()


def _sentence(script: str, lexicon: list[str], rng: random.Random) -> str:
    alphabet = _alphabet(script)
    words = [_frequent(rng, lexicon) for _ in range(4 + _below(rng, 7))]
    words[0] = words[0][:1].upper() + words[0][1:]
    if rng.random() < 0.3:
        words.append("".join(_pick(rng, alphabet.digits) for _ in range(4)))
    sentence = _BETWEEN_WORDS.get(script, " ").join(words) + _pick(rng, alphabet.punctuation)
    if script in _RIGHT_TO_LEFT and rng.random() < 0.3:
        # Marks, and a left-to-right isolate within a right-to-left text.
        sentence = "\u200f" + sentence + " \u2066abc 1.5\u2069" + _pick(rng, ("\u200e", "\u061c"))
    return sentence
