"""The Slurm executor without Slurm: scripts in place of its commands give a scheduler's possible answers."""

import os
import pickle
import re
import signal
import stat
import subprocess
import sys
from pathlib import Path

import pytest
from local_runs import wait_for
from studies import cell, make

from mscale.errors import MscaleError
from sweeps.executors import actions, job, slurm, state


@pytest.fixture
def fake(tmp_path, monkeypatch):
    """Replaces a command of Slurm by a script; calls.txt lists its calls."""
    folder = tmp_path / "bin"
    folder.mkdir()
    monkeypatch.setenv("PATH", f"{folder}:/usr/bin:/bin")
    monkeypatch.setattr(slurm.time, "sleep", lambda seconds: None)

    def script(name: str, body: str) -> None:
        path = folder / name
        path.write_text(f'#!/bin/bash\necho "$(basename "$0") $*" >> {tmp_path}/calls.txt\n{body}\n')
        path.chmod(path.stat().st_mode | stat.S_IEXEC)

    script("squeue", "")
    script("sbatch", f'n=$(grep -c ^sbatch {tmp_path}/calls.txt); echo "$((100 + n));cluster"')
    return script


def calls(tmp_path, name="sbatch") -> list[str]:
    return [line for line in (tmp_path / "calls.txt").read_text().splitlines() if line.startswith(name)]


def test_siblings_are_one_array_that_depends_on_their_parent_alone(tmp_path, fake):
    unimax = cell("unimax", mixture="en+fr", steps=(50,))
    study = make(cell(), unimax, cell("continue", init=unimax))
    found = slurm.submit(study, tmp_path / "study")
    assert found.runs == len(study.runs) == 9 and found.done == 0
    lines = calls(tmp_path)
    roots = [line for line in lines if "--dependency" not in line]
    # The two trainings without a parent, then the mono branches, the continued trunk, and its branches.
    assert len(roots) == 1 and "--array=0-1 " in roots[0] and len(lines) == 4
    assert all(
        "--dependency=afterok:10" in line and "--kill-on-invalid-dep=yes" in line for line in lines[1:]
    )
    assert all("--requeue" in line and "--signal=B:USR1@120" in line for line in lines)
    listed = [
        slurm.array_runs(tmp_path / "study", path.stem)
        for path in (tmp_path / "study/slurm").glob("mscale-*")
    ]
    assert sorted(sum(listed, [])) == sorted(run.id for run in study.runs)


def test_queued_and_done_runs_are_not_submitted_again(tmp_path, fake):
    study, root = make(cell()), tmp_path / "study"
    slurm.submit(study, root)
    (array,) = [
        path for path in (root / "slurm").glob("mscale-*.json") if len(slurm.array_runs(root, path.stem)) == 1
    ]
    fake("squeue", f'echo "101_0|RUNNING|{array.stem}"; echo "7_0|RUNNING|someone-else"')
    assert slurm.queued_jobs(root) == {study.runs[0].id: "101_0"}
    again = slurm.submit(study, root)
    assert (again.runs, again.queued) == (3, 1)
    assert "--dependency=afterok:101_0" in calls(tmp_path)[-1]


def test_options_reach_sbatch(tmp_path, fake):
    options = slurm.Options(
        partition="gpu", account="lab", qos="low", time="12:00:00", nodes=2, tasks_per_node=4, gpus=4, cpus=8,
        memory="64G", running=10, setup=("module load cuda",), extra=("--constraint=h100",), python="/env/python",
    )  # fmt: skip
    slurm.submit(make(cell()), tmp_path / "study", options)
    line = calls(tmp_path)[0]
    for part in (
        "--partition=gpu --account=lab --qos=low --time=12:00:00 --gpus-per-node=4 --cpus-per-task=8 --mem=64G "
        "--constraint=h100",
        "--nodes=2 --ntasks-per-node=4",
        "--array=0-0%10",
    ):
        assert part in line
    script = (tmp_path / "study/slurm/job.sh").read_text()
    packages = re.search(r"^export PYTHONPATH=([^$\n]+)", script, re.MULTILINE)[1]
    assert all((Path(packages) / name / "__init__.py").is_file() for name in ("mscale", "sweeps"))
    assert (
        "module load cuda" in script
        and "srun --kill-on-bad-exit=1 /env/python -m sweeps.executors.job" in script
    )
    subprocess.run(["bash", "-n", str(tmp_path / "study/slurm/job.sh")], check=True)


def test_an_unreachable_scheduler_is_one_clear_error(tmp_path, fake):
    fake(
        "squeue",
        'echo "slurm_load_jobs error: Unable to contact slurm controller (connect failure)" >&2; exit 1',
    )
    with pytest.raises(MscaleError, match="squeue failed: slurm_load_jobs error: Unable to contact") as error:
        slurm.submit(make(cell()), tmp_path / "study")
    assert "call the same command again" in str(error.value)
    assert (
        len(calls(tmp_path, "squeue")) == slurm.SCHEDULER_ATTEMPTS
        and not (tmp_path / "study/heartbeat.json").exists()
    )


def test_a_scheduler_without_an_answer_times_out(tmp_path, fake, monkeypatch):
    monkeypatch.setattr(slurm, "SCHEDULER_TIMEOUT_SECONDS", 0.05)
    fake("squeue", "exec sleep 5")
    with pytest.raises(MscaleError, match="no answer within"):
        slurm.queued_jobs(tmp_path)


def test_a_refused_job_says_why_in_slurms_words(tmp_path, fake):
    fake("sbatch", 'echo "sbatch: error: invalid partition specified: gpux" >&2; exit 1')
    with pytest.raises(MscaleError, match="invalid partition specified: gpux"):
        slurm.submit(make(cell()), tmp_path / "study", slurm.Options(partition="gpux"))
    assert len(calls(tmp_path)) == 1  # not tried again: it may have been queued


def test_without_slurm_the_error_names_the_local_executor(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(MscaleError, match="squeue is not installed here: .* --executor local"):
        slurm.submit(make(cell()), tmp_path / "study")
    with pytest.raises(MscaleError, match="squeue is not installed here"):
        slurm.run(make(cell()), tmp_path / "study")
    assert not (tmp_path / "study").exists()


@pytest.mark.parametrize("name", ["my study", "it's 100%j done", "étude"])
def test_a_root_may_have_spaces_and_percent_signs(tmp_path, fake, name):
    study, root = make(cell(steps=(20,))), tmp_path / name
    slurm.submit(study, root, trainer="fake_train:main")
    assert f"--output={root}/logs/slurm-%A_%a.out".replace("100%j", "100%%j") in calls(tmp_path)[0]
    array = next((root / "slurm").glob("mscale-*.json")).stem
    variables = {"SLURM_ARRAY_TASK_ID": "0", "PYTHONPATH": os.pathsep.join(sys.path)}
    subprocess.run(["bash", root / "slurm/job.sh", array], env={**os.environ, **variables}, check=True)
    assert state.read_run(study.runs[0], root).state == "done"


def test_a_root_with_a_line_break_is_refused_and_not_made(tmp_path, fake):
    for call in (slurm.submit, slurm.run, lambda *given: slurm.dry_run(*given, slurm.Options())):
        with pytest.raises(MscaleError, match="--root is .*line break; choose another folder"):
            call(make(cell()), tmp_path / "my\nstudy")
    assert not (tmp_path / "my\nstudy").exists()


def test_a_dry_run_is_a_script_that_names_the_calls_of_sbatch(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", "/usr/bin:/bin")  # without Slurm
    study, root = make(cell()), tmp_path / "my study"
    text = slurm.dry_run(study, root, slurm.Options(partition="gpu", setup=("module load cuda",)))
    subprocess.run(["bash", "-n"], input=text, text=True, check=True)
    assert "module load cuda" in text and "# 4 of 4 runs are not done: 2 arrays" in text
    first, second = (line for line in text.splitlines() if line.startswith("# sbatch"))
    assert "--array=0-0 " in first and "--partition=gpu" in first and "--dependency" not in first
    assert "--array=0-2 " in second and "--dependency=afterok:array0_0" in second
    assert not root.exists()


RUNNER = """
import pickle, sys
from sweeps.executors import slurm
slurm.run(pickle.load(open(sys.argv[1], "rb")), sys.argv[2], poll_seconds=0.1)
"""


def test_cancelling_a_study_ends_its_runner_which_would_submit_it_again(tmp_path, fake):
    study, root = make(cell(steps=(20,))), tmp_path / "my study"
    queued = f'for f in "{root}"/slurm/mscale-*.json; do echo "101_0|RUNNING|$(basename "$f" .json)"; done'
    fake(
        "squeue",
        f"grep -q ^scancel {tmp_path}/calls.txt || {{ grep -q ^sbatch {tmp_path}/calls.txt && {queued}; }}; true",
    )
    fake("scancel", "")
    (tmp_path / "study.pickle").write_bytes(pickle.dumps(study))
    runner = subprocess.Popen(
        [sys.executable, "-c", RUNNER, str(tmp_path / "study.pickle"), str(root)],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
    )
    wait_for(lambda: len(calls(tmp_path, "squeue")) > 2 if (tmp_path / "calls.txt").exists() else False, 60)
    with pytest.raises(MscaleError, match=f"another runner works on this study .process {runner.pid} on"):
        slurm.run(study, root)
    assert actions.cancel(root) == [study.runs[0].id]
    assert runner.wait(30) == 128 + signal.SIGTERM and not (root / "heartbeat.json").exists()
    assert len(calls(tmp_path)) == len(calls(tmp_path, "scancel")) == 1


def test_large_arrays_are_split(tmp_path, fake, monkeypatch):
    monkeypatch.setattr(slurm, "ARRAY_SIZE", 2)
    slurm.submit(make(*(cell(seed=seed, steps=(20,)) for seed in range(5))), tmp_path / "study")
    assert [line.split("--array=")[1].split()[0] for line in calls(tmp_path)] == ["0-1", "0-1", "0-0"]


def test_a_job_trains_the_element_it_is_for(tmp_path, capsys):
    study = make(cell(steps=(20,)), cell(seed=1, steps=(20,)))
    state.save_study(study, tmp_path)
    listed = [run.id for run in reversed(study.runs)]
    slurm.atomic_json(tmp_path / "slurm/a.json", {"runs": listed})
    arguments = [str(tmp_path), "--array", "a", "--trainer", "fake_train:main"]
    assert job.main([*arguments, "--index", "1"]) == 0
    done = {run.id: state.read_run(run, tmp_path).state for run in study.runs}
    assert done == {listed[1]: "done", listed[0]: "waiting"}
    (tmp_path / "slurm/b.json").write_text("{")
    assert job.main([str(tmp_path), "--array", "b", "--index", "0"]) == 1
    assert "is damaged" in (told := capsys.readouterr().err) and "scancel the jobs with that comment" in told
    assert job.main([*arguments, "--index", "2"]) == 1
    assert "has 2 runs, asked for is number 2" in capsys.readouterr().err


def test_the_trainer_joins_several_tasks_and_others_than_the_first_write_nothing(tmp_path, monkeypatch):
    study = make(cell(steps=(20,)))
    state.save_study(study, tmp_path)
    monkeypatch.setenv("MSCALE_COORDINATOR", "restored after the test")
    monkeypatch.delenv("MSCALE_COORDINATOR")
    monkeypatch.setenv("SLURM_NTASKS", "2")
    monkeypatch.setenv("SLURM_PROCID", "1")
    joined = []

    def trainer(_arguments):
        joined.append(os.environ["MSCALE_COORDINATOR"])
        return 143

    monkeypatch.setattr(job.worker, "load_trainer", lambda _name: trainer)
    assert job.main([str(tmp_path), study.runs[0].id]) == 143 and joined == ["auto"]
    assert [path.name for path in (tmp_path / "runs" / study.runs[0].id).iterdir()] == ["spec.json"]


def test_a_second_sigterm_does_not_cut_short_what_follows_the_training(tmp_path):
    study = make(cell(steps=(20,)))
    state.save_study(study, tmp_path)
    code = "import os, signal, sys, time; from sweeps.executors import job; job.main(sys.argv[1:]); "
    code += "os.kill(os.getpid(), signal.SIGTERM); time.sleep(0.1); sys.exit(7)"
    command = [sys.executable, "-c", code, str(tmp_path), study.runs[0].id, "--trainer", "fake_train:main"]
    found = subprocess.run(command, env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)})
    assert found.returncode == 7 and state.read_run(study.runs[0], tmp_path).state == "done"
