"""Partitioning: every mesh of eight simulated devices gives the losses of one device."""

import jax
import pytest
from devices import eight_devices
from jax.sharding import PartitionSpec

from mscale import scales
from mscale.errors import MscaleError
from mscale.models import decoder, partitioning

PROGRAM = """
import jax, jax.numpy as jnp, numpy as np
from mscale import scales
from mscale.models import decoder, loss, partitioning
from mscale.training import optimizer

# Three heads: no tensor size divides them. V is divisible, so that the vocabulary splits.
shape = scales.Shape(heads={heads}, layers={layers}, embed=32, ffw=64, kv=8)
config = decoder.ModelConfig(shape, 64, loss_block=8*64*6)
rates, decays = decoder.lr_multipliers(config), decoder.decay_mask(config)
ids = np.asarray(jax.random.randint(jax.random.key(1), (8, 12), 0, 64))
hyper = optimizer.hyper(0.02, 1, 4, 1)

def step(params, state, index, ids, hyper):
    inputs = jnp.pad(ids, ((0, 0), (1, 0)))[:, :-1]
    objective = lambda p: loss.training_objective(config, p, inputs, ids)
    (_, mean), grads = jax.value_and_grad(objective, has_aux=True)(params)
    return *optimizer.adamw_update(grads, state, params, index, hyper, rates, decays), mean

def losses(mesh):
    with partitioning.use_mesh(mesh):
        where = decoder.parameter_shardings(config, mesh)
        params = jax.device_put(decoder.init_params(config, jax.random.key(0)), where)
        state = jax.jit(optimizer.init_adamw, out_shardings=optimizer.AdamWState(where, where))(params)
        step_ = jax.jit(step, out_shardings=(where, optimizer.AdamWState(where, where), None))
        batch = jax.device_put(ids, partitioning.batch_sharding(mesh, 8))
        found = []
        for index in range(4):
            params, state, mean = step_(params, state, index, batch, hyper)
            found.append(float(mean))
    for (path, leaf), expected in zip(jax.tree.leaves_with_path(params), jax.tree.leaves(where)):
        assert leaf.sharding.is_equivalent_to(expected, leaf.ndim), path
    return found

one = losses(partitioning.make_mesh(1, 1, 1, devices=jax.devices()[:1]))
assert one[-1] < one[0]
for sizes in {meshes}:
    np.testing.assert_allclose(losses(partitioning.make_mesh(*sizes)), one, rtol=2e-5, err_msg=str(sizes))
"""


def test_meshes_give_the_losses_of_one_device():
    eight_devices(PROGRAM.format(heads=3, layers=2, meshes="[(8, 1, 1), (2, 2, 2)]"))


@pytest.mark.slow
@pytest.mark.parametrize("heads", [3, 4])
def test_all_meshes_give_the_losses_of_one_device(heads):
    meshes = [(d, f, 8 // d // f) for d in (1, 2, 4, 8) for f in (1, 2, 4, 8) if 8 % (d * f) == 0]
    eight_devices(PROGRAM.format(heads=heads, layers=8, meshes=meshes))


def abstract_mesh(**sizes):
    return jax.sharding.AbstractMesh(tuple(sizes.values()), tuple(sizes))


def test_heads_that_tensor_parallelism_does_not_divide_stay_whole():
    mesh = abstract_mesh(data=1, fsdp=4, tensor=2)
    found = decoder.parameter_shardings(decoder.ModelConfig(scales.get(34), 64_512), mesh)  # 17 heads
    assert found["blocks"]["query"].spec == PartitionSpec(None, "fsdp", None, None)
    assert found["blocks"]["attention_out"].spec == PartitionSpec(None, None, None, "fsdp")
    assert found["blocks"]["up"].spec == PartitionSpec(None, "fsdp", "tensor")
    assert found["embedding"].spec == PartitionSpec("tensor", "fsdp")
    even = decoder.parameter_shardings(decoder.ModelConfig(scales.get(46), 64_512), mesh)  # 28 heads
    assert even["blocks"]["query"].spec == PartitionSpec(None, "fsdp", "tensor", None)


def test_mesh_that_does_not_fit_the_devices():
    with pytest.raises(MscaleError, match="does not fit 1 devices"):
        partitioning.make_mesh(data=2, fsdp=2, devices=jax.devices()[:1])
    with pytest.raises(MscaleError, match="product"):
        partitioning.make_mesh(data=-1, fsdp=3, tensor=0, devices=jax.devices()[:1])


def test_batch_that_the_mesh_does_not_divide():
    mesh = abstract_mesh(data=4, fsdp=2, tensor=1)
    with pytest.raises(MscaleError, match="multiple of 8"):
        partitioning.batch_sharding(mesh, 12)


def test_unknown_logical_axis():
    mesh = abstract_mesh(data=1, fsdp=1, tensor=1)
    with pytest.raises(MscaleError, match="no partitioning rule"):
        partitioning.partition_spec(mesh, ("embd",), (8,))
