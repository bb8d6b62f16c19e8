"""The processes that pack. Each holds the vocabulary, so that the arguments of a task stay small."""

import contextlib
import multiprocessing
import multiprocessing.connection
import os
import sys
import threading
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from typing import Any

from mscale.data.vocabulary import Vocabulary
from mscale.errors import MscaleError

_VOCABULARY: Vocabulary


def _start_worker(vocabulary: Vocabulary) -> None:
    global _VOCABULARY
    _VOCABULARY = vocabulary
    parent = multiprocessing.parent_process()
    if parent is not None:
        # Workers of a ProcessPoolExecutor survive a parent that was killed; exit with it instead.
        def watch() -> None:
            multiprocessing.connection.wait([parent.sentinel])
            os._exit(1)

        threading.Thread(target=watch, daemon=True).start()


def _call(function: Callable, arguments: tuple) -> Any:
    return function(*arguments, _VOCABULARY)


@contextlib.contextmanager
def packing_processes(
    processes: int, vocabulary: Vocabulary
) -> Iterator[Callable[[Callable, Iterable], Iterator]]:
    """Yields ``run(function, calls)``, which yields results as they are ready, from this process or several.

    ``calls`` are the arguments of each call of ``function``, before the vocabulary, which is its last.

    Raises:
      MscaleError: a worker process died.
    """
    if processes <= 1:
        yield lambda function, calls: (function(*arguments, vocabulary) for arguments in calls)
        return
    context = multiprocessing.get_context(_start_method())
    pool = ProcessPoolExecutor(
        processes, mp_context=context, initializer=_start_worker, initargs=(vocabulary,)
    )
    pool.submit(os.getpid)  # forks the workers now, before the progress bar starts a thread

    def run(function: Callable, calls: Iterable[tuple]) -> Iterator:
        waiting: set[Future] = set()
        for arguments in calls:
            waiting.add(pool.submit(_call, function, arguments))
            if len(waiting) >= 4 * processes:
                done, waiting = wait(waiting, return_when=FIRST_COMPLETED)
                yield from (future.result() for future in done)
        while waiting:
            done, waiting = wait(waiting, return_when=FIRST_COMPLETED)
            yield from (future.result() for future in done)

    try:
        yield run
    except BrokenProcessPool:
        raise MscaleError(
            "a packing process ended before its work did. If an error of its start stands above, a script that packs "
            'lacks its `if __name__ == "__main__":`; otherwise memory most likely ran out: run again with fewer '
            "processes, it continues"
        ) from None
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def _start_method() -> str:
    """Forked workers start at once and share the vocabulary. But a fork of a process that has threads or has loaded
    an accelerator library may hang; then workers are spawned."""
    safe_to_fork = threading.active_count() == 1 and not {"jax", "tensorflow"} & set(sys.modules)
    return "fork" if sys.platform == "linux" and safe_to_fork else "spawn"


def usable_cores() -> int:
    """Cores that this process may use, where the system tells; else all of the machine."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
