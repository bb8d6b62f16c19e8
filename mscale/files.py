"""Atomic writes (a temporary file is synced and renamed), lock files, and reading JSON."""

import contextlib
import errno
import json
import os
import secrets
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any, TypeVar

import filelock
import msgspec

from mscale.errors import MscaleError

_T = TypeVar("_T")
_REMEDIES = {
    errno.ENOSPC: "the disk is full: free some space or choose another folder, then run again",
    errno.EDQUOT: "your disk quota is used up: free some space or choose another folder, then run again",
    errno.EACCES: "you may not write there: choose another folder or change its permissions",
    errno.EPERM: "you may not write there: choose another folder or change its permissions",
    errno.EROFS: "the file system is read-only: choose another folder",
    errno.ENOTDIR: "a part of that path is a file, not a folder: choose another path",
    errno.EISDIR: "that path is a folder, not a file: choose another path",
}


@contextlib.contextmanager
def writing(path: str | os.PathLike) -> Iterator[None]:
    """Converts an ``OSError`` raised while writing ``path`` into a ``MscaleError`` with a remedy."""
    try:
        yield
    except OSError as error:
        remedy = _REMEDIES.get(error.errno or 0, "check the disk and the path, then run again")
        raise MscaleError(f"cannot write {path}: {error.strerror or error}; {remedy}") from error


@contextlib.contextmanager
def atomic_writer(path: str | os.PathLike) -> Iterator[IO[bytes]]:
    """Yields a binary file that is renamed to ``path`` when the block ends, and removed if it raises.

    Raises:
      MscaleError: the folder cannot be written or the disk is full.
    """
    path = Path(path)
    with writing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        # Not tempfile.mkstemp, whose files only their owner may read: so the kernel applies the umask.
        temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}.tmp")
        try:
            with open(temporary, "xb") as file:
                yield file
                file.flush()
                os.fsync(file.fileno())
            os.replace(temporary, path)
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise


def atomic_write(path: str | os.PathLike, data: bytes | str) -> None:
    """Writes ``data`` (text as UTF-8) atomically: ``path`` has the old content or the new, never a part."""
    with atomic_writer(path) as file:
        file.write(data.encode("utf-8") if isinstance(data, str) else data)


def atomic_json(path: str | os.PathLike, value: Any) -> None:
    """Writes ``value`` (also a dataclass) as indented JSON, atomically; raises ValueError for NaN, not a JSON value."""
    text = json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False, default=msgspec.to_builtins)
    atomic_write(path, text + "\n")


@contextlib.contextmanager
def locked(path: str | os.PathLike, busy: str, seconds: float = 0.0) -> Iterator[None]:
    """Holds an exclusive lock on the file ``path`` while the block runs; a killed process releases it too.

    Raises:
      MscaleError: another process still holds the lock after ``seconds``; ``busy`` is the message.
    """
    lock = filelock.FileLock(path, timeout=seconds)
    with writing(path):
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        try:
            held = lock.acquire()
        except filelock.Timeout:
            raise MscaleError(busy) from None
    with held:
        yield


def read_json(
    path: str | os.PathLike, *, what: str = "JSON file", remedy: str = "delete it and make it again"
) -> Any:
    """Reads a JSON file.

    Raises:
      MscaleError: it is missing or damaged; the message calls it ``what``, and in the second case ends with ``remedy``.
    """
    try:
        return json.loads(Path(path).read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise MscaleError(f"{path}: no such {what}") from None
    except OSError as error:
        raise MscaleError(f"{path}: this {what} cannot be read ({error.strerror or error})") from error
    except (UnicodeDecodeError, json.JSONDecodeError, RecursionError) as error:
        raise MscaleError(f"{path}: this {what} is damaged ({error}); {remedy}") from error


def read_json_as(
    path: str | os.PathLike, kind: type[_T], *, what: str, remedy: str = "delete it and make it again"
) -> _T:
    """Reads a JSON file as a dataclass, such as ``atomic_json`` writes.

    Raises:
      MscaleError: as ``read_json``; or a field is missing, of another type, or refused by the class. The message
        names the field by its path, such as ``$.runs[3].steps``.
    """
    value = read_json(path, what=what, remedy=remedy)
    try:
        return msgspec.convert(value, kind)
    except (msgspec.ValidationError, MscaleError) as error:
        raise MscaleError(
            f"{path}: this {what} does not fit this version of mscale: {error}; {remedy}"
        ) from None
