"""Report on the installation and the machine: versions, extras, devices, environment (``mscale doctor``).

Bug reports include its output. Versions are read from the metadata of the installed distributions, without importing
them. JAX is imported in a process of its own with a time limit, so that a broken or hanging accelerator is reported
instead of ending the command. Values of variables that may be secret are not shown.
"""

import importlib.util
import json
import os
import platform
import re
import shutil
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from importlib import metadata
from pathlib import Path

import click
from packaging.requirements import Requirement

DISTRIBUTION = "mscale"
TOP_LEVEL = ("mscale", "mixtures", "sweeps", "analysis")
JAX_SECONDS = 60.0

OPTIONAL_DISTRIBUTIONS = (
    "gcsfs",
    "jax-cuda12-plugin",
    "jax-cuda13-plugin",
    "jaxlib",
    "libtpu",
    "s3fs",
    "tensorstore",
    "wandb",
)
"""Distributions that mscale does not require by name; their versions are reported if they are installed."""

_RELEVANT_VARIABLE = re.compile(
    r"(MSCALE|JAX|XLA|LIBTPU|TPU|CUDA|NCCL|EPATH|TF_CPP|TF_GPU)_\w+"
    r"|(OMP|OPENBLAS|MKL)_NUM_THREADS|PYTHONPATH|LD_PRELOAD"
)
_SECRET_NAME = re.compile(r"KEY|TOKEN|SECRET|PASS|CREDENTIAL|AUTH", re.IGNORECASE)
HIDDEN_VALUE = "(set, not shown)"

# A program that prints one line of JSON; its process may hang, crash or be killed.
_JAX_PROBE = """
import json, time
start = time.monotonic()
import jax
devices = jax.devices()
kinds = [device.device_kind for device in devices]
print(json.dumps({
    "version": jax.__version__,
    "backend": jax.default_backend(),
    "devices": {kind: kinds.count(kind) for kind in dict.fromkeys(kinds)},
    "processes": jax.process_count(),
    "seconds": round(time.monotonic() - start, 1),
}))
"""


@dataclass(frozen=True)
class JaxStatus:
    """Version and devices of JAX.

    Attributes:
      version: of JAX.
      backend: "cpu", "gpu" or "tpu".
      devices: kind of device -> number of devices.
      processes: number of processes.
      seconds: time to import JAX and to find its devices.
      error: "" if JAX works, else the reason why it does not, and the other fields are empty.
    """

    version: str
    backend: str
    devices: dict[str, int]
    processes: int
    seconds: float
    error: str


@dataclass(frozen=True)
class Machine:
    """Resources of the machine; sizes in bytes, None if the system does not report them.

    Attributes:
      system: name and version of the operating system.
      architecture: of the processor.
      cores: that this process may use.
      memory: of the machine, or the limit of its container if that is lower.
      disk_free: on the disk of the current folder.
    """

    system: str
    architecture: str
    cores: int
    memory: int | None
    disk_free: int | None


@dataclass(frozen=True)
class DoctorReport:
    """The report of ``mscale doctor``.

    Attributes:
      mscale: version.
      python: version, and path of the interpreter.
      packages: top-level package -> the folder that it would be imported from, or "" if there is none.
      versions: distribution -> version, of all requirements that are installed and of ``OPTIONAL_DISTRIBUTIONS``.
      jax: version and devices of JAX.
      machine: resources of the machine.
      extras: extra -> its requirements that are not installed.
      environment: environment variables that affect JAX, XLA and mscale, without secrets.
      problems: each with its remedy.
    """

    mscale: str
    python: dict[str, str]
    packages: dict[str, str]
    versions: dict[str, str]
    extras: dict[str, list[str]]
    jax: JaxStatus
    machine: Machine
    environment: dict[str, str]
    problems: list[str]


def examine_installation(seconds: float = JAX_SECONDS) -> DoctorReport:
    """Collects the report; ``seconds`` is the time limit for importing JAX and finding its devices. Does not raise."""
    from mscale import __version__

    required = requirements(DISTRIBUTION)
    extras = missing_by_extra(required)
    packages = {name: _folder(name) for name in TOP_LEVEL}
    jax = probe_jax(seconds)
    return DoctorReport(
        mscale=__version__,
        python={"version": platform.python_version(), "executable": _home(sys.executable)},
        packages={name: _home(folder) for name, folder in packages.items()},
        versions=installed_versions(
            sorted({one.name for listed in required.values() for one in listed} | set(OPTIONAL_DISTRIBUTIONS))
        ),
        extras=extras,
        jax=jax,
        machine=machine_resources(),
        environment=relevant_variables(os.environ),
        problems=_problems(__version__, required, packages, jax),
    )


def requirements(distribution: str) -> dict[str, list[Requirement]]:
    """Returns the requirements of a distribution by extra, those without one under ""; empty if it is not installed."""
    try:
        described = metadata.metadata(distribution)
    except metadata.PackageNotFoundError:
        return {}
    always: list[Requirement] = []
    of_extras: list[Requirement] = []
    for one in map(Requirement, described.get_all("Requires-Dist") or ()):
        (always if one.marker is None or one.marker.evaluate({"extra": ""}) else of_extras).append(one)
    return {"": always} | {
        extra: [one for one in of_extras if one.marker and one.marker.evaluate({"extra": extra})]
        for extra in described.get_all("Provides-Extra") or ()
    }


def installed_versions(names: Sequence[str]) -> dict[str, str]:
    """Returns the versions of those distributions that are installed, without importing them."""
    found = {name: _version(name) for name in names}
    return {name: version for name, version in found.items() if version is not None}


def missing_by_extra(required: Mapping[str, Sequence[Requirement]]) -> dict[str, list[str]]:
    """Returns for each extra its requirements that are not installed, with those of nested extras (jax[cuda12])."""
    return {
        extra: sorted({name for one in listed for name in _missing(one)})
        for extra, listed in sorted(required.items())
        if extra
    }


def probe_jax(seconds: float = JAX_SECONDS) -> JaxStatus:
    """Imports JAX in another process and lists its devices, without preallocating their memory.

    Args:
      seconds: time after which that process is killed; a TPU that waits for its other hosts never returns.
    """
    # Preallocation would fail, or take memory from a run that is training on the same GPU.
    variables = {**os.environ, "XLA_PYTHON_CLIENT_PREALLOCATE": "false"}
    # -P excludes the current folder from sys.path, as for the console script.
    command = [sys.executable, "-P", "-c", _JAX_PROBE]
    try:
        ran = subprocess.run(
            command, capture_output=True, timeout=seconds, env=variables, text=True, errors="replace"
        )
    except subprocess.TimeoutExpired:
        return _no_jax(f"no answer within {seconds:g} s (import jax; jax.devices())")
    except OSError as error:
        return _no_jax(f"no process could be started to import it: {error}")
    last = (ran.stderr.strip().splitlines() or ["it said nothing"])[-1]
    if ran.returncode < 0:
        return _no_jax(f"its process was ended by signal {-ran.returncode}: {last}")
    if ran.returncode:
        return _no_jax(last)
    try:
        return JaxStatus(**json.loads(ran.stdout.strip().splitlines()[-1]), error="")
    except (ValueError, TypeError, IndexError):
        return _no_jax(f"its process printed {ran.stdout[-200:]!r}")


def machine_resources() -> Machine:
    """Returns platform, cores, memory and disk that this process may use."""
    try:
        cores = len(os.sched_getaffinity(0))
    except AttributeError:  # macOS
        cores = os.cpu_count() or 1
    try:
        disk = shutil.disk_usage(os.getcwd()).free
    except OSError:
        disk = None
    return Machine(platform.platform(), platform.machine(), cores, _memory(), disk)


def relevant_variables(variables: Mapping[str, str]) -> dict[str, str]:
    """Returns the variables that affect JAX, XLA or mscale, with secrets hidden and the home folder as ``~``."""
    found = {}
    for name, value in sorted(variables.items()):
        if _RELEVANT_VARIABLE.fullmatch(name):
            shown = re.sub(r"://[^/@\s]+@", "://***@", value)  # user:password@ in URLs
            found[name] = HIDDEN_VALUE if _SECRET_NAME.search(name) else _home(shown)
    return found


def report_text(report: DoctorReport) -> str:
    """Returns the report as plain text, for an issue."""
    lines = [
        f"mscale    {report.mscale}",
        f"python    {report.python['version']} ({report.python['executable']})",
        f"platform  {report.machine.system} ({report.machine.architecture})",
        f"cores     {report.machine.cores}",
        f"memory    {_gigabytes(report.machine.memory)}",
        f"disk      {_gigabytes(report.machine.disk_free)} free in the current folder",
        f"jax       {_jax_line(report.jax)}",
    ]
    lines += _section("packages", {name: folder or "not found" for name, folder in report.packages.items()})
    lines += _section("versions", report.versions)
    lines += _section(
        "extras",
        {
            extra: f"lacks {', '.join(missing)}" if missing else "installed"
            for extra, missing in report.extras.items()
        },
    )
    lines += _section("environment", report.environment)
    lines += ["", "problems" if report.problems else "no problem found"]
    lines += [f"  {problem}" for problem in report.problems]
    return "\n".join(lines)


@click.command()
@click.option("--json", "as_json", is_flag=True, help="The same as JSON.")
@click.option(
    "--timeout",
    "seconds",
    type=click.FloatRange(min=0, min_open=True),
    default=JAX_SECONDS,
    show_default=True,
    help="Seconds that JAX gets to be imported and to find its devices.",
)
def doctor(as_json: bool, seconds: float) -> None:
    """Print versions, devices, extras and settings: what a bug report needs."""
    report = examine_installation(seconds)
    click.echo(json.dumps(asdict(report), indent=2) if as_json else report_text(report))


def _problems(
    version: str, required: Mapping[str, Sequence[Requirement]], packages: Mapping[str, str], jax: JaxStatus
) -> list[str]:
    found = []
    installed = _version(DISTRIBUTION)
    if installed is None:
        found.append(
            "mscale is not installed, so its requirements are unknown: pip install . in the checkout"
        )
    elif installed != version:
        found.append(
            f"version {version} is imported, the metadata installed is of {installed}: install mscale again"
        )
    for extra, one in ((extra, one) for extra, listed in required.items() for one in listed):
        current = _version(one.name)
        if current is None and not extra:
            found.append(f"{one.name} is not installed, and mscale needs it: pip install {one.name}")
        elif current is not None and not one.specifier.contains(current, prereleases=True):
            found.append(f"{one.name} {current} is installed, {one.specifier} is needed")
    home = Path(packages["mscale"]).parent
    for name, folder in packages.items():
        if not folder:
            found.append(f"package {name!r} is not found: install mscale again")
        elif Path(folder).parent != home:
            found.append(
                f"package {name!r} is taken from {_home(folder)}, not from {_home(str(home))}: another project has "
                "a package of that name; use an environment for mscale alone, or another current folder"
            )
    if jax.error:
        found.append(f"jax does not work, so nothing can be trained here (analysis can): {jax.error}")
    return list(dict.fromkeys(found))


def _missing(requirement: Requirement) -> list[str]:
    if _version(requirement.name) is None:
        return [requirement.name]
    nested = requirements(requirement.name) if requirement.extras else {}
    parts = [one for extra in requirement.extras for one in nested.get(extra, ())]
    return [one.name for one in parts if _version(one.name) is None]


def _version(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


def _folder(name: str) -> str:
    """Folder that a top-level package would be imported from; it is not imported."""
    try:
        found = importlib.util.find_spec(name)
    except (ImportError, ValueError):
        return ""
    if found is None:
        return ""
    if found.origin:
        path = Path(found.origin)
        return str(path.parent if path.name == "__init__.py" else path)
    return next(iter(found.submodule_search_locations or ()), "")


def _no_jax(error: str) -> JaxStatus:
    return JaxStatus("", "", {}, 0, 0.0, _home(error))


def _memory() -> int | None:
    """Bytes of the machine, or of the container if its limit is lower."""
    if "SC_PHYS_PAGES" not in getattr(os, "sysconf_names", {}):
        return None
    total = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    try:
        return min(total, int(Path("/sys/fs/cgroup/memory.max").read_text(encoding="ascii")))
    except (OSError, ValueError):  # "max" is no limit
        return total


def _home(text: str) -> str:
    """``text`` with the home folder as ``~``: it often holds a person's name."""
    home = os.path.expanduser("~")
    return re.sub(rf"{re.escape(home)}(?=[/:\s]|$)", "~", text) if len(home) > 1 else text


def _gigabytes(size: int | None) -> str:
    return "unknown" if size is None else f"{size / 1e9:.1f} GB"


def _jax_line(jax: JaxStatus) -> str:
    if jax.error:
        return f"does not work: {jax.error}"
    devices = ", ".join(f"{count} x {kind}" for kind, count in jax.devices.items())
    return f"{jax.version} on {jax.backend}: {devices} ({jax.seconds} s to start)"


def _section(title: str, rows: Mapping[str, str]) -> list[str]:
    width = max(map(len, rows), default=0)
    return [
        "",
        title,
        *(f"  {name:<{width}}  {value}" for name, value in rows.items() or {"none": ""}.items()),
    ]
