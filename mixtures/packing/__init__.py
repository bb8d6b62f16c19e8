"""A corpus to a token store: in parallel, resumable, whole or absent.

What other folders import from here:

- `pack`: the whole job.
- `inputs`: the corpus's files by language.
"""

__all__ = ["inputs", "pack"]
