"""The built-in studies, one a module.

What other folders import from here:

- `BUILT_IN_STUDIES`: their names; `built_in`: a built-in study by its name.
- `demo`: minutes on two CPU cores.
- `affordable`: one GPU for a day, sixteen TPU chips for a week.
- `atlas`: ATLAS's own study.
- `assumed_sizes`: sizes of the languages where there is no token store.
"""

BUILT_IN_STUDIES = ("demo", "gpu-day", "tpu-week", "atlas")

__all__ = ["BUILT_IN_STUDIES", "affordable", "assumed_sizes", "atlas", "built_in", "demo"]
