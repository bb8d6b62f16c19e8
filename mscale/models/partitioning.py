"""Partitioning of arrays: a mesh with axes data, fsdp and tensor, and rules from logical axes to mesh axes.

The batch is sharded over data and fsdp; parameters and optimizer state over fsdp (their width) and tensor (heads, MLP,
vocabulary). A dimension whose size is not divisible by its mesh axes is not sharded: with 17 heads and tensor
parallelism, attention weights are sharded over fsdp only.
"""

import contextlib
import contextvars
import math
from collections.abc import Iterator, Mapping, Sequence

import jax
import numpy as np
from jax.sharding import AbstractMesh, AxisType, Mesh, NamedSharding, PartitionSpec

from mscale.errors import MscaleError, nearest

MESH_AXES = ("data", "fsdp", "tensor")
AxisRules = Mapping[str, str | tuple[str, ...] | None]
DEFAULT_RULES: AxisRules = {
    "batch": ("data", "fsdp"),
    "embed": "fsdp",
    "vocab": "tensor",
    "heads": "tensor",
    "mlp": "tensor",
    "kv": None,
    "layers": None,
    "norm": None,
}
FrozenAxisRules = tuple[tuple[str, str | tuple[str, ...] | None], ...]
DEFAULT_FROZEN_RULES: FrozenAxisRules = tuple(DEFAULT_RULES.items())
"""The default rules as a tuple of pairs, which is hashable and so can be part of a cache key."""
_rules: contextvars.ContextVar[AxisRules] = contextvars.ContextVar("rules", default=DEFAULT_RULES)


def make_mesh(
    data: int = -1, fsdp: int = 1, tensor: int = 1, devices: Sequence[jax.Device] | None = None
) -> Mesh:
    """A mesh over ``devices``, by default all; one size may be -1 for the number that the others leave.

    Raises:
      MscaleError: the sizes do not multiply to the number of devices.
    """
    if devices is None:  # sorted by process, so that each host's rows of a batch are contiguous
        devices = sorted(jax.devices(), key=lambda device: (device.process_index, device.id))
    array = np.asarray(devices)
    sizes = [data, fsdp, tensor]
    known = math.prod(size for size in sizes if size != -1)
    if sizes.count(-1) == 1 and known > 0 and array.size % known == 0:
        sizes[sizes.index(-1)] = array.size // known
    if min(sizes) < 1 or math.prod(sizes) != array.size:
        raise MscaleError(
            f"mesh data={data} fsdp={fsdp} tensor={tensor} does not fit {array.size} devices: expected sizes whose "
            "product is that number (one may be -1 for the rest)"
        )
    return Mesh(array.reshape(sizes), MESH_AXES, axis_types=(AxisType.Auto,) * 3)


def logical_axis_rules(overrides: Mapping[str, str | Sequence[str] | None] | None = None) -> FrozenAxisRules:
    """The default rules with some replaced.

    Args:
      overrides: logical axis to mesh axis, to several, or to None for no sharding: ``{"kv": "tensor", "heads": None}``.

    Raises:
      MscaleError: there is no logical axis or no mesh axis of that name.
    """
    rules = dict(DEFAULT_RULES)
    for name, axes in (overrides or {}).items():
        if name not in DEFAULT_RULES:
            raise MscaleError(
                f"logical_axis_rules: there is no logical axis {name!r}{nearest(name, DEFAULT_RULES)}; there are "
                f"{', '.join(DEFAULT_RULES)}"
            )
        for axis in () if axes is None else (axes,) if isinstance(axes, str) else axes:
            if axis not in MESH_AXES:
                raise MscaleError(
                    f"logical_axis_rules: {name!r} goes to {axis!r}{nearest(axis, MESH_AXES)}; the mesh has "
                    f"{', '.join(MESH_AXES)}"
                )
        rules[name] = axes if axes is None or isinstance(axes, str) else tuple(axes)
    if rules["batch"] is None:
        rules["batch"] = ()
    return tuple(rules.items())


def _axis_size(mesh: Mesh | AbstractMesh, axes: str | tuple[str, ...] | None) -> int:
    names = () if axes is None else (axes,) if isinstance(axes, str) else axes
    return math.prod(mesh.shape[name] for name in names)


def partition_spec(
    mesh: Mesh | AbstractMesh,
    logical: tuple[str | None, ...],
    shape: tuple[int, ...],
    rules: AxisRules = DEFAULT_RULES,
) -> PartitionSpec:
    """Mesh axes of each dimension of an array.

    Args:
      mesh: the mesh.
      logical: logical axis of each dimension; None for one that is not sharded.
      shape: of the array. A dimension that is not divisible by its mesh axes is not sharded.
      rules: from logical axes to mesh axes.

    Raises:
      MscaleError: a logical axis has no rule, or a rule names no mesh axis.
    """
    entries: list = []
    for name, size in zip(logical, shape, strict=True):
        if name is not None and name not in rules:
            raise MscaleError(
                f"logical axis {name!r} has no partitioning rule: expected one of {', '.join(rules)}"
            )
        axes = None if name is None else rules[name]
        entries.append(axes if size % _axis_size(mesh, axes) == 0 else None)
    return PartitionSpec(*entries)


def batch_sharding(
    mesh: Mesh, batch_size: int | None = None, rules: AxisRules = DEFAULT_RULES
) -> NamedSharding:
    """Sharding of a (B, S) batch: rows over data and fsdp.

    Raises:
      MscaleError: ``batch_size`` is given and not divisible by the number of devices along these axes.
    """
    devices = _axis_size(mesh, rules["batch"])
    if batch_size is not None and batch_size % devices:
        raise MscaleError(
            f"batch size {batch_size} does not divide over data x fsdp = {devices} devices: "
            f"use a multiple of {devices}"
        )
    return NamedSharding(mesh, PartitionSpec(rules["batch"], None))


def local_rows(sharding: NamedSharding, batch_size: int) -> slice:
    """The rows of a (B, S) batch on this process's devices: the rows that its host has to read."""
    indices = sharding.addressable_devices_indices_map((batch_size, 1)).values()
    rows = [index[0].indices(batch_size) for index in indices if index is not None]
    return slice(min(start for start, _, _ in rows), max(stop for _, stop, _ in rows))


def replicated(mesh: Mesh) -> NamedSharding:
    """Sharding of an array that is replicated on every device."""
    return NamedSharding(mesh, PartitionSpec())


@contextlib.contextmanager
def use_mesh(mesh: Mesh, rules: AxisRules = DEFAULT_RULES) -> Iterator[None]:
    """Makes ``constrain`` and ``is_split`` use ``mesh``; trace and call jitted functions inside this block."""
    token = _rules.set(rules)
    try:
        with jax.set_mesh(mesh):
            yield
    finally:
        _rules.reset(token)


def constrain(x: jax.Array, logical: tuple[str | None, ...] = ("batch", None, None)) -> jax.Array:
    """Constrains an activation's sharding inside ``use_mesh``; elsewhere returns ``x``."""
    active = jax.sharding.get_abstract_mesh()
    if active.empty or active.size == 1:
        return x
    return jax.lax.with_sharding_constraint(x, partition_spec(active, logical, x.shape, _rules.get()))


def is_split(logical: str, size: int) -> bool:
    """Whether the mesh of ``use_mesh`` shards a dimension of this logical axis and size."""
    active = jax.sharding.get_abstract_mesh()
    return (
        not active.empty
        and _axis_size(active, partition_spec(active, (logical,), (size,), _rules.get())[0]) > 1
    )
