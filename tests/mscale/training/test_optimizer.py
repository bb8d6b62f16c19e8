"""AdamW against optax, and the WSD and cosine schedules against their definitions."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mscale.errors import MscaleError
from mscale.training import optimizer

PARAMS = {"a": jnp.arange(6.0).reshape(2, 3), "b": {"c": jnp.ones((4,))}}

RATES = jax.jit(jax.vmap(optimizer.learning_rate, in_axes=(0, None)))


def gradients(step):
    return jax.tree.map(lambda p: jnp.sin(p * 3 + step) * 2, PARAMS)


def steps(hyper, count, grads=gradients, rates=None, mask=None, chain=optimizer.ADAMW):
    """Parameters after `count` steps."""
    rates = jax.tree.map(lambda _: 1.0, PARAMS) if rates is None else rates
    mask = jax.tree.map(lambda _: True, PARAMS) if mask is None else mask
    params, state = PARAMS, chain(0, hyper, rates, mask).init(PARAMS)
    for step in range(count):
        updates, state = chain(step, hyper, rates, mask).update(grads(step), state, params)
        params = optax.apply_updates(params, updates)
    return params


def written_out(hyper, count, mask):
    """The same by AdamW's equations (Loshchilov & Hutter 2019, algorithm 2), in float64."""
    params = jax.tree.map(lambda p: np.asarray(p, np.float64), PARAMS)
    first = second = jax.tree.map(np.zeros_like, params)
    for step in range(count):
        grads = jax.tree.map(lambda g: np.asarray(g, np.float64), gradients(step))
        norm = np.sqrt(sum(np.sum(g**2) for g in jax.tree.leaves(grads)))
        grads = jax.tree.map(lambda g, norm=norm: g * min(1.0, float(hyper.clip) / norm), grads)
        first = jax.tree.map(lambda m, g: 0.9 * m + 0.1 * g, first, grads)
        second = jax.tree.map(lambda v, g: 0.95 * v + 0.05 * g**2, second, grads)
        rate = float(optimizer.learning_rate(step, hyper))
        params = jax.tree.map(
            lambda p, m, v, decays, t=step + 1, rate=rate: (
                p - rate * (m / (1 - 0.9**t) / (np.sqrt(v / (1 - 0.95**t)) + 1e-8) + decays * 0.1 * p)
            ),
            params,
            first,
            second,
            mask,
        )
    return params


def test_it_is_adamw_with_clipping_and_the_schedule():
    mask = {"a": True, "b": {"c": False}}
    hyper = optimizer.hyper(1e-2, 3, 20, 5, weight_decay=0.1, clip=0.5)
    found, expected = steps(hyper, 20, mask=mask), written_out(hyper, 20, mask)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6), found, expected)


def test_multipliers_scale_the_step_and_not_the_decay():
    hyper = optimizer.hyper(1e-2, 0, 10, weight_decay=0.5, clip=0)
    half = jax.tree.map(lambda _: 0.5, PARAMS)

    def zeros(_):
        return jax.tree.map(jnp.zeros_like, PARAMS)

    jax.tree.map(np.testing.assert_array_equal, steps(hyper, 1, zeros), steps(hyper, 1, zeros, half))
    none = hyper._replace(weight_decay=np.float32(0))
    one, less = steps(none, 1), steps(none, 1, rates=half)
    jax.tree.map(lambda a, b, p: np.testing.assert_allclose(b - p, (a - p) / 2, atol=1e-6), one, less, PARAMS)


def test_other_hyperparameters_do_not_recompile():
    @jax.jit
    def step(i, hyper):
        chain = optimizer.ADAMW(
            i, hyper, jax.tree.map(lambda _: 1.0, PARAMS), jax.tree.map(bool, {"a": 1, "b": {"c": 0}})
        )
        return chain.update(PARAMS, chain.init(PARAMS), PARAMS)

    step(np.int32(0), optimizer.hyper(1e-2, 3, 20, 5))
    step(np.int32(7), optimizer.hyper(3e-4, 100, 2000, 0, schedule="cosine", clip=0))
    assert step._cache_size() == 1


@settings(max_examples=60, deadline=None)
@given(
    warmup=st.integers(0, 30),
    stable=st.integers(1, 60),
    decay=st.integers(0, 40),
    schedule=st.sampled_from(optimizer.SCHEDULES),
)
def test_schedule_rises_holds_and_falls(warmup, stable, decay, schedule):
    total = warmup + stable + decay
    hyper = optimizer.hyper(0.5, warmup, total, decay, schedule=schedule)
    rates = np.asarray(RATES(np.arange(140), hyper))[:total]
    assert (rates > 0).all() and rates.max() <= 0.5 + 1e-7
    assert (np.diff(rates[: warmup or 1]) > 0).all()
    if schedule == "cosine":
        assert (np.diff(rates[warmup:]) < 1e-7).all()
    else:
        np.testing.assert_allclose(rates[warmup : warmup + stable], 0.5)
        if decay:
            assert (np.diff(rates[warmup + stable - 1 :]) < 0).all()


def test_decay_shapes():
    linear, sqrt = (optimizer.hyper(1, 0, 10, 3, schedule=name) for name in ("linear", "sqrt"))
    found = [float(optimizer.learning_rate(i, linear)) for i in (6, 7, 8, 9)]
    np.testing.assert_allclose(found, [1, 0.75, 0.5, 0.25])
    np.testing.assert_allclose(float(optimizer.learning_rate(7, sqrt)), 0.5)


def test_a_branch_continues_its_trunk():
    """A trunk has the same learning rates as each of its branches up to the branch point."""
    trunk, branch = optimizer.hyper(0.3, 5, 100), optimizer.hyper(0.3, 5, 60, 6)
    for step in range(54):
        assert optimizer.learning_rate(step, trunk) == optimizer.learning_rate(step, branch)


def test_phase():
    found = [optimizer.schedule_phase(step, 10, 100, 20) for step in (0, 9, 10, 80, 81, 99, 100)]
    assert found == ["warmup", "warmup", "stable", "stable", "decay", "decay", "end"]
    assert optimizer.schedule_phase(100, 10, 100, 0) == "stable"
    assert [optimizer.schedule_phase(step, 10, 100, 0, "cosine") for step in (5, 50, 100)] == [
        "warmup",
        "decay",
        "end",
    ]


@pytest.mark.parametrize(
    "arguments, match",
    [
        (dict(peak_lr=float("nan"), warmup=1, total=9), "peak_lr"),
        (dict(peak_lr=1, warmup=5, total=9, decay=5), "do not fit"),
        (dict(peak_lr=1, warmup=1, total=9, schedule="sqr"), "did you mean 'sqrt'"),
        (dict(peak_lr=1, warmup=1, total=9, clip=-1), "clip"),
    ],
)
def test_bad_hyperparameters(arguments, match):
    with pytest.raises(MscaleError, match=match):
        optimizer.hyper(**arguments)
