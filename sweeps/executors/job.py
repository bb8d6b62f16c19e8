"""One run as one job of a cluster: ``python -m sweeps.executors.job ROOT RUN``, or ``ROOT --array NAME --index I``.

The job reads its spec from the run's folder and trains it with ``worker.train_run``, as every executor does; all
results are in that folder. Exit code: 0 when the run is done, 143 when it was stopped and has saved its state (to be
queued again), else 1.
"""

import argparse
import os
import signal
import sys
from pathlib import Path

from mscale import run_folder
from mscale.errors import MscaleError
from mscale.files import read_json
from sweeps import spec
from sweeps.executors import worker


def assigned_run(root: Path, run_id: str | None, array: str | None, index: int | None) -> str:
    """The id of the run that this job trains: as named, or the ``index``-th of a submitted array.

    Raises:
      MscaleError: neither is given, or the array has no such element.
    """
    if run_id is not None:
        return run_id
    if array is None or index is None:
        raise MscaleError("sweeps.executors.job: give a run's id, or --array NAME --index I")
    listed = read_json(root / "slurm" / f"{array}.json", what="list of an array's runs")["runs"]
    if not 0 <= index < len(listed):
        raise MscaleError(f"{root}/slurm/{array}.json: has {len(listed)} runs, asked for is number {index}")
    return listed[index]


def start_distributed() -> None:
    """Joins the processes of one run, where there are several: Slurm's tasks, or those of a JobSet's variables."""
    if os.environ.get("MSCALE_COORDINATOR"):
        from mscale.training import distributed

        distributed.initialize()
    elif int(os.environ.get("SLURM_NTASKS", "1")) > 1 and "SLURM_PROCID" in os.environ:
        import jax

        jax.distributed.initialize()  # reads Slurm's own variables


def main(argv: list[str] | None = None) -> int:
    """Trains one run; returns the exit code that the module describes."""
    parser = argparse.ArgumentParser(prog="sweeps.executors.job", description=__doc__)
    parser.add_argument("root", type=Path)
    parser.add_argument("run", nargs="?")
    parser.add_argument("--array")
    parser.add_argument("--index", type=int)
    parser.add_argument("--trainer", default=worker.DEFAULT_TRAINER)
    options = parser.parse_args(argv)
    # Stopped before the trainer handles the signal: nothing has been computed, and this is not a failure.
    signal.signal(signal.SIGTERM, lambda *_: os._exit(run_folder.PREEMPTED_EXIT_STATUS))
    try:
        run_id = assigned_run(options.root, options.run, options.array, options.index)
        folder = spec.workdir(options.root, run_id)
        one = spec.spec_from_json(
            read_json(folder / "spec.json", what="run spec"), where=str(folder / "spec.json")
        )
        start_distributed()
        trainer = worker.load_trainer(options.trainer)
        arguments = spec.argv(one, options.root)
        first = os.environ.get("MSCALE_PROCESS_ID", os.environ.get("SLURM_PROCID", "0")) == "0"
        if first:
            reason = worker.train_run(folder, arguments, trainer)
        else:  # the other processes write nothing
            code = trainer(arguments)
            reason = f"the trainer returned {code}" if code else None
    except MscaleError as error:
        reason = str(error)
    if reason is not None:
        print(f"error: {reason}", file=sys.stderr)
    return 0 if reason is None else 1


if __name__ == "__main__":
    sys.exit(main())
