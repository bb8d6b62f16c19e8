"""Runs a study on TPU slices of a GKE cluster: one JobSet a run, printed by a dry run or applied with ``kubectl``.

A slice is one replica of a Job with one pod a host; several slices of one run are several replicas. The processes
of a run are joined by ``jax.distributed``: pod 0 of slice 0 is the coordinator, and a process's number is slice × hosts
+ host. Between slices libtpu reads the MEGASCALE variables.

An evicted pod (spot capacity, maintenance) fails its Job by ``podFailurePolicy``, which restarts the whole JobSet
without counting the restart; any other failure counts towards ``maxRestarts``. Every restart continues from the last
checkpoint. Kubernetes has no dependencies between JobSets, so a runner applies a run once its parent is done. The
runner may die at any time: called again it continues from the run folders, which are on a volume that runner and pods
share (a bucket mounted with the Cloud Storage FUSE driver, or Filestore).
"""

import hashlib
import json
import math
import re
import shlex
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath
from typing import Any

from mscale import run_folder
from mscale.chips import CHIPS
from mscale.errors import MscaleError, nearest
from mscale.files import atomic_json, read_json_as
from mscale.liveness import study_lock
from mscale.remote import Url, local_folder, location
from sweeps import run_graph, spec
from sweeps.executors import cluster, state
from sweeps.executors.worker import DEFAULT_TRAINER
from sweeps.spec import RunSpec
from sweeps.studies.assumed_sizes import is_assumed
from sweeps.study import Study

COORDINATOR_PORT = 8476
MEGASCALE_PORT = 8477
_KUBECTL_TIMEOUT_SECONDS = 120.0
_NO_KUBECTL = "install it, or print manifests with --dry-run"
_OPTIONS_FILE = "gke.json"  # in the study's folder: what `mscale sweep cancel` needs
_NAME_LENGTH = 63  # of an RFC 1035 label, which the names of pods must be
_MFU = 0.4  # share of a chip's peak that the summary of a dry run assumes
GRACE_SECONDS = 90  # in which a spot pod may save its state
# GKE's label of the slice type → chips of one host of a multi-host slice.
_ACCELERATORS = [chip.gke_slice for chip in CHIPS.values() if chip.gke_slice]
_CHIPS_PER_HOST = 4  # of multi-host slices


@dataclass(frozen=True)
class Options:
    """Container, slice and volume of every run.

    Attributes:
      image: container image with mscale[tpu] installed.
      accelerator, topology: GKE's labels, such as "tpu-v5-lite-podslice" and "4x4".
      mount: where the pods mount the volume.
      root: the study's folder as the pods see it, below ``mount``; None for the folder of that name there.
      store: the token store as the pods see it; None where it lies on the volume beside the study's folder.
      claim: name of the PersistentVolumeClaim that holds the study's folder; bucket: name of a Cloud Storage bucket,
        mounted by FUSE, in its place.
      slices: of each run; at_once: runs that train at once; spot: whether on spot capacity.
      max_restarts: of a run, for reasons other than eviction.
      context: of kubectl; None for the current one.
      queue: a Kueue local queue; priority: a PriorityClass; service_account: of the pods.
    """

    image: str
    accelerator: str = "tpu-v5-lite-podslice"
    topology: str = "4x4"
    mount: str = "/mscale"
    root: str | None = None
    store: str | None = None
    claim: str | None = None
    bucket: str | None = None
    slices: int = 1
    at_once: int = 1
    spot: bool = False
    max_restarts: int = 4
    namespace: str = "default"
    context: str | None = None
    queue: str | None = None
    priority: str | None = None
    service_account: str | None = None
    trainer: str = DEFAULT_TRAINER

    def __post_init__(self) -> None:
        """Raises MscaleError: a number is too small, or a folder of the pods is not on their volume."""
        for name, least in (("slices", 1), ("at_once", 1), ("max_restarts", 0)):
            if (value := getattr(self, name)) < least:
                raise MscaleError(f"gke: {name} is {value}: expected at least {least}")
        if not self.mount.startswith("/") or ":" in self.mount:
            raise MscaleError(f"gke: mount is {self.mount!r}: expected an absolute path without a colon")
        for name in ("root", "store"):
            place = getattr(self, name)
            if place is None or isinstance(location(place), Url) and name == "store":
                continue
            below = PurePosixPath(place).is_relative_to(self.mount) and ".." not in PurePosixPath(place).parts
            if "$(" in place or "$$" in place:
                raise MscaleError(
                    f"gke: {name} is {place!r}: Kubernetes replaces $( and $$ in a pod's command"
                )
            if not below or "\n" in place:
                raise MscaleError(
                    f"gke: {name} is {place!r}, which is not on the pods' volume: expected a folder below {self.mount}"
                )

    @property
    def chips(self) -> int:
        """Chips of one slice, the product of the topology."""
        sizes = self.topology.split("x")
        if not all(size.isdecimal() and int(size) > 0 for size in sizes) or len(sizes) not in (2, 3):
            raise MscaleError(f"topology is {self.topology!r}: expected sizes such as 4x4 or 2x2x4")
        return math.prod(map(int, sizes))

    @property
    def hosts(self) -> int:
        """Hosts, hence pods, of one slice."""
        if self.accelerator not in _ACCELERATORS:
            raise MscaleError(
                f"accelerator is {self.accelerator!r}: expected one of {', '.join(_ACCELERATORS)}"
                f"{nearest(self.accelerator, _ACCELERATORS)}"
            )
        if self.chips > _CHIPS_PER_HOST and self.chips % _CHIPS_PER_HOST:
            raise MscaleError(f"topology {self.topology} is not whole hosts of {self.accelerator}")
        return max(1, self.chips // _CHIPS_PER_HOST)


def jobset_name(run: RunSpec) -> str:
    """The name of a run's JobSet: its id as an RFC 1035 label, short enough for the names of its pods.

    Such a label begins with a letter, so ids that begin with a digit (those of ladder scales) get a prefix.
    """
    prefix, _, digest = run.id.rpartition("-")
    if not re.fullmatch("[0-9a-z]{1,10}", digest):  # an id that is not of ``spec.make_run``
        prefix, digest = run.id, hashlib.sha256(run.id.encode()).hexdigest()[:10]
    label = f"{spec.slug(prefix.replace('.', '-'), 28)}-{digest}".lstrip("-")
    return label if label[0].isalpha() else f"run-{label}"


def manifest(run: RunSpec, options: Options) -> dict[str, Any]:
    """The JobSet that trains one run, whose ``store`` is a folder as the pods see it (``on_volume``).

    Raises:
      MscaleError: an unknown accelerator or topology, not exactly one of claim and bucket is given, or the names of
        pods would be too long.
    """
    name, hosts = jobset_name(run), options.hosts
    longest = f"{name}-slice-{options.slices - 1}-{hosts - 1}-abcde"  # Kubernetes adds five characters
    if len(longest) > _NAME_LENGTH:
        raise MscaleError(
            f"gke: {options.slices} slices of {hosts} hosts give pods names such as {longest}, of more than "
            f"{_NAME_LENGTH} characters; use fewer slices"
        )
    if bool(options.claim) == bool(options.bucket):
        raise MscaleError("gke: give either a volume claim or a bucket for the run folders")
    labels = {
        "app.kubernetes.io/managed-by": "mscale",
        **_study_labels(run.study, options),
        "mscale/run": spec.slug(run.id, 63),
    }
    queue = {"kueue.x-k8s.io/queue-name": options.queue} if options.queue else {}
    return {
        "apiVersion": "jobset.x-k8s.io/v1alpha2",
        "kind": "JobSet",
        "metadata": {
            "name": name,
            "namespace": options.namespace,
            "labels": {**labels, **queue},
            # One replica takes one node pool, that is one slice, whole.
            "annotations": {
                "alpha.jobset.sigs.k8s.io/exclusive-topology": "cloud.google.com/gke-nodepool",
                **({"mscale/starts-from": run.parent} if run.parent else {}),
            },
        },
        "spec": {
            "network": {"enableDNSHostnames": True, "subdomain": name},
            "successPolicy": {"operator": "All"},
            "failurePolicy": {
                "maxRestarts": options.max_restarts,
                "rules": [
                    {
                        "name": "evicted",
                        "action": "RestartJobSetAndIgnoreMaxRestarts",
                        "onJobFailureReasons": ["PodFailurePolicy"],
                    }
                ],
            },
            "replicatedJobs": [
                {
                    "name": "slice",
                    "replicas": options.slices,
                    "template": {"spec": _job(name, run, options, hosts, labels)},
                }
            ],
        },
    }


def _study_labels(study: str, options: Options) -> dict[str, str]:
    """What tells the JobSets of a study from those of another one of that name, which lies in another folder."""
    folder = f"{options.claim or options.bucket} {options.root}"
    return {
        "mscale/study": spec.slug(study.replace(".", "-"), 60),
        "mscale/folder": hashlib.sha256(folder.encode()).hexdigest()[:10],
    }


def _job(name: str, run: RunSpec, options: Options, hosts: int, labels: dict[str, str]) -> dict[str, Any]:
    evicted = [
        {"action": "FailJob", "onPodConditions": [{"type": "DisruptionTarget", "status": "True"}]},
        {  # stopped, with its state saved
            "action": "FailJob",
            "onExitCodes": {
                "containerName": "train",
                "operator": "In",
                "values": [run_folder.PREEMPTED_EXIT_STATUS],
            },
        },
    ]
    return {
        "parallelism": hosts,
        "completions": hosts,
        "completionMode": "Indexed",
        "backoffLimit": 0,
        "podFailurePolicy": {"rules": evicted},
        "template": {
            "metadata": {
                "labels": labels,
                **({"annotations": {"gke-gcsfuse/volumes": "true"}} if options.bucket else {}),
            },
            "spec": _pod(name, run, options, hosts),
        },
    }


def _pod(name: str, run: RunSpec, options: Options, hosts: int) -> dict[str, Any]:
    chips = str(min(options.chips, _CHIPS_PER_HOST))
    selector = {
        "cloud.google.com/gke-tpu-accelerator": options.accelerator,
        "cloud.google.com/gke-tpu-topology": options.topology,
    }
    tolerations = [{"key": "google.com/tpu", "operator": "Exists", "effect": "NoSchedule"}]
    if options.spot:
        selector["cloud.google.com/gke-spot"] = "true"
        tolerations.append(
            {"key": "cloud.google.com/gke-spot", "operator": "Equal", "value": "true", "effect": "NoSchedule"}
        )
    volume: dict[str, Any] = {"name": "study"}
    if options.claim:
        volume["persistentVolumeClaim"] = {"claimName": options.claim}
    else:
        volume["csi"] = {
            "driver": "gcsfuse.csi.storage.gke.io",
            "volumeAttributes": {"bucketName": options.bucket, "mountOptions": "implicit-dirs"},
        }
    root = options.root or f"{options.mount}/study"
    command = ["python", "-m", "sweeps.executors.job", root, run.id, "--trainer", options.trainer]
    if not is_assumed(run.store):
        command += ["--store", run.store]
    optional = {"priorityClassName": options.priority, "serviceAccountName": options.service_account}
    return {
        "restartPolicy": "Never",
        "terminationGracePeriodSeconds": GRACE_SECONDS,
        "nodeSelector": selector,
        "tolerations": tolerations,
        **{key: value for key, value in optional.items() if value},
        "containers": [
            {
                "name": "train",
                "image": options.image,
                # exec: SIGTERM reaches the process instead of a shell. MSCALE_PROCESS_ID = slice × hosts + host.
                "command": [
                    "/bin/sh",
                    "-c",
                    f"export MSCALE_PROCESS_ID=$((MSCALE_SLICE * {hosts} + JOB_COMPLETION_INDEX)); "
                    f"exec {shlex.join(command)}",
                ],
                "env": _environment(name, options, hosts),
                "ports": [{"containerPort": COORDINATOR_PORT}, {"containerPort": MEGASCALE_PORT}],
                "resources": {"limits": {"google.com/tpu": chips}, "requests": {"google.com/tpu": chips}},
                "volumeMounts": [{"name": "study", "mountPath": options.mount}],
            }
        ],
        "volumes": [volume],
    }


def _environment(name: str, options: Options, hosts: int) -> list[dict[str, Any]]:
    first = f"{name}-slice-0-0.{name}"
    index = {"fieldRef": {"fieldPath": "metadata.annotations['jobset.sigs.k8s.io/job-index']"}}
    values: list[dict[str, Any]] = [
        {"name": "JOBSET_NAME", "value": name},
        {"name": "MSCALE_SLICE", "valueFrom": index},
        {"name": "MSCALE_PROCESSES", "value": str(hosts * options.slices)},
        {"name": "MSCALE_COORDINATOR", "value": f"{first}:{COORDINATOR_PORT}"},
    ]
    if options.slices > 1:
        values += [
            {"name": "MEGASCALE_COORDINATOR_ADDRESS", "value": first},
            {"name": "MEGASCALE_PORT", "value": str(MEGASCALE_PORT)},
            {"name": "MEGASCALE_NUM_SLICES", "value": str(options.slices)},
            {"name": "MEGASCALE_SLICE_ID", "valueFrom": index},
        ]
    return values


def on_volume(study: Study, root: str | Path, options: Options) -> tuple[Study, Options]:
    """The study with its stores, and the options with the study's folder, as the pods see them.

    The pods' volume is taken to be the folder in which ``options.root`` has the place that it has below
    ``options.mount``: with ``/mnt/b/x/study`` here and ``/mscale/x/study`` there, ``/mnt/b`` is ``/mscale``. What lies
    in it is mapped. A store behind a URL stays as it is, as does the placeholder of a study planned without one.

    Raises:
      MscaleError: a token store is not on the volume.
    """
    root = local_folder(root, "--root").resolve()
    if options.root is None:
        there = root if root.is_relative_to(options.mount) else Path(options.mount, root.name)
        options = replace(options, root=str(there))
    assert options.root is not None
    below = PurePosixPath(options.root).relative_to(options.mount).parts
    here, there = root, Path(options.root)
    if root.parts[len(root.parts) - len(below) :] == below:
        here, there = Path(*root.parts[: len(root.parts) - len(below)]), Path(options.mount)
    stores = {run.store for run in study.runs if not is_assumed(run.store)}
    if options.store is not None and len(stores) > 1:
        raise MscaleError(
            f"gke: store is {options.store}, but the study has the stores {', '.join(sorted(stores))}; put them on "
            f"the volume beside {root} and leave the option out"
        )
    places = {}
    for store in stores:
        place = location(store)
        if options.store is not None or isinstance(place, Url):
            places[store] = options.store or store
        elif place.resolve().is_relative_to(here):
            places[store] = str(there / place.resolve().relative_to(here))
        else:
            raise MscaleError(
                f"gke: the pods do not see the token store {store}: they mount {here} as {there}. Copy it there with "
                f"`mscale store copy`, or say where it is on their volume with --option store={options.mount}/..."
            )
    runs = tuple(replace(run, store=places.get(run.store, run.store)) for run in study.runs)
    return replace(study, runs=runs), options


def to_be_applied(study: Study, root: str | Path | None = None) -> list[RunSpec]:
    """The runs that are not done (all without a folder), parents first."""
    done = set()
    if root is not None and (Path(root) / "study.json").exists():
        states = state.read_states(study.runs, root)
        done = {run_id for run_id, one in states.items() if one.state == "done"}
    return [run for run in run_graph.longest_chain_first(study.runs) if run.id not in done]


def dry_run(study: Study, options: Options, root: str | Path | None = None) -> str:
    """The manifests of all runs that are not done (of all runs without a folder), parents first.

    The text is a stream of YAML documents for ``kubectl apply -f -``; each is JSON, which is valid YAML.
    """
    runs = to_be_applied(study, root)
    ids = {run.id for run in runs}
    parts = []
    for run in runs:
        after = f", after {run.parent}" if run.parent in ids else ""
        parts.append(f"# {run.id}{after}\n{json.dumps(manifest(run, options), indent=2)}\n")
    return "---\n".join(parts)


def write_manifests(runs: Sequence[RunSpec], options: Options, folder: Path) -> None:
    """Writes one manifest a run, ``<name of its JobSet>.json``, for ``kubectl apply -f FILE``."""
    for run in runs:
        atomic_json(folder / f"{jobset_name(run)}.json", manifest(run, options))


def summary(runs: Sequence[RunSpec], options: Options) -> str:
    """Pods, chips and hours of these runs, and where their pods read."""
    chips = options.chips * options.slices
    peak = next(chip.peak_flops for chip in CHIPS.values() if chip.gke_slice == options.accelerator)
    hours = sum(run.flops for run in runs) / (peak * _MFU * 3600)
    span = run_graph.makespan(runs, options.at_once, lambda run: run.flops / (chips * peak * _MFU * 3600))
    stores = ", ".join(sorted({run.store for run in runs if not is_assumed(run.store)}))
    return (
        f"{len(runs):,} JobSets, each of {options.slices * options.hosts} pods on {chips} chips "
        f"({options.slices} × {options.accelerator} {options.topology}{', spot' if options.spot else ''})\n"
        f"about {hours:,.1f} chip-hours, {span:,.1f} hours with {options.at_once} at once, at {_MFU:.0%} of the peak\n"
        f"pods read the study in {options.root}, the token store in {stores or 'none: give --store to run it'}"
    )


def run(
    study: Study,
    root: str | Path,
    options: Options,
    *,
    poll_seconds: float = 30.0,
) -> None:
    """Applies each run once its parent is done, at most ``options.at_once`` JobSets at a time, until all have ended.

    Args:
      root: the study's folder as this machine sees it (the same volume that ``options.root`` names in the pods).

    Raises:
      MscaleError: kubectl or the cluster cannot be reached or refuses; the store is not on the pods' volume; runs
        failed; another runner works on it.
    """
    root = local_folder(root, "--root").resolve()
    cluster.require_program("kubectl", _NO_KUBECTL)
    manifest(study.runs[0], options)
    on_volume(study, root, options)
    with study_lock(root), cluster.terminable():
        study = state.save_study(study, root)
        there, options = on_volume(study, root, options)
        atomic_json(root / _OPTIONS_FILE, options)
        _clear_ended(study, root, options)
        order = run_graph.longest_chain_first(study.runs)
        with cluster.study_progress(study, "GKE") as show:
            while True:
                states = state.read_states(study.runs, root)
                found = jobsets(study, options)
                for one in order:
                    name = jobset_name(one)
                    if found.get(name) == "Failed" and states[one.id].state not in ("done", "failed"):
                        reason = f"its JobSet {name} failed; see kubectl describe"
                        run_folder.write_failure(spec.workdir(root, one.id), reason)
                        states = state.read_states(study.runs, root)
                show(states, "")
                active = [name for name, condition in found.items() if condition == "Active"]
                ready = [
                    one
                    for one in order
                    if states[one.id].state in ("waiting", "interrupted")
                    and jobset_name(one) not in found
                    and not run_folder.is_cancelled(spec.workdir(root, one.id))
                    and (one.parent is None or states[one.parent].state == "done")
                ]
                for one in ready[: max(0, options.at_once - len(active))]:
                    _kubectl(
                        ["apply", "-f", "-"], options, json.dumps(manifest(there.by_id[one.id], options))
                    )
                if not ready and not active:
                    break
                time.sleep(poll_seconds)
    cluster.require_done(states, "Mend the cause, `retry` them, and call the same command again.")


def _clear_ended(study: Study, root: Path, options: Options) -> None:
    """Deletes the ended JobSets of runs that are not done, so that they are applied again."""
    states = state.read_states(study.runs, root)
    found = jobsets(study, options)
    ended = [
        one
        for one in study.runs
        if states[one.id].state != "done" and found.get(jobset_name(one), "Active") != "Active"
    ]
    cancel(study, options, [one.id for one in ended])
    for one in study.runs:
        if states[one.id].state == "failed":
            run_folder.clear_failure(spec.workdir(root, one.id))


def jobsets(study: Study, options: Options) -> dict[str, str]:
    """JobSet name to Active, Completed or Failed, for the JobSets of this study.

    Raises:
      MscaleError: the cluster cannot be reached.
    """
    labels = ",".join(f"{name}={value}" for name, value in _study_labels(study.name, options).items())
    answer = _kubectl(["get", "jobsets", "-n", options.namespace, "-l", labels, "-o", "json"], options)
    found = {}
    try:
        for item in json.loads(answer)["items"]:
            terminal = item.get("status", {}).get("terminalState")
            conditions = item.get("status", {}).get("conditions", ())
            ended = [one["type"] for one in conditions if one.get("status") == "True"]
            condition = terminal or next((one for one in ended if one in ("Completed", "Failed")), "Active")
            found[item["metadata"]["name"]] = condition
    except (ValueError, LookupError, TypeError, AttributeError):
        raise MscaleError(
            f"kubectl get jobsets answered {answer[:200]!r}: expected a list of JobSets as JSON; is that kubectl, and "
            "is JobSet installed in the cluster?"
        ) from None
    return found


def options_of(root: Path) -> Options | None:
    """The options that the study in ``root`` was last run with on GKE; None if it never was."""
    if not (root / _OPTIONS_FILE).exists():
        return None
    remedy = "delete it, and the JobSets with kubectl"
    return read_json_as(root / _OPTIONS_FILE, Options, what="record of GKE's options", remedy=remedy)


def cancel(study: Study, options: Options, runs: Sequence[str] | None = None) -> list[str]:
    """Deletes the JobSets of runs (all by default); returns the runs whose JobSet was there.

    Raises:
      MscaleError: the cluster cannot be reached.
    """
    found = jobsets(study, options)
    chosen = list(study.runs) if runs is None else [study.by_id[one] for one in runs]
    present = [one for one in chosen if jobset_name(one) in found]
    for start in range(0, len(present), 100):
        names = [jobset_name(one) for one in present[start : start + 100]]
        _kubectl(["delete", "jobset", "-n", options.namespace, "--wait=false", *names], options)
    return [one.id for one in present]


def _kubectl(arguments: Sequence[str], options: Options, standard_input: str | None = None) -> str:
    command = ["kubectl", *arguments, *(["--context", options.context] if options.context else [])]
    return cluster.call(
        command, timeout=_KUBECTL_TIMEOUT_SECONDS, missing=_NO_KUBECTL, standard_input=standard_input
    )
