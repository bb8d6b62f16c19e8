"""The process around a run: JAX's compilation cache on disk, and the memory allocator.

JAX writes a cache entry in place and never replaces one. An entry that is damaged (a process was killed while
it wrote) is therefore compiled again at every start. We remove damaged entries when a process first uses the
folder, so that JAX writes them again.
"""

import contextlib
import ctypes
import os
import time
import zlib
from pathlib import Path

import jax

from mscale.remote import local_folder

# Parameters of mallopt(3), from glibc's malloc.h.
_M_TRIM_THRESHOLD, _M_TOP_PAD, _M_MMAP_MAX, _M_ARENA_MAX = -1, -2, -4, -8


def retain_freed_memory() -> bool:
    """Makes malloc keep freed memory for the rest of the process; returns whether it could (glibc only).

    By default glibc returns large blocks to the kernel, and every step pays page faults to get them again. One
    arena is used, since an arena of another thread holds at most 64 MB. The process then keeps its peak memory.
    """
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError):
        return False
    settings = {_M_ARENA_MAX: 1, _M_MMAP_MAX: 0, _M_TRIM_THRESHOLD: 2**31 - 1, _M_TOP_PAD: 2**26}
    return all(mallopt(parameter, value) == 1 for parameter, value in settings.items())


_configured_folders: set[str] = set()
_MIN_ENTRY_AGE_SECONDS = 10.0  # a younger entry may still be being written


def use_compile_cache(folder: str | os.PathLike | None) -> None:
    """Makes JAX keep compiled programs in ``folder``; None leaves JAX's own settings as they are."""
    if not folder or str(folder) in _configured_folders:
        return
    path = local_folder(folder, "COMPILE_CACHE")
    path.mkdir(parents=True, exist_ok=True)
    remove_damaged_entries(path)
    jax.config.update("jax_compilation_cache_dir", str(path))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
    jax.config.update("jax_persistent_cache_min_entry_size_bytes", -1)
    _configured_folders.add(str(folder))


def remove_damaged_entries(folder: Path) -> list[str]:
    """Removes cache entries whose compressed stream is broken; returns their names.

    Entries of the last ten seconds are left alone: another process may be writing them.
    """
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
    if data[:4] == b"\x28\xb5\x2f\xfd":  # zstandard, where that is installed: JAX checks it itself
        return True
    try:
        zlib.decompress(data)
    except zlib.error:
        return False
    return True
