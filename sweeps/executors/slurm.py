"""Runs a study on a Slurm cluster: plain ``sbatch`` arrays, with Slurm's own dependencies and requeueing.

Runs that start from the same run are one array, which depends on that run's array element (``afterok``). So each run
starts as soon as its parent is done, and no process has to stay alive on the login node. ``squeue`` says what is queued
(no accounting is needed), the run folders what is done. The list of an array's runs is written before the array is
submitted and named in the job's comment, so a runner that dies between the two loses nothing.

Preemption: arrays are submitted with ``--requeue``. Before a time limit Slurm signals the job, which saves its state
and queues itself again; the run continues from its last checkpoint.
"""

import hashlib
import shlex
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from mscale import run_folder
from mscale.errors import MscaleError
from mscale.files import atomic_json, atomic_write, read_json_as
from mscale.liveness import study_lock
from mscale.remote import local_folder
from sweeps import run_graph, spec
from sweeps.executors import cluster, state
from sweeps.executors.worker import DEFAULT_TRAINER
from sweeps.spec import RunSpec
from sweeps.study import Study

SCHEDULER_ATTEMPTS = 4  # calls of a command of Slurm, which sometimes does not answer in time
SCHEDULER_TIMEOUT_SECONDS = 60.0
ARRAY_SIZE = 1000  # Slurm's default MaxArraySize is 1001
_NO_SLURM = "run this on a login node of the cluster, or use --executor local"
WARNING_SECONDS = 120  # of warning before a time limit, in which a run saves its state


@dataclass(frozen=True)
class Options:
    """Options of every job, see sbatch(1); None leaves a choice to the cluster.

    Attributes:
      time: limit of one job, such as "12:00:00"; a run that needs longer continues in a new job.
      nodes, tasks_per_node: processes of one run; several are joined by ``jax.distributed``.
      gpus: per node; cpus: per task; memory: per node, such as "64G".
      running: most jobs of an array that run at once.
      logs: folder of Slurm's own output files; default ``<root>/logs``. Each run's log is in its folder.
      setup: shell lines before the run, such as "module load cuda".
      extra: further arguments of sbatch.
      python: the interpreter on the nodes.
    """

    partition: str | None = None
    account: str | None = None
    qos: str | None = None
    time: str | None = None
    nodes: int = 1
    tasks_per_node: int = 1
    gpus: int | None = None
    cpus: int | None = None
    memory: str | None = None
    running: int | None = None
    logs: str | None = None
    setup: tuple[str, ...] = ()
    extra: tuple[str, ...] = ()
    python: str = sys.executable


@dataclass(frozen=True)
class Submission:
    """What a call of ``submit`` did.

    Attributes:
      runs: submitted by it; queued, done: before it.
      arrays: job ids of the new arrays.
    """

    runs: int
    queued: int
    done: int
    arrays: tuple[str, ...] = field(default=())


def submit(
    study: Study,
    root: str | Path,
    options: Options | None = None,
    *,
    trainer: str = DEFAULT_TRAINER,
) -> Submission:
    """Queues every run that is neither done nor queued, parents first.

    Args:
      root: the study's folder, on a file system that the nodes see.
      trainer: as for ``local.run``.

    Raises:
      MscaleError: the scheduler cannot be reached or refuses, another runner works on the folder, or the folder
        holds a different study.
    """
    root = _root_of_jobs(root)
    with study_lock(root):
        return _submit(state.save_study(study, root), root, options or Options(), trainer)


def _root_of_jobs(root: str | Path) -> Path:
    """The study's folder, absolute, once Slurm is found and could name it: an error leaves nothing behind.

    Raises:
      MscaleError: Slurm's programs are not installed here, or the folder's name has a line break.
    """
    for program in ("squeue", "sbatch"):
        cluster.require_program(program, _NO_SLURM)
    return _one_line(local_folder(root, "--root").resolve())


def _one_line(root: Path) -> Path:
    if "\n" in str(root):
        raise MscaleError(
            f"--root is {str(root)!r}: a job's script cannot hold a line break; choose another folder"
        )
    return root


def _submit(study: Study, root: Path, options: Options, trainer: str) -> Submission:
    """``submit``, with the study saved and its folder held."""
    states = state.read_states(study.runs, root)
    jobs = queued_jobs(root)
    done = {run.id for run in study.runs if states[run.id].state == "done"}
    cancelled = {run.id for run in study.runs if run_folder.is_cancelled(spec.workdir(root, run.id))}
    for run in run_graph.longest_chain_first(study.runs):  # and runs that start from a cancelled one
        if run.parent in cancelled and run.id not in done:
            cancelled.add(run.id)
    skipped = {*done, *jobs, *cancelled}
    todo = [run for run in run_graph.longest_chain_first(study.runs) if run.id not in skipped]
    for run in todo:  # a failed run is tried again: its cause may be fixed
        run_folder.clear_failure(spec.workdir(root, run.id))
    script = root / "slurm" / "job.sh"
    atomic_write(script, job_script(root, options, trainer))
    logs = Path(options.logs or root / "logs")
    logs.mkdir(parents=True, exist_ok=True)
    job_ids = dict(jobs)
    arrays = []
    for parent, chunk in _chunks(todo):
        if parent is not None and parent not in done and parent not in job_ids:
            raise MscaleError(f"{root}: run {parent} is neither done nor queued; submit the study again")
        after = job_ids.get(parent or "")
        array = _array_name(root, chunk)
        atomic_json(root / "slurm" / f"{array}.json", _Array([run.id for run in chunk]))
        job = _sbatch(_sbatch_command(root, array, chunk, after, options))
        job_ids.update({run.id: f"{job}_{index}" for index, run in enumerate(chunk)})
        arrays.append(job)
    return Submission(len(todo), len(jobs), len(done), tuple(arrays))


def dry_run(study: Study, root: str | Path, options: Options, *, trainer: str = DEFAULT_TRAINER) -> str:
    """The batch script of every array, and as comments below it the calls of sbatch for runs that are not done.

    It asks nothing of Slurm: runs that are queued already are listed too.
    """
    root = _one_line(local_folder(root, "--root").resolve())
    states = state.read_states(study.runs, root)
    todo = [run for run in run_graph.longest_chain_first(study.runs) if states[run.id].state != "done"]
    chunks = _chunks(todo)
    jobs: dict[str, str] = {}
    lines = [f"# {len(todo):,} of {len(study.runs):,} runs are not done: {len(chunks):,} arrays"]
    for number, (parent, chunk) in enumerate(chunks):
        command = _sbatch_command(root, f"array{number}", chunk, jobs.get(parent or ""), options)
        lines.append(f"# {shlex.join(command)}")
        jobs.update({run.id: f"array{number}_{index}" for index, run in enumerate(chunk)})
    return job_script(root, options, trainer) + "\n".join(lines) + "\n"


def run(
    study: Study,
    root: str | Path,
    options: Options | None = None,
    *,
    trainer: str = DEFAULT_TRAINER,
    attempts: int = 3,
    poll_seconds: float = 10.0,
) -> None:
    """Submits the study and waits until it ends, showing progress; after an interrupt the jobs stay queued.

    Runs whose jobs vanished (a node died and the cluster does not requeue) are submitted again, up to ``attempts``
    times.

    Raises:
      MscaleError: as ``submit``, or runs failed.
    """
    root = _root_of_jobs(root)
    options = options or Options()
    resubmissions: dict[str, int] = {}
    with study_lock(root), cluster.terminable(), cluster.study_progress(study, "Slurm") as show:
        study = state.save_study(study, root)
        _submit(study, root, options, trainer)
        while True:
            states = state.read_states(study.runs, root)
            jobs = queued_jobs(root)
            show(states, f", {len(jobs)} queued")
            vanished = [
                one.spec.id
                for one in states.values()
                if one.spec.id not in jobs and one.state in ("waiting", "interrupted", "stalled")
            ]
            if not jobs:
                vanished = [one for one in vanished if resubmissions.get(one, 0) < attempts]
                if not vanished:
                    break
                for one in vanished:
                    resubmissions[one] = resubmissions.get(one, 0) + 1
                _submit(study, root, options, trainer)
            time.sleep(poll_seconds)
    cluster.require_done(states, "Mend the cause and call the same command again.")


@dataclass(frozen=True)
class _Array:
    """The runs of a submitted array, by element."""

    runs: list[str]


def array_runs(root: Path, array: str) -> list[str]:
    """Ids of the runs of a submitted array, by element.

    Raises:
      MscaleError: there is no such array.
    """
    remedy = "scancel the jobs with that comment, delete it and run the study again"
    path = root / "slurm" / f"{array}.json"
    return read_json_as(path, _Array, what="list of an array's runs", remedy=remedy).runs


def _chunks(runs: Sequence[RunSpec]) -> list[tuple[str | None, list[RunSpec]]]:
    """The arrays: runs by the run that they start from, in the order given, at most ``ARRAY_SIZE`` each."""
    groups: dict[str | None, list[RunSpec]] = {}
    for one in runs:
        groups.setdefault(one.parent, []).append(one)
    return [
        (parent, siblings[start : start + ARRAY_SIZE])
        for parent, siblings in groups.items()
        for start in range(0, len(siblings), ARRAY_SIZE)
    ]


def _array_name(root: Path, runs: Sequence[RunSpec]) -> str:
    text = f"{root} {time.time_ns()} {[run.id for run in runs]}"
    return f"mscale-{_study_key(root)}-{hashlib.sha256(text.encode()).hexdigest()[:12]}"


def _study_key(root: Path) -> str:
    """A hash of the folder, which distinguishes its jobs from other jobs in the queue."""
    return hashlib.sha256(str(root).encode()).hexdigest()[:10]


def job_script(root: Path, options: Options, trainer: str) -> str:
    """The batch script of every array; its first argument is the array's name, Slurm gives the element.

    ``USR1`` is the warning before a time limit: the run saves its state and the job queues itself again. ``TERM`` is a
    preemption or a cancellation: the run saves its state, and Slurm decides whether to requeue the job.
    """
    packages = shlex.quote(
        str(Path(__file__).resolve().parents[2])
    )  # the folder that holds mscale and sweeps
    # srun starts one process a task; a single process needs no srun.
    launch = "srun --kill-on-bad-exit=1 " if options.nodes * options.tasks_per_node > 1 else ""
    setup = "\n".join(options.setup)
    return f"""#!/bin/bash
# Written by mscale; one element trains one run of {root}.
export PYTHONPATH={packages}${{PYTHONPATH:+:$PYTHONPATH}}
{setup}
again=0
{launch}{shlex.quote(options.python)} -m sweeps.executors.job {shlex.quote(str(root))} --array "$1" \\
  --index "$SLURM_ARRAY_TASK_ID" --trainer {shlex.quote(trainer)} &
child=$!
trap 'again=1; kill -TERM "$child"' USR1
trap 'kill -TERM "$child"' TERM
wait "$child"; code=$?
while kill -0 "$child" 2>/dev/null; do wait "$child"; code=$?; done
if [ "$again" = 1 ] && [ "$code" = {run_folder.PREEMPTED_EXIT_STATUS} ]; then
  scontrol requeue "${{SLURM_ARRAY_JOB_ID}}_${{SLURM_ARRAY_TASK_ID}}"
fi
exit "$code"
"""


def _sbatch_command(
    root: Path, array: str, runs: Sequence[RunSpec], after: str | None, options: Options
) -> list[str]:
    """The call of sbatch that submits one array, which starts once the job ``after`` has succeeded."""
    logs = str(options.logs or root / "logs").replace("%", "%%")
    throttle = f"%{options.running}" if options.running else ""
    command = [
        "sbatch",
        "--parsable",
        "--requeue",
        f"--array=0-{len(runs) - 1}{throttle}",
        f"--job-name={spec.slug(f'{runs[0].study}-{runs[0].tag}')}",
        f"--comment={array}",
        f"--output={logs}/slurm-%A_%a.out",
        "--open-mode=append",
        f"--nodes={options.nodes}",
        f"--ntasks-per-node={options.tasks_per_node}",
        f"--signal=B:USR1@{WARNING_SECONDS}",
    ]
    if after:
        command += [f"--dependency=afterok:{after}", "--kill-on-invalid-dep=yes"]
    for flag, value in (
        ("partition", options.partition),
        ("account", options.account),
        ("qos", options.qos),
        ("time", options.time),
        ("gpus-per-node", options.gpus),
        ("cpus-per-task", options.cpus),
        ("mem", options.memory),
    ):
        if value is not None:
            command.append(f"--{flag}={value}")
    return [*command, *options.extra, str(root / "slurm" / "job.sh"), array]


def _sbatch(command: Sequence[str]) -> str:
    """Submits one array and returns its job id."""
    # Not repeated without an answer: the array may have been queued, and the next `submit` sees it.
    answer = _call(command, attempts=1)
    job = answer.strip().splitlines()[-1].partition(";")[0] if answer.strip() else ""
    if not job.isdecimal():
        raise MscaleError(f"sbatch answered {answer.strip()!r}: expected the number of a job")
    return job


def queued_jobs(root: str | Path) -> dict[str, str]:
    """Run id to the id of its job, such as 12_3, for all queued or running jobs of the study in ``root``.

    Raises:
      MscaleError: the scheduler cannot be reached.
    """
    root = local_folder(root, "--root").resolve()
    prefix = f"mscale-{_study_key(root)}-"
    answer = _call(["squeue", "--noheader", "--array", "--format=%F_%K|%T|%k"])
    jobs: dict[str, str] = {}
    listed: dict[str, list[str]] = {}
    for line in answer.splitlines():
        job, name, array = line.strip().split("|", 2)
        if not array.startswith(prefix) or name in ("COMPLETED", "FAILED", "CANCELLED", "TIMEOUT"):
            continue
        if array not in listed:
            listed[array] = array_runs(root, array)
        jobs[listed[array][int(job.partition("_")[2])]] = job
    return jobs


def cancel(root: str | Path, runs: Sequence[str] | None = None) -> list[str]:
    """Removes runs (all of the study by default) from the queue; returns those that were in it.

    Raises:
      MscaleError: the scheduler cannot be reached.
    """
    jobs = queued_jobs(root)
    chosen = [run_id for run_id in (jobs if runs is None else runs) if run_id in jobs]
    for start in range(0, len(chosen), 200):
        _call(["scancel", *(jobs[run_id] for run_id in chosen[start : start + 200])])
    return chosen


def _call(command: Sequence[str], attempts: int = SCHEDULER_ATTEMPTS) -> str:
    return cluster.call(command, timeout=SCHEDULER_TIMEOUT_SECONDS, missing=_NO_SLURM, attempts=attempts)
