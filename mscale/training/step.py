"""The compiled training step, and the state it maps: parameters and Adam moments, on a device or a mesh."""

import functools

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from mscale.models import decoder, loss, partitioning
from mscale.models import loss as evaluate
from mscale.models.partitioning import FrozenAxisRules, constrain
from mscale.training import optimizer


def gradients(config: decoder.ModelConfig, params, targets_BxS, dropout_key, accumulate: int = 1):
    """Mean loss in nats and the gradients of the objective over a batch.

    With ``accumulate`` A > 1 the batch passes in A parts of B/A rows, one after the other: the same mean, in a
    part of the memory. Part a holds rows a, a + A, …, so that on a mesh every device keeps its own rows.
    Dropout masks are drawn per part.
    """

    def of(targets, key):
        def objective(params):
            return loss.training_objective(config, params, evaluate.shift_right(targets), targets, key)

        (_, nats), grads = jax.value_and_grad(objective, has_aux=True)(params)
        return nats, grads

    if accumulate == 1:
        return of(targets_BxS, dropout_key)
    B, S = targets_BxS.shape
    parts_AxBxS = targets_BxS.reshape(B // accumulate, accumulate, S).swapaxes(0, 1)

    def add(total, part):
        index, targets = part
        key = None if dropout_key is None else jax.random.fold_in(dropout_key, index)
        return jax.tree.map(jnp.add, total, of(constrain(targets, ("batch", None)), key)), None

    zeros = (jnp.zeros((), jnp.float32), jax.tree.map(jnp.zeros_like, params))
    total, _ = jax.lax.scan(add, zeros, (jnp.arange(accumulate), parts_AxBxS))
    return jax.tree.map(lambda x: x / accumulate, total)


def train_step(config: decoder.ModelConfig, state, targets_BxS, step, hyper, key, accumulate: int = 1):
    """One optimiser step: ``(state, metrics)``, metrics being float32 scalars loss, lr and grad_norm."""
    dropout_key = jax.random.fold_in(key, step) if config.dropout else None
    nats, grads = gradients(config, state["params"], targets_BxS, dropout_key, accumulate)
    params, moments = optimizer.adamw_update(
        grads,
        state["optimizer"],
        state["params"],
        step,
        hyper,
        decoder.lr_multipliers(config),
        decoder.decay_mask(config),
    )
    metrics = {
        "loss": nats,
        "lr": optimizer.learning_rate(step, hyper),
        "grad_norm": optimizer.global_norm(grads),
    }
    return {"params": params, "optimizer": moments}, metrics


@functools.lru_cache(maxsize=64)
def compiled_steps(
    config: decoder.ModelConfig,
    dispatch: int,
    mesh: Mesh | None,
    accumulate: int = 1,
    rules: FrozenAxisRules = partitioning.DEFAULT_FROZEN_RULES,
):
    """Returns the jitted ``(state, targets_KxBxS, first, count, hyper, key) -> (state, metrics of (K,))``.

    ``count`` ≤ K steps are run, ``count`` being traced: one program serves whole and partial dispatches. Only
    what is an argument here is compiled in, so all runs of a shape share it whatever their rate or length.
    """

    def steps(state, targets_KxBxS, first, count, hyper, key):
        zeros = jnp.zeros(targets_KxBxS.shape[0], jnp.float32)
        metrics = {"loss": zeros, "lr": zeros, "grad_norm": zeros}

        def body(i, carry):
            state, metrics = carry
            state, now = train_step(config, state, targets_KxBxS[i], first + i, hyper, key, accumulate)
            return state, {name: metrics[name].at[i].set(value) for name, value in now.items()}

        if targets_KxBxS.shape[0] == 1:
            return body(0, (state, metrics))
        return jax.lax.fori_loop(0, count, body, (state, metrics))

    if mesh is None:
        return jax.jit(steps, donate_argnums=0)
    shardings = state_shardings(config, mesh, rules), partitioning.replicated(mesh)
    return jax.jit(steps, donate_argnums=0, out_shardings=shardings)


def state_shardings(
    config: decoder.ModelConfig, mesh: Mesh, rules: FrozenAxisRules = partitioning.DEFAULT_FROZEN_RULES
):
    """NamedShardings in the structure of the state: the moments lie where their parameters do."""
    params = decoder.parameter_shardings(config, mesh, dict(rules))
    return {"params": params, "optimizer": optimizer.AdamWState(params, params)}


def abstract_state(config: decoder.ModelConfig):
    """The state's shapes and types, without allocating any."""
    params = decoder.abstract_params(config)
    return {"params": params, "optimizer": jax.eval_shape(optimizer.init_adamw, params)}


def place_state(state, shardings=None):
    """Puts a state of host arrays on the device, or where ``shardings`` say; what lies there stays."""
    if shardings is None:
        # A copy: on the CPU a device array may share the memory of its source, which the step overwrites.
        return jax.tree.map(lambda x: jnp.array(x, copy=True), state)
    return jax.device_put(state, shardings)


@functools.lru_cache(maxsize=64)
def parameter_initializer(
    config: decoder.ModelConfig,
    mesh: Mesh | None = None,
    rules: FrozenAxisRules = partitioning.DEFAULT_FROZEN_RULES,
):
    """Returns the jitted ``key -> parameters``, made where they belong: the same values on every mesh.

    Compiled hastily on the CPU, as it runs once a run.
    """
    options = {"xla_backend_optimization_level": 0} if jax.default_backend() == "cpu" else None
    where = None if mesh is None else state_shardings(config, mesh, rules)["params"]
    return jax.jit(
        lambda key: decoder.init_params(config, key), compiler_options=options, out_shardings=where
    )


def zero_moments(params):
    """Adam's moments of a new run, each beside its parameter."""
    return jax.tree.map(lambda p: jnp.zeros_like(p, device=p.sharding), optimizer.AdamWState(params, params))
