"""Cross-entropy computed over blocks of positions, so that the logits of all positions are never in memory at once.

In training the gradients of a block are computed together with its loss, so that its logits are computed once. If all
logits fit in ``ModelConfig.loss_block`` there is one block and no loop.
"""

import functools
import math
from typing import Any

import jax
import jax.numpy as jnp

from mscale.chips import GPU_LOSS_BLOCK, LOSS_BLOCK
from mscale.models import decoder
from mscale.models.decoder import ModelConfig, Params
from mscale.models.partitioning import is_split


def _block_logits(x_BxSxD: jax.Array, embedding_VxD: jax.Array, scale: float) -> jax.Array:
    """float32 logits (B, S, V) of one block, by a product of matrices for the reason given in ``decoder.linear``."""
    B, S, D = x_BxSxD.shape
    scaled = (x_BxSxD * jnp.asarray(scale, x_BxSxD.dtype)).reshape(B * S, D)
    logits = jnp.matmul(scaled, embedding_VxD.T, preferred_element_type=jnp.float32)
    return logits.reshape(B, S, -1)


def _label_logits(logits_BxSxV: jax.Array, targets_BxS: jax.Array) -> jax.Array:
    """The logit of each target, (B, S)."""
    V = logits_BxSxV.shape[-1]
    if not is_split("vocab", V):
        return jnp.take_along_axis(logits_BxSxV, targets_BxS[..., None], axis=-1)[..., 0]
    # With the vocabulary sharded: each device sums over its own entries. A gather would all-gather the logits.
    hot = jnp.arange(V, dtype=targets_BxS.dtype) == targets_BxS[..., None]
    return jnp.sum(jnp.where(hot, logits_BxSxV, 0), axis=-1)


def _split(x: jax.Array, blocks: int) -> jax.Array:
    """(B, S, …) to (blocks, B, S/blocks, …), with positions zero-padded to a multiple of ``blocks``."""
    B, S = x.shape[:2]
    size = -(-S // blocks)
    x = jnp.pad(x, [(0, 0), (0, size * blocks - S)] + [(0, 0)] * (x.ndim - 2))
    return jnp.moveaxis(x.reshape(B, blocks, size, *x.shape[2:]), 1, 0)


def _join(x: jax.Array, S: int) -> jax.Array:
    """Inverse of ``_split``."""
    x = jnp.moveaxis(x, 0, 1)
    return x.reshape(x.shape[0], -1, *x.shape[3:])[:, :S]


def _block_losses(
    x: jax.Array, embedding: jax.Array, targets: jax.Array, scale: float
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Logits, negative log-likelihood and log-normaliser of one block."""
    logits = _block_logits(x, embedding, scale)
    lse = jax.nn.logsumexp(logits, axis=-1)
    return logits, lse - _label_logits(logits, targets), lse


def cross_entropy(
    x_BxSxD: jax.Array, embedding_VxD: jax.Array, targets_BxS: jax.Array, scale: float, blocks: int
) -> tuple[jax.Array, jax.Array]:
    """Negative log-likelihood and log-normaliser, both (B, S) float32 nats, of logits ``scale·x·Eᵀ``.

    Args:
      x_BxSxD: hidden states in the compute dtype.
      embedding_VxD: output embedding in the compute dtype.
      targets_BxS: int32 labels.
      scale: factor of the logits.
      blocks: number of blocks that positions are split into; logits of B·S/blocks tokens are in memory at once.
    """
    if blocks == 1:
        return _block_losses(x_BxSxD, embedding_VxD, targets_BxS, scale)[1:]

    def block(_: None, inputs: tuple[jax.Array, jax.Array]) -> tuple[None, tuple[jax.Array, jax.Array]]:
        return None, _block_losses(inputs[0], embedding_VxD, inputs[1], scale)[1:]

    _, (nll, lse) = jax.lax.scan(block, None, (_split(x_BxSxD, blocks), _split(targets_BxS, blocks)))
    return _join(nll, x_BxSxD.shape[1]), _join(lse, x_BxSxD.shape[1])


@functools.partial(jax.custom_vjp, nondiff_argnums=(3, 4, 5))
def mean_cross_entropy(
    x_BxSxD: jax.Array,
    embedding_VxD: jax.Array,
    targets_BxS: jax.Array,
    scale: float,
    blocks: int,
    z_loss: float,
) -> tuple[jax.Array, jax.Array]:
    """Mean over tokens of the loss with and without z-loss; only the first has a gradient.

    Arguments as for ``cross_entropy``; ``z_loss`` is the weight of the squared log-normaliser. The gradient of the
    embedding is summed over blocks in float32.
    """
    nll_BxS, lse_BxS = cross_entropy(x_BxSxD, embedding_VxD, targets_BxS, scale, blocks)
    return _means(nll_BxS, lse_BxS, z_loss)


def _means(nll: jax.Array, lse: jax.Array, z_loss: float) -> tuple[jax.Array, jax.Array]:
    nats = jnp.mean(nll)
    return (nats + z_loss * jnp.mean(jnp.square(lse)) if z_loss else nats), nats


def _forward(
    x: jax.Array, embedding: jax.Array, targets: jax.Array, scale: float, blocks: int, z_loss: float
) -> tuple[tuple[jax.Array, jax.Array], tuple[jax.Array, jax.Array]]:
    """Computes the gradients of the sum over tokens together with the loss, while a block's logits are in memory."""
    V, D = embedding.shape

    def block(total_DxV: Any, inputs: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, Any]:
        x, targets = inputs  # padded positions have x = 0, so they add nothing to the embedding's gradient
        logits, nll, lse = _block_losses(x, embedding, targets, scale)
        hot = jnp.arange(V, dtype=targets.dtype) == targets[..., None]
        p = jnp.exp(logits - lse[..., None])
        d_logits = scale * ((1 + 2 * z_loss * lse)[..., None] * p - hot)
        d_logits = d_logits.astype(x.dtype).reshape(-1, V)
        d_embedding_DxV = jnp.matmul(x.reshape(-1, D).T, d_logits, preferred_element_type=jnp.float32)
        d_x = jnp.matmul(d_logits, embedding).reshape(x.shape)
        return d_embedding_DxV if total_DxV is None else total_DxV + d_embedding_DxV, (nll, lse, d_x)

    if blocks == 1:
        d_embedding_DxV, (nll, lse, d_x) = block(None, (x, targets))
    else:
        zeros_DxV = jnp.zeros((D, V), jnp.float32)
        per_block = _split(x, blocks), _split(targets, blocks)
        d_embedding_DxV, outputs = jax.lax.scan(block, zeros_DxV, per_block)
        nll, lse, d_x = (_join(output, x.shape[1]) for output in outputs)
    return _means(nll, lse, z_loss), (d_x, d_embedding_DxV)


def _backward(
    scale: float, blocks: int, z_loss: float, saved: tuple[jax.Array, jax.Array], cotangents: Any
) -> tuple[jax.Array, jax.Array, None]:
    d_x, d_embedding_DxV = saved
    factor = cotangents[0] / (d_x.shape[0] * d_x.shape[1])
    # Transpose after the product: XLA would move the transpose before it, which halves the speed on a CPU.
    d_embedding = jax.lax.optimization_barrier(d_embedding_DxV).T
    return (factor * d_x).astype(d_x.dtype), (factor * d_embedding).astype(d_x.dtype), None


mean_cross_entropy.defvjp(_forward, _backward)


def block_count(config: ModelConfig, batch_size: int, sequence_length: int) -> int:
    """Number of blocks such that at most ``config.loss_block`` logits, or those of one position, are in memory."""
    most = config.loss_block or (GPU_LOSS_BLOCK if jax.default_backend() == "gpu" else LOSS_BLOCK)
    size = max(1, most // (batch_size * config.vocab_size))
    return math.ceil(sequence_length / min(size, sequence_length))


def _cross_entropy_arguments(
    config: ModelConfig,
    params: Params,
    inputs_BxS: jax.Array,
    targets_BxS: jax.Array,
    dropout_key: jax.Array | None,
) -> tuple[jax.Array, jax.Array, jax.Array, float, int]:
    """Arguments of ``cross_entropy``: hidden states, embedding, targets, scale, blocks."""
    x_BxSxD = decoder.apply(config, params, inputs_BxS, dropout_key)
    embedding_VxD = params["embedding"].astype(config.dtype)
    return x_BxSxD, embedding_VxD, targets_BxS, config.logit_scale, block_count(config, *targets_BxS.shape)


def token_losses(
    config: ModelConfig, params: Params, inputs_BxS: jax.Array, targets_BxS: jax.Array
) -> jax.Array:
    """Loss of every token, (B, S) float32 nats, without dropout and z-loss."""
    return cross_entropy(*_cross_entropy_arguments(config, params, inputs_BxS, targets_BxS, None))[0]


def training_objective(
    config: ModelConfig,
    params: Params,
    inputs_BxS: jax.Array,
    targets_BxS: jax.Array,
    dropout_key: jax.Array | None = None,
) -> tuple[jax.Array, jax.Array]:
    """The scalar that training minimises, and the mean loss in nats per token, which has no gradient.

    They differ by the z-loss, ``config.z_loss`` times the mean squared log-normaliser (Chowdhery et al. 2022,
    arXiv 2204.02311, section 5).
    """
    arguments = _cross_entropy_arguments(config, params, inputs_BxS, targets_BxS, dropout_key)
    total, nats = mean_cross_entropy(*arguments, config.z_loss)
    return total, jax.lax.stop_gradient(nats)


def shift_right(targets_BxS: jax.Array) -> jax.Array:
    """The model's inputs for these targets: BOS (id 0, the padding id as in T5), then all targets but the last."""
    return jnp.pad(targets_BxS[:, :-1], ((0, 0), (1, 0)))
