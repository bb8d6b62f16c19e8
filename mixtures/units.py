"""The units of text that are held out or not, a document each, or a line of one where a language has few
documents: their hashes, sizes and token ids."""

import hashlib
from collections.abc import Iterable, Iterator

import numpy as np

from mscale.store import token_dtype
from mscale.vocabulary import Vocabulary

UNIT = np.dtype([("hash", "<u8"), ("tokens", "<u4"), ("bytes", "<u4"), ("document", "<u4")])
COUNTS = ("documents", "empty_documents", "units", "tokens", "bytes")
NEVER = (1 << 64) - 1  # hash of units that are never held out (blank lines); no cutoff is above it

_NEVER_BYTES = NEVER.to_bytes(8, "little")
_BATCH_BYTES = 1 << 20  # text encoded at once


def encoded(
    texts: Iterable[str], unit: str, vocabulary: Vocabulary, counts: dict[str, int]
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Yields about a megabyte of units at a time, their UNIT records and their ids, and counts them."""
    dtype = token_dtype(vocabulary.size)
    for units, records in _unit_batches(texts, unit, counts):
        ids, lengths = vocabulary.encode_batch(units, eos=True)
        records["tokens"] = lengths
        counts["units"] += len(records)
        counts["tokens"] += int(lengths.sum())
        counts["bytes"] += int(records["bytes"].sum())
        yield records, ids.astype(dtype, copy=False)


def _unit_batches(
    texts_of_documents: Iterable[str], unit: str, counts: dict[str, int]
) -> Iterator[tuple[list[bytes], np.ndarray]]:
    """Yields about a megabyte of units at a time: their UTF-8, and UNIT records without token counts."""
    texts: list[bytes] = []
    digests: list[bytes] = []
    numbers: list[int] = []
    size = 0

    def batch() -> tuple[list[bytes], np.ndarray]:
        records = np.zeros(len(texts), UNIT)
        records["hash"] = np.frombuffer(b"".join(digests), "<u8")
        records["bytes"] = list(map(len, texts))
        records["document"] = numbers
        return texts, records

    for text in texts_of_documents:
        if not text:
            counts["empty_documents"] += 1
            continue
        utf8 = text.encode("utf-8")
        if unit == "line":
            parts = _lines(utf8)
            digests += [_NEVER_BYTES if _blank(part) else _digest(part.removesuffix(b"\n")) for part in parts]
            texts += parts
            numbers += [counts["documents"]] * len(parts)
        else:
            digests.append(_digest(utf8))
            texts.append(utf8)
            numbers.append(counts["documents"])
        counts["documents"] += 1
        size += len(utf8)
        if size >= _BATCH_BYTES:
            yield batch()
            texts, digests, numbers, size = [], [], [], 0
    if texts:
        yield batch()


def _lines(text: bytes) -> list[bytes]:
    """Lines with their line ends, so that they join to ``text`` exactly (str.splitlines knows more
    ends)."""
    parts = text.split(b"\n")
    return [part + b"\n" for part in parts[:-1]] + ([parts[-1]] if parts[-1] else [])


def _blank(line: bytes) -> bool:
    """Whether it holds nothing but white space, as Unicode has it."""
    first = line.lstrip()[:1]
    return not first or not (b" " < first < b"\x7f" or line.decode("utf-8").strip())


def _digest(text: bytes) -> bytes:
    """Returns the 64-bit BLAKE2b hash by which a unit is held out, whatever vocabulary encodes it."""
    return hashlib.blake2b(text, digest_size=8).digest()
