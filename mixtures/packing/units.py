"""The units of text that are held out: hashes, sizes and token ids.

A unit is a document or, in a language with few documents, a line of one.
"""

import hashlib
from collections.abc import Iterable, Iterator

import numpy as np

from mscale.data.store import token_dtype
from mscale.data.vocabulary import Vocabulary

UNIT_RECORD = np.dtype([("hash", "<u8"), ("tokens", "<u4"), ("bytes", "<u4"), ("document", "<u4")])
COUNT_NAMES = ("documents", "empty_documents", "units", "tokens", "bytes")
NEVER_HELD_OUT = (1 << 64) - 1  # hash of units that are never held out (blank lines); no cutoff exceeds it

_NEVER_BYTES = NEVER_HELD_OUT.to_bytes(8, "little")
BATCH_BYTES = 1 << 20  # of text encoded at once


def encode_units(
    texts: Iterable[str], unit: str, vocabulary: Vocabulary, counts: dict[str, int]
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Yields, for about a megabyte of documents at a time, the records of their units and the ids without EOS.

    No piece of a vocabulary of ours holds a line end, so the ids of lines join to those of the whole document.

    Args:
      texts: documents.
      unit: "document" or "line".
      counts: the counts ``COUNT_NAMES`` of what has been read are added to it.

    Yields:
      records (units,) of ``UNIT_RECORD``, and the token ids of all these units, one after the other.
    """
    dtype = token_dtype(vocabulary.size)
    for documents in _batches(texts, counts):
        numbers = np.arange(counts["documents"], counts["documents"] + len(documents))
        units = documents
        if unit == "line":
            split = [_lines(document) for document in documents]
            units = [line for lines in split for line in lines]
            numbers = np.repeat(numbers, list(map(len, split)))
            digests = [
                _NEVER_BYTES if _is_blank(line) else _digest(line.removesuffix(b"\n")) for line in units
            ]
        else:
            digests = list(map(_digest, documents))
        ids, lengths = vocabulary.encode_batch(units)
        records = np.empty(len(units), UNIT_RECORD)
        records["hash"] = np.frombuffer(b"".join(digests), "<u8")
        records["tokens"] = lengths
        records["bytes"] = list(map(len, units))
        records["document"] = numbers
        counts["documents"] += len(documents)
        counts["units"] += len(units)
        counts["tokens"] += int(lengths.sum())
        counts["bytes"] += int(records["bytes"].sum())
        yield records, ids.astype(dtype, copy=False)


def _batches(texts: Iterable[str], counts: dict[str, int]) -> Iterator[list[bytes]]:
    """Non-empty documents in UTF-8, about a megabyte at a time."""
    documents: list[bytes] = []
    size = 0
    for text in texts:
        if not text:
            counts["empty_documents"] += 1
            continue
        documents.append(text.encode("utf-8"))
        size += len(documents[-1])
        if size >= BATCH_BYTES:
            yield documents
            documents, size = [], 0
    if documents:
        yield documents


def _lines(text: bytes) -> list[bytes]:
    """Lines with their line ends, so that they join to ``text`` exactly; only \\n ends a line."""
    parts = text.split(b"\n")
    return [part + b"\n" for part in parts[:-1]] + ([parts[-1]] if parts[-1] else [])


def _is_blank(line: bytes) -> bool:
    """Whether a line is empty or only Unicode white space."""
    first = line.lstrip()[:1]
    return not first or not (b" " < first < b"\x7f" or line.decode("utf-8").strip())


def _digest(text: bytes) -> bytes:
    """The 64-bit BLAKE2b hash of a unit's text, which decides whether it is held out under any vocabulary."""
    return hashlib.blake2b(text, digest_size=8).digest()
