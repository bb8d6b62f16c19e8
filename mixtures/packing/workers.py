"""The processes that pack: each holds the vocabulary, and the arguments of a task are small.

What a process packed of small languages it writes in a journal of its own, a line each, for a call after a kill.
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

# Input files, the unit if it is known, folders of shards and of the store, valid_tokens, cutoff.
PackingJob = tuple[list[InputFile], Any, Path, Path, int, int | None]


def _start(vocabulary: Vocabulary, in_worker: bool) -> None:
    global _VOCABULARY
    _VOCABULARY = vocabulary
    parent = multiprocessing.parent_process()
    if in_worker and parent is not None:
        # A pool's workers outlive a parent that was killed; these do not.
        def watch() -> None:
            multiprocessing.connection.wait([parent.sentinel])
            os._exit(1)

        threading.Thread(target=watch, daemon=True).start()


def find_assembled_language(job: PackingJob) -> tuple[str, str, dict[str, Any] | None]:
    inputs, unit, folder, destination, valid_tokens, cutoff = job
    unit = unit or held_out_unit(inputs, folder)
    made_of = assembly_recipe(inputs, unit, _VOCABULARY, valid_tokens, cutoff)
    return inputs[0].language, unit, find_assembled(folder, destination, made_of)


def tokenize_file(job: tuple[InputFile, str, Path]) -> tuple[InputFile, dict[str, Any]]:
    one, unit, folder = job
    return one, tokenize(one, unit, _VOCABULARY, folder)


def pack_small_languages(bundle: list[PackingJob]) -> list[tuple[str, dict[str, Any] | None]]:
    packed = []
    folder = bundle[0][2].parent
    journal = folder / _JOURNAL.replace("*", f"{os.getpid()}-{time.time_ns()}")
    with writing(journal), open(journal, "xb", buffering=0) as file:
        for inputs, unit, scratch, destination, valid_tokens, cutoff in bundle:
            one = inputs[0]
            temporary = scratch.with_name(f"{scratch.name}.new")
            entry = pack_small(one, unit, _VOCABULARY, temporary, destination, valid_tokens, cutoff)
            if entry:
                made_of = assembly_recipe(inputs, entry["unit"], _VOCABULARY, valid_tokens, cutoff)
                done = {"language": one.language, "unit": entry["unit"], "made_of": made_of, "entry": entry}
                file.write(json.dumps(done).encode() + b"\n")
            packed.append((one.language, entry))
    return packed


def assemble_language(job: PackingJob) -> tuple[str, dict[str, Any]]:
    inputs, unit, folder, destination, valid_tokens, cutoff = job
    return inputs[0].language, assemble(inputs, unit, _VOCABULARY, folder, destination, valid_tokens, cutoff)


@contextlib.contextmanager
def packing_processes(
    processes: int, vocabulary: Vocabulary
) -> Iterator[Callable[[Callable, Iterable], Iterator]]:
    """Yields ``run(function, jobs)``, which gives results as they come, from this process or from
    several."""
    if processes <= 1:
        _start(vocabulary, in_worker=False)
        yield lambda function, jobs: map(function, jobs)
        return
    context = multiprocessing.get_context(_start_method())
    pool = ProcessPoolExecutor(processes, mp_context=context, initializer=_start, initargs=(vocabulary, True))
    pool.submit(os.getpid)  # starts them now, before a progress bar has a thread

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
    """Forked workers start at once and share the vocabulary, but the fork of a process with threads, or with an
    accelerator library, may hang."""
    alone = threading.active_count() == 1 and not {"jax", "tensorflow"} & set(sys.modules)
    return "fork" if sys.platform == "linux" and alone else "spawn"


def read_journals(scratch: Path) -> dict[str, list[dict[str, Any]]]:
    """What earlier calls finished, by language; the last line of one that was killed may be torn."""
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
    """The entry of a small language that an earlier call made from the same, if its files are whole."""
    inputs, unit, _, destination, valid_tokens, cutoff = job
    for done in seen or []:
        made_of = assembly_recipe(inputs, unit or done["unit"], vocabulary, valid_tokens, cutoff)
        if done["made_of"] == made_of and files_match(destination, done["entry"]["files"]):
            return done["entry"]
    return None


def usable_cores() -> int:
    # What this process may use, where the system tells.
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
