"""Generated text in related languages, with their true relatedness.

What other folders import from here:

- `generate`: a corpus.
"""

__all__ = ["generate"]
