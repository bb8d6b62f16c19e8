"""The decoder, its loss and how both are partitioned over a mesh.

What other folders import from here:

- `decoder`: parameters and forward pass.
- `loss`: cross-entropy over large vocabularies.
- `partitioning`: sharding by logical axes.
"""

__all__ = ["decoder", "loss", "partitioning"]
