"""Causal attention: rotary position embeddings, a chunked form with its own gradient, and JAX's fused kernels."""

import jax
import jax.numpy as jnp
import numpy as np

ATTENTION_CHUNK = 64  # queries
ATTENTION_IMPLEMENTATIONS = ("auto", "einsum", "xla", "cudnn")


def rotary(x_BxSxHxK: jax.Array) -> jax.Array:
    """Rotary position embedding of queries or keys (Su et al. 2021, arXiv 2104.09864; base 10,000).

    Element i of a head is rotated together with element i + K/2.
    """
    S, K = x_BxSxHxK.shape[1], x_BxSxHxK.shape[-1]
    frequency = 10_000.0 ** (-np.arange(0, K, 2, dtype=np.float32) / K)
    angle_Sx1xK2 = np.arange(S, dtype=np.float32)[:, None, None] * frequency
    cos, sin = np.cos(angle_Sx1xK2), np.sin(angle_Sx1xK2)
    a, b = jnp.split(x_BxSxHxK.astype(jnp.float32), 2, axis=-1)
    return jnp.concatenate([a * cos - b * sin, b * cos + a * sin], axis=-1).astype(x_BxSxHxK.dtype)


def _dot(equation: str, a: jax.Array, b: jax.Array) -> jax.Array:
    return jnp.einsum(equation, a, b, preferred_element_type=jnp.float32)


def _attend(q: jax.Array, k: jax.Array, v: jax.Array) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
    """Causal attention of the last Q ≤ T positions of a prefix: queries (B, H, Q, K), keys and values (B, H, T, K).

    Returns the output, and what the backward pass needs: unnormalised weights and the inverse of their sums.
    """
    Q, T = q.shape[2], k.shape[2]
    scores = _dot("BHSK,BHTK->BHST", q * q.shape[-1] ** -0.5, k)
    # Mask before the maximum: otherwise a large score of a later key makes all weights of a row underflow, 0/0.
    scores = jnp.where(np.tri(Q, T, T - Q, dtype=bool), scores, -jnp.inf)
    weights = jnp.exp(scores - jax.lax.stop_gradient(scores.max(-1, keepdims=True)))
    inverse = 1 / weights.sum(-1, keepdims=True)
    weights = weights.astype(v.dtype)
    return _dot("BHST,BHTK->BHSK", weights, v) * inverse, (weights, inverse)


@jax.custom_vjp
def _attention(q: jax.Array, k: jax.Array, v: jax.Array) -> jax.Array:
    return _attend(q, k, v)[0].astype(v.dtype)


def _attention_forward(q: jax.Array, k: jax.Array, v: jax.Array) -> tuple[jax.Array, tuple[jax.Array, ...]]:
    out, saved = _attend(q, k, v)
    return out.astype(v.dtype), (q, k, v, out.astype(v.dtype), *saved)


def _attention_backward(
    saved: tuple[jax.Array, ...], d_out: jax.Array
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Gradient with the softmax normalisation applied to (B, H, Q, K) arrays; autodiff applies it to (B, H, Q, T)."""
    q, k, v, out, weights, inverse = saved
    d_out = (d_out * inverse).astype(v.dtype)
    d_weights = _dot("BHSK,BHTK->BHST", d_out, v)
    d_weights = d_weights - jnp.sum(d_out.astype(jnp.float32) * out, axis=-1, keepdims=True)
    d_scores = (weights * d_weights * q.shape[-1] ** -0.5).astype(q.dtype)
    d_q = _dot("BHST,BHTK->BHSK", d_scores, k).astype(q.dtype)
    d_k = _dot("BHST,BHSK->BHTK", d_scores, q).astype(k.dtype)
    return d_q, d_k, _dot("BHST,BHSK->BHTK", weights, d_out).astype(v.dtype)


_attention.defvjp(_attention_forward, _attention_backward)


def causal_attention(q: jax.Array, k: jax.Array, v: jax.Array, implementation: str = "auto") -> jax.Array:
    """Causal softmax attention; arguments and result (B, S, H, K); scores and softmax in float32.

    Args:
      q, k, v: queries, keys and values.
      implementation: "xla" and "cudnn" are JAX's own. "einsum" splits the queries into at most eight chunks of at
        least ``ATTENTION_CHUNK``, so that no chunk computes scores for keys after its last query. "auto" is cudnn
        on a GPU in half precision, else einsum.
    """
    if implementation == "auto":
        implementation = "cudnn" if jax.default_backend() == "gpu" and q.dtype != jnp.float32 else "einsum"
    if implementation == "xla":
        return jax.nn.dot_product_attention(q, k, v, is_causal=True, implementation="xla")
    if implementation == "cudnn":
        return jax.nn.dot_product_attention(q, k, v, is_causal=True, implementation="cudnn")
    q, k, v = (x.swapaxes(1, 2) for x in (q, k, v))
    S = q.shape[2]
    size = -(-S // min(8, max(1, S // ATTENTION_CHUNK)))
    ends = [*range(size, S, size), S]
    chunks = [
        _attention(q[:, :, start:end], k[:, :, :end], v[:, :, :end])
        for start, end in zip([0, *ends], ends, strict=False)
    ]
    return jnp.concatenate(chunks, axis=2).swapaxes(1, 2)
