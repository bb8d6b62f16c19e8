"""One worker process that runs part of an analysis in parallel with the main process."""

import contextlib
import functools
from collections.abc import Callable
from concurrent.futures import BrokenExecutor, Future
from typing import Any, TypeVar

from loky import cpu_count, get_reusable_executor

from mscale.errors import MscaleError

Result = TypeVar("Result")
_IDLE_TIMEOUT_S = 60  # the worker process exits after this many seconds without work
# One BLAS thread, since the matrices are small. The malloc thresholds keep freed blocks in the process: otherwise they
# go back to the system and are faulted in again with every use.
_ENVIRONMENT = {
    **{f"{name}_NUM_THREADS": "1" for name in ("OMP", "OPENBLAS", "MKL")},
    "MALLOC_MMAP_THRESHOLD_": str(32 << 20),
    "MALLOC_TRIM_THRESHOLD_": str(64 << 20),
}


class SecondProcess:
    """Runs functions in one worker process, in the order in which they are submitted.

    Where there is no worker (too little work, one core, or a system that cannot start a process), a function runs in
    this process when its result is asked for. The worker is a fresh interpreter (loky), so that it starts the same way
    on every system and in notebooks; all instances share it.

    Args:
      enough_work: whether the work is worth a worker process, whose start takes a second or two.
    """

    def __init__(self, enough_work: bool) -> None:
        self._executor = None
        if enough_work and cpu_count() >= 2:
            # Without semaphores, or with no process or memory left, all work runs in this process.
            with contextlib.suppress(OSError):
                self._executor = get_reusable_executor(
                    max_workers=1, timeout=_IDLE_TIMEOUT_S, env=_ENVIRONMENT
                )

    def submit(self, function: Callable[..., Result], *arguments: Any) -> Callable[[], Result]:
        """Starts `function(*arguments)` and returns a function that waits for its result.

        Args:
          function: importable by name; its arguments and result can be pickled.

        Raises:
          MscaleError: (when the result is asked for) the worker process was killed. What `function` raises is raised
            then, too.
        """
        if self._executor is not None:
            with contextlib.suppress(OSError):
                return functools.partial(_wait, self._executor.submit(function, *arguments))
        return functools.partial(function, *arguments)


def _wait(future: "Future[Result]") -> Result:
    try:
        return future.result()
    except BrokenExecutor as error:
        raise MscaleError(
            "the analysis's second process was ended from outside, most likely for want of memory: free some, or "
            "analyse fewer rows"
        ) from error
