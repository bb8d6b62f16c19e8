"""The languages of the generated corpus: families, sound changes, scripts, word order, relatedness.

A family is a proto-lexicon: a word of phonemes for every concept, some of them borrowed by all families of one script.
A language replaces a share of those words by its own, applies its regular sound changes (phoneme → phoneme, in every
position) to the others, and spells the result in the family's script. A language depends on the ``World`` and its code
alone, whatever other languages are generated.
"""

import hashlib
import string
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from mscale.errors import MscaleError

PHONEMES = "ptkbdgmnszfvhlraeiou"
VOWELS = "aeiou"
CONSONANTS = PHONEMES[:-5]

# One letter a phoneme. Georgian letters take three bytes of UTF-8, Latin ones one, all others two.
ALPHABETS = {
    "Latin": PHONEMES,
    "Cyrillic": "пткбдгмнсзфвхлраеиоу",
    "Greek": "πτκβδγμνσζφϝχλραειου",
    "Armenian": "պտկբդգմնսզֆվհլրաեիու",
    "Georgian": "პტკბდგმნსზფვჰლრაეიოუ",
    "Hebrew": "פתכבדגמנסזצקהלראעיחו",
    "Arabic": "قتكبدجمنسزفغهلراعيحو",
}
CASELESS = {"Georgian", "Hebrew", "Arabic"}
# Script of the family with this index (cyclically); most scripts serve several families.
FAMILY_SCRIPTS = ("Latin", "Cyrillic", "Latin", "Greek", "Cyrillic", "Armenian", "Latin", "Georgian", "Greek",
                  "Hebrew", "Armenian", "Arabic")  # fmt: skip

# Lenition, voicing, debuccalisation, rhotacism, vowel shifts: changes that languages do undergo.
SOUND_CHANGES = ("pf", "td", "kh", "bv", "dz", "gk", "zr", "sz", "fh", "lr", "mn", "vb",
                 "ou", "ei", "ao", "uo", "ie", "ae")  # fmt: skip
CLAUSE_ORDERS = ("SVO", "SOV", "VSO", "VOS", "OVS")
_CLAUSE_SHARES = (0.4, 0.35, 0.15, 0.06, 0.04)

# Closed classes have a fixed size; open ones share the rest of the concepts.
CLOSED_CLASSES = {"pronoun": 4, "adposition": 6, "connective": 5, "time": 8, "negation": 1, "name": 16}
OPEN_CLASSES = {"noun": 0.6, "verb": 0.25, "adjective": 0.15}
SUFFIXES = ("plural", "object", "past", "verb_plural")  # inherited by all languages of a family
MIN_CONCEPTS = 100

LEXICAL_WEIGHT, SCRIPT_WEIGHT, ORDER_WEIGHT = 0.75, 0.15, 0.10
RELATEDNESS_FORMULA = (
    "relatedness(l, m) = [same script]·(0.75·Σ_k f_k·a_k² + 0.15) + 0.10·order(l, m). "
    "f_k: share of running words that the content process gives to concept k; a_k: share of letters that the "
    "words for k have in common, place by place, if both have the same origin (inherited from one proto-word, or "
    "from one borrowed by the families of their script, or a name, which all languages share), else 0; "
    "order: 0.5·[same clause order] + 0.25·[same adjective side] + 0.25·[same adposition side]. "
    "Symmetric, 1 for a language with itself."
)


@dataclass(frozen=True)
class World:
    """Parameters that all languages of a generated corpus share, and the ranges of those that differ.

    The defaults are for models of 20k to 300k parameters on a few 100 kB of text. These gain only from closely related
    languages, with most words in common; larger models also gain from more distant ones.

    Attributes:
      seed: of all random choices.
      families: number of families, 1 to 26; family i writes in ``FAMILY_SCRIPTS[i % 12]``.
      concepts: words in a language's lexicon; function words and names take 40 of them.
      replaced: least and largest share of its family's words that a language has replaced by its own.
      sound_changes: least and largest number of sound changes of a language.
      borrowed: share of words that all families of a script have in common, before their sound changes.
    """

    seed: int = 0
    families: int = 3
    concepts: int = 240
    replaced: tuple[float, float] = (0.0, 0.25)
    sound_changes: tuple[int, int] = (0, 2)
    borrowed: float = 0.5

    def __post_init__(self) -> None:
        def require(ok: bool, field: str, expected: str) -> None:
            if not ok:
                raise MscaleError(f"{field}={getattr(self, field)!r}: expected {expected}; give such a value")

        for field in ("replaced", "sound_changes"):
            pair = isinstance(getattr(self, field), Sequence) and len(getattr(self, field)) == 2
            require(pair, field, "the least and the largest value")
        low, high = self.replaced
        fewest, most = self.sound_changes
        require(isinstance(self.seed, int), "seed", "a whole number")
        require(1 <= self.families <= 26, "families", "1 to 26 families, each named by a letter")
        require(self.concepts >= MIN_CONCEPTS, "concepts", f"at least {MIN_CONCEPTS}")
        require(self.concepts <= 4000, "concepts", "at most 4000")
        require(0 <= low <= high <= 1, "replaced", "a least and a largest share within 0 to 1")
        require(0 <= self.borrowed <= 1, "borrowed", "a share within 0 to 1")
        require(0 <= fewest <= most <= 12, "sound_changes", "a least and a largest number within 0 to 12")


@dataclass(frozen=True, eq=False)
class SyntheticLanguage:
    """One language: family, script, grammar, and its words (by concept) and suffixes in phonemes."""

    code: str
    family: str
    script: str
    clause_order: str
    adjective_first: bool
    prepositions: bool
    replaced: float
    sound_changes: tuple[str, ...]
    words: tuple[str, ...]
    suffixes: dict[str, str]
    inherited: np.ndarray  # bool (concepts,): from the proto-lexicon, or a name
    borrowed: np.ndarray  # bool (concepts,): the inherited word is common to all families of the script

    def describe(self) -> dict:
        """Returns the language's entry in ``truth.json``."""
        return {
            "family": self.family,
            "script": self.script,
            "word_order": self.clause_order,
            "adjective": "before noun" if self.adjective_first else "after noun",
            "adposition": "preposition" if self.prepositions else "postposition",
            "replaced": round(self.replaced, 6),
            "sound_changes": {change[0]: change[1] for change in self.sound_changes},
        }


def random_generator(seed: int, *parts: object) -> np.random.Generator:
    """A random generator for one purpose, seeded by ``seed`` and ``parts``.

    Only its method ``random`` is used, whose stream NumPy guarantees across versions.
    """
    name = "/".join(map(str, (seed, *parts))).encode()
    return np.random.Generator(
        np.random.PCG64(int.from_bytes(hashlib.blake2b(name, digest_size=16).digest()))
    )


def language_code(family: int, index: int) -> str:
    """Family letter plus index letter, ``aa`` to ``zz``; from the 27th language of a family on two more letters."""
    letters = string.ascii_lowercase
    if index < 26:
        return letters[family] + letters[index]
    if index < 26 + 26 * 26:
        return letters[family] + letters[(index - 26) // 26] + letters[(index - 26) % 26]
    raise MscaleError(
        f"language {index} of family {letters[family]!r}: expected at most 702; use more families"
    )


def language_codes(count: int, families: int) -> list[str]:
    """Codes of the first ``count`` languages: one of each family, then the second of each, and so on."""
    return [language_code(i % families, i // families) for i in range(count)]


def concept_ranges(concepts: int) -> dict[str, range]:
    """Word class → its concept ids; the classes partition ``range(concepts)`` in order."""
    sizes = dict(CLOSED_CLASSES)
    rest = concepts - sum(sizes.values())
    sizes |= {name: int(share * rest) for name, share in OPEN_CLASSES.items()}
    sizes["noun"] += concepts - sum(sizes.values())
    ranges, start = {}, 0
    for name, size in sizes.items():
        ranges[name] = range(start, start + size)
        start += size
    return ranges


def synthetic_language(world: World, code: str) -> SyntheticLanguage:
    """Makes the language ``code``; a pure function of its arguments.

    Raises:
      MscaleError: the code is not one of ``language_code`` for the world's families.
    """
    family, index = _family_and_index(world, code)
    rng = random_generator(world.seed, "language", code)
    age = 0.5 * ((0.618034 * family) % 1) + 0.5 * ((0.618034 * index) % 1)  # evenly spread for any number
    replaced = world.replaced[0] + (world.replaced[1] - world.replaced[0]) * age
    fewest, most = world.sound_changes
    changes = _draw_changes(rng, round(fewest + (most - fewest) * age))

    ranges = concept_ranges(world.concepts)
    script = FAMILY_SCRIPTS[family % len(FAMILY_SCRIPTS)]
    area, _ = _lexicon(world, ranges, script, "area")
    proto, suffixes = _lexicon(world, ranges, script, code[0], avoid=area)
    own, _ = _lexicon(world, ranges, script, code, avoid=[*area, *proto])
    borrowed = random_generator(world.seed, "borrowed", script).random(world.concepts) < world.borrowed
    proto = [area[k] if borrowed[k] else proto[k] for k in range(world.concepts)]
    shift = str.maketrans({change[0]: change[1] for change in changes})
    inherited = rng.random(world.concepts) >= replaced
    inherited[ranges["name"]] = borrowed[ranges["name"]] = True
    words = [proto[k].translate(shift) if inherited[k] else own[k] for k in range(world.concepts)]
    for k, name in zip(ranges["name"], _names(world, len(ranges["name"])), strict=True):
        words[k] = name
    clause, adjective_first, prepositions = _word_order(world, code, rng)
    return SyntheticLanguage(
        code=code,
        family=code[0],
        script=script,
        clause_order=clause,
        adjective_first=adjective_first,
        prepositions=prepositions,
        replaced=replaced,
        sound_changes=changes,
        words=tuple(words),
        suffixes={name: suffix.translate(shift) for name, suffix in suffixes.items()},
        inherited=inherited,
        borrowed=borrowed,
    )


def spell(word: str, script: str) -> str:
    """Phonemes to letters of the script."""
    return word.translate(str.maketrans(PHONEMES, ALPHABETS[script]))


def planted_relatedness(one: SyntheticLanguage, other: SyntheticLanguage, frequencies: np.ndarray) -> float:
    """The true relatedness of two languages, in [0, 1], by ``RELATEDNESS_FORMULA``.

    Args:
      frequencies: shape (concepts,), share of running words of each concept, summing to 1.
    """
    if one.code == other.code:
        return 1.0
    order = (
        0.5 * (one.clause_order == other.clause_order)
        + 0.25 * (one.adjective_first == other.adjective_first)
        + 0.25 * (one.prepositions == other.prepositions)
    )
    if one.script != other.script:
        return ORDER_WEIGHT * order
    cognate = one.inherited & other.inherited
    if one.family != other.family:
        cognate &= one.borrowed
    shared_letters = np.zeros(len(one.words))
    for k in np.flatnonzero(cognate):
        pairs = list(zip(one.words[k], other.words[k], strict=True))  # sound changes keep the length
        shared_letters[k] = sum(a == b for a, b in pairs) / len(pairs)
    return LEXICAL_WEIGHT * float(frequencies @ shared_letters**2) + SCRIPT_WEIGHT + ORDER_WEIGHT * order


def relatedness_matrix(
    languages: Sequence[SyntheticLanguage], frequencies: np.ndarray
) -> dict[str, dict[str, float]]:
    """``{code: {code: relatedness}}`` for all pairs, rounded to six decimals, symmetric."""
    matrix: dict[str, dict[str, float]] = {language.code: {} for language in languages}
    for i, one in enumerate(languages):
        for other in languages[i:]:
            value = round(planted_relatedness(one, other, frequencies), 6)
            matrix[one.code][other.code] = matrix[other.code][one.code] = value
    return {code: {other: row[other] for other in matrix} for code, row in matrix.items()}


def _family_and_index(world: World, code: str) -> tuple[int, int]:
    """Family and index of a code."""
    letters = string.ascii_lowercase
    last = letters[world.families - 1]
    if len(code) not in (2, 3) or any(c not in letters for c in code) or code[0] > last:
        raise MscaleError(
            f"language {code!r}: expected a family letter a to {last} and one or two further letters, "
            f"such as {language_code(0, 0)!r} or {language_code(world.families - 1, 1)!r}; give such codes or a number"
        )
    tail = [letters.index(c) for c in code[1:]]
    return letters.index(code[0]), tail[0] if len(tail) == 1 else 26 + 26 * tail[0] + tail[1]


def _draw_changes(rng: np.random.Generator, count: int) -> tuple[str, ...]:
    """``count`` changes of different phonemes, in the order of ``SOUND_CHANGES``; they apply simultaneously."""
    drawn: dict[str, str] = {}
    for i in np.argsort(rng.random(len(SOUND_CHANGES)), kind="stable"):
        if len(drawn) < count:
            drawn.setdefault(SOUND_CHANGES[i][0], SOUND_CHANGES[i])
    return tuple(change for change in SOUND_CHANGES if change in drawn.values())


def _word_order(world: World, code: str, rng: np.random.Generator) -> tuple[str, bool, bool]:
    """Clause order, adjective before noun, prepositions: of the family; each differs in a quarter of languages."""
    inherited = random_generator(world.seed, "order", code[0]).random(3)
    own, kept = rng.random(3), rng.random(3) < 0.75
    draw = np.where(kept, inherited, own)
    clause = CLAUSE_ORDERS[int(np.searchsorted(np.cumsum(_CLAUSE_SHARES)[:-1], draw[0], side="right"))]
    return clause, bool(draw[1] < 0.5), bool(draw[2] < 0.5)


def _lexicon(
    world: World, ranges: dict[str, range], script: str, owner: str, avoid: Sequence[str] = ()
) -> tuple[list[str], dict[str, str]]:
    """Distinct words for all concepts (short for frequent ones) and suffixes, with the script's phoneme frequencies."""
    sound_rng = random_generator(world.seed, "sounds", script)
    sounds = np.exp(2.0 * (sound_rng.random(len(PHONEMES)) - 0.5))
    coda = 0.15 + 0.4 * sound_rng.random()
    rng = random_generator(world.seed, "words", script, owner)
    words: dict[str, None] = {}  # ordered and distinct
    taken = set(avoid)
    for name, ids in ranges.items():
        for rank in range(len(ids)):
            short = name in CLOSED_CLASSES or rank < 0.15 * len(ids)
            syllables = 1 if short else 2 if rank < 0.7 * len(ids) else 3
            word, tries = "", 0
            while not word or word in words or word in taken:
                tries += 1  # longer after 100 failed tries
                word = _word(rng, sounds, syllables + tries // 100, 0.7 if short else coda)
            words[word] = None
    suffixes: dict[str, str] = {}
    while len(suffixes) < len(SUFFIXES):
        suffix = _word(rng, sounds, 1, 0.0)[::-1]  # a vowel and a consonant
        if suffix not in suffixes.values():
            suffixes[SUFFIXES[len(suffixes)]] = suffix
    return list(words), suffixes


def _names(world: World, count: int) -> list[str]:
    """Names of people and places: the same phonemes in all languages, without sound changes."""
    rng = random_generator(world.seed, "names")
    names: dict[str, None] = {}
    while len(names) < count:
        names[_word(rng, np.ones(len(PHONEMES)), 2, 0.6)] = None
    return list(names)


def _word(rng: np.random.Generator, sounds: np.ndarray, syllables: int, coda: float) -> str:
    """A word of (C)V(C) syllables; only the last may be closed."""
    consonants, vowels = sounds[: len(CONSONANTS)], sounds[len(CONSONANTS) :]

    def draw(letters: str, weights: np.ndarray) -> str:
        return letters[
            int(np.searchsorted(np.cumsum(weights)[:-1], rng.random() * weights.sum(), side="right"))
        ]

    word = "".join(draw(CONSONANTS, consonants) + draw(VOWELS, vowels) for _ in range(syllables))
    return word + draw(CONSONANTS, consonants) if rng.random() < coda else word
