"""JobSets for TPU slices: judged by JobSet's schema and rules, and run by their own command."""

import dataclasses
import json
import os
import re
import signal
import socket
import stat
import subprocess
import sys
from pathlib import Path

import jax
import pytest
import tiny_store
from local_runs import wait_for
from studies import FakeStore, cell, make

from mscale.errors import MscaleError
from mscale.files import atomic_json
from mscale.training import distributed
from sweeps import spec
from sweeps.build import Recipe, build_study
from sweeps.executors import actions, gke, state
from sweeps.studies.built_in import built_in_study
from sweeps.study import Cell

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


def strict(schema):
    """The schema with every object closed: Kubernetes itself drops unknown fields, so that a typing error is lost."""
    if isinstance(schema, list):
        return [strict(one) for one in schema]
    if not isinstance(schema, dict):
        return schema
    closed = {key: strict(value) for key, value in schema.items()}
    if schema.get("type") == "object" and "properties" in schema and "additionalProperties" not in schema:
        closed["additionalProperties"] = False
    return closed


@pytest.fixture(scope="module")
def crd(jobset_crd):
    import jsonschema
    import yaml

    loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
    (version,) = yaml.load(jobset_crd.read_text(encoding="utf-8"), loader)["spec"]["versions"]
    return jsonschema.Draft202012Validator(strict(version["schema"]["openAPIV3Schema"]))


def built_in_studies():
    for name in ("gpu-day", "tpu-week", "atlas"):
        yield built_in_study(name)
    languages = ("en", "fr", "hi", "zh", "sw", "ru")
    yield built_in_study("demo", FakeStore(languages, 10**6), families={one: one for one in languages})


EVERY_OPTION = gke.Options(
    image="i", claim="c", slices=4, topology="8x16", spot=True, queue="q", priority="p", service_account="s"
)


@pytest.mark.parametrize("options", [OPTIONS, EVERY_OPTION], ids=["bucket", "every option"])
def test_manifests_of_all_built_in_studies_fit_the_schema_of_jobset(crd, options):
    for planned in built_in_studies():
        for run in planned.runs:
            found = [f"{one.json_path}: {one.message}" for one in crd.iter_errors(gke.manifest(run, options))]
            assert not found, (run.id, found)


def test_the_schema_as_we_close_it_refuses_unknown_fields(crd, study):
    found = gke.manifest(study.runs[0], OPTIONS)
    job_of(found)["template"]["spec"]["containers"][0]["comand"] = []
    (error,) = crd.iter_errors(found)
    assert "comand" in error.message


LABEL = r"[a-z]([-a-z0-9]*[a-z0-9])?"  # RFC 1035
LABEL_VALUE = r"([A-Za-z0-9]([-A-Za-z0-9_.]*[A-Za-z0-9])?)?"


def check_rules(found):
    """What JobSet's admission webhook and Kubernetes demand beyond the schema."""
    body = found["spec"]
    (replicated,) = body["replicatedJobs"]
    job = job_of(found)
    pod = job["template"]["spec"]
    name = f"{found['metadata']['name']}-{replicated['name']}-{replicated['replicas'] - 1}"
    for label in (body["network"]["subdomain"], name, f"{name}-{job['completions'] - 1}-abcde"):
        assert re.fullmatch(LABEL, label) and len(label) <= 63
    assert replicated["replicas"] * job["parallelism"] < 2**31 and "dependsOn" not in replicated
    rules = [rule["name"] for rule in body["failurePolicy"]["rules"]]
    assert len(set(rules)) == len(rules) and all(
        re.fullmatch("[A-Za-z][A-Za-z0-9_,:-]*", one) for one in rules
    )
    assert job["completionMode"] == "Indexed" and job["parallelism"] == job["completions"]
    assert pod["restartPolicy"] == "Never"  # which podFailurePolicy demands
    (container,) = pod["containers"]
    names = [one["name"] for one in container["env"]]
    assert len(set(names)) == len(names) and all(re.fullmatch("[A-Z_]+", one) for one in names)
    for one in (*job["podFailurePolicy"]["rules"],):
        assert one.get("onExitCodes", {"containerName": "train"})["containerName"] == container["name"]
    mounts, volumes = container["volumeMounts"], pod["volumes"]
    assert [one["name"] for one in mounts] == [one["name"] for one in volumes]
    for labels in (found["metadata"]["labels"], job["template"]["metadata"]["labels"]):
        assert all(re.fullmatch(LABEL_VALUE, one) and len(one) <= 63 for one in labels.values())
    assert (
        "kueue.x-k8s.io/queue-name" not in job["template"]["metadata"]["labels"]
    )  # Kueue queues whole JobSets


@pytest.mark.parametrize("options", [OPTIONS, EVERY_OPTION], ids=["bucket", "every option"])
def test_manifests_of_all_built_in_studies_follow_the_rules_that_no_schema_has(options):
    for planned in built_in_studies():
        manifests = [gke.manifest(run, options) for run in planned.runs]
        assert len({one["metadata"]["name"] for one in manifests}) == len(manifests)
        for found in manifests:
            check_rules(found)


@pytest.mark.parametrize("scale", ["0", "nano0", "8B", "1.5b_Large", "x" * 80, "größe", "-", "9" * 30])
def test_names_are_labels_for_every_scale_and_length(study, scale):
    ids = [f"{spec.slug(scale)}-en-trunk-s0-0123456789".lstrip("-"), re.sub("[^A-Za-z0-9]", "x", scale)]
    for run_id in ids:
        check_rules(gke.manifest(dataclasses.replace(study.runs[0], id=run_id), EVERY_OPTION))


def test_queue_and_priority_are_those_of_kueue_and_the_pod(study):
    found = gke.manifest(study.runs[0], EVERY_OPTION)
    assert found["metadata"]["labels"]["kueue.x-k8s.io/queue-name"] == "q"
    assert job_of(found)["template"]["spec"]["priorityClassName"] == "p"


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
        ({"slices": 0}, "slices is 0: expected at least 1"),
        ({"at_once": -1}, "at_once is -1"),
        (
            {"root": "/data/study"},
            "root is '/data/study', which is not on the pods' volume: .* below /mscale",
        ),
        ({"root": "/mscale/../x"}, "root is '/mscale/../x'"),
        ({"root": "/mscale/$(HOME)"}, "Kubernetes replaces"),
        ({"mount": "data"}, "mount is 'data': expected an absolute path"),
        ({"store": "/store"}, "store is '/store', which is not on the pods' volume"),
        ({"slices": 10**20, "topology": "8x16"}, "more than 63 characters; use fewer slices"),
    ],
)
def test_invalid_options_are_named(study, changes, message):
    with pytest.raises(MscaleError, match=message):
        gke.manifest(study.runs[0], dataclasses.replace(OPTIONS, **changes))


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
    for name in line[5:]:
        if name == "--context": break
        (home / (name + ".set")).unlink()
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
    options = dataclasses.replace(OPTIONS, store="gs://bucket/store")
    with pytest.raises(MscaleError, match="3 of 3 runs are not done.*"):
        gke.run(study, root, options, poll_seconds=0)
    monkeypatch.delenv("FAKE_FAIL")
    gke.run(study, root, options, poll_seconds=0)
    assert {one.state for one in state.read_states(study.runs, root).values()} == {"done"}
    calls = [line.split()[0] for line in (home / "calls.txt").read_text().splitlines()]
    assert calls.count("apply") == 4 and calls.count("delete") == 1


def test_cancelling_deletes_the_jobsets_of_the_named_runs_or_of_all(cluster):
    home, root = cluster
    study = make(cell(steps=(20, 50)), cell(seed=1, steps=(20,)))
    state.save_study(study, root)
    options = dataclasses.replace(OPTIONS, namespace="lab", context="dev")
    atomic_json(root / "gke.json", options)
    for run in study.runs:
        (home / f"{gke.jobset_name(run)}.set").write_text("Active")
    named = study.runs[1]
    assert actions.cancel(root, [named.id]) == [named.id]
    assert state.read_run(named, root).state == "failed" and not list(
        home.glob(f"{gke.jobset_name(named)}.set")
    )
    rest = [run.id for run in study.runs if run is not named]
    assert actions.cancel(root) == rest and not list(home.glob("*.set"))
    calls = (home / "calls.txt").read_text().splitlines()
    assert all("-n lab" in line and line.endswith("--context dev") for line in calls)


def test_a_study_of_the_same_name_in_another_folder_is_left_alone(cluster):
    home, _ = cluster
    study = make(cell())
    labels = []
    for root in ("/mscale/mine", "/mscale/yours"):
        options = dataclasses.replace(OPTIONS, root=root)
        found = gke.manifest(study.runs[0], options)["metadata"]["labels"]
        gke.jobsets(study, options)
        asked = (home / "calls.txt").read_text().splitlines()[-1].split(" -l ")[1].split()[0]
        assert asked == f"mscale/study={found['mscale/study']},mscale/folder={found['mscale/folder']}"
        labels.append(asked)
    assert labels[0] != labels[1]


def test_another_context_of_kubectl_is_named_in_each_call(cluster):
    home, _ = cluster
    assert gke.jobsets(make(cell()), dataclasses.replace(OPTIONS, context="dev")) == {}
    assert (home / "calls.txt").read_text().strip().endswith("--context dev")


def test_an_unreachable_cluster_is_one_clear_error(tmp_path, monkeypatch, study):
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(MscaleError, match="kubectl is not installed here: .*--dry-run"):
        gke.run(study, tmp_path / "study", OPTIONS)
    assert not (tmp_path / "study").exists()
    script = tmp_path / "kubectl"
    script.write_text("#!/bin/sh\necho 'The connection to the server 10.0.0.1 was refused' >&2; exit 1\n")
    script.chmod(0o755)
    with pytest.raises(
        MscaleError, match="kubectl failed: The connection to the server 10.0.0.1 was refused"
    ):
        gke.run(study, tmp_path / "study", dataclasses.replace(OPTIONS, store="/mscale/store"))
    assert not (tmp_path / "study" / "heartbeat.json").exists()
    for answer in ("", "hello", "[]", '{"items": [3]}'):
        script.write_text(f"#!/bin/sh\necho '{answer}'\n")
        with pytest.raises(MscaleError, match="expected a list of JobSets as JSON; is that kubectl"):
            gke.jobsets(study, OPTIONS)


def on_volume(tmp_path, place, folder="study", **changes):
    planned = make(cell(steps=(20,)), store=FakeStore(path=tmp_path / place))
    there, options = gke.on_volume(planned, tmp_path / folder, dataclasses.replace(OPTIONS, **changes))
    return there.runs[0].store, options.root


def test_root_and_store_are_mapped_to_the_pods_volume_or_refused(tmp_path):
    assert on_volume(tmp_path, "my store") == ("/mscale/my store", "/mscale/study")
    assert on_volume(tmp_path, "study/store") == ("/mscale/study/store", "/mscale/study")
    assert on_volume(tmp_path, "s", "a/study", root="/mscale/a/study") == ("/mscale/s", "/mscale/a/study")
    assert on_volume(tmp_path, "study/s", root="/mscale/other") == ("/mscale/other/s", "/mscale/other")
    assert on_volume(tmp_path, "s", root="/mscale/other", store="/mscale/s")[0] == "/mscale/s"
    assert on_volume(tmp_path, "s", mount=str(tmp_path)) == (f"{tmp_path}/s", f"{tmp_path}/study")
    assert on_volume(tmp_path, "s", store="gs://bucket/s")[0] == "gs://bucket/s"
    for changes in ({"root": "/mscale/other"}, {"root": "/mscale/b/study"}):
        with pytest.raises(MscaleError, match="do not see the token store .* --option store=/mscale/"):
            on_volume(tmp_path, "s", **changes)
    with pytest.raises(MscaleError, match="they mount .* as /mscale"):
        on_volume(tmp_path, "../s")


# ------------------------------------------------------------------------------- the command of a manifest, run


@pytest.fixture(scope="module")
def tiny_study(tmp_path_factory):
    """A run to be trained, in a folder whose name has spaces and an apostrophe, with its store beside it."""
    volume = tmp_path_factory.mktemp("volume")
    store = tiny_store.write(volume / "the store", ("en", "fr"))
    bindings = {"EVAL_TOKENS": 256, "PROGRESS": False, "CHECKPOINT_EVERY": 100_000}
    recipe = Recipe(16, 4, 0.01, warmup_steps=2, evaluations=2, bindings=bindings)
    return volume, build_study("tiny", [Cell("mono", "nano0", "en", (64 * 2_000,))], recipe, store)


def start_pods(tmp_path, volume, planned, root, topology) -> list[subprocess.Popen]:
    """Saves the study and starts its run's pods: the manifest's own command, in its own environment.

    As in a container, nothing else is set but what the image would have. Only the coordinator's name, which a cluster
    resolves, is replaced by an address of this machine.
    """
    state.save_study(planned, root)
    there, options = gke.on_volume(
        planned, root, gke.Options(image="i", claim="c", topology=topology, mount=str(volume))
    )
    run = there.runs[0]
    # What the study's machine calls the store is nothing to the pods.
    atomic_json(spec.workdir(root, run.id) / "spec.json", dataclasses.replace(run, store="/elsewhere"))
    container = job_of(gke.manifest(run, options))["template"]["spec"]["containers"][0]
    (tmp_path / "python").unlink(missing_ok=True)
    (tmp_path / "python").symlink_to(sys.executable)
    image = {
        "PATH": f"{tmp_path}:/usr/bin:/bin",
        "PYTHONPATH": os.pathsep.join(sys.path),
        "JAX_PLATFORMS": "cpu",
    }
    given = {one["name"]: one["value"] for one in container["env"] if "value" in one}
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        given["MSCALE_COORDINATOR"] = f"127.0.0.1:{probe.getsockname()[1]}"
    return [
        subprocess.Popen(
            container["command"],
            cwd=tmp_path,
            env={**image, **given, "MSCALE_SLICE": "0", "JOB_COMPLETION_INDEX": str(host)},
            stderr=subprocess.PIPE,
            text=True,
        )
        for host in range(options.hosts)
    ]


def ended(pods) -> tuple[list[int], str]:
    errors = [pod.communicate(timeout=100)[1] for pod in pods]
    return [pod.returncode for pod in pods], "\n".join(errors)


def test_the_command_of_a_manifest_trains_its_run_on_one_host(tmp_path, tiny_study):
    volume, planned = tiny_study
    root = volume / "it's one study"
    codes, said = ended(start_pods(tmp_path, volume, planned, root, "2x2"))
    assert codes == [0], said
    assert state.read_run(planned.runs[0], root).state == "done"


@pytest.mark.parametrize("stopped", [0, pytest.param(1, marks=pytest.mark.slow)])
def test_two_hosts_that_are_preempted_end_with_status_143_both(tmp_path, tiny_study, stopped):
    volume, planned = tiny_study
    root = volume / f"two hosts {stopped}"
    pods = start_pods(tmp_path, volume, planned, root, "2x4")
    metrics = spec.workdir(root, planned.runs[0].id) / "metrics.jsonl"
    wait_for(lambda: metrics.exists() or any(pod.poll() is not None for pod in pods), 100)
    pods[stopped].send_signal(signal.SIGTERM)
    codes, said = ended(pods)
    assert codes == [143, 143], said
    found = state.read_run(planned.runs[0], root)
    assert found.state == "interrupted" and 0 < found.step < 2_000 and found.reason == ""
