"""How a law is estimated: the problem, its objective, and the search for the optimum. NumPy alone.

What other folders import from here:

- `problem`: the rows, parameters and bounds of one fit, and batches of it.
- `specify`: from a table and options to a problem.
- `rows`: which columns and rows a law is fitted to.
- `estimate`: the best of many starts at the most likely ratio of variances.
- `optimize`: damped Newton and L-BFGS within bounds.
- `objective`: Huber's loss and squares, with derivatives.
- `variance_components`: noise that groups share beside each row's own, by restricted maximum likelihood.
- `aliasing`: parameters that the data cannot tell apart.
- `quantities`: numbers derived from parameters.
- `sufficiency`: whether a table has enough rows and groups.
"""

__all__ = [
    "aliasing",
    "estimate",
    "objective",
    "optimize",
    "problem",
    "quantities",
    "rows",
    "specify",
    "sufficiency",
    "variance_components",
]
