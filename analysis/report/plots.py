"""Building blocks of the report's figures: `Figure`, axes, palettes, legends.

The palettes are safe for colour-blind readers: viridis for magnitudes, purple to orange for signed values, the eight
colours of Okabe and Ito for categories, with a shape or label beside the colour.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import altair as alt
import numpy as np
import pandas as pd
from numpy.typing import ArrayLike

from analysis.text import count

AltairChart = alt.Chart | alt.LayerChart | alt.FacetChart
OKABE_ITO = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000", "#8A8A00")
INK, MUTED, RULE = "#1c2430", "#5b6675", "#e3e7ec"
SIGNED: Any = "purpleorange"
CONFIG: dict[str, Any] = {
    "font": "Inter, system-ui, -apple-system, 'Segoe UI', Roboto, 'Helvetica Neue', Arial, sans-serif",
    "background": "transparent",
    "view": {"stroke": None},
    "axis": {
        "labelColor": MUTED,
        "titleColor": INK,
        "titleFontWeight": 500,
        "titleFontSize": 12,
        "labelFontSize": 11,
        "gridColor": RULE,
        "domainColor": "#b8c0ca",
        "tickColor": "#b8c0ca",
        "titlePadding": 8,
        "labelOverlap": True,
    },
    "legend": {
        "labelColor": MUTED,
        "titleColor": MUTED,
        "titleFontWeight": 500,
        "titleFontSize": 11,
        "labelFontSize": 11,
        "orient": "bottom",
    },
    "title": {"fontSize": 12, "fontWeight": 600, "color": INK, "anchor": "start", "offset": 8},
    "line": {"strokeWidth": 1.8},
    "point": {"size": 42, "filled": True},
}


@dataclass(frozen=True)
class Control:
    """A drop-down above a figure, which sets the Vega signal `name` of all its charts."""

    name: str
    label: str
    options: tuple[tuple[str, str], ...]  # (value, text)


@dataclass(frozen=True)
class Panel:
    """One chart of a figure, with its heading."""

    chart: AltairChart
    title: str = ""


@dataclass(frozen=True)
class LegendEntry:
    """An entry of the legend that all panels of a figure share."""

    label: str
    colour: str
    shape: str = "circle"


@dataclass(frozen=True)
class Figure:
    """A figure: panels in a grid that adapts to the width of the screen, with caption, data, controls and legend."""

    name: str
    title: str
    caption: str
    panels: tuple[Panel, ...]
    data: pd.DataFrame
    controls: tuple[Control, ...] = ()
    legend: tuple[LegendEntry, ...] = ()
    width: int = 320  # least width of a panel in pixels

    def specs(self) -> list[dict]:
        """The Vega-Lite specifications of its panels."""
        return [spec_of(panel.chart) for panel in self.panels]


def spec_of(chart: AltairChart) -> dict:
    """The Vega-Lite specification of a chart, with the report's style and rounded data."""
    with alt.data_transformers.enable("default", max_rows=None, consolidate_datasets=True):
        spec = chart.to_dict(validate=False)
    spec.pop("$schema", None)
    spec["datasets"] = _rounded(spec.get("datasets", {}))
    spec["config"] = CONFIG
    spec["width"] = "container"
    spec["autosize"] = {"type": "fit-x", "contains": "padding"}
    return spec


def _rounded(value: Any) -> Any:
    """The data rounded to six significant digits, which takes a third of the space."""
    if isinstance(value, dict):
        return {name: _rounded(item) for name, item in value.items()}
    if isinstance(value, list):
        return [_rounded(item) for item in value]
    return float(f"{value:.6g}") if isinstance(value, float) else value


def log_ticks(values: ArrayLike, max_ticks: int = 6) -> list[float]:
    """Round tick values over the range of positive `values`: at most `max_ticks`, or else the powers of ten."""
    low, high = float(np.min(values)), float(np.max(values))
    powers = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    for steps in ((1, 2, 3, 4, 5, 6, 8), (1, 2, 4, 6), (1, 2, 5), (1, 3), (1,)):
        ticks = [step * 10.0**power for power in powers for step in steps]
        ticks = [tick for tick in ticks if low * 0.999 <= tick <= high * 1.001]
        if len(ticks) <= max_ticks:
            break
    return ticks


def token_axis(name: str, title: str, values: ArrayLike) -> alt.X:
    """A log axis of token counts over the range of `values`."""
    values = np.asarray(values, dtype=float)
    domain = [float(values.min()) * 0.97, float(values.max()) * 1.03]
    # Billions as in the text: 33.6B, where d3 writes 33.6G.
    label = "replace(format(datum.value, '~s'), 'G', 'B')"
    axis = alt.Axis(labelExpr=label, values=log_ticks(values), labelFlush=True)
    return alt.X(f"{name}:Q", title=title, scale=alt.Scale(type="log", nice=False, domain=domain), axis=axis)


def loss_axis(name: str = "loss", title: str = "loss, nats per token", **scale: Any) -> alt.Y:
    """A linear axis of losses that need not start at zero; `scale` are options of `alt.Scale`."""
    return alt.Y(f"{name}:Q", title=title, scale=alt.Scale(zero=False, nice=True, **scale))


# Viridis at seven points of its range, without the palest ones, which are hard to see on white.
_VIRIDIS = (
    (68, 1, 84),
    (70, 50, 127),
    (54, 92, 141),
    (39, 127, 142),
    (31, 161, 135),
    (74, 194, 109),
    (122, 202, 70),
)


def viridis(number: int) -> list[str]:
    """`number` colours from dark to light."""
    at = np.linspace(0, len(_VIRIDIS) - 1, number) if number > 1 else np.array([2.0])
    channels = [np.interp(at, range(len(_VIRIDIS)), [colour[i] for colour in _VIRIDIS]) for i in range(3)]
    return ["#" + "".join(f"{round(float(v)):02x}" for v in colour) for colour in zip(*channels, strict=True)]


@dataclass(frozen=True)
class Palette:
    """Colours and shapes of the levels of one field, the same in all panels of a figure."""

    field: str
    levels: tuple[str, ...]
    colours: tuple[str, ...]
    shapes: tuple[str, ...]

    def colour(self) -> alt.Color:
        """The colour encoding of the field, without a legend of its own."""
        scale = alt.Scale(domain=list(self.levels), range=list(self.colours))
        return alt.Color(f"{self.field}:N", legend=None, scale=scale)

    def shape(self) -> alt.Shape:
        """The shape encoding of the field, without a legend of its own."""
        scale = alt.Scale(domain=list(self.levels), range=list(self.shapes))
        return alt.Shape(f"{self.field}:N", legend=None, scale=scale)

    def legend(self, suffix: str = "") -> tuple[LegendEntry, ...]:
        """The entries of the figure's legend; `suffix` is added to each label."""
        entries = zip(self.levels, self.colours, self.shapes, strict=True)
        return tuple(LegendEntry(f"{level}{suffix}", colour, shape) for level, colour, shape in entries)


# Vega's shapes as SVG paths, for the legend.
SHAPE_PATHS = {
    "circle": "M-4.5,0a4.5,4.5 0 1,0 9,0a4.5,4.5 0 1,0 -9,0",
    "square": "M-4,-4h8v8h-8z",
    "diamond": "M0,-5.5L4.5,0L0,5.5L-4.5,0z",
    "triangle-up": "M0,-5L5,4h-10z",
    "triangle-down": "M0,5L5,-4h-10z",
    "triangle-right": "M5,0L-4,5v-10z",
    "triangle-left": "M-5,0L4,5v-10z",
    "hatch": "M-5,3L3,-5H4L-5,4zM-5,-1L-1,-5H0L-5,0zM-1,5L5,-1V0L0,5z",
}
# Diagonal lines in Vega's unit square, drawn over cells that were predicted and not measured.
HATCH = "M-1,0.2L0.2,-1M-1,1L1,-1M-0.2,1L1,-0.2"
_SHAPES = ("circle", "square", "triangle-up", "diamond", "triangle-down", "triangle-right", "triangle-left")


def categorical_palette(field: str, levels: Sequence[str]) -> Palette:
    """Okabe and Ito's colours; more than eight levels repeat the colours with other shapes."""
    colours = tuple(OKABE_ITO[index % len(OKABE_ITO)] for index in range(len(levels)))
    shapes = tuple(_SHAPES[(index + index // len(OKABE_ITO)) % len(_SHAPES)] for index in range(len(levels)))
    return Palette(field, tuple(levels), colours, shapes)


def size_palette(frame: pd.DataFrame) -> Palette:
    """Model sizes in ascending order on viridis, for the column "size" that `with_size_label` adds."""
    levels = tuple(count(params) for params in sorted(frame["params"].unique()))
    return Palette("size", levels, tuple(viridis(len(levels))), ("circle",) * len(levels))


def with_size_label(frame: pd.DataFrame) -> pd.DataFrame:
    """Adds the column "size": the parameters as text."""
    return frame.assign(size=frame["params"].map(count))


def tooltips(*fields: str | tuple[str, str]) -> list[alt.Tooltip]:
    """Tooltips of fields: "language" (text), "loss:.4f" (a number and its format), or a pair of these and a title."""
    shown = []
    for entry in fields:
        text, title = entry if isinstance(entry, tuple) else (entry, "")
        name, number, form = text.partition(":")
        options: dict[str, Any] = {"title": title} if title else {}
        options |= {"format": form} if form else {}
        shown.append(alt.Tooltip(f"{name}:{'Q' if number else 'N'}", **options))
    return shown


def interval(
    base: alt.Chart, x: alt.X, title: str, palette: Palette, *, shown: str = "", **mark: Any
) -> alt.Chart:
    """Bands from `low` to `high` over x, or with `strokeWidth` bars; only rows for which the filter `shown` is true."""
    base = base.transform_filter(shown) if shown else base
    marked = base.mark_rule(**mark) if "strokeWidth" in mark else base.mark_area(**mark)
    return marked.encode(x=x, y=alt.Y("low:Q", title=title), y2="high:Q", color=palette.colour())


def dots(
    base: alt.Chart, x: Any, y: Any, palette: Palette, tooltip: Sequence[alt.Tooltip], **mark: Any
) -> alt.Chart:
    """Filled points, coloured and shaped by the palette."""
    marked = base.mark_point(filled=True, **mark)
    return marked.encode(x=x, y=y, color=palette.colour(), shape=palette.shape(), tooltip=tooltip)


def zero_line() -> alt.Chart:
    """A dashed horizontal line at zero."""
    return alt.Chart(pd.DataFrame({"y": [0]})).mark_rule(color="#7d8793", strokeDash=[4, 3]).encode(y="y:Q")
