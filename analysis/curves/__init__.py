"""Loss curves of runs: smoothed, monotone where they should be, read at any token count with their noise.

What other folders import from here:

- `curve`: one curve of checkpoints: fitted, read, inverted.
- `study`: all curves of a study, by run and language.
"""

__all__ = ["curve", "study"]
