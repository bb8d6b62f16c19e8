"""The commands of studies: plan, run, status, logs, retry, cancel, collect, import, and the memory of a run."""

import dataclasses
import importlib
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click
import msgspec

from mscale.chips import CHIPS
from mscale.commands import LANGUAGES_OPTION, LOCAL_FOLDER, STORE_PATH, OrderedGroup, comma_list
from mscale.errors import MscaleError, nearest
from sweeps.studies import BUILT_IN_STUDIES

if TYPE_CHECKING:
    from sweeps.executors import gke
    from sweeps.study import Study

_T = TypeVar("_T")


@click.command("memory")
@click.option(
    "--scale",
    "names",
    required=True,
    callback=comma_list,
    help="Rungs of the ladder, such as 46 or 34,42,46.",
)
@click.option("--chip", required=True, help=f"One of {', '.join(CHIPS)}.")
@click.option("--chips", type=click.IntRange(1, 65_536), help="Default: as few as hold the run.")
@click.option("--batch", type=click.IntRange(1), help="Sequences; default: by size, as ATLAS trains.")
@click.option("--sequence-length", type=click.IntRange(1), default=2048, show_default=True)
@click.option("--vocabulary", type=click.IntRange(1), default=64_512, show_default=True)
@click.option("--data", type=click.IntRange(1), help="Only meshes with this axis; so --fsdp and --tensor.")
@click.option("--fsdp", type=click.IntRange(1))
@click.option("--tensor", type=click.IntRange(1))
def plan_memory(
    names: list[str],
    chip: str,
    chips: int | None,
    batch: int | None,
    sequence_length: int,
    vocabulary: int,
    data: int | None,
    fsdp: int | None,
    tensor: int | None,
) -> None:
    """What a run takes on each chip, in bfloat16 with blocks recomputed: every mesh, or one each of several scales."""
    from rich.console import Console
    from rich.table import Table

    from mscale import scales
    from mscale.errors import MscaleError
    from sweeps.cost import memory

    usable = memory.usable_bytes(chip)
    columns = [field.name for field in dataclasses.fields(memory.MemoryUse)]
    table = Table("scale", "batch", "mesh", *columns, "total", f"of {usable / 1e9:.1f} GB")
    fixed = {name: size for name, size in (("data", data), ("fsdp", fsdp), ("tensor", tensor)) if size}
    for name in names:
        shape = scales.get(name)
        rows = batch or scales.atlas_batch_size(scales.parameter_count(shape, vocabulary))
        workload = memory.Workload(shape, vocabulary, rows, sequence_length)
        found = memory.possible_placements(
            workload, chip, chips or memory.smallest_placement(workload, chip).mesh.chips
        )
        found = [one for one in found if all(getattr(one.mesh, axis) == size for axis, size in fixed.items())]
        if not found:
            wanted = " ".join(f"{axis}={size}" for axis, size in fixed.items()) or "batch"
            raise MscaleError(
                f"scale {name}: no mesh of {chips or 'these'} chips splits {rows} sequences with {wanted}; "
                f"data x fsdp must divide the batch, tensor the MLP width {shape.ffw}, all three multiply to the chips"
            )
        if (
            len(names) > 1
        ):  # of several scales the simplest mesh that holds the run, or the one with the least memory
            fitting = [one for one in found if one.bytes_per_chip <= usable]
            found = fitting[:1] or [min(found, key=lambda one: one.bytes_per_chip)]
        for one in found:
            parts = (getattr(one.memory, column) for column in columns)
            fits = one.bytes_per_chip <= usable
            table.add_row(
                name,
                str(rows),
                str(one.mesh),
                *(f"{part / 1e9:.2f}" for part in (*parts, one.memory.total)),
                "fits" if fits else "does not fit",
            )
    console = Console(width=None if sys.stdout.isatty() else 120)
    console.print(table)
    console.print(
        "GB on each chip. state: parameters, gradients and Adam; gathered: what fsdp makes whole to use it; "
        "activations: one input a layer and one layer's numbers; logits: the loss's block. Against the compiler: "
        "docs/training.md"
    )


@click.group(cls=OrderedGroup)
def sweep() -> None:
    """Plan, run and collect a study of many runs: built in (demo, gpu-day, tpu-week, atlas), or a .gin or .py file."""


# Accelerator and chips for the plan of a built-in study; None for the fewest that hold every run.
_PLAN_HARDWARE = {"gpu-day": ("h200", 1), "tpu-week": ("v5e", 16), "atlas": ("h200", None)}


class StudyName(click.ParamType):
    """A built-in study, or a file that describes one."""

    name = "study"

    def convert(self, value: str, param: click.Parameter | None, ctx: click.Context | None) -> str:
        if value not in BUILT_IN_STUDIES and not value.endswith((".gin", ".py")):
            listed = ", ".join(BUILT_IN_STUDIES)
            self.fail(
                f"{value!r} is none of {listed}, nor a .gin or .py file{nearest(value, BUILT_IN_STUDIES)}",
                param,
                ctx,
            )
        return value


def study_options(command: Callable) -> Callable:
    """Adds the options that define a study."""
    for option in (
        click.option("--seed", default=0, show_default=True),
        LANGUAGES_OPTION,
        click.option(
            "--truth", type=LOCAL_FOLDER, help="truth.json of a generated corpus, for its families."
        ),
        click.option("--store", type=STORE_PATH, help="The token store, from mscale pack."),
        click.argument("study", type=StudyName()),
    ):
        command = option(command)
    return command


@dataclasses.dataclass(frozen=True)
class _Language:
    """A language of a generated corpus."""

    family: str


@dataclasses.dataclass(frozen=True)
class _Truth:
    """The part of truth.json that the demo study reads."""

    languages: dict[str, _Language]


def make_study(
    name: str, store: Path | None, truth: Path | None, languages: list[str] | None, seed: int
) -> "Study":
    """The study of that name or file over a token store; built-in studies other than the demo need none."""
    from mscale.data.store import open_store
    from mscale.files import read_json_as
    from sweeps import grid
    from sweeps.studies.built_in import built_in_study

    if name not in BUILT_IN_STUDIES:
        if languages is not None or truth is not None or seed:
            raise click.UsageError(
                f"--languages, --truth and --seed are for built-in studies; {name} says its own"
            )
        if store is None:
            raise click.UsageError(f"--store is missing: {name} is planned over a token store")
        return grid.load(name, open_store(store))
    options: dict[str, Any] = {"seed": seed}
    if name == "demo":
        options["languages"] = languages
        if truth is not None:
            if truth.is_dir():
                raise MscaleError(f"--truth {truth}: is a folder; give the file {truth / 'truth.json'}")
            described = read_json_as(
                truth, _Truth, what="ground truth", remedy="give truth.json of a generated corpus"
            )
            options["families"] = {language: facts.family for language, facts in described.languages.items()}
    elif languages is not None or truth is not None:
        raise click.UsageError(f"--languages and --truth are for the demo, not for {name}")
    return built_in_study(name, None if store is None else open_store(store), **options)


_PLOT_SUFFIXES = (".png", ".svg", ".html")


@sweep.command("plan")
@study_options
@click.option("--accelerator", help="Such as h200: device-hours, memory and meshes.")
@click.option("--mfu", default=0.4, show_default=True, help="Share of its peak that training reaches.")
@click.option("--slices", default=1, show_default=True, help="Slices at work at once.")
@click.option("--plot", type=LOCAL_FOLDER, help="A file to draw the bill into: .png, .svg or .html.")
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

    from sweeps.cost.identification import question_lines
    from sweeps.cost.plan_table import plan_table, save_bill
    from sweeps.studies.built_in import printed_cells

    if plot is not None and plot.suffix not in _PLOT_SUFFIXES:
        raise MscaleError(f"--plot {plot}: expected a name that ends in {', '.join(_PLOT_SUFFIXES)}")
    chips = None
    if accelerator is None:
        accelerator, chips = _PLAN_HARDWARE.get(study, (None, None))
    made = make_study(study, store, truth, languages, seed)
    table = plan_table(
        made,
        accelerator=accelerator,
        mfu=mfu,
        slices=slices,
        chips=chips,
        printed=printed_cells(study),
        statements=[*laws_identified(made), *question_lines(made)],
    )
    Console(width=None if sys.stdout.isatty() else 140).print(table)
    if plot is not None:
        save_bill(made, plot, accelerator, mfu)
        print(plot)


# The laws are of the package above, which a training host may lack: named here, as the commands are in mscale.cli.
_IDENTIFICATION = "analysis.planning.identification"


def laws_identified(study: "Study") -> list[str]:
    """One line for each law, whether the study identifies it; how to install them where they are not installed."""
    from sweeps.cost.identification import final_losses

    try:
        module = importlib.import_module(_IDENTIFICATION)
    except ModuleNotFoundError as error:
        return [f"Which laws it identifies needs {error.name}: pip install 'mscale[analysis]'"]
    return module.identification_lines(*final_losses(study))


@sweep.command("run")
@study_options
@click.option(
    "--root", type=LOCAL_FOLDER, required=True, help="The study's folder; called again it continues."
)
@click.option("--executor", type=click.Choice(["local", "slurm", "gke"]), default="local", show_default=True)
@click.option("--workers", type=int, help="Local: processes; default: one per core.")
@click.option("--option", "options", multiple=True, metavar="NAME=VALUE", help="Of Slurm or GKE; repeatable.")
@click.option("--dry-run", is_flag=True, help="Slurm, GKE: print the batch script or the manifests.")
@click.option(
    "--out", type=LOCAL_FOLDER, help="GKE, with --dry-run: write one manifest a run into this folder."
)
def sweep_run(
    study: str,
    store: Path | None,
    truth: Path | None,
    languages: list[str] | None,
    seed: int,
    root: Path,
    executor: str,
    workers: int | None,
    options: tuple[str, ...],
    dry_run: bool,
    out: Path | None,
) -> None:
    """Train all runs of a study that are not done, then collect its tables."""
    from sweeps.studies.assumed_sizes import is_assumed

    if dry_run and executor == "local":
        raise click.UsageError(
            "--dry-run is for Slurm and GKE; `mscale sweep plan` shows what is trained here"
        )
    if out is not None and not (dry_run and executor == "gke"):
        raise click.UsageError("--out is for --executor gke with --dry-run")
    if options and executor == "local":
        raise click.UsageError("--option is for --executor slurm or gke")
    made = make_study(study, store, truth, languages, seed)
    if not dry_run and any(is_assumed(run.store) for run in made.runs):
        raise MscaleError(f"study {made.name}: it is planned without a token store; give --store to run it")
    if executor == "local":
        from sweeps.executors.local import run as run_local

        run_local(made, root, workers=workers)
    elif executor == "slurm":
        from sweeps.executors import slurm

        if dry_run:
            print(slurm.dry_run(made, root, parsed(options, slurm.Options)), end="")
            return
        slurm.run(made, root, parsed(options, slurm.Options))
    else:
        from sweeps.executors import gke

        if dry_run:
            print_manifests(made, root, parsed(options, gke.Options), out)
            return
        gke.run(made, root, parsed(options, gke.Options))
    print_collected(root)


def print_manifests(study: "Study", root: Path, options: "gke.Options", out: Path | None) -> None:
    """Prints the manifests, or writes them into ``out``, and what they would use."""
    from sweeps.executors import gke

    study, options = gke.on_volume(study, root, options)
    runs = gke.to_be_applied(study, root)
    if out is None:
        print(gke.dry_run(study, options, root), end="")
        print(gke.summary(runs, options), file=sys.stderr)
        return
    gke.write_manifests(runs, options, out)
    print(gke.summary(runs, options))
    after = "apply one once the run that its annotation mscale/starts-from names is done"
    print(f"{out}: {len(runs):,} manifests; {after}")


def parsed(options: tuple[str, ...], kind: type[_T]) -> _T:
    """``NAME=VALUE`` pairs as the options of an executor, each as the type of its field; ``;`` separates several."""
    types = {field.name: field.type for field in dataclasses.fields(kind)}  # type: ignore[arg-type]
    found: dict[str, Any] = {}
    for option in options:
        name, equals, value = option.partition("=")
        if not equals or name not in types:
            raise MscaleError(
                f"--option {option}: expected NAME=VALUE with a name of {', '.join(sorted(types))}"
                f"{nearest(name, types)}"
            )
        found[name] = value.split(";") if types[name] == tuple[str, ...] else value
    try:
        return msgspec.convert(found, kind, strict=False)
    except msgspec.ValidationError as error:
        raise MscaleError(f"--option: {error}; give each as --option NAME=VALUE") from None


@sweep.command("status")
@click.argument("root", type=LOCAL_FOLDER)
@click.option("--watch", is_flag=True, help="Refresh until all runs have ended.")
def sweep_status(root: Path, watch: bool) -> None:
    """Show what is done, running and failed."""
    from rich.console import Console

    from sweeps.executors import actions
    from sweeps.executors.state import status_table

    if watch:
        actions.watch(root)
    else:
        Console().print(status_table(root))


@sweep.command("logs")
@click.argument("root", type=LOCAL_FOLDER)
@click.argument("run")
@click.option("--lines", default=40, show_default=True)
@click.option("--follow", is_flag=True)
def sweep_logs(root: Path, run: str, lines: int, follow: bool) -> None:
    """Print the last lines of RUN's log."""
    from sweeps.executors.actions import logs

    for line in logs(root, run, lines, follow):
        print(line)


@sweep.command("retry")
@click.argument("root", type=LOCAL_FOLDER)
@click.argument("runs", nargs=-1)
def sweep_retry(root: Path, runs: tuple[str, ...]) -> None:
    """Take failed or cancelled RUNS up again (default: all); the next `sweep run` trains them."""
    from sweeps.executors.actions import retry

    print("\n".join(retry(root, runs or None)) or "nothing had failed")


@sweep.command("cancel")
@click.argument("root", type=LOCAL_FOLDER)
@click.argument("runs", nargs=-1)
def sweep_cancel(root: Path, runs: tuple[str, ...]) -> None:
    """Stop RUNS, or the whole study; what they have saved is kept."""
    from sweeps.executors.actions import cancel

    print("\n".join(cancel(root, runs or None)) or "nothing was running")


@sweep.command("collect")
@click.argument("root", type=LOCAL_FOLDER)
@click.option(
    "--from", "source", metavar="URL", help="Run folders elsewhere (gs://...), fetched into ROOT first."
)
def sweep_collect(root: Path, source: str | None) -> None:
    """Gather run folders into observations.parquet and exposure.parquet."""
    if source is not None:
        from sweeps.collecting.fetch import fetch

        print(f"{source}: {fetch(source, root)} runs had changed")
    print_collected(root)


@sweep.command("import")
@click.argument("source", type=LOCAL_FOLDER)
@click.argument("target", type=LOCAL_FOLDER)
@click.option(
    "--column",
    "columns",
    multiple=True,
    metavar="OURS=THEIRS",
    help="Where names differ; repeatable. tokens=tokens_B*1e9 multiplies.",
)
@click.option(
    "--constant", "constants", multiple=True, metavar="OURS=VALUE", help="For every row; repeatable."
)
@click.option(
    "--wide",
    metavar="TEMPLATE",
    help="Where every evaluated language has a column of losses: loss_{language}.",
)
@click.option(
    "--wandb", type=LOCAL_FOLDER, help="SOURCE is a chart exported from W&B; this JSON describes its runs."
)
def sweep_import(
    source: Path,
    target: Path,
    columns: tuple[str, ...],
    constants: tuple[str, ...],
    wide: str | None,
    wandb: Path | None,
) -> None:
    """Turn anyone's CSV of runs, SOURCE, into an observations table, TARGET (.parquet or .csv).

    Every row needs run, params, mixture, tokens, language, loss, and phase or lr; docs/transfer.md shows examples.

    The JSON of --wandb is {"tokens_per_step": 65536, "shared": {"params": 9044352, "phase": "stable"}, "runs":
    {"my-run": {"mixture": "en"}, "other": {"mixture": "en+es"}}}.
    """
    from mscale.files import read_json_as
    from sweeps.collecting.importers import WandbRuns, import_csv, import_wandb

    if wandb is None:
        made = import_csv(
            source, target, pairs("--column", columns), pairs("--constant", constants), wide=wide
        )
    else:
        if given := [
            flag
            for flag, value in (("--column", columns), ("--constant", constants), ("--wide", wide))
            if value
        ]:
            raise MscaleError(f"{given[0]} is not read with --wandb: say it in {wandb}")
        described = read_json_as(
            wandb, WandbRuns, what="description of W&B runs", remedy="see `mscale sweep import --help`"
        )
        made = import_wandb(source, target, described)
    print(f"{target}: {made.rows:,} rows of {made.runs} runs")
    for note in made.notes:
        print(f"- {note}")


def pairs(flag: str, given: tuple[str, ...]) -> dict[str, str]:
    """``NAME=VALUE`` texts as a dictionary."""
    found = dict(one.partition("=")[::2] for one in given)
    if broken := [one for one in given if "=" not in one]:
        raise MscaleError(f"{flag} {broken[0]}: expected NAME=VALUE")
    return found


def print_collected(root: Path) -> None:
    """Collects a study's tables and prints what they hold and lack."""
    from sweeps.collecting.collect import collect

    collected = collect(root)
    print(f"{root}/observations.parquet: {collected.rows:,} rows of {collected.runs} runs")
    for cell in collected.cells:
        print(f"  no cooled observation: {cell}", file=sys.stderr)
