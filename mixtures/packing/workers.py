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
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mixtures.packing.inputs import InputFile
from mixtures.packing.shards import (
    assemble,
    assembly_recipe,
    find_assembled,
    held_out_unit,
    tokenize,
)
from mscale.data.vocabulary import Vocabulary
from mscale.errors import MscaleError

_VOCABULARY: Vocabulary


@dataclass(frozen=True)
class PackingJob:
    """One language to pack.

    Attributes:
      files: its input files.
      unit: what is held out, "document" or "line"; None where it is not chosen yet.
      scratch: folder of its shards; destination: its folder in the store.
      valid_tokens: most tokens that are held out.
      cutoff: units whose hash is below it are held out; None to choose it.
    """

    files: list[InputFile]
    unit: str | None
    scratch: Path
    destination: Path
    valid_tokens: int
    cutoff: int | None

    @property
    def language(self) -> str:
        """Its code."""
        return self.files[0].language


def _start_worker(vocabulary: Vocabulary, in_worker: bool) -> None:
    global _VOCABULARY
    _VOCABULARY = vocabulary
    parent = multiprocessing.parent_process()
    if in_worker and parent is not None:
        # Workers of a ProcessPoolExecutor survive a parent that was killed; exit with it instead.
        def watch() -> None:
            multiprocessing.connection.wait([parent.sentinel])
            os._exit(1)

        threading.Thread(target=watch, daemon=True).start()


def find_assembled_language(job: PackingJob) -> tuple[str, str, dict[str, Any] | None]:
    """Returns the language, its unit, and its entry where an earlier call assembled it."""
    unit = job.unit or held_out_unit(job.files, job.scratch)
    recipe = assembly_recipe(job.files, unit, _VOCABULARY, job.valid_tokens, job.cutoff)
    return job.language, unit, find_assembled(job.scratch, job.destination, recipe)


def tokenize_file(job: tuple[InputFile, str, Path]) -> tuple[InputFile, dict[str, Any]]:
    """Makes the shard of one file in a folder; returns the file and the shard's counts."""
    file, unit, folder = job
    return file, tokenize(file, unit, _VOCABULARY, folder)


def assemble_language(job: PackingJob) -> tuple[str, dict[str, Any]]:
    """Joins the shards of a language whose unit is known; returns it with its entry."""
    assert job.unit is not None
    entry = assemble(
        job.files, job.unit, _VOCABULARY, job.scratch, job.destination, job.valid_tokens, job.cutoff
    )
    return job.language, entry


@contextlib.contextmanager
def packing_processes(
    processes: int, vocabulary: Vocabulary
) -> Iterator[Callable[[Callable, Iterable], Iterator]]:
    """Yields ``run(function, jobs)``, which yields results as they are ready, from this process or several.

    Raises:
      MscaleError: a worker process died.
    """
    if processes <= 1:
        _start_worker(vocabulary, in_worker=False)
        yield lambda function, jobs: map(function, jobs)
        return
    context = multiprocessing.get_context(_start_method())
    pool = ProcessPoolExecutor(
        processes, mp_context=context, initializer=_start_worker, initargs=(vocabulary, True)
    )
    pool.submit(os.getpid)  # forks the workers now, before the progress bar starts a thread

    def run(function: Callable, jobs: Iterable) -> Iterator:
        waiting: set[Future] = set()
        for job in jobs:
            waiting.add(pool.submit(function, job))
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
