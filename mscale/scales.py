"""Model sizes: ATLAS scales 0 to 52 and five "nano" scales for a CPU core.

The formula for parameter counts reproduces Table B.3 of Longpre et al. 2026 (arXiv 2510.22037) exactly for scales 0 to
51: tied embedding, parallel block with one norm vector, gated MLP, no biases and a final norm without parameters. This
module does not import JAX.
"""

import csv
from dataclasses import dataclass
from importlib import resources
from typing import Any

from mscale.errors import MscaleError, nearest

ATLAS_VOCABULARY = 64_512
BYTE_VOCABULARY = 259


@dataclass(frozen=True)
class Shape:
    """Size of one model: ``heads`` of width ``kv``, ``layers`` blocks, width ``embed``, MLP width ``ffw``."""

    heads: int
    layers: int
    embed: int
    ffw: int
    kv: int


def _atlas() -> tuple[dict[int, Shape], dict[int, int]]:
    text = resources.files("mscale").joinpath("data", "atlas_scales.csv").read_text(encoding="utf-8")
    shapes, counts = {}, {}
    for row in csv.DictReader(line for line in text.splitlines() if not line.startswith("#")):
        fields = {name: int(value) for name, value in row.items()}
        scale, counts[scale] = fields.pop("scale"), fields.pop("parameters")
        shapes[scale] = Shape(**fields)
    return shapes, counts


_ATLAS_SHAPES, PUBLISHED_COUNTS = _atlas()

NANO: dict[str, Shape] = {
    "nano0": Shape(heads=2, layers=2, embed=16, ffw=64, kv=16),
    "nano1": Shape(heads=2, layers=2, embed=32, ffw=128, kv=16),
    "nano2": Shape(heads=3, layers=2, embed=48, ffw=192, kv=16),
    "nano3": Shape(heads=4, layers=2, embed=64, ffw=256, kv=16),
    "nano4": Shape(heads=6, layers=2, embed=96, ffw=384, kv=16),
}

SCALES: dict[int | str, Shape] = dict(_ATLAS_SHAPES.items()) | dict(NANO.items())


def get(scale: int | str) -> Shape:
    """Returns the shape of a scale, an ATLAS number (``34`` or ``"34"``) or a nano name.

    Raises:
      MscaleError: there is no such scale.
    """
    key: int | str = int(scale) if isinstance(scale, str) and scale.isdecimal() else scale
    if isinstance(key, bool) or key not in SCALES:
        raise MscaleError(
            f"unknown scale {scale!r}: expected 0 to {max(_ATLAS_SHAPES)} or one of {', '.join(NANO)}"
            f"{nearest(str(scale), SCALES)}"
        )
    return SCALES[key]


def atlas_batch_size(parameters: int) -> int:
    """Sequences in a batch for N parameters, as in ATLAS (Table B.2)."""
    for limit, batch in ((150e6, 256), (1e9, 512), (2e9, 1024)):
        if parameters < limit:
            return batch
    return 2048


def parameter_count_nonembedding(shape: Shape) -> int:
    """Parameters of the blocks alone: ``L(4dhk + 3df + d)``."""
    d, attention = shape.embed, 4 * shape.embed * shape.heads * shape.kv
    return shape.layers * (attention + 3 * d * shape.ffw + d)


def parameter_count(shape: Shape, vocab_size: int) -> int:
    """All parameters, N: ``V·d + L(4dhk + 3df + d)`` (the embedding is tied, hence counted once)."""
    return vocab_size * shape.embed + parameter_count_nonembedding(shape)


def training_flops(params: Any, tokens: Any) -> Any:
    """Training compute C = 6·N·D (Kaplan et al. 2020, arXiv 2001.08361, section 2.1).

    Args:
      params: N, all parameters, embeddings included as in ATLAS.
      tokens: D.

    Returns:
      An exact integer for two integers of Python; otherwise floats, since 64-bit integers of arrays would overflow.
    """
    exact = isinstance(params, int) and isinstance(tokens, int)
    return (6 if exact else 6.0) * params * tokens


def flops_per_token(
    shape: Shape, vocab_size: int, sequence_length: int | None = None, *, backward: bool = True
) -> int:
    """Model FLOPs per token: 6N, plus those of causal attention if ``sequence_length`` S is given.

    N as in ``training_flops``. A position attends to (S+1)/2 positions on average, with ``2hk``
    multiply-adds each (scores and weighted sum): ``6·L·h·k·(S+1)`` FLOPs with the backward pass. Without ``backward``
    the count is a third, the cost of evaluation.
    """
    passes = 3 if backward else 1
    flops = 2 * passes * parameter_count(shape, vocab_size)
    if sequence_length is not None:
        flops += 2 * passes * shape.layers * shape.heads * shape.kv * (sequence_length + 1)
    return flops
