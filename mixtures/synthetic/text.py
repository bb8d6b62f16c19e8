"""The content of the generated corpus, and its rendering as text in each language.

The content process is the same for all languages: a document has a topic and three main characters. Within a clause the
agent determines the probabilities of the verb, topic and verb those of the patient, and a noun those of its adjective.
Rendering inflects the words and puts them in the language's word order, thousands of sentences at a time: a text is one
gather from the bytes of all word forms.
"""

from dataclasses import dataclass

import numpy as np

from mixtures.synthetic.languages import (
    CASELESS,
    SyntheticLanguage,
    World,
    concept_ranges,
    random_generator,
    spell,
)

OPEN, CLOSE = '{"text": "', '"}\n'  # around a document; no character of the text needs escaping
PARAGRAPH = "\\n"  # a line end inside JSON

_TOPICS = 8
_CLASSES = 10  # of agents and of verbs, on which the next word depends
_TABLE = 4096  # entries of a table that maps a uniform number to a concept
_MAX_SENTENCES = 40  # of a document
_NUMBERS = 19  # 2 to 20, in digits in every language

_MARKS = (OPEN, CLOSE, PARAGRAPH, ",", ".", "?", "!")
_FIRST_WORD = 1 + len(_MARKS)  # form 0 is empty
_INFLECTIONS = 4  # of a noun: plural + 2·object; of a verb: plural + 2·past
_VARIANTS = 3  # after a space; capital after a space; capital at the start of a line

# Slots of a sentence that hold a concept id (number words above the concepts), or -1 where empty.
SLOTS = ("connective", "time", "subject_count", "subject_adjective", "subject", "negation", "verb",
         "object_count", "object_adjective", "object", "adposition", "place")  # fmt: skip


@dataclass(frozen=True, eq=False)
class ContentProcess:
    """Tables of the content process: row r has T concept ids, each in proportion to its probability given r."""

    ranges: dict[str, range]
    plain: dict[str, np.ndarray]  # word class → (1, T), without a condition
    noun: np.ndarray  # (topics, T)
    verb: np.ndarray  # (classes of agents, T)
    patient: np.ndarray  # (topics × classes of verbs, T)
    adjective: np.ndarray  # (nouns, T)
    place: np.ndarray  # (adpositions, T)


def content_process(world: World) -> ContentProcess:
    """Draws the tables of the world: Zipf's law in each word class, with conditional preferences."""
    rng = random_generator(world.seed, "content")
    ranges = concept_ranges(world.concepts)
    zipf = {name: 1.0 / (np.arange(len(ids)) + 1.0) for name, ids in ranges.items()}

    def preferring(rows: int, name: str, strength: float, share: float) -> np.ndarray:
        """Zipf weights (rows, words), where a ``share`` of the words of each row is ``strength`` times as likely."""
        return zipf[name] * np.where(rng.random((rows, len(zipf[name]))) < share, strength, 1.0)

    topic = preferring(_TOPICS, "noun", 10.0, 1 / _TOPICS)
    liked = preferring(_CLASSES, "noun", 12.0, 0.1) / zipf["noun"]
    adjectives = len(ranges["adjective"])
    return ContentProcess(
        ranges=ranges,
        plain={name: _table(weights[None], ranges[name].start) for name, weights in zipf.items()},
        noun=_table(topic, ranges["noun"].start),
        verb=_table(preferring(_CLASSES, "verb", 10.0, 0.12), ranges["verb"].start),
        patient=_table((topic[:, None] * liked).reshape(-1, topic.shape[1]), ranges["noun"].start),
        adjective=_table(
            preferring(len(ranges["noun"]), "adjective", 20.0, 2.5 / adjectives), ranges["adjective"].start
        ),
        place=_table(preferring(len(ranges["adposition"]), "noun", 10.0, 0.12), ranges["noun"].start),
    )


def draw_content(process: ContentProcess, rng: np.random.Generator, sentences: int) -> dict[str, np.ndarray]:
    """Draws whole documents, ``sentences`` in all; every array has shape (sentences,).

    ``first`` and ``last`` mark the sentences of a document, ``paragraph`` those that end one inside it; ``SLOTS`` hold
    concept ids; ``*_plural``, ``past`` and ``end`` (0 to 2: full stop, question, exclamation) complete the grammar.
    """
    ranges = process.ranges
    noun = ranges["noun"].start

    def chance(p: float) -> np.ndarray:
        return rng.random(sentences) < p

    def draw(table: np.ndarray, rows: np.ndarray | int = 0) -> np.ndarray:
        return table[rows, (rng.random(sentences) * _TABLE).astype(np.int32)]

    def exponential(mean: float, most: int) -> np.ndarray:
        return np.minimum((-mean * np.log1p(-rng.random(sentences))).astype(np.int32), most)

    ends = np.cumsum(2 + exponential(7.0, _MAX_SENTENCES - 2))
    first = np.zeros(sentences, bool)
    first[np.append(0, ends[ends < sentences])] = True
    last = np.append(first[1:], True)
    document = np.cumsum(first) - 1

    topic = (rng.random(sentences) * _TOPICS).astype(np.int32)[document]
    cast = [draw(process.noun, topic)[document] for _ in range(3)]  # main characters
    character = np.choose((rng.random(sentences) * 3).astype(np.int32), cast)

    subject = np.where(chance(0.5), character, draw(process.noun, topic))  # determines the verb
    verb = draw(process.verb, (subject - noun) % _CLASSES)
    patient = draw(process.patient, topic * _CLASSES + (verb - ranges["verb"].start) % _CLASSES)
    patient = np.where(chance(0.25), character, patient)
    adposition = np.where(chance(0.35), draw(process.plain["adposition"]), -1)
    place = draw(process.place, np.maximum(adposition - ranges["adposition"].start, 0))

    def described(nouns: np.ndarray, present: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Adjective, plural, and number word of the nouns where present."""
        adjective = np.where(present & chance(0.35), draw(process.adjective, nouns - noun), -1)
        plural = present & chance(0.3)
        number = ranges["adjective"].stop + exponential(3.0, _NUMBERS - 1)
        return adjective, plural, np.where(plural & chance(0.2), number, -1)

    has_object = chance(0.8)
    object_noun = has_object & ~chance(0.12)
    subject_noun = first | ~chance(0.28)
    subject_adjective, subject_plural, subject_count = described(subject, subject_noun)
    object_adjective, object_plural, object_count = described(patient, object_noun)
    pronoun_or_name = np.where(chance(0.5), draw(process.plain["pronoun"]), draw(process.plain["name"]))
    return {
        "first": first,
        "last": last,
        "paragraph": chance(0.15) & ~last,
        "connective": np.where(chance(0.2) & ~first, draw(process.plain["connective"]), -1),
        "time": np.where(chance(0.2), draw(process.plain["time"]), -1),
        "subject": np.where(subject_noun, subject, pronoun_or_name),
        "subject_adjective": subject_adjective,
        "subject_count": subject_count,
        "subject_plural": subject_plural,
        "negation": np.where(chance(0.1), ranges["negation"].start, -1),
        "verb": verb,
        "past": chance(0.6)[document],
        "object": np.where(has_object, np.where(object_noun, patient, draw(process.plain["name"])), -1),
        "object_adjective": object_adjective,
        "object_count": object_count,
        "object_plural": object_plural,
        "adposition": adposition,
        "place": np.where(adposition >= 0, place, -1),
        "place_plural": chance(0.2),
        "end": np.searchsorted([0.9, 0.96], rng.random(sentences)),
    }


def concept_frequencies(world: World, sentences: int = 20_000) -> np.ndarray:
    """Relative frequency of each concept, (concepts,), counted over content drawn with the world's seed."""
    content = draw_content(content_process(world), random_generator(world.seed, "frequencies"), sentences)
    ids = np.concatenate([content[slot] for slot in SLOTS])
    counts = np.bincount(ids[(ids >= 0) & (ids < world.concepts)], minlength=world.concepts)
    return counts / counts.sum()


@dataclass(frozen=True, eq=False)
class WordForms:
    """All byte strings of a language's text: the empty string, marks, then words × inflections × variants."""

    language: SyntheticLanguage
    pool: np.ndarray  # uint8: all forms concatenated
    start: np.ndarray  # int64 (forms,): offset in the pool
    length: np.ndarray  # int64 (forms,)
    text_length: np.ndarray  # int64 (forms,): bytes of the document's text, without JSON


def word_forms(world: World, language: SyntheticLanguage) -> WordForms:
    """Inflects and spells all words of a language."""
    suffix = language.suffixes
    endings = {
        "noun": ("", suffix["plural"], suffix["object"], suffix["plural"] + suffix["object"]),
        "name": ("", "", suffix["object"], suffix["object"]),
        "verb": ("", suffix["verb_plural"], suffix["past"], suffix["past"] + suffix["verb_plural"]),
    }
    cased = language.script not in CASELESS
    forms = ["", *_MARKS]
    for name, ids in concept_ranges(world.concepts).items():
        for k in ids:
            for ending in endings.get(name, ("",) * _INFLECTIONS):
                word = spell(language.words[k] + ending, language.script)
                capital = word[0].upper() + word[1:] if cased else word
                forms += [" " + (capital if name == "name" else word), " " + capital, capital]
    for number in range(2, 2 + _NUMBERS):
        forms += [f" {number}", f" {number}", str(number)] * _INFLECTIONS
    encoded = [form.encode() for form in forms]
    length = np.array([len(form) for form in encoded])
    text_length = length.copy()
    text_length[[forms.index(OPEN), forms.index(CLOSE)]] = 0
    text_length[forms.index(PARAGRAPH)] = 1
    start = np.cumsum(length) - length
    return WordForms(language, np.frombuffer(b"".join(encoded), np.uint8), start, length, text_length)


def render_json_lines(
    forms: WordForms, content: dict[str, np.ndarray]
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Renders content as JSON lines.

    Returns:
      The lines (uint8), and for each document the end of its line (int64) and the bytes of its text (int64).
    """
    language = forms.language
    first, last, paragraph = content["first"], content["last"], content["paragraph"]

    def words(slot: str, inflection: np.ndarray | int = 0) -> np.ndarray:
        ids = content[slot]
        return np.where(ids >= 0, _FIRST_WORD + (ids * _INFLECTIONS + inflection) * _VARIANTS, 0)

    def mark(text: str, where: np.ndarray) -> np.ndarray:
        return np.where(where, 1 + _MARKS.index(text), 0)

    def noun_phrase(role: str, inflection: np.ndarray) -> list[np.ndarray]:
        described = [words(f"{role}_adjective"), words(role, inflection)]
        return [words(f"{role}_count"), *(described if language.adjective_first else described[::-1])]

    # Pronouns and the like have the same form in every inflection.
    plural = content["subject_plural"]
    clause = {
        "S": noun_phrase("subject", plural.astype(np.int64)),
        "V": [words("negation"), words("verb", plural + 2 * content["past"])],
        "O": noun_phrase("object", content["object_plural"] + 2),
    }
    place = [words("adposition"), words("place", content["place_plural"].astype(np.int64))]
    phrases = [clause[role] for role in language.clause_order]
    verb_before_object = language.clause_order.index("V") < language.clause_order.index("O")
    phrases.insert(3 if verb_before_object else 1, place if language.prepositions else place[::-1])
    comma = mark(",", content["connective"] >= 0)
    opening = [words("connective"), comma, words("time")]
    columns = np.stack([*opening, *(column for phrase in phrases for column in phrase)], axis=1)

    rows = np.arange(len(first))
    start = np.argmax(columns > 0, axis=1)
    new_line = first | np.append(False, paragraph[:-1])
    columns[rows, start] += np.where(new_line, 2, 1)  # the variants with a capital

    end = np.array([_MARKS.index(text) + 1 for text in ".?!"])[content["end"]]
    close = np.where(paragraph, mark(PARAGRAPH, paragraph), mark(CLOSE, last))
    ids = np.concatenate([mark(OPEN, first)[:, None], columns, end[:, None], close[:, None]], axis=1)
    sentence_bytes = np.cumsum(forms.length[ids].sum(axis=1))
    text_bytes = np.cumsum(forms.text_length[ids].sum(axis=1))[last]

    ids = ids[ids > 0]
    length = forms.length[ids]
    shift = (forms.start[ids] - (np.cumsum(length) - length)).astype(np.int32)
    where = np.repeat(shift, length)
    where += np.arange(len(where), dtype=np.int32)
    return forms.pool[where], sentence_bytes[last], np.diff(text_bytes, prepend=0)


def _table(weights: np.ndarray, start: int) -> np.ndarray:
    """(R, C) weights → (R, T) ids from ``start`` on, each in proportion to its weight."""
    cumulative = np.cumsum(weights / weights.sum(axis=1, keepdims=True), axis=1)
    quantiles = (np.arange(_TABLE) + 0.5) / _TABLE
    rows = [np.searchsorted(row[:-1], quantiles, side="right") for row in cumulative]
    return (np.stack(rows) + start).astype(np.int32)
