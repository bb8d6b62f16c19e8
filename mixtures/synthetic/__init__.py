"""Generated text in related languages, with the truth about their relatedness.

What other folders import from here:

- `generate`: a corpus.
"""

__all__ = ["generate"]
