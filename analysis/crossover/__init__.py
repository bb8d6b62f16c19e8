"""The token count at which a model trained from scratch overtakes one continued from a multilingual checkpoint.

What other folders import from here:

- `crossover`: crossovers measured in a study, the curves between them, and a power law in N.
"""

__all__ = ["crossover"]
