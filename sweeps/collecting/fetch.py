"""Run folders that lie elsewhere (gs://, s3://): what reading a study needs of them, brought to a local folder."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mscale.errors import MscaleError
from mscale.files import atomic_json, atomic_write
from mscale.progress import progress
from mscale.remote import Url, connect, listing, location, retried

_RECORD = "fetched.json"
# Last the file that says a run is done: whatever it vouches for is here by then.
_RUN_FILES = ("spec.json", "failure.json", "heartbeat.json", "observations.jsonl", "exposure.jsonl")
_STATUS = "status.json"


def fetch(source: str, root: str | Path) -> int:
    """Copies a remote study, checkpoints and logs aside, into ``root``; returns how many runs had changed.

    A run is read again where its status has changed; its status is read before its other files and written after
    them, so that a run that is done here has all its rows here, though it trains meanwhile.

    Args:
      source: URL of the study's folder.
      root: local folder, made or brought up to date; ``collect``, ``status_table`` and the report read it.

    Raises:
      MscaleError: not a URL, no study there, or reading failed for good.
    """
    place, root = location(source), Path(root)
    if not isinstance(place, Url):
        raise MscaleError(f"{source}: is on this machine; expected a URL such as gs://bucket/study")
    system, base = connect(place)
    prefix = base.rstrip("/") + "/"

    stamps = {name: list(stamp) for name, stamp in listing(system, base, place).items()}
    if "study.json" not in stamps:
        raise MscaleError(
            f"{place}: no study.json there; expected the folder that `mscale sweep run` was given"
        )

    def read(name: str) -> bytes:
        return retried(lambda: system.cat_file(prefix + name), f"read {place / name}")

    atomic_write(root / "study.json", read("study.json"))
    seen = _seen(root, place)
    folders = sorted(
        {name.rsplit("/", 1)[0] for name in stamps if name.startswith("runs/") and name.count("/") == 2}
    )
    changed = [folder for folder in folders if seen.get(folder) != stamps.get(f"{folder}/{_STATUS}")]
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
                seen[folder] = stamps[f"{folder}/{_STATUS}"]
            advance()
    atomic_json(root / _RECORD, {"source": str(place), "runs": seen})
    return len(changed)


def _seen(root: Path, place: Url) -> dict[str, Any]:
    """Stamps of the statuses fetched before.

    Raises:
      MscaleError: the folder holds another study.
    """
    path = root / _RECORD
    try:
        record: Mapping[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        if (root / "runs").exists():
            raise MscaleError(
                f"{root}: holds runs of this machine; choose another folder for {place}"
            ) from None
        return {}
    except ValueError:
        return {}
    if record.get("source") != str(place):
        raise MscaleError(
            f"{root}: holds what was fetched from {record.get('source')}; choose another folder"
        )
    return dict(record["runs"])
