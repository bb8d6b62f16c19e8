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


def test_equals_optax_adamw():
    mask = {"a": True, "b": {"c": False}}
    hyper = optimizer.hyper(1e-2, 3, 20, 5, weight_decay=0.1, clip=0.5)
    reference = optax.chain(
        optax.clip_by_global_norm(0.5),
        optax.adamw(
            lambda i: optimizer.learning_rate(i, hyper), b1=0.9, b2=0.95, weight_decay=0.1, mask=mask
        ),
    )
    params, state = PARAMS, optimizer.init_adamw(PARAMS)
    expected, expected_state = PARAMS, reference.init(PARAMS)
    for step in range(20):
        grads = gradients(step)
        params, state = optimizer.adamw_update(grads, state, params, step, hyper, None, mask)
        updates, expected_state = reference.update(grads, expected_state, expected)
        expected = optax.apply_updates(expected, updates)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6), params, expected)


def test_multipliers_scale_the_step_and_not_the_decay():
    hyper = optimizer.hyper(1e-2, 0, 10, weight_decay=0.5, clip=0)
    zeros = jax.tree.map(jnp.zeros_like, PARAMS)
    half = jax.tree.map(lambda _: 0.5, PARAMS)
    one, _ = optimizer.adamw_update(zeros, optimizer.init_adamw(PARAMS), PARAMS, 0, hyper)
    same, _ = optimizer.adamw_update(zeros, optimizer.init_adamw(PARAMS), PARAMS, 0, hyper, half)
    jax.tree.map(np.testing.assert_array_equal, one, same)
    none = hyper._replace(weight_decay=np.float32(0))
    one, _ = optimizer.adamw_update(gradients(0), optimizer.init_adamw(PARAMS), PARAMS, 0, none)
    less, _ = optimizer.adamw_update(gradients(0), optimizer.init_adamw(PARAMS), PARAMS, 0, none, half)
    jax.tree.map(lambda a, b, p: np.testing.assert_allclose(b - p, (a - p) / 2, atol=1e-6), one, less, PARAMS)


def test_other_hyperparameters_do_not_recompile():
    step = jax.jit(
        lambda i, hyper: optimizer.adamw_update(PARAMS, optimizer.init_adamw(PARAMS), PARAMS, i, hyper)
    )
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
