"""Memory of a training run on each chip, and the smallest mesh on which it fits.

Counted, per chip, for a mesh of data × fsdp × tensor chips:

- state: parameters, two Adam moments and gradients, float32, 16 bytes a parameter over fsdp × tensor;
- gathered: under fsdp, what is made whole to be used, the embedding and one layer, and their gradients in float32;
- activations, with whole blocks recomputed (``model.remat = "full"``): the input of each of L layers, and one layer's
  intermediates, (6d + 4hk + 3f) numbers a token. Where attention is not fused it holds scores, float32, h·S a token:
  of causal chunks 9/16, and some of them twice, 0.8 together as compiled; they and the MLP's numbers take turns;
- logits: the block that the loss holds, float32, forward and backward.

A tenth is added for what is not counted, and a tenth of the chip's memory is left to the compiler. Beside XLA's own
figure: ``benchmarks/memory.py``.
"""

from dataclasses import dataclass

from mscale.chips import CHIP_BYTES, FUSED
from mscale.errors import MscaleError, nearest
from mscale.scales import Shape

STATE_BYTES = 16
LOSS_BLOCK, GPU_LOSS_BLOCK = 2**25, 2**27  # logits held at once, mscale.models.loss
SCORES = 0.8  # of the h·S² float32 scores of a sequence, measured
OVERHEAD = 1.1
USABLE = 0.9
MOST_CHIPS = 4096


@dataclass(frozen=True)
class Use:
    """What a run takes on each chip, in bytes by what it is for; the tenth for the uncounted is in each."""

    state: int
    gathered: int
    activations: int
    logits: int

    @property
    def total(self) -> int:
        return self.state + self.gathered + self.activations + self.logits


@dataclass(frozen=True)
class Placement:
    """A mesh and what a run takes on each of its chips."""

    data: int
    fsdp: int
    tensor: int
    use: Use

    @property
    def bytes_per_chip(self) -> int:
        """All that a chip holds."""
        return self.use.total

    @property
    def chips(self) -> int:
        """Chips of the mesh."""
        return self.data * self.fsdp * self.tensor

    def __str__(self) -> str:
        sizes = {"data": self.data, "fsdp": self.fsdp, "tensor": self.tensor}
        named = [f"{name}={size}" for name, size in sizes.items() if size > 1]
        return " ".join(named) or "1 chip"


def use(
    shape: Shape,
    vocab_size: int,
    batch_size: int,
    sequence_length: int,
    *,
    data: int = 1,
    fsdp: int = 1,
    tensor: int = 1,
    compute_bytes: int = 2,
    fused: bool = True,
) -> Use:
    """What each chip of a mesh holds; the batch is split over data × fsdp.

    Args:
      shape, vocab_size, batch_size, sequence_length: the run, its batch in sequences of all chips together.
      data, fsdp, tensor: the mesh. Heads that tensor does not divide stay whole, as in training.
      compute_bytes: of a number that is computed with, 2 in bfloat16.
      fused: whether attention keeps no scores.
    """
    d, h, k, f = shape.embed, shape.heads, shape.kv, shape.ffw
    heads = h / (tensor if h % tensor == 0 else 1)
    hk = heads * k
    blocks = shape.layers * (4 * d * hk + 3 * d * f / tensor + d)
    state = STATE_BYTES * (vocab_size * d / tensor + blocks) / fsdp
    rows = -(-batch_size // (data * fsdp))
    tokens = rows * sequence_length
    used = vocab_size * d / tensor + 4 * d * hk + 3 * d * f / tensor
    gathered = (compute_bytes + 4) * used if fsdp > 1 else 0
    kept = compute_bytes * tokens * d * shape.layers
    mlp, scores = 3 * compute_bytes * f / tensor, SCORES * 4 * heads * sequence_length
    layer = tokens * (compute_bytes * (6 * d + 4 * hk) + (mlp if fused else max(mlp, scores)))
    most = (GPU_LOSS_BLOCK if fused else LOSS_BLOCK) / (data * fsdp)
    held = min(max(most, rows * vocab_size), tokens * vocab_size)  # at least one position
    logits = 2 * 4 * held
    return Use(*(int(OVERHEAD * part) for part in (state, gathered, kept + layer, logits)))


def placements(
    shape: Shape, vocab_size: int, batch_size: int, sequence_length: int, accelerator: str, chips: int
) -> list[Placement]:
    """Returns every mesh of that many chips that the batch can be split over, the simplest first.

    The fewer chips that parameters are split over the simpler: whole where they can be, then fsdp, then tensor.

    Raises:
      MscaleError: the accelerator's memory is not known.
    """
    room(accelerator)
    found = []
    for tensor in _divisors(chips):
        rows = chips // tensor
        if batch_size % rows or (tensor > 1 and shape.ffw % tensor):
            continue
        for fsdp in _divisors(rows):
            mesh = {"data": rows // fsdp, "fsdp": fsdp, "tensor": tensor}
            fused = accelerator in FUSED
            taken = use(shape, vocab_size, batch_size, sequence_length, **mesh, fused=fused)
            found.append(Placement(**mesh, use=taken))
    return found


def room(accelerator: str) -> float:
    """Bytes of a chip that a run may take.

    Raises:
      MscaleError: the accelerator's memory is not known.
    """
    if accelerator not in CHIP_BYTES:
        raise MscaleError(
            f"unknown accelerator {accelerator!r}: the memory of {', '.join(CHIP_BYTES)} is known"
            f"{nearest(accelerator, CHIP_BYTES)}"
        )
    return USABLE * CHIP_BYTES[accelerator]


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
    usable = room(accelerator)
    counts = [chips] if chips else [2**power for power in range(MOST_CHIPS.bit_length())]
    least = None
    for count in counts:
        for one in placements(shape, vocab_size, batch_size, sequence_length, accelerator, count):
            if one.bytes_per_chip <= usable:
                return one
            least = min(least or one.bytes_per_chip, one.bytes_per_chip)
    on = f"{counts[-1]} {accelerator}" + ("" if chips else " or fewer")
    found = f"needs {(least or 0) / 1e9:.1f} GB on each" if least else "its batch cannot be split over them"
    raise MscaleError(
        f"a run of width {shape.embed} and {shape.layers} layers with batches of {batch_size} × {sequence_length} "
        f"tokens does not fit on {on} ({found}, {usable / 1e9:.1f} GB are usable); use more chips or a smaller batch"
    )


def _divisors(number: int) -> list[int]:
    return [size for size in range(1, number + 1) if number % size == 0]
