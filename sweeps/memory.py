"""Memory of a training run on each chip, and the smallest mesh on which it fits.

Counted, per chip, for a mesh of data × fsdp × tensor chips:

- parameters, two Adam moments and gradients, float32: 16 bytes a parameter over fsdp × tensor;
- under fsdp, what is gathered to be used: the embedding and one layer, and their gradients in float32;
- activations in bfloat16 with whole blocks recomputed (``model.remat = "full"``): the input of each of L layers,
  and one layer's intermediates: (6d + 4hk + 3f) numbers a token;
- the block of logits that the loss holds, float32, forward and backward.

Attention is taken to be fused (no S × S scores are kept). A tenth is added for what is not counted, and a tenth of
the chip's memory is left to the compiler. Beside XLA's own figure: ``benchmarks/memory.py``.
"""

from dataclasses import dataclass

from mscale.errors import MscaleError
from mscale.scales import Shape, parameter_count

STATE_BYTES = 16
LOSS_BLOCK = 2**25  # mscale.model.ModelConfig.loss_block, logits held at once
OVERHEAD = 1.1
USABLE = 0.9
MOST_CHIPS = 4096

# Memory of one chip in bytes, from the makers' data sheets.
CHIP_BYTES = {
    "a100": 80 * 10**9,
    "h100": 80 * 10**9,
    "h200": 141 * 10**9,
    "b200": 180 * 10**9,
    "v4": 32 * 2**30,
    "v5e": 16 * 2**30,
    "v5p": 95 * 2**30,
    "v6e": 32 * 2**30,
}


@dataclass(frozen=True)
class Placement:
    """A mesh and what a run takes on each of its chips, in bytes."""

    data: int
    fsdp: int
    tensor: int
    bytes_per_chip: int

    @property
    def chips(self) -> int:
        """Chips of the mesh."""
        return self.data * self.fsdp * self.tensor

    def __str__(self) -> str:
        sizes = {"data": self.data, "fsdp": self.fsdp, "tensor": self.tensor}
        named = [f"{name}={size}" for name, size in sizes.items() if size > 1]
        return " ".join(named) or "1 chip"


def bytes_per_chip(
    shape: Shape,
    vocab_size: int,
    batch_size: int,
    sequence_length: int,
    *,
    data: int = 1,
    fsdp: int = 1,
    tensor: int = 1,
    compute_bytes: int = 2,
) -> int:
    """Bytes on each chip of a mesh; the batch is split over data × fsdp, ``compute_bytes`` a number of it."""
    d, h, k, f = shape.embed, shape.heads, shape.kv, shape.ffw
    state = STATE_BYTES * parameter_count(shape, vocab_size) / (fsdp * tensor)
    tokens = -(-batch_size // (data * fsdp)) * sequence_length
    used = (vocab_size * d + 4 * d * h * k + 3 * d * f) / tensor
    gathered = (compute_bytes + 4) * used if fsdp > 1 else 0
    kept = compute_bytes * tokens * d * shape.layers
    layer = compute_bytes * tokens * (6 * d + (4 * h * k + 3 * f) / tensor)
    logits = 2 * 4 * min(LOSS_BLOCK / (data * fsdp), tokens * vocab_size)
    return int(OVERHEAD * (state + gathered + kept + layer + logits))


def place(
    shape: Shape,
    vocab_size: int,
    batch_size: int,
    sequence_length: int,
    accelerator: str,
    chips: int | None = None,
) -> Placement:
    """Returns the mesh to suggest: on ``chips`` chips, or on as few (a power of two) as hold the run.

    Parameters stay whole where they fit, else they are split over as few chips as hold them (fsdp), and only where
    the batch has no more rows to split, over tensor as well.

    Raises:
      MscaleError: the accelerator's memory is not known, or the run does not fit on that many chips.
    """
    if accelerator not in CHIP_BYTES:
        raise MscaleError(
            f"unknown accelerator {accelerator!r}: the memory of {', '.join(CHIP_BYTES)} is known"
        )
    room = USABLE * CHIP_BYTES[accelerator]
    counts = [chips] if chips else [2**power for power in range(MOST_CHIPS.bit_length())]
    least = None
    for count in counts:
        for tensor in _divisors(count):
            rows = count // tensor
            if batch_size % rows or (tensor > 1 and shape.ffw % tensor):
                continue
            for fsdp in _divisors(rows):
                mesh = {"data": rows // fsdp, "fsdp": fsdp, "tensor": tensor}
                needed = bytes_per_chip(shape, vocab_size, batch_size, sequence_length, **mesh)
                least = min(least or needed, needed)
                if needed <= room:
                    return Placement(**mesh, bytes_per_chip=needed)
    on = f"{counts[-1]} {accelerator}" + ("" if chips else " or fewer")
    found = f"needs {(least or 0) / 1e9:.1f} GB on each" if least else "its batch cannot be split over them"
    raise MscaleError(
        f"a run of width {shape.embed} and {shape.layers} layers with batches of {batch_size} × {sequence_length} "
        f"tokens does not fit on {on} ({found}, {room / 1e9:.1f} GB are usable); use more chips or a smaller batch"
    )


def _divisors(number: int) -> list[int]:
    return [size for size in range(1, number + 1) if number % size == 0]
