"""Decisions: what to train next, with what, how large, from where. One module a question of `mscale plan`.

What other folders import from here:

- `languages`: which languages help a target.
- `expand`: what more languages cost.
- `start`: from scratch or from a checkpoint.
- `mixture`: the best mixture at a budget.
- `next_runs`: the runs that would tell most.
- `co_training`: training together against training alone.
"""

__all__ = ["co_training", "expand", "languages", "mixture", "next_runs", "start"]
