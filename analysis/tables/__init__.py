"""Observations read from files, checked and completed; published figures; rows as JSON.

What other folders import from here:

- `observations`: reading and validating observations and exposure.
- `mixtures`: what each run was trained on.
- `checks`: checks of the columns and rows that a law is fitted to.
- `languages`: family, script and genealogy of languages; features of language pairs.
- `published`: figures printed in the ATLAS paper.
- `records`: rows as JSON.
- `remarks`: what is noted or left out, as codes, and the words for them.
"""

__all__ = ["checks", "languages", "mixtures", "observations", "published", "records", "remarks"]
