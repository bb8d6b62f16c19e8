"""AdamW with per-parameter learning rates, gradient clipping, and the WSD (warmup-stable-decay) and cosine schedules.

Hyperparameters are traced scalars, so runs of one model shape share one compiled step whatever their learning rate
or length.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from mscale.errors import MscaleError, nearest

SCHEDULES = ("linear", "sqrt", "cosine")  # the first two are WSD, by the shape of the decay
PyTree = Any
Scalar = Any
"""A numpy scalar on the host, a ``jax.Array`` of shape () inside a jitted function."""


class Hyper(NamedTuple):
    """Hyperparameters of optimizer and schedule as scalars; made by ``hyper``.

    Attributes:
      peak_lr: base learning rate.
      warmup: steps of linear warmup.
      total: steps of the run.
      decay: steps of the final decay; 0 for a trunk.
      schedule: index into ``SCHEDULES``.
      weight_decay: decoupled weight decay, per unit of base learning rate.
      clip: largest global gradient norm; infinite for no clipping.
      b1, b2, eps: of Adam.
    """

    peak_lr: Scalar
    warmup: Scalar
    total: Scalar
    decay: Scalar
    schedule: Scalar
    weight_decay: Scalar
    clip: Scalar
    b1: Scalar
    b2: Scalar
    eps: Scalar


class AdamWState(NamedTuple):
    """Adam's first and second moments, each in the structure of the parameters."""

    mu: PyTree
    nu: PyTree


def hyper(
    peak_lr: float,
    warmup: int,
    total: int,
    decay: int = 0,
    *,
    schedule: str = "linear",
    weight_decay: float = 0.1,
    clip: float = 1.0,
    b1: float = 0.9,
    b2: float = 0.95,
    eps: float = 1e-8,
) -> Hyper:
    """Checks hyperparameters and converts them to numpy scalars of fixed types, which JAX can trace.

    Args:
      peak_lr: base learning rate.
      warmup: steps of linear warmup.
      total: steps of the run.
      decay: steps of the final decay; 0 for a trunk, which never decays. Not used by "cosine".
      schedule: "linear" or "sqrt" for WSD with that decay ("sqrt" is one minus the square root of the decay's
        fraction, Hägele et al. 2024, arXiv 2405.18392), or "cosine" from the end of the warmup to ``total``.
      weight_decay: decoupled weight decay, per unit of base learning rate.
      clip: largest global gradient norm; 0 for no clipping.
      b1, b2, eps: of Adam.

    Raises:
      MscaleError: a value is out of range.
    """
    if schedule not in SCHEDULES:
        raise MscaleError(
            f"schedule is {schedule!r}: expected one of {', '.join(SCHEDULES)}{nearest(schedule, SCHEDULES)}"
        )
    for name, value in (("peak_lr", peak_lr), ("weight_decay", weight_decay), ("clip", clip)):
        if not (np.isfinite(value) and value >= 0):
            raise MscaleError(f"{name} is {value}: expected a finite number of at least 0")
    if warmup < 0 or decay < 0 or warmup + decay > total:
        raise MscaleError(
            f"warmup {warmup} + decay {decay} steps do not fit in {total} steps: lower them or train longer"
        )
    f, i = np.float32, np.int32
    return Hyper(
        peak_lr=f(peak_lr),
        warmup=i(warmup),
        total=i(total),
        decay=i(decay),
        schedule=i(SCHEDULES.index(schedule)),
        weight_decay=f(weight_decay),
        clip=f(clip if clip else np.inf),
        b1=f(b1),
        b2=f(b2),
        eps=f(eps),
    )


def learning_rate(step: jax.typing.ArrayLike, hyper: Hyper) -> jax.Array:
    """Base learning rate of step ``step`` (from 0), by WSD or cosine; a pure function, under jit or on the host.

    The warmup reaches the peak at its last step. A decay of n steps ends at peak/(n+1), not at zero, so that its
    last step still trains.
    """
    step = jnp.asarray(step, jnp.float32)
    warmup = jnp.minimum(1.0, (step + 1) / jnp.maximum(hyper.warmup, 1))
    wsd_decay_fraction = jnp.clip((step + 1 - (hyper.total - hyper.decay)) / (hyper.decay + 1), 0, 1)
    cosine_fraction = jnp.clip((step - hyper.warmup) / jnp.maximum(hyper.total - hyper.warmup, 1), 0, 1)
    factors = jnp.stack(  # in the order of SCHEDULES
        [
            1 - wsd_decay_fraction,
            1 - jnp.sqrt(wsd_decay_fraction),
            0.5 * (1 + jnp.cos(jnp.pi * cosine_fraction)),
        ]
    )
    return hyper.peak_lr * warmup * factors[hyper.schedule]


def schedule_phase(step: int, warmup: int, total: int, decay: int, schedule: str = "linear") -> str:
    """Phase of the schedule after ``step`` steps: "warmup", "stable", "decay" or "end"; runs on the host.

    Only a run that has decayed to its last step is at "end"; a trunk (``decay`` 0) stays "stable". Cosine decays
    from the end of the warmup.
    """
    if schedule == "cosine":
        decay = total - warmup
    if step >= total and decay > 0:
        return "end"
    if step < warmup:
        return "warmup"
    return "decay" if step > total - decay else "stable"


def init_adamw(params: PyTree) -> AdamWState:
    """Zero moments for ``params``."""
    return AdamWState(jax.tree.map(jnp.zeros_like, params), jax.tree.map(jnp.zeros_like, params))


def global_norm(tree: PyTree) -> jax.Array:
    """Euclidean norm of all leaves together, a scalar."""
    return jnp.sqrt(sum(jnp.sum(jnp.square(leaf)) for leaf in jax.tree.leaves(tree)))


def adamw_update(
    grads: PyTree,
    state: AdamWState,
    params: PyTree,
    step: jax.typing.ArrayLike,
    hyper: Hyper,
    lr_multipliers: PyTree = None,
    decay_mask: PyTree = None,
) -> tuple[PyTree, AdamWState]:
    """One AdamW step (Loshchilov & Hutter 2019, arXiv 1711.05101), with clipping by the global gradient norm.

    Args:
      grads: in the structure of ``params``.
      state: moments before the step.
      params: parameters before the step.
      step: number of steps done before; it also sets the bias correction of the moments.
      hyper: traced hyperparameters.
      lr_multipliers: floats in the structure of ``params`` (``decoder.lr_multipliers``), or None for ones. Weight
        decay uses the base learning rate alone, so that its strength over a run is the same at every width.
      decay_mask: bools likewise (``decoder.decay_mask``), or None to decay all parameters.

    Returns:
      ``(params, state)`` after the step.
    """
    ones, trues = jax.tree.map(lambda _: 1.0, params), jax.tree.map(lambda _: True, params)
    lr = learning_rate(step, hyper)
    norm = global_norm(grads)
    clip = jnp.minimum(1.0, hyper.clip / jnp.maximum(norm, 1e-30))
    t = jnp.asarray(step, jnp.float32) + 1
    bias1, bias2 = 1 - hyper.b1**t, 1 - hyper.b2**t

    def update_leaf(
        g: jax.Array, mu: jax.Array, nu: jax.Array, p: jax.Array, multiplier: float, decays: bool
    ) -> tuple[jax.Array, jax.Array, jax.Array]:
        g = g * clip
        mu = mu + (1 - hyper.b1) * (g - mu)
        nu = nu + (1 - hyper.b2) * (jnp.square(g) - nu)
        direction = multiplier * (mu / bias1) / (jnp.sqrt(nu / bias2) + hyper.eps)
        if decays:
            direction = direction + hyper.weight_decay * p
        return p - lr * direction, mu, nu

    leaves = jax.tree.map(
        update_leaf, grads, state.mu, state.nu, params, lr_multipliers or ones, decay_mask or trues
    )
    params, mu, nu = jax.tree.transpose(jax.tree.structure(params), jax.tree.structure((0, 0, 0)), leaves)
    return params, AdamWState(mu, nu)
