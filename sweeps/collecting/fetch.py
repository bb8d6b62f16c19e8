"""Copies the small files of remote run folders (gs://, s3://) to a local folder, to read the study from there."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec

from mscale import run_folder
from mscale.errors import MscaleError
from mscale.files import atomic_json, atomic_write
from mscale.progress import progress
from mscale.remote import Url, connect, list_files, location, with_retries
from sweeps.spec import check_run_id

_RECORD = "fetched.json"
# The status is written last: a run that is done here has all its other files here.
_STATUS = run_folder.STATUS_FILE
_RUN_FILES = (
    run_folder.SPEC_FILE,
    run_folder.FAILURE_FILE,
    run_folder.HEARTBEAT_FILE,
    run_folder.OBSERVATIONS_FILE,
    run_folder.EXPOSURE_FILE,
)


def fetch(source: str, root: str | Path) -> int:
    """Copies a remote study without checkpoints and logs into ``root``; returns how many runs had changed.

    A run is read again when its status has changed. Its status is read before its other files and written after them,
    so that a run that is done here has all its rows here even if it trains during the copy.

    Args:
      source: URL of the study's folder.
      root: local folder, created or updated; ``collect``, ``status_table`` and the report read it.

    Raises:
      MscaleError: not a URL, no study there, or reading failed repeatedly.
    """
    place, root = location(source), Path(root)
    if not isinstance(place, Url):
        raise MscaleError(f"{source}: is on this machine; expected a URL such as gs://bucket/study")
    system, base = connect(place)
    prefix = base.rstrip("/") + "/"

    stamps = {name: list(stamp) for name, stamp in list_files(system, base, place).items()}
    if "study.json" not in stamps:
        raise MscaleError(
            f"{place}: no study.json there; expected the folder that `mscale sweep run` was given"
        )

    def read(name: str) -> bytes:
        return with_retries(lambda: system.cat_file(prefix + name), f"read {place / name}")

    atomic_write(root / "study.json", read("study.json"))
    fetched = _fetched_before(root, place)
    folders = sorted(
        {name.rsplit("/", 1)[0] for name in stamps if name.startswith("runs/") and name.count("/") == 2}
    )
    for folder in folders:
        check_run_id(folder.removeprefix("runs/"))
    changed = [folder for folder in folders if fetched.get(folder) != stamps.get(f"{folder}/{_STATUS}")]
    with progress("fetch", len(changed), "runs") as advance:
        for folder in changed:
            status = read(f"{folder}/{_STATUS}") if f"{folder}/{_STATUS}" in stamps else None
            for name in _RUN_FILES:
                path = root / folder / name
                if f"{folder}/{name}" in stamps:
                    atomic_write(path, read(f"{folder}/{name}"))
                else:
                    path.unlink(missing_ok=True)
            if status is not None:
                atomic_write(root / folder / _STATUS, status)
                fetched[folder] = stamps[f"{folder}/{_STATUS}"]
            advance()
    atomic_json(root / _RECORD, _Fetched(str(place), fetched))
    return len(changed)


@dataclass(frozen=True)
class _Fetched:
    """Where the runs here come from, and run folder to the version of its status."""

    source: str
    runs: dict[str, Any]


def _fetched_before(root: Path, place: Url) -> dict[str, Any]:
    """Run folder to the version of its status that was fetched last.

    Raises:
      MscaleError: the folder holds another study.
    """
    path = root / _RECORD
    try:
        record = msgspec.json.decode(path.read_bytes(), type=_Fetched)
    except FileNotFoundError:
        if (root / "runs").exists():
            raise MscaleError(
                f"{root}: holds runs of this machine; choose another folder for {place}"
            ) from None
        return {}
    except (msgspec.DecodeError, UnicodeDecodeError):
        return {}  # everything is fetched again
    if record.source != str(place):
        raise MscaleError(f"{root}: holds what was fetched from {record.source}; choose another folder")
    return record.runs
