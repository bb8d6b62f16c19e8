"""Accelerators: memory and peak FLOP/s from the manufacturers' data sheets. One table, which everything reads."""

from dataclasses import dataclass

from mscale.errors import MscaleError, nearest


@dataclass(frozen=True)
class Chip:
    """One kind of accelerator.

    Attributes:
      device_kind: a part of JAX's ``device_kind`` that identifies it.
      memory: bytes.
      peak_flops: peak dense bfloat16 FLOP/s.
      fused_attention: whether ``model.attention = "auto"`` is one fused kernel, which keeps no scores.
      gke_slice: of a TPU, GKE's label of its multi-host slices, whose hosts have four chips each.
    """

    device_kind: str
    memory: int
    peak_flops: float
    fused_attention: bool = False
    gke_slice: str = ""


# The first whose device_kind matches is taken: "TPU v5 lite" stands before "TPU v5".
CHIPS = {
    "a100": Chip("A100", 80 * 10**9, 312e12, fused_attention=True),
    "h100": Chip("H100", 80 * 10**9, 989e12, fused_attention=True),
    "h200": Chip("H200", 141 * 10**9, 989e12, fused_attention=True),
    "b200": Chip("B200", 180 * 10**9, 2250e12, fused_attention=True),
    "v4": Chip("TPU v4", 32 * 2**30, 275e12, gke_slice="tpu-v4-podslice"),
    "v5e": Chip("TPU v5 lite", 16 * 2**30, 197e12, gke_slice="tpu-v5-lite-podslice"),
    "v5p": Chip("TPU v5", 95 * 2**30, 459e12, gke_slice="tpu-v5p-slice"),
    "v6e": Chip("TPU v6 lite", 32 * 2**30, 918e12, gke_slice="tpu-v6e-slice"),
}


LOSS_BLOCK, GPU_LOSS_BLOCK = 2**25, 2**27
"""Default of ``ModelConfig.loss_block``, logits held at once; on an H200 larger blocks are less than 5% faster."""


def find_chip(name: str) -> Chip:
    """Returns the chip of a name of ``CHIPS``.

    Raises:
      MscaleError: there is none of that name.
    """
    if name not in CHIPS:
        raise MscaleError(
            f"unknown accelerator {name!r}: expected one of {', '.join(CHIPS)}{nearest(name, CHIPS)}"
        )
    return CHIPS[name]


def chip_of_device(device_kind: str) -> Chip | None:
    """Returns the chip of a ``device_kind`` of JAX; None if it is not known."""
    return next((chip for chip in CHIPS.values() if chip.device_kind in device_kind), None)


def peak_flops(per_device: float | None = None) -> float | None:
    """Returns the peak FLOP/s of all devices together, or None if unknown.

    Args:
      per_device: peak FLOP/s of one device; None for the data sheet's.
    """
    import jax

    chip = chip_of_device(jax.devices()[0].device_kind)
    device_flops = per_device or (chip.peak_flops if chip else None)
    return device_flops and device_flops * jax.device_count()
