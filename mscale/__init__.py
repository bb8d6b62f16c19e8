"""mscale: the training library of multilingual pretraining scaling.

Importing it loads no accelerator library: a laptop that only reads observations needs none.
"""

import importlib
from types import ModuleType

__version__ = "0.1.0"


def __getattr__(name: str) -> ModuleType:
    """``from mscale import analysis``: the packages beside it, whose own names are generic."""
    if name in ("analysis", "mixtures", "sweeps"):
        return importlib.import_module(name)
    raise AttributeError(f"module 'mscale' has no attribute {name!r}")
