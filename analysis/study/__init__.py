"""A study as a whole: every law, the transfer matrix and the crossover, as numbers.

What other folders import from here:

- `analyse`: all analyses of tables.
- `read`: tables and records of a study in files.
- `law_comparison`: held-out errors of the laws side by side.
- `results`: reading laws.json.
- `laws`: the laws that a report fits, as records.
"""

__all__ = ["analyse", "law_comparison", "laws", "read", "results"]
