"""Packs a corpus into a token store: in parallel, resumable, the same bytes for any number of processes.

Every input file becomes a shard; the shards of a language are then assembled to its store files. Both steps write a
small JSON file with what they were made from, so a call after a kill at any moment repeats only what is missing.
store.json is written last.
"""

import json
import os
import shutil
import sys
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

from mixtures.packing.hashed_files import files_match
from mixtures.packing.inputs import InputFile, find_inputs
from mixtures.packing.shards import (
    MAX_VALID_FRACTION,
    MIN_DOCUMENTS,
    PackingJob,
    assemble,
    find_assembled,
    tokenize,
)
from mixtures.packing.workers import packing_processes, usable_cores
from mscale.data.mixture import unnameable
from mscale.data.store import (
    MANIFEST,
    PACKING_FOLDER,
    STORE_FORMAT,
    STORE_VERSION,
    Store,
    open_store,
    read_store,
    token_dtype,
)
from mscale.data.verification import damaged_files
from mscale.data.vocabulary import Vocabulary, check_same, describe
from mscale.errors import MscaleError
from mscale.files import atomic_write, locked, read_json
from mscale.progress import progress
from mscale.remote import Url, location

_EARLIER = "previous.json"  # store.json before the first language was packed again, in PACKING_FOLDER
_SINGLE_PROCESS_BYTES = 8 << 20  # of input: less is packed before a second process has started


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

    Of each language at most min(``valid_tokens``, 20%) tokens are held out, by content hash of documents, or of
    lines where it has fewer than 100 documents: exact copies are never both in train and held out. The hash cutoff
    is chosen when a language is first packed and reused when files are added, so that text never moves between the
    two. Languages already in the store stay; those whose files have not changed are not packed again, unless they are
    damaged in the store. The store can be used while others are packed; a language that is packed again is taken out
    of store.json just before its files are replaced.

    Args:
      corpus: folder or URL in MADLAD-400's layout.
      store_dir: the store, made or extended, on a local disk.
      vocabulary: what encodes the text.
      languages: codes, or None for all of the corpus.
      valid_tokens: most tokens held out per language.
      processes: worker processes; None for one per core (a single one for a few megabytes). A script that
        packs with more than one needs ``if __name__ == "__main__":``.
      split_from: another store whose cutoffs are used for the languages it has, so that two vocabularies
        hold out the same text.
      sequence_length: S of the training runs: every language must have a train window of S tokens. None requires
        one token.
      drop_short: leave out languages with less text instead of raising.

    Raises:
      MscaleError: bad input (as ``mscale.data.corpus.documents`` says), codes that no mixture can name, languages with
        less train text than one window (all of them named), a store of another vocabulary or split or with damage in
        other languages, another process that packs into the folder, a full disk.
    """
    started = time.monotonic()
    place = location(store_dir)
    if isinstance(place, Url):
        raise MscaleError(
            f"{store_dir}: a store is packed on a local disk; pack it into a folder, then `mscale store copy` it there"
        )
    store_dir = place
    if valid_tokens < 0:
        raise MscaleError(f"valid_tokens is {valid_tokens}, expected 0 or more")
    if sequence_length is not None and sequence_length < 1:
        raise MscaleError(f"sequence_length is {sequence_length}, expected 1 or more")
    inputs = find_inputs(corpus, languages)
    wanted = list(inputs)
    if bad := unnameable(wanted):
        raise MscaleError(
            f"{corpus}: {len(bad)} language(s) have codes that no mixture can name: {', '.join(map(repr, bad))}; "
            "rename their folders and files: no + = : or blanks, and no keyword of mixtures, such as uniform"
        )
    header = {
        "format": STORE_FORMAT,
        "version": STORE_VERSION,
        "vocabulary": describe(vocabulary),
        "dtype": token_dtype(vocabulary.size).name,
        "split": {"valid_tokens": valid_tokens, "fraction": MAX_VALID_FRACTION, "lines_below": MIN_DOCUMENTS},
    }
    scratch = store_dir / PACKING_FOLDER
    locked_message = f"{store_dir}: another packing is at work here; wait for it or choose another folder"
    with locked(scratch / "lock", locked_message):
        try:
            earlier = _earlier_entries(store_dir, header, vocabulary)
            previous = _intact_entries(store_dir, earlier, wanted)
        except MscaleError:  # refused before anything was packed: the store is left as it was
            if os.listdir(scratch) == ["lock"]:
                shutil.rmtree(scratch)
            raise
        entries = dict(previous)
        todo = [
            language
            for language in wanted
            if previous.get(language, {}).get("inputs")
            != {one.path.name: [one.size, one.stamp] for one in inputs[language]}
        ]
        text_bytes = 0
        if todo or not (store_dir / MANIFEST).exists():
            vocabulary.save(store_dir)
            split = {**(open_store(split_from).entries if split_from else {}), **earlier}

            def withdraw() -> None:
                """Takes the languages that are packed again out of store.json before their files are replaced."""
                if changed := earlier.keys() & todo:
                    atomic_write(scratch / _EARLIER, _manifest(header, earlier))
                    kept = {one: entry for one, entry in previous.items() if one not in changed}
                    if kept:
                        atomic_write(store_dir / MANIFEST, _manifest(header, kept))
                    else:
                        (store_dir / MANIFEST).unlink(missing_ok=True)

            packed, text_bytes = _pack_languages(
                inputs, todo, split, vocabulary, store_dir, valid_tokens, processes, withdraw
            )
            entries.update(packed)
        short = {
            language: entries[language]["train"]["tokens"]
            for language in wanted
            if entries[language]["train"]["tokens"] < (sequence_length or 1)
        }
        if short:
            _check_short(store_dir, short, sequence_length or 1, drop_short and len(short) < len(entries))
            entries = {language: entry for language, entry in entries.items() if language not in short}
            print(f"left out, shorter than one window: {', '.join(sorted(short))}", file=sys.stderr)
        without = [language for language in sorted(entries) if not entries[language]["valid"]["tokens"]]
        if without and valid_tokens:
            print(
                f"no held-out text, too little to hold some out: {', '.join(without)}; runs need EVAL_LANGUAGES "
                "without them",
                file=sys.stderr,
            )
        if todo or short or not (store_dir / MANIFEST).exists():
            atomic_write(store_dir / MANIFEST, _manifest(header, entries))
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


def _pack_languages(
    inputs: dict[str, list[InputFile]],
    todo: list[str],
    earlier_entries: dict[str, Any],
    vocabulary: Vocabulary,
    store_dir: Path,
    valid_tokens: int,
    processes: int | None,
    withdraw: Callable[[], None],
) -> tuple[dict[str, Any], int]:
    """Returns the new entries of store.json and the bytes of text that they hold."""
    scratch = store_dir / PACKING_FOLDER
    size = sum(one.size for language in todo for one in inputs[language])
    if processes is None:
        processes = 1 if size < _SINGLE_PROCESS_BYTES else usable_cores()
    jobs = []
    for language in todo:
        earlier = earlier_entries.get(language)
        jobs.append(
            PackingJob(
                language,
                inputs[language],
                earlier and earlier["unit"],
                scratch / language,
                store_dir / language,
                valid_tokens,
                earlier and int(earlier["cutoff"], 16),
            )
        )
    entries: dict[str, Any] = {}
    text_bytes = 0
    with packing_processes(processes, vocabulary) as run:
        left = []
        for job, entry in run(find_assembled, [(job,) for job in jobs]):
            if entry:
                entries[job.language] = entry
            else:
                left.append(job)
        # Large files and languages first, so that no process is left with one at the end.
        left.sort(key=lambda job: -sum(one.size for one in job.files))
        files = sorted(((one, job) for job in left for one in job.files), key=lambda pair: -pair[0].size)
        with progress("tokenize", sum(one.size for one, _ in files) / 1e6, "MB") as advance:
            began = time.monotonic()
            for shard in run(tokenize, [(one, job.unit, job.scratch) for one, job in files]):
                text_bytes += shard["bytes"]
                rate = text_bytes / 1e6 / max(time.monotonic() - began, 1e-9)
                advance(shard["input"][1] / 1e6, note=f"{rate:,.1f} MB/s of text")
        withdraw()
        with progress("assemble", len(left), "languages") as advance:
            for language, entry in run(assemble, [(job,) for job in left]):
                entries[language] = entry
                advance()
    os.sync()  # once at the end: an fsync for each file takes longer than packing
    return entries, text_bytes


def _manifest(header: dict[str, Any], languages: Mapping[str, Any]) -> str:
    """store.json with one line a language: readable, and written in a tenth of the time of an indented file."""
    lines = [f'"{key}": {json.dumps(value)}' for key, value in header.items()]
    entries = [
        f"{json.dumps(key)}: {json.dumps(entry, allow_nan=False)}" for key, entry in sorted(languages.items())
    ]
    lines.append('"languages": {\n' + ",\n".join(entries) + "\n}")
    return "{\n" + ",\n".join(lines) + "\n}\n"


def _check_short(store_dir: Path, short: dict[str, int], least: int, drop: bool) -> None:
    """Raises an error that names the languages in ``short``, unless they may be dropped."""
    if drop:
        return
    listed = ", ".join(f"{language} ({tokens:,})" for language, tokens in sorted(short.items()))
    window = "window" if least > 1 else "token"
    raise MscaleError(
        f"{store_dir}: {len(short)} language(s) have less train text than one {window} of {least:,} tokens: {listed}. "
        "Run again with --drop-short to leave them out (what is packed is kept), with a smaller --sequence-length, or "
        "with --languages"
    )


def _earlier_entries(store_dir: Path, header: dict[str, Any], vocabulary: Vocabulary) -> dict[str, Any]:
    """Entries of the existing store, and of languages that an interrupted call took out of it to pack them again.

    Raises:
      MscaleError: store.json is damaged, or the store has another vocabulary or split.
    """
    earlier: dict[str, Any] = {}
    for manifest in (store_dir / PACKING_FOLDER / _EARLIER, store_dir / MANIFEST):
        if not manifest.exists():
            continue
        if manifest.name == MANIFEST:
            read_store(store_dir)
        described = read_json(manifest, what="token store")
        check_same(described["vocabulary"], vocabulary, f"the store {store_dir}", "the vocabulary given")
        if described["split"] != header["split"]:
            raise MscaleError(
                f"{manifest}: this store was split with {described['split']}, now asked for "
                f"{header['split']}; held-out text "
                "never changes in a store: use the same valid_tokens, or pack into another folder"
            )
        earlier |= described["languages"]
    return earlier


def _intact_entries(store_dir: Path, earlier: Mapping[str, Any], wanted: Collection[str]) -> dict[str, Any]:
    """Those of ``earlier`` whose files are as they were written; the others are named, and are to be packed again.

    Raises:
      MscaleError: one of these others is not wanted.
    """
    damaged: dict[str, list[str]] = {}
    listed = read_store(store_dir) if (store_dir / MANIFEST).exists() else None
    for name, text in (damaged_files(listed) if listed else {}).items():
        damaged.setdefault(name.partition("/")[0], []).append(text)
    for language in earlier.keys() - set(listed.languages if listed else ()):
        if not files_match(store_dir / language, earlier[language]["files"]):
            damaged[language] = [f"{store_dir / language} was being packed again"]
    if missing := sorted(damaged.keys() - set(wanted)):
        shown = "; ".join(text for language in missing for text in damaged[language])
        raise MscaleError(
            f"{store_dir}: damaged in languages that are not to be packed now: {shown}; pack these again too: "
            f"--languages {','.join(sorted({*wanted, *missing}))}"
        )
    for language in sorted(damaged):
        print(f"{language} is packed again: {'; '.join(damaged[language])}", file=sys.stderr)
    return {language: entry for language, entry in earlier.items() if language not in damaged}
