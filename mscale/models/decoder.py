"""The decoder: blocks with attention and MLP in parallel on one RMSNorm, rotary attention, gated MLP, tied embedding.

Modules are Flax NNX, but the interface is functional: parameters are a nested dict of float32 arrays. The blocks are
stacked along a leading layer axis, so that they can be scanned and compile time does not grow with depth.

Initialisation and learning rates follow one of two rules (``ModelConfig.lr_rule``):

- ``"mup"``: one base learning rate for every size. Width as in muP (Yang et al. 2022, arXiv 2203.03466, Table 8):
  hidden matrices have standard deviation 1/sqrt(fan_in) at initialisation and learning rate base·(d₀/d); embedding and
  norms have the base rate; logits are divided by d. Depth as in CompleteP (Dey et al. 2025, arXiv 2505.01618): the
  output of each block is multiplied by L₀/L, and learning rates do not depend on L. Here d₀ = 64 and L₀ = 2.
- ``"constant"``: one rate for every parameter at every size and no multipliers, as ATLAS trains (Table B.2); logits
  divided by sqrt(d), as T5 does for tied embeddings of unit variance.
"""

import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated, Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax.sharding import Mesh, NamedSharding
from msgspec import Meta

from mscale.errors import MscaleError, nearest
from mscale.models.attention import ATTENTION_IMPLEMENTATIONS, causal_attention, rotary
from mscale.models.partitioning import DEFAULT_RULES, AxisRules, constrain, is_split, partition_spec
from mscale.scales import Shape

BASE_EMBED, BASE_LAYERS = 64, 2
EMBEDDING_STD, LOGIT_GAIN = 1.0, 8.0
REMAT_POLICIES = ("none", "dots", "full")
LR_RULES = ("mup", "constant")
ACTIVATIONS = ("silu", "gelu")
# A scan copies its carries and stacks the saved activations. Measured cost: on a CPU core 1/6 of the step time of two
# layers and 1/12 of that of six; on an H200 1/6 of the step time of scale 34, and 2/5 of its memory.
UNROLLED_LAYERS = 6
Params = Any
"""A nested dict of arrays (or of metadata, one per parameter)."""


@dataclass(frozen=True)
class ModelConfig:
    """The configuration of the compiled model.

    Attributes:
      shape: sizes of the model (``scales.get``).
      vocab_size: entries V of the tied embedding.
      dropout: rate on the embedding and on each block's two outputs; applied only if a PRNG key is passed.
      compute_dtype: of activations and matrix products; parameters, norms, softmax and loss stay float32.
      remat: rematerialisation in the backward pass: "none", "dots" (everything except matrix products) or "full"
        (whole blocks).
      serial_block: MLP after attention with a norm of its own, instead of in parallel with it.
      lr_rule: "mup" or "constant", see the module.
      z_loss: weight of the squared log-normaliser in the training objective.
      loss_block: most logits in memory at once (tokens of a block times V), see ``loss``; None for the platform's
        default.
      attention: "auto" (the fastest measured on the platform), "einsum", "xla" or "cudnn".
      activation: of the MLP's gate, "silu" or "gelu".
    """

    shape: Shape
    vocab_size: int
    dropout: Annotated[float, Meta(ge=0, lt=1)] = 0.0
    compute_dtype: str = "float32"
    remat: str = "none"
    serial_block: bool = False
    lr_rule: str = "mup"
    z_loss: Annotated[float, Meta(ge=0)] = 0.0
    loss_block: Annotated[int, Meta(ge=1)] | None = None
    attention: str = "auto"
    activation: str = "silu"

    def __post_init__(self) -> None:
        for field, choices in {
            "remat": REMAT_POLICIES,
            "lr_rule": LR_RULES,
            "attention": ATTENTION_IMPLEMENTATIONS,
            "activation": ACTIVATIONS,
        }.items():
            found = getattr(self, field)
            if found not in choices:
                raise MscaleError(
                    f"model {field} is {found!r}: expected one of {', '.join(choices)}{nearest(found, choices)}"
                )
        if self.compute_dtype not in ("float32", "bfloat16", "float16"):
            raise MscaleError(f"model compute_dtype is {self.compute_dtype!r}: expected float32 or bfloat16")
        if not 0 <= self.dropout < 1:
            raise MscaleError(f"model dropout is {self.dropout}: expected at least 0 and below 1")
        if self.shape.kv % 2:
            raise MscaleError(f"head width kv is {self.shape.kv}: rotary attention expects an even number")

    @property
    def dtype(self) -> jnp.dtype:
        return jnp.dtype(self.compute_dtype)

    @property
    def branch_scale(self) -> float:
        """Factor of a block's output where it is added to the residual stream."""
        return BASE_LAYERS / self.shape.layers if self.lr_rule == "mup" else 1.0

    @property
    def logit_scale(self) -> float:
        """Factor of the product of hidden states and output embedding."""
        d = self.shape.embed
        return LOGIT_GAIN / d if self.lr_rule == "mup" else d**-0.5

    @property
    def embedding_std(self) -> float:
        """Standard deviation of the embedding at initialisation; the input of the first block is divided by it."""
        return EMBEDDING_STD if self.lr_rule == "mup" else 1.0


def rms_norm(x: jax.Array, scale: jax.Array | None = None) -> jax.Array:
    """RMSNorm of the last axis, computed in float32; ``scale`` is the learned vector, if there is one."""
    x32 = x.astype(jnp.float32)
    y = x32 * jax.lax.rsqrt(jnp.mean(jnp.square(x32), axis=-1, keepdims=True) + 1e-6)
    return (y if scale is None else y * scale).astype(x.dtype)


def linear(x_BxSxD: jax.Array, w: jax.Array) -> jax.Array:
    """``x·w``, (B, S, N), with the trailing axes of ``w`` flattened to N.

    The operands are reshaped to matrices. With three-dimensional operands XLA's CPU backend transposes the cotangents
    by copying to compute the gradient of ``w``, which took a third of a step.
    """
    B, S, D = x_BxSxD.shape
    return (x_BxSxD.reshape(B * S, D) @ w.reshape(D, -1)).reshape(B, S, -1)


def dropout(x: jax.Array, rate: float, key: jax.Array | None) -> jax.Array:
    """Sets elements to zero with probability ``rate`` and rescales the others; without a key returns ``x``."""
    if key is None or rate == 0:
        return x
    keep = jax.random.bernoulli(key, 1 - rate, x.shape)
    return jnp.where(keep, x / (1 - rate), 0)


def _normal(key: jax.Array, shape: tuple[int, ...], std: float) -> jax.Array:
    """Truncated normal at three standard deviations; 0.98658 is the deviation that truncation leaves of 1."""
    return std * jax.random.truncated_normal(key, -3, 3, shape, jnp.float32) / 0.98658


def _param(key: jax.Array, shape: tuple[int, ...], axes: tuple[str, ...], fan_in: int) -> nnx.Param:
    """A hidden matrix of standard deviation 1/sqrt(fan_in), with its logical axis names as metadata."""
    return nnx.Param(_normal(key, shape, fan_in**-0.5), axes=axes, fan_in=fan_in)


class Block(nnx.Module):
    """One layer: ``x + attention(norm(x)) + mlp(norm(x))``, or attention and MLP in series with a norm each."""

    def __init__(self, config: ModelConfig, rngs: nnx.Rngs):
        h, d, f, k = config.shape.heads, config.shape.embed, config.shape.ffw, config.shape.kv
        self.config = config
        self.norm = nnx.Param(jnp.ones((d,), jnp.float32), axes=("norm",))
        self.query = _param(rngs.params(), (d, h, k), ("embed", "heads", "kv"), d)
        self.key = _param(rngs.params(), (d, h, k), ("embed", "heads", "kv"), d)
        self.value = _param(rngs.params(), (d, h, k), ("embed", "heads", "kv"), d)
        self.attention_out = _param(rngs.params(), (h, k, d), ("heads", "kv", "embed"), h * k)
        self.gate = _param(rngs.params(), (d, f), ("embed", "mlp"), d)
        self.up = _param(rngs.params(), (d, f), ("embed", "mlp"), d)
        self.mlp_out = _param(rngs.params(), (f, d), ("mlp", "embed"), f)
        if config.serial_block:
            self.mlp_norm = nnx.Param(jnp.ones((d,), jnp.float32), axes=("norm",))

    def __call__(self, x_BxSxD: jax.Array, dropout_key: jax.Array | None = None) -> jax.Array:
        keys = (None, None) if dropout_key is None else jax.random.split(dropout_key)
        scale, rate = self.config.branch_scale, self.config.dropout
        y_BxSxD = rms_norm(x_BxSxD, self.norm[...])
        attended = dropout(self.attention(y_BxSxD), rate, keys[0])
        if self.config.serial_block:
            x_BxSxD = x_BxSxD + scale * attended
            mixed = dropout(self.mlp(rms_norm(x_BxSxD, self.mlp_norm[...])), rate, keys[1])
            return x_BxSxD + scale * mixed
        return x_BxSxD + scale * (attended + dropout(self.mlp(y_BxSxD), rate, keys[1]))

    def attention(self, y_BxSxD: jax.Array) -> jax.Array:
        """Multi-head causal self-attention with its output projection, (B, S, D)."""
        B, S, _ = y_BxSxD.shape
        h, k, dtype = self.config.shape.heads, self.config.shape.kv, self.config.dtype
        query, key, value = (
            linear(y_BxSxD, weight[...].astype(dtype)).reshape(B, S, h, k)
            for weight in (self.query, self.key, self.value)
        )
        out_BxSxHxK = causal_attention(rotary(query), rotary(key), value, self.config.attention)
        out_HKxD = self.attention_out[...].astype(dtype).reshape(h * k, -1)
        return linear(out_BxSxHxK.reshape(B, S, h * k), out_HKxD)

    def mlp(self, y_BxSxD: jax.Array) -> jax.Array:
        """Gated MLP, (B, S, D)."""
        dtype = self.config.dtype
        gate, up = (linear(y_BxSxD, weight[...].astype(dtype)) for weight in (self.gate, self.up))
        activation = getattr(jax.nn, self.config.activation)
        return linear(activation(gate) * up, self.mlp_out[...].astype(dtype))


class Decoder(nnx.Module):
    """Embedding, stacked blocks and a final norm without parameters; ``loss`` computes the logits."""

    def __init__(self, config: ModelConfig, rngs: nnx.Rngs):
        V, d = config.vocab_size, config.shape.embed
        self.config = config
        self.embedding = nnx.Param(
            _normal(rngs.params(), (V, d), config.embedding_std), axes=("vocab", "embed")
        )

        @nnx.split_rngs(splits=config.shape.layers)
        @nnx.vmap
        def blocks(rngs: nnx.Rngs) -> Block:
            return Block(config, rngs)

        self.blocks = blocks(rngs)

    def __call__(self, inputs_BxS: jax.Array, dropout_key: jax.Array | None = None) -> jax.Array:
        config = self.config
        key = None if config.dropout == 0 else dropout_key
        keys = None if key is None else jax.random.split(key, config.shape.layers + 1)
        embedding_VxD = self.embedding[...]
        # Replicate the embedding over fsdp before the gather: otherwise XLA all-gathers the rows of the whole batch.
        embedding_VxD = constrain(embedding_VxD, ("vocab", None))
        x_BxSxD = constrain(jnp.take(embedding_VxD, inputs_BxS, axis=0) / config.embedding_std)
        x_BxSxD = x_BxSxD.astype(config.dtype)
        x_BxSxD = constrain(dropout(x_BxSxD, config.dropout, None if keys is None else keys[-1]))
        blockdef, stacked = nnx.split(self.blocks)

        def layer(x_BxSxD: jax.Array, params_and_key: Any) -> tuple[jax.Array, None]:
            params, key = params_and_key
            return constrain(nnx.merge(blockdef, params)(x_BxSxD, key)), None

        if config.remat != "none":
            dots = jax.checkpoint_policies.dots_with_no_batch_dims_saveable
            policy = dots if config.remat == "dots" else None
            layer = jax.checkpoint(layer, policy=policy, prevent_cse=False)
        per_layer = (stacked, None if keys is None else keys[:-1])
        if unrolls_layers(config):
            # Unstack rather than index: the gradient of unstack is one concatenation, that of L look-ups a sum of
            # L stacked arrays.
            leaves, structure = jax.tree.flatten(per_layer)
            for leaves_of_layer in zip(*(jnp.unstack(leaf) for leaf in leaves), strict=True):
                x_BxSxD, _ = layer(x_BxSxD, jax.tree.unflatten(structure, leaves_of_layer))
        else:
            x_BxSxD, _ = jax.lax.scan(layer, x_BxSxD, per_layer)
        return rms_norm(x_BxSxD)


def unrolls_layers(config: ModelConfig) -> bool:
    """Whether the loop over blocks is unrolled instead of scanned.

    It is unrolled up to ``UNROLLED_LAYERS`` layers, and on a GPU without fsdp at any depth; with rematerialisation
    never. In an unrolled program the compiler would schedule the recomputation, or fsdp's all-gathers, of all layers
    ahead of time and so use more memory.
    """
    unsharded_on_gpu = jax.default_backend() == "gpu" and not is_split("embed", config.shape.embed)
    return config.remat == "none" and (unsharded_on_gpu or config.shape.layers <= UNROLLED_LAYERS)


@functools.lru_cache(maxsize=64)
def _definition(config: ModelConfig) -> tuple[nnx.GraphDef, nnx.State]:
    """The module's graph and its abstract parameters, without allocating arrays."""
    return nnx.split(nnx.eval_shape(lambda: Decoder(config, nnx.Rngs(params=0))))


def abstract_params(config: ModelConfig) -> Params:
    """Parameters as a nested dict of ``jax.ShapeDtypeStruct``."""
    return nnx.to_pure_dict(_definition(config)[1])


@functools.partial(jax.jit, static_argnums=0)
def init_params(config: ModelConfig, key: jax.Array) -> Params:
    """Initial parameters from a PRNG key: a nested dict of float32 arrays, blocks stacked along axis 0."""
    return nnx.to_pure_dict(nnx.state(Decoder(config, nnx.Rngs(params=key))))


def apply(
    config: ModelConfig, params: Params, inputs_BxS: jax.Array, dropout_key: jax.Array | None = None
) -> jax.Array:
    """Hidden states after the final norm, (B, S, D) in the compute dtype, for int32 token ids.

    Without ``dropout_key`` there is no dropout.
    """
    return nnx.merge(_definition(config)[0], params)(inputs_BxS, dropout_key)


def _metadata(config: ModelConfig, read: Callable[[Any, bool], Any]) -> Params:
    """``read(variable, stacked)`` of every parameter, in the parameters' structure; blocks are ``stacked``."""
    model = nnx.eval_shape(lambda: Decoder(config, nnx.Rngs(params=0)))
    return {
        "embedding": read(model.embedding, False),
        "blocks": {
            name: read(variable, True)
            for name, variable in sorted(vars(model.blocks).items())
            if isinstance(variable, nnx.Param)
        },
    }


def logical_axes(config: ModelConfig) -> Params:
    """Logical axis names of every parameter, as tuples in the parameters' structure."""
    return _metadata(config, lambda variable, stacked: ("layers",) * stacked + variable.axes)


def lr_multipliers(config: ModelConfig) -> Params:
    """Factor of the base learning rate for every parameter: floats in the parameters' structure."""

    def read(variable: Any, stacked: bool) -> float:
        hidden = config.lr_rule == "mup" and "fan_in" in variable.get_metadata()
        return BASE_EMBED / config.shape.embed if hidden else 1.0

    return _metadata(config, read)


def decay_mask(config: ModelConfig) -> Params:
    """Whether weight decay applies to a parameter (matrices, not norm vectors): bools in their structure."""
    return _metadata(config, lambda variable, stacked: variable.axes != ("norm",))


def parameter_shardings(config: ModelConfig, mesh: Mesh, rules: AxisRules = DEFAULT_RULES) -> Params:
    """NamedShardings of the parameters (and of each AdamW moment), in the parameters' structure."""
    return jax.tree.map(
        lambda abstract, logical: NamedSharding(mesh, partition_spec(mesh, logical, abstract.shape, rules)),
        abstract_params(config),
        logical_axes(config),
    )
