"""Chips are found by their name and by the device kind that JAX reports."""

import pytest

from mscale import chips
from mscale.errors import MscaleError


@pytest.mark.parametrize(
    ("device_kind", "name"),
    [
        ("NVIDIA A100-SXM4-80GB", "a100"),
        ("NVIDIA H100 80GB HBM3", "h100"),
        ("NVIDIA H200", "h200"),
        ("NVIDIA B200", "b200"),
        ("TPU v4", "v4"),
        ("TPU v5 lite", "v5e"),
        ("TPU v5", "v5p"),
        ("TPU v5p", "v5p"),
        ("TPU v6 lite", "v6e"),
        ("cpu", None),
    ],
)
def test_a_device_kind_is_of_one_chip(device_kind, name):
    assert chips.chip_of_device(device_kind) == (None if name is None else chips.find_chip(name))


def test_an_unknown_chip_is_refused_with_the_nearest():
    with pytest.raises(MscaleError, match="unknown accelerator 'h20'.*did you mean 'h200'"):
        chips.find_chip("h20")
