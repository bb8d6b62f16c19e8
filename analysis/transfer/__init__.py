"""Cross-lingual transfer: scores, their matrix, and pairs that were not run.

What other folders import from here:

- `matrix`: scores of all pairs with intervals (BTS).
- `adaptation`: scores from continued runs (FAS).
- `statistics`: symmetry, kinship and planted relatedness: jackknife intervals and Mantel tests.
- `forest`: pairs that were not run, by a random forest.
- `pair_selection`: which pairs to run next (optimal design).
- `units`: scores per token, byte and content.
- `table`: the table that `mscale transfer` writes.
"""

__all__ = ["adaptation", "forest", "matrix", "pair_selection", "statistics", "table", "units"]
