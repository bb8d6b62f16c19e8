"""Memory of a training run on each chip, and the smallest mesh on which it fits.

Bytes on each chip of a mesh of data × fsdp × tensor chips:

- state: parameters, two Adam moments and gradients in float32, 16 bytes a parameter, divided by fsdp × tensor;
- gathered: under fsdp, the parameters that are all-gathered before use (the embedding and one layer), and their
  gradients in float32;
- activations, with whole blocks recomputed (``model.remat = "full"``): the input of each of L layers, and one layer's
  intermediates, (6d + 4hk + 3f) numbers a token. Attention that is not fused also holds scores in float32: causal
  chunks keep 9/16 of h·S² and some of them twice, 0.8 of it as compiled. The scores and the MLP's intermediates are
  not held at the same time;
- logits: the block of logits that the loss holds, in float32, forward and backward.

A tenth is added for what is not counted, and a tenth of the chip's memory is left to the compiler.
``benchmarks/memory.py`` compares the sum with XLA's own figure.
"""

from dataclasses import dataclass

from mscale.chips import GPU_LOSS_BLOCK, LOSS_BLOCK, find_chip
from mscale.errors import MscaleError
from mscale.scales import Shape

_STATE_BYTES = 16
_SCORES_KEPT = 0.8  # of the h·S² float32 scores of a sequence, measured
_OVERHEAD = 1.1
_USABLE_FRACTION = 0.9
_MAX_CHIPS = 4096


@dataclass(frozen=True)
class Workload:
    """What determines the memory of a run, besides the mesh.

    Attributes:
      shape: of the model; vocab_size: rows of its embedding.
      batch_size: sequences of a batch, of all chips together.
      sequence_length: tokens of a sequence.
    """

    shape: Shape
    vocab_size: int
    batch_size: int
    sequence_length: int


@dataclass(frozen=True)
class MeshSizes:
    """Sizes of the three axes of a mesh."""

    data: int = 1
    fsdp: int = 1
    tensor: int = 1

    @property
    def chips(self) -> int:
        """Chips of the mesh."""
        return self.data * self.fsdp * self.tensor

    def __str__(self) -> str:
        sizes = {"data": self.data, "fsdp": self.fsdp, "tensor": self.tensor}
        named = [f"{name}={size}" for name, size in sizes.items() if size > 1]
        return " ".join(named) or "1 chip"


@dataclass(frozen=True)
class MemoryUse:
    """Bytes that a run takes on each chip, by purpose; each includes its tenth for what is not counted."""

    state: int
    gathered: int
    activations: int
    logits: int

    @property
    def total(self) -> int:
        """All that a chip holds."""
        return self.state + self.gathered + self.activations + self.logits


@dataclass(frozen=True)
class Placement:
    """A mesh, and what a run takes on each of its chips."""

    mesh: MeshSizes
    memory: MemoryUse

    @property
    def bytes_per_chip(self) -> int:
        """All that a chip holds."""
        return self.memory.total


def memory_per_chip(
    workload: Workload, mesh: MeshSizes = MeshSizes(), *, compute_bytes: int = 2, fused: bool = True
) -> MemoryUse:
    """What each chip of a mesh holds; the batch is split over data × fsdp.

    Args:
      workload: the run.
      mesh: its mesh. Heads that ``tensor`` does not divide are not split, as in training.
      compute_bytes: bytes of a number in computation, 2 in bfloat16.
      fused: whether attention is fused and keeps no scores.
    """
    shape, vocab_size, sequence_length = workload.shape, workload.vocab_size, workload.sequence_length
    data, fsdp, tensor = mesh.data, mesh.fsdp, mesh.tensor
    d, h, k, f = shape.embed, shape.heads, shape.kv, shape.ffw
    heads = h / (tensor if h % tensor == 0 else 1)
    hk = heads * k
    blocks = shape.layers * (4 * d * hk + 3 * d * f / tensor + d)
    state = _STATE_BYTES * (vocab_size * d / tensor + blocks) / fsdp
    rows = -(-workload.batch_size // (data * fsdp))
    tokens = rows * sequence_length
    used = vocab_size * d / tensor + 4 * d * hk + 3 * d * f / tensor
    gathered = (compute_bytes + 4) * used if fsdp > 1 else 0
    layer_inputs = compute_bytes * tokens * d * shape.layers
    mlp, scores = 3 * compute_bytes * f / tensor, _SCORES_KEPT * 4 * heads * sequence_length
    one_layer = tokens * (compute_bytes * (6 * d + 4 * hk) + (mlp if fused else max(mlp, scores)))
    block = (GPU_LOSS_BLOCK if fused else LOSS_BLOCK) / (data * fsdp)
    logits_held = min(max(block, rows * vocab_size), tokens * vocab_size)  # at least one position
    logits = 2 * 4 * logits_held
    return MemoryUse(*(int(_OVERHEAD * part) for part in (state, gathered, layer_inputs + one_layer, logits)))


def possible_placements(workload: Workload, accelerator: str, chips: int) -> list[Placement]:
    """Returns every mesh of ``chips`` chips that the batch can be split over, the simplest first.

    A mesh that splits parameters over fewer chips is simpler: first no split, then fsdp, then tensor.

    Raises:
      MscaleError: the accelerator is not known.
    """
    fused = find_chip(accelerator).fused_attention
    found = []
    for tensor in _divisors(chips):
        rows = chips // tensor
        if workload.batch_size % rows or (tensor > 1 and workload.shape.ffw % tensor):
            continue
        for fsdp in _divisors(rows):
            mesh = MeshSizes(data=rows // fsdp, fsdp=fsdp, tensor=tensor)
            found.append(Placement(mesh, memory_per_chip(workload, mesh, fused=fused)))
    return found


def usable_bytes(accelerator: str) -> float:
    """Bytes of a chip that a run may take.

    Raises:
      MscaleError: the accelerator is not known.
    """
    return _USABLE_FRACTION * find_chip(accelerator).memory


def smallest_placement(workload: Workload, accelerator: str, chips: int | None = None) -> Placement:
    """Returns the suggested mesh: of ``chips`` chips, or of the fewest (a power of two) that hold the run.

    Parameters are not split where they fit whole. Otherwise they are split over as few chips as hold them (fsdp), and
    over tensor as well only where the batch has no more rows to split.

    Raises:
      MscaleError: the accelerator is not known, or the run does not fit on that many chips.
    """
    usable = usable_bytes(accelerator)
    counts = [chips] if chips else [2**power for power in range(_MAX_CHIPS.bit_length())]
    least = None
    for count in counts:
        for one in possible_placements(workload, accelerator, count):
            if one.bytes_per_chip <= usable:
                return one
            least = min(least or one.bytes_per_chip, one.bytes_per_chip)
    on = f"{counts[-1]} {accelerator}" + ("" if chips else " or fewer")
    found = f"needs {(least or 0) / 1e9:.1f} GB on each" if least else "its batch cannot be split over them"
    raise MscaleError(
        f"a run of width {workload.shape.embed} and {workload.shape.layers} layers with batches of "
        f"{workload.batch_size} × {workload.sequence_length} "
        f"tokens does not fit on {on} ({found}, {usable / 1e9:.1f} GB are usable); use more chips or a smaller batch"
    )


def _divisors(number: int) -> list[int]:
    return [size for size in range(1, number + 1) if number % size == 0]
