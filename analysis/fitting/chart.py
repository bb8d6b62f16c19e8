"""A fit as a picture: its points, its curves, and how far the points lie from them."""

from typing import Any

import altair as alt
import numpy as np
import pandas as pd

from analysis.fitting.compute_optimal import UNIQUE

CURVES = 6  # values of N that get a curve
PANELS = 12  # levels that get a panel


def fit_chart(fit: Any) -> alt.TopLevelMixin:
    """Loss against D with a curve for each N where the law trades them, else predicted against observed."""
    data = pd.DataFrame({**fit.problem.x, "observed": fit.problem.y, "level": fit.level})
    data["predicted"] = fit.problem.predict(fit.theta[None])[0]
    data = data[data["level"].isin(fit.levels[:PANELS])]
    title = alt.TitleParams(fit.law.name, subtitle=fit.law.equation)
    if fit.law.optimum is None or len(data) == 0:
        return _against(data, fit, title)
    size, tokens = fit.law.optimum
    curves = _curves(fit, size, tokens)
    colour = alt.Color(
        f"{size}:Q", scale=alt.Scale(type="log", scheme="viridis"), legend=alt.Legend(format="~s")
    )
    x = alt.X(
        f"{tokens}:Q", scale=alt.Scale(type="log"), title=f"{tokens} (tokens)", axis=alt.Axis(format="~s")
    )
    y_title = fit.columns.get(fit.law.response, fit.law.response)
    y = alt.Y("observed:Q", scale=alt.Scale(zero=False), title=y_title)
    hints = [alt.Tooltip(f"{name}:Q", format=".4g") for name in (size, tokens, "observed", "predicted")]
    points = alt.Chart().mark_point(filled=True).encode(x=x, y=y, color=colour, tooltip=hints)
    lines = (
        alt.Chart()
        .mark_line()
        .encode(x=x, y="curve:Q", color=colour, detail=f"{size}:N")
        .transform_filter("datum.curve")
    )
    both = pd.concat([data, curves], ignore_index=True)
    layered = alt.layer(lines, points, data=both).properties(width=260, height=200)
    if fit.per is None or len(fit.levels) == 1:
        return layered.properties(width=420, height=300, title=title)
    return layered.facet(alt.Facet("level:N", title=fit.per), columns=3).properties(title=title)


def _curves(fit: Any, size: str, tokens: str) -> pd.DataFrame:
    """The law along D at the sizes that were run, other variables at their smallest (no other languages)."""
    parts = []
    for number, level in enumerate(fit.levels[:PANELS]):
        rows = fit.problem.cells[number].rows
        sizes = np.unique(fit.problem.x[size][rows])
        sizes = sizes[np.unique(np.linspace(0, len(sizes) - 1, min(CURVES, len(sizes))).astype(int))]
        seen = fit.problem.x[tokens][rows]
        along = np.geomspace(seen.min(), seen.max() * 1.0001, 40)
        x = {name: np.full(len(sizes) * 40, values[rows].min()) for name, values in fit.problem.x.items()}
        x[size], x[tokens] = np.repeat(sizes, 40), np.tile(along, len(sizes))
        x |= {name: x[tokens] for name in UNIQUE if name in x}  # nothing repeats along a curve
        value = fit.evaluate(fit.theta[None], number, x)[0]
        parts.append(pd.DataFrame({size: x[size], tokens: x[tokens], "curve": value, "level": level}))
    return pd.concat(parts, ignore_index=True)


def _against(data: pd.DataFrame, fit: Any, title: alt.TitleParams) -> alt.TopLevelMixin:
    ends = [
        float(data[["observed", "predicted"]].min().min()),
        float(data[["observed", "predicted"]].max().max()),
    ]
    line = (
        alt.Chart(pd.DataFrame({"end": ends}))
        .mark_line(color="grey", strokeDash=[4, 4])
        .encode(x="end", y="end")
    )
    points = (
        alt.Chart(data)
        .mark_point(filled=True)
        .encode(
            x=alt.X("predicted:Q", scale=alt.Scale(zero=False)),
            y=alt.Y("observed:Q", scale=alt.Scale(zero=False)),
            color=alt.Color("level:N", title=fit.per or "") if fit.per else alt.value("#4c78a8"),
        )
    )
    return (line + points).properties(width=320, height=320, title=title)
