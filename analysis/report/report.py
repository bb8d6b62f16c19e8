"""Analyses a study, writes the results, and draws them as one self-contained HTML page and a terminal summary."""

import json
from collections.abc import Mapping, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

import jinja2
import pandas as pd
from rich.table import Table

from analysis.planning.mixture import advice
from analysis.report import law_figures, page, planning_figures, plots, transfer_figures
from analysis.report.findings import headlines, recommendations
from analysis.study.analyse import analyse_tables
from analysis.study.read import read_inputs
from analysis.study.results import Results
from analysis.text import count
from analysis.vega import scripts
from mscale.files import atomic_write


def analyse(
    observations: pd.DataFrame,
    exposure: pd.DataFrame | None = None,
    truth: Mapping[str, Any] | None = None,
    **options: Any,
) -> Results:
    """The results that the page shows: all analyses, and the recommended mixture.

    Args:
      observations, exposure, truth, options: as for `analysis.study.analyse.analyse_tables`.
    """
    return analyse_tables(observations, exposure, truth, advise=advice, **options)


def analyse_study(
    path: str | Path | Sequence[str | Path],
    truth: str | Path | None = None,
    study: Mapping[str, Any] | None = None,
    *,
    split: str | None = None,
    vocabulary: str | None = None,
    **options: Any,
) -> Results:
    """Analyses a study in files: a table of observations, or the folder of a study.

    Args:
      path: of the table or folder; several are one study. truth: of truth.json of a generated corpus.
      study: what the executor knows, in place of what it recorded beside the tables.
      split, vocabulary: the one to use, where the table has several; the other rows are counted as exclusions.
      options: as for `analysis.study.analyse.analyse_tables`, such as overlap and premiums.

    Raises:
      MscaleError: invalid tables, or several splits or vocabularies and none named.
    """
    paths = [path] if isinstance(path, str | Path) else path
    inputs = read_inputs(
        [Path(one) for one in paths], None if truth is None else Path(truth), split, vocabulary
    )
    return analyse(
        inputs.observations,
        inputs.exposure,
        inputs.truth,
        study=inputs.executor if study is None else study,
        notes=inputs.notes,
        exclusions=inputs.exclusions,
        **options,
    )


def write_report(results: Results, out_html: str | Path, vega_scripts: str | None = None) -> None:
    """Draws results as one HTML file that needs no network, written atomically.

    Args:
      vega_scripts: the charting scripts, if they are made already (`analysis.vega.scripts`).

    Raises:
      MscaleError: the file cannot be written.
    """
    atomic_write(out_html, render_page(results, vega_scripts))


def draw_figures(results: Results) -> dict[str, plots.Figure]:
    """The figures for which the results hold data, by name."""
    made = (
        build(results)
        for build in (
            *law_figures.LAW_FIGURES,
            *transfer_figures.TRANSFER_FIGURES,
            *planning_figures.PLANNING_FIGURES,
        )
    )
    return {figure.name: figure for figure in made if figure is not None}


def render_page(results: Results, vega_scripts: str | None = None) -> str:
    """The page as HTML text, with figures and charting scripts inlined."""
    figures = draw_figures(results)
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("analysis.report"),
        autoescape=True,
        trim_blocks=True,
        undefined=jinja2.StrictUndefined,
    )

    def source(name: str) -> str:
        return environment.loader.get_source(environment, name)[0]  # type: ignore[union-attr]

    embedded = {
        name: {"specs": figure.specs(), "csv": figure.data.to_csv(index=False, float_format="%.6g")}
        for name, figure in figures.items()
    }
    return environment.get_template("report.html.j2").render(
        **page.page_context(results),
        figures=figures,
        shapes=plots.SHAPE_PATHS,
        # Matrix and comparison side by side, unless the matrix needs the whole width.
        pair=bool({"planted", "beside-published"} & set(figures))
        and len(results.study.trained_languages) <= 12,
        # "</" would end the script element whatever the quotes around it.
        figures_json=json.dumps(embedded, allow_nan=False, separators=(",", ":")).replace("</", "<\\/"),
        bundle=vega_scripts or scripts(),
        css=source("report.css"),
        js=source("report.js"),
        version=_version(),
    )


def summary_table(results: Results) -> Table:
    """The headlines, and the first runs to make next, as a table for the terminal."""
    study = results.study
    table = Table(
        title=f"{study.title}: {study.runs} runs, {count(study.tokens)} tokens, {count(study.flops)} FLOPs",
        title_justify="left",
        show_lines=True,
        expand=False,
    )
    table.add_column("What", style="bold", no_wrap=True)
    table.add_column("Finding", ratio=1)
    table.add_column("How sure", no_wrap=True)
    colours = {"clear": "green", "likely": "cyan", "unclear": "yellow", "not identified": "bright_black"}
    for item in headlines(results):
        table.add_row(item.title, item.text, f"[{colours[item.sure]}]{item.sure}[/]")
    for item in [item for item in recommendations(results) if item.group == "What to run next"][:2]:
        table.add_row("Run next", item.text, "")
    return table


def _version() -> str:
    try:
        return metadata.version("mscale")
    except metadata.PackageNotFoundError:
        return "(not installed)"
