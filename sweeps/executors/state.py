"""State of a study, read from its folder alone: ``study.json``, and a folder ``runs/<id>`` for each run.

``mscale.run_folder`` says what a run's folder holds.
"""

import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from mscale import liveness, run_folder
from mscale.data.store import open_store
from mscale.errors import MscaleError
from mscale.files import atomic_json, read_json, read_json_as
from mscale.scales import training_flops
from sweeps import run_graph, spec, study
from sweeps.spec import RunSpec
from sweeps.study import Study

if TYPE_CHECKING:
    from rich.table import Table

STATES = ("done", "running", "stalled", "failed", "blocked", "waiting", "interrupted")
STALL_SECONDS = 1800.0  # a live process is stalled when status.json has not changed for so long
CANCELLED_REASON = "cancelled; `mscale sweep retry` takes it up again"


@dataclass(frozen=True)
class RunState:
    """State of one run.

    Attributes:
      state: one of ``STATES``. running: a live process trains it. stalled: as running, without progress for
        ``STALL_SECONDS``. blocked: a run that it starts from failed. interrupted: begun, and no process trains it.
      step: last step, between the spec's start_step and steps.
      reason: why it failed, stalls or is blocked, else "".
      log: of a failed run, the last lines of its log.
    """

    spec: RunSpec
    state: str
    step: int
    tokens_per_second: float
    reason: str
    log: tuple[str, ...] = ()

    @property
    def tokens_done(self) -> int:
        """Tokens computed so far."""
        steps = self.spec.steps - self.spec.start_step
        return self.spec.tokens * max(0, self.step - self.spec.start_step) // steps if steps else 0


def read_run(run: RunSpec, root: str | Path) -> RunState:
    """The state of one run, from its folder."""
    folder = spec.workdir(root, run.id)
    status = run_folder.read_status(folder)
    step = min(status.step or run.start_step, run.steps)
    reason = "" if status.state else status.reason  # a damaged status.json
    if status.state == "done" and step == run.steps:
        reason = _left_undone(run, folder)
        if not reason:
            return RunState(run, "done", run.steps, status.tokens_per_second, "")
    if process := liveness.holder(folder):
        silent = time.time() - max(status.updated, process.began)
        if silent > STALL_SECONDS:
            return RunState(run, "stalled", step, 0.0, f"no progress for {silent:,.0f} s")
        if future := liveness.from_the_future(folder, process, status.updated):
            return RunState(run, "stalled", step, 0.0, future)
        return RunState(run, "running", step, status.tokens_per_second, "")
    if failure := run_folder.read_failure(folder):
        return RunState(run, "failed", step, 0.0, failure.reason, failure.log)
    return RunState(run, "interrupted" if status.state else "waiting", step, 0.0, reason)


def _left_undone(run: RunSpec, folder: Path) -> str:
    """What a run lacks whose status is done: its observations, or branch points that the study was given since."""
    if not run_folder.has_observations(folder):
        return f"{folder / run_folder.OBSERVATIONS_FILE} is missing or empty; the run is trained again"
    path = folder / run_folder.RUN_FILE
    if run.kind != "trunk" or not path.exists():
        return ""
    try:
        recorded = read_json_as(path, _Recorded, what="run").checkpoint_steps
    except MscaleError as error:
        return str(error)
    new = set(run.bindings.get("CHECKPOINT_STEPS") or ()) - set(recorded)
    return f"it has no checkpoints at {', '.join(map(str, sorted(new)))} yet" if new else ""


@dataclass(frozen=True)
class _Recorded:
    """The part of run.json that says whether a trunk has all its branch points."""

    checkpoint_steps: tuple[int, ...] = ()


def read_states(runs: Sequence[RunSpec], root: str | Path) -> dict[str, RunState]:
    """Run id to state; a run that starts from a failed or blocked run is blocked."""
    states = {run.id: read_run(run, root) for run in runs}
    for run in run_graph.topological_order(runs):
        parent = states.get(run.parent or "")
        if (
            parent
            and parent.state in ("failed", "blocked")
            and states[run.id].state in ("waiting", "interrupted")
        ):
            states[run.id] = RunState(run, "blocked", run.start_step, 0.0, f"{parent.spec.id} failed")
    return states


def load_study(root: str | Path) -> Study:
    """Reads the study that ``root`` was started with.

    Raises:
      MscaleError: there is none, or the file is damaged.
    """
    return read_json_as(Path(root) / "study.json", Study, what="study (`mscale sweep run` starts one)")


def save_study(planned: Study, root: str | Path) -> Study:
    """Writes the study and the specs of its runs to ``root``; returns it as it is written.

    A study that was begun there grows: it keeps its cells and gets those of the planned one, its trunks become longer,
    and its runs keep their ids, also those that an earlier version of mscale gave them.

    Raises:
      MscaleError: runs have been started there, and the planned study trains some of their cells in another way. The
        folder of the token store may differ.
    """
    path = Path(root) / "study.json"
    if path.exists():
        before = load_study(root)
        planned = _with_earlier_ids(planned, before, root)
        if any((Path(root) / "runs").glob(f"*/{run_folder.STATUS_FILE}")):
            if change := difference(before, planned):
                raise MscaleError(
                    f"{path}: this study was begun with another definition ({change}); go on with the old one, "
                    "or choose another folder for the new one"
                )
            planned = study.grown(before, planned)
    atomic_json(path, planned)
    for run in planned.runs:
        folder = spec.workdir(root, run.id)
        try:
            written = spec.read_spec(folder) == run
        except MscaleError:
            written = False
        if not written:
            atomic_json(folder / run_folder.SPEC_FILE, run)
    return planned


def _with_earlier_ids(planned: Study, before: Study, root: str | Path) -> Study:
    """The planned study with the ids of ``study.with_ids_of``, after a check that the store holds the same text.

    Raises:
      MscaleError: a run that keeps an earlier id was begun on other text.
    """
    renamed = study.with_ids_of(planned, before)
    for run in renamed.runs:
        path = spec.workdir(root, run.id) / run_folder.RUN_FILE
        if run.id not in planned.by_id and path.exists():
            recorded = read_json(path, what="run")
            languages = {*recorded["mixture"]["languages"], *recorded["eval_languages"]}
            if open_store(run.store).data_hash(languages) != recorded["data"]:
                raise MscaleError(
                    f"{path}: this run was begun on other text of {', '.join(sorted(languages))} than {run.store} "
                    "holds; give the store that the study was begun with, or choose another folder"
                )
    return renamed


def difference(before: Study, after: Study) -> str:
    """Describes what the later study does otherwise than the earlier one; "" if the two can be one study."""
    if before.name != after.name:
        return f"it was study {before.name!r}, now {after.name!r}"
    new = {(study.stem(run.id), run.kind): run for run in after.runs if run.id not in before.by_id}
    gone = [run for run in before.runs if run.id not in after.by_id]
    for run in gone:
        if twin := new.get((study.stem(run.id), run.kind)):
            detail = f"{len(gone)} of its runs are gone and {len(new)} are new"
            return f"{detail}; {study.stem(run.id)}: {_changed(run, twin)}"
    for run in before.runs:
        other = after.by_id.get(run.id, run)
        for name in ("tag", "group"):
            if getattr(run, name) != getattr(other, name):
                return f"{name} of {run.id} was {getattr(run, name)!r}, now {getattr(other, name)!r}"
    return ""


def _changed(before: RunSpec, after: RunSpec) -> str:
    for name in sorted({*before.bindings, *after.bindings}):
        old, new = before.bindings.get(name), after.bindings.get(name)
        if old != new:
            return f"{name} was {old!r}, now {new!r}"
    if before.parent != after.parent:
        return f"it starts from {after.parent}, no longer from {before.parent}"
    return "a gin file or the token store has other content now"


# ---------------------------------------------------------------------------------------------------------
# Tables


def status_table(root: str | Path) -> "Table":
    """Returns a ``rich`` table of counts by tag and state; its caption is ``status_lines``."""
    from rich.table import Table

    planned = load_study(root)
    states = read_states(planned.runs, root)
    table = Table(title=f"Study {planned.name}", title_justify="left", caption_justify="left")
    table.add_column("tag")
    shown = [name for name in STATES if name == "done" or any(one.state == name for one in states.values())]
    for name in ("runs", *shown, "tokens", "FLOPs"):
        table.add_column(name, justify="right", no_wrap=True)
    tags = dict.fromkeys(run.tag for run in planned.runs)
    for tag in (*tags, None):
        chosen = [state for state in states.values() if tag is None or state.spec.tag == tag]
        if tag is None:
            table.add_section()
        counts = [sum(state.state == name for state in chosen) for name in shown]
        table.add_row(
            tag or "total",
            f"{len(chosen):,}",
            *(f"{count:,}" if count else "" for count in counts),
            _share_done(
                sum(state.tokens_done for state in chosen), sum(state.spec.tokens for state in chosen)
            ),
            _share_done(
                sum(flops_done(state) for state in chosen), sum(state.spec.flops for state in chosen)
            ),
        )
    table.caption = "\n".join(status_lines(root, states))
    return table


def _share_done(done: int, total: int) -> str:
    return f"{done / max(total, 1):.0%} of {total:.3g}"


def status_lines(root: str | Path, states: dict[str, RunState]) -> list[str]:
    """Running runs with their speed, the remaining time, failures with their reasons, and the runner."""
    lines = []
    running = [state for state in states.values() if state.state == "running"]
    for state in running:
        lines.append(
            f"running {state.spec.id}: step {state.step:,} of {state.spec.steps:,}, "
            f"{state.tokens_per_second:,.0f} tokens/s"
        )
    remaining = sum(
        state.spec.flops - flops_done(state) for state in states.values() if state.state != "failed"
    )
    speed = sum(training_flops(state.spec.params, state.tokens_per_second) for state in running)
    if running and speed:
        lines.append(f"{speed:.3g} FLOP/s; about {remaining / speed:,.0f} s left")
    for state in states.values():
        if state.reason and state.state != "blocked":
            lines.append(f"{state.state} {state.spec.id}: {state.reason}")
    if runner := liveness.holder(Path(root)):
        lines.append(f"runner: process {runner.pid} on {runner.host}")
    elif remaining:
        lines.append("no runner is working on it; `mscale sweep run` continues")
    return lines


def flops_done(state: RunState) -> int:
    """Training compute that a run has done so far."""
    return training_flops(state.spec.params, state.tokens_done)
