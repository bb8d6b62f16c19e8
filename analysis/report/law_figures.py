"""Figures of loss curves and of fitted laws with their points."""

import math

import altair as alt
import numpy as np
import pandas as pd

from analysis.report.plots import (
    Control,
    Figure,
    Palette,
    Panel,
    categorical_palette,
    loss_axis,
    size_palette,
    token_axis,
    tooltips,
    with_size_label,
)
from analysis.study.results import Results
from analysis.text import count

_MIXTURE_KINDS = {
    "mono": "alone",
    "bilingual": "50/50 pair",
    "uniform": "uniform mixture",
    "repeated": "repeated data",
    "unimax": "UniMax",
    "continued": "continued",
    "mixed": "other mixture",
}


def loss_curves_figure(results: Results) -> Figure | None:
    """Trunks (lines) and cooled branches (dots) of the chosen language; one panel for each size."""
    frame = pd.DataFrame(results.loss_curves)
    if frame.empty:
        return None
    languages = sorted(frame["language"].unique())
    frame["kind"] = frame["kind"].map(_MIXTURE_KINDS)
    kinds = [kind for kind in _MIXTURE_KINDS.values() if kind in set(frame["kind"])]
    main = max(languages, key=lambda name: len(frame[frame["language"] == name]))
    columns = ["language", "kind", "mixture", "run", "tokens", "loss", "phase", "bits_per_byte"]
    panels = []
    palette = categorical_palette("kind", kinds)
    x = token_axis("tokens", "tokens, all languages", frame["tokens"])
    for scale, part in sorted(frame.groupby("scale"), key=lambda item: item[1]["params"].iloc[0]):
        chosen = alt.param(name="language", value=main)
        base = alt.Chart(part[columns]).transform_filter("datum.language === language")
        hover = tooltips(
            "mixture",
            ("kind", "run"),
            "tokens:.3s",
            "loss:.4f",
            ("bits_per_byte:.4f", "bits per byte"),
            "phase",
        )
        lines = (
            base.transform_filter("datum.phase === 'stable'")
            .mark_line(strokeWidth=1.5, opacity=0.75)
            .encode(x=x, y=loss_axis(), color=palette.colour(), detail="run:N", tooltip=hover)
        )
        dots = (
            base.transform_filter("datum.phase === 'end'")
            .mark_point(size=48, filled=True, opacity=0.95, stroke="white", strokeWidth=0.8)
            .encode(x=x, y=loss_axis(), color=palette.colour(), shape=palette.shape(), tooltip=hover)
        )
        chart = (lines + dots).add_params(chosen).properties(height=230)
        panels.append(Panel(chart, f"{scale} · {count(part['params'].iloc[0])} parameters"))
    control = Control(
        "language", "Language", tuple((name, name) for name in [main, *[x for x in languages if x != main]])
    )
    return Figure(
        "loss-curves",
        "Trunks and their cooled branches",
        "Lines are trunks at a constant learning rate after warm-up, dots are cooled branches off them. The two "
        "are never compared with each other: cooling alone lowers the loss by as much as the effects looked for.",
        tuple(panels),
        frame.drop(columns=["params"]),
        (control,),
        palette.legend(),
        width=300,
    )


def predicted_observed_figure(results: Results) -> Figure | None:
    """Observed against predicted cooled losses; one panel for each law."""
    frame = pd.DataFrame(results.fit_points)
    if frame.empty:
        return None
    frame = with_size_label(frame)
    palette = size_palette(frame)
    marks = Palette(
        "mixed", ("alone", "mixture", "repeated"), ("#3a4350",) * 3, ("circle", "diamond", "triangle-up")
    )
    names = {"chinchilla": "Chinchilla, languages alone", "atlas": "ATLAS, all mixtures from scratch"}
    panels = []
    for law, title in names.items():
        part = frame[frame["law"] == law].copy()
        if part.empty:
            continue
        part["mixed"] = np.where(
            part["epochs"] > 1.5, "repeated", np.where(part["K"] > 1, "mixture", "alone")
        )
        part["error"] = 100 * (part["observed"] / part["predicted"] - 1)
        low = float(part[["observed", "predicted"]].min().min()) * 0.98
        high = float(part[["observed", "predicted"]].max().max()) * 1.02
        scale = alt.Scale(domain=[low, high], nice=False, zero=False)
        diagonal = (
            alt.Chart(pd.DataFrame({"predicted": [low, high], "observed": [low, high]}))
            .mark_line(color="#9aa4b0", strokeDash=[4, 3], strokeWidth=1)
            .encode(x="predicted:Q", y="observed:Q")
        )
        dots = (
            alt.Chart(
                part[
                    [
                        "language",
                        "mixture",
                        "size",
                        "params",
                        "tokens",
                        "epochs",
                        "mixed",
                        "observed",
                        "predicted",
                        "error",
                    ]
                ]
            )
            .mark_point(filled=True, size=46, opacity=0.85)
            .encode(
                x=alt.X("predicted:Q", title="predicted loss", scale=scale, axis=alt.Axis(tickCount=7)),
                y=alt.Y("observed:Q", title="observed loss", scale=scale, axis=alt.Axis(tickCount=7)),
                color=palette.colour(),
                shape=marks.shape(),
                tooltip=tooltips(
                    "language",
                    "mixture",
                    ("size", "parameters"),
                    "tokens:.3s",
                    "epochs:.1f",
                    "observed:.4f",
                    "predicted:.4f",
                    ("error:+.2f", "off by, %"),
                ),
            )
        )
        panels.append(Panel((diagonal + dots).properties(height=330), title))
    if not panels:
        return None
    return Figure(
        "predicted-observed",
        "Fitted laws against their points",
        "Each mark is a cooled loss of one language. On the dashed line the law is exact.",
        tuple(panels),
        frame.drop(columns=["size"]),
        legend=(*palette.legend(), *marks.legend()),
        width=360,
    )


def chinchilla_figure(results: Results) -> Figure | None:
    """The Chinchilla law over tokens for each size, with the cooled losses; one panel for each language."""
    law = results.laws["chinchilla"]
    frame = pd.DataFrame([row for row in results.fit_points if row["law"] == "chinchilla"])
    if frame.empty or not law.fitted:
        return None
    values = {entry["name"]: entry["estimate"] for entry in law.parameters}
    frame = with_size_label(frame)
    palette = size_palette(frame)
    panels = []
    shared_y = alt.Scale(
        zero=False, domain=[float(frame["observed"].min()) * 0.97, float(frame["observed"].max()) * 1.03]
    )
    for language, part in list(frame.groupby("language"))[:6]:

        def get(name: str, language: str = str(language)) -> float:
            return values.get(f"{name}[{language}]", values.get(name, math.nan))

        grid = np.geomspace(part["target_tokens"].min() * 0.8, part["target_tokens"].max() * 1.25, 30)
        lines = pd.concat(
            pd.DataFrame(
                {
                    "target_tokens": grid,
                    "params": params,
                    "predicted": get("E")
                    + get("A") * params ** -get("alpha")
                    + get("B") * grid ** -get("beta"),
                }
            )
            for params in sorted(part["params"].unique())
        )
        lines = with_size_label(lines)
        colour = palette.colour()
        x = token_axis("target_tokens", "tokens", frame["target_tokens"])
        curve = (
            alt.Chart(lines)
            .mark_line(strokeWidth=1.6, clip=True)
            .encode(x=x, y=alt.Y("predicted:Q", scale=shared_y, title="cooled loss"), color=colour)
        )
        dots = (
            alt.Chart(part[["target_tokens", "observed", "size", "params", "run"]])
            .mark_point(filled=True, size=50, opacity=1)
            .encode(
                x=x,
                y=alt.Y("observed:Q", scale=shared_y, title="cooled loss"),
                color=colour,
                tooltip=tooltips(
                    ("size", "parameters"), ("target_tokens:.3s", "tokens"), "observed:.4f", "run"
                ),
            )
        )
        panels.append(Panel((curve + dots).properties(height=230), str(language)))
    return Figure(
        "chinchilla",
        "Size and data, languages alone",
        "Dots are cooled losses, lines the Chinchilla law with α and β shared by the languages.",
        tuple(panels),
        frame.drop(columns=["size"]),
        legend=palette.legend(),
        width=300,
    )


LAW_FIGURES = (loss_curves_figure, predicted_observed_figure, chinchilla_figure)
