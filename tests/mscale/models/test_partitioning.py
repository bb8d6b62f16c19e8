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
from jax.sharding import NamedSharding, PartitionSpec
from mscale.models import decoder, partitioning
from mscale.training import optimizer
from mscale.training import step as training

# Three heads: no tensor size divides them. V is divisible, so that the vocabulary splits.
shape = scales.Shape(heads={heads}, layers={layers}, embed=32, ffw=64, kv=8)
config = decoder.ModelConfig(shape, 64, loss_block=8*64*6)
ids = np.asarray(jax.random.randint(jax.random.key(1), (8, 12), 0, 64))
hyper = optimizer.hyper(0.02, 1, 4, 1)

def losses(mesh):
    with partitioning.use_mesh(mesh):
        where = decoder.parameter_shardings(config, mesh)
        params = jax.device_put(decoder.init_params(config, jax.random.key(0)), where)
        state = {{"params": params, "optimizer": training.optimizer_initializer(config, mesh)(params)}}
        steps = training.compiled_steps(config, 1, mesh)
        spec = PartitionSpec(None, *partitioning.batch_sharding(mesh, 8).spec)
        batch = jax.device_put(ids[None], NamedSharding(mesh, spec))
        found = []
        for index in range(4):
            state, metrics = steps(state, batch, index, 1, hyper, jax.random.key(0))
            found.append(float(metrics["loss"][0]))
    expected = training.state_shardings(config, mesh)
    for (path, leaf), sharding in zip(jax.tree.leaves_with_path(state), jax.tree.leaves(expected), strict=True):
        assert leaf.sharding.is_equivalent_to(sharding, leaf.ndim), path
    moments = state["optimizer"]["adam"].mu
    for leaf, sharding in zip(jax.tree.leaves(moments), jax.tree.leaves(where), strict=True):
        assert leaf.sharding.is_equivalent_to(sharding, leaf.ndim)
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
