"""Memory of a run on each chip of a mesh: the estimate of ``sweeps.cost.memory`` and the figure of the XLA compiler.

The step is compiled for simulated CPU devices and not run, which needs no accelerator and little memory:

    python benchmarks/memory.py --scale 46 --mesh 1 64 1 --batch 512

XLA's figure is for one device: arguments and temporaries, with the state updated in place. The CPU computes bfloat16
products in float32, so float32 is compared by default. Attention is not fused on the CPU and holds its scores, which
the estimate includes.
"""

import argparse
import json
import os
import resource
import time

parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("--scale", default="46")
parser.add_argument("--mesh", type=int, nargs=3, default=(1, 64, 1), metavar=("DATA", "FSDP", "TENSOR"))
parser.add_argument("--batch", type=int, default=512)
parser.add_argument("--sequence", type=int, default=2048)
parser.add_argument("--vocabulary", type=int, default=64_512)
parser.add_argument("--dtype", default="float32")
parser.add_argument("--remat", default="full")
arguments = parser.parse_args()
chips = arguments.mesh[0] * arguments.mesh[1] * arguments.mesh[2]
os.environ["JAX_PLATFORMS"] = "cpu"
os.environ["XLA_FLAGS"] = f"--xla_force_host_platform_device_count={chips}"

import jax  # noqa: E402
import jax.numpy as jnp  # noqa: E402

from mscale import scales  # noqa: E402
from mscale.models import decoder, partitioning  # noqa: E402
from mscale.training import optimizer  # noqa: E402
from mscale.training import step as training  # noqa: E402
from sweeps.cost import memory  # noqa: E402

shape = scales.get(arguments.scale)
config = decoder.ModelConfig(
    shape, arguments.vocabulary, compute_dtype=arguments.dtype, remat=arguments.remat, attention="einsum"
)
mesh = partitioning.make_mesh(*arguments.mesh)
state = jax.tree.map(
    lambda leaf, sharding: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding),
    training.abstract_state(config),
    training.state_shardings(config, mesh),
)
rows = partitioning.batch_sharding(mesh, arguments.batch)
targets = jax.ShapeDtypeStruct((arguments.batch, arguments.sequence), jnp.int32, sharding=rows)
hyper = optimizer.hyper(2e-4, 1000, 30_000, 3000)
key = jax.eval_shape(lambda: jax.random.key(0))
step = jax.jit(
    lambda state, targets, step, hyper, key: training.train_step(config, state, targets, step, hyper, key),
    donate_argnums=0,
    out_shardings=(training.state_shardings(config, mesh), partitioning.replicated(mesh)),
)
began = time.monotonic()
with partitioning.use_mesh(mesh):
    compiled = step.lower(state, targets, jnp.int32(0), hyper, key).compile()
seconds = time.monotonic() - began
analysis = compiled.memory_analysis()
found = analysis.argument_size_in_bytes + analysis.temp_size_in_bytes
planned = memory.memory_per_chip(
    memory.Workload(shape, arguments.vocabulary, arguments.batch, arguments.sequence),
    memory.MeshSizes(*arguments.mesh),
    compute_bytes=jnp.dtype(arguments.dtype).itemsize,
    fused=False,
).total
print(
    json.dumps(
        {
            **vars(arguments),
            "chips": chips,
            "xla_bytes": found,
            "arguments": analysis.argument_size_in_bytes,
            "temporaries": analysis.temp_size_in_bytes,
            "planned_bytes": planned,
            "ratio": round(planned / found, 3),
            "compile_seconds": round(seconds, 1),
            "compiler_peak_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
        }
    )
)
