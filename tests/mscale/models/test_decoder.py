"""The decoder: its values, gradients, parameter counts and learning-rate rules."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mscale import scales
from mscale.errors import MscaleError
from mscale.models import attention, decoder, loss

SHAPE = scales.Shape(heads=2, layers=2, embed=16, ffw=32, kv=8)
TINY = decoder.ModelConfig(SHAPE, 50)
DEEP = decoder.ModelConfig(dataclasses.replace(SHAPE, layers=decoder.UNROLLED_LAYERS + 2), 50)


apply = jax.jit(decoder.apply, static_argnums=0)


def tokens(batch=2, length=12, seed=1):
    return jax.random.randint(jax.random.key(seed), (batch, length), 0, 50)


def size(tree):
    return sum(int(np.prod(leaf.shape)) for leaf in jax.tree.leaves(tree))


@pytest.mark.parametrize("scale", [*scales.NANO, 0, 34, 52])
def test_instantiated_model_has_the_counted_parameters(scale):
    vocabulary = scales.BYTE_VOCABULARY if scale in scales.NANO else scales.ATLAS_VOCABULARY
    config = decoder.ModelConfig(scales.get(scale), vocabulary)
    assert size(decoder.abstract_params(config)) == scales.parameter_count(config.shape, vocabulary)


def test_parameters_are_float32_and_axes_fit_them():
    config = dataclasses.replace(TINY, compute_dtype="bfloat16")
    params = decoder.init_params(config, jax.random.key(0))
    assert all(leaf.dtype == jnp.float32 for leaf in jax.tree.leaves(params))
    axes = decoder.logical_axes(config)
    ranks = jax.tree.map(lambda leaf, names: leaf.ndim == len(names), params, axes)
    assert all(jax.tree.leaves(ranks))
    assert apply(config, params, tokens()).dtype == jnp.bfloat16


@pytest.mark.parametrize("config", [TINY, DEEP, dataclasses.replace(TINY, serial_block=True)])
def test_attention_is_causal(config):
    params = decoder.init_params(config, jax.random.key(0))
    ids = tokens()
    before = apply(config, params, ids)
    after = apply(config, params, ids.at[:, 7:].set(3))
    np.testing.assert_array_equal(before[:, :7], after[:, :7])
    assert np.abs(before[:, 7:] - after[:, 7:]).max() > 1e-3


def test_block_equals_a_direct_implementation():
    """Against a direct NumPy implementation of x + s·(attention(norm x) + mlp(norm x)), rotary, causal, one norm."""
    params = decoder.init_params(TINY, jax.random.key(0))
    ids = np.asarray(tokens())
    h, k, S = SHAPE.heads, SHAPE.kv, ids.shape[1]
    norm = lambda x: x / np.sqrt((x**2).mean(-1, keepdims=True) + 1e-6)  # noqa: E731
    angle = np.arange(S)[:, None] * 10_000.0 ** (-np.arange(0, k, 2) / k)

    def rotate(x_SxK):
        z = (x_SxK[:, : k // 2] + 1j * x_SxK[:, k // 2 :]) * np.exp(1j * angle)
        return np.concatenate([z.real, z.imag], -1)

    for row, ids_S in enumerate(ids):
        x = np.asarray(params["embedding"])[ids_S] / TINY.embedding_std
        for layer in range(SHAPE.layers):
            w = {name: np.asarray(leaf[layer], np.float64) for name, leaf in params["blocks"].items()}
            y, total = norm(x) * w["norm"], 0
            for head in range(h):
                q, key = (rotate(y @ w[name][:, head]) for name in ("query", "key"))
                score = np.where(np.tri(S, dtype=bool), q @ key.T / np.sqrt(k), -np.inf)
                weight = np.exp(score - score.max(-1, keepdims=True))
                weight /= weight.sum(-1, keepdims=True)
                total = total + weight @ (y @ w["value"][:, head]) @ w["attention_out"][head]
            gate, up = y @ w["gate"], y @ w["up"]
            x = x + TINY.branch_scale * (total + (gate / (1 + np.exp(-gate)) * up) @ w["mlp_out"])
        np.testing.assert_allclose(apply(TINY, params, jnp.asarray(ids))[row], norm(x), atol=2e-5)


@pytest.mark.parametrize("length", [1, 127, 128, 600])
def test_attention_equals_plain_attention(length):
    q, k, v, weight = (jax.random.normal(jax.random.key(i), (2, length, 3, 8)) for i in range(4))

    def total(implementation):
        return lambda q, k, v: jnp.sum(weight * attention.causal_attention(q, k, v, implementation))

    (ours, ours_grads), (plain, plain_grads) = (
        jax.jit(jax.value_and_grad(total(name), argnums=(0, 1, 2)))(q, k, v) for name in ("einsum", "xla")
    )
    np.testing.assert_allclose(ours, plain, rtol=1e-5, atol=1e-4)
    for found, expected in zip(ours_grads, plain_grads, strict=True):
        np.testing.assert_allclose(found, expected, atol=2e-5)


def test_large_scores_neither_overflow_nor_vanish():
    """Large scores of later positions are masked before the maximum, so earlier weights do not underflow."""
    q = jnp.ones((1, 70, 1, 8))
    k = jnp.linspace(-1e3, 1e3, 70)[None, :, None, None] * q
    v = jax.random.normal(jax.random.key(0), q.shape)
    out, gradient = jax.value_and_grad(lambda q: jnp.sum(attention.causal_attention(q, k, v, "einsum")))(q)
    assert np.isfinite(np.asarray(gradient)).all()
    np.testing.assert_allclose(out, v.sum(), rtol=1e-5)  # the latest visible position takes all


@pytest.mark.parametrize("config", [TINY, DEEP])
def test_remat_does_not_change_gradients(config):
    params, ids = decoder.init_params(config, jax.random.key(0)), tokens()

    def gradient(config):
        return jax.jit(jax.grad(lambda p: loss.training_objective(config, p, ids, ids)[0]))(params)

    plain = gradient(config)
    for remat in ("dots", "full"):
        found = gradient(dataclasses.replace(config, remat=remat))
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5), plain, found)


def test_program_does_not_grow_with_depth():
    def lines(layers):
        config = decoder.ModelConfig(dataclasses.replace(SHAPE, layers=layers), 50)
        params = decoder.abstract_params(config)
        step = jax.jit(jax.grad(lambda p: loss.training_objective(config, p, tokens(), tokens())[0]))
        return step.lower(params).as_text().count("\n")

    assert lines(40) <= lines(10) + 5


@pytest.mark.parametrize("config", [TINY, DEEP])
def test_dropout(config):
    config = dataclasses.replace(config, dropout=0.5)
    params, ids = decoder.init_params(config, jax.random.key(0)), tokens()
    kept = apply(config, params, ids)
    dropped = [apply(config, params, ids, jax.random.key(i)) for i in (0, 0, 1)]
    np.testing.assert_array_equal(dropped[0], dropped[1])
    assert np.abs(dropped[0] - dropped[2]).max() > 0.1 and np.abs(kept - dropped[0]).max() > 0.1
    np.testing.assert_array_equal(kept, apply(dataclasses.replace(config, dropout=0), params, ids))


def test_initial_loss_lies_between_uniform_and_predicting_the_input():
    """With tied unit embeddings the initial logit of the input token is at most LOGIT_GAIN; others are near uniform."""
    most = np.log(258 + np.exp(decoder.LOGIT_GAIN * decoder.EMBEDDING_STD))
    for scale in ("nano0", "nano4"):
        config = decoder.ModelConfig(scales.get(scale), 259)
        params = decoder.init_params(config, jax.random.key(0))
        ids = jax.random.randint(jax.random.key(1), (4, 32), 0, 259)
        found = float(loss.training_objective(config, params, ids, ids[:, ::-1])[1])
        assert np.log(259) - 0.1 < found < most + 0.2, scale


def test_rates_of_the_two_rules():
    wide = decoder.ModelConfig(dataclasses.replace(SHAPE, embed=128), 50)
    rates = decoder.lr_multipliers(wide)
    assert rates["embedding"] == rates["blocks"]["norm"] == 1 and rates["blocks"]["query"] == 0.5
    constant = decoder.lr_multipliers(dataclasses.replace(wide, lr_rule="constant"))
    assert set(jax.tree.leaves(constant)) == {1.0}
    mask = decoder.decay_mask(wide)
    assert mask["embedding"] and mask["blocks"]["up"] and not mask["blocks"]["norm"]


@pytest.mark.parametrize(
    "change", [{"remat": "ful"}, {"dropout": 1.0}, {"compute_dtype": "int8"}, {"lr_rule": "mpu"}]
)
def test_bad_configuration(change):
    with pytest.raises(MscaleError, match=next(iter(change))):
        dataclasses.replace(TINY, **change)


def test_odd_head_width():
    with pytest.raises(MscaleError, match="even"):
        decoder.ModelConfig(dataclasses.replace(SHAPE, kv=7), 50)
