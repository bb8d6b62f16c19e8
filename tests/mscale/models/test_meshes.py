"""The train loop on meshes of eight simulated devices gives the losses of one device, whether or not heads are sharded.

Tolerance: 1e-4 of the loss in float32 after eight steps, since sums over a sharded dimension have another order.
"""

import pytest
from devices import eight_devices

START = """
import pathlib, sys, threading
sys.path.insert(0, "tests/fakes")
import numpy as np
import tiny_store
from tiny_run import arguments, rows
from mscale import run_folder, train

root = pathlib.Path({root!r})
store = tiny_store.write(root / "store")
common = {{"BATCH_SIZE": 8, "STEPS": 8, "EVAL_STEPS": (8,), "LEARNING_RATE": 0.02, "model__dropout": 0.0}}

def losses(name, **macros):
    assert train.main(arguments(store, root / name, **common | macros)) == 0
    return [row["loss"] for row in rows(root / name)]

# Replicated on every device: the computation of a single device.
WHOLE = {{"mesh__data": 8, "logical_axis_rules__overrides": {{"batch": None, "embed": None}}}}
"""

EQUAL = """
for scale in {scales}:
    one = losses(scale, SCALE=scale, **WHOLE)
    for data, fsdp, tensor in {meshes}:
        mesh = {{"mesh__data": data, "mesh__fsdp": fsdp, "mesh__tensor": tensor}}
        name = f"{{scale}}-{{data}}-{{fsdp}}-{{tensor}}"
        np.testing.assert_allclose(losses(name, SCALE=scale, **mesh), one, rtol=1e-4, err_msg=name)
"""

MOVED = """
two_two_two = {{"mesh__data": 2, "mesh__fsdp": 2, "mesh__tensor": 2}}

def stopped(name, **macros):
    parsed = train.launch.parse_arguments(arguments(store, root / name, **common | macros))
    stop = threading.Event()
    stop.set()
    with train.launch.configured(parsed):
        return train.run_to_end(train.prepare_run(train.read_settings()), stop)

common["STEPS"], common["EVAL_STEPS"] = 16, (16,)
one = losses("one", **WHOLE)
assert stopped("moved", **two_two_two) == run_folder.PREEMPTED_EXIT_STATUS
moved = losses("moved", **{{"mesh__fsdp": 4, "mesh__tensor": 2, "ACCUMULATE": 2}})
np.testing.assert_allclose(moved, one, rtol=1e-4)
assert train.main(arguments(store, root / "w", **common | {{"BATCH_SIZE": 12}})) == 1
assert train.main(arguments(store, root / "w", **common | {{"mesh__fsdp": 3}})) == 1
"""

ALL = [
    (data, fsdp, 8 // data // fsdp)
    for data in (1, 2, 4, 8)
    for fsdp in (1, 2, 4, 8)
    if 8 % (data * fsdp) == 0
]


def run_there(program, folder, **values):
    eight_devices((START + program).format(root=str(folder), **values))


def test_a_mesh_of_all_axes_gives_the_losses_of_one_device(tmp_path):
    """nano2 has three heads, which two devices do not divide."""
    run_there(EQUAL, tmp_path, scales=("nano2",), meshes=[(2, 2, 2)])


@pytest.mark.slow
@pytest.mark.parametrize("scale", ["nano2", "nano3"])
def test_every_mesh_gives_the_losses_of_one_device(tmp_path, scale):
    """nano2 has three heads, which no tensor size divides; nano3 has four."""
    assert len(ALL) == 10
    run_there(EQUAL, tmp_path, scales=(scale,), meshes=ALL)


@pytest.mark.slow
def test_a_run_moves_between_meshes(tmp_path):
    """From 2x2x2 devices to 1x4x2 with two microbatches, compared with a run that is replicated on every device."""
    run_there(MOVED, tmp_path)
