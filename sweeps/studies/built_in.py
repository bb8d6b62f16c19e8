"""The built-in studies by name: demo, gpu-day, tpu-week and atlas."""

from collections.abc import Mapping
from typing import Any

from mscale.data.store import Store
from mscale.errors import MscaleError, nearest
from sweeps.studies import BUILT_IN_STUDIES
from sweeps.study import Study


def built_in_study(name: str, store: Store | None = None, **options: Any) -> Study:
    """Returns a built-in study by its name.

    Args:
      store: an open token store; all but ``demo`` can be planned without.
      options: keyword arguments of the study's own function.

    Raises:
      MscaleError: there is no such study, or it needs a store.
    """
    if name not in BUILT_IN_STUDIES:
        raise MscaleError(
            f"unknown study {name!r}: expected one of {', '.join(BUILT_IN_STUDIES)}{nearest(name, BUILT_IN_STUDIES)}"
        )
    if name == "demo":
        from sweeps.studies.demo import demo_study

        if store is None:
            raise MscaleError("study demo: it is planned from a token store's sizes; give --store")
        return demo_study(store, **options)
    if name == "atlas":
        from sweeps.studies.atlas import atlas_study

        return atlas_study(store, **options)
    from sweeps.studies import affordable

    return (affordable.gpu_day_study if name == "gpu-day" else affordable.tpu_week_study)(store, **options)


def printed_cells(name: str) -> Mapping[str, int] | None:
    """Tag to the number of cells in the paper's table, for a built-in study that reproduces one; else None."""
    if name != "atlas":
        return None
    from sweeps.studies.atlas import PRINTED_CELLS

    return PRINTED_CELLS
