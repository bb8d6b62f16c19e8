"""Figures for planning: cost of more languages, iso-loss frontiers, training from scratch against continuing."""

from dataclasses import dataclass
from typing import Any

import altair as alt
import numpy as np
import pandas as pd

from analysis.report.plots import (
    Figure,
    Palette,
    Panel,
    categorical_palette,
    dots,
    interval,
    log_ticks,
    loss_axis,
    token_axis,
    tooltips,
    zero_line,
)
from analysis.study.results import CapacityResult, Results
from analysis.tables.published import published_expansion
from analysis.text import count


@dataclass(frozen=True)
class UniformMixtures:
    """Uniform mixtures of one size.

    Attributes:
      mean: mean loss over the languages that all of the mixtures hold; columns K, tokens (of all languages, as text),
        loss. line: the same by the fitted capacity law.
    """

    title: str
    mean: pd.DataFrame
    line: pd.DataFrame


def _uniform_mixtures(answer: CapacityResult) -> tuple[list[UniformMixtures], list[str]]:
    """The mixtures of every size with several K on the same total tokens; and these totals, as text."""
    frame, lines = pd.DataFrame(answer.points), pd.DataFrame(answer.lines)
    if frame.empty or frame["K"].nunique() < 2:
        return [], []
    for part in (frame, lines):
        if len(part):
            part["budget"] = part["tokens"].map(lambda tokens: float(f"{tokens:.2g}"))
    together = frame.groupby(["scale", "budget"], as_index=False).agg(K=("K", "nunique"))
    budgets = sorted(set(together.loc[together["K"] >= 2, "budget"]))
    found = []
    for scale, part in sorted(frame.groupby("scale"), key=lambda item: item[1]["params"].iloc[0]):
        common = set.intersection(*part.groupby("K")["language"].agg(set))
        if len(lines):  # average the points over the languages that the law is fitted to
            common &= set(lines.loc[lines["scale"] == scale, "language"])
        part = part[part["language"].isin(common)]
        # Keep budgets with two or more K.
        spread = part.groupby("budget")["K"].nunique()
        part = part[part["budget"].isin(spread[spread >= 2].index)]
        mean = part.groupby(["K", "budget"], as_index=False).agg(
            loss=("loss", "mean"), languages=("language", "nunique")
        )
        mean = mean[mean["languages"] == len(common)]
        if mean.empty:
            continue
        line = pd.DataFrame(columns=["K", "tokens", "loss"])
        if len(lines):
            line = lines[(lines["scale"] == scale) & lines["language"].isin(common)]
            line = line[line["budget"].isin(budgets)]
            line = line.groupby(["K", "budget"], as_index=False).agg(loss=("loss", "mean"))
            line["tokens"] = line["budget"].map(count)
        names = ", ".join(sorted(common)[:4]) + ("…" if len(common) > 4 else "")
        title = f"{scale} · {count(part['params'].iloc[0])} · mean of {names}"
        found.append(UniformMixtures(title, mean.assign(tokens=mean["budget"].map(count)), line))
    return found, [count(value) for value in budgets]


def _over_languages(part: UniformMixtures, palette: Palette, y: alt.Y, tooltip: list[alt.Tooltip]) -> Panel:
    """Points and the fitted law over K, with one colour for each total of tokens."""
    x = alt.X(
        "K:Q",
        title="languages K, uniform",
        axis=alt.Axis(tickMinStep=1),
        scale=alt.Scale(nice=False, padding=10),
    )
    encoding = {"x": x, "y": y, "color": palette.colour()}
    layers = [dots(alt.Chart(part.mean), x, y, palette, tooltip, size=60, opacity=1)]
    if len(part.line):
        layers.insert(0, alt.Chart(part.line).mark_line(strokeWidth=1.6, clip=True).encode(**encoding))
    return Panel(alt.layer(*layers).properties(height=230), part.title)


def capacity_figure(results: Results) -> Figure | None:
    """Loss over the number of languages K, averaged over the languages that all mixtures of a size hold."""
    answer = results.capacity
    sizes, budgets = _uniform_mixtures(answer)
    if not sizes:
        return None
    palette = categorical_palette("tokens", budgets)
    tooltip = tooltips("K:", ("tokens", "tokens in all"), "loss:.4f")
    return Figure(
        "capacity",
        "Loss over the number of languages",
        "Cooled loss against the number of languages that share the tokens; lines are eq. 7"
        + ("." if answer.lines else ", which was not fitted."),
        tuple(_over_languages(part, palette, loss_axis(title="mean cooled loss"), tooltip) for part in sizes),
        pd.DataFrame(answer.points),
        legend=palette.legend(" tokens in all"),
        width=300,
    )


def relative_loss_figure(results: Results) -> Figure | None:
    """Loss relative to that with the fewest languages on the same total tokens, over K; one panel for each N."""
    sizes, budgets = _uniform_mixtures(results.capacity)
    sizes = [part for part in sizes if len(part.line)]
    if not sizes:
        return None
    fewest = min(float(part.line["K"].min()) for part in sizes)
    panels = []
    for part in sizes:
        first = part.line.loc[part.line["K"] == fewest].set_index("tokens")["loss"]
        mean, line = (
            table.assign(relative=table["loss"] / table["tokens"].map(first) - 1)
            for table in (part.mean, part.line)
        )
        panels.append(UniformMixtures(part.title, mean, line))
    palette = categorical_palette("tokens", budgets)
    less = "one language" if fewest == 1 else f"{fewest:g} languages"
    y = alt.Y(
        "relative:Q",
        title=f"loss over that of {less}",
        axis=alt.Axis(format="+.0%"),
        scale=alt.Scale(zero=False),
    )
    tooltip = tooltips("K:", ("tokens", "tokens in all"), "relative:+.1%", "loss:.4f")
    columns = ["size", "K", "tokens", "loss", "relative"]
    data = pd.concat([part.mean.assign(size=part.title.split(" · ")[0]) for part in panels])
    return Figure(
        "relative-loss",
        "Relative loss over K, N and D",
        f"The same losses, relative to what eq. 7 gives {less} of that size on as many tokens in all. Each language "
        "has its Kth part of them.",
        tuple(_over_languages(part, palette, y, tooltip) for part in panels),
        data[columns],
        legend=palette.legend(" tokens in all"),
        width=300,
    )


def multipliers_figure(results: Results) -> Figure | None:
    """Growth of parameters, tokens and compute that keeps the loss, of the study and as published."""
    answer = results.capacity
    frame = published_expansion().assign(whose="published (2B)")
    if answer.identified:
        frame = pd.concat(
            [frame, pd.DataFrame(answer.multipliers).assign(whose="this study")], ignore_index=True
        )
    # Both levels, so that "published" has the same colour where it is the only one.
    palette = categorical_palette("whose", ["this study", "published (2B)"])
    panels = []
    for name, title in (("N", "parameters"), ("D_tot", "tokens in all"), ("C", "compute")):
        x = alt.X(
            "ratio:Q",
            title="times as many languages",
            scale=alt.Scale(type="log", base=2, nice=False, padding=12),
            axis=alt.Axis(values=[2, 4, 8, 16]),
        )
        y_title = f"times the {title}"
        part = pd.DataFrame(
            {
                "ratio": frame["ratio"],
                "whose": frame["whose"],
                "value": frame[name],
                "low": frame.get(f"{name}_low", np.nan),
                "high": frame.get(f"{name}_high", np.nan),
            }
        )
        shown_values = part[["value", "low", "high"]].to_numpy(dtype=float)
        bounds = [min(1.0, float(np.nanmin(shown_values))) * 0.95, float(np.nanmax(shown_values)) * 1.08]
        scale = alt.Scale(type="log", nice=False, domain=bounds)
        y = alt.Y("value:Q", title=y_title, scale=scale, axis=alt.Axis(values=log_ticks(bounds)))
        base = alt.Chart(part)
        line = base.mark_line(opacity=0.6).encode(x=x, y=y, color=palette.colour())
        bar = interval(base, x, y_title, palette, shown="isValid(datum.low)", strokeWidth=2, opacity=0.6)
        hover = tooltips("whose", ("ratio:", "times the languages"), "value:.3f", "low:.3f", "high:.3f")
        dot = dots(base, x, y, palette, hover, size=60, opacity=1)
        panels.append(Panel(alt.layer(line, bar, dot).properties(height=220), title.capitalize()))
    return Figure(
        "multipliers",
        "Growth that keeps the loss",
        f"Bars are {results.level:.0%} intervals; the paper prints none. A compute-optimal start is assumed.",
        tuple(panels),
        frame,
        legend=palette.legend() if answer.identified else palette.legend()[1:],
        width=240,
    )


def iso_loss_figure(results: Results) -> Figure | None:
    """Iso-loss curves of parameters against tokens, with the size below which no amount of data keeps the loss."""
    frame, start = pd.DataFrame(results.capacity.iso), results.capacity.start
    if frame.empty or start is None:
        return None
    frame = frame[frame["D_tot"] < 40]
    frame["languages"] = "×" + frame["ratio"].astype(str)
    order = [f"×{ratio}" for ratio in sorted(frame["ratio"].unique())]
    palette = categorical_palette("languages", order)
    colour = palette.colour()
    # A limit far below all curves stays out of the range of the axis.
    domain = [max(float(frame["limit"].min()), float(frame["s"].min()) / 4), float(frame["s"].max())]
    x = alt.X(
        "s:Q",
        title="times the parameters",
        scale=alt.Scale(type="log", nice=False, domain=domain),
        axis=alt.Axis(values=log_ticks(domain, 8)),
    )
    y = alt.Y(
        "D_tot:Q",
        title="times the tokens in all",
        scale=alt.Scale(type="log", nice=False),
        axis=alt.Axis(values=log_ticks(frame["D_tot"], 8)),
    )
    line = (
        alt.Chart(frame)
        .mark_line(strokeWidth=2)
        .encode(
            x=x,
            y=y,
            color=colour,
            tooltip=tooltips(
                "languages", ("s:.2f", "parameters ×"), ("D_tot:.2f", "tokens ×"), ("C:.2f", "compute ×")
            ),
        )
    )
    limits = frame.groupby(["languages", "limit"], as_index=False).size()
    rule = alt.Chart(limits).mark_rule(strokeDash=[3, 3], clip=True).encode(x="limit:Q", color=colour)
    cheapest = frame.loc[frame.groupby("languages")["C"].idxmin()]
    dot = (
        alt.Chart(cheapest)
        .mark_point(filled=True, size=90, opacity=1)
        .encode(x=x, y=y, color=colour, shape=palette.shape())
    )
    return Figure(
        "iso-loss",
        "Iso-loss frontier",
        "Each curve keeps the loss as languages multiply; the mark is its least compute, the dashed line the growth of "
        "parameters below which no amount of data can, where it is near. The start is the study's middle size, where "
        f"size is responsible for {start['share']:.0%} of the loss that training can still lower; at a "
        f"compute-optimal start it would be {start['optimal']:.0%}, and the marks the growth given above.",
        (Panel(alt.layer(rule, line, dot).properties(height=300)),),
        frame.drop(columns=["languages"]),
        legend=palette.legend(" languages"),
    )


def crossover_figure(results: Results) -> Figure | None:
    """Loss from scratch minus that of continuing over tokens; one panel for each size."""
    frame = pd.DataFrame(results.crossover.gaps)
    if frame.empty:
        return None
    languages = sorted(frame["language"].unique())
    found = pd.DataFrame([row for row in results.crossover.table if row["status"] == "measured"])
    palette = categorical_palette("language", languages)
    panels = []
    sizes: dict[Any, float] = {row["scale"]: row["params"] for row in results.crossover.table}
    for scale, part in sorted(frame.groupby("scale"), key=lambda item: sizes.get(item[0], 0)):
        colour = palette.colour()
        x = token_axis("tokens", "tokens of the language", frame["tokens"])
        base = alt.Chart(part)
        y_title = "loss from scratch − continued, nats"
        band = interval(base, x, y_title, palette, opacity=0.14)
        line = base.mark_line().encode(
            x=x,
            y=alt.Y("gap:Q", title=y_title),
            color=colour,
            tooltip=tooltips("language", "tokens:.3s", "gap:+.4f", "low:+.4f", "high:+.4f"),
        )
        layers = [zero_line(), band, line]
        if len(found):
            here = found[found["scale"] == scale][["language", "tokens", "low", "high"]].assign(zero=0)
            layers.append(
                alt.Chart(here)
                .mark_point(filled=True, size=80, opacity=1, shape="diamond", stroke="white")
                .encode(
                    x=x,
                    y="zero:Q",
                    color=colour,
                    tooltip=tooltips("language", ("tokens:.3s", "crossover"), "low:.3s", "high:.3s"),
                )
            )
        panels.append(
            Panel(
                alt.layer(*layers).properties(height=280), f"{scale} · {count(sizes.get(scale))} parameters"
            )
        )
    return Figure(
        "crossover",
        "Pretrain or continue",
        "While a curve is above zero, continuing the multilingual checkpoint is ahead; where it crosses (diamond), "
        f"a model from scratch overtakes it. Bands are {results.level:.0%} intervals.",
        tuple(panels),
        frame,
        legend=palette.legend(),
        width=360,
    )


PLANNING_FIGURES = (
    capacity_figure,
    relative_loss_figure,
    multipliers_figure,
    iso_loss_figure,
    crossover_figure,
)
