"""Model sizes against the published parameter counts and FLOPs."""

import csv
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from mscale import scales
from mscale.errors import MscaleError


def test_counts_equal_the_published_ones():
    assert list(scales.PUBLISHED_COUNTS) == list(range(53))
    for scale, published in scales.PUBLISHED_COUNTS.items():
        counted = scales.parameter_count(scales.get(scale), scales.ATLAS_VOCABULARY)
        assert counted == (20_043_770_880 if scale == 52 else published), scale  # 52 is a misprint


def test_table_is_the_published_one(published_tables):
    with open(published_tables / "atlas_table_b3.csv") as file:
        rows = list(csv.DictReader(file))
    assert [int(row["scale"]) for row in rows] == list(range(53))
    for row in rows:
        shape = scales.get(row["scale"])
        found = (shape.heads, shape.layers, shape.embed, shape.ffw, shape.kv)
        assert found == tuple(int(row[name]) for name in ("heads", "layers", "embed", "ffw", "kv"))
        assert scales.PUBLISHED_COUNTS[int(row["scale"])] == int(row["parameters"])


def test_nano_rungs_span_a_factor_of_twenty_evenly():
    counts = [scales.parameter_count(shape, scales.BYTE_VOCABULARY) for shape in scales.NANO.values()]
    assert len(counts) == 5 and counts[-1] / counts[0] >= 20
    assert all(1.6 < larger / smaller < 3 for smaller, larger in zip(counts, counts[1:], strict=False))


def test_flops():
    shape = scales.get(0)
    count = scales.parameter_count(shape, 64_512)
    assert scales.flops_per_token(shape, 64_512) == 6 * count
    # Scores and weighted sum over an average of (S+1)/2 positions, forward and twice that backward.
    attention = 3 * shape.layers * (2 + 2) * shape.heads * shape.kv * (2048 + 1) // 2
    assert scales.flops_per_token(shape, 64_512, 2048) == 6 * count + attention
    assert 3 * scales.flops_per_token(shape, 64_512, 2048, backward=False) == 6 * count + attention


def test_training_flops_are_exact_for_integers_and_do_not_overflow_in_arrays():
    assert scales.training_flops(10**12 + 1, 10**13) == 6 * (10**12 + 1) * 10**13
    assert scales.training_flops(np.array([10**12]), np.array([10**13])) == pytest.approx(6e25)


@pytest.mark.parametrize("scale", [53, "53", "nano5", "nanO2", -1, True, 1.5])
def test_unknown_scale(scale):
    with pytest.raises(MscaleError, match="unknown scale"):
        scales.get(scale)


def test_unknown_scale_names_the_nearest():
    with pytest.raises(MscaleError, match="did you mean 'nano2'"):
        scales.get("nano_2")
    assert scales.get("34") is scales.get(34)


def test_loads_no_accelerator_library():
    code = "import sys, mscale.scales; assert not {'jax', 'numpy', 'tensorflow'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True, cwd=Path(__file__).parents[2])
