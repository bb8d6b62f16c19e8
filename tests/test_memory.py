"""Memory of a run: what the formula must give in cases worked out by hand, and that a suggested mesh holds the run."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mscale import scales
from mscale.errors import MscaleError
from sweeps import memory

SHAPE = scales.get(34)


def test_state_is_sixteen_bytes_a_parameter():
    whole = memory.bytes_per_chip(SHAPE, 64_512, 8, 2048)
    split = memory.bytes_per_chip(SHAPE, 64_512, 64, 2048, fsdp=8)
    # Eight chips with eight times the batch: the same activations, an eighth of the state and of the block of logits;
    # the embedding and a layer are gathered, in bfloat16, with gradients in float32.
    d, h, k, f = SHAPE.embed, SHAPE.heads, SHAPE.kv, SHAPE.ffw
    gathered = 6 * (64_512 * d + 4 * d * h * k + 3 * d * f)
    logits = 2 * 4 * memory.LOSS_BLOCK
    saved = (16 * scales.PUBLISHED_COUNTS[34] + logits) * 7 / 8 - gathered
    assert whole - split == pytest.approx(1.1 * saved, rel=1e-6)


def test_scale_46_on_64_devices_is_within_a_fifth_of_the_compiler():
    """XLA's figures of 20 November 2026, by benchmarks/memory.py: jax 0.10.2, float32, fsdp = 64, remat "full"."""
    for batch, xla in ((64, 7_620_933_868), (128, 9_419_843_820)):
        found = memory.bytes_per_chip(scales.get(46), 64_512, batch, 2048, fsdp=64, compute_bytes=4)
        assert found == pytest.approx(xla, rel=0.2)


@pytest.mark.slow
def test_the_compiler_agrees_on_scale_46():
    command = [sys.executable, "benchmarks/memory.py", "--scale=46", "--batch=64"]
    root = Path(__file__).parents[1]
    done = subprocess.run(
        command, cwd=root, env=os.environ | {"PYTHONPATH": str(root)}, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert 0.8 < json.loads(done.stdout.splitlines()[-1])["ratio"] < 1.2


def test_kept_activations_are_one_input_a_layer():
    import dataclasses

    deeper = dataclasses.replace(SHAPE, layers=SHAPE.layers + 1)
    more = memory.bytes_per_chip(deeper, 64_512, 8, 2048) - memory.bytes_per_chip(SHAPE, 64_512, 8, 2048)
    state = 16 * (scales.parameter_count(deeper, 64_512) - scales.parameter_count(SHAPE, 64_512))
    assert more == pytest.approx(1.1 * (state + 2 * 8 * 2048 * SHAPE.embed), rel=1e-6)


@given(
    st.sampled_from([0, 8, 16, 24, 34, 42, 46]),
    st.sampled_from(sorted(memory.CHIP_BYTES)),
    st.sampled_from([64, 256, 512, 2048]),
)
def test_a_suggested_mesh_holds_the_run_and_half_of_it_does_not(scale, accelerator, batch):
    shape = scales.get(scale)
    found = memory.place(shape, 64_512, batch, 2048, accelerator)
    room = memory.USABLE * memory.CHIP_BYTES[accelerator]
    assert found.bytes_per_chip <= room
    mesh = {"data": found.data, "fsdp": found.fsdp, "tensor": found.tensor}
    assert found.bytes_per_chip == memory.bytes_per_chip(shape, 64_512, batch, 2048, **mesh)
    assert batch % (found.data * found.fsdp) == 0
    if found.chips > 1:
        with pytest.raises(MscaleError, match="does not fit on"):
            memory.place(shape, 64_512, batch, 2048, accelerator, found.chips // 2)
    if found.fsdp > 1 and found.tensor == 1:  # parameters are not split further than they must be
        less = memory.bytes_per_chip(shape, 64_512, batch, 2048, data=2 * found.data, fsdp=found.fsdp // 2)
        assert less > room


def test_what_does_not_fit_says_how_much_it_needs():
    with pytest.raises(
        MscaleError, match=r"does not fit on 1 v5e \(needs .* GB on each, 15.5 GB are usable\)"
    ):
        memory.place(SHAPE, 64_512, 2048, 2048, "v5e", 1)
    with pytest.raises(MscaleError, match="unknown accelerator 'tpu9'"):
        memory.place(SHAPE, 64_512, 2048, 2048, "tpu9")
