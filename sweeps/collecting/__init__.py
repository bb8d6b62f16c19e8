"""One table of observations, from run folders or from other people's tables.

What other folders import from here:

- `collect`: a study's tables.
- `fetch`: run folders from elsewhere.
- `importers`: CSV and W&B.
"""

__all__ = ["collect", "fetch", "importers"]
