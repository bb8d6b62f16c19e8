"""Brings a token store to where it is trained on, and mends a damaged copy."""

import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

from mscale.data.store import MANIFEST, Store, file_entries, open_store, read_store
from mscale.data.verification import content_damage, damaged_files
from mscale.errors import MscaleError
from mscale.files import atomic_write, locked
from mscale.progress import progress
from mscale.remote import Url, connect, list_files, location, with_retries

_LOCK = ".copying.lock"  # in a local folder that a store is being copied to
_COPYING = ".copying"  # in a folder that a store is being copied to: the hash of that store's data
_COPY_BYTES, _FILES_AT_ONCE = 4 << 20, 16


def copy_store(source: str | Path, destination: str | Path) -> Store:
    """Copies a store between folders and URLs; store.json is written last, so a copy is whole or absent.

    Files are checked against store.json while they are copied. A copy that was interrupted continues. One that is there
    already gets the languages that the source has gained, and files of it that are damaged are copied again.

    Raises:
      MscaleError: ``source`` is no store or damaged, ``destination`` is the same, holds another store or is being
        copied to by another process, or a file cannot be written.
    """
    target = location(destination)
    if isinstance(target, Url):
        return _copy(open_store(source), target)
    store, lock = open_store(source), target / _LOCK
    with locked(lock, f"{target}: another copy is at work here; wait for it or choose another folder"):
        try:
            return _copy(store, target)
        finally:
            lock.unlink(missing_ok=True)


def _copy(store: Store, target: Path | Url) -> Store:
    reader, reader_root = connect(str(store.path))
    writer, writer_root = connect(str(target))
    if type(reader) is type(writer) and os.path.realpath(reader_root) == os.path.realpath(writer_root):
        raise MscaleError(f"{target}: this is the store to be copied; choose another folder")
    manifest = reader.cat_file(f"{reader_root}/{MANIFEST}")
    listed = list_files(reader, reader_root, str(store.path))
    there = list_files(writer, writer_root, str(target))
    entries = file_entries(store)
    wanted = [*entries, *(name for name in listed if name.startswith("vocabulary."))]
    whole: set[str] = set()  # files of the destination that are not copied again
    if MANIFEST in there:
        earlier = read_store(target)
        files = file_entries(earlier)
        if any(entries.get(name) != described for name, described in files.items()):
            raise MscaleError(f"{target}: holds another store; choose another folder, or delete that one")
        damaged = damaged_files(earlier)
        if not damaged and len(files) == len(entries):
            return earlier
        whole = {name for name in wanted if name in files or name not in entries} - set(damaged)
        for name in damaged.keys() & there.keys():
            writer.rm_file(f"{writer_root}/{name}")
            del there[name]
    # Names the store that is being copied: files of this size that another one left are not taken for its own.
    marker = f"{writer_root}/{_COPYING}"
    content = store.data_hash().encode()
    if _COPYING in there and writer.cat_file(marker) == content:
        whole |= there.keys()

    def copied_parts(name: str) -> Iterator[bytes]:
        with (
            reader.open(f"{reader_root}/{name}", "rb") as data,
            writer.open(f"{writer_root}/{name}", "wb") as file,
        ):
            while part := data.read(_COPY_BYTES):
                file.write(part)
                yield part

    def copy(name: str) -> None:
        if isinstance(target, Path):
            (target / name).parent.mkdir(parents=True, exist_ok=True)
        if name not in entries:
            for _ in copied_parts(name):
                pass
        elif damage := content_damage(store, name, copied_parts(name)):
            writer.rm_file(f"{writer_root}/{name}")  # or a second call would take it for copied
            raise MscaleError(f"{damage}; this is the store to be copied: pack the corpus again")

    with_retries(lambda: writer.pipe_file(marker, content), f"write {target / _COPYING}")
    missing = [
        name for name in wanted if name not in whole or name not in there or there[name][0] != listed[name][0]
    ]
    megabytes = sum(listed[name][0] for name in missing) / 1e6
    pool = ThreadPoolExecutor(_FILES_AT_ONCE)
    with progress("copy", megabytes, "MB") as advance:
        try:
            jobs = [
                pool.submit(with_retries, partial(copy, name), f"copy {target / name}") for name in missing
            ]
            for name, job in zip(missing, jobs, strict=True):
                job.result()
                advance(listed[name][0] / 1e6)
        finally:
            pool.shutdown(cancel_futures=True)
    if isinstance(target, Path):
        atomic_write(target / MANIFEST, manifest)
    else:
        with_retries(
            lambda: writer.pipe_file(f"{writer_root}/{MANIFEST}", manifest), f"copy {target / MANIFEST}"
        )
    writer.rm_file(marker)
    return open_store(target)
