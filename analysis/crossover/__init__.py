"""When a run from scratch catches up with one that continues a multilingual checkpoint.

What other folders import from here:

- `crossover`: crossovers of a study, their curves and their power law.
- `gaussian_process`: the crossover between sizes and budgets that were run.
"""

__all__ = ["crossover", "gaussian_process"]
