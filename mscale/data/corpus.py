"""Reads corpora in MADLAD-400's layout: ``data/<lang>/<lang>_clean_NNNN.jsonl.gz``, a ``{"text": …}`` per line.

Files may be compressed or plain (``.jsonl``). Documents are streamed in bounded memory. The first error in a file stops
reading with file name, line and remedy: no document is skipped.
"""

import contextlib
import gzip
import io
import json
import os
import re
import zlib
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import IO

import msgspec
from isal import igzip, igzip_lib

from mscale.errors import MscaleError, nearest

LAYOUT = "data/<lang>/<lang>_clean_NNNN.jsonl.gz"
MAX_LINE_BYTES = 1 << 28  # without a limit, a file without line ends would be read into memory as one line

_GZIP_MAGIC = b"\x1f\x8b"
_BUFFER_BYTES = 1 << 18
_SHARD = re.compile(r"(.+)_clean_(\d+)\.jsonl(?:\.gz)?")
_TEXT_SUFFIX = re.compile(r"\.(jsonl?|ndjson|txt|csv|tsv|parquet|arrow)(\.|$)", re.IGNORECASE)


class _Document(msgspec.Struct):
    text: str


_DECODER = msgspec.json.Decoder(
    _Document
)  # skips the other fields, for which the json module would build objects


def list_languages(corpus: str | os.PathLike) -> list[str]:
    """Returns the sorted codes of the languages that have at least one file.

    Raises:
      MscaleError: the folder is missing, unreadable, not in the layout, or has no language.
    """
    data = _data_folder(corpus)
    found = sorted(folder.name for folder in _children(data) if folder.is_dir() and _shards(folder))
    if not found:
        raise MscaleError(
            f"{data}: found no language; expected files named {LAYOUT}; "
            "check that the download or generation of the corpus finished"
        )
    return found


def select_languages(
    corpus: str | os.PathLike, available: Sequence[str], requested: Sequence[str] | None
) -> list[str]:
    """Returns ``requested`` in its order after checking that it is in ``available``, or all of it for None.

    Raises:
      MscaleError: no language is requested, or one is missing or given twice; all of these are named.
    """
    if requested is None:
        return list(available)
    requested = list(requested)
    if not requested:
        raise MscaleError(f"{corpus}: no language was asked for; name at least one of {_some(available)}")
    if repeated := sorted({code for code in requested if requested.count(code) > 1}):
        raise MscaleError(f"{corpus}: asked for twice: {', '.join(repeated)}; name each language once")
    if missing := [code for code in requested if code not in set(available)]:
        hints = ", ".join(f"{code!r}{nearest(code, available).replace(';', ' –')}" for code in missing)
        raise MscaleError(
            f"{corpus}: {len(missing)} of the {len(requested)} languages asked for are not in this corpus: {hints}; "
            f"it has {len(available)}: {_some(available)}"
        )
    return requested


def language_files(corpus: str | os.PathLike, language: str) -> list[Path]:
    """Returns the files of one language in the order of their numbers.

    Raises:
      MscaleError: the corpus or the language is missing, or a file exists both compressed and plain.
    """
    folder = _data_folder(corpus) / language
    names = _shards(folder) if folder.is_dir() else []
    if not names:
        select_languages(corpus, list_languages(corpus), [language])
    return [folder / name for name in in_order(names, folder)]


def shard_name(language: str, number: int) -> str:
    """Returns the path of a file of a corpus below its folder, as in ``LAYOUT``."""
    return f"data/{language}/{language}_clean_{number:04d}.jsonl.gz"


def is_shard(name: str, language: str) -> bool:
    """Whether a file in the folder of ``language`` belongs to the corpus, unlike ``<lang>_noisy_NNNN`` and temporary
    files."""
    match = _SHARD.fullmatch(name)
    return match is not None and match[1] == language


def looks_like_text(name: str) -> bool:
    """Whether a file that ``is_shard`` denies may hold text by its name; hidden and ``_noisy_`` files are left out on
    purpose."""
    return bool(_TEXT_SUFFIX.search(name)) and not name.startswith(".") and "_noisy_" not in name


def in_order(names: Iterable[str], folder: object) -> list[str]:
    """Sorts the names of a language's files by their number.

    Raises:
      MscaleError: a file exists both compressed and plain; ``folder`` is its folder, for the error.
    """
    numbered: dict[int, str] = {}
    for name in names:
        number = int(_SHARD.fullmatch(name)[2])  # type: ignore[index]
        if number in numbered:
            raise MscaleError(
                f"{folder}: found both {numbered[number]} and {name}, which would count documents twice; "
                "remove one of them"
            )
        numbered[number] = name
    return [numbered[number] for number in sorted(numbered)]


def documents(path: str | os.PathLike) -> Iterator[str]:
    """Yields the ``text`` of each line of one ``.jsonl.gz`` or ``.jsonl`` file.

    Raises:
      MscaleError: naming file and line, for a file that is missing, unreadable, empty, truncated, damaged or not
        what its name says, and for a line that is not UTF-8, not JSON, or has no string ``text``.
    """
    path = Path(path)
    number = 0
    try:
        with _open(path) as file:
            while line := file.readline(MAX_LINE_BYTES):
                number += 1
                yield _text(line, path, number)
    except EOFError:
        number = _lines_before_damage(path)
        raise MscaleError(
            f"{path}:{number + 1}: the gzip stream ends early, after {number} whole lines: the file is truncated; "
            "copy or download it again"
        ) from None
    except (gzip.BadGzipFile, igzip_lib.IsalError) as error:  # type: ignore[misc]
        number = _lines_before_damage(path)
        raise MscaleError(
            f"{path}:{number + 1}: the gzip stream is damaged after {number} whole lines ({error}); "
            "copy or download it again"
        ) from None
    except OSError as error:
        raise _unreadable(path, error) from error
    if not number:
        raise MscaleError(
            f'{path}: found no line; expected at least one document, {{"text": …}}; '
            "remove the file or make it again"
        )


def _open(path: Path) -> IO[bytes]:
    """Opens a file as its name says, after checking that its first bytes fit the name."""
    raw = io.BufferedReader(io.FileIO(path), _BUFFER_BYTES)
    try:
        head = raw.peek(2)[:16]
        named_gzip = path.suffix == ".gz"
        if not head:
            raise MscaleError(
                f"{path}: the file is empty (0 bytes); expected JSON lines; remove it or download it again"
            )
        if named_gzip and not head.startswith(_GZIP_MAGIC):
            plain = head.lstrip().startswith(b"{")
            remedy = f"rename it to {path.stem}" if plain else "compress it with gzip or download it again"
            raise MscaleError(
                f"{path}: not a gzip file: it starts with {head!r}; expected {_GZIP_MAGIC!r}; {remedy}"
            )
        if not named_gzip and head.startswith(_GZIP_MAGIC):
            raise MscaleError(
                f"{path}: gzip data under a name without .gz; expected plain JSON lines; rename it to {path.name}.gz"
            )
    except BaseException:
        raw.close()
        raise
    return _GzipLines(raw) if named_gzip else raw


class _GzipLines(io.BufferedReader):
    """Reads lines from a gzip file in C code; closing it also closes the underlying file."""

    def __init__(self, raw: IO[bytes]):
        self._file = raw
        super().__init__(igzip.IGzipFile(fileobj=raw, mode="rb"), _BUFFER_BYTES)  # type: ignore[arg-type]

    def close(self) -> None:
        super().close()
        self._file.close()


def _lines_before_damage(path: Path) -> int:
    """Counts lines with the standard library, whose reads return what they decoded before damage; igzip's do not."""
    lines = 0
    with contextlib.suppress(EOFError, OSError, zlib.error), gzip.open(path) as file:
        while part := file.read1(_BUFFER_BYTES):
            lines += part.count(b"\n")
    return lines


def _text(line: bytes, path: Path, number: int) -> str:
    try:
        return _DECODER.decode(line).text
    except (msgspec.MsgspecError, UnicodeDecodeError) as error:
        found = str(error)  # such as: Expected `str`, got `int` - at `$.text`
    if len(line) == MAX_LINE_BYTES and not line.endswith(b"\n"):
        raise MscaleError(
            f"{path}:{number}: the line is longer than {MAX_LINE_BYTES:,} bytes; "
            "expected one document a line; split the documents or check the format"
        )
    remedy = "mend or remove the line"
    try:  # the json module takes NaN in other fields
        text = json.loads(line.decode("utf-8"))["text"]
        if isinstance(text, str):
            text.encode("utf-8")
            return text
    except UnicodeDecodeError as error:
        found = f"not UTF-8: byte {error.start} of the line is {line[error.start]:#04x}"
        remedy = "convert the file, for instance with iconv"
    except UnicodeEncodeError as error:
        found = f"half a surrogate pair (character {error.start}), which is no Unicode text"
    except (KeyError, TypeError):
        pass  # said by the first decoder
    except (ValueError, RecursionError) as error:
        found = "a blank line" if not line.strip() else f"no JSON ({error})"
    if not line.endswith(b"\n"):
        found += "; the line has no line end, so it may be cut short"
    raise MscaleError(
        f'{path}:{number}: found {found}: {_excerpt(line)}; expected one {{"text": …}} a line; {remedy}'
    )


def _data_folder(corpus: str | os.PathLike) -> Path:
    corpus = Path(corpus)
    layout = f"expected a folder with files named {LAYOUT}"
    if not corpus.exists():
        where = corpus.parent
        near = nearest(corpus.name, [entry.name for entry in _children(where)]) if where.is_dir() else ""
        raise MscaleError(f"{corpus}: no such corpus folder{near}; {layout}; check the path")
    if not corpus.is_dir():
        raise MscaleError(f"{corpus}: found a file; {layout}; give the folder that holds data/")
    data = corpus / "data"
    if data.is_dir():
        return data
    entries = _children(corpus)
    if any(entry.is_dir() and _shards(entry) for entry in entries):
        if corpus.resolve().name == "data":
            raise MscaleError(
                f"{corpus}: this is the data folder itself; {layout}; give its parent, {corpus.resolve().parent}"
            )
        raise MscaleError(
            f"{corpus}: found the languages' folders directly in it; {layout}; move them into {data}"
        )
    if _shards(corpus):
        raise MscaleError(
            f"{corpus}: this is the folder of one language; {layout}; give the folder two levels up, "
            f"{corpus.resolve().parent.parent}"
        )
    found = f"found only {_some([entry.name for entry in entries])}" if entries else "the folder is empty"
    raise MscaleError(f"{corpus}: no data folder in it: {found}; {layout}; check the path")


def _shards(folder: Path) -> list[str]:
    """Names of the files of the language whose folder this is; a link's language is that of its target."""
    own_name = folder.name not in ("", "..") and not folder.is_symlink()
    language = folder.name if own_name else folder.resolve().name
    try:
        return [name for name in os.listdir(folder) if is_shard(name, language)]
    except OSError as error:
        raise _unreadable(folder, error) from error


def _children(folder: Path) -> list[Path]:
    try:
        return sorted(folder.iterdir())
    except OSError as error:
        raise _unreadable(folder, error) from error


def _unreadable(path: Path, error: OSError) -> MscaleError:
    remedies: dict[type, str] = {
        FileNotFoundError: "check the path",
        IsADirectoryError: "give a file, not a folder",
        PermissionError: "change its permissions or run as a user who may read it",
    }
    remedy = remedies.get(type(error), "check the disk and the path")
    return MscaleError(f"cannot read {path}: {error.strerror or error}; {remedy}")


def _excerpt(line: bytes, length: int = 60) -> str:
    text = line.decode("utf-8", errors="replace").rstrip("\r\n")
    return repr(text if len(text) <= length else text[:length] + "…")


def _some(names: Sequence[str], limit: int = 12) -> str:
    return ", ".join(names[:limit]) + (f", … ({len(names) - limit} more)" if len(names) > limit else "")
