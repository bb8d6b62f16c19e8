"""Files that are hashed while they are written."""

import os
import tempfile
from pathlib import Path
from typing import IO, Any

from mscale.data.store import checksum, file_hash
from mscale.files import writing


class HashedFile:
    """A binary file that is written under a temporary name, hashed while written, and renamed when the block ends.

    It is not synced: with hundreds of small languages an fsync for each takes longer than packing. A file damaged by
    a power cut is found by its checksum and made again; ``pack`` syncs once, before store.json.

    Attributes:
      size_and_hash: after the block, ``{"size": bytes, "blake2b": hex digest}``.
    """

    def __init__(self, path: Path):
        self.path = path
        self._hash = file_hash()
        self.size_and_hash: dict[str, Any] = {}

    def __enter__(self) -> "HashedFile":
        with writing(self.path):
            self.path.parent.mkdir(parents=True, exist_ok=True)
            handle, self._name = tempfile.mkstemp(
                prefix=f".{self.path.name}.", suffix=".tmp", dir=self.path.parent
            )
        self._file: IO[bytes] = os.fdopen(handle, "wb")
        self._size = 0
        return self

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
        self.size_and_hash = {"size": self._size, "blake2b": self._hash.hexdigest()}


def files_match(folder: Path, files: dict[str, dict[str, Any]]) -> bool:
    """Whether all ``files`` (name to size and hash) are in ``folder`` with that size and hash."""
    try:
        return all(
            (folder / name).stat().st_size == described["size"]
            and checksum(folder / name) == described["blake2b"]
            for name, described in files.items()
        )
    except FileNotFoundError:
        return False
