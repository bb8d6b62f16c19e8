"""The report: sentences, figures and one self-contained page.

What other folders import from here:

- `report`: analyse a study, write results and page.
"""

__all__ = ["report"]
