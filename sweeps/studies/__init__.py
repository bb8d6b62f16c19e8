"""The built-in studies, one a module."""

from collections.abc import Mapping

from mscale.errors import MscaleError, nearest
from sweeps.study import Study

NAMES = ("demo", "gpu-day", "tpu-week", "atlas")


def make(name: str, store=None, **options) -> Study:
    """Returns a built-in study by its name.

    Args:
      store: an open token store; all but ``demo`` can be planned without.
      options: of the study's own function.

    Raises:
      MscaleError: there is no such study, or it needs a store.
    """
    if name not in NAMES:
        raise MscaleError(f"unknown study {name!r}: expected one of {', '.join(NAMES)}{nearest(name, NAMES)}")
    if name == "demo":
        from sweeps.studies.demo import demo

        if store is None:
            raise MscaleError("study demo: it is planned from a token store's sizes; give --store")
        return demo(store, **options)
    if name == "atlas":
        from sweeps.studies.atlas import atlas

        return atlas(store, **options)
    from sweeps.studies import affordable

    return (affordable.gpu_day if name == "gpu-day" else affordable.tpu_week)(store, **options)


def printed_cells(name: str) -> Mapping[str, int] | None:
    """Tag to the number of cells that a paper prints for a built-in study, where it is one of a paper."""
    if name != "atlas":
        return None
    from sweeps.studies.atlas import PRINTED

    return PRINTED
