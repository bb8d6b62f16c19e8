"""Many runs: plan, run, status, collect."""

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

from mscale.cli import FOLDER, LANGUAGES, Commands, cli


@cli.group(cls=Commands)
def sweep() -> None:
    """Plan, run and collect a study of many runs."""


STUDIES = ("demo", "gpu-day", "tpu-week", "atlas")


def study_options(command: Callable) -> Callable:
    """The arguments that say which study is meant."""
    for option in (
        click.option("--seed", default=0, show_default=True),
        LANGUAGES,
        click.option("--truth", type=FOLDER, help="truth.json of a generated corpus, for its families."),
        click.option("--store", type=FOLDER, help="The token store, from mscale pack."),
        click.argument("study", type=click.Choice(STUDIES)),
    ):
        command = option(command)
    return command


def make_study(
    name: str, store: Path | None, truth: Path | None, languages: list[str] | None, seed: int
) -> Any:
    """A built-in study over a token store; all but the demo can be planned without one."""
    from mscale.files import read_json
    from mscale.store import open_store
    from sweeps.studies import make

    options: dict[str, Any] = {"seed": seed}
    if name == "demo":
        options["languages"] = languages
        if truth is not None:
            described = read_json(truth, what="ground truth")["languages"]
            options["families"] = {language: facts["family"] for language, facts in described.items()}
    elif languages is not None or truth is not None:
        raise click.UsageError(f"--languages and --truth are for the demo, not for {name}")
    return make(name, None if store is None else open_store(store), **options)


@sweep.command("plan")
@study_options
@click.option("--accelerator", help="Such as h200: device-hours, memory and meshes.")
@click.option("--mfu", default=0.4, show_default=True, help="Share of its peak that training reaches.")
@click.option("--slices", default=1, show_default=True, help="Slices at work at once.")
@click.option("--plot", type=FOLDER, help="A file to draw the bill into: .png, .svg or .html.")
def sweep_plan(
    study: str,
    store: Path | None,
    truth: Path | None,
    languages: list[str] | None,
    seed: int,
    accelerator: str | None,
    mfu: float,
    slices: int,
    plot: Path | None,
) -> None:
    """Print what a study would run and what it costs."""
    from rich.console import Console

    from sweeps.bill import plan_table, save_bill
    from sweeps.studies import printed_cells

    if study != "demo" and accelerator is None:
        accelerator = "h200"
    made = make_study(study, store, truth, languages, seed)
    table = plan_table(made, accelerator=accelerator, mfu=mfu, slices=slices, printed=printed_cells(study))
    Console(width=None if sys.stdout.isatty() else 140).print(table)
    if plot is not None:
        save_bill(made, plot, accelerator, mfu)
        print(plot)


@sweep.command("run")
@study_options
@click.option("--root", type=FOLDER, required=True, help="The study's folder; called again it continues.")
@click.option("--workers", type=int, help="Processes; default: one per core.")
def sweep_run(
    study: str,
    store: Path | None,
    truth: Path | None,
    languages: list[str] | None,
    seed: int,
    root: Path,
    workers: int | None,
) -> None:
    """Train all runs of a study that are not done, then collect its tables."""
    from sweeps.local import run

    run(make_study(study, store, truth, languages, seed), root, workers=workers)
    print_collected(root)


@sweep.command("status")
@click.argument("root", type=FOLDER)
def sweep_status(root: Path) -> None:
    """Show what is done, running and failed."""
    from rich.console import Console

    from sweeps.state import status_table

    Console().print(status_table(root))


@sweep.command("collect")
@click.argument("root", type=FOLDER)
def sweep_collect(root: Path) -> None:
    """Gather run folders into observations.parquet and exposure.parquet."""
    print_collected(root)


def print_collected(root: Path) -> None:
    from sweeps.collect import collect

    collected = collect(root)
    print(f"{root}/observations.parquet: {collected.rows:,} rows of {collected.runs} runs")
    for cell in collected.cells:
        print(f"  no cooled observation: {cell}", file=sys.stderr)
