"""Learning curves: smoothed, monotone, evaluated and inverted at any token count, with draws of their noise.

What other folders import from here:

- `curve`: curves of single cells, and their noise.
- `study`: all curves of a study, by run and language.
"""

__all__ = ["curve", "study"]
