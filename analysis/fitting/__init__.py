"""Fitting one law to a table: parameters, intervals, predictions, compute-optimal sizes, charts.

What other folders import from here:

- `fit`: `fit`, and `from_json` for a saved fit.
- `result`: `Fit`: parameters, intervals, predictions, summary.
"""

__all__ = ["fit", "result"]
