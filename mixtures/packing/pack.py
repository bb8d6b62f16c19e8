"""Packs a corpus into a token store: many processes, resumable, the same bytes whatever the number of
workers.

Every input file becomes a shard, then the shards of a language its store files; both steps leave a small
JSON behind that says what they were made from, so a call after a kill, at any moment, redoes only what is
not there. A language of one small file, as most are, skips the shard: its store files are made in memory and
a line in the journal of the process says so. store.json is written last.
"""

import json
import os
import shutil
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from mixtures.packing.inputs import InputFile, find_inputs
from mixtures.packing.shards import MAX_VALID_FRACTION, MIN_DOCUMENTS, SMALL_INPUT
from mixtures.packing.workers import (
    PackingJob,
    assemble_language,
    find_assembled_language,
    pack_small_languages,
    packed_before,
    packing_processes,
    read_journals,
    tokenize_file,
    usable_cores,
)
from mscale.data.store import FORMAT, MANIFEST, UNFINISHED, VERSION, Store, open_store, token_dtype
from mscale.data.vocabulary import Vocabulary, check_same, describe
from mscale.errors import MscaleError
from mscale.files import atomic_write, locked, read_json
from mscale.progress import progress
from mscale.remote import Url, location

_SMALL = 8 << 20  # bytes of input that are packed before a second process has started
_BUNDLE = 1 << 19  # bytes of small languages that a process is given at once


def pack(
    corpus: str | Path,
    store_dir: str | Path,
    vocabulary: Vocabulary,
    languages: Sequence[str] | None = None,
    valid_tokens: int = 20_000_000,
    processes: int | None = None,
    split_from: str | Path | None = None,
    sequence_length: int | None = None,
    drop_short: bool = False,
) -> Store:
    """Tokenizes ``corpus`` into the token store ``store_dir`` and opens it.

    Of each language min(``valid_tokens``, 20%) tokens are held out, by content hash of documents, or of
    lines where it has fewer than 100 documents: exact copies are never on both sides. The cutoff is chosen
    when a language is first packed and reused when files are added, so that no text ever changes sides.
    Languages already in the store stay; those whose files have not changed cost nothing.

    Args:
      corpus: folder or URL in MADLAD-400's layout.
      store_dir: the store, made or extended, on a local disk.
      vocabulary: what encodes the text.
      languages: codes, or None for all of the corpus.
      valid_tokens: most tokens held out per language.
      processes: worker processes; None for one per core (one in all for a few megabytes). A script that
        packs with more than one needs the usual ``if __name__ == "__main__":``.
      split_from: another store whose cutoffs are used for the languages it has, so that two vocabularies
        hold out the same text.
      sequence_length: S that will be trained with: every language must have a window of it. None asks for
        one token.
      drop_short: leave languages with less than that out instead of raising.

    Raises:
      MscaleError: bad input (as ``mscale.data.corpus.documents`` says), languages with less train text than one
        window (all of them named), a store of another vocabulary or split, another packing at work in the
        folder, a disk that is full.
    """
    started = time.monotonic()
    place = location(store_dir)
    if isinstance(place, Url):
        raise MscaleError(
            f"{store_dir}: a store is packed on a local disk; pack it into a folder and then copy that there"
        )
    store_dir = place
    if valid_tokens < 0:
        raise MscaleError(f"valid_tokens is {valid_tokens}, expected 0 or more")
    if sequence_length is not None and sequence_length < 1:
        raise MscaleError(f"sequence_length is {sequence_length}, expected 1 or more")
    inputs = find_inputs(corpus, languages)
    wanted = list(inputs)
    header = {
        "format": FORMAT,
        "version": VERSION,
        "vocabulary": describe(vocabulary),
        "dtype": token_dtype(vocabulary.size).name,
        "split": {"valid_tokens": valid_tokens, "fraction": MAX_VALID_FRACTION, "lines_below": MIN_DOCUMENTS},
    }
    scratch = store_dir / UNFINISHED
    busy = f"{store_dir}: another packing is at work here; wait for it or choose another folder"
    with locked(scratch / "lock", busy):
        previous = _previous(store_dir, header, vocabulary)
        entries = dict(previous)
        todo = [
            language
            for language in wanted
            if previous.get(language, {}).get("inputs")
            != {one.path.name: [one.size, one.stamp] for one in inputs[language]}
        ]
        text_bytes = 0
        if todo or not (store_dir / MANIFEST).exists():
            if (store_dir / MANIFEST).exists():
                os.replace(store_dir / MANIFEST, scratch / "previous.json")
            vocabulary.save(store_dir)
            known = dict(open_store(split_from).entries) if split_from else {}
            known.update(previous)
            packed, text_bytes = _pack(inputs, todo, known, vocabulary, store_dir, valid_tokens, processes)
            entries.update(packed)
        short = {
            language: entries[language]["train"]["tokens"]
            for language in wanted
            if entries[language]["train"]["tokens"] < (sequence_length or 1)
        }
        if short:
            _refuse(store_dir, short, sequence_length or 1, drop_short and len(short) < len(entries))
            entries = {language: entry for language, entry in entries.items() if language not in short}
            print(f"left out, shorter than one window: {', '.join(sorted(short))}", file=sys.stderr)
        if todo or short or not (store_dir / MANIFEST).exists():
            languages_sorted = {language: entries[language] for language in sorted(entries)}
            atomic_write(store_dir / MANIFEST, _manifest(header, languages_sorted))
            for language in short:
                shutil.rmtree(store_dir / language, ignore_errors=True)
            seconds = time.monotonic() - started
            print(
                f"packed {len(todo)} languages, {text_bytes / 1e6:,.1f} MB of text in {seconds:.1f} s "
                f"({text_bytes / 1e6 / seconds:,.1f} MB/s)",
                file=sys.stderr,
            )
        store = open_store(store_dir)
        for leftover in store_dir.glob(".*.tmp"):  # of a call that was killed
            leftover.unlink()
        shutil.rmtree(scratch, ignore_errors=True)
    return store


def _pack(
    inputs: dict[str, list[InputFile]],
    todo: list[str],
    known: dict[str, Any],
    vocabulary: Vocabulary,
    store_dir: Path,
    valid_tokens: int,
    processes: int | None,
) -> tuple[dict[str, Any], int]:
    """Returns the new entries of store.json and the bytes of text that they hold."""
    scratch = store_dir / UNFINISHED
    size = sum(one.size for language in todo for one in inputs[language])
    if processes is None:
        processes = 1 if size < _SMALL else usable_cores()
    cutoffs = {key: int(known[key]["cutoff"], 16) if key in known else None for key in todo}
    journal = read_journals(scratch)
    entries: dict[str, Any] = {}
    units: dict[str, str] = {}
    jobs = {
        key: (
            inputs[key],
            known[key]["unit"] if key in known else None,
            scratch / key,
            store_dir / key,
            valid_tokens,
            cutoffs[key],
        )
        for key in todo
    }
    text_bytes = 0
    with packing_processes(processes, vocabulary) as run:
        small = [key for key in todo if len(inputs[key]) == 1 and inputs[key][0].size <= SMALL_INPUT]
        for key in small:
            if entry := packed_before(journal.get(key), jobs[key], vocabulary):
                entries[key] = entry
        for language, unit, entry in run(
            find_assembled_language, [jobs[key] for key in sorted(set(todo) - set(small))]
        ):
            units[language] = unit
            if entry:
                entries[language] = entry
        todo = [key for key in todo if key not in entries]
        size = sum(one.size for key in todo for one in inputs[key])
        with progress("tokenize", size / 1e6, "MB") as advance:
            began = time.monotonic()

            def report(done: int, text: int) -> None:
                nonlocal text_bytes
                text_bytes += text
                rate = text_bytes / 1e6 / max(time.monotonic() - began, 1e-9)
                advance(done / 1e6, note=f"{rate:,.1f} MB/s of text")

            def tokenize_large(keys: list[str]) -> None:
                files = sorted((one for key in keys for one in inputs[key]), key=lambda one: -one.size)
                shards = run(
                    tokenize_file, [(one, units[one.language], scratch / one.language) for one in files]
                )
                for one, shard in shards:
                    report(one.size, shard["bytes"])

            tokenize_large([key for key in todo if key in units])
            bundles = _bundles([jobs[key] for key in small if key not in entries])
            surprises = []
            for bundle in run(pack_small_languages, bundles):
                for language, entry in bundle:
                    if entry is None:
                        surprises.append(language)
                    else:
                        entries[language] = entry
                        text_bytes_of = entry["train"]["bytes"] + entry["valid"]["bytes"]
                        report(inputs[language][0].size, text_bytes_of)
            units |= {
                language: unit
                for language, unit, _ in run(find_assembled_language, [jobs[key] for key in surprises])
            }
            tokenize_large(surprises)
        todo = [key for key in todo if key not in entries]
        todo.sort(key=lambda key: -sum(one.size for one in inputs[key]))
        with progress("assemble", len(todo), "languages") as advance:
            for language, entry in run(
                assemble_language, [(jobs[key][0], units[key], *jobs[key][2:]) for key in todo]
            ):
                entries[language] = entry
                advance()
    os.sync()  # once for all: thousands of fsyncs take longer than packing
    return entries, text_bytes


def _manifest(header: dict[str, Any], languages: dict[str, Any]) -> str:
    """A line a language: readable, and a tenth of the time of indenting all."""
    lines = [f'"{key}": {json.dumps(value)}' for key, value in header.items()]
    entries = [f"{json.dumps(key)}: {json.dumps(entry, allow_nan=False)}" for key, entry in languages.items()]
    lines.append('"languages": {\n' + ",\n".join(entries) + "\n}")
    return "{\n" + ",\n".join(lines) + "\n}\n"


def _bundles(jobs: list[PackingJob]) -> list[list[PackingJob]]:
    """Small languages together, the largest first, as telling a process of one takes as long as packing it."""
    bundles: list[list[PackingJob]] = []
    room = 0
    for job in sorted(jobs, key=lambda job: -job[0][0].size):
        size = job[0][0].size
        if size > room or not bundles:
            bundles.append([])
            room = _BUNDLE
        bundles[-1].append(job)
        room -= size
    return bundles


def _refuse(store_dir: Path, short: dict[str, int], least: int, drop: bool) -> None:
    """Raises unless the languages in ``short`` may be dropped; names all of them."""
    if drop:
        return
    listed = ", ".join(f"{language} ({tokens:,})" for language, tokens in sorted(short.items()))
    window = "window" if least > 1 else "token"
    raise MscaleError(
        f"{store_dir}: {len(short)} language(s) have less train text than one {window} of {least:,} tokens: {listed}. "
        "Run again with --drop-short to leave them out (what is packed is kept), with a smaller --sequence-length, or "
        "with --languages"
    )


def _previous(store_dir: Path, header: dict[str, Any], vocabulary: Vocabulary) -> dict[str, Any]:
    """Entries of the store that is there, or was when a packing that did not end began."""
    manifest = store_dir / MANIFEST
    if manifest.exists():
        open_store(store_dir)
    else:
        manifest = store_dir / UNFINISHED / "previous.json"
        if not manifest.exists():
            return {}
    described = read_json(manifest, what="token store")
    check_same(described["vocabulary"], vocabulary, f"the store {store_dir}", "the vocabulary given")
    if described["split"] != header["split"]:
        raise MscaleError(
            f"{manifest}: this store was split with {described['split']}, now asked for "
            f"{header['split']}; held-out text "
            "never changes in a store: use the same valid_tokens, or pack into another folder"
        )
    return described["languages"]
