"""Work done beside one's own: in a second process where that pays, else at once when its result is asked for."""

import functools
from collections.abc import Callable
from concurrent.futures import BrokenExecutor
from typing import Any, TypeVar

from loky import cpu_count, get_reusable_executor

from analysis.objective import one_thread
from mscale.errors import MscaleError

Result = TypeVar("Result")
IDLE_S = 60  # after which the second process ends by itself


class Beside:
    """Hands work to a second process, one piece after the other in the order given.

    The process is a fresh interpreter, so that it starts alike on every system and in notebooks, and is kept for the
    next time. Work must be functions of modules, whose arguments and results can be pickled.

    Args:
      pays: whether there is enough work to start a process for, which takes it a second or two.
    """

    def __init__(self, pays: bool) -> None:
        alone = not pays or cpu_count() < 2
        self._executor = None if alone else get_reusable_executor(max_workers=1, timeout=IDLE_S)

    def __call__(self, work: Callable[..., Result], *given: Any) -> Callable[[], Result]:
        """Begins the work. What is returned waits for its result, and raises what the work raised.

        Raises:
          MscaleError: (when the result is asked for) the process was ended from outside.
        """
        if self._executor is None:
            return functools.partial(work, *given)
        return functools.partial(_await, self._executor.submit(_alone, work, *given))


def _await(future: Any) -> Any:
    try:
        return future.result()
    except BrokenExecutor as error:
        raise MscaleError(
            "the analysis's second process was ended from outside, most likely for want of memory: free some, or "
            "analyse fewer rows"
        ) from error


def _alone(work: Callable[..., Result], *given: Any) -> Result:
    with one_thread():
        return work(*given)
