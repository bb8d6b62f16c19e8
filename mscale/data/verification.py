"""Checks the files of a local store against the checksums in store.json, once for each place where they lie.

A file that was found good is remembered by its size, times and inode in ``.verified.json`` in the store or, where that
cannot be written, in the user's cache folder; a file that is changed, replaced or copied elsewhere is read again.

A remote store is not read as a whole, and store.json has no checksums of parts. Object stores keep and check those of
their own; ``Store`` compares the ids that it reads with the vocabulary, and small files with their checksums.
"""

import contextlib
import os
import threading
import time
from collections.abc import Collection, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path

import msgspec
import numpy as np

from mscale.data.store import (
    LANGUAGE_FILES,
    Store,
    damaged_store,
    file_entries,
    file_hash,
    missized_files,
    unknown_id,
)
from mscale.errors import MscaleError
from mscale.files import atomic_write
from mscale.progress import progress

RECORD = ".verified.json"
READ_BYTES = 4 << 20
FILES_AT_ONCE = 8
_PROGRESS_BYTES = 1 << 30  # less takes about a second: no bar
_SAVE_SECONDS = (
    5.0  # a process that is killed loses at most so much of what it has checked, and the files it was at
)

_Identity = tuple[int, int, int, int, str, int]  # size, mtime, ctime, inode, checksum, V
_Known = dict[str, _Identity]


def verify_store(store: Store, trained: Collection[str], evaluated: Collection[str]) -> None:
    """Checks what a run reads: the train part of some languages, and what the evaluation of others needs.

    What is read of a remote store is checked when it is read.

    Raises:
      MscaleError: files are missing or damaged; all of these are named.
    """
    train, *of_evaluation = LANGUAGE_FILES
    names = [f"{one}/{train}" for one in trained]
    names += [f"{one}/{name}" for one in evaluated for name in of_evaluation]
    if store.remote is None and (damaged := damaged_files(store, names)):
        raise damaged_store(store, damaged)


def damaged_files(store: Store, names: Iterable[str] | None = None) -> dict[str, str]:
    """Returns the files that are not as store.json describes them, by name, each with what is wrong.

    Of a remote store only names and sizes are compared.

    Args:
      store: the store.
      names: of files, by their path below the folder; None for all.
    """
    entries = file_entries(store)
    names = list(entries if names is None else dict.fromkeys(names))
    damaged = missized_files(store, names)
    if store.remote is not None:
        return damaged
    known = _remembered(store)
    found = {name: _identity(store, name, entries[name]["blake2b"]) for name in names if name not in damaged}
    unread = sorted(
        (name for name in found if known.get(name) != found[name]), key=lambda name: -found[name][0]
    )
    good: _Known = {}
    saved = time.monotonic()
    try:
        for name, text in _checked(store, unread, sum(found[name][0] for name in unread)):
            if text:
                damaged[name] = text
                continue
            good[name] = found[name]
            if time.monotonic() - saved > _SAVE_SECONDS:
                _remember(store, good)
                saved = time.monotonic()
    finally:
        if good:
            _remember(store, good)
    return dict(sorted(damaged.items()))


def content_damage(store: Store, name: str, parts: Iterable[bytes]) -> str:
    """Returns what is wrong with a file whose content is ``parts``, one after the other; "" if nothing is.

    Token ids are compared with the size of the vocabulary as they go by.
    """
    digest = file_hash()
    largest, rest = 0, b""
    width = store.dtype.itemsize if name.endswith(".bin") else 0
    for part in parts:
        digest.update(part)
        if width:
            rest += part
            whole = len(rest) // width * width
            ids = np.frombuffer(rest[:whole], store.dtype)
            largest, rest = max(largest, int(ids.max(initial=0))), rest[whole:]
    language, _, file = name.partition("/")
    if digest.hexdigest() != store.entries[language]["files"][file]["blake2b"]:
        return f"{store.path / name} has another checksum"
    return unknown_id(store, name, largest)


def _checked(store: Store, names: Iterable[str], size: int) -> Iterator[tuple[str, str]]:
    """Yields each file with ``content_damage``, read concurrently, as they are ready; ``size`` is that of all."""
    stopped, advancing = threading.Event(), threading.Lock()

    def parts(name: str) -> Iterator[bytes]:
        with open(store.path / name, "rb") as file:
            while not stopped.is_set() and (part := file.read(READ_BYTES)):
                with advancing:
                    advance(len(part) / 1e6)
                yield part

    def check(name: str) -> str:
        try:
            return content_damage(store, name, parts(name))
        except OSError as error:
            return f"{store.path / name} cannot be read ({error.strerror})"

    bar = progress("verify", size / 1e6, "MB") if size > _PROGRESS_BYTES else contextlib.nullcontext(_no_bar)
    with bar as advance, ThreadPoolExecutor(FILES_AT_ONCE) as pool:
        jobs = {pool.submit(check, name): name for name in names}
        try:
            for job in as_completed(jobs):
                yield jobs[job], job.result()
        finally:
            stopped.set()
            pool.shutdown(cancel_futures=True)


def _no_bar(_megabytes: float) -> None:
    """In the place of a progress bar."""


def _identity(store: Store, name: str, digest: str) -> _Identity:
    stat = os.stat(store.path / name)
    times = stat.st_mtime_ns, stat.st_ctime_ns
    return stat.st_size, *times, stat.st_ino, digest, store.vocabulary["size"]


def _record_paths(store: Store) -> list[Path]:
    """Where to remember what was checked: in the store or, if that cannot be written, in the user's cache folder."""
    folder = Path(store.path).resolve()
    paths = [folder / RECORD]
    with contextlib.suppress(RuntimeError):  # a user without a home folder
        cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
        paths.append(cache / "mscale" / f"verified-{file_hash(os.fsencode(folder)).hexdigest()}.json")
    return paths


def _remembered(store: Store) -> _Known:
    known: _Known = {}
    for path in _record_paths(store):
        with contextlib.suppress(OSError, msgspec.DecodeError):
            known |= msgspec.json.decode(path.read_bytes(), type=_Known)
    return known


def _remember(store: Store, good: _Known) -> None:
    """Adds files to those remembered; where no place can be written they are read again the next time."""
    content = msgspec.json.encode(_remembered(store) | good)
    for path in _record_paths(store):
        with contextlib.suppress(MscaleError):
            atomic_write(path, content)
            return
