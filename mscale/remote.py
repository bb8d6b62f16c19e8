"""Remote files (gs://, s3://, memory:// and everything else that fsspec supports), read by byte ranges.

A host reads only the blocks that it needs, concurrently and through a cache of bounded size. Failed reads are retried,
since requests to object stores are slow and sometimes fail.
"""

import os
import re
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, TypeVar

from mscale.errors import MscaleError

READ_ATTEMPTS = 6
FIRST_RETRY_SECONDS = 0.2  # seconds before the second attempt, doubled from then on
CACHE_BYTES = 256 << 20
BLOCK_BYTES = 1 << 16  # windows are a few kilobytes and far apart: larger blocks read more unused bytes
CONNECTIONS = 64

# Keys of fsspec's ``info`` that change with a file's content, for various file systems.
_VERSION_KEYS = ("etag", "ETag", "md5Hash", "mtime", "updated", "LastModified", "last_modified", "created")
_URL = re.compile(r"([a-z][a-z0-9+.-]+):/+(.*)", re.DOTALL | re.IGNORECASE)
_T = TypeVar("_T")


class Url(str):
    """A location on a remote file system; ``/`` joins as for ``Path``."""

    def __truediv__(self, name: str) -> "Url":
        return Url(f"{self.rstrip('/')}/{name}")

    @property
    def name(self) -> str:
        return self.rstrip("/").rpartition("/")[2]


def location(path: str | os.PathLike) -> Path | Url:
    """Returns a ``Url`` if ``path`` has a scheme (also if ``Path`` shortened it to ``gs:/``), else a ``Path``.

    ``~`` is the home folder, and ``file://`` a local path.
    """
    match = _URL.fullmatch(str(path))
    if not match:
        return Path(path).expanduser()
    scheme, rest = match[1].lower(), match[2]
    return Path("/" + rest) if scheme in ("file", "local") else Url(f"{scheme}://{rest}".rstrip("/"))


def local_folder(path: str | os.PathLike, setting: str) -> Path:
    """Returns ``path`` as an absolute local path, which a later change of the working directory does not affect.

    Args:
      path: relative or absolute, or a ``file://`` URL.
      setting: name of the setting, for the error: "WORKDIR", "--root".

    Raises:
      MscaleError: ``path`` is a URL of a remote file system, where run folders cannot be written.
    """
    place = location(path)
    if isinstance(place, Url):
        raise MscaleError(
            f"{setting} is {place}: run folders lie on a local disk and not behind a URL; give a local folder (a "
            "mounted bucket is one), and copy it afterwards"
        )
    return place.absolute()


class RemoteFiles:
    """The files under one URL, read completely or by ranges."""

    def __init__(
        self,
        root: Url,
        cache_bytes: int = CACHE_BYTES,
        block_bytes: int = BLOCK_BYTES,
        connections: int = CONNECTIONS,
    ):
        self.root, self.block_bytes, self.cache_bytes = root, block_bytes, cache_bytes
        self._system, self._root = connect(root)
        self._blocks: OrderedDict[tuple[str, int], bytes] = OrderedDict()
        self.cached_bytes = 0  # of all cached blocks
        self._lock = threading.Lock()
        self._pool = ThreadPoolExecutor(connections, thread_name_prefix="mscale-remote")

    def sizes(self) -> Mapping[str, int]:
        """Bytes of every file by its path below the root, from one listing."""
        return {name: size for name, (size, _) in list_files(self._system, self._root, self.root).items()}

    def read(self, name: str) -> bytes:
        """Returns the content of a small file. Raises FileNotFoundError if there is none."""
        return with_retries(lambda: self._system.cat_file(self._path(name)), f"read {self.root / name}")

    def range(self, name: str, start: int, stop: int) -> bytes:
        """Returns bytes ``start`` to ``stop`` of a file without using the cache."""

        def once() -> bytes:
            data = self._system.cat_file(self._path(name), start=start, end=stop)
            if len(data) != stop - start:
                raise OSError(f"got {len(data):,} of {stop - start:,} bytes")
            return data

        try:
            return with_retries(once, f"read bytes {start:,} to {stop:,} of {self.root / name}")
        except FileNotFoundError:
            raise MscaleError(
                f"{self.root / name}: no such file (any more); copy the folder there again"
            ) from None

    def read_ranges(self, ranges: Sequence[tuple[str, int, int, int]]) -> list[bytes]:
        """Returns bytes of files through the cache; blocks that it lacks are read concurrently.

        Args:
          ranges: of each, the name of a file, first byte, last byte + 1, and size of the file.
        """
        spans = [
            (name, range(start // self.block_bytes, -(-stop // self.block_bytes)))
            for name, start, stop, _ in ranges
        ]
        sizes = {name: size for name, _, _, size in ranges}
        keys = dict.fromkeys((name, block) for name, blocks in spans for block in blocks)
        with self._lock:
            found = {key: self._blocks[key] for key in keys if key in self._blocks}
            for key in found:
                self._blocks.move_to_end(key)
        missing = [key for key in keys if key not in found]
        found.update(
            zip(
                missing,
                self._pool.map(lambda key: self._read_block(key, sizes[key[0]]), missing),
                strict=True,
            )
        )
        parts = []
        for (name, start, stop, _), (_, blocks) in zip(ranges, spans, strict=True):
            data = b"".join([found[name, block] for block in blocks])
            first = blocks.start * self.block_bytes
            parts.append(data[start - first : stop - first])
        return parts

    def _read_block(self, key: tuple[str, int], size: int) -> bytes:
        name, block = key
        start = block * self.block_bytes
        data = self.range(name, start, min(start + self.block_bytes, size))
        with self._lock:
            if key not in self._blocks:
                self._blocks[key] = data
                self.cached_bytes += len(data)
            while self.cached_bytes > self.cache_bytes and len(self._blocks) > 1:
                self.cached_bytes -= len(self._blocks.popitem(last=False)[1])
        return data

    def _path(self, name: str) -> str:
        return f"{self._root.rstrip('/')}/{name}"


def connect(url: str) -> tuple[Any, str]:
    """Returns the fsspec file system of ``url`` and the path in it.

    Raises:
      MscaleError: the scheme is unknown, its package is missing, or access is denied.
    """
    import fsspec

    try:
        return fsspec.core.url_to_fs(url)
    except (ImportError, ValueError) as error:
        raise MscaleError(
            f"{url}: cannot open this kind of URL ({error}); install the fsspec package for it (gcsfs for gs://, "
            "s3fs for s3://) or copy the folder to a local disk"
        ) from None
    except Exception as error:  # each file system has errors of its own: credentials, network
        raise MscaleError(f"{url}: cannot connect ({error}); check your credentials and the URL") from error


def list_files(system: Any, root: str, place: str) -> dict[str, tuple[int, str]]:
    """Returns size in bytes and version of every file under ``root``, by its path below it; empty without the folder.

    Args:
      system: an fsspec file system.
      root: path of the folder in it.
      place: name of the folder in errors.

    Returns:
      Path to (size, version). The version is a text of the hashes and times that the file system reports.
    """

    def once() -> dict[str, dict[str, Any]]:
        system.invalidate_cache()
        try:
            return system.find(root, detail=True)
        except FileNotFoundError:
            return {}

    prefix = root.rstrip("/") + "/"
    return {
        name.removeprefix(prefix): (int(info["size"]), str([info.get(key) for key in _VERSION_KEYS]))
        for name, info in with_retries(once, f"list {place}").items()
    }


def with_retries(read: Callable[[], _T], what: str) -> _T:
    """Calls ``read`` until it succeeds, at most ``READ_ATTEMPTS`` times, with exponential backoff.

    Args:
      read: what to call.
      what: description for errors, such as "read gs://bucket/file".

    Raises:
      FileNotFoundError: there is no such file; this is not retried.
      MscaleError: raised by ``read``, access is denied, or the last attempt failed too.
    """
    for attempt in range(1, READ_ATTEMPTS + 1):
        try:
            return read()
        except (FileNotFoundError, MscaleError):
            raise
        except PermissionError as error:
            raise MscaleError(f"cannot {what}: no permission ({error}); check your credentials") from error
        except Exception as error:  # each file system raises exceptions of its own for network errors
            if attempt == READ_ATTEMPTS:
                raise MscaleError(
                    f"cannot {what}: {READ_ATTEMPTS} attempts failed, the last with: {error or type(error).__name__}; "
                    "check the network and the file, then run again: it continues"
                ) from error
            time.sleep(FIRST_RETRY_SECONDS * 2 ** (attempt - 1))
    raise AssertionError  # not reached
