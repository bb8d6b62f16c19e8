"""Scaling laws, each a small declaration: an equation, its parameters, and the columns it reads.

What other folders import from here:

- `LAWS`: laws by name; `Law`, `Parameter`: to declare one (docs/laws.md).
- `registry`: a law made ready for a table, or rebuilt for a saved fit.
- `law`: the declaration itself.
- `atlas`, `capacity`, `data_constrained`, `examples`, `mixing`: laws with functions that are used apart from a fit.
"""

from analysis.laws.law import Law, Parameter
from analysis.laws.registry import LAWS

__all__ = [
    "LAWS",
    "Law",
    "Parameter",
    "atlas",
    "capacity",
    "data_constrained",
    "examples",
    "law",
    "mixing",
    "registry",
]
