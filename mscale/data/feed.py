"""Feeding: the schedule's batches out of the token store, a few ahead of the training step.

There is no state but the step: batch ``step`` is a gather of whole windows, each a contiguous read from a
mapped file (of a remote store, all windows of a batch at once), so a host reads only the windows of its own
rows.
"""

import mmap
import queue
import threading
import time
from collections.abc import Iterator
from typing import Any

import numpy as np

from mscale.data.schedule import Schedule
from mscale.data.store import Store
from mscale.errors import MscaleError

ROWS_PER_LOOKUP = 2048  # schedule look-ups are cheaper in bulk
COLD_ROW_SECONDS = 40e-6  # seconds for a row: it came from a disk, from the page cache it takes about 1e-6
_RANDOM_ACCESS_BYTES = 64 << 20  # bytes of a file from which reading ahead around a window is waste


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

    Model inputs are these shifted right behind the pad id. Each batch is a new array. A thread gathers up
    to ``prefetch`` batches ahead and ends with the iterator.

    Args:
      store: the token store.
      schedule: made from a mixture over this store with the same S.
      sequence_length: S.
      start_step: first step, 0 for a new run.
      stop_step: the step not reached any more; None for no end.
      rows: this host's rows of the global batch; None for all.
      prefetch: batches gathered ahead; 0 gathers in the calling thread.

    Raises:
      MscaleError: the schedule visits windows that the store does not have, or a file cannot be read.
    """
    check_fits(store, schedule, sequence_length)
    produced = _gather_batches(store, schedule, sequence_length, start_step, stop_step, rows)
    return produced if prefetch < 1 else _prefetched(produced, prefetch)


def check_fits(store: Store, schedule: Schedule, sequence_length: int) -> None:
    """Raises a MscaleError unless the store has all windows of ``sequence_length`` that the schedule
    visits."""
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
    windows: list[np.ndarray | None] = [None] * len(schedule.languages)
    count = len(range(schedule.batch_size)[rows or slice(None)])
    at_once = max(ROWS_PER_LOOKUP // max(count, 1), 1)
    cold = True
    while stop is None or start < stop:
        end = start + at_once if stop is None else min(start + at_once, stop)
        languages, ids = (column.tolist() for column in schedule.batches(start, end, rows))
        for language in set(languages):
            if windows[language] is None:
                windows[language] = window_view(store, schedule.languages[language], sequence_length)
        if cold:
            advise_read_ahead(windows, languages, ids)
        seconds = 0.0
        for first in range(0, len(ids), count) if count else [0] * (end - start):
            begun = time.perf_counter()
            batch = np.empty((count, sequence_length), np.int32)
            of_rows, windows_of_rows = languages[first : first + count], ids[first : first + count]
            store.fetch([schedule.languages[one] for one in of_rows], windows_of_rows, sequence_length)
            for row, (language, window) in enumerate(zip(of_rows, windows_of_rows, strict=True)):
                batch[row] = windows[language][window]  # type: ignore[index]
            seconds += time.perf_counter() - begun
            yield batch
        cold = seconds > COLD_ROW_SECONDS * len(ids)
        start = end


def window_view(store: Store, language: str, sequence_length: int) -> np.ndarray:
    tokens = store.train(language)
    mapped = memory_mapping(tokens)
    if mapped is not None and len(mapped) > _RANDOM_ACCESS_BYTES:
        mapped.madvise(mmap.MADV_RANDOM)
    return tokens[: len(tokens) // sequence_length * sequence_length].reshape(-1, sequence_length)


def advise_read_ahead(windows: list[Any], languages: list[int], ids: list[int]) -> None:
    """Has the system read the windows of many rows at once; touching them one by one would wait for each."""
    mappings = {language: memory_mapping(windows[language]) for language in set(languages)}
    for language, window in zip(languages, ids, strict=True):
        mapped = mappings[language]
        if mapped is not None:
            length = windows[language].itemsize * windows[language].shape[1]
            first = window * length // mmap.PAGESIZE * mmap.PAGESIZE
            mapped.madvise(mmap.MADV_WILLNEED, first, (window + 1) * length - first)


def memory_mapping(array: Any) -> mmap.mmap | None:
    """The mapping of a file that an array views, if it does and the system takes advice."""
    while isinstance(array, np.ndarray):
        array = array.base
    return array if isinstance(array, mmap.mmap) and hasattr(mmap, "MADV_WILLNEED") else None


def _prefetched(produced: Iterator[np.ndarray], prefetch: int) -> Iterator[np.ndarray]:
    """Runs ``produced`` in a thread, at most ``prefetch`` items ahead; its exceptions are raised here."""
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
            for batch in produced:
                if not put(batch):
                    return
            put(None)
        except BaseException as error:  # whatever it is, the consumer must hear of it
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
