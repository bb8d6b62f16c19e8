"""Overhead of a run in a sweep, beyond its training steps: start, evaluation, checkpoint, records, worker pool.

    python benchmarks/sweep_overhead.py [--runs 12] > sweep_overhead.json

Studies of runs of one shape (nano0, monolingual) are trained by one worker, once with few steps a run and once with
more: seconds a run are a line in its steps, whose height at zero is the overhead of a run after the first of its
shape. The first run, which compiles, is timed by a study of one run with an empty compile cache. One JSON object on
standard output; about a minute.
"""

import argparse
import contextlib
import io
import json
import sys
import tempfile
import time
from pathlib import Path

from mixtures.packing.pack import pack
from mixtures.synthetic.generate import generate
from mscale.data.store import Store
from mscale.data.vocabulary import byte_vocabulary
from sweeps import grid
from sweeps.executors import local

BATCH, SEQUENCE = 4, 128


def seconds(store: Store, root: Path, runs: int, steps: int) -> float:
    """Wall seconds of a study with ``runs`` seeds of one cell, on one worker."""
    tokens = (steps * BATCH * SEQUENCE,)
    cells = grid.cells([store.languages[0]], tokens, ("nano0",), range(runs), tag="overhead")
    study = grid.study(store, "overhead", cells, sequence_length=SEQUENCE, batch_size=BATCH)
    started = time.perf_counter()
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        local.run(study, root, workers=1)
    return time.perf_counter() - started


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--runs", type=int, default=12, help="runs of each study")
    parser.add_argument("--steps", type=int, nargs=2, default=(40, 240), help="steps of a run, few and more")
    options = parser.parse_args()
    few, more = options.steps
    with tempfile.TemporaryDirectory() as folder:
        here = Path(folder)
        with contextlib.redirect_stderr(io.StringIO()):
            generate(here / "corpus", 1, 1, 1_000_000, 0)
            store = pack(here / "corpus", here / "store", byte_vocabulary(), processes=1)
        cold = seconds(store, here / "cold", 1, few)
        one = seconds(store, here / "one", 1, few)
        short = seconds(store, here / "short", options.runs, few)
        long = seconds(store, here / "long", options.runs, more)
    a_run = (short - one) / (options.runs - 1)  # after the first of its shape
    step = (long - short) / options.runs / (more - few)
    result = {
        "benchmark": "sweep_overhead",
        "runs": options.runs,
        "steps": [few, more],
        "first_run_seconds": round(cold, 2),
        "seconds_a_run": round(a_run, 3),
        "seconds_a_step": round(step, 5),
        "overhead_seconds_a_run": round(a_run - few * step, 3),
    }
    json.dump(result, sys.stdout, indent=2)
    print()


if __name__ == "__main__":
    main()
