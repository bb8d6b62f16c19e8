"""Planning decisions: one module for each question of `mscale plan`.

What other folders import from here:

- `languages`: which languages help a target.
- `expand`: what more languages cost.
- `start`: from scratch or from a checkpoint.
- `mixture`: the best mixture at a budget.
- `next_runs`: the runs that would most reduce the uncertainty of a decision.
- `co_training`: training together against training alone.
- `answer`: what all of them return.
- `identification`: which laws a design identifies before it is run.
"""

__all__ = ["answer", "co_training", "expand", "identification", "languages", "mixture", "next_runs", "start"]
