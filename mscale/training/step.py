"""The compiled training step and its state: parameters and optimizer state, on one device or a mesh."""

import functools
from collections.abc import Callable
from typing import Any, TypedDict

import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh

from mscale.models import decoder, loss, partitioning
from mscale.models.decoder import Params
from mscale.models.partitioning import FrozenAxisRules, constrain
from mscale.training import optimizer
from mscale.training.optimizer import ADAMW, Chain


class TrainState(TypedDict):
    """What a step maps: a plain dict, so that a checkpoint's array names are its dotted paths."""

    params: Params  # nested dict of float32 arrays
    optimizer: Any  # state of the optax chain


Metrics = dict[str, jax.Array]
"""float32 "loss" (nats per token), "lr" and "grad_norm"."""


def gradients(
    config: decoder.ModelConfig,
    params: Params,
    targets_BxS: jax.Array,
    dropout_key: jax.Array | None,
    accumulate: int = 1,
) -> tuple[jax.Array, Params]:
    """Mean loss in nats per token, and the gradients of the training objective over a batch.

    With ``accumulate`` A > 1 (gradient accumulation) the batch is split into A microbatches of B/A rows, which run
    one after the other: the same mean in less memory. Microbatch a holds rows a, a + A, …, so that on a mesh every
    device keeps its own rows. Each microbatch has its own dropout masks.
    """

    def loss_and_gradients(targets: jax.Array, key: jax.Array | None) -> tuple[jax.Array, Params]:
        def objective(params: Params) -> tuple[jax.Array, jax.Array]:
            return loss.training_objective(config, params, loss.shift_right(targets), targets, key)

        (_, nats), grads = jax.value_and_grad(objective, has_aux=True)(params)
        return nats, grads

    if accumulate == 1:
        return loss_and_gradients(targets_BxS, dropout_key)
    B, S = targets_BxS.shape
    microbatches_AxBxS = targets_BxS.reshape(B // accumulate, accumulate, S).swapaxes(0, 1)

    def add(total: Any, indexed_microbatch: tuple[jax.Array, jax.Array]) -> tuple[Any, None]:
        index, targets = indexed_microbatch
        key = None if dropout_key is None else jax.random.fold_in(dropout_key, index)
        targets = constrain(targets, ("batch", None))
        return jax.tree.map(jnp.add, total, loss_and_gradients(targets, key)), None

    zeros = (jnp.zeros((), jnp.float32), jax.tree.map(jnp.zeros_like, params))
    total, _ = jax.lax.scan(add, zeros, (jnp.arange(accumulate), microbatches_AxBxS))
    return jax.tree.map(lambda x: x / accumulate, total)


def train_step(
    config: decoder.ModelConfig,
    state: TrainState,
    targets_BxS: jax.Array,
    step: jax.typing.ArrayLike,
    hyper: optimizer.Hyper,
    key: jax.Array,
    accumulate: int = 1,
    chain: Chain = ADAMW,
) -> tuple[TrainState, Metrics]:
    """One optimizer step: the state after it, and its metrics as scalars; ``step`` counts from 0."""
    dropout_key = jax.random.fold_in(key, step) if config.dropout else None
    nats, grads = gradients(config, state["params"], targets_BxS, dropout_key, accumulate)
    transformation = chain(step, hyper, decoder.lr_multipliers(config), decoder.decay_mask(config))
    updates, optimizer_state = transformation.update(grads, state["optimizer"], state["params"])
    metrics = {
        "loss": nats,
        "lr": optimizer.learning_rate(step, hyper),
        "grad_norm": optax.global_norm(grads),
    }
    return {"params": optax.apply_updates(state["params"], updates), "optimizer": optimizer_state}, metrics


@functools.lru_cache(maxsize=64)
def compiled_steps(
    config: decoder.ModelConfig,
    steps_per_dispatch: int,
    mesh: Mesh | None,
    accumulate: int = 1,
    rules: FrozenAxisRules = partitioning.DEFAULT_FROZEN_RULES,
    chain: Chain = ADAMW,
) -> Callable[..., tuple[TrainState, Metrics]]:
    """Returns the jitted ``(state, targets_KxBxS, first, count, hyper, key) -> (state, metrics of (K,))``.

    It runs ``count`` ≤ K steps from step ``first``. ``count`` is traced, so one program serves whole and partial
    dispatches. Only the arguments of this function are compiled in: all runs of one model shape share the program
    whatever their learning rate or length.

    Args:
      config: the model.
      steps_per_dispatch: K.
      mesh: of the devices, or None for one device.
      accumulate: microbatches of a batch, see ``gradients``.
      rules: from logical axes to mesh axes.
      chain: the optimizer.
    """

    def steps(
        state: TrainState,
        targets_KxBxS: jax.Array,
        first: jax.Array,
        count: jax.Array,
        hyper: optimizer.Hyper,
        key: jax.Array,
    ) -> tuple[TrainState, Metrics]:
        zeros = jnp.zeros(targets_KxBxS.shape[0], jnp.float32)
        metrics = {"loss": zeros, "lr": zeros, "grad_norm": zeros}

        def body(i: Any, carry: tuple[TrainState, Metrics]) -> tuple[TrainState, Metrics]:
            state, metrics = carry
            state, step_metrics = train_step(
                config, state, targets_KxBxS[i], first + i, hyper, key, accumulate, chain
            )
            return state, {name: metrics[name].at[i].set(value) for name, value in step_metrics.items()}

        if targets_KxBxS.shape[0] == 1:
            return body(0, (state, metrics))
        return jax.lax.fori_loop(0, count, body, (state, metrics))

    if mesh is None:
        return jax.jit(steps, donate_argnums=0)
    shardings = state_shardings(config, mesh, rules, chain), partitioning.replicated(mesh)
    return jax.jit(steps, donate_argnums=0, out_shardings=shardings)


def state_shardings(
    config: decoder.ModelConfig,
    mesh: Mesh,
    rules: FrozenAxisRules = partitioning.DEFAULT_FROZEN_RULES,
    chain: Chain = ADAMW,
) -> TrainState:
    """NamedShardings in the structure of the state.

    Arrays of the optimizer that belong to a parameter are sharded like it; others, such as its count of steps, are
    replicated.
    """
    params = decoder.parameter_shardings(config, mesh, dict(rules))
    replicated = partitioning.replicated(mesh)
    return {
        "params": params,
        "optimizer": optax.tree_map_params(
            lambda params: initial_optimizer(config, params, chain),
            lambda _, sharding: sharding,
            abstract_state(config, chain)["optimizer"],
            params,
            transform_non_params=lambda _: replicated,
        ),
    }


def abstract_state(config: decoder.ModelConfig, chain: Chain = ADAMW) -> TrainState:
    """The state as ``jax.ShapeDtypeStruct``s: shapes and types, without allocating arrays."""
    params = decoder.abstract_params(config)
    return {
        "params": params,
        "optimizer": jax.eval_shape(lambda params: initial_optimizer(config, params, chain), params),
    }


def initial_optimizer(config: decoder.ModelConfig, params: Params, chain: Chain = ADAMW) -> Any:
    """The optimizer's state before the first step."""
    hyper = optimizer.hyper(0.0, 0, 1)
    return chain(0, hyper, decoder.lr_multipliers(config), decoder.decay_mask(config)).init(params)


@functools.lru_cache(maxsize=64)
def optimizer_initializer(
    config: decoder.ModelConfig,
    mesh: Mesh | None = None,
    rules: FrozenAxisRules = partitioning.DEFAULT_FROZEN_RULES,
    chain: Chain = ADAMW,
) -> Callable[[Params], Any]:
    """Returns the jitted ``parameters -> the optimizer's state before the first step``, in its shardings."""
    where = None if mesh is None else state_shardings(config, mesh, rules, chain)["optimizer"]
    return jax.jit(lambda params: initial_optimizer(config, params, chain), out_shardings=where)


def place_state(state: Any, shardings: Any = None) -> Any:
    """Puts a pytree of host arrays on the device, or onto ``shardings``; arrays already there are not moved."""
    if shardings is None:
        # A copy: on the CPU a device array may share the memory of its source, and the step donates its input.
        return jax.tree.map(lambda x: jnp.array(x, copy=True), state)
    return jax.device_put(state, shardings)


@functools.lru_cache(maxsize=64)
def parameter_initializer(
    config: decoder.ModelConfig,
    mesh: Mesh | None = None,
    rules: FrozenAxisRules = partitioning.DEFAULT_FROZEN_RULES,
) -> Callable[[jax.Array], Params]:
    """Returns the jitted ``key -> parameters``, initialised in their shardings: the same values on every mesh.

    On the CPU it is compiled without optimisation, since it runs once per run.
    """
    options = {"xla_backend_optimization_level": 0} if jax.default_backend() == "cpu" else None
    where = None if mesh is None else state_shardings(config, mesh, rules)["params"]
    return jax.jit(
        lambda key: decoder.init_params(config, key), compiler_options=options, out_shardings=where
    )
