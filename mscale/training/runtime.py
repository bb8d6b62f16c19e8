"""The compile cache on disk: the hundredth run of a shape starts in seconds.

jax writes an entry in place, never replaces one, and when one is damaged compiles anew for ever; so damaged
entries are removed when a process first uses the folder, and jax then writes them again.
"""

import contextlib
import ctypes
import os
import time
import zlib
from pathlib import Path

import jax

_M_TRIM_THRESHOLD, _M_TOP_PAD, _M_MMAP_MAX, _M_ARENA_MAX = -1, -2, -4, -8


def retain_freed_memory() -> bool:
    """Makes malloc reuse large blocks for the rest of the process; returns whether it could (glibc only).

    One arena, since those of other threads hold at most 64 MB. The process then stays at its peak memory.
    """
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError):
        return False
    settings = {_M_ARENA_MAX: 1, _M_MMAP_MAX: 0, _M_TRIM_THRESHOLD: 2**31 - 1, _M_TOP_PAD: 2**26}
    return all(mallopt(parameter, value) == 1 for parameter, value in settings.items())


_configured_folders: set[str] = set()
_MIN_ENTRY_AGE_SECONDS = 10.0


def use_compile_cache(folder: str | os.PathLike | None) -> None:
    """Makes jax keep compiled programs in ``folder``; None leaves jax's own settings as they are."""
    if not folder or str(folder) in _configured_folders:
        return
    path = Path(folder).absolute()
    path.mkdir(parents=True, exist_ok=True)
    remove_damaged_entries(path)
    jax.config.update("jax_compilation_cache_dir", str(path))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
    jax.config.update("jax_persistent_cache_min_entry_size_bytes", -1)
    _configured_folders.add(str(folder))


def remove_damaged_entries(folder: Path) -> list[str]:
    """Removes entries whose compressed stream is broken, not those being written now; returns their names."""
    removed = []
    for entry in folder.glob("*-cache"):
        with contextlib.suppress(FileNotFoundError):
            if time.time() - entry.stat().st_mtime < _MIN_ENTRY_AGE_SECONDS:
                continue
            if not _is_intact(entry.read_bytes()):
                entry.unlink()
                removed.append(entry.name)
    return removed


def _is_intact(data: bytes) -> bool:
    if data[:4] == b"\x28\xb5\x2f\xfd":  # zstandard, where that is installed: jax checks it itself
        return True
    try:
        zlib.decompress(data)
    except zlib.error:
        return False
    return True
