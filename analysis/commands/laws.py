"""`mscale fit`, `mscale report` and `mscale transfer`."""

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from mscale.commands import LOCAL_FOLDER, STORE_PATH, number_map_parser

if TYPE_CHECKING:
    import pandas as pd

    from analysis.study.results import Results

# A matrix of more languages than this is too wide for a terminal.
MAX_MATRIX_LANGUAGES = 10
MAX_REASONS = 6

SPLIT = click.option("--split", help="Of the evaluation, where the table has several.")
VOCABULARY = click.option("--vocabulary", help="Where the table has several.")


@click.command()
@click.argument("observations", type=LOCAL_FOLDER, nargs=-1, required=True)
@click.option("--law", help="One law alone, such as chinchilla; default: all that the data allow.")
@click.option("--target", help="With --law: one language alone.")
@click.option(
    "--truth", type=LOCAL_FOLDER, help="truth.json of a generated corpus, to set measurements against."
)
@click.option("--store", type=STORE_PATH, help="The token store, for the languages' shared vocabulary.")
@click.option(
    "--parallel", type=LOCAL_FOLDER, help="The same text in many languages, to count transfer in content."
)
@SPLIT
@VOCABULARY
@click.option(
    "--out", type=LOCAL_FOLDER, help="Results as JSON; default: laws.json, or LAW.json, beside the table."
)
def fit(
    observations: tuple[Path, ...],
    law: str | None,
    target: str | None,
    truth: Path | None,
    store: Path | None,
    parallel: Path | None,
    split: str | None,
    vocabulary: str | None,
    out: Path | None,
) -> None:
    """Fit the laws to OBSERVATIONS, a table or the folder of a study: findings here, all numbers as JSON.

    Several are read as one study; results are then written beside the first.
    """
    from mscale.data.parallel_text import byte_premiums
    from mscale.data.store import unigram_overlap

    folder = observations[0] if observations[0].is_dir() else observations[0].parent
    if law is None:
        if target is not None:
            raise click.UsageError("--target needs --law")
        language_data = {
            "overlap": None if store is None else unigram_overlap(store),
            "premiums": None if parallel is None else byte_premiums(parallel),
        }
        out = out or folder / "laws.json"
        analyse_and_print(observations, out, truth, split=split, vocabulary=vocabulary, **language_data)
    else:
        fit_one(observations, law, target, out or folder / f"{law}.json", split, vocabulary)


def fit_one(
    observations: Sequence[Path],
    law: str,
    target: str | None,
    out: Path,
    split: str | None = None,
    vocabulary: str | None = None,
) -> None:
    """Fits one law to a study or a table; prints a summary and writes the fit as JSON and a figure as SVG."""
    import pandas as pd

    import analysis
    from analysis.study.read import one_evaluation
    from analysis.tables.checks import drop_duplicates
    from analysis.tables.observations import observations_file, read_table, table_file
    from analysis.tables.remarks import remark_text
    from mscale.files import atomic_write

    paths = [observations_file(path) for path in observations]
    rows = [read_table(path) for path in paths]
    table = rows[0] if len(rows) == 1 else pd.concat(rows, ignore_index=True)
    table, duplicates = drop_duplicates(table, " and ".join(map(str, paths)))
    table = one_evaluation(table, paths[0], split, vocabulary)
    exposures = [read_table(file) for path in paths if (file := table_file(path.parent, "exposure"))]
    exposure = pd.concat(exposures).drop_duplicates(ignore_index=True) if exposures else None
    found = analysis.fit(law, table, exposure=exposure, target=target)
    print(found.summary(), *map(remark_text, duplicates), sep="\n")
    atomic_write(out, found.to_json())
    figure = out.with_suffix(".svg")
    found.plot().save(str(figure))
    print(f"{out}, {figure}")


def analyse_and_print(
    observations: Path | Sequence[Path], out: Path, truth: Path | None = None, **options: Any
) -> "Results":
    """Analyses a study: all results into the JSON file `out`, and a summary table on the terminal.

    Args:
      options: of `analysis.report.report.analyse_study`.

    Returns:
      The results, as in `out`.
    """
    from importlib import import_module

    from rich.console import Console

    from analysis.second_process import SecondProcess

    # The worker process imports what it needs while this one reads the tables.
    SecondProcess(True).submit(import_module, "analysis.report")
    from analysis.report.report import analyse_study, summary_table
    from analysis.study.results import write_results

    results = analyse_study(observations, truth, **options)
    write_results(results, out)
    Console(width=None if sys.stdout.isatty() else 110).print(summary_table(results))
    print(f"{out}: all numbers")
    return results


@click.command()
@click.argument("source", type=LOCAL_FOLDER)
@click.option(
    "--truth", type=LOCAL_FOLDER, help="truth.json of a generated corpus, to set measurements against."
)
@SPLIT
@VOCABULARY
@click.option("--out", type=LOCAL_FOLDER, help="Default: report.html beside SOURCE.")
def report(
    source: Path, truth: Path | None, split: str | None, vocabulary: str | None, out: Path | None
) -> None:
    """Draw one self-contained HTML page from SOURCE: laws.json of mscale fit, observations, or a study."""
    from analysis.second_process import SecondProcess
    from analysis.vega import scripts

    vega_scripts = SecondProcess(True).submit(scripts)  # in parallel with reading and analysing
    from analysis.report.report import write_report
    from analysis.study.results import read_results

    folder = source if source.is_dir() else source.parent
    out = out or folder / "report.html"
    if source.suffix == ".json":
        if split is not None or vocabulary is not None:
            raise click.UsageError(
                "--split and --vocabulary choose among observations: give them to mscale fit"
            )
        results = read_results(source)
    else:
        results = analyse_and_print(source, folder / "laws.json", truth, split=split, vocabulary=vocabulary)
    write_report(results, out, vega_scripts())
    print(f"{out}: open it in a browser")


@click.command()
@click.argument("source", type=LOCAL_FOLDER)
@click.option(
    "--d", type=float, help="Reference tokens of the language alone; default: what most pairs allow."
)
@click.option("--scale", help="One size alone; default: all with a pair.")
@click.option("--phase", type=click.Choice(["stable", "end"]), default="stable", show_default=True)
@SPLIT
@VOCABULARY
@click.option("--run-noise", type=float, help="Nats between seeds, known from elsewhere; default: measured.")
@click.option(
    "--bytes-per-token",
    "fertility",
    callback=number_map_parser("en=4.4,es=4.1"),
    help="en=4.4,es=4.1, where SOURCE has neither eval_bytes nor bits_per_byte.",
)
@click.option(
    "--parallel", type=LOCAL_FOLDER, help="The same text in many languages, to count in content too."
)
@click.option(
    "--curves", type=LOCAL_FOLDER, help="Also the scores over d, of every pair that was run, as CSV."
)
@click.option("--out", type=LOCAL_FOLDER, help="Default: transfer.csv beside SOURCE.")
def transfer(
    source: Path,
    d: float | None,
    scale: str | None,
    phase: str,
    split: str | None,
    vocabulary: str | None,
    run_noise: float | None,
    fertility: dict[str, float] | None,
    parallel: Path | None,
    curves: Path | None,
    out: Path | None,
) -> None:
    """Read the transfer matrix off SOURCE, a table of curves or a study: shown here, every pair into a CSV."""
    from analysis.tables.checks import select_split
    from analysis.tables.observations import read_study
    from analysis.tables.remarks import remark_text
    from analysis.transfer.table import scores_over_d, transfer_table
    from mscale.data.parallel_text import byte_premiums
    from mscale.files import atomic_write

    tables = read_study(source)
    table, details = transfer_table(
        select_split(tables.observations, split, "--split {}"),
        d=d,
        scale=scale,
        phase=phase,
        vocabulary=vocabulary,
        run_noise=run_noise,
        premiums=None if parallel is None else byte_premiums(parallel),
        fertility=fertility,
        planted=(tables.truth or {}).get("languages"),
    )
    print_matrix(table, details, phase)
    for remark in (*tables.notes, *tables.exclusions):
        print(f"- {remark_text(remark)}")
    out = out or (source if source.is_dir() else source.parent) / "transfer.csv"
    atomic_write(out, table.to_csv(index=False, float_format="%.6g"))
    if curves is not None:
        over_d = scores_over_d(details["cells"], table)
        atomic_write(curves, over_d.to_csv(index=False, float_format="%.6g"))
        print(f"{curves}: {len(over_d):,} scores over d")
    print(f"{out}: {len(table):,} rows, a row for each pair and unit ({', '.join(table['unit'].unique())})")


def print_matrix(table: "pd.DataFrame", details: dict[str, Any], phase: str) -> None:
    """Prints the matrix (target by source) of the scale with most pairs, its legend, the noise and what is missing."""
    from rich.console import Console
    from rich.table import Table

    from analysis.tables.remarks import remark_text
    from analysis.text import count
    from analysis.transfer.matrix import EXACT_DEGREES
    from analysis.transfer.table import format_score

    rows = table[(table["scale"] == details["scale"]) & (table["unit"] == "tokens")]
    names = sorted(set(rows["target"]) | set(rows["source"]))
    d = rows["d"].max()
    print(
        f"Transfer scores per token at {count(float(rows['params'].iloc[0]))} parameters, d = {count(float(d))} tokens"
        f" of the target alone ({'at a constant rate' if phase == 'stable' else 'cooled'}):"
    )
    console = Console(width=None if sys.stdout.isatty() else 110)
    if len(names) <= MAX_MATRIX_LANGUAGES:
        scores = {(row["target"], row["source"]): format_score(row) for row in rows.to_dict("records")}
        printed = Table("target \\ source", *names, box=None, pad_edge=False)
        for target in names:
            printed.add_row(target, *(scores.get((target, source), "") for source in names))
    else:
        printed = Table(
            "target", "best source", "score", "measured", "bounds", "missing", box=None, pad_edge=False
        )
        for target, part in rows.groupby("target"):
            counts = [str((part["status"] == status).sum()) for status in ("measured", "bound", "missing")]
            best = part[part["status"] == "measured"].nlargest(1, "score").to_dict("records")
            printed.add_row(
                str(target), *([best[0]["source"], format_score(best[0])] if best else ["-", "-"]), *counts
            )
    console.print(printed)
    level = f"{table['level'].iloc[0]:.0%}"
    print(
        f"* its {level} interval leaves out 0; ≤ ≥ a bound: never reached, or before the data; · missing; ( ) predicted"
    )
    noise = details["noise"]
    noise_source = f"measured on {noise.run_degrees} repeated runs"
    if noise.run_degrees == EXACT_DEGREES:
        noise_source = "as given"
    elif not noise.run_degrees:
        noise_source = (
            "only assumed, as large as that of checkpoints: repeat a run or two, or give it with --run-noise, and "
            "intervals narrow to what it is"
        )
    print(
        f"- noise: {noise.checkpoint:.4f} nats between checkpoints, {noise.run:.4f} between runs ({noise_source})"
    )
    reasons = rows.loc[rows["status"] == "missing", "reason"].value_counts()
    for reason, number in reasons.head(MAX_REASONS).items():
        print(f"- missing, {number}: {reason}")
    if len(reasons) > MAX_REASONS:
        print(f"- missing, {reasons.iloc[MAX_REASONS:].sum()} more, each with its reason in the table")
    for note in details["left_out"]:
        print(f"- {note}")
    for unit, reason in details["units_missing"].items():
        print(f"- not in {unit}: {remark_text(reason)}")
