"""The blocked cross-entropy against a plain implementation: values, gradients, memory."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mscale import scales
from mscale.models import decoder, loss

CONFIG = decoder.ModelConfig(scales.Shape(2, 2, 16, 32, 8), 37)


def plain(x, embedding, targets, scale):
    logits = scale * jnp.einsum("BSD,VD->BSV", x, embedding)
    lse = jax.nn.logsumexp(logits, axis=-1)
    return lse - jnp.take_along_axis(logits, targets[..., None], axis=-1)[..., 0], lse


@settings(max_examples=6, deadline=None)
@given(length=st.integers(1, 23), blocks=st.integers(1, 23), z_loss=st.sampled_from([0.0, 0.1]))
def test_values_and_gradients_equal_the_plain_ones(length, blocks, z_loss):
    keys = jax.random.split(jax.random.key(length), 3)
    x, embedding = jax.random.normal(keys[0], (3, length, 8)), jax.random.normal(keys[1], (37, 8))
    targets = jax.random.randint(keys[2], (3, length), 0, 37)
    arguments = targets, 0.7, min(blocks, length)
    close = functools.partial(np.testing.assert_allclose, rtol=1e-5, atol=1e-5)
    jax.tree.map(close, loss.cross_entropy(x, embedding, *arguments), plain(x, embedding, targets, 0.7))

    def plain_mean(x, embedding):
        nll, lse = plain(x, embedding, targets, 0.7)
        return nll.mean() + z_loss * jnp.square(lse).mean()

    def value(f):  # three times, so that the factor of the backward pass shows
        return jax.jit(jax.value_and_grad(lambda x, e: 3 * f(x, e), argnums=(0, 1)))(x, embedding)

    ours = value(lambda x, e: loss.mean_cross_entropy(x, e, *arguments, z_loss)[0])
    jax.tree.map(close, ours, value(plain_mean))


def test_blocks_of_the_model_do_not_change_it():
    params = decoder.init_params(CONFIG, jax.random.key(0))
    ids = jax.random.randint(jax.random.key(1), (2, 12), 0, 37)
    one = jax.jit(jax.value_and_grad(lambda p: loss.training_objective(CONFIG, p, ids, ids)[0]))(params)
    small = dataclasses.replace(CONFIG, loss_block=2 * 37 * 5)
    assert loss.block_count(CONFIG, 2, 12) == 1 and loss.block_count(small, 2, 12) == 3
    many = jax.jit(jax.value_and_grad(lambda p: loss.training_objective(small, p, ids, ids)[0]))(params)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6), one, many)


def test_no_array_holds_all_logits():
    """At 8 x 2,048 tokens and V = 64,512 the temporaries of loss and gradient stay under 1 GB."""
    V, D = scales.ATLAS_VOCABULARY, 128
    config = decoder.ModelConfig(scales.get(0), V)
    blocks = loss.block_count(config, 8, 2048)

    def total(x, embedding, targets):
        return loss.mean_cross_entropy(x, embedding, targets, 0.1, blocks, 0.0)[0]

    arguments = [
        jax.ShapeDtypeStruct(shape, dtype)
        for shape, dtype in (((8, 2048, D), jnp.float32), ((V, D), jnp.float32), ((8, 2048), jnp.int32))
    ]
    compiled = jax.jit(jax.grad(total, argnums=(0, 1))).lower(*arguments).compile()
    assert compiled.memory_analysis().temp_size_in_bytes < 1e9


def test_z_loss_is_in_the_objective_only():
    config = dataclasses.replace(CONFIG, z_loss=0.1)
    params = decoder.init_params(config, jax.random.key(0))
    ids = jax.random.randint(jax.random.key(1), (2, 12), 0, 37)
    total, mean = loss.training_objective(config, params, ids, ids)
    np.testing.assert_allclose(mean, loss.token_losses(config, params, ids, ids).mean(), rtol=1e-6)
    hidden = decoder.apply(config, params, ids)
    logits = config.logit_scale * jnp.einsum("BSD,VD->BSV", hidden, params["embedding"])
    expected = mean + 0.1 * jnp.mean(jax.nn.logsumexp(logits, -1) ** 2)
    np.testing.assert_allclose(total, expected, rtol=1e-5)


@pytest.mark.parametrize("blocks", [0, 5])
def test_bfloat16_stays_close(blocks):
    config = dataclasses.replace(CONFIG, compute_dtype="bfloat16", loss_block=max(1, blocks * 74))
    params = decoder.init_params(config, jax.random.key(0))
    ids = jax.random.randint(jax.random.key(1), (2, 12), 0, 37)
    token_losses = jax.jit(loss.token_losses, static_argnums=0)
    exact, found = (token_losses(c, params, ids, ids) for c in (CONFIG, config))
    assert found.dtype == jnp.float32
    np.testing.assert_allclose(found, exact, atol=0.1)
    gradient = jax.jit(jax.grad(lambda p: loss.training_objective(config, p, ids, ids)[0]))(params)
    assert all(leaf.dtype == jnp.float32 for leaf in jax.tree.leaves(gradient))
