"""Gradient accumulation gives the gradients of the whole batch; rules from logical to mesh axes."""

import jax
import numpy as np
import pytest

from mscale import scales
from mscale.errors import MscaleError
from mscale.models import decoder, partitioning
from mscale.training import step


def test_microbatches_give_the_gradients_of_the_batch():
    config = decoder.ModelConfig(scales.get("nano0"), 32)
    params = decoder.init_params(config, jax.random.key(0))
    targets = jax.random.randint(jax.random.key(1), (12, 8), 0, 32)
    whole = step.gradients(config, params, targets, None)
    for microbatches in (2, 3):
        found = step.gradients(config, params, targets, None, microbatches)
        for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(whole), strict=True):
            np.testing.assert_allclose(a, b, rtol=2e-4, atol=1e-6)


def test_axis_rules():
    rules = dict(partitioning.logical_axis_rules({"heads": None, "embed": ["fsdp", "tensor"]}))
    assert rules["heads"] is None and rules["embed"] == ("fsdp", "tensor") and rules["mlp"] == "tensor"
    with pytest.raises(MscaleError, match="did you mean 'heads'"):
        partitioning.logical_axis_rules({"head": None})
    with pytest.raises(MscaleError, match="did you mean 'tensor'"):
        partitioning.logical_axis_rules({"mlp": "tensors"})
