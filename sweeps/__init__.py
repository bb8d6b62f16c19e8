"""Studies as data: their runs, the order and cost of training them, the executors, and the collected tables.

For a notebook or a script: `local`, `slurm` and `gke` train a study, `state` reads what is done, `actions` are what a
user does to it, and `collect` makes its tables. They are imported when they are first used.
"""

import importlib
from types import ModuleType

__all__ = ["actions", "collect", "gke", "local", "slurm", "state"]


def __getattr__(name: str) -> ModuleType:
    if name in __all__:
        return importlib.import_module(f"sweeps.{'collecting' if name == 'collect' else 'executors'}.{name}")
    raise AttributeError(f"module 'sweeps' has no attribute {name!r}")
