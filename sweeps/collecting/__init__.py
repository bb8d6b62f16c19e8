"""Run folders, and other people's tables, to one table of observations.

What other folders import from here:

- `collect`: a study's tables.
- `fetch`: run folders from elsewhere.
- `importers`: CSV and W&B.
"""

__all__ = ["collect", "fetch", "importers"]
