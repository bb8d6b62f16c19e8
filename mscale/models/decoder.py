"""The decoder: parallel blocks on one RMSNorm, rotary attention, gated MLP, tied embedding.

Modules are Flax NNX; what leaves this module is functional: parameters are a nested dict of float32 arrays, with the
blocks stacked along a leading layer axis so that they are scanned and compile time does not grow with depth.

Initialisation and learning rates follow one of two rules (``ModelConfig.lr_rule``):

- ``"mup"``: one base learning rate for every size. Width as in muP (Yang et al. 2022, arXiv 2203.03466, Table 8):
  hidden matrices start at 1/sqrt(fan_in) and learn at base·(d₀/d); embedding and norms at the base rate; logits are
  divided by d. Depth as in CompleteP (Dey et al. 2025, arXiv 2505.01618): each block adds L₀/L of its output, and
  rates do not depend on L. Relative to d₀ = 64 and L₀ = 2.
- ``"constant"``: one rate for every parameter at every size and no multipliers, as ATLAS trains (Table B.2); logits
  divided by sqrt(d), as T5 does for tied embeddings of unit variance.
"""

import functools
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax.sharding import Mesh, NamedSharding

from mscale.errors import MscaleError, nearest
from mscale.models.attention import (
    ATTENTION_IMPLEMENTATIONS,
    _attention,
    _attention_backward,
    _attention_forward,
    causal_attention,
    rotary,
)
from mscale.models.partitioning import DEFAULT_RULES, AxisRules, constrain, is_split, partition_spec
from mscale.scales import Shape

BASE_EMBED, BASE_LAYERS = 64, 2
EMBEDDING_STD, LOGIT_GAIN = 1.0, 8.0
REMAT_POLICIES = ("none", "dots", "full")
LR_RULES = ("mup", "constant")
ACTIVATIONS = ("silu", "gelu")
# Measured: a scan copies its carries and stacks what it saves. On a CPU core that is a sixth of the step of two layers
# and a twelfth of that of six; on an H200 a sixth of the step of scale 34, and two fifths of its memory.
UNROLLED_LAYERS = 6
Params = Any


@dataclass(frozen=True)
class ModelConfig:
    """All that determines the compiled model.

    Attributes:
      shape: the rung (``scales.get``).
      vocab_size: entries V of the tied embedding.
      dropout: rate on the embedding and on each block's two outputs, only where a key is given.
      compute_dtype: of activations and matrix products; parameters, norms, softmax and loss stay float32.
      remat: what the backward pass recomputes: "none", "dots" (all but matrix products) or "full" (whole blocks).
      serial_block: MLP after attention with a norm of its own, instead of beside it.
      lr_rule: "mup" or "constant", see the module.
      z_loss: weight of the squared log-normaliser in the training objective.
      loss_block: logits held at once (tokens of a block times V), see ``loss``; None: what the platform's speed wants.
      activation: of the MLP's gate, "silu" or "gelu".
      attention: "auto" (the fastest measured on the platform), "einsum", "xla" or "cudnn".
    """

    shape: Shape
    vocab_size: int
    dropout: float = 0.0
    compute_dtype: str = "float32"
    remat: str = "none"
    serial_block: bool = False
    lr_rule: str = "mup"
    z_loss: float = 0.0
    loss_block: int | None = None
    attention: str = "auto"
    activation: str = "silu"

    def __post_init__(self):
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
        """What a block's output is multiplied by before it joins the residual stream."""
        return BASE_LAYERS / self.shape.layers if self.lr_rule == "mup" else 1.0

    @property
    def logit_scale(self) -> float:
        d = self.shape.embed
        return LOGIT_GAIN / d if self.lr_rule == "mup" else d**-0.5

    @property
    def embedding_std(self) -> float:
        """Of the embedding at the start; what enters the first block is divided by it."""
        return EMBEDDING_STD if self.lr_rule == "mup" else 1.0


def rms_norm(x, scale=None):
    """Root mean square normalisation of the last axis, in float32; ``scale`` is its learned vector, if any."""
    x32 = x.astype(jnp.float32)
    y = x32 * jax.lax.rsqrt(jnp.mean(jnp.square(x32), axis=-1, keepdims=True) + 1e-6)
    return (y if scale is None else y * scale).astype(x.dtype)


def linear(x_BxSxD, w):
    """``x·w``, (B, S, …), with the trailing axes of ``w`` flattened.

    The product is two-dimensional: on three-dimensional operands XLA's CPU backend copies the cotangents into
    their transposes to form the gradient of ``w``, which took a third of a step.
    """
    B, S, D = x_BxSxD.shape
    return (x_BxSxD.reshape(B * S, D) @ w.reshape(D, -1)).reshape(B, S, -1)


_attention.defvjp(_attention_forward, _attention_backward)


def dropout(x, rate: float, key):
    if key is None or rate == 0:
        return x
    keep = jax.random.bernoulli(key, 1 - rate, x.shape)
    return jnp.where(keep, x / (1 - rate), 0)


def _normal(key, shape, std):
    return std * jax.random.truncated_normal(key, -3, 3, shape, jnp.float32) / 0.98658


def _param(key, shape, axes, fan_in):
    """A hidden matrix of standard deviation 1/sqrt(fan_in) with its logical axis names."""
    return nnx.Param(_normal(key, shape, fan_in**-0.5), axes=axes, fan_in=fan_in)


class Block(nnx.Module):
    """One layer: ``x + attention(norm(x)) + mlp(norm(x))``, or the two in series with a norm each."""

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

    def __call__(self, x_BxSxD, dropout_key=None):
        keys = (None, None) if dropout_key is None else jax.random.split(dropout_key)
        scale, rate = self.config.branch_scale, self.config.dropout
        y_BxSxD = rms_norm(x_BxSxD, self.norm[...])
        attended = dropout(self.attention(y_BxSxD), rate, keys[0])
        if self.config.serial_block:
            x_BxSxD = x_BxSxD + scale * attended
            mixed = dropout(self.mlp(rms_norm(x_BxSxD, self.mlp_norm[...])), rate, keys[1])
            return x_BxSxD + scale * mixed
        return x_BxSxD + scale * (attended + dropout(self.mlp(y_BxSxD), rate, keys[1]))

    def attention(self, y_BxSxD):
        B, S, _ = y_BxSxD.shape
        h, k, dtype = self.config.shape.heads, self.config.shape.kv, self.config.dtype
        query, key, value = (
            linear(y_BxSxD, weight[...].astype(dtype)).reshape(B, S, h, k)
            for weight in (self.query, self.key, self.value)
        )
        out_BxSxHxK = causal_attention(rotary(query), rotary(key), value, self.config.attention)
        out_HKxD = self.attention_out[...].astype(dtype).reshape(h * k, -1)
        return linear(out_BxSxHxK.reshape(B, S, h * k), out_HKxD)

    def mlp(self, y_BxSxD):
        dtype = self.config.dtype
        gate, up = (linear(y_BxSxD, weight[...].astype(dtype)) for weight in (self.gate, self.up))
        activation = getattr(jax.nn, self.config.activation)
        return linear(activation(gate) * up, self.mlp_out[...].astype(dtype))


class Decoder(nnx.Module):
    """Embedding, stacked blocks, final norm without parameters. The logits are ``loss``'s business."""

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

    def __call__(self, inputs_BxS, dropout_key=None):
        config = self.config
        key = None if config.dropout == 0 else dropout_key
        keys = None if key is None else jax.random.split(key, config.shape.layers + 1)
        embedding_VxD = self.embedding[...]
        # Split in width, the rows found would pass whole, those of all the batch, through every device.
        embedding_VxD = constrain(embedding_VxD, ("vocab", None))
        x_BxSxD = constrain(jnp.take(embedding_VxD, inputs_BxS, axis=0) / config.embedding_std)
        x_BxSxD = x_BxSxD.astype(config.dtype)
        x_BxSxD = constrain(dropout(x_BxSxD, config.dropout, None if keys is None else keys[-1]))
        blockdef, stacked = nnx.split(self.blocks)

        def layer(x_BxSxD, inputs):
            params, key = inputs
            return constrain(nnx.merge(blockdef, params)(x_BxSxD, key)), None

        if config.remat != "none":
            dots = jax.checkpoint_policies.dots_with_no_batch_dims_saveable
            policy = dots if config.remat == "dots" else None
            layer = jax.checkpoint(layer, policy=policy, prevent_cse=False)
        per_layer = (stacked, None if keys is None else keys[:-1])
        if unrolls_layers(config):
            # Split, as the gradient of a split is one concatenation; that of L look-ups is a sum of L stacks.
            leaves, structure = jax.tree.flatten(per_layer)
            for parts in zip(*(jnp.unstack(leaf) for leaf in leaves), strict=True):
                x_BxSxD, _ = layer(x_BxSxD, jax.tree.unflatten(structure, parts))
        else:
            x_BxSxD, _ = jax.lax.scan(layer, x_BxSxD, per_layer)
        return rms_norm(x_BxSxD)


def unrolls_layers(config: ModelConfig) -> bool:
    """Whether blocks follow each other in the program instead of being scanned.

    What is to be recomputed, or gathered from other devices again, is scanned: only that keeps the compiler from doing
    it ahead, for all layers at once.
    """
    whole = jax.default_backend() == "gpu" and not is_split("embed", config.shape.embed)
    return config.remat == "none" and (whole or config.shape.layers <= UNROLLED_LAYERS)


@functools.lru_cache(maxsize=64)
def _definition(config: ModelConfig):
    """The module's graph and its abstract parameters, without allocating any."""
    return nnx.split(nnx.eval_shape(lambda: Decoder(config, nnx.Rngs(params=0))))


def abstract_params(config: ModelConfig) -> Params:
    """Parameters as a nested dict of ``jax.ShapeDtypeStruct``."""
    return nnx.to_pure_dict(_definition(config)[1])


@functools.partial(jax.jit, static_argnums=0)
def init_params(config: ModelConfig, key: jax.Array) -> Params:
    """Fresh parameters from a PRNG key: a nested dict of float32 arrays, blocks stacked along axis 0."""
    return nnx.to_pure_dict(nnx.state(Decoder(config, nnx.Rngs(params=key))))


def apply(config: ModelConfig, params: Params, inputs_BxS: jax.Array, dropout_key=None) -> jax.Array:
    """Hidden states after the final norm, (B, S, D) in the compute dtype, of int32 token ids.

    Without ``dropout_key`` nothing is dropped.
    """
    return nnx.merge(_definition(config)[0], params)(inputs_BxS, dropout_key)


def full_logits(config: ModelConfig, params: Params, x_BxSxD: jax.Array) -> jax.Array:
    """Full float32 logits (B, S, V): for sampling and tests; training uses ``loss``."""
    embedding = params["embedding"].astype(config.dtype)
    scaled = x_BxSxD * jnp.asarray(config.logit_scale, x_BxSxD.dtype)
    return jnp.einsum("BSD,VD->BSV", scaled, embedding, preferred_element_type=jnp.float32)


def _metadata(config: ModelConfig, read) -> Params:
    """``read(variable, stacked)`` for every parameter, in the parameters' structure."""
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
    """What the learning rate of every parameter is multiplied by: floats in the parameters' structure."""

    def read(variable, stacked):
        hidden = config.lr_rule == "mup" and "fan_in" in variable.get_metadata()
        return BASE_EMBED / config.shape.embed if hidden else 1.0

    return _metadata(config, read)


def decay_mask(config: ModelConfig) -> Params:
    """Which parameters weight decay applies to: matrices, not norm vectors."""
    return _metadata(config, lambda variable, stacked: variable.axes != ("norm",))


def parameter_shardings(config, mesh_: Mesh, rules: AxisRules = DEFAULT_RULES):
    """NamedShardings of the parameters of ``model.ModelConfig`` (and of each Adam moment), in their structure."""
    from mscale.models import decoder

    return jax.tree.map(
        lambda abstract, logical: NamedSharding(mesh_, partition_spec(mesh_, logical, abstract.shape, rules)),
        decoder.abstract_params(config),
        decoder.logical_axes(config),
    )
