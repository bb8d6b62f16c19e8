"""JobSets for TPU slices: the Job is checked by the kubernetes client's models, the rest field by field."""

import dataclasses
import json
import os
import re
import signal
import stat
import subprocess
from pathlib import Path

import jax
import pytest
from studies import cell, make

from mscale.errors import MscaleError
from mscale.files import atomic_json
from mscale.training import distributed
from sweeps import spec
from sweeps.executors import gke, state
from sweeps.studies.built_in import built_in_study

GOLDEN = Path(__file__).resolve().parent / "golden" / "jobset_4_hosts.json"
OPTIONS = gke.Options(image="registry.example/mscale:1", bucket="studies", spot=True)


@pytest.fixture(scope="module")
def study():
    return make(cell())


def job_of(manifest) -> dict:
    return manifest["spec"]["replicatedJobs"][0]["template"]["spec"]


def test_golden_file_of_one_slice_of_four_hosts(study):
    found = gke.manifest(study.runs[0], OPTIONS)
    if os.environ.get("WRITE_GOLDEN"):
        atomic_json(GOLDEN, found)
    assert found == json.loads(GOLDEN.read_text())


def strict(models, kind: str, value, path: str = ""):
    """Checks a value against a model of the kubernetes client: known fields, right types, no required field missing."""
    if kind.lower().startswith("list["):
        assert isinstance(value, list), path
        for index, item in enumerate(value):
            strict(models, kind[5:-1], item, f"{path}[{index}]")
    elif kind.lower().startswith("dict"):
        assert isinstance(value, dict), path
        for key, item in value.items():
            assert isinstance(key, str)
            strict(models, kind.partition(", ")[2][:-1], item, f"{path}.{key}")
    elif kind in ("str", "int", "bool"):
        assert type(value).__name__ == kind, (path, value)
    elif kind == "object":
        return
    else:
        model = getattr(models, kind)
        fields = {wire: name for name, wire in model.attribute_map.items()}
        assert isinstance(value, dict) and not set(value) - set(fields), (path, set(value) - set(fields))
        for wire, item in value.items():
            strict(models, model.openapi_types[fields[wire]], item, f"{path}.{wire}")
        model(
            **{fields[wire]: item for wire, item in value.items()}
        )  # raises where a required field is missing


@pytest.mark.parametrize("options", [OPTIONS, gke.Options(image="i", claim="c", slices=2, priority="p")])
def test_job_part_is_one_that_kubernetes_knows(study, options):
    models = pytest.importorskip("kubernetes.client.models")
    found = gke.manifest(study.runs[0], options)
    strict(models, "V1JobSpec", job_of(found))
    strict(models, "V1ObjectMeta", found["metadata"])


def test_the_check_itself_refuses_a_wrong_field(study):
    models = pytest.importorskip("kubernetes.client.models")
    job = job_of(gke.manifest(study.runs[0], OPTIONS))
    with pytest.raises(AssertionError):
        strict(models, "V1JobSpec", {**job, "completion": 4})
    with pytest.raises(AssertionError):
        strict(models, "V1JobSpec", {**job, "completions": "4"})


def test_jobset_part(study):
    run = study.runs[0]
    found = gke.manifest(run, gke.Options(image="i", claim="c", slices=3, topology="4x4", max_restarts=7))
    assert set(found) == {"apiVersion", "kind", "metadata", "spec"}
    assert found["apiVersion"] == "jobset.x-k8s.io/v1alpha2" and found["kind"] == "JobSet"
    body = found["spec"]
    assert set(body) == {"network", "successPolicy", "failurePolicy", "replicatedJobs"}
    assert body["network"] == {"enableDNSHostnames": True, "subdomain": found["metadata"]["name"]}
    assert body["failurePolicy"]["maxRestarts"] == 7
    (rule,) = body["failurePolicy"]["rules"]
    assert rule["action"] == "RestartJobSetAndIgnoreMaxRestarts"
    assert rule["onJobFailureReasons"] == ["PodFailurePolicy"]
    (replicated,) = body["replicatedJobs"]
    assert set(replicated) == {"name", "replicas", "template"} and replicated["replicas"] == 3


def test_processes_find_each_other_over_slices_and_hosts(study, tmp_path, monkeypatch):
    found = gke.manifest(study.runs[0], gke.Options(image="i", claim="c", slices=3, topology="4x8"))
    name, job = found["metadata"]["name"], job_of(found)
    container = job["template"]["spec"]["containers"][0]
    env = {one["name"]: one for one in container["env"]}
    assert job["parallelism"] == job["completions"] == 8 and job["completionMode"] == "Indexed"
    assert env["MSCALE_PROCESSES"]["value"] == "24"
    assert env["MSCALE_COORDINATOR"]["value"] == f"{name}-slice-0-0.{name}:{gke.COORDINATOR_PORT}"
    assert env["MEGASCALE_NUM_SLICES"]["value"] == "3"
    assert env["MEGASCALE_SLICE_ID"]["valueFrom"] == env["MSCALE_SLICE"]["valueFrom"]
    numbers = {
        joined_as(container, {"MSCALE_SLICE": slice_, "JOB_COMPLETION_INDEX": host}, tmp_path, monkeypatch)
        for slice_ in range(3)
        for host in range(8)
    }
    assert numbers == {(24, number) for number in range(24)}


def joined_as(container, field_refs, tmp_path, monkeypatch) -> tuple[int, int]:
    """Runs a container's command in its environment, then `distributed.join` in the environment that it set.

    Returns (processes, process id), as ``jax.distributed.initialize`` gets them.
    """
    stub = tmp_path / "python"
    stub.write_text('#!/bin/sh\nenv -0 > "$ENV_FILE"\nprintf "%s\\0" "$@" > "$ARGV_FILE"\n')
    stub.chmod(0o755)
    given = {one["name"]: one["value"] for one in container["env"] if "value" in one}
    referred = {one["name"] for one in container["env"] if "valueFrom" in one} & set(field_refs)
    outside = {"JOB_COMPLETION_INDEX": field_refs["JOB_COMPLETION_INDEX"]}  # set by an Indexed Job
    environment = {
        **given,
        **{name: str(field_refs[name]) for name in referred},
        **{name: str(value) for name, value in outside.items()},
        "PATH": f"{tmp_path}:{os.environ['PATH']}",
        "ENV_FILE": str(tmp_path / "env"),
        "ARGV_FILE": str(tmp_path / "argv"),
    }
    subprocess.run(container["command"], env=environment, check=True)
    seen = dict(line.split("=", 1) for line in (tmp_path / "env").read_text().split("\0") if line)
    calls = []
    monkeypatch.setattr(jax.distributed, "initialize", lambda *args, **_: calls.append(args))
    monkeypatch.setattr(jax.distributed, "is_initialized", lambda: False)
    monkeypatch.setattr(jax.config, "update", lambda *_: None)
    for name in ("MSCALE_COORDINATOR", "MSCALE_PROCESSES", "MSCALE_PROCESS_ID"):
        monkeypatch.setenv(name, seen[name])
    distributed.initialize()
    ((_, processes, process_id),) = calls
    return processes, process_id


def test_one_host_joins_too(study, tmp_path, monkeypatch):
    options = gke.Options(image="i", claim="c", topology="2x2")
    container = job_of(gke.manifest(study.runs[0], options))["template"]["spec"]["containers"][0]
    field_refs = {"MSCALE_SLICE": 0, "JOB_COMPLETION_INDEX": 0}
    assert joined_as(container, field_refs, tmp_path, monkeypatch) == (1, 0)


def test_a_root_with_spaces_and_semicolons_stays_one_argument(study, tmp_path, monkeypatch):
    root = "/mscale/my study; touch x"
    options = gke.Options(image="i", claim="c", topology="2x2", root=root)
    container = job_of(gke.manifest(study.runs[0], options))["template"]["spec"]["containers"][0]
    joined_as(container, {"MSCALE_SLICE": 0, "JOB_COMPLETION_INDEX": 0}, tmp_path, monkeypatch)
    assert (tmp_path / "argv").read_text().split("\0")[2] == root


@pytest.mark.parametrize("name", ["gpu-day", "tpu-week", "atlas"])
def test_names_of_the_built_in_studies_are_rfc_1035_labels(name):
    for run in built_in_study(name, None).runs:
        label = gke.jobset_name(run)
        assert re.fullmatch(r"[a-z]([-a-z0-9]*[a-z0-9])?", label)
        assert len(f"{label}-slice-99-999-abcde") <= 63


def test_spot_and_eviction(study):
    spot, steady = (
        job_of(gke.manifest(study.runs[0], gke.Options(image="i", claim="c", spot=spot)))
        for spot in (True, False)
    )
    pods = [one["template"]["spec"] for one in (spot, steady)]
    assert ["cloud.google.com/gke-spot" in pod["nodeSelector"] for pod in pods] == [True, False]
    assert [len(pod["tolerations"]) for pod in pods] == [2, 1]
    rules = spot["podFailurePolicy"]["rules"]
    assert rules[0]["onPodConditions"] == [{"type": "DisruptionTarget", "status": "True"}]
    # The exit code of sweeps.executors.job after the trainer was stopped and has saved its state.
    assert rules[1]["onExitCodes"]["values"] == [128 + signal.SIGTERM]
    assert pods[0]["restartPolicy"] == "Never" and pods[0]["terminationGracePeriodSeconds"] == 90


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"topology": "4by4"}, "topology is '4by4'"),
        ({"accelerator": "tpu-v5-lite-podslise"}, "did you mean 'tpu-v5-lite-podslice'"),
        ({"topology": "3x3"}, "not whole hosts"),
        ({"bucket": None}, "either a volume claim or a bucket"),
        ({"claim": "too"}, "either a volume claim or a bucket"),
    ],
)
def test_invalid_options_are_named(study, changes, message):
    import dataclasses

    with pytest.raises(MscaleError, match=message):
        gke.manifest(study.runs[0], dataclasses.replace(OPTIONS, **changes))


def test_names_are_distinct_labels():
    many = make(*(cell(seed=seed, scale=scale) for seed in range(3) for scale in ("nano1", "nano2")))
    names = [gke.jobset_name(run) for run in many.runs]
    assert len(set(names)) == len(names)
    # The pod of host 10 of slice 10 must still fit 63 characters, with the suffix that Kubernetes adds.
    assert all(
        len(f"{name}-slice-10-10-abcde") <= 63 and name[0].isalnum() and "." not in name for name in names
    )


def test_dry_run_is_a_stream_of_documents_parents_first(study, tmp_path):
    text = gke.dry_run(study, OPTIONS)
    parts = [part.partition("\n") for part in text.split("---\n")]
    assert [json.loads(body)["metadata"]["labels"]["mscale/run"] for _, _, body in parts][0] == study.runs[
        0
    ].id
    assert len(parts) == len(study.runs) and f"after {study.runs[0].id}" in parts[1][0]
    state.save_study(study, tmp_path)
    folder = spec.workdir(tmp_path, study.runs[0].id)
    atomic_json(folder / "status.json", {"state": "done", "step": 90})
    (folder / "observations.jsonl").write_text("{}\n")
    assert len(gke.dry_run(study, OPTIONS, tmp_path).split("---\n")) == len(study.runs) - 1


KUBECTL = """#!{python}
# A cluster in a folder: an applied run is trained at once by the fake trainer.
import json, sys, pathlib
sys.path[:0] = {path!r}
home = pathlib.Path({home!r})
line = sys.argv[1:]
with open(home / "calls.txt", "a") as file: print(*line, file=file)
if line[0] == "get":
    there = [(one.stem, one.read_text()) for one in home.glob("*.set")]
    print(json.dumps({{"items": [{{"metadata": {{"name": n}}, "status": {{"terminalState": s}}}} for n, s in there]}}))
elif line[0] == "apply":
    from sweeps.executors import job
    found = json.load(sys.stdin)
    run = found["metadata"]["labels"]["mscale/run"]
    code = job.main([{root!r}, run, "--trainer", "fake_train:main"])
    (home / (found["metadata"]["name"] + ".set")).write_text("Failed" if code else "Completed")
elif line[0] == "delete":
    for name in line[5:]: (home / (name + ".set")).unlink()
"""


@pytest.fixture
def cluster(tmp_path, monkeypatch):
    import sys

    home, root = tmp_path / "cluster", tmp_path / "study"
    home.mkdir()
    fakes = Path(__file__).resolve().parents[2] / "fakes"
    body = KUBECTL.format(
        python=sys.executable, path=[str(fakes), str(fakes.parents[1])], home=str(home), root=str(root)
    )
    path = tmp_path / "bin" / "kubectl"
    path.parent.mkdir()
    path.write_text(body)
    path.chmod(path.stat().st_mode | stat.S_IEXEC)
    monkeypatch.setenv("PATH", f"{path.parent}:/usr/bin:/bin")
    return home, root


def test_a_study_is_applied_in_order_and_a_failed_run_again(cluster, monkeypatch):
    home, root = cluster
    study = make(cell(steps=(20, 50)))
    monkeypatch.setenv("FAKE_FAIL", "trunk")
    with pytest.raises(MscaleError, match="3 of 3 runs are not done.*"):
        gke.run(study, root, OPTIONS, poll_seconds=0)
    monkeypatch.delenv("FAKE_FAIL")
    gke.run(study, root, OPTIONS, poll_seconds=0)
    assert {one.state for one in state.read_states(study.runs, root).values()} == {"done"}
    calls = [line.split()[0] for line in (home / "calls.txt").read_text().splitlines()]
    assert calls.count("apply") == 4 and calls.count("delete") == 1


def test_another_context_of_kubectl_is_named_in_each_call(cluster):
    home, _ = cluster
    assert gke.jobsets(make(cell()), dataclasses.replace(OPTIONS, context="dev")) == {}
    assert (home / "calls.txt").read_text().strip().endswith("--context dev")


def test_an_unreachable_cluster_is_one_clear_error(tmp_path, monkeypatch, study):
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(MscaleError, match="kubectl is not installed here: .*--dry-run"):
        gke.run(study, tmp_path / "study", OPTIONS)
    script = tmp_path / "kubectl"
    script.write_text("#!/bin/sh\necho 'The connection to the server 10.0.0.1 was refused' >&2; exit 1\n")
    script.chmod(0o755)
    with pytest.raises(
        MscaleError, match="kubectl failed: The connection to the server 10.0.0.1 was refused"
    ):
        gke.run(study, tmp_path / "study", OPTIONS)
    assert not (tmp_path / "study" / "heartbeat.json").exists()
