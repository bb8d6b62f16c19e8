"""Files that are hashed while they are written, for the many small files of packing."""

import errno
import os
import tempfile
import zlib
from pathlib import Path
from typing import IO, Any

from mscale.data.store import checksum, file_hash
from mscale.files import writing


class Crc32:
    """CRC-32 with hashlib's interface, for temporary files: five times as fast as BLAKE2b."""

    name = "crc32"

    def __init__(self) -> None:
        self._value = 0

    def update(self, data: Any) -> None:
        self._value = zlib.crc32(data, self._value)

    def hexdigest(self) -> str:
        return f"{self._value:08x}"


class HashedFile:
    """A binary file that is written under a temporary name, hashed while written, and renamed when the block ends.

    It is not synced: with hundreds of small languages an fsync for each takes longer than packing. A file damaged by
    a power cut is found by its checksum and made again; ``pack`` syncs once, before store.json.

    Attributes:
      size_and_hash: after the block, ``{"size": bytes, name of the hash: hex digest}``.
    """

    def __init__(self, path: Path, digest: Any = None):
        self.path = path
        self._hash = digest or file_hash()
        self.size_and_hash: dict[str, Any] = {}

    def __enter__(self) -> "HashedFile":
        with writing(self.path):
            try:
                handle, self._name = self._temporary()
            except FileNotFoundError:  # the folder does not exist yet
                self.path.parent.mkdir(parents=True, exist_ok=True)
                handle, self._name = self._temporary()
        self._file: IO[bytes] = os.fdopen(handle, "wb")
        self._size = 0
        return self

    def _temporary(self) -> tuple[int, str]:
        return tempfile.mkstemp(prefix=f".{self.path.name}.", suffix=".tmp", dir=self.path.parent)

    def write(self, data: Any) -> int:
        view = memoryview(data).cast("B")
        with writing(self.path):
            self._file.write(view)
        self._hash.update(view)
        self._size += len(view)
        return len(view)

    def __exit__(self, kind: Any, error: Any, trace: Any) -> None:
        try:
            with writing(self.path), self._file:
                self._file.flush()
                if kind is None:
                    os.replace(self._name, self.path)
        finally:
            if os.path.exists(self._name):
                os.unlink(self._name)
        self.size_and_hash = {"size": self._size, self._hash.name: self._hash.hexdigest()}


def write_hashed_folder(
    contents: dict[str, list[Any]], temporary: Path, destination: Path
) -> dict[str, dict[str, Any]]:
    """Writes small files and renames their folder to ``destination``, or file by file where that exists.

    They are not synced, as with ``HashedFile``.

    Args:
      contents: name to the parts of the file.
      temporary: folder to write to, on the same file system as ``destination``.

    Returns:
      Name to size and hash.
    """
    described = {}
    with writing(destination):
        os.makedirs(temporary, exist_ok=True)
        for name, parts in contents.items():
            data = b"".join(parts)
            with open(f"{temporary}/{name}", "wb", buffering=0) as file:
                if file.write(data) != len(data):  # a full disk
                    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            described[name] = {"size": len(data), "blake2b": file_hash(data).hexdigest()}
        if destination.exists():
            for name in contents:
                os.replace(temporary / name, destination / name)
            temporary.rmdir()
        else:
            os.replace(temporary, destination)
    return described


def files_match(folder: Path, files: dict[str, dict[str, Any]]) -> bool:
    """Whether all ``files`` (name to size and hash) are in ``folder`` with that size and hash."""
    try:
        return all(
            (folder / name).stat().st_size == described["size"]
            and (
                checksum(folder / name) == described["blake2b"]
                if "blake2b" in described
                else _crc32(folder / name) == described["crc32"]
            )
            for name, described in files.items()
        )
    except FileNotFoundError:
        return False


def _crc32(path: Path) -> str:
    digest = Crc32()
    with open(path, "rb") as file:
        while data := file.read(1 << 20):
            digest.update(data)
    return digest.hexdigest()
