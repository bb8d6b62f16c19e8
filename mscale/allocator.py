"""Keeping freed pages: what the C allocator does with the step's temporary buffers on a CPU.

XLA's CPU backend takes its temporaries from malloc at every step. glibc serves such large blocks by mmap and gives
them back at once, so that each step faults all its pages in again: measured, 40% of the time of a nano step.
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
