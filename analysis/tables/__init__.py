"""Tables that people bring: read, checked, completed; and the published ones.

What other folders import from here:

- `observations`: reading and validating observations and exposure.
- `mixtures`: what each run was trained on.
- `checks`: checks of single columns.
- `languages`: families, scripts and places of languages.
- `published`: figures printed in the ATLAS paper.
- `records`: rows as JSON.
"""

__all__ = ["checks", "languages", "mixtures", "observations", "published", "records"]
