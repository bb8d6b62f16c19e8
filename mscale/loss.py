"""Cross entropy that never holds all logits: blocks of positions, forward and backward.

The backward pass recomputes each block's logits, given the saved log-normaliser. Where all logits fit in
``ModelConfig.loss_block`` there is one block and no loop, and they are kept.
"""

import functools
import math

import jax
import jax.numpy as jnp

from mscale import model
from mscale.model import ModelConfig, Params
from mscale.partitioning import splits


def _block_logits(x_BxSxD, embedding_VxD, scale):
    """float32 logits (B, S, V) of one block; two-dimensional for the reason given in ``model.linear``."""
    B, S, D = x_BxSxD.shape
    scaled = (x_BxSxD * jnp.asarray(scale, x_BxSxD.dtype)).reshape(B * S, D)
    logits = jnp.matmul(scaled, embedding_VxD.T, preferred_element_type=jnp.float32)
    return logits.reshape(B, S, -1)


def _label_logits(logits_BxSxV, targets_BxS):
    V = logits_BxSxV.shape[-1]
    if not splits("vocab", V):
        return jnp.take_along_axis(logits_BxSxV, targets_BxS[..., None], axis=-1)[..., 0]
    # A sum that each device can take of its own entries; a look-up would bring all logits together.
    hot = jnp.arange(V, dtype=targets_BxS.dtype) == targets_BxS[..., None]
    return jnp.sum(jnp.where(hot, logits_BxSxV, 0), axis=-1)


def _split(x, blocks):
    """(B, S, …) to (blocks, B, S/blocks, …), positions padded with zeros to a multiple."""
    B, S = x.shape[:2]
    size = -(-S // blocks)
    x = jnp.pad(x, [(0, 0), (0, size * blocks - S)] + [(0, 0)] * (x.ndim - 2))
    return jnp.moveaxis(x.reshape(B, blocks, size, *x.shape[2:]), 1, 0)


def _join(x, S):
    """Inverse of ``_split``."""
    x = jnp.moveaxis(x, 0, 1)
    return x.reshape(x.shape[0], -1, *x.shape[3:])[:, :S]


def cross_entropy(x_BxSxD, embedding_VxD, targets_BxS, scale: float, blocks: int):
    """Negative log-likelihood and log-normaliser, both (B, S) float32 nats, of logits ``scale·x·Eᵀ``.

    Args:
      x_BxSxD: hidden states in the compute dtype.
      embedding_VxD: output embedding in the compute dtype; its gradient is summed in float32.
      targets_BxS: int32 labels.
      scale: constant that logits are multiplied by.
      blocks: number of blocks that positions are split into; logits of B·S/blocks tokens exist at once.
    """
    return _cross_entropy(x_BxSxD, embedding_VxD, targets_BxS, scale, blocks)


@functools.partial(jax.custom_vjp, nondiff_argnums=(3, 4))
def _cross_entropy(x, embedding, targets, scale, blocks):
    return _forward(x, embedding, targets, scale, blocks)[0]


def _forward(x, embedding, targets, scale, blocks):
    if blocks == 1:
        logits = _block_logits(x, embedding, scale)
        lse = jax.nn.logsumexp(logits, axis=-1)
        return (lse - _label_logits(logits, targets), lse), (x, embedding, targets, lse, logits)

    def block(_, inputs):
        x, targets = inputs
        logits = _block_logits(x, embedding, scale)
        lse = jax.nn.logsumexp(logits, axis=-1)
        return None, (lse - _label_logits(logits, targets), lse)

    _, outputs = jax.lax.scan(block, None, (_split(x, blocks), _split(targets, blocks)))
    nll, lse = (_join(output, x.shape[1]) for output in outputs)
    return (nll, lse), (x, embedding, targets, lse, None)


def _block_gradients(x, embedding, targets, lse, logits, g_nll, g_lse, scale):
    """Gradients of one block: of the embedding in float32 and transposed, (D, V), and of x."""
    B, S, D = x.shape
    V = embedding.shape[0]
    hot = jnp.arange(V, dtype=targets.dtype) == targets[..., None]
    p = jnp.exp(logits - lse[..., None])
    d_logits = scale * ((g_nll + g_lse)[..., None] * p - jnp.where(hot, g_nll[..., None], 0))
    d_logits_BSxV = d_logits.astype(x.dtype).reshape(B * S, V)
    d_embedding_DxV = jnp.matmul(x.reshape(B * S, D).T, d_logits_BSxV, preferred_element_type=jnp.float32)
    return d_embedding_DxV, jnp.matmul(d_logits_BSxV, embedding).reshape(B, S, D)


def _backward(scale, blocks, saved, cotangents):
    x, embedding, targets, lse, logits = saved
    g_nll, g_lse = cotangents

    def block(total_DxV, inputs):
        x, targets, lse, g_nll, g_lse = inputs
        logits = _block_logits(x, embedding, scale)
        d_embedding_DxV, d_x = _block_gradients(x, embedding, targets, lse, logits, g_nll, g_lse, scale)
        return total_DxV + d_embedding_DxV, d_x

    if blocks == 1:
        d_embedding_DxV, d_x = _block_gradients(x, embedding, targets, lse, logits, g_nll, g_lse, scale)
    else:
        per_block = tuple(_split(a, blocks) for a in (x, targets, lse, g_nll, g_lse))
        d_embedding_DxV, d_x = jax.lax.scan(block, jnp.zeros(embedding.shape[::-1], jnp.float32), per_block)
        d_x = _join(d_x, x.shape[1])
    # Turned round after the product: the compiler would do so before it, at half the speed on a CPU.
    d_embedding = jax.lax.optimization_barrier(d_embedding_DxV).T
    return d_x, d_embedding.astype(embedding.dtype), None


_cross_entropy.defvjp(_forward, _backward)


def block_count(config: ModelConfig, batch_size: int, sequence_length: int) -> int:
    """Blocks such that at most ``config.loss_block`` logits, or those of one position, exist at once."""
    size = max(1, config.loss_block // (batch_size * config.vocab_size))
    return math.ceil(sequence_length / min(size, sequence_length))


def _losses(config: ModelConfig, params: Params, inputs_BxS, targets_BxS, dropout_key):
    x_BxSxD = model.apply(config, params, inputs_BxS, dropout_key)
    blocks = block_count(config, *targets_BxS.shape)
    embedding = params["embedding"].astype(config.dtype)
    return cross_entropy(x_BxSxD, embedding, targets_BxS, config.logit_scale, blocks)


def token_losses(config: ModelConfig, params: Params, inputs_BxS, targets_BxS, dropout_key=None) -> jax.Array:
    """Loss of every token, (B, S) float32 nats, without z-loss."""
    return _losses(config, params, inputs_BxS, targets_BxS, dropout_key)[0]


def objective(config: ModelConfig, params: Params, inputs_BxS, targets_BxS, dropout_key=None):
    """What training minimises, a scalar, and the mean loss in nats that is reported.

    They differ by the z-loss, ``config.z_loss`` times the mean squared log-normaliser (Chowdhery et al. 2022,
    arXiv 2204.02311, section 5).
    """
    nll, lse = _losses(config, params, inputs_BxS, targets_BxS, dropout_key)
    loss = jnp.mean(nll)
    return (loss + config.z_loss * jnp.mean(jnp.square(lse)) if config.z_loss else loss), loss
