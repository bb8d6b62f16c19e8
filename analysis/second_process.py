"""Work done beside one's own: in a second process where that pays, else at once when its result is asked for."""

import contextlib
import functools
from collections.abc import Callable
from concurrent.futures import BrokenExecutor
from typing import Any, TypeVar

from loky import cpu_count, get_reusable_executor

from mscale.errors import MscaleError

Result = TypeVar("Result")
IDLE_S = 60  # after which the second process ends by itself
# One thread for its linear algebra, of matrices as small as ours, and blocks of memory kept where they would otherwise
# go back to the system with every use (see `analysis.estimation.objective`).
SETTINGS = {
    **{f"{name}_NUM_THREADS": "1" for name in ("OMP", "OPENBLAS", "MKL")},
    "MALLOC_MMAP_THRESHOLD_": str(32 << 20),
    "MALLOC_TRIM_THRESHOLD_": str(64 << 20),
}


class Beside:
    """Hands work to a second process, one piece after the other in the order given.

    The process is a fresh interpreter, so that it starts alike on every system and in notebooks, and is kept for the
    next time. Work must be functions of modules, whose arguments and results can be pickled.

    Args:
      pays: whether there is enough work to start a process for, which takes it a second or two.
    """

    def __init__(self, pays: bool) -> None:
        alone = not pays or cpu_count() < 2
        self._executor = None
        if not alone:
            # A system without semaphores, or room for a process, does all in the first one.
            with contextlib.suppress(OSError):
                self._executor = get_reusable_executor(max_workers=1, timeout=IDLE_S, env=SETTINGS)

    def __call__(self, work: Callable[..., Result], *given: Any) -> Callable[[], Result]:
        """Begins the work. What is returned waits for its result, and raises what the work raised.

        Raises:
          MscaleError: (when the result is asked for) the process was ended from outside.
        """
        if self._executor is not None:
            with contextlib.suppress(OSError):
                return functools.partial(_await, self._executor.submit(work, *given))
        return functools.partial(work, *given)


def _await(future: Any) -> Any:
    try:
        return future.result()
    except BrokenExecutor as error:
        raise MscaleError(
            "the analysis's second process was ended from outside, most likely for want of memory: free some, or "
            "analyse fewer rows"
        ) from error
