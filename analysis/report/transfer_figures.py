"""Figures of transfer: the matrix, scores over d, and scores against planted relatedness and published scores."""

import math
from typing import Any

import altair as alt
import numpy as np
import pandas as pd
from scipy.cluster.hierarchy import leaves_list, linkage
from scipy.spatial.distance import squareform

from analysis.report.plots import (
    HATCH,
    INK,
    OKABE_ITO,
    SIGNED,
    Control,
    Figure,
    LegendEntry,
    Panel,
    categorical_palette,
    dots,
    interval,
    token_axis,
    tooltips,
    zero_line,
)
from analysis.study.results import Results, TransferResult
from analysis.tables import languages as inventory
from analysis.tables import published
from analysis.tables.remarks import remark_text
from analysis.text import count, signed, span

MOST_CURVE_POINTS = 8000
_BOTH_ENDS = "isValid(datum.low) && isValid(datum.high)"
UNIT_TEXTS = {"tokens": "tokens", "bytes": "bytes", "content": "content (byte premium)"}


def matrix_figure(results: Results) -> Figure | None:
    """The matrix at the main scale as a heat map: row = target, column = source."""
    transfer = results.transfer
    frame = _cells(transfer)
    if frame.empty:
        return None
    units = [name for name in UNIT_TEXTS if f"score_{name}" in frame]
    languages = sorted(set(frame["target"]) | set(frame["source"]))
    orders = _orders(results, frame, languages)
    for key, names in orders.items():
        place = {name: index for index, name in enumerate(names)}
        frame[f"t_{key}"], frame[f"s_{key}"] = frame["target"].map(place), frame["source"].map(place)
    limit = _saturation(frame["score_tokens"])
    order = alt.param(name="order", value=next(iter(orders)))
    unit = alt.param(name="unit", value="tokens")
    shown = {name: f"datum['{name}_' + unit]" for name in ("score", "label", "interval", "what")}
    base = (
        alt.Chart(frame)
        .transform_calculate(rank_t="datum['t_' + order]", rank_s="datum['s_' + order]", **shown)
        .encode(
            x=alt.X(
                "source:N",
                title="source: trained together with",
                sort=alt.EncodingSortField(field="rank_s", op="min"),
                axis=alt.Axis(
                    orient="top",
                    labelAngle=0 if len(languages) <= 14 else -90,
                    domain=False,
                    ticks=False,
                    grid=False,
                ),
            ),
            y=alt.Y(
                "target:N",
                title="target: evaluated on",
                sort=alt.EncodingSortField(field="rank_t", op="min"),
                axis=alt.Axis(domain=False, ticks=False, grid=False),
            ),
            tooltip=tooltips(
                "target",
                "source",
                "score:+.3f",
                ("interval", f"{results.level:.0%} interval"),
                ("d:.3s", "d, tokens"),
                ("what", "status"),
                ("reason", "why"),
            ),
        )
    )
    colour = _signed_colour("transfer score", limit, 180)
    cells = base.mark_rect(stroke="white", strokeWidth=2, cornerRadius=3).encode(color=colour)
    # Cells without a number have no colour on the scale: draw them in a layer of their own.
    rectangle: dict[str, Any] = {"stroke": "white", "strokeWidth": 2, "cornerRadius": 3, "fill": "#dfe3e8"}
    layers: list[Any] = [cells, base.transform_filter("!isValid(datum.score)").mark_rect(**rectangle)]
    height = min(max(38 * len(languages), 150), 620) if len(languages) <= 16 else 18 * len(languages)
    legend = [LegendEntry("no number", "#dfe3e8", "square")] if frame["score_tokens"].isna().any() else []
    predicted = bool((frame["status"] == "predicted").any())
    if predicted:
        hatch = base.transform_filter("datum.status === 'predicted' && isValid(datum.score)")
        size = (0.8 * height / len(languages)) ** 2
        # Dark lines on white ones are visible on pale and on dark cells.
        for stroke, width in (("white", 3), (INK, 1)):
            layers.append(
                hatch.mark_point(
                    shape=HATCH, size=size, stroke=stroke, strokeWidth=width, filled=False, opacity=0.6
                )
            )
        legend.insert(0, LegendEntry("predicted, not measured", INK, "hatch"))
    if len(languages) <= 16:
        size = _label_size(11, len(languages))
        text = {"text": "label:N", "color": alt.condition(_dark(limit), alt.value("white"), alt.value(INK))}
        layers += [
            base.transform_filter("datum.status !== 'predicted'")
            .mark_text(fontSize=size, fontWeight=500)
            .encode(**text),
            base.transform_filter("datum.status === 'predicted'")
            .mark_text(fontSize=size, fontStyle="italic", stroke="white", strokeWidth=3, strokeOpacity=0.75)
            .encode(text="label:N"),
            base.transform_filter("datum.status === 'predicted'")
            .mark_text(fontSize=size, fontStyle="italic", color=INK)
            .encode(text="label:N"),
        ]
    texts = {
        "name": "by name",
        "family": "by family",
        "script": "by script",
        "similarity": "by similarity of scores",
    }
    controls = [
        Control("order", "Sort", tuple((key, texts[key]) for key in orders)),
        Control("unit", "Count", tuple((name, UNIT_TEXTS[name]) for name in units)),
    ]
    columns = ["scale", "target", "source", "d", "score", "low", "high", "tau", "status", "bound", "reason"]
    columns += [f"score_{name}" for name in units[1:]]
    return Figure(
        "transfer-matrix",
        "Who helps whom",
        f"Bilingual transfer score at {count(transfer.params)} parameters and d = {count(transfer.d)} tokens, "
        "stable phase against stable phase. Above zero (orange) the source helps the target, below (purple) it "
        "interferes. ≤ and ≥ mark bounds: the curve ends before the loss is reached."
        + (" Hatched cells were not run: they are predicted, see below." if predicted else ""),
        (Panel(alt.layer(*layers).add_params(order, unit).properties(height=height)),),
        frame[columns],
        tuple(control for control in controls if len(control.options) > 1),
        tuple(legend),
    )


def _saturation(scores: pd.Series) -> float:
    """The score at which colours saturate: the 97th percentile, so that a few extreme cells do not make others pale."""
    sizes = scores.astype(float).abs().dropna()
    return float(np.clip(np.quantile(sizes, 0.97), 0.3, 1.5)) if len(sizes) else 1.0


def _signed_colour(title: str, limit: float, length: int) -> alt.Color:
    """Scores from −limit to limit in colours, with a legend of that many pixels."""
    scale = alt.Scale(scheme=alt.SchemeParams(SIGNED), domain=[-limit, limit], domainMid=0, clamp=True)
    legend = alt.Legend(gradientLength=length, format="+.1f")
    return alt.Color("score:Q", title=title, scale=scale, legend=legend)


def _dark(limit: float) -> str:
    """A Vega expression that is true for cells dark enough for white text; purple is darker than orange."""
    return f"datum.score > {0.72 * limit} || datum.score < {-0.55 * limit}"


def _label_size(largest: int, columns: int) -> Any:
    """A Vega expression for the font size of cell labels: as large as fits the width of the chart."""
    return alt.expr(f"min({largest}, width / {columns} / 3.4)")


def _cells(transfer: TransferResult) -> pd.DataFrame:
    """One row for each cell of the main scale: its status, and for each unit its score, label and interval."""
    rows: list[dict[str, Any]] = [dict(row) for row in transfer.matrix if row["scale"] == transfer.scale]
    predicted = {(cell["target"], cell["source"]): cell for cell in transfer.predicted["cells"]}
    for row in rows:
        found = predicted.get((row["target"], row["source"]))
        if found and row["status"] == "missing":
            row |= found
        row["reason"] = remark_text(row["reason"])
    frame = pd.DataFrame(rows)
    if frame.empty:
        return frame
    tables: dict[str, Any] = {"tokens": rows, **transfer.units}
    for unit, table in tables.items():
        in_unit = {(row["target"], row["source"]): row for row in table}
        shown = [in_unit.get((row["target"], row["source"]), row) for row in rows]
        # Predictions are per token; other units have none.
        shown = [row if row["status"] != "missing" else {**row, "score": None} for row in shown]
        frame[f"score_{unit}"] = [row["score"] for row in shown]
        frame[f"label_{unit}"] = [_label(row) for row in shown]
        frame[f"interval_{unit}"] = [_interval_text(row["low"], row["high"]) for row in shown]
        frame[f"what_{unit}"] = [
            f"bound: {row['bound']} this" if row["status"] == "bound" else row["status"] for row in shown
        ]
    return frame


def _label(row: dict) -> str:
    """The score in a cell, with ≤ or ≥ for a bound; empty where there is none."""
    if row["score"] is None or math.isnan(row["score"]):
        return ""
    mark = {"at most": "≤", "at least": "≥"}.get(row.get("bound") or "", "")
    return mark + signed(row["score"])


def _interval_text(low: float | None, high: float | None) -> str:
    def one(value: float | None) -> str:
        return "open" if value is None or math.isnan(value) else f"{value:+.2f}".replace("-", "−")

    return f"{one(low)} to {one(high)}"


def _orders(results: Results, frame: pd.DataFrame, languages: list[str]) -> dict[str, list[str]]:
    """Orders of the languages: by family and by script where known, by similarity of scores, and by name."""
    orders: dict[str, list[str]] = {}
    known = inventory.language_metadata(languages, (results.truth or {}).get("languages"))
    for key in ("family", "script"):
        if len({known[name][key] for name in languages if name in known} - {None}) > 1:
            tree = "genealogy" if key == "family" else key
            orders[key] = sorted(languages, key=lambda name: (str(known.get(name, {}).get(tree, "~")), name))
    wide = frame.pivot(index="target", columns="source", values="score_tokens").reindex(
        index=languages, columns=languages
    )
    values = wide.to_numpy(dtype=float)
    if len(languages) > 2 and np.isfinite(values).sum() >= 0.6 * len(languages) * (len(languages) - 1):
        both = np.where(np.isfinite(values), values, np.nanmean(values))
        both = (both + both.T) / 2
        distance = both.max() - both
        np.fill_diagonal(distance, 0)
        order = leaves_list(linkage(squareform(distance, checks=False), "average", optimal_ordering=True))
        orders["similarity"] = [languages[index] for index in order]
    orders["name"] = languages
    return orders


def transfer_curves_figure(results: Results) -> Figure | None:
    """Scores over d for the chosen target with intervals; one line for each source."""
    frame = pd.DataFrame(results.transfer.curves)
    if frame.empty or not (frame["status"] == "measured").any():
        return None
    # Keep the page small: only the columns that are drawn, and fewer points where there are many curves.
    columns = ["target", "source", "d", "score", "low", "high"]
    frame = frame.loc[frame["status"] == "measured", columns]
    step = min(math.ceil(len(frame) / MOST_CURVE_POINTS), 4)
    frame = frame[frame.groupby(["target", "source"]).cumcount() % step == 0]
    targets, sources = sorted(frame["target"].unique()), sorted(frame["source"].unique())
    chosen = alt.param(name="target", value=targets[0])
    base = alt.Chart(frame).transform_filter("datum.target === target")
    x = token_axis("d", "reference tokens d", frame["d"])
    palette = categorical_palette("source", sources)
    colour = palette.colour()
    band = interval(base, x, "transfer score", palette, shown=_BOTH_ENDS, opacity=0.13)
    line = base.mark_line().encode(x=x, y=alt.Y("score:Q", title="transfer score"), color=colour)
    hover = tooltips("target", "source", "d:.3s", "score:+.3f", "low:+.2f", "high:+.2f")
    points = dots(base, x, "score:Q", palette, hover, size=34, opacity=1)
    chart = alt.layer(zero_line(), band, line, points).add_params(chosen).properties(height=300)
    known = (results.truth or {}).get("languages", {})
    text = {
        name: f"{name} ({known[name]['family']})" if known.get(name, {}).get("family") else name
        for name in targets
    }
    return Figure(
        "transfer-curves",
        "The score drifts with the reference budget",
        f"One target at a time; bands are {results.level:.0%} intervals that count the noise of checkpoints and of "
        "runs. A score quoted at one d alone would hide the drift.",
        (Panel(chart),),
        frame,
        (Control("target", "Target", tuple((name, text[name]) for name in targets)),),
        palette.legend(),
    )


def planted_figure(results: Results) -> Figure | None:
    """Measured scores against the planted relatedness of a generated corpus."""
    agreement = results.transfer.agreement
    if not agreement or not agreement["table"]:
        return None
    frame = pd.DataFrame(agreement["table"])
    frame["family"] = np.where(frame["same_family"].astype(bool), "same family", "different families")
    # Pairs share few planted values: shift the marks sideways in a fixed pattern, so that all are visible.
    width = max(float(np.ptp(frame["relatedness"])), 0.1) * 0.012
    rank = (
        frame.groupby("relatedness").cumcount()
        - (frame.groupby("relatedness")["score"].transform("size") - 1) / 2
    )
    most = max(float(rank.abs().max()), 1.0)
    frame["at"] = frame["relatedness"] + width * rank / most * min(most, 4)
    kinds = ["same family", "different families"]
    x = alt.X(
        "at:Q",
        title="planted relatedness",
        scale=alt.Scale(zero=False, nice=True, padding=12),
        axis=alt.Axis(tickCount=6),
    )
    palette = categorical_palette("family", kinds)
    columns = ["target", "source", "at", "relatedness", "score", "low", "high", "family"]
    base = alt.Chart(frame[columns])
    y_title = "measured transfer score"
    bars = interval(base, x, y_title, palette, shown=_BOTH_ENDS, opacity=0.45, strokeWidth=1.4)
    hover = tooltips("source", "target", "relatedness:.2f", "score:+.3f", "low:+.2f", "high:+.2f")
    points = dots(base, x, alt.Y("score:Q", title=y_title), palette, hover, size=52)
    return Figure(
        "planted",
        "Measured transfer against the planted truth",
        "The corpus is generated, so how related its languages are is known. Marks are spread sideways a "
        "little to be told apart.",
        (Panel(alt.layer(zero_line(), bars, points).properties(height=320)),),
        frame.drop(columns=["at", "family"]),
        legend=palette.legend(),
    )


def published_figure(results: Results) -> Figure | None:
    """The published matrix in the order of the study's languages, and both scores cell by cell."""
    found = results.transfer.published
    if not found:
        return None
    frame = pd.DataFrame(found["table"])
    cells = _cells(results.transfer)
    orders = _orders(results, cells, sorted(set(cells["target"]) | set(cells["source"])))
    named = [published.ISO_OF_MADLAD.get(name, name) for name in next(iter(orders.values()))]
    names = [name for name in named if name in set(frame["target"]) | set(frame["source"])]
    paper = published.published_transfer()
    paper = paper[paper["target"].isin(names) & paper["source"].isin(names)]
    paper = paper.assign(
        label=[f"{value:+.1f}".replace("-", "−") if value else "0.0" for value in paper["score"]]
    )
    limit = _saturation(paper["score"])
    look: dict[str, Any] = {"domain": False, "ticks": False, "grid": False}
    across = alt.Axis(orient="top", labelAngle=0 if len(names) <= 14 else -90, **look)
    base = alt.Chart(paper).encode(
        x=alt.X("source:N", title="source", sort=names, axis=across),
        y=alt.Y("target:N", title="target", sort=names, axis=alt.Axis(**look)),
        tooltip=tooltips("target", "source", "score:+.1f"),
    )
    colour = _signed_colour("published score", limit, 140)
    layers: list[Any] = [base.mark_rect(stroke="white", strokeWidth=1, cornerRadius=2).encode(color=colour)]
    if len(names) <= 12:
        ink = alt.condition(_dark(limit), alt.value("white"), alt.value(INK))
        layers.append(base.mark_text(fontSize=_label_size(9, len(names))).encode(text="label:N", color=ink))
    dots = (
        alt.Chart(frame)
        .mark_point(filled=True, size=60, color=OKABE_ITO[0])
        .encode(
            x=alt.X("published:Q", title="published score (2B)", scale=alt.Scale(nice=True, padding=12)),
            y=alt.Y("score:Q", title="this study", scale=alt.Scale(nice=True, padding=12)),
            tooltip=tooltips("source", "target", "score:+.3f", "published:+.1f"),
        )
    )
    low, high = found.get("low"), found.get("high")
    interval = f" ({span(low, high)})" if low is not None and high is not None else ""
    height = min(max(22 * len(names), 120), 440)
    return Figure(
        "beside-published",
        "Beside the published matrix",
        f"The paper's scores of the same languages, in the same order (Longpre et al. 2026, Fig. C.2, at 2B "
        f"parameters), and the two cell by cell: correlation {signed(found['correlation'])}{interval} over "
        f"{found['pairs']} pairs.",
        (
            Panel(alt.layer(*layers).properties(height=height), "Published"),
            Panel(dots.properties(height=240), "This study against published"),
        ),
        frame,
    )


TRANSFER_FIGURES = (matrix_figure, transfer_curves_figure, planted_figure, published_figure)
