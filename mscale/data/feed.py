"""Reads the schedule's batches from the token store, some batches ahead of the training step.

The only state is the step. A batch consists of whole windows, each a contiguous read from a memory-mapped file (from a
remote store, all windows of a batch are fetched concurrently), so a host reads only the windows of its own rows.
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

ROWS_PER_LOOKUP = (
    2048  # rows of a schedule look-up; one look-up for many batches is cheaper than one for each
)
COLD_ROW_SECONDS = 40e-6  # a slower row was read from a disk; one in the page cache takes about 1e-6
_RANDOM_ACCESS_BYTES = (
    64 << 20
)  # in a larger file, the kernel's read-ahead around a window reads unused bytes


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
    windows: list[np.ndarray | None] = [None] * len(schedule.languages)
    count = len(range(schedule.batch_size)[rows or slice(None)])
    steps_per_lookup = max(ROWS_PER_LOOKUP // max(count, 1), 1)
    page_cache_is_cold = True
    while stop is None or start < stop:
        end = start + steps_per_lookup if stop is None else min(start + steps_per_lookup, stop)
        languages, ids = (column.tolist() for column in schedule.batches(start, end, rows))
        for language in set(languages):
            if windows[language] is None:
                windows[language] = window_view(store, schedule.languages[language], sequence_length)
        if page_cache_is_cold:
            advise_read_ahead(windows, languages, ids)
        seconds = 0.0
        for first in range(0, len(ids), count) if count else [0] * (end - start):
            started = time.perf_counter()
            batch = np.empty((count, sequence_length), np.int32)
            row_languages, row_windows = languages[first : first + count], ids[first : first + count]
            store.fetch(
                [schedule.languages[language] for language in row_languages], row_windows, sequence_length
            )
            for row, (language, window) in enumerate(zip(row_languages, row_windows, strict=True)):
                batch[row] = windows[language][window]  # type: ignore[index]
            seconds += time.perf_counter() - started
            yield batch
        page_cache_is_cold = seconds > COLD_ROW_SECONDS * len(ids)
        start = end


def window_view(store: Store, language: str, sequence_length: int) -> np.ndarray:
    """Returns a language's whole train windows, (windows, S), as a view of the mapped file."""
    tokens = store.train(language)
    mapped = memory_mapping(tokens)
    if mapped is not None and len(mapped) > _RANDOM_ACCESS_BYTES:
        mapped.madvise(mmap.MADV_RANDOM)
    return tokens[: len(tokens) // sequence_length * sequence_length].reshape(-1, sequence_length)


def advise_read_ahead(windows: list[Any], languages: list[int], ids: list[int]) -> None:
    """Asks the kernel to read the windows of many rows into the page cache concurrently (MADV_WILLNEED).

    Without it, reading them one by one waits for the disk once per window.

    Args:
      windows: of each language id, its window view.
      languages: language id of each row.
      ids: window of each row.
    """
    mappings = {language: memory_mapping(windows[language]) for language in set(languages)}
    for language, window in zip(languages, ids, strict=True):
        mapped = mappings[language]
        if mapped is not None:
            length = windows[language].itemsize * windows[language].shape[1]
            first = window * length // mmap.PAGESIZE * mmap.PAGESIZE
            mapped.madvise(mmap.MADV_WILLNEED, first, (window + 1) * length - first)


def memory_mapping(array: Any) -> mmap.mmap | None:
    """Returns the memory mapping that an array is a view of; None without one, or without madvise(2)."""
    while isinstance(array, np.ndarray):
        array = array.base
    return array if isinstance(array, mmap.mmap) and hasattr(mmap, "MADV_WILLNEED") else None


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
