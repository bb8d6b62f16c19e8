"""AdamW with per-parameter rates, clipping, and the warmup-stable-decay and cosine schedules.

Hyperparameters are traced scalars: runs of one shape share one compiled step whatever their rate or length.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from mscale.errors import MscaleError, nearest

SCHEDULES = ("linear", "sqrt", "cosine")


class Hyper(NamedTuple):
    """Hyperparameters as scalars; made by ``hyper``. Steps count from 0; ``total`` is the number of steps."""

    peak_lr: Any
    warmup: Any
    total: Any
    decay: Any
    schedule: Any
    weight_decay: Any
    clip: Any
    b1: Any
    b2: Any
    eps: Any


class AdamWState(NamedTuple):
    """Adam's first and second moments, each in the structure of the parameters."""

    mu: Any
    nu: Any


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
    """Checks hyperparameters and makes them traceable (numpy scalars of fixed types).

    Args:
      peak_lr: base learning rate.
      warmup: steps of linear warmup.
      total: steps of the run.
      decay: last steps, over which the rate falls; 0 for a trunk that never decays. Unused by "cosine".
      schedule: "linear" or "sqrt" (one minus the square root, Hägele et al. 2024, arXiv 2405.18392) decay after
        a stable phase, or "cosine" from the end of warmup to ``total``.
      weight_decay: decoupled, per unit of base learning rate.
      clip: largest global gradient norm; 0 for no clipping.

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


def learning_rate(step, hyper: Hyper):
    """Base learning rate of step ``step`` (from 0): a pure function, under jit or on the host.

    Warmup reaches the peak at its last step; a decay of n steps ends at 1/(n+1) of the way above zero, so that no
    step is wasted on a rate of zero.
    """
    step = jnp.asarray(step, jnp.float32)
    warmup = jnp.minimum(1.0, (step + 1) / jnp.maximum(hyper.warmup, 1))
    done = jnp.clip((step + 1 - (hyper.total - hyper.decay)) / (hyper.decay + 1), 0, 1)
    whole = jnp.clip((step - hyper.warmup) / jnp.maximum(hyper.total - hyper.warmup, 1), 0, 1)
    shapes = jnp.stack([1 - done, 1 - jnp.sqrt(done), 0.5 * (1 + jnp.cos(jnp.pi * whole))])
    return hyper.peak_lr * warmup * shapes[hyper.schedule]


def schedule_phase(step: int, warmup: int, total: int, decay: int, schedule: str = "linear") -> str:
    """Where a run stands after ``step`` steps: "warmup", "stable", "decay" or "end" (host side).

    Only a run that has decayed to its end is at "end"; a trunk (``decay`` 0) stays "stable". Cosine decays from
    the end of warmup.
    """
    if schedule == "cosine":
        decay = total - warmup
    if step >= total and decay > 0:
        return "end"
    if step < warmup:
        return "warmup"
    return "decay" if step > total - decay else "stable"


def init_adamw(params) -> AdamWState:
    """Zero moments."""
    return AdamWState(jax.tree.map(jnp.zeros_like, params), jax.tree.map(jnp.zeros_like, params))


def global_norm(tree) -> jax.Array:
    """Euclidean norm of all leaves together."""
    return jnp.sqrt(sum(jnp.sum(jnp.square(leaf)) for leaf in jax.tree.leaves(tree)))


def adamw_update(grads, state: AdamWState, params, step, hyper: Hyper, lr_multipliers=None, decay_mask=None):
    """One AdamW step (Loshchilov & Hutter 2019, arXiv 1711.05101).

    Args:
      grads: in the structure of ``params``.
      state: moments before the step.
      params: parameters before the step.
      step: steps done before, which also corrects the moments' bias.
      hyper: traced hyperparameters.
      lr_multipliers: floats in the structure of ``params`` (``model.lr_multipliers``), or None for ones. Weight decay
        goes by the base rate alone, so that its strength over a run is the same at every width.
      decay_mask: bools likewise (``model.decay_mask``), or None to decay all.

    Returns:
      ``(params, state)`` after the step.
    """
    ones, trues = jax.tree.map(lambda _: 1.0, params), jax.tree.map(lambda _: True, params)
    lr = learning_rate(step, hyper)
    norm = global_norm(grads)
    clip = jnp.minimum(1.0, hyper.clip / jnp.maximum(norm, 1e-30))
    t = jnp.asarray(step, jnp.float32) + 1
    bias1, bias2 = 1 - hyper.b1**t, 1 - hyper.b2**t

    def leaf(g, mu, nu, p, multiplier, decays):
        g = g * clip
        mu = mu + (1 - hyper.b1) * (g - mu)
        nu = nu + (1 - hyper.b2) * (jnp.square(g) - nu)
        step_ = multiplier * (mu / bias1) / (jnp.sqrt(nu / bias2) + hyper.eps)
        if decays:
            step_ = step_ + hyper.weight_decay * p
        return p - lr * step_, mu, nu

    leaves = jax.tree.map(
        leaf, grads, state.mu, state.nu, params, lr_multipliers or ones, decay_mask or trues
    )
    params, mu, nu = jax.tree.transpose(jax.tree.structure(params), jax.tree.structure((0, 0, 0)), leaves)
    return params, AdamWState(mu, nu)
