"""A chart of a fit: observed points with the fitted curves, or predicted against observed values."""

import altair as alt
import numpy as np
import pandas as pd

from analysis.fitting.compute_optimal import UNIQUE_TOKENS
from analysis.uncertainty.fitted import FittedLaw

_MAX_CURVES = 6  # values of N with a curve, in each panel
_MAX_PANELS = 12  # levels with a panel


def fit_chart(fit: FittedLaw) -> alt.TopLevelMixin:
    """Loss against D with a curve for each N where the law has an optimum, else predicted against observed values."""
    data = pd.DataFrame({**fit.problem.x, "observed": fit.problem.y, "level": fit.level})
    data["predicted"] = fit.problem.predict(fit.theta[None])[0]
    data = data[data["level"].isin(fit.levels[:_MAX_PANELS])]
    title = alt.TitleParams(fit.law.name, subtitle=fit.law.equation)
    if fit.law.optimum is None or len(data) == 0:
        return _predicted_against_observed(data, fit, title)
    size, tokens = fit.law.optimum
    curves = _curves(fit, size, tokens)
    size_colour = alt.Color(
        f"{size}:Q", scale=alt.Scale(type="log", scheme="viridis"), legend=alt.Legend(format="~s")
    )
    x = alt.X(
        f"{tokens}:Q", scale=alt.Scale(type="log"), title=f"{tokens} (tokens)", axis=alt.Axis(format="~s")
    )
    y_title = fit.columns.get(fit.law.response, fit.law.response)
    y = alt.Y("observed:Q", scale=alt.Scale(zero=False), title=y_title)
    tooltips = [alt.Tooltip(f"{name}:Q", format=".4g") for name in (size, tokens, "observed", "predicted")]
    points = alt.Chart().mark_point(filled=True).encode(x=x, y=y, color=size_colour, tooltip=tooltips)
    lines = (
        alt.Chart()
        .mark_line()
        .encode(x=x, y="curve:Q", color=size_colour, detail=f"{size}:N")
        .transform_filter("datum.curve")
    )
    both = pd.concat([data, curves], ignore_index=True)
    layered = alt.layer(lines, points, data=both).properties(width=260, height=200)
    if fit.per is None or len(fit.levels) == 1:
        return layered.properties(width=420, height=300, title=title)
    return layered.facet(alt.Facet("level:N", title=fit.per), columns=3).properties(title=title)


def _curves(fit: FittedLaw, size: str, tokens: str) -> pd.DataFrame:
    """The law along D at sizes that were run; other variables at their smallest observed value, no repeated data."""
    parts = []
    for number, level in enumerate(fit.levels[:_MAX_PANELS]):
        rows = fit.problem.cells[number].rows
        sizes = np.unique(fit.problem.x[size][rows])
        sizes = sizes[np.unique(np.linspace(0, len(sizes) - 1, min(_MAX_CURVES, len(sizes))).astype(int))]
        observed = fit.problem.x[tokens][rows]
        grid = np.geomspace(observed.min(), observed.max() * 1.0001, 40)
        x = {name: np.full(len(sizes) * 40, values[rows].min()) for name, values in fit.problem.x.items()}
        x[size], x[tokens] = np.repeat(sizes, 40), np.tile(grid, len(sizes))
        x |= {name: x[tokens] for name in UNIQUE_TOKENS if name in x}  # one epoch at most
        value = fit.evaluate(fit.theta[None], number, x)[0]
        parts.append(pd.DataFrame({size: x[size], tokens: x[tokens], "curve": value, "level": level}))
    return pd.concat(parts, ignore_index=True)


def _predicted_against_observed(
    data: pd.DataFrame, fit: FittedLaw, title: alt.TitleParams
) -> alt.TopLevelMixin:
    """Observed against predicted values, with the diagonal."""
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
