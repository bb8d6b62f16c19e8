"""Tokens that a vocabulary needs for each language: fertility, pieces by script, byte and token premiums.

Comparing losses or budgets between languages in tokens presupposes that equal tokens carry equal content. Fertility
is tokens per byte and per word (Rust et al. 2021, arXiv 2012.15613). On parallel text, the byte premium is a language's
UTF-8 bytes over the reference's for the same content (Arnett et al. 2024, arXiv 2403.00686), the token premium the same
ratio of tokens (Petrov et al. 2023, arXiv 2305.15425).
"""

import os
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from mixtures.packing.inputs import find_inputs, read_documents
from mscale.data.parallel_text import parallel_text
from mscale.data.vocabulary import Vocabulary, describe
from mscale.errors import MscaleError, nearest
from mscale.languages import dominant_script
from mscale.progress import progress

if TYPE_CHECKING:
    from rich.table import Table

# Scripts without spaces between words, where the text between spaces is a sentence.
_UNSPACED_SCRIPTS = frozenset(
    ["Han", "Japanese", "Bopomofo", "Thai", "Lao", "Khmer", "Myanmar", "Tibetan", "Yi"]
    + ["Javanese", "Balinese", "Tai", "New Tai Lue"]
)
_WORD_ENDS = re.compile(r"[\s\u1361]+")  # Ethiopic has its own sign between words
_REFERENCES = ("en", "eng", "eng_Latn")


@dataclass(frozen=True)
class VocabularyReport:
    """Rows of plain values, ready for a table, a CSV or a data frame.

    Attributes:
      vocabulary: kind, size, fingerprint, eos_id, pad_id.
      languages: per language: language, script, bytes, characters, words, tokens, tokens_per_byte,
        tokens_per_character, tokens_per_word (None for scripts without spaces between words), byte_tokens
        (share of tokens that are single bytes) and pieces (distinct ids used).
      pieces: per script of the vocabulary: script, pieces, share. Special ids, single bytes and pieces without
        letters ("none") are rows of their own.
      parallel: per language of the parallel text: language, lines, bytes, tokens, byte_premium, token_premium.
      reference: the language whose premiums are 1, None without parallel text.
    """

    vocabulary: dict[str, Any]
    languages: list[dict[str, Any]]
    pieces: list[dict[str, Any]]
    parallel: list[dict[str, Any]]
    reference: str | None


def vocabulary_report(
    vocabulary: Vocabulary,
    corpus: str | os.PathLike | None = None,
    languages: Sequence[str] | None = None,
    parallel: str | os.PathLike | None = None,
    reference: str | None = None,
    sample_bytes: int = 200_000,
) -> VocabularyReport:
    """Measures ``vocabulary`` on text.

    Args:
      vocabulary: of bytes or SentencePiece.
      corpus: folder or URL in MADLAD-400's layout, for fertility; may be None.
      languages: of the corpus; None for all.
      parallel: the same text in many languages, line by line: a generated corpus (``parallel/<code>.jsonl.gz``),
        a folder of such files, or Flores (``devtest/<code>.devtest`` or ``dev/<code>.dev``); may be None.
      reference: the language whose premiums are 1; None for English, or the first language without English.
      sample_bytes: text read of each language of the corpus, in whole documents from its beginning.

    Raises:
      MscaleError: neither corpus nor parallel text, bad input, parallel files of different length, an unknown
        reference.
    """
    if corpus is None and parallel is None:
        raise MscaleError("nothing to measure the vocabulary on: give a corpus, parallel text, or both")
    if sample_bytes < 1:
        raise MscaleError(f"sample_bytes is {sample_bytes}, expected 1 or more")
    is_byte, pieces = _pieces(vocabulary)
    rows = []
    if corpus is not None:
        inputs = find_inputs(corpus, languages)
        with progress("measure", len(inputs), "languages") as advance:
            for language, files in inputs.items():
                texts = _beginning((text for one in files for text in read_documents(one)), sample_bytes)
                rows.append({"language": language, **_fertility(vocabulary, texts, is_byte)})
                advance()
    premiums: list[dict[str, Any]] = []
    if parallel is not None:
        premiums, reference = _premiums(vocabulary, parallel_text(parallel), reference, Path(parallel))
    return VocabularyReport(describe(vocabulary), rows, pieces, premiums, reference if premiums else None)


def report_tables(report: VocabularyReport) -> list["Table"]:
    """The report as rich tables."""
    from rich.table import Table

    made = []
    titles = {
        "languages": "fertility",
        "pieces": "pieces per script",
        "parallel": f"premiums over {report.reference} on parallel text",
    }
    for part, title in titles.items():
        rows = getattr(report, part)
        if not rows:
            continue
        table = Table(title=f"{report.vocabulary['fingerprint']}: {title}")
        for column, value in rows[0].items():
            table.add_column(column.replace("_", " "), justify="left" if isinstance(value, str) else "right")
        for row in rows:
            table.add_row(*map(_cell, row.values()))
        made.append(table)
    return made


def _beginning(texts: Iterator[str], size: int) -> list[str]:
    found = []
    for text in texts:
        found.append(text)
        size -= len(text.encode())
        if size <= 0:
            break
    return found


def _fertility(vocabulary: Vocabulary, texts: list[str], is_byte: np.ndarray) -> dict[str, Any]:
    ids, _ = vocabulary.encode_batch(texts)
    size = sum(len(text.encode()) for text in texts)
    characters = sum(map(len, texts))
    script = dominant_script("".join(text[:5000] for text in texts[:20]), 100_000)
    words = sum(len(_WORD_ENDS.split(text.strip())) for text in texts)
    spaced = script not in _UNSPACED_SCRIPTS and words
    return {
        "script": script,
        "bytes": size,
        "characters": characters,
        "words": words if spaced else None,
        "tokens": len(ids),
        "tokens_per_byte": _ratio(len(ids), size),
        "tokens_per_character": _ratio(len(ids), characters),
        "tokens_per_word": _ratio(len(ids), words) if spaced else None,
        "byte_tokens": _ratio(int(is_byte[ids].sum()), len(ids)),
        "pieces": len(np.unique(ids)),
    }


def _premiums(
    vocabulary: Vocabulary, text: dict[str, list[str]], reference: str | None, path: Path
) -> tuple[list[dict[str, Any]], str]:
    if reference is None:
        reference = next((code for code in _REFERENCES if code in text), next(iter(text)))
    if reference not in text:
        raise MscaleError(
            f"{path}: the reference language {reference!r} has no parallel text here{nearest(reference, text)}; "
            f"there are {', '.join(text)}"
        )
    rows: list[dict[str, Any]] = []
    for code, lines in text.items():
        rows.append(
            {
                "language": code,
                "lines": len(lines),
                "bytes": sum(len(line.encode()) for line in lines),
                "tokens": len(vocabulary.encode_batch(lines)[0]),
            }
        )
    base = next(row for row in rows if row["language"] == reference)
    for row in rows:
        row["byte_premium"] = _ratio(row["bytes"], base["bytes"])
        row["token_premium"] = _ratio(row["tokens"], base["tokens"])
    return rows, reference


def _pieces(vocabulary: Vocabulary) -> tuple[np.ndarray, list[dict[str, Any]]]:
    """A mask (ids,) of those that are single bytes, and the rows of pieces by script."""
    is_byte = np.zeros(vocabulary.size, bool)
    counts: Counter[str] = Counter()
    for number, piece in enumerate(vocabulary.pieces()):
        if piece is None:
            counts["special"] += 1
        elif isinstance(piece, bytes):
            is_byte[number] = True
            counts["single bytes"] += 1
        else:
            counts[dominant_script(piece)] += 1
    rows = [
        {"script": script, "pieces": count, "share": count / vocabulary.size}
        for script, count in sorted(counts.items(), key=lambda item: (-item[1], item[0]))
    ]
    return is_byte, rows


def _ratio(a: float, b: float) -> float | None:
    return a / b if b else None


def _cell(value: Any) -> str:
    if value is None:
        return "–"
    if isinstance(value, float):
        return f"{value:.4f}" if value < 1 else f"{value:.3f}"
    return f"{value:,}" if isinstance(value, int) else str(value)
