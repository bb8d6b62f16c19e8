"""The input files of a corpus, local or remote; remote files are fetched one at a time."""

import os
import re
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from hashlib import blake2b
from pathlib import Path

from mscale.data import corpus as corpora
from mscale.errors import MscaleError, nearest
from mscale.remote import Url, connect, list_files, location, with_retries

_NAME = re.compile(r"data/([^/]+)/\1_clean_(\d+)\.jsonl(?:\.gz)?")


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

    Args:
      corpus: folder or URL, in MADLAD-400's layout.
      languages: codes, in the order of the result; None for all, sorted.

    Raises:
      MscaleError: as ``mscale.data.corpus.select`` and ``files``.
    """
    place = location(corpus)
    if isinstance(place, Url):
        return _find_remote(place, languages)
    found: dict[str, list[InputFile]] = {}
    for language in corpora.select_languages(place, languages):
        found[language] = []
        for path in corpora.language_files(place, language):
            status = path.stat()
            found[language].append(InputFile(language, path, status.st_size, status.st_mtime_ns))
    return found


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


def _find_remote(place: Url, languages: Sequence[str] | None) -> dict[str, list[InputFile]]:
    system, root = connect(place)
    listed = list_files(system, f"{root.rstrip('/')}/data", place)
    numbered: dict[str, list[tuple[int, InputFile]]] = {}
    for name, (size, version) in listed.items():
        if match := _NAME.fullmatch(f"data/{name}"):
            stamp = int.from_bytes(blake2b(version.encode(), digest_size=7).digest(), "little")
            file = InputFile(match[1], place / f"data/{name}", size, stamp)
            numbered.setdefault(match[1], []).append((int(match[2]), file))
    if not numbered:
        raise MscaleError(
            f"{place}: found no corpus there; expected files named {corpora.LAYOUT}; check the URL and your credentials"
        )
    wanted = sorted(numbered) if languages is None else list(languages)
    if missing := [code for code in wanted if code not in numbered]:
        hints = ", ".join(f"{code!r}{nearest(code, numbered).replace(';', ' –')}" for code in missing)
        raise MscaleError(f"{place}: these languages are not in this corpus of {len(numbered)}: {hints}")
    for code in wanted:
        numbers = [number for number, _ in numbered[code]]
        if len(numbers) != len(set(numbers)):
            raise MscaleError(f"{place}: {code} has a file both compressed and plain; remove one of them")
    return {code: [file for _, file in sorted(numbered[code], key=lambda pair: pair[0])] for code in wanted}
