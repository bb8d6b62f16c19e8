"""The local executor: dependencies, pinning, failures, killed processes, signals; no run is lost or done twice."""

import dataclasses
import os
import random
import signal
import time
from pathlib import Path

import pytest
from local_runs import FAKE_TRAINER, FAKES, fake_trainer_on_path, small_study, start_runner, wait_for  # noqa: F401
from studies import RECIPE, FakeStore, cell, make

from mscale import observations
from mscale.errors import MscaleError
from sweeps import spec
from sweeps.build import build_study
from sweeps.collecting.collect import collect
from sweeps.executors import local, pool, state
from sweeps.study import Cell


def began(root, run) -> list[str]:
    return (spec.workdir(root, run.id) / "began.txt").read_text().splitlines()


def test_every_run_is_trained_once_with_parents_first(tmp_path):
    study = small_study()
    summary = local.run(study, tmp_path, workers=2, trainer=FAKE_TRAINER)
    assert summary.trained == len(study.runs) and summary.deaths == 0
    assert all(one.state == "done" for one in state.read_states(study.runs, tmp_path).values())
    assert all(len(began(tmp_path, one)) == 1 for one in study.runs)
    assert summary.peak_memory_bytes > 1e6
    again = local.run(study, tmp_path, workers=2, trainer=FAKE_TRAINER)
    assert (again.trained, again.skipped) == (0, len(study.runs))
    assert not (tmp_path / "heartbeat.json").exists()


def test_workers_are_pinned_to_cores_of_their_own(tmp_path):
    study = small_study()
    local.run(study, tmp_path, workers=2, trainer=FAKE_TRAINER)
    places = {line.split(" ", 1)[1] for one in study.runs for line in began(tmp_path, one)}
    assert places == {f"[{core}]" for core in sorted(os.sched_getaffinity(0))[:2]}


def test_workers_find_the_packages_from_any_folder(tmp_path):
    first, *_ = pool.worker_environment(tmp_path, 1)["PYTHONPATH"].split(os.pathsep)
    assert all((Path(first) / name / "__init__.py").is_file() for name in ("mscale", "sweeps"))


def test_a_shape_stays_with_the_worker_that_compiled_it():
    study = small_study()
    by_scale = {name: [one for one in study.runs if name in one.shape] for name in ("nano1", "nano2")}
    remaining = {one.id: one.flops for one in study.runs}
    (one, *_), (other, *_) = by_scale["nano1"], by_scale["nano2"]
    chosen = pool.next_run_for_worker(study.runs, {one.shape}, {other.shape}, remaining)
    assert chosen.shape == one.shape
    assert pool.next_run_for_worker(study.runs, set(), {other.shape}, remaining).shape == one.shape
    assert (
        pool.next_run_for_worker(by_scale["nano2"], {one.shape}, {other.shape}, remaining).shape
        == other.shape
    )
    assert pool.next_run_for_worker([], set(), set(), {}) is None


def test_failures_are_reported_together_and_their_children_not_started(tmp_path, monkeypatch):
    study = small_study()
    monkeypatch.setenv("FAKE_FAIL", "nano1-en-trunk")
    with pytest.raises(MscaleError, match="1 of 13 runs failed, and 3 that start from them") as error:
        local.run(study, tmp_path, workers=2, trainer=FAKE_TRAINER)
    assert "was told to fail" in str(error.value) and "log.txt" in str(error.value)
    states = state.read_states(study.runs, tmp_path).values()
    assert [sum(one.state == name for one in states) for name in ("done", "failed", "blocked")] == [9, 1, 3]
    failed = next(one for one in states if one.state == "failed")
    assert any("training nano1" in line for line in failed.log)
    monkeypatch.delenv("FAKE_FAIL")
    assert local.run(study, tmp_path, workers=2, trainer=FAKE_TRAINER).trained == 4


def test_a_run_that_kills_its_workers_fails_after_three(tmp_path, monkeypatch):
    study = small_study()
    monkeypatch.setenv("FAKE_DIE", "nano1-en-trunk")
    with pytest.raises(MscaleError, match="its worker died 3 times, at last with signal 9"):
        local.run(study, tmp_path, workers=2, trainer=FAKE_TRAINER)
    trunk = next(one for one in study.runs if one.id.startswith("nano1-en-trunk"))
    assert len(began(tmp_path, trunk)) == 3
    assert sum(one.state == "done" for one in state.read_states(study.runs, tmp_path).values()) == 9


def test_a_trainer_that_cannot_be_loaded_is_named(tmp_path):
    with pytest.raises(MscaleError, match="cannot load the trainer no_such_module:main"):
        local.run(make(cell(steps=(20,))), tmp_path, workers=1, trainer="no_such_module:main")


def test_changed_study_is_refused_once_begun(tmp_path):
    before, after = make(cell()), make(cell(), learning_rate=0.02)
    state.save_study(before, tmp_path)
    state.save_study(after, tmp_path)  # nothing has been trained yet
    local.run(after, tmp_path, workers=1, trainer=FAKE_TRAINER)
    with pytest.raises(MscaleError, match="LEARNING_RATE was 0.02, now 0.01"):
        local.run(before, tmp_path, workers=1, trainer=FAKE_TRAINER)
    moved = make(cell(), learning_rate=0.02, store=FakeStore(path="/elsewhere"))
    assert local.run(moved, tmp_path, workers=1, trainer=FAKE_TRAINER).skipped == len(moved.runs)
    retagged = dataclasses.replace(
        after, runs=tuple(dataclasses.replace(one, tag="other") for one in after.runs)
    )
    with pytest.raises(MscaleError, match="was 'mono', now 'other'"):
        local.run(retagged, tmp_path, workers=1, trainer=FAKE_TRAINER)


def test_a_study_goes_on_with_more_runs_and_longer_budgets(tmp_path):
    recipe = dict(gin_files=("gin/train/pretrain.gin",))
    small = make(cell(steps=(20, 50)), **recipe)
    local.run(small, tmp_path, workers=1, trainer=FAKE_TRAINER)
    large = make(cell(steps=(20, 50, 100)), cell(mixture="fr", steps=(20,)), **recipe)
    assert set(small.by_id) < set(large.by_id) and len(large.runs) == 5
    summary = local.run(large, tmp_path, workers=1, trainer=FAKE_TRAINER)
    trunk = next(one for one in large.runs if one.kind == "trunk")
    assert (
        summary.trained == 3 and summary.skipped == 2
    )  # the longer trunk, its new branch, and the new language
    assert len(began(tmp_path, trunk)) == 2
    steps = [
        row["step"] for row in observations.read_rows(spec.workdir(tmp_path, trunk.id) / "observations.jsonl")
    ]
    assert steps == sorted(set(steps)) and max(steps) == 90  # rows of the shorter trunk are kept, none twice
    # A study of other cells on the same folder adds to it; nothing is lost, and nothing trained again.
    assert local.run(small, tmp_path, workers=1, trainer=FAKE_TRAINER).trained == 0
    assert set(state.load_study(tmp_path).by_id) == set(large.by_id)
    other = make(cell(mixture="fr", steps=(20, 40)), **recipe)
    assert local.run(other, tmp_path, workers=1, trainer=FAKE_TRAINER).trained == 3
    # The cell of French has several budgets now: what was a run of its own is a branch, and counts once.
    whole = state.load_study(tmp_path)
    assert sorted(run.kind for run in whole.runs) == ["branch"] * 5 + ["trunk"] * 2
    assert state.load_study(tmp_path).by_id[trunk.id].steps == 90


def test_a_study_begun_by_an_earlier_version_keeps_its_ids(tmp_path):
    """Ids were hashes of other things; runs are recognised by what determines their result."""
    planned = make(
        cell(steps=(20, 50)), cell("continue", mixture="fr", steps=(20,), init=cell(steps=(20, 50)))
    )
    older = {run.id: f"{run.id[:-4]}{number:04}" for number, run in enumerate(planned.runs)}
    before = dataclasses.replace(
        planned,
        runs=tuple(
            dataclasses.replace(
                run, id=older[run.id], group=older[run.group], parent=run.parent and older[run.parent]
            )
            for run in planned.runs
        ),
        ends=tuple(tuple(older[one] for one in ends) for ends in planned.ends),
    )
    state.save_study(before, tmp_path)
    assert state.save_study(planned, tmp_path) == before
    assert local.run(planned, tmp_path, workers=1, trainer=FAKE_TRAINER).trained == len(before.runs)
    assert state.read_states(before.runs, tmp_path).keys() == before.by_id.keys()
    other = make(cell(steps=(20, 50)), learning_rate=0.02)
    with pytest.raises(MscaleError, match="LEARNING_RATE was 0.01, now 0.02"):
        local.run(other, tmp_path, workers=1, trainer=FAKE_TRAINER)


def test_workers_must_be_positive(tmp_path):
    with pytest.raises(MscaleError, match="at least 1"):
        local.run(make(cell()), tmp_path, workers=-1, trainer=FAKE_TRAINER)


def test_unwritable_folder_is_one_clear_error(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(MscaleError, match="cannot write .*file"):
        local.run(make(cell()), tmp_path / "file", workers=1, trainer=FAKE_TRAINER)


# ---------------------------------------------------------------------------------------------------------
# A runner in a process of its own, to be killed


def children(pid: int) -> list[int]:
    try:
        return [int(one) for one in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
    except OSError:
        return []


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except OSError:
        return False


@pytest.mark.parametrize("how", [signal.SIGTERM, signal.SIGINT, signal.SIGKILL])
def test_workers_exit_with_their_runner(tmp_path, how):
    root, study = tmp_path / "study", small_study()
    runner = start_runner(study, root, seconds=30)
    workers = wait_for(lambda: any(root.glob("runs/*/began.txt")) and children(runner.pid))
    runner.send_signal(how)
    runner.communicate(timeout=20)
    assert runner.returncode == {signal.SIGTERM: 143, signal.SIGKILL: -9}.get(how, runner.returncode) != 0
    wait_for(lambda: not any(map(alive, workers)), seconds=5)
    assert (root / "heartbeat.json").exists() == (how == signal.SIGKILL)

    def states() -> set[str]:
        return {one.state for one in state.read_states(study.runs, root).values()}

    # The kernel releases a run's lock with the last thread of its process, after the process is a zombie.
    wait_for(lambda: "running" not in states(), seconds=5)
    assert "done" not in states()


def test_a_second_runner_on_one_folder_is_refused(tmp_path):
    root, study = tmp_path / "study", small_study()
    runner = start_runner(study, root, seconds=30)
    wait_for(lambda: any(root.glob("runs/*/began.txt")))
    with pytest.raises(MscaleError, match=f"another runner works on this study \\(process {runner.pid}"):
        local.run(study, root, workers=1, trainer=FAKE_TRAINER)
    assert any(one.state == "running" for one in state.read_states(study.runs, root).values())
    runner.kill()
    runner.communicate()
    assert local.run(study, root, workers=2, trainer=FAKE_TRAINER).trained == len(study.runs)


def many(seeds: int = 1):
    """About 200 runs for each seed: 5 scales × 9 mixtures of trunk and branches, and runs that continue checkpoints."""
    names = ["en", "fr", "hi", "en+fr", "en+hi", "fr+hi", "en=0.7+fr=0.3", "en=0.2+hi=0.8", "en+fr+hi"]
    cells = [
        Cell("grid", f"nano{scale}", name, tuple(32 * steps for steps in (20, 50, 100)), seed)
        for seed in range(seeds)
        for scale in range(5)
        for name in names
    ]
    cells += [
        Cell("continue", one.scale, "hi", (32 * 20, 32 * 40), one.seed, init=one) for one in cells[3::9]
    ]
    cells += [Cell("continue", one.scale, "en", (32 * 20,), one.seed, init=one) for one in cells[4:30:9]]
    return build_study("many", cells, RECIPE, FakeStore())


def test_nothing_is_lost_or_counted_twice_when_workers_and_runner_are_killed_at_random(tmp_path):
    study = many()
    assert len(study.runs) >= 195
    disturb(study, tmp_path, deaths=12)


@pytest.mark.slow
def test_nothing_is_lost_of_a_thousand_runs(tmp_path):
    study = many(seeds=6)
    assert len(study.runs) >= 1_000
    disturb(study, tmp_path, deaths=60)


def disturb(study, tmp_path, deaths: int) -> None:
    """Runs the study twice, the second time killing workers and runner ``deaths`` times, and compares the tables."""
    undisturbed, root = tmp_path / "undisturbed", tmp_path / "disturbed"
    local.run(study, undisturbed, workers=3, trainer=FAKE_TRAINER)
    whole = collect(undisturbed)
    assert whole.runs == len(study.runs) and not whole.missing

    random_numbers = random.Random(int(os.environ.get("FAULT_SEED", "1")))

    def done() -> int:
        return sum(one.state == "done" for one in state.read_states(study.runs, root).values())

    # Kills are triggered by progress, not by time, so that all happen on machines of any speed. Every third one
    # kills the runner itself.
    kills, runner, at = 0, start_runner(study, root, workers=3), 0
    while runner.poll() is None:
        if kills < deaths and done() >= at:
            victims = children(runner.pid)
            if kills % 3 == 2:
                runner.kill()
                runner.communicate()
                runner = start_runner(study, root, workers=3)
            elif victims:
                os.kill(random_numbers.choice(victims), signal.SIGKILL)
            else:
                continue
            kills += 1
            at = done() + random_numbers.randint(4, 12)
        time.sleep(0.01)
    runner.communicate()
    assert runner.returncode == 0 and kills == deaths
    assert collect(root) == whole
    for name in ("observations.parquet", "observations.csv", "exposure.parquet", "exposure.csv"):
        assert (root / name).read_bytes() == (undisturbed / name).read_bytes()


def test_real_training_end_to_end(tmp_path):
    """Two trunks of the smallest model with the real trainer, two branches off each; one trunk continues the other."""
    import gzip
    import json

    from mixtures.packing.pack import pack
    from mscale.data.vocabulary import byte_vocabulary
    from sweeps.build import Recipe

    for name, text in (("en", "the cat sat on the mat. "), ("fr", "le chat est sur la table. ")):
        folder = tmp_path / "corpus" / "data" / name
        folder.mkdir(parents=True)
        with gzip.open(folder / f"{name}_clean_0000.jsonl.gz", "wt") as file:
            for index in range(150):
                file.write(json.dumps({"text": f"{index} " + text * 5}) + "\n")
    store = pack(tmp_path / "corpus", tmp_path / "store", byte_vocabulary(), processes=1)
    recipe = Recipe(
        sequence_length=16,
        batch_size=2,
        learning_rate=0.01,
        warmup_steps=2,
        evaluations=2,
        unimax_budget=1280,
        bindings={"EVAL_TOKENS": 256, "PROGRESS": False},
    )
    unimax = Cell("unimax", "nano0", "unimax", (32 * 10, 32 * 20))
    cells = [unimax, Cell("continue", "nano0", "fr", (32 * 10, 32 * 20), init=unimax, evaluate=("en", "fr"))]
    study = build_study("tiny", cells, recipe, store)
    root = tmp_path / "study"
    summary = local.run(study, root, workers=1)
    assert summary.trained == len(study.runs) == 6
    found = collect(root)
    assert found.runs == 6 and not found.missing
    import pyarrow.parquet as pq

    table = pq.read_table(root / "observations.parquet").to_pylist()
    ends = [row for row in table if row["phase"] == "end"]
    assert {(row["tag"], row["tokens"]) for row in ends} == {
        ("unimax", 320),
        ("unimax", 640),
        ("continue", 320),
        ("continue", 640),
    }
    assert {row["init"] for row in ends if row["tag"] == "continue"} == {study.ends[0][-1]}
    assert {row["group"] for row in table} == {study.runs[0].id}
