"""Estimation of a law: the problem, its objective, and the search for the optimum, in NumPy.

What other folders import from here:

- `problem`: rows, parameters and bounds of one fit; the law's Jacobian, objective and derivatives, for batches.
- `specify`: from a law, a table and options to a problem.
- `rows`: which columns and rows of a table a law is fitted to.
- `estimate`: the best of many starts, at the most likely ratio of variances.
- `optimize`: damped Newton and L-BFGS within box constraints.
- `objective`: Huber's loss and squares; BLAS on one thread.
- `variance_components`: noise that groups share, by restricted maximum likelihood.
- `aliasing`: parameters that the data determine only together.
- `quantities`: numbers derived from parameters, which a problem evaluates and differentiates.
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
