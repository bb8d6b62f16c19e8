"""Where arrays live: a mesh with axes data, fsdp and tensor, and rules from logical to mesh axes.

The batch is split over data and fsdp, parameters and optimiser state over fsdp (their width) and tensor (heads, MLP,
vocabulary). A dimension that its mesh axes do not divide stays whole: with 17 heads and tensor parallelism attention
weights are split over fsdp only.
"""

import contextlib
import contextvars
import math
from collections.abc import Iterator, Mapping, Sequence

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

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
"""Rules as pairs, which a cache key may hold."""
_rules: contextvars.ContextVar[AxisRules] = contextvars.ContextVar("rules", default=DEFAULT_RULES)


def make_mesh(data: int = -1, fsdp: int = 1, tensor: int = 1, devices=None) -> Mesh:
    """A mesh over all devices, or ``devices``; one size may be -1: what the others leave.

    Raises:
      MscaleError: the sizes do not multiply to the number of devices.
    """
    if devices is None:  # by process, so that each host's rows of a batch are neighbours
        devices = sorted(jax.devices(), key=lambda device: (device.process_index, device.id))
    devices = np.asarray(devices)
    sizes = [data, fsdp, tensor]
    known = math.prod(size for size in sizes if size != -1)
    if sizes.count(-1) == 1 and known > 0 and devices.size % known == 0:
        sizes[sizes.index(-1)] = devices.size // known
    if min(sizes) < 1 or math.prod(sizes) != devices.size:
        raise MscaleError(
            f"mesh data={data} fsdp={fsdp} tensor={tensor} does not fit {devices.size} devices: expected sizes whose "
            "product is that number (one may be -1 for the rest)"
        )
    return Mesh(devices.reshape(sizes), MESH_AXES, axis_types=(AxisType.Auto,) * 3)


def logical_axis_rules(overrides: Mapping[str, str | Sequence[str] | None] | None = None) -> FrozenAxisRules:
    """The rules with some replaced: ``{"kv": "tensor", "heads": None}`` maps logical to mesh axes.

    Raises:
      MscaleError: a name that no logical axis, or no mesh axis, has.
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


def _axis_size(mesh_, axes: str | tuple[str, ...] | None) -> int:
    names = () if axes is None else (axes,) if isinstance(axes, str) else axes
    return math.prod(mesh_.shape[name] for name in names)


def partition_spec(
    mesh_, logical: tuple[str | None, ...], shape: tuple[int, ...], rules: AxisRules = DEFAULT_RULES
) -> PartitionSpec:
    """Mesh axes of an array's dimensions; a dimension its axes do not divide stays whole.

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
        entries.append(axes if size % _axis_size(mesh_, axes) == 0 else None)
    return PartitionSpec(*entries)


def batch_sharding(
    mesh_: Mesh, batch_size: int | None = None, rules: AxisRules = DEFAULT_RULES
) -> NamedSharding:
    """Sharding of a (B, S) batch: rows over data and fsdp.

    Raises:
      MscaleError: ``batch_size`` is given and the mesh does not divide it.
    """
    parts = _axis_size(mesh_, rules["batch"])
    if batch_size is not None and batch_size % parts:
        raise MscaleError(
            f"batch size {batch_size} does not divide over data x fsdp = {parts} devices: use a multiple of {parts}"
        )
    return NamedSharding(mesh_, PartitionSpec(rules["batch"], None))


def local_rows(sharding: NamedSharding, batch_size: int) -> slice:
    """The rows of a (B, S) batch that this process's devices hold, and so all that its host needs to read."""
    held = sharding.addressable_devices_indices_map((batch_size, 1)).values()
    rows = [index[0].indices(batch_size) for index in held if index is not None]
    return slice(min(start for start, _, _ in rows), max(stop for _, stop, _ in rows))


def replicated(mesh_: Mesh) -> NamedSharding:
    """Sharding of what every device holds whole."""
    return NamedSharding(mesh_, PartitionSpec())


@contextlib.contextmanager
def use_mesh(mesh_: Mesh, rules: AxisRules = DEFAULT_RULES) -> Iterator[None]:
    """Trace and call jitted functions inside it so that activations are constrained to ``mesh_``."""
    token = _rules.set(rules)
    try:
        with jax.set_mesh(mesh_):
            yield
    finally:
        _rules.reset(token)


def constrain(x, logical: tuple[str | None, ...] = ("batch", None, None)):
    """Pins an activation's sharding under ``using`` a mesh; elsewhere returns ``x``."""
    active = jax.sharding.get_abstract_mesh()
    if active.empty or active.size == 1:
        return x
    return jax.lax.with_sharding_constraint(x, partition_spec(active, logical, x.shape, _rules.get()))


def is_split(logical: str, size: int) -> bool:
    """Whether the mesh that is in use splits a dimension of that name and size."""
    active = jax.sharding.get_abstract_mesh()
    return (
        not active.empty
        and _axis_size(active, partition_spec(active, (logical,), (size,), _rules.get())[0]) > 1
    )
