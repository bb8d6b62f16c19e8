"""The charting scripts of a page that needs no network."""

import functools


@functools.cache
def scripts() -> str:
    """Vega, Vega-Lite and vega-embed as one script, about 0.9 MB, made in a second."""
    import vl_convert

    return vl_convert.javascript_bundle("window.vegaEmbed = vegaEmbed;")
