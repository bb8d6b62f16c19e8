"""One run as one job of a cluster: ``python -m sweeps.executors.job ROOT RUN``, or ``ROOT --array NAME --index I``.

The job reads its spec from the run's folder and trains it with ``worker.train_run``, as every executor does; all
results are in that folder. Exit code: 0 when the run is done, 143 when it was stopped and has saved its state (to be
queued again), else 1.
"""

import argparse
import os
import signal
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from mscale import run_folder
from mscale.errors import MscaleError
from sweeps import spec
from sweeps.executors import slurm, worker


def assigned_run(root: Path, run_id: str | None, array: str | None, index: int | None) -> str:
    """The id of the run that this job trains: as named, or the ``index``-th of a submitted array.

    Raises:
      MscaleError: neither is given, or the array has no such element.
    """
    if run_id is not None:
        return run_id
    if array is None or index is None:
        raise MscaleError("sweeps.executors.job: give a run's id, or --array NAME --index I")
    listed = slurm.array_runs(root, array)
    if not 0 <= index < len(listed):
        raise MscaleError(f"{root}/slurm/{array}.json: has {len(listed)} runs, asked for is number {index}")
    return listed[index]


def _ending_in_peace(trainer: Callable[[list[str]], int]) -> Callable[[list[str]], int]:
    """The trainer, after which SIGTERM does nothing: Slurm may send it twice, and the others are still waited for."""

    def train(arguments: list[str]) -> int:
        try:
            return trainer(arguments)
        finally:
            signal.signal(signal.SIGTERM, lambda *_: None)

    return train


def main(argv: list[str] | None = None) -> int:
    """Trains one run; returns the exit code that the module describes."""
    parser = argparse.ArgumentParser(prog="sweeps.executors.job", description=__doc__)
    parser.add_argument("root", type=Path)
    parser.add_argument("run", nargs="?")
    parser.add_argument("--array")
    parser.add_argument("--index", type=int)
    parser.add_argument("--store", help="The token store on this machine, where it is not the spec's.")
    parser.add_argument("--trainer", default=worker.DEFAULT_TRAINER)
    options = parser.parse_args(argv)
    # Stopped before the trainer handles the signal: nothing has been computed, and this is not a failure.
    signal.signal(signal.SIGTERM, lambda *_: os._exit(run_folder.PREEMPTED_EXIT_STATUS))
    try:
        run_id = assigned_run(options.root, options.run, options.array, options.index)
        folder = spec.workdir(options.root, run_id)
        one = spec.read_spec(folder)
        arguments = spec.argv(replace(one, store=options.store or one.store), options.root)
        if int(os.environ.get("SLURM_NTASKS", "1")) > 1:  # the trainer joins them, as Slurm's variables say
            os.environ.setdefault("MSCALE_COORDINATOR", "auto")
        trainer = _ending_in_peace(worker.load_trainer(options.trainer))
        if os.environ.get("MSCALE_PROCESS_ID", os.environ.get("SLURM_PROCID", "0")) != "0":
            return trainer(arguments)  # the first process alone writes to the folder
        reason = worker.train_run(folder, arguments, trainer)
    except MscaleError as error:
        reason = str(error)
    if reason is not None:
        print(f"error: {reason}", file=sys.stderr)
    return 0 if reason is None else 1


if __name__ == "__main__":
    from mscale.training.distributed import exit_at_once_on_error

    with exit_at_once_on_error():
        sys.exit(main())
