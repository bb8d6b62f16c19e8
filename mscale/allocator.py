"""Keeping freed pages: what the C allocator does with the step's temporary buffers on a CPU.

XLA's CPU backend takes its temporaries from malloc at every dispatch. glibc serves such large blocks by mmap and gives
them back at once, so that each dispatch faults all its pages in again: a quarter of a small step dispatched alone,
and with eight steps a dispatch, as the train loop has them, still 4 to 11% of a run's CPU seconds, measured.
"""

import ctypes

_M_TRIM_THRESHOLD, _M_TOP_PAD, _M_MMAP_MAX, _M_ARENA_MAX = -1, -2, -4, -8


def keep_freed_pages() -> bool:
    """Makes malloc reuse large blocks for the rest of the process; returns whether it could (glibc only).

    One arena, since those of other threads hold at most 64 MB. The process then stays at its peak memory.
    """
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError):
        return False
    settings = {_M_ARENA_MAX: 1, _M_MMAP_MAX: 0, _M_TRIM_THRESHOLD: 2**31 - 1, _M_TOP_PAD: 2**26}
    return all(mallopt(parameter, value) == 1 for parameter, value in settings.items())
