"""mscale: the training library of multilingual pretraining scaling.

Importing it loads no accelerator library: a laptop that only reads observations needs none.
"""

__version__ = "0.1.0"
