"""Fitting one law to a table, and what the fit answers.

What other folders import from here:

- `fit`: `fit` and `from_json`.
- `result`: `Fit`: parameters, intervals, predictions, summary.
"""

__all__ = ["fit", "result"]
