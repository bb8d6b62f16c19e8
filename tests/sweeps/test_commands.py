"""Options of the sweep commands."""

import json
import sys

import pytest
import tiny_store
from click.testing import CliRunner

from mscale.errors import MscaleError
from sweeps.commands import laws_identified, parsed, sweep_plan, sweep_run
from sweeps.executors import gke, slurm
from sweeps.studies.built_in import built_in_study


def test_options_of_an_executor_have_the_types_of_its_fields():
    given = ("partition=7", "cpus=8", "setup=module load cuda;ulimit -l unlimited")
    setup = ("module load cuda", "ulimit -l unlimited")
    assert parsed(given, slurm.Options) == slurm.Options(partition="7", cpus=8, setup=setup)
    assert parsed(("image=i", "spot=true"), gke.Options) == gke.Options("i", spot=True)


@pytest.mark.parametrize(
    ("given", "kind", "message"),
    [
        ("cpus=many", slurm.Options, "cpus"),
        ("cpu=8", slurm.Options, "did you mean 'cpus'"),
        ("cpus", slurm.Options, "expected NAME=VALUE"),
        ("claim=c", gke.Options, "required field `image`"),
    ],
)
def test_a_wrong_option_is_named(given, kind, message):
    with pytest.raises(MscaleError, match=message):
        parsed((given,), kind)


def test_a_plan_says_which_laws_are_identified_or_what_to_install(monkeypatch):
    study = built_in_study("gpu-day")
    lines = laws_identified(study)
    assert [line.partition(":")[0] for line in lines] == [
        f"Identifies the {law} law" for law in ("chinchilla", "atlas", "capacity")
    ]
    monkeypatch.setitem(sys.modules, "analysis.planning.identification", None)
    (line,) = laws_identified(study)
    assert "pip install 'mscale[analysis]'" in line


def test_a_dry_run_for_gke_says_what_it_would_use_and_writes_one_manifest_a_run(tmp_path):
    given = ["gpu-day", "--root", str(tmp_path / "my study"), "--executor", "gke", "--dry-run"]
    given += ["--option", "image=i", "--option", "claim=c", "--option", "at_once=2"]
    printed = CliRunner().invoke(sweep_run, given)
    runs = built_in_study("gpu-day").runs
    documents = [json.loads(part.partition("\n")[2]) for part in printed.stdout.split("---\n")]
    assert len(documents) == len(runs)
    assert f"{len(runs)} JobSets, each of 4 pods on 16 chips" in printed.stderr
    assert "hours with 2 at once" in printed.stderr and "none: give --store to run it" in printed.stderr
    written = CliRunner().invoke(sweep_run, [*given, "--out", str(tmp_path / "my manifests")])
    assert written.stdout.startswith(printed.stderr) and not (tmp_path / "my study").exists()
    files = {
        json.loads(path.read_text())["metadata"]["name"] for path in (tmp_path / "my manifests").iterdir()
    }
    assert files == {one["metadata"]["name"] for one in documents}
    assert documents[0]["spec"]["replicatedJobs"][0]["template"]["spec"]["template"]["spec"]["containers"][0][
        "command"
    ][2].count("'/mscale/my study'")


@pytest.mark.parametrize("executor", ["local", "slurm", "gke"])
def test_a_study_without_a_store_is_planned_but_not_run(tmp_path, executor):
    given = ["atlas", "--root", str(tmp_path / "r"), "--executor", executor]
    given += ["--option", "image=i"] if executor == "gke" else []
    with pytest.raises(MscaleError, match="study atlas: it is planned without a token store; give --store"):
        CliRunner().invoke(sweep_run, given, catch_exceptions=False)
    assert not (tmp_path / "r").exists()


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (["--dry-run"], "--dry-run is for Slurm and GKE"),
        (["--executor", "slurm", "--dry-run", "--out", "x"], "--out is for --executor gke with --dry-run"),
    ],
)
def test_options_of_another_executor_are_refused(tmp_path, given, message):
    result = CliRunner().invoke(sweep_run, ["gpu-day", "--root", str(tmp_path / "r"), *given])
    assert result.exit_code == 2 and message in result.stderr and not (tmp_path / "r").exists()


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (["gpu-day", "--plot", "bill"], "--plot .*bill: expected a name that ends in .png, .svg, .html"),
        (["demo", "--store", "STORE", "--truth", "."], "--truth .*: is a folder; give the file .*truth.json"),
        (["gpu-day", "--store", "STORE"], "does not have en, ru, fr, de, hi, sw; pack a corpus with these"),
    ],
)
def test_a_plan_that_cannot_be_made_says_what_to_do(tmp_path, given, message):
    store = tiny_store.write(tmp_path / "store", ("aa", "ab"))
    given = [str(store.path) if one == "STORE" else one for one in given]
    with pytest.raises(MscaleError, match=message):
        CliRunner().invoke(sweep_plan, given, catch_exceptions=False)
