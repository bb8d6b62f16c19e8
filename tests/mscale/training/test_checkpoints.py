"""Checkpoints: written atomically, verified before a restore, and never deleted when damaged."""

import json
import shutil
import zlib
from pathlib import Path

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import orbax.checkpoint as ocp
import pytest

from mscale.errors import MscaleError
from mscale.training import checkpoints


def state(seed=0):
    key = jax.random.key(seed)
    return {
        "params": {"blocks": {"w": jax.random.normal(key, (3, 4))}, "embedding": jnp.arange(5.0)},
        "optimizer": (jnp.ones((3, 4)), {"count": jnp.int32(seed)}),
        "half": jnp.arange(4, dtype=jnp.bfloat16),
    }


def same(a, b):
    return all(
        x.dtype == y.dtype and np.array_equal(np.asarray(x), np.asarray(y))
        for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True)
    )


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    folder = tmp_path_factory.mktemp("run") / "checkpoints"
    saver = checkpoints.CheckpointWriter(folder, keep_latest=3)
    for step in (1, 2):
        saver.save(step, state(step), {"vocabulary": "v"})
    return folder


@pytest.fixture
def folder(saved, tmp_path):
    shutil.copytree(saved, tmp_path / "checkpoints")
    return tmp_path / "checkpoints"


def files(path):
    return [file for file in sorted(path.rglob("*")) if file.is_file()]


def test_round_trip_is_exact_whatever_the_dtype(saved):
    restored, meta = checkpoints.restore_latest(saved, state())
    assert same(restored, state(2))
    assert restored["half"].dtype == ml_dtypes.bfloat16
    assert meta == {"vocabulary": "v", "step": 2}


def test_a_part_of_the_state_can_be_restored(saved):
    path = checkpoints.checkpoint_path(saved, 1)
    restored = checkpoints.restore(path, {"params": state()["params"]})
    assert same(restored["params"], state(1)["params"])


def test_restores_onto_a_sharding(saved):
    mesh = jax.make_mesh((1,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))
    sharding = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec())
    shardings = jax.tree.map(lambda _: sharding, state())
    restored, _ = checkpoints.restore_latest(saved, state(), shardings=shardings)
    assert same(restored, state(2))
    assert restored["params"]["embedding"].sharding == sharding


def test_a_flipped_bit_in_any_file_is_found(folder, capsys):
    for number, file in enumerate(files(checkpoints.checkpoint_path(folder, 2))):
        data = file.read_bytes()
        if not data:
            continue
        position = (number * 7919) % len(data)
        file.write_bytes(data[:position] + bytes([data[position] ^ 4]) + data[position + 1 :])
        with pytest.raises(checkpoints.DamagedCheckpoint):
            checkpoints.verify(checkpoints.checkpoint_path(folder, 2))
        file.write_bytes(data)
    checkpoints.verify(checkpoints.checkpoint_path(folder, 2))


@pytest.mark.parametrize("how", ["flip", "truncate", "delete", "manifest"])
def test_damaged_latest_is_named_skipped_and_kept(folder, capsys, how):
    path = checkpoints.checkpoint_path(folder, 2)
    largest = max(files(path / "state"), key=lambda file: file.stat().st_size)
    data = largest.read_bytes()
    if how == "flip":
        largest.write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
    elif how == "truncate":
        largest.write_bytes(data[: len(data) // 2])
    elif how == "delete":
        largest.unlink()
    else:
        (path / "manifest.json").unlink()
    restored, meta = checkpoints.restore_latest(folder, state())
    assert meta["step"] == 1
    assert same(restored, state(1))
    assert "step_2" in capsys.readouterr().err
    assert (folder / "step_2.damaged").is_dir()
    # The resumed run saves the step again; the damaged checkpoint is still there.
    saver = checkpoints.CheckpointWriter(folder, keep_latest=1)
    saver.save(2, state(2), {})
    saver.save(3, state(3), {})
    assert checkpoints.saved_steps(folder) == [3]
    assert (folder / "step_2.damaged").is_dir()


def damage(path):
    largest = max(files(path / "state"), key=lambda file: file.stat().st_size)
    largest.write_bytes(largest.read_bytes()[:-1])


def test_where_all_are_damaged_nothing_begins_anew_until_the_user_deletes_them(folder):
    for step in (2, 1):
        damage(checkpoints.checkpoint_path(folder, step))
    for _ in range(2):  # nothing was moved by the first call
        with pytest.raises(MscaleError, match=r"begin anew.*step_2: the file .*step_1: the file"):
            checkpoints.restore_latest(folder, state())
    (folder / "step_1").rename(folder / "step_1.damaged")
    shutil.rmtree(folder / "step_2")
    with pytest.raises(MscaleError, match=r"step_1\.damaged was set aside before"):
        checkpoints.restore_latest(folder, state())
    shutil.rmtree(folder / "step_1.damaged")
    assert checkpoints.restore_latest(folder, state()) is None


def test_one_whose_checksums_agree_is_never_set_aside(folder):
    path = checkpoints.checkpoint_path(folder, 2)
    other = b"of another version"
    (path / "state" / "manifest.ocdbt").write_bytes(other)
    manifest = json.loads((path / "manifest.json").read_text())
    manifest["files"]["state/manifest.ocdbt"] = {"bytes": len(other), "crc32": zlib.crc32(other)}
    (path / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(MscaleError, match="step_2: its checksums agree, but orbax .* cannot read it"):
        checkpoints.restore_latest(folder, state())
    (path / "manifest.json").unlink()
    (path / "manifest.json").mkdir()
    with pytest.raises(MscaleError, match=r"manifest\.json: .* cannot be read \(Is a directory\)"):
        checkpoints.restore_latest(folder, state())
    assert checkpoints.saved_steps(folder) == [1, 2]


def test_old_ones_go_but_branch_points_stay(tmp_path):
    saver = checkpoints.CheckpointWriter(tmp_path, keep_steps={2, 5}, keep_latest=2)
    for step in range(1, 8):
        saver.save(step, {"x": jnp.ones(2)}, {})
    assert checkpoints.saved_steps(tmp_path) == [2, 5, 6, 7]


def test_an_unfinished_save_is_not_a_checkpoint(folder):
    (folder / "step_2").rename(folder / ".step_3.saving")
    assert checkpoints.saved_steps(folder) == [1]
    checkpoints.CheckpointWriter(folder)
    assert not (folder / ".step_3.saving").exists()


def test_saving_behind_the_training(tmp_path, monkeypatch):
    monkeypatch.setattr(checkpoints, "ASYNCHRONOUS_BYTES", 0)
    saver = checkpoints.CheckpointWriter(tmp_path)
    saver.save(1, state(1), {})
    saver.save(2, state(2), {})
    saver.wait()
    assert same(checkpoints.restore_latest(tmp_path, state())[0], state(2))

    def full(*args, **kwargs):
        raise ValueError("RESOURCE_EXHAUSTED: No space left on device")

    monkeypatch.setattr(ocp.Checkpointer, "save", full)
    saver.save(3, state(3), {})
    with pytest.raises(MscaleError, match="step_3: RESOURCE_EXHAUSTED: No space left"):
        saver.wait()
    assert checkpoints.saved_steps(tmp_path) == [1, 2]
    assert not list(tmp_path.glob(".step_*"))


def test_another_model_is_refused(saved):
    other = state() | {"extra": jnp.ones(3)}
    with pytest.raises(MscaleError, match="no array extra"):
        checkpoints.restore_latest(saved, other)
    other = state() | {"half": jnp.arange(6, dtype=jnp.bfloat16)}
    with pytest.raises(MscaleError, match=r"array half is bfloat16\[4\], this run's is bfloat16\[6\]"):
        checkpoints.restore_latest(saved, other)


def test_references(saved):
    run = saved.parent
    assert checkpoints.locate_checkpoint(run, "INIT_FROM").name == "step_2"
    assert checkpoints.locate_checkpoint(f"{run}@1", "INIT_FROM").name == "step_1"
    assert checkpoints.locate_checkpoint(f"{run}/1", "INIT_FROM").name == "step_1"
    with pytest.raises(MscaleError, match="BRANCH_FROM.*at step 7; it has 1, 2"):
        checkpoints.locate_checkpoint(run, "BRANCH_FROM", 7)
    with pytest.raises(MscaleError, match="holds no checkpoint"):
        checkpoints.locate_checkpoint(run / "none", "INIT_FROM")
    assert checkpoints.parse_reference("a@b/c") == (Path("a@b/c"), None)


def test_manifest_lists_every_file(saved):
    path = checkpoints.checkpoint_path(saved, 1)
    listed = json.loads((path / "manifest.json").read_text())["files"]
    assert set(listed) == {str(file.relative_to(path)) for file in files(path)} - {"manifest.json"}
