"""The optimizer, an optax chain (AdamW by default), and the WSD (warmup-stable-decay) and cosine schedules.

Hyperparameters are traced scalars and the chain is built inside the traced step, so runs of one model shape share one
compiled step whatever their learning rate or length.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated, Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from msgspec import Meta

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


def hyper(
    peak_lr: float,
    warmup: int,
    total: int,
    decay: int = 0,
    *,
    schedule: str = "linear",
    weight_decay: Annotated[float, Meta(ge=0)] = 0.1,
    clip: Annotated[float, Meta(ge=0)] = 1.0,
    b1: Annotated[float, Meta(ge=0, lt=1)] = 0.9,
    b2: Annotated[float, Meta(ge=0, lt=1)] = 0.95,
    eps: Annotated[float, Meta(ge=0)] = 1e-8,
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


def adamw(
    hyper: Hyper, learning_rate: Scalar, lr_multipliers: PyTree, decay_mask: PyTree
) -> optax.GradientTransformation:
    """AdamW (Loshchilov & Hutter 2019, arXiv 1711.05101) with clipping by the global gradient norm.

    Args:
      hyper: hyperparameters, traced inside the train step.
      learning_rate: base learning rate of the step.
      lr_multipliers: floats in the structure of the parameters (``decoder.lr_multipliers``). Weight decay uses the
        base learning rate alone, so that its strength over a run is the same at every width.
      decay_mask: bools likewise (``decoder.decay_mask``): which parameters decay.
    """

    def multiply(updates: PyTree, params: PyTree) -> PyTree:
        return jax.tree.map(lambda update, multiplier: multiplier * update, updates, lr_multipliers)

    return optax.named_chain(
        ("clip", optax.clip_by_global_norm(hyper.clip)),
        ("adam", optax.scale_by_adam(hyper.b1, hyper.b2, hyper.eps)),
        ("multipliers", optax.stateless(multiply)),
        ("weight_decay", optax.add_decayed_weights(hyper.weight_decay, decay_mask)),
        ("learning_rate", optax.scale_by_learning_rate(learning_rate)),
    )


@dataclass(frozen=True)
class Chain:
    """How a train step builds its chain of optax transformations; hashable, since it selects a compiled program.

    Attributes:
      build: called inside the traced step, as ``adamw`` is, with (hyper, learning_rate, lr_multipliers, decay_mask)
        and the arguments. Its state must not depend on the first two.
      arguments: further keyword arguments, as (name, value).
    """

    build: Callable[..., optax.GradientTransformation] = adamw
    arguments: tuple[tuple[str, Any], ...] = ()

    def __call__(
        self, step: jax.typing.ArrayLike, hyper: Hyper, lr_multipliers: PyTree, decay_mask: PyTree
    ) -> optax.GradientTransformation:
        """The transformations of one step."""
        rate = learning_rate(step, hyper)
        return self.build(hyper, rate, lr_multipliers, decay_mask, **dict(self.arguments))


ADAMW = Chain()
