"""Checkpoints: orbax files in a folder that is written atomically, with checksums that are verified before a restore.

    <workdir>/checkpoints/step_300/state/         orbax's files, a flat dictionary of arrays
                                   meta.json      step, tokens, vocabulary, model: what a restore must match
                                   manifest.json  size and CRC-32 of every file above

Orbax restores a file with a flipped bit without an error, so the manifest is written last and verified first. A
folder is written as ``.step_300.saving`` and renamed when complete, so a checkpoint is complete or absent even if the
process is killed. Damaged checkpoints are renamed to ``step_300.damaged``, never deleted; where no other is left the
run stops. A checkpoint whose checksums agree is never taken for damaged: if it cannot be read that is an error.
"""

import contextlib
import functools
import json
import os
import re
import shutil
import sys
import threading
import zlib
from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp

from mscale import run_folder
from mscale.errors import MscaleError
from mscale.files import atomic_json, read_json, writing
from mscale.remote import local_folder
from mscale.training import distributed

ASYNCHRONOUS_BYTES = 64 * 2**20
"""States of at least this size are written in a thread while training continues; smaller ones at once."""

_STEP = re.compile(r"^step_(\d+)$")
_SET_ASIDE = re.compile(r"^step_(\d+)\.damaged")


class DamagedCheckpoint(MscaleError):
    """A checkpoint whose files are missing or differ from what was saved."""


def checkpoint_path(folder: str | os.PathLike, step: int) -> Path:
    """Returns the path of the checkpoint of ``step`` in a run's checkpoint folder."""
    return Path(folder) / f"step_{step}"


def saved_steps(folder: str | os.PathLike) -> list[int]:
    """Returns the steps with a complete checkpoint in ``folder``, ascending; empty if the folder is absent."""
    return _steps(folder, _STEP)


def _steps(folder: str | os.PathLike, pattern: re.Pattern) -> list[int]:
    try:
        names = os.listdir(folder)
    except (FileNotFoundError, NotADirectoryError):
        return []
    return sorted(int(match[1]) for match in map(pattern.match, names) if match)


def flatten_by_path(tree: Any) -> dict[str, Any]:
    """Returns a pytree's leaves by dotted path, such as "params.embedding": the names in a checkpoint."""
    leaves = jax.tree_util.tree_flatten_with_path(tree)[0]
    return {jax.tree_util.keystr(path, simple=True, separator="."): leaf for path, leaf in leaves}


# ---------------------------------------------------------------------------------------------- checksums


def _checksums(path: Path) -> dict[str, dict[str, int]]:
    """Returns size and CRC-32 of every file under ``path`` except the manifest, by relative path."""
    found = {}
    for file in sorted(path.rglob("*")):
        name = file.relative_to(path).as_posix()
        if file.is_file() and name != "manifest.json":
            crc = size = 0
            with open(file, "rb") as handle:
                while block := handle.read(2**22):
                    crc, size = zlib.crc32(block, crc), size + len(block)
            found[name] = {"bytes": size, "crc32": crc}
    return found


def verify(path: str | os.PathLike) -> dict[str, Any]:
    """Checks a checkpoint's files against its manifest and returns its metadata; only host 0 reads the files.

    Raises:
      DamagedCheckpoint: a file is missing, truncated or changed; the message names the first one.
      MscaleError: a file cannot be read, which may be a matter of permissions or of the disk.
    """
    path = Path(path).absolute()
    try:
        manifest = json.loads((path / "manifest.json").read_text(encoding="utf-8"))["files"]
        manifest = manifest if jax.process_index() == 0 else {}
        found = _checksums(path) if manifest else {}
    except (FileNotFoundError, ValueError, KeyError, TypeError) as error:
        raise DamagedCheckpoint(f"{path}: its manifest.json is missing or damaged ({error})") from error
    except OSError as error:
        raise MscaleError(
            f"{error.filename or path}: this file of a checkpoint cannot be read ({error.strerror}); check its "
            "permissions and the disk, then run again"
        ) from error
    for name, expected in manifest.items():
        if name not in found:
            raise DamagedCheckpoint(f"{path}: the file {name} is missing")
        if found[name] != expected:
            raise DamagedCheckpoint(
                f"{path}: the file {name} is damaged: {found[name]['bytes']} bytes with CRC "
                f"{found[name]['crc32']:08x}, saved were {expected['bytes']} with {expected['crc32']:08x}"
            )
    return _meta(path)


def _meta(path: Path) -> dict[str, Any]:
    return read_json(path / "meta.json", what="part of a checkpoint")


# ------------------------------------------------------------------------------------------------- restore


@functools.cache
def _checkpointer() -> ocp.Checkpointer:
    return ocp.Checkpointer(ocp.PyTreeCheckpointHandler(use_ocdbt=True, use_zarr3=True))


def restore(path: str | os.PathLike, template: Any, *, shardings: Any = None) -> Any:
    """Restores the arrays of ``template`` from a verified checkpoint.

    Args:
      path: a checkpoint folder, as from ``checkpoint_path``.
      template: pytree of arrays or ShapeDtypeStructs; may be a part of the saved state (e.g. parameters only).
      shardings: pytree of the same structure with the shardings to restore to; None restores numpy arrays.

    Raises:
      MscaleError: orbax cannot read it, or an array is missing, or has another shape or type.
    """
    path = Path(path).absolute()  # orbax's metadata() returns None for a relative path
    wanted = flatten_by_path(template)
    names = list(wanted)
    sharding_of = flatten_by_path(shardings) if shardings is not None else {}
    arguments = {
        name: ocp.ArrayRestoreArgs(sharding=sharding_of[name], global_shape=leaf.shape, dtype=leaf.dtype)
        if sharding_of
        else ocp.RestoreArgs(restore_type=np.ndarray)
        for name, leaf in wanted.items()
    }
    try:
        saved = _checkpointer().metadata(path / "state").item_metadata.tree
        older = "optimizer.adam.count" in wanted and "optimizer.adam.count" not in saved
        if older:
            del wanted["optimizer.adam.count"]
            wanted = {_name_before_optax(name): leaf for name, leaf in wanted.items()}
            arguments = {_name_before_optax(name): argument for name, argument in arguments.items()}
        for name, leaf in wanted.items():
            if name not in saved:
                raise MscaleError(f"{path}: holds no array {name}; it belongs to another model or version")
            if tuple(saved[name].shape) != tuple(leaf.shape) or saved[name].dtype != leaf.dtype:
                raise MscaleError(
                    f"{path}: array {name} is {saved[name].dtype}{list(saved[name].shape)}, this run's is "
                    f"{leaf.dtype}{list(leaf.shape)}; it belongs to another model"
                )
        values = _checkpointer().restore(
            path / "state",
            args=ocp.args.PyTreeRestore(
                item=dict(wanted),
                restore_args={name: arguments[name] for name in wanted},
                partial_restore=len(saved) > len(wanted),
            ),
        )
    except MscaleError:
        raise
    except Exception as error:
        reason = (str(error) or type(error).__name__).splitlines()[0]
        raise MscaleError(
            f"{path}: its checksums agree, but orbax {ocp.__version__} cannot read it: {reason}; it is left as it is. "
            "Check memory and disk, and that this version of orbax is not older than the one that wrote it"
        ) from error
    if older:
        values = {
            name: values[_name_before_optax(name)] for name in names if _name_before_optax(name) in values
        }
        count = np.asarray(_meta(path)["step"], np.int32)
        values["optimizer.adam.count"] = jax.device_put(count, sharding_of.get("optimizer.adam.count"))
    return jax.tree.unflatten(jax.tree.structure(template), [values[name] for name in names])


def _name_before_optax(name: str) -> str:
    """Name of an array in checkpoints made before the optimizer was an optax chain, which had no count of steps."""
    return name.replace("optimizer.adam.", "optimizer.", 1)


def restore_latest(
    folder: str | os.PathLike,
    template: Any,
    *,
    shardings: Any = None,
    at_most: int | None = None,
    check: Callable[[Path, dict[str, Any]], None] | None = None,
) -> tuple[Any, dict[str, Any]] | None:
    """Restores a run's latest undamaged checkpoint; damaged ones after it are named on stderr and renamed.

    Args:
      folder: the run's checkpoint folder.
      template, shardings: as for ``restore``.
      at_most: checkpoints of later steps are passed over.
      check: called with path and metadata before the arrays are read; it raises if they do not fit the run.

    Returns:
      (state, metadata), or None if there is no checkpoint, damaged or not.

    Raises:
      MscaleError: as ``check`` and ``restore``; or all checkpoints are damaged.
    """
    latest = distributed.broadcast_from_first(
        _latest_undamaged(folder, at_most) if jax.process_index() == 0 else 0
    )
    if latest < 0:
        return None
    path = checkpoint_path(folder, latest)
    meta = _meta(path)
    if check is not None:
        check(path, meta)
    return restore(path, template, shardings=shardings), meta


def _latest_undamaged(folder: str | os.PathLike, at_most: int | None) -> int:
    """Step of the latest undamaged checkpoint, -1 if there is none; damaged ones after it are set aside.

    Raises:
      MscaleError: all are damaged, now or when they were set aside.
    """
    damaged: dict[Path, DamagedCheckpoint] = {}
    for step in reversed(saved_steps(folder)):
        if at_most is not None and step > at_most:
            continue
        path = checkpoint_path(folder, step)
        try:
            verify(path)
        except DamagedCheckpoint as error:
            damaged[path] = error
            continue
        for other, why in damaged.items():
            _set_aside_with_warning(other, why)
        return step
    earlier = [step for step in _steps(folder, _SET_ASIDE) if at_most is None or step <= at_most]
    if damaged or earlier:
        found = [
            *map(str, damaged.values()),
            *(f"step_{step}.damaged was set aside before" for step in earlier),
        ]
        raise MscaleError(
            f"{folder}: every checkpoint is damaged, and training would begin anew. Put a copy of one back, or delete "
            f"them to begin anew. Found: {'; '.join(found)}"
        )
    return -1


def _set_aside_with_warning(path: Path, error: DamagedCheckpoint) -> None:
    aside = set_aside(path)
    print(f"warning: {error}; set aside as {aside.name}, using the one before", file=sys.stderr)


def set_aside(path: Path) -> Path:
    """Renames a damaged checkpoint so that it is neither restored from nor lost; returns its new path."""
    number = 0
    while (aside := path.with_name(f"{path.name}.damaged{number or ''}")).exists():
        number += 1
    with writing(path):
        os.rename(path, aside)
    return aside


# ---------------------------------------------------------------------------------------------------- save


class CheckpointWriter:
    """Writes a run's checkpoints, large ones in a thread, and removes old ones."""

    def __init__(self, folder: str | os.PathLike, *, keep_steps: Collection[int] = (), keep_latest: int = 2):
        """Writes into ``folder``; the checkpoints of ``keep_steps`` and the ``keep_latest`` newest are not removed."""
        self.folder = Path(folder).absolute()
        self.keep_steps = frozenset(keep_steps)
        self.keep_latest = keep_latest
        self._thread: threading.Thread | None = None
        self._error: BaseException | None = None
        with writing(self.folder):
            self.folder.mkdir(parents=True, exist_ok=True)
            if jax.process_index() == 0:
                for unfinished in self.folder.glob(".step_*.saving"):
                    shutil.rmtree(unfinished)

    def save(self, step: int, state: Any, meta: Mapping[str, Any]) -> None:
        """Saves ``state`` (a pytree of arrays) as of ``step``; an existing checkpoint of the step is left as it is.

        Raises:
          MscaleError: this or the previous checkpoint could not be written.
        """
        self.wait()
        if checkpoint_path(self.folder, step).exists():
            return
        arrays = flatten_by_path(state)
        size = sum(array.nbytes for array in arrays.values())
        if jax.process_count() > 1:  # orbax writes every host's shards, with barriers
            self._write(step, arrays, meta)
            return
        arrays = jax.device_get(arrays)
        if size < ASYNCHRONOUS_BYTES:
            self._write(step, arrays, meta)
        else:
            self._thread = threading.Thread(
                target=self._write_catching, args=(step, arrays, meta), name=f"checkpoint-{step}"
            )
            self._thread.start()

    def wait(self) -> None:
        """Waits until the current save has finished and raises its error, if any."""
        if self._thread is not None:
            self._thread.join()
            self._thread = None
        if self._error is not None:
            error, self._error = self._error, None
            raise error

    def _write_catching(self, step: int, arrays: dict[str, Any], meta: Mapping[str, Any]) -> None:
        try:
            self._write(step, arrays, meta)
        except BaseException as error:  # raised again in the training thread by wait()
            self._error = error

    def _write(self, step: int, arrays: dict[str, Any], meta: Mapping[str, Any]) -> None:
        final = checkpoint_path(self.folder, step)
        saving = self.folder / f".step_{step}.saving"
        try:
            with writing(final):
                _checkpointer().save(saving / "state", args=ocp.args.PyTreeSave(arrays))
                if jax.process_index() == 0:
                    atomic_json(saving / "meta.json", dict(meta) | {"step": step})
                    atomic_json(saving / "manifest.json", {"format": 1, "files": _checksums(saving)})
                    os.rename(saving, final)
                    self._remove_old()
        except MscaleError:
            raise
        except Exception as error:  # orbax and tensorstore report a full disk by various types
            raise MscaleError(
                f"cannot write the checkpoint {final}: {str(error).splitlines()[0]}; "
                "check that the disk has room and is writable, then run again"
            ) from error
        finally:
            if jax.process_index() == 0 and saving.exists():
                with contextlib.suppress(OSError):
                    shutil.rmtree(saving)

    def _remove_old(self) -> None:
        removable = [step for step in saved_steps(self.folder) if step not in self.keep_steps]
        for step in removable[: max(len(removable) - self.keep_latest, 0)]:
            shutil.rmtree(checkpoint_path(self.folder, step), ignore_errors=True)


def parse_reference(text: str) -> tuple[Path, int | None]:
    """Splits ``<workdir>@<step>`` or ``<workdir>/<step>`` into (workdir, step); None if no step is given."""
    match = re.fullmatch(r"(.+)[@/](\d+)/?", text)
    if match and not (Path(text) / run_folder.CHECKPOINTS_FOLDER).is_dir():
        return Path(match[1]), int(match[2])
    return Path(text), None


def locate_checkpoint(reference: str | os.PathLike, setting: str, step: int | None = None) -> Path:
    """Finds another run's checkpoint.

    Args:
      reference: ``<workdir>``, ``<workdir>@<step>`` or ``<workdir>/<step>``.
      setting: name of the setting that holds it, for the error.
      step: the step to take if the reference has none; None for the latest one.

    Raises:
      MscaleError: the run has no checkpoint, or none at that step; the message lists those it has.
    """
    folder, step_of_reference = parse_reference(str(reference))
    workdir = local_folder(folder, setting)
    step = step_of_reference if step_of_reference is not None else step
    available: Sequence[int] = saved_steps(workdir / run_folder.CHECKPOINTS_FOLDER)
    if not available:
        raise MscaleError(f"{setting}: {workdir} holds no checkpoint; run it first, or correct the path")
    if step is None:
        step = available[-1]
    if step not in available:
        raise MscaleError(
            f"{setting}: {workdir} has no checkpoint at step {step}; it has {', '.join(map(str, available))}"
        )
    return checkpoint_path(workdir / run_folder.CHECKPOINTS_FOLDER, step)
