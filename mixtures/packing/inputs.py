"""The input files of a corpus, local or remote; remote files are fetched one at a time."""

import os
import sys
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from hashlib import blake2b
from pathlib import Path

from mscale.data import corpus as corpora
from mscale.errors import MscaleError
from mscale.remote import Url, connect, list_files, location, with_retries


@dataclass(frozen=True)
class InputFile:
    """One corpus file of a language; size and stamp show whether it has changed since it was packed."""

    language: str
    path: Path | Url
    size: int
    stamp: int  # modification time in ns or, for a remote file, a hash of its version


def find_inputs(
    corpus: str | os.PathLike, languages: Sequence[str] | None = None
) -> dict[str, list[InputFile]]:
    """Returns the files of each language in the order of their numbers.

    A line on stderr names files beside them that look like text and are not in the layout.

    Args:
      corpus: folder or URL, in MADLAD-400's layout.
      languages: codes, in the order of the result; None for all, sorted.

    Raises:
      MscaleError: as ``list_languages``, ``select_languages`` and ``language_files`` of ``mscale.data.corpus``.
    """
    place = location(corpus)
    found = {}
    if isinstance(place, Path):
        for language in corpora.select_languages(place, corpora.list_languages(place), languages):
            files = [(path, path.stat()) for path in corpora.language_files(place, language)]
            found[language] = [InputFile(language, path, it.st_size, it.st_mtime_ns) for path, it in files]
        folders = (
            [place / "data" / language for language in found]
            if languages
            else list((place / "data").glob("*/"))
        )
        beside = [
            path for folder in [place / "data", *folders] for path in folder.iterdir() if path.is_file()
        ]
        _name_unread(place, {str(path) for path in beside}, found)
        return found
    system, root = connect(place)
    listed = list_files(system, f"{root.rstrip('/')}/data", place)
    shards: dict[str, list[str]] = {}
    for path in listed:
        language, _, name = path.partition("/")
        if corpora.is_shard(name, language):
            shards.setdefault(language, []).append(name)
    if not shards:
        raise MscaleError(
            f"{place}: found no corpus there; expected files named {corpora.LAYOUT}; check the URL and your credentials"
        )
    for language in corpora.select_languages(place, sorted(shards), languages):
        found[language] = []
        for name in corpora.in_order(shards[language], place / "data" / language):
            size, version = listed[f"{language}/{name}"]
            stamp = int.from_bytes(blake2b(version.encode(), digest_size=7).digest(), "little")
            found[language].append(InputFile(language, place / "data" / language / name, size, stamp))
    wanted = [path for path in listed if not languages or path.partition("/")[0] in found]
    _name_unread(place, {place / "data" / path for path in wanted}, found)
    return found


def _name_unread(place: Path | Url, beside: set[str], found: dict[str, list[InputFile]]) -> None:
    """Names the files of a corpus that look like text and are not read."""
    read = {str(one.path) for files in found.values() for one in files}
    unread = sorted(path for path in beside - read if corpora.looks_like_text(path.rpartition("/")[2]))
    if unread:
        shown = ", ".join(unread[:12]) + (f", … ({len(unread) - 12} more)" if len(unread) > 12 else "")
        print(
            f"{place}: {len(unread)} file(s) look like text and are not read, since only files named "
            f"{corpora.LAYOUT} are: {shown}",
            file=sys.stderr,
        )


def read_documents(file: InputFile) -> Iterator[str]:
    """Yields the documents of a file as ``mscale.data.corpus.documents``; a remote file is copied to disk first."""
    if isinstance(file.path, Path):
        yield from corpora.documents(file.path)
        return
    system, remote = connect(file.path)
    with tempfile.TemporaryDirectory(prefix="mscale-") as folder:
        local = Path(folder) / file.path.name

        def fetch() -> None:
            system.get_file(remote, str(local))
            if local.stat().st_size != file.size:
                raise OSError(f"got {local.stat().st_size:,} of {file.size:,} bytes")

        try:
            with_retries(fetch, f"read {file.path}")
        except FileNotFoundError:
            raise MscaleError(f"{file.path}: no such file (any more); check the corpus") from None
        try:
            yield from corpora.documents(local)
        except MscaleError as error:
            raise MscaleError(str(error).replace(str(local), file.path)) from None
