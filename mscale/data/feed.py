"""Reads the schedule's batches from the token store, some batches ahead of the training step.

The only state is the step. A batch consists of whole windows, each a contiguous read from a memory-mapped file (from a
remote store, all windows of a batch are fetched concurrently), so a host reads only the windows of its own rows.
"""

import queue
import threading
import time
from collections.abc import Iterator

import numpy as np

from mscale.data.schedule import Schedule
from mscale.data.store import Store
from mscale.errors import MscaleError

ROWS_PER_LOOKUP = 2048  # one look-up of the schedule for many batches is cheaper than one for each
COLD_ROW_SECONDS = 40e-6  # a slower row was read from a disk; one in the page cache takes about 1e-6


def batches(
    store: Store,
    schedule: Schedule,
    sequence_length: int,
    start_step: int,
    stop_step: int | None = None,
    rows: slice | None = None,
    prefetch: int = 2,
) -> Iterator[np.ndarray]:
    """Yields the target tokens of steps ``start_step``, ``start_step`` + 1, … as int32 (rows, S) arrays.

    The model's inputs are the targets shifted right (``loss.shift_right``). Each batch is a new array. A thread reads
    up to ``prefetch`` batches ahead and ends with the iterator.

    Args:
      store: the token store.
      schedule: of a mixture that was resolved for this store and S.
      sequence_length: S.
      start_step: first step, 0 for a new run.
      stop_step: the step after the last one; None for no end.
      rows: this host's rows of the global batch; None for all.
      prefetch: batches read ahead; 0 reads in the calling thread.

    Raises:
      MscaleError: the schedule visits windows that the store does not have, or a file cannot be read.
    """
    check_fits(store, schedule, sequence_length)
    gathered = _gather_batches(store, schedule, sequence_length, start_step, stop_step, rows)
    return gathered if prefetch < 1 else _prefetched(gathered, prefetch)


def check_fits(store: Store, schedule: Schedule, sequence_length: int) -> None:
    """Checks that the store has all windows of ``sequence_length`` tokens that the schedule visits.

    Raises:
      MscaleError: a language has fewer windows.
    """
    for language in schedule.languages:
        available = store.windows(language, sequence_length)
        if schedule.windows.get(language, 0) > available:
            raise MscaleError(
                f"{store.path}: the schedule visits {schedule.windows[language]:,} windows of "
                f"{sequence_length:,} tokens of "
                f"{language}, the store has {available:,}; resolve the mixture from this store and "
                "sequence length"
            )


def _gather_batches(
    store: Store, schedule: Schedule, sequence_length: int, start: int, stop: int | None, rows: slice | None
) -> Iterator[np.ndarray]:
    count = len(range(schedule.batch_size)[rows or slice(None)])
    steps_per_lookup = max(ROWS_PER_LOOKUP // max(count, 1), 1)
    page_cache_is_cold = True
    while stop is None or start < stop:
        end = start + steps_per_lookup if stop is None else min(start + steps_per_lookup, stop)
        ids, windows = (column.tolist() for column in schedule.batches(start, end, rows))
        languages = [schedule.languages[one] for one in ids]
        if page_cache_is_cold:
            store.read_ahead(languages, windows, sequence_length)
        seconds = 0.0
        for first in range(0, (end - start) * count, count) if count else [0] * (end - start):
            started = time.perf_counter()
            chosen = slice(first, first + count)
            batch = store.gather_windows(languages[chosen], windows[chosen], sequence_length)
            seconds += time.perf_counter() - started
            yield batch
        page_cache_is_cold = seconds > COLD_ROW_SECONDS * len(windows)
        start = end


def _prefetched(gathered: Iterator[np.ndarray], prefetch: int) -> Iterator[np.ndarray]:
    """Runs ``gathered`` in a thread, at most ``prefetch`` items ahead; its exceptions are raised here."""
    ready: queue.Queue = queue.Queue(prefetch)
    stopped = threading.Event()

    def put(item: object) -> bool:
        while not stopped.is_set():
            try:
                ready.put(item, timeout=0.1)
                return True
            except queue.Full:
                continue
        return False

    def work() -> None:
        try:
            for batch in gathered:
                if not put(batch):
                    return
            put(None)
        except BaseException as error:  # raised again in the consuming thread
            put(error)

    thread = threading.Thread(target=work, name="mscale-feed", daemon=True)
    thread.start()
    try:
        while (item := ready.get()) is not None:
            if isinstance(item, BaseException):
                raise item
            yield item
    finally:
        stopped.set()
        thread.join()
