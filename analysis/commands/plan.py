"""`mscale plan`: decisions from the results of a study or from the published figures."""

import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from mscale.commands import LOCAL_FOLDER, OrderedGroup, comma_list, number_map_parser
from mscale.errors import MscaleError
from sweeps.commands import plan_memory

if TYPE_CHECKING:
    from rich.table import Table

    from analysis.planning.answer import Answer
    from analysis.study.results import Results

# Numbers from here on are printed with a suffix: 33.6B.
COUNTS_FROM = 1e4
# Rows of a table that are printed; --json prints all.
MAX_ROWS = 20

RESULTS = click.option(
    "--results", "source", type=LOCAL_FOLDER, help="laws.json of your own study (mscale fit)."
)
PRIOR = click.option("--prior", type=click.Choice(["atlas"]), help="The published figures.")
JSON = click.option("--json", "as_json", is_flag=True, help="The answer as JSON.")


@click.group(cls=OrderedGroup)
def plan() -> None:
    """Decide: which languages together, how large, from where, which mixture."""


def results_or_published(source: Path | None, prior: str | None) -> "Results | None":
    """The results of a study, or None for the published figures; raises a usage error where neither is named."""
    if source is None and prior is None:
        raise click.UsageError("say what to answer from: --results my-study/laws.json, or --prior atlas")
    if source is None:
        return None
    from analysis.study.results import read_results

    return read_results(source)


def need_results(source: Path | None, what: str, why: str) -> "Results":
    """The results of a study; raises MscaleError with `why` the published figures cannot answer `what`."""
    if source is None:
        raise MscaleError(f"{what}: {why}; fit your own runs: --results my-study/laws.json")
    from analysis.study.results import read_results

    return read_results(source)


def print_answer(answer: "Answer", as_json: bool = False) -> None:
    """Prints the decision, the tables behind it and the reasons; or all of them as JSON."""
    import dataclasses
    import json

    from rich.console import Console
    from rich.markup import escape

    if as_json:
        from analysis.tables.records import to_json_value

        print(json.dumps(to_json_value(dataclasses.asdict(answer)), ensure_ascii=False, indent=1))
        return
    console = Console(width=None if sys.stdout.isatty() else 110)
    console.print(f"[bold]{escape(answer.text)}[/]")
    for title, rows in (("", answer.rows), *answer.more):
        if rows:
            console.print(table_of(rows, title))
            if len(rows) > MAX_ROWS:
                console.print(f"and {len(rows) - MAX_ROWS} more rows: --json shows all")
    console.print(f"From: {answer.basis}")
    for reason in answer.reasons:
        console.print(f"- {escape(reason)}")


def table_of(rows: Sequence[Mapping[str, Any]], title: str) -> "Table":
    """Rows as a table without empty columns. One or two rows of many columns are transposed."""
    from rich import box
    from rich.markup import escape
    from rich.table import Table

    style: Any = {"title": title or None, "title_justify": "left", "box": box.SIMPLE_HEAD, "pad_edge": False}
    names = [
        name
        for name in dict.fromkeys(name for row in rows for name in row)
        if any(row.get(name) not in (None, "") for row in rows)
    ]
    if len(rows) <= 2 and len(names) > 4:
        table = Table(show_header=False, **style)
        for name in names:
            table.add_row(heading(name), *(escape(format_value(name, row.get(name))) for row in rows))
        return table
    table = Table(**style)
    for name in names:
        # Wrap long numbers: a truncated number would be a wrong one.
        table.add_column(heading(name), overflow="fold", min_width=12 if name == names[0] else None)
    for row in rows[:MAX_ROWS]:
        table.add_row(*(escape(format_value(name, row.get(name))) for name in names))
    return table


def heading(name: str) -> str:
    """The name of a column as its heading."""
    return name.replace("_", " ")


def format_value(name: str, value: Any) -> str:
    """A value of the column `name` as text."""
    from analysis.text import count

    if value is None:
        return "-"
    if name.startswith("chance"):
        return f"{value:.0%}"
    if name == "basis":
        return str(value).partition(" (")[0]  # the reasons give the rest
    if not isinstance(value, float):
        return str(value)
    if abs(value) >= COUNTS_FROM:
        return count(value)
    value += 0.0  # −0.0 + 0.0 is 0.0
    return f"{value:,.4g}" if abs(value) >= 1 else f"{value:.2g}" if abs(value) < 0.01 else f"{value:.3g}"


@plan.command("languages")
@click.option("--target", required=True)
@click.option(
    "--flops",
    "--budget",
    "flops",
    type=float,
    help="Budget: how much of which, and where more hurts (needs a fit).",
)
@click.option("--params", type=float, help="With --flops: hold the size.")
@RESULTS
@PRIOR
@JSON
def plan_languages(
    target: str,
    flops: float | None,
    params: float | None,
    source: Path | None,
    prior: str | None,
    as_json: bool,
) -> None:
    """Which languages to train together with --target, and how much of them."""
    from analysis.planning.co_training import co_training
    from analysis.planning.languages import source_languages

    results = results_or_published(source, prior)
    if flops is None:
        print_answer(source_languages(target, results), as_json)
        return
    if not as_json:
        print_answer(source_languages(target, results, decide=results is None))
    if results is None:
        raise MscaleError(
            "plan languages --budget: how much of a source helps needs a fitted ATLAS law (its λ says how repeats "
            "fade, and is not published): --results my-study/laws.json"
        )
    print_answer(co_training(target, results, flops, params), as_json)


@plan.command("expand")
@click.option("--from", "few", type=float, required=True, help="Languages now.")
@click.option("--to", "many", type=float, required=True, help="Languages then.")
@click.option("--params", type=float, required=True)
@click.option("--tokens", type=float, required=True, help="Of all languages together.")
@RESULTS
@PRIOR
@JSON
def plan_expand(
    few: float,
    many: float,
    params: float,
    tokens: float,
    source: Path | None,
    prior: str | None,
    as_json: bool,
) -> None:
    """What more languages at the same loss take."""
    from analysis.planning.expand import expand

    print_answer(expand(few, many, params, tokens, results_or_published(source, prior)), as_json)


@plan.command("start")
@click.option("--target", required=True)
@click.option("--params", type=float, required=True)
@click.option("--tokens", type=float, required=True)
@RESULTS
@PRIOR
@JSON
def plan_start(
    target: str, params: float, tokens: float, source: Path | None, prior: str | None, as_json: bool
) -> None:
    """From scratch, or from a multilingual checkpoint."""
    from analysis.planning.start import start

    print_answer(start(target, params, tokens, results_or_published(source, prior)), as_json)


@plan.command("mixture")
@click.option("--targets", required=True, callback=comma_list)
@click.option("--weights", callback=comma_list, help="One per target; default: equal.")
@click.option("--flops", type=float, required=True)
@click.option("--worst", is_flag=True, help="Minimise the worst target's loss, not the mean.")
@click.option("--params", type=float, help="Hold the size; default: the best one.")
@click.option(
    "--unique",
    callback=number_map_parser("ca=2e9,es=5e9"),
    help="Tokens there are, ca=2e9,es=5e9; default: the study's.",
)
@RESULTS
@PRIOR
@JSON
def plan_mixture(
    targets: list[str],
    weights: list[str] | None,
    flops: float,
    worst: bool,
    params: float | None,
    unique: dict[str, float] | None,
    source: Path | None,
    prior: str | None,
    as_json: bool,
) -> None:
    """The mixture, size and tokens that minimise the targets' loss; needs a study of your own."""
    from analysis.planning.mixture import best_mixture

    try:
        numbers = None if weights is None else [float(weight) for weight in weights]
    except ValueError:
        raise click.BadParameter(
            f"expected numbers, found {','.join(weights or [])}", param_hint="--weights"
        ) from None
    found = need_results(
        source, "plan mixture", "a mixture needs fitted ATLAS laws, of which the paper prints no parameters"
    )
    answer = best_mixture(targets, flops, found, weights=numbers, worst=worst, params=params, unique=unique)
    print_answer(answer, as_json)


@plan.command("next")
@click.option(
    "--decision",
    required=True,
    type=click.Choice(["languages", "expand", "start", "mixture", "pairs"]),
    help="languages: which to train with --target; expand: what more languages cost; start: from scratch or from "
    "a checkpoint, for --target at --params; mixture: the best one "
    "for --target at --flops; pairs: all transfer scores.",
)
@click.option(
    "--target", "--targets", "targets", callback=comma_list, help="Languages that the decision is about."
)
@click.option("--flops", type=float, help="Of the run that a mixture is for.")
@click.option("--params", type=float, help="Of the model to start; default: the study's largest.")
@click.option("--budget", type=float, default=float("inf"), help="FLOPs for the next runs in all.")
@click.option("--runs", default=5, show_default=True)
@RESULTS
@PRIOR
@JSON
def plan_next(
    decision: str,
    targets: list[str] | None,
    flops: float | None,
    params: float | None,
    budget: float,
    runs: int,
    source: Path | None,
    prior: str | None,
    as_json: bool,
) -> None:
    """The runs that would most reduce the uncertainty of a decision, and their price."""
    from analysis.planning.next_runs import next_runs

    found = need_results(
        source, "plan next", "the next runs follow from your own, whose noise and laws they need"
    )
    answer = next_runs(
        decision, found, targets=targets or (), flops=flops, params=params, budget=budget, runs=runs
    )
    print_answer(answer, as_json)


@click.command()
@click.argument("quantity", default="tau")
@click.option("--effect", type=float, help="Its true value; default: about what the literature found.")
@click.option(
    "--seeds", default="1,2,4", show_default=True, callback=comma_list, help="Trunks a cell, to compare."
)
@click.option("--studies", default=40, show_default=True, help="Planted studies for each.")
def power(quantity: str, effect: float | None, seeds: list[str], studies: int) -> None:
    """How many runs tell QUANTITY (tau, lambda, phi, alpha, beta) from none: by planted studies."""
    from analysis.validation.power import power as simulate
    from analysis.validation.power import power_sentence

    table = simulate(quantity, effect=effect, seeds=[int(number) for number in seeds], studies=studies)
    print(table.to_string(index=False, float_format="{:.2f}".format))
    print(power_sentence(table, quantity))


plan.add_command(plan_memory)
