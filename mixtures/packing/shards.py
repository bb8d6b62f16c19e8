"""The two steps of packing, each a pure function of files: tokenize one input file, then assemble a language.

A shard is the result of one input file, in the folder of its language under ``.packing``:

    <file>.tokens   ids of all units, one after the other, without EOS
    <file>.units    UNIT records in the same order
    <file>.json     written last, when the shard is whole
"""

import itertools
import json
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from mixtures.packing.hashed_files import HashedFile, files_match
from mixtures.packing.inputs import InputFile, read_documents
from mixtures.packing.units import COUNT_NAMES, NEVER_HELD_OUT, UNIT_RECORD, encode_units
from mscale.data.store import LANGUAGE_FILES, token_dtype
from mscale.data.vocabulary import Vocabulary
from mscale.files import writing

_SHARD_FORMAT = 4  # of shards
MIN_DOCUMENTS = 100  # documents; languages with fewer hold out lines
MAX_VALID_FRACTION = 0.2

CHUNK_TOKENS = 1 << 22  # tokens assembled at once
CHUNK_UNITS = 1 << 20


@dataclass(frozen=True)
class PackingJob:
    """One language to pack.

    Attributes:
      language: its code.
      files: its input files.
      unit: what is held out, "document" or "line"; None where it is not chosen yet.
      scratch: folder of its shards; destination: its folder in the store.
      valid_tokens: most tokens that are held out; also at most 20% of the language.
      cutoff: units whose hash is below it are held out; None to choose it.
    """

    language: str
    files: list[InputFile]
    unit: str | None
    scratch: Path
    destination: Path
    valid_tokens: int
    cutoff: int | None

    def recipe(self, vocabulary: Vocabulary) -> dict[str, Any]:
        """Returns what determines the store files that ``assemble`` makes."""
        return {
            "inputs": {file.path.name: [file.size, file.stamp] for file in self.files},
            "unit": self.unit,
            "valid_tokens": self.valid_tokens,
            "vocabulary": vocabulary.fingerprint,
            "given_cutoff": None if self.cutoff is None else f"{self.cutoff:#018x}",
        }


def find_assembled(job: PackingJob, vocabulary: Vocabulary) -> tuple[PackingJob, dict[str, Any] | None]:
    """Returns the job with its unit, and its entry in store.json if an earlier call assembled it and it is intact."""
    job = replace(job, unit=job.unit or _held_out_unit(job))
    seen = _read_marker(job.scratch / "done.json", job.recipe(vocabulary))
    return job, seen["entry"] if seen and files_match(job.destination, seen["entry"]["files"]) else None


def _held_out_unit(job: PackingJob) -> str:
    """Returns "line" for a language of fewer than 100 documents, else "document"; cached in its folder."""
    recipe = {"inputs": [[file.path.name, file.size, file.stamp] for file in job.files]}
    if seen := _read_marker(job.scratch / "unit.json", recipe):
        return seen["unit"]
    documents = (document for file in job.files for document in read_documents(file))
    count = sum(1 for _ in itertools.islice(documents, MIN_DOCUMENTS))
    unit = "line" if count < MIN_DOCUMENTS else "document"
    _write_marker(job.scratch / "unit.json", {**recipe, "unit": unit})
    return unit


def tokenize(file: InputFile, unit: str, folder: Path, vocabulary: Vocabulary) -> dict[str, Any]:
    """Makes the shard of one input file in ``folder`` unless it is there; returns its counts.

    Memory is bounded by the longest document. Raises MscaleError as ``mscale.data.corpus.documents`` does.
    """
    marker = folder / f"{file.path.name}.json"
    recipe = {
        "input": [file.path.name, file.size, file.stamp],
        "unit": unit,
        "vocabulary": vocabulary.fingerprint,
        "format": _SHARD_FORMAT,
    }
    if (shard := _read_marker(marker, recipe)) and files_match(folder, shard["files"]):
        return shard
    counts = dict.fromkeys(COUNT_NAMES, 0)
    with (
        HashedFile(folder / f"{file.path.name}.tokens") as tokens,
        HashedFile(folder / f"{file.path.name}.units") as units,
    ):
        for records, ids in encode_units(read_documents(file), unit, vocabulary, counts):
            tokens.write(ids)
            units.write(records)
    files = {output.path.name: output.size_and_hash for output in (tokens, units)}
    shard = {**recipe, **counts, "files": files}
    _write_marker(marker, shard)
    return shard


def assemble(job: PackingJob, vocabulary: Vocabulary) -> tuple[str, dict[str, Any]]:
    """Joins the shards of a language, whose unit is known, into its store files.

    Returns:
      The language, and its entry in store.json.
    """
    folder, cutoff = job.scratch, job.cutoff
    shards = [_Shard.open(folder, file, token_dtype(vocabulary.size)) for file in job.files]
    if cutoff is None:
        cutoff = choose_cutoff(shards, job.valid_tokens)
    outputs = {name: HashedFile(folder / name) for name in LANGUAGE_FILES}
    with outputs["train.bin"] as train, outputs["valid.bin"] as valid:
        sides, arrays = _write_split(shards, cutoff, vocabulary, train, valid)
    for name, array in arrays.items():
        with outputs[name] as output:
            np.save(output, array)  # type: ignore[arg-type]  # it has write alone
    entry = {
        "unit": job.unit,
        "cutoff": f"{cutoff:#018x}",
        "documents": sum(shard.counts["documents"] for shard in shards),
        "empty_documents": sum(shard.counts["empty_documents"] for shard in shards),
        "duplicates": count_duplicates(shards),
        "inputs": job.recipe(vocabulary)["inputs"],
        **sides,
        "files": {name: outputs[name].size_and_hash for name in LANGUAGE_FILES},
    }
    with writing(job.destination):
        job.destination.mkdir(parents=True, exist_ok=True)
        for name in LANGUAGE_FILES:
            os.replace(folder / name, job.destination / name)
    _write_marker(folder / "done.json", {**job.recipe(vocabulary), "entry": entry})
    for path in folder.iterdir():
        if path.suffix in (".tokens", ".units"):
            path.unlink()
    return job.language, entry


def _write_split(
    shards: Sequence["_Shard"],
    cutoff: int,
    vocabulary: Vocabulary,
    train_file: HashedFile,
    valid_file: HashedFile,
) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """Writes the train and valid tokens, EOS after every document; returns their counts and the arrays that index
    them, by file.

    In train a document is what remains of it after the held-out units; in valid every unit is a document.
    """
    eos = np.array([vocabulary.eos_id], token_dtype(vocabulary.size))
    train = {"tokens": 0, "bytes": 0, "documents": 0}
    index = []
    unigram = np.zeros(1, np.int64)
    offset = 0
    for units, ids in (chunk for shard in shards for chunk in shard.chunks()):
        is_valid = units["hash"] < cutoff
        lengths = units["tokens"].astype(np.int64)
        ends = np.cumsum(lengths)
        if is_valid.any():
            spans = zip((ends - lengths)[is_valid].tolist(), ends[is_valid].tolist(), strict=True)
            valid_file.write(
                np.concatenate([part for start, stop in spans for part in (ids[start:stop], eos)])
            )
            sizes = lengths[is_valid] + 1
            rows = np.cumsum(sizes) + offset
            index.append(np.stack([rows - sizes, sizes, units["bytes"][is_valid].astype(np.int64)], axis=1))
            offset = int(rows[-1])
        if is_valid.all():
            continue
        # Adjacent units of a document are copied together; EOS follows the last kept unit of each document.
        train_units = np.flatnonzero(~is_valid)
        documents = units["document"][train_units]
        new_document = np.append(True, documents[1:] != documents[:-1])
        first = np.flatnonzero(new_document | np.append(True, np.diff(train_units) > 1))
        last = np.append(first[1:], len(train_units)) - 1
        starts, stops = (ends - lengths)[train_units[first]], ends[train_units[last]]
        closed = np.append(new_document, True)[last + 1]
        parts: list[np.ndarray] = []
        for start, stop, close in zip(starts.tolist(), stops.tolist(), closed.tolist(), strict=True):
            parts.append(ids[start:stop])
            if close:
                parts.append(eos)
        text = np.concatenate(parts)
        train_file.write(text)
        counts = np.bincount(text, minlength=len(unigram))  # as long as the largest id seen needs
        counts[: len(unigram)] += unigram
        unigram = counts
        train["tokens"] += len(text)
        train["bytes"] += int(units["bytes"][train_units].sum(dtype=np.int64))
        train["documents"] += int(new_document.sum())
    rows = np.concatenate(index) if index else np.empty((0, 3), np.int64)
    seen_ids = np.flatnonzero(unigram > 0)
    valid = {"tokens": offset, "bytes": int(rows[:, 2].sum()), "documents": len(rows)}
    arrays = {"valid_index.npy": rows, "unigram.npy": np.stack([seen_ids, unigram[seen_ids]])}
    return {"train": train, "valid": valid}, arrays


def choose_cutoff(shards: Sequence["_Shard"], valid_tokens: int) -> int:
    """Returns the largest cutoff that holds out at most min(``valid_tokens``, 20%) tokens, EOS included.

    Units are held out in the order of their content hash, so equal units are on the same side. Where the first unit
    alone exceeds the limit, it is held out if at least as much text remains. Memory: the units held out.
    """
    total = sum(shard.counts["tokens"] + shard.counts["documents"] for shard in shards)
    limit = min(valid_tokens, int(MAX_VALID_FRACTION * total))
    if limit < 1:
        return 0
    hashes, tokens = np.empty(0, np.uint64), np.empty(0, np.int64)
    cutoff = NEVER_HELD_OUT
    for units in (chunk for shard in shards for chunk in shard.unit_chunks()):
        low = units[units["hash"] < cutoff]
        hashes = np.concatenate([hashes, low["hash"]])
        tokens = np.concatenate([tokens, low["tokens"].astype(np.int64) + 1])
        order = np.argsort(hashes, kind="stable")
        hashes, tokens = hashes[order], tokens[order]
        over = int(np.searchsorted(np.cumsum(tokens), limit, side="right"))
        if over < len(hashes):
            cutoff = int(hashes[over])
            hashes, tokens = hashes[: over + 1], tokens[: over + 1]
    if len(hashes) and cutoff == int(hashes[0]):  # the first unit alone exceeds the limit
        first = sum(
            int((units["tokens"][units["hash"] == cutoff].astype(np.int64) + 1).sum())
            for shard in shards
            for units in shard.unit_chunks()
        )
        if 2 * first <= total:
            cutoff += 1
    return cutoff


def count_duplicates(shards: Sequence["_Shard"]) -> int:
    """Counts units that are exact copies of an earlier one, one range of hashes at a time to bound memory."""
    units = sum(shard.counts["units"] for shard in shards)
    parts = max(-(-units // (4 * CHUNK_UNITS)), 1)
    found = 0
    for part in range(parts):
        low, high = (NEVER_HELD_OUT * part // parts), (NEVER_HELD_OUT * (part + 1) // parts)
        chunks = [
            chunk["hash"][(chunk["hash"] >= low) & (chunk["hash"] < high)]
            for shard in shards
            for chunk in shard.unit_chunks()
        ]
        hashes = np.concatenate(chunks) if chunks else np.empty(0, np.uint64)
        found += len(hashes) - len(np.unique(hashes))
    return found


@dataclass(frozen=True)
class _Shard:
    units: np.ndarray
    tokens: np.ndarray
    counts: dict[str, int]

    @classmethod
    def open(cls, folder: Path, file: InputFile, dtype: np.dtype) -> "_Shard":
        counts = json.loads((folder / f"{file.path.name}.json").read_text(encoding="utf-8"))
        return cls(
            units=_memory_mapped(folder / f"{file.path.name}.units", UNIT_RECORD, counts["units"]),
            tokens=_memory_mapped(folder / f"{file.path.name}.tokens", dtype, counts["tokens"]),
            counts=counts,
        )

    def unit_chunks(self) -> Iterator[np.ndarray]:
        for start in range(0, len(self.units), CHUNK_UNITS):
            yield self.units[start : start + CHUNK_UNITS]

    def chunks(self) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """Yields units and their tokens, in chunks of whole documents."""
        start = offset = 0
        while start < len(self.units):
            units = self.units[start : start + CHUNK_UNITS]
            end = np.searchsorted(np.cumsum(units["tokens"], dtype=np.int64), CHUNK_TOKENS) + 1
            stop = start + min(int(end), len(units))
            document = self.units[stop - 1]["document"]
            stop += int(np.searchsorted(self.units["document"][stop:], document, side="right"))
            units = self.units[start:stop]
            size = int(units["tokens"].sum(dtype=np.int64))
            yield units, self.tokens[offset : offset + size]
            start, offset = stop, offset + size


def _memory_mapped(path: Path, dtype: np.dtype, count: int) -> np.ndarray:
    if not count:
        return np.empty(0, dtype)
    return np.asarray(np.memmap(path, dtype, mode="r", shape=(count,)))


def _write_marker(path: Path, value: dict[str, Any]) -> None:
    with HashedFile(path) as file:
        file.write(json.dumps(value).encode())


def _read_marker(path: Path, recipe: dict[str, Any]) -> dict[str, Any] | None:
    """Returns the marker if it exists, is valid JSON, and was made by ``recipe``; else None."""
    try:
        marker = json.loads(path.read_text(encoding="utf-8"))
    except (FileNotFoundError, ValueError):
        return None
    return marker if all(marker.get(key) == value for key, value in recipe.items()) else None
