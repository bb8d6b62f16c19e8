"""Memory of a run: the formula in cases worked out by hand, and a suggested mesh that holds the run."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mscale import chips, scales
from mscale.chips import GPU_LOSS_BLOCK
from mscale.errors import MscaleError
from sweeps.cost import memory

SHAPE = scales.get(34)


def workload(shape=SHAPE, batch_size=8, sequence_length=2048):
    return memory.Workload(shape, 64_512, batch_size, sequence_length)


def test_state_is_sixteen_bytes_a_parameter():
    whole = memory.memory_per_chip(workload()).total
    split = memory.memory_per_chip(workload(batch_size=64), memory.MeshSizes(fsdp=8)).total
    # Eight chips with eight times the batch have the same activations, an eighth of the state and of the logits block,
    # and gather the embedding and a layer in bfloat16, with gradients in float32.
    d, h, k, f = SHAPE.embed, SHAPE.heads, SHAPE.kv, SHAPE.ffw
    gathered = 6 * (64_512 * d + 4 * d * h * k + 3 * d * f)
    logits = 2 * 4 * GPU_LOSS_BLOCK
    saved = (16 * scales.PUBLISHED_COUNTS[34] + logits) * 7 / 8 - gathered
    assert whole - split == pytest.approx(1.1 * saved, rel=1e-6)


# Bytes of a device that XLA reports for the float32 train step with remat "full", arguments and temporaries, by
# benchmarks/memory.py on jax 0.10.2: (scale, data, fsdp, tensor, batch, sequence length).
COMPILED = {
    (46, 1, 64, 1, 64, 2048): 8_002_176_132,
    (46, 1, 64, 1, 128, 2048): 9_668_322_436,
    (46, 1, 16, 4, 64, 2048): 9_204_102_660,
    (34, 2, 8, 1, 64, 2048): 9_966_804_164,
    (34, 1, 4, 2, 16, 2048): 9_700_660_612,
    (20, 1, 16, 1, 64, 2048): 4_087_342_212,
    (8, 1, 8, 1, 64, 2048): 3_498_820_740,
    (8, 1, 1, 1, 8, 512): 2_932_998_788,
    (8, 1, 1, 1, 4, 4096): 6_750_503_556,
}


@pytest.mark.parametrize("case", COMPILED)
def test_the_formula_is_within_a_fifth_of_the_compiler(case):
    scale, data, fsdp, tensor, batch, length = case
    mesh = memory.MeshSizes(data, fsdp, tensor)
    run = workload(scales.get(scale), batch, length)
    found = memory.memory_per_chip(run, mesh, compute_bytes=4, fused=False)
    assert found.total == pytest.approx(COMPILED[case], rel=0.2)


@pytest.mark.slow
@pytest.mark.parametrize(
    "options",
    [
        ["--scale=46", "--batch=64"],
        ["--scale=8", "--mesh", "1", "8", "1", "--batch=64"],
        ["--scale=0", "--mesh", "1", "1", "1", "--batch=8"],
    ],
)
def test_the_compiler_agrees(options):
    command = [sys.executable, "benchmarks/memory.py", *options]
    root = Path(__file__).parents[3]
    done = subprocess.run(
        command, cwd=root, env=os.environ | {"PYTHONPATH": str(root)}, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert 0.8 < json.loads(done.stdout.splitlines()[-1])["ratio"] < 1.2


def test_kept_activations_are_one_input_a_layer():
    import dataclasses

    deeper = dataclasses.replace(SHAPE, layers=SHAPE.layers + 1)
    more = memory.memory_per_chip(workload(deeper)).total - memory.memory_per_chip(workload()).total
    state = 16 * (scales.parameter_count(deeper, 64_512) - scales.parameter_count(SHAPE, 64_512))
    assert more == pytest.approx(1.1 * (state + 2 * 8 * 2048 * SHAPE.embed), rel=1e-6)


@given(
    st.sampled_from([0, 8, 16, 24, 34, 42, 46]),
    st.sampled_from(sorted(chips.CHIPS)),
    st.sampled_from([64, 256, 512, 2048]),
)
def test_a_suggested_mesh_holds_the_run_and_half_of_it_does_not(scale, accelerator, batch):
    run = workload(scales.get(scale), batch)
    found = memory.smallest_placement(run, accelerator)
    mesh, usable = found.mesh, memory.usable_bytes(accelerator)
    assert usable == pytest.approx(0.9 * chips.CHIPS[accelerator].memory)
    assert found.bytes_per_chip <= usable
    fused = chips.CHIPS[accelerator].fused_attention
    assert found.memory == memory.memory_per_chip(run, mesh, fused=fused)
    assert batch % (mesh.data * mesh.fsdp) == 0
    if mesh.chips > 1:
        with pytest.raises(MscaleError, match="does not fit on"):
            memory.smallest_placement(run, accelerator, mesh.chips // 2)
    if mesh.fsdp > 1 and mesh.tensor == 1:  # parameters are not split further than they must be
        half = memory.MeshSizes(data=2 * mesh.data, fsdp=mesh.fsdp // 2)
        assert memory.memory_per_chip(run, half, fused=fused).total > usable


def test_what_does_not_fit_says_how_much_it_needs():
    with pytest.raises(
        MscaleError, match=r"does not fit on 1 v5e \(needs .* GB on each, 15.5 GB are usable\)"
    ):
        memory.smallest_placement(workload(batch_size=2048), "v5e", 1)
    with pytest.raises(MscaleError, match="unknown accelerator 'tpu9'"):
        memory.smallest_placement(workload(batch_size=2048), "tpu9")


def test_heads_that_tensor_does_not_divide_stay_whole():
    """Scale 34 has 17 heads: two chips of tensor save less memory than with 16 or 18 heads."""
    import dataclasses

    for_heads = [
        memory.memory_per_chip(
            workload(dataclasses.replace(SHAPE, heads=heads)), memory.MeshSizes(tensor=2)
        ).state
        for heads in (16, 17, 18)
    ]
    assert for_heads[1] > for_heads[2] > for_heads[0]


def test_the_command_prints_what_fits(capsys):
    from mscale.cli import cli

    arguments = ["plan", "memory", "--scale", "46", "--chip", "v5p", "--chips", "64", "--batch", "512"]
    cli.main(arguments, standalone_mode=False)
    lines = capsys.readouterr().out.splitlines()
    by_mesh = {line.split("│")[3].strip(): line for line in lines if line.startswith("│")}
    taken = memory.memory_per_chip(workload(scales.get(46), 512), memory.MeshSizes(fsdp=64), fused=False)
    assert f"{taken.total / 1e9:.2f}" in by_mesh["fsdp=64"] and "│ fits" in by_mesh["fsdp=64"]
    assert "does not fit" in by_mesh["data=64"]
    cli.main([*arguments, "--fsdp", "16", "--tensor", "4"], standalone_mode=False)
    assert sum(line.startswith("│") for line in capsys.readouterr().out.splitlines()) == 1
    cli.main(
        ["plan", "memory", "--scale", "0,34,46", "--chip", "h200", "--chips", "8"], standalone_mode=False
    )
    assert sum(line.startswith("│") for line in capsys.readouterr().out.splitlines()) == 3
    with pytest.raises(MscaleError, match="no mesh of 64 chips splits 512 sequences with tensor=3"):
        cli.main([*arguments, "--tensor", "3"], standalone_mode=False)
