"""Files hashed on the way to the disk, for the many small ones that packing makes."""

import errno
import hashlib
import os
import tempfile
import zlib
from pathlib import Path
from typing import IO, Any

from mscale.data.store import checksum
from mscale.files import writing


class Crc32:
    """A checksum for files that live as long as packing: five times as fast as BLAKE2b."""

    name = "crc32"

    def __init__(self) -> None:
        self._value = 0

    def update(self, data: Any) -> None:
        self._value = zlib.crc32(data, self._value)

    def hexdigest(self) -> str:
        return f"{self._value:08x}"


class HashedFile:
    """A binary file written under a temporary name, hashed on the way, and renamed when the block ends.

    It is not synced: with hundreds of small languages that takes longer than all else. What a power cut
    damages is found by its checksum and made again; ``pack`` syncs once, before store.json.
    """

    def __init__(self, path: Path, digest: Any = None):
        self.path = path
        self._hash = digest or hashlib.blake2b(digest_size=16)
        self.described: dict[str, Any] = {}

    def __enter__(self) -> "HashedFile":
        with writing(self.path):
            try:
                handle, self._name = self._temporary()
            except FileNotFoundError:  # the first file of its folder
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
        self.described = {"size": self._size, self._hash.name: self._hash.hexdigest()}


def write_hashed_folder(
    contents: dict[str, list[Any]], temporary: Path, destination: Path
) -> dict[str, dict[str, Any]]:
    """Writes small files, the parts of each joined, and renames their folder to ``destination`` (file by file
    where that is there); returns their sizes and hashes. They are not synced, as with ``Output``."""
    described = {}
    with writing(destination):
        os.makedirs(temporary, exist_ok=True)
        for name, parts in contents.items():
            data = b"".join(parts)
            with open(f"{temporary}/{name}", "wb", buffering=0) as file:
                if file.write(data) != len(data):  # what a full disk does to the first write
                    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            digest = hashlib.blake2b(data, digest_size=16).hexdigest()
            described[name] = {"size": len(data), "blake2b": digest}
        if destination.exists():
            for name in contents:
                os.replace(temporary / name, destination / name)
            temporary.rmdir()
        else:
            os.replace(temporary, destination)
    return described


def files_match(folder: Path, files: dict[str, dict[str, Any]]) -> bool:
    """Whether all ``files`` are in ``folder`` as their ``described`` says."""
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
