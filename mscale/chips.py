"""Memory and peak FLOP/s of accelerators, from the manufacturers' data sheets."""

# Peak dense bfloat16 FLOP/s of one device, by a part of JAX's ``device_kind``; the first part that matches is used.
_PEAK_FLOPS_BY_DEVICE_KIND = {
    "H100": 989e12,
    "H200": 989e12,
    "B200": 2250e12,
    "A100": 312e12,
    "TPU v6 lite": 918e12,
    "TPU v5 lite": 197e12,
    "TPU v5": 459e12,
    "TPU v4": 275e12,
}


def peak_flops(per_device: float | None = None) -> float | None:
    """Returns the peak FLOP/s of all devices together, or None if unknown.

    Args:
      per_device: peak FLOP/s of one device; None for the data sheet's.
    """
    import jax

    kind = jax.devices()[0].device_kind
    device_flops = per_device or next(
        (flops for name, flops in _PEAK_FLOPS_BY_DEVICE_KIND.items() if name in kind), None
    )
    return device_flops and device_flops * jax.device_count()


# Memory of one chip in bytes.
CHIP_MEMORY_BYTES = {
    "a100": 80 * 10**9,
    "h100": 80 * 10**9,
    "h200": 141 * 10**9,
    "b200": 180 * 10**9,
    "v4": 32 * 2**30,
    "v5e": 16 * 2**30,
    "v5p": 95 * 2**30,
    "v6e": 32 * 2**30,
}

# Chips on which ``model.attention = "auto"`` uses a fused kernel.
CHIPS_WITH_FUSED_ATTENTION = ("a100", "h100", "h200", "b200")


# Peak dense bfloat16 FLOP/s of one chip.
CHIP_PEAK_FLOPS = {
    "a100": 312e12,
    "h100": 989e12,
    "h200": 989e12,
    "b200": 2250e12,
    "v4": 275e12,
    "v5e": 197e12,
    "v5p": 459e12,
    "v6e": 918e12,
}
