"""The processes that pack. Each holds the vocabulary, so that the arguments of a task stay small.

Each process records the small languages that it has packed in a journal, a line each, from which a call after a kill
continues.
"""

import contextlib
import json
import multiprocessing
import multiprocessing.connection
import os
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mixtures.packing.hashed_files import files_match
from mixtures.packing.inputs import InputFile
from mixtures.packing.shards import (
    assemble,
    assembly_recipe,
    find_assembled,
    held_out_unit,
    pack_small,
    tokenize,
)
from mscale.data.vocabulary import Vocabulary
from mscale.errors import MscaleError
from mscale.files import writing

_JOURNAL = "finished-*.jsonl"
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

    def recipe(self, unit: str, vocabulary: Vocabulary) -> dict[str, Any]:
        """What determines the store files of the language, held out by ``unit``."""
        return assembly_recipe(self.files, unit, vocabulary, self.valid_tokens, self.cutoff)


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
    return job.language, unit, find_assembled(job.scratch, job.destination, job.recipe(unit, _VOCABULARY))


def tokenize_file(job: tuple[InputFile, str, Path]) -> tuple[InputFile, dict[str, Any]]:
    """Makes the shard of one file in a folder; returns the file and the shard's counts."""
    file, unit, folder = job
    return file, tokenize(file, unit, _VOCABULARY, folder)


def pack_small_languages(bundle: list[PackingJob]) -> list[tuple[str, dict[str, Any] | None]]:
    """Packs several small languages; returns each with its entry, or None where its text was too large for memory."""
    packed = []
    journal = bundle[0].scratch.parent / _JOURNAL.replace("*", f"{os.getpid()}-{time.time_ns()}")
    with writing(journal), open(journal, "xb", buffering=0) as lines:
        for job in bundle:
            temporary = job.scratch.with_name(f"{job.scratch.name}.new")
            entry = pack_small(
                job.files[0], job.unit, _VOCABULARY, temporary, job.destination, job.valid_tokens, job.cutoff
            )
            if entry:
                recipe = job.recipe(entry["unit"], _VOCABULARY)
                line = {"language": job.language, "unit": entry["unit"], "made_of": recipe, "entry": entry}
                lines.write(json.dumps(line).encode() + b"\n")
            packed.append((job.language, entry))
    return packed


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


def read_journals(scratch: Path) -> dict[str, list[dict[str, Any]]]:
    """Journal lines of earlier calls by language; an incomplete last line, of a call that was killed, is skipped."""
    found: dict[str, list[dict[str, Any]]] = {}
    for path in scratch.glob(_JOURNAL):
        for line in path.read_bytes().split(b"\n"):
            with contextlib.suppress(ValueError, KeyError, TypeError):
                done = json.loads(line)
                found.setdefault(done["language"], []).append(done)
    return found


def packed_before(
    seen: list[dict[str, Any]] | None, job: PackingJob, vocabulary: Vocabulary
) -> dict[str, Any] | None:
    """The entry of a small language that an earlier call packed from the same input, if its files are intact."""
    for done in seen or []:
        recipe = job.recipe(job.unit or done["unit"], vocabulary)
        if done["made_of"] == recipe and files_match(job.destination, done["entry"]["files"]):
            return done["entry"]
    return None


def usable_cores() -> int:
    """Cores that this process may use, where the system tells; else all of the machine."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
