"""Laws, the report, and decisions."""

import sys
from pathlib import Path
from typing import Any

import click

from mscale.cli import FOLDER, Commands, cli, comma_list
from mscale.errors import MscaleError

# More languages than this do not fit a terminal as a matrix.
MOST_SHOWN = 10
MOST_REASONS = 6


@cli.command()
@click.argument("observations", type=FOLDER)
@click.option("--law", help="One law alone, such as chinchilla; default: all that the data allow.")
@click.option("--target", help="With --law: one language alone.")
@click.option("--truth", type=FOLDER, help="truth.json of a generated corpus, to set measurements against.")
@click.option("--store", type=FOLDER, help="The token store, for the languages' shared vocabulary.")
@click.option(
    "--parallel", type=FOLDER, help="The same text in many languages, to count transfer in content."
)
@click.option(
    "--out", type=FOLDER, help="Results as JSON; default: laws.json, or LAW.json, beside the table."
)
def fit(
    observations: Path,
    law: str | None,
    target: str | None,
    truth: Path | None,
    store: Path | None,
    parallel: Path | None,
    out: Path | None,
) -> None:
    """Fit the laws to OBSERVATIONS, a table or the folder of a study: findings here, all numbers as JSON."""
    folder = observations if observations.is_dir() else observations.parent
    if law is None:
        if target is not None:
            raise click.UsageError("--target needs --law")
        about = {"overlap": shared_vocabulary(store), "premiums": byte_premiums(parallel)}
        analyse(observations, out or folder / "laws.json", truth, **about)
    else:
        fit_one(observations, law, target, out or folder / f"{law}.json")


def fit_one(observations: Path, law: str, target: str | None, out: Path) -> None:
    """Fits one law to a study or to anyone's table: a summary here, JSON and a figure in files."""
    import analysis
    from analysis.tables import read_table
    from mscale.files import atomic_write

    folder = observations if observations.is_dir() else observations.parent
    table = read_table(folder / "observations.parquet" if observations.is_dir() else observations)
    beside = next(
        (path for path in (folder / "exposure.parquet", folder / "exposure.csv") if path.exists()), None
    )
    exposure = None if beside is None else read_table(beside)
    found = analysis.fit(law, table, exposure=exposure, target=target)
    print(found.summary())
    atomic_write(out, found.to_json())
    figure = out.with_suffix(".svg")
    found.plot().save(str(figure))
    print(f"{out}, {figure}")


def shared_vocabulary(path: Path | None) -> dict[str, dict[str, float]] | None:
    """Σ_v min(p_a(v), p_b(v)) of every two languages of a token store, of their unigram frequencies."""
    if path is None:
        return None
    import numpy as np

    from mscale.store import open_store

    store = open_store(path)
    counts = {name: store.unigram(name).astype(np.float32) for name in store.languages}
    shares = {name: count / count.sum() for name, count in counts.items() if count.sum() > 0}
    return {
        one: {other: float(np.minimum(p, q).sum()) for other, q in shares.items()}
        for one, p in shares.items()
    }


def byte_premiums(path: Path | None) -> dict[str, float] | None:
    """UTF-8 bytes of every language of parallel text, over those of its first."""
    if path is None:
        return None
    from mixtures.vocabulary_report import parallel_text

    sizes = {code: sum(len(line.encode()) for line in lines) for code, lines in parallel_text(path).items()}
    return {code: size / next(iter(sizes.values())) for code, size in sizes.items()}


def analyse(
    observations: Path, out: Path, truth: Path | None = None, study: dict | None = None, **about: Any
) -> dict:
    """Answers all that a study can answer, into the JSON file ``out`` and as a table on the terminal.

    ``about`` is what else is known of the languages: overlap and premiums, see `analysis.answers.analyse`.
    """
    from rich.console import Console

    from analysis.report import analyse as answers
    from analysis.report import summary_table, write_results
    from analysis.tables import read_study

    tables = read_study(observations, truth)
    results = answers(
        tables.observations,
        tables.exposure,
        tables.truth,
        study=study if study is not None else ran(observations),
        notes=tables.notes,
        exclusions=tables.exclusions,
        **about,
    )
    write_results(results, out)
    Console(width=None if sys.stdout.isatty() else 110).print(summary_table(results))
    print(f"{out}: all numbers")
    return results


def ran(observations: Path) -> dict[str, Any]:
    """What the executor recorded beside a study's tables: time, workers, memory, failed runs."""
    from mscale.files import read_json

    folder = observations if observations.is_dir() else observations.parent
    if not (folder / "runner.json").exists():
        return {}
    sessions = read_json(folder / "runner.json", what="runner record")["sessions"]
    missing = (
        read_json(folder / "missing.json", what="list of missing runs")
        if (folder / "missing.json").exists()
        else {"runs": {}}
    )
    return {
        "seconds": sum(session["seconds"] for session in sessions),
        "workers": max((session["workers"] for session in sessions), default=None),
        "peak_memory_bytes": max((session["peak_memory_bytes"] for session in sessions), default=None),
        "failed": [{"run": run, "reason": reason} for run, reason in missing["runs"].items()],
    }


@cli.command()
@click.argument("source", type=FOLDER)
@click.option("--truth", type=FOLDER, help="truth.json of a generated corpus, to set measurements against.")
@click.option("--out", type=FOLDER, help="Default: report.html beside SOURCE.")
def report(source: Path, truth: Path | None, out: Path | None) -> None:
    """Draw one self-contained HTML page from SOURCE: laws.json of mscale fit, observations, or a study."""
    from analysis.report import write_report
    from mscale.files import read_json

    folder = source if source.is_dir() else source.parent
    out = out or folder / "report.html"
    if source.suffix == ".json":
        results = read_json(source, what="results of mscale fit")
    else:
        results = analyse(source, folder / "laws.json", truth)
    write_report(results, out)
    print(f"{out}: open it in a browser")


@cli.command()
@click.argument("source", type=FOLDER)
@click.option(
    "--d", type=float, help="Reference tokens of the language alone; default: what most pairs allow."
)
@click.option("--scale", help="One size alone; default: all with a pair.")
@click.option("--phase", type=click.Choice(["stable", "end"]), default="stable", show_default=True)
@click.option("--parallel", type=FOLDER, help="The same text in many languages, to count in content too.")
@click.option("--out", type=FOLDER, help="Default: transfer.csv beside SOURCE.")
def transfer(
    source: Path, d: float | None, scale: str | None, phase: str, parallel: Path | None, out: Path | None
) -> None:
    """Read the transfer matrix off SOURCE, a table of curves or a study: shown here, every pair into a CSV."""
    from analysis.tables import read_study
    from analysis.transfer_table import transfer_table
    from mscale.files import atomic_write

    tables = read_study(source)
    table, about = transfer_table(
        tables.observations,
        d=d,
        scale=scale,
        phase=phase,
        premiums=byte_premiums(parallel),
        planted=(tables.truth or {}).get("languages"),
    )
    print_matrix(table, about, phase)
    for note in (
        *tables.notes,
        *(f"{row['what']} left out ({row['rows']}): {row['why']}" for row in tables.exclusions),
    ):
        print(f"- {note}")
    out = out or (source if source.is_dir() else source.parent) / "transfer.csv"
    atomic_write(out, table.to_csv(index=False, float_format="%.6g"))
    print(f"{out}: {len(table):,} rows, a row for each pair and unit ({', '.join(table['unit'].unique())})")


def print_matrix(table: Any, about: dict[str, Any], phase: str) -> None:
    """The matrix of the scale with most pairs, target by source, and how to read it."""
    from rich.console import Console
    from rich.table import Table

    from analysis.transfer_table import cell as shown
    from analysis.wording import count

    rows = table[(table["scale"] == about["scale"]) & (table["unit"] == "tokens")]
    names = sorted(set(rows["target"]) | set(rows["source"]))
    d = rows["d"].max()
    print(
        f"Transfer scores per token at {count(float(rows['params'].iloc[0]))} parameters, d = {count(float(d))} tokens"
        f" of the target alone ({'at a constant rate' if phase == 'stable' else 'cooled'}):"
    )
    console = Console(width=None if sys.stdout.isatty() else 110)
    if len(names) <= MOST_SHOWN:
        by = {(row["target"], row["source"]): shown(row) for row in rows.to_dict("records")}
        drawn = Table("target \\ source", *names, box=None, pad_edge=False)
        for target in names:
            drawn.add_row(target, *(by.get((target, source), "") for source in names))
    else:
        drawn = Table(
            "target", "best source", "score", "measured", "bounds", "missing", box=None, pad_edge=False
        )
        for target, part in rows.groupby("target"):
            counts = [str((part["status"] == status).sum()) for status in ("measured", "bound", "missing")]
            best = part[part["status"] == "measured"].nlargest(1, "score").to_dict("records")
            drawn.add_row(
                str(target), *([best[0]["source"], shown(best[0])] if best else ["-", "-"]), *counts
            )
    console.print(drawn)
    level = f"{table['level'].iloc[0]:.0%}"
    print(
        f"* its {level} interval leaves out 0; ≤ ≥ a bound: never reached, or before the data; · missing; ( ) predicted"
    )
    noise = about["noise"]
    told = (
        f"measured on {noise.run_degrees} repeated runs"
        if noise.run_degrees
        else (
            "only assumed, as large as that of checkpoints: repeat a run or two, and intervals narrow to what it is"
        )
    )
    print(f"- noise: {noise.checkpoint:.4f} nats between checkpoints, {noise.run:.4f} between runs ({told})")
    reasons = rows.loc[rows["status"] == "missing", "reason"].value_counts()
    for reason, number in reasons.head(MOST_REASONS).items():
        print(f"- missing, {number}: {reason}")
    if len(reasons) > MOST_REASONS:
        print(f"- missing, {reasons.iloc[MOST_REASONS:].sum()} more, each with its reason in the table")
    for unit, reason in about["units_missing"].items():
        print(f"- not in {unit}: {reason}")


RESULTS = click.option("--results", "source", type=FOLDER, help="laws.json of your own study (mscale fit).")
PRIOR = click.option("--prior", type=click.Choice(["atlas"]), help="The published figures.")


@cli.group(cls=Commands)
def plan() -> None:
    """Decide: which languages together, how large, from where, which mixture."""


def basis(source: Path | None, prior: str | None) -> dict | None:
    """The results of a study, or None for the published figures; one of the two must be named."""
    from mscale.files import read_json

    if source is None and prior is None:
        raise click.UsageError("say what to answer from: --results my-study/laws.json, or --prior atlas")
    return None if source is None else read_json(source, what="results of mscale fit")


def print_answer(answer: Any) -> None:
    """The decision, the rows behind it, and the reasons."""
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    console = Console(width=None if sys.stdout.isatty() else 110)
    console.print(f"[bold]{escape(answer.text)}[/]")
    for title, rows in (("", answer.rows), *answer.more):
        if rows:
            names = list(dict.fromkeys(name for row in rows for name in row))
            table = Table(*names, title=title or None, title_justify="left")
            for row in rows[:20]:
                table.add_row(*(escape(cell(row.get(name))) for name in names))
            console.print(table)
    console.print(f"From: {answer.basis}")
    for reason in answer.reasons:
        console.print(f"- {escape(reason)}")


def cell(value: Any) -> str:
    if value is None:
        return "-"
    return f"{value:,.4g}" if isinstance(value, float) else str(value)


@plan.command("languages")
@click.option("--target", required=True)
@click.option("--flops", type=float, help="Budget: how much of which, and where more hurts (needs a fit).")
@click.option("--params", type=float, help="With --flops: hold the size.")
@RESULTS
@PRIOR
def plan_languages(
    target: str, flops: float | None, params: float | None, source: Path | None, prior: str | None
) -> None:
    """Which languages to train together with --target, and how much of them."""
    from analysis.co_training import co_training
    from analysis.planner import languages

    results = basis(source, prior)
    print_answer(languages(target, results))
    if flops is not None:
        if results is None:
            raise MscaleError(
                "plan languages --flops: how much of a source helps needs a fitted ATLAS law (its λ says how repeats "
                "fade, and is not published): --results my-study/laws.json"
            )
        print_answer(co_training(target, results, flops, params))


@plan.command("expand")
@click.option("--from", "few", type=float, required=True, help="Languages now.")
@click.option("--to", "many", type=float, required=True, help="Languages then.")
@click.option("--params", type=float, required=True)
@click.option("--tokens", type=float, required=True, help="Of all languages together.")
@RESULTS
@PRIOR
def plan_expand(
    few: float, many: float, params: float, tokens: float, source: Path | None, prior: str | None
) -> None:
    """What more languages at the same loss take."""
    from analysis.planner import expand

    print_answer(expand(few, many, params, tokens, basis(source, prior)))


@plan.command("start")
@click.option("--target", required=True)
@click.option("--params", type=float, required=True)
@click.option("--tokens", type=float, required=True)
@RESULTS
@PRIOR
def plan_start(target: str, params: float, tokens: float, source: Path | None, prior: str | None) -> None:
    """From scratch, or from a multilingual checkpoint."""
    from analysis.planner import start

    print_answer(start(target, params, tokens, basis(source, prior)))


def tokens_of(_ctx: click.Context, _param: click.Parameter, value: str | None) -> dict[str, float] | None:
    """Parses ``ca=2e9,es=5e9``."""
    if value is None:
        return None
    found = {}
    for part in value.split(","):
        name, equals, number = part.strip().partition("=")
        try:
            found[name] = float(number)
        except ValueError:
            equals = ""
        if not (name and equals):
            raise click.BadParameter(f"expected language=tokens, such as ca=2e9,es=5e9; found {part!r}")
    return found


@plan.command("mixture")
@click.option("--targets", required=True, callback=comma_list)
@click.option("--weights", callback=comma_list, help="One per target; default: equal.")
@click.option("--flops", type=float, required=True)
@click.option("--worst", is_flag=True, help="Minimise the worst target's loss, not the mean.")
@click.option("--params", type=float, help="Hold the size; default: the best one.")
@click.option("--unique", callback=tokens_of, help="Tokens there are, ca=2e9,es=5e9; default: the study's.")
@RESULTS
def plan_mixture(
    targets: list[str],
    weights: list[str] | None,
    flops: float,
    worst: bool,
    params: float | None,
    unique: dict[str, float] | None,
    source: Path | None,
) -> None:
    """The mixture, size and tokens that minimise the targets' loss; needs a study of your own."""
    from analysis.mixture_plan import mixture

    if source is None:
        raise click.UsageError("a mixture needs fitted ATLAS laws: --results my-study/laws.json")
    try:
        numbers = None if weights is None else [float(weight) for weight in weights]
    except ValueError:
        raise click.BadParameter(
            f"expected numbers, found {','.join(weights or [])}", param_hint="--weights"
        ) from None
    found = basis(source, None) or {}
    print_answer(mixture(targets, flops, found, weights=numbers, worst=worst, params=params, unique=unique))


@plan.command("next")
@click.option(
    "--decision",
    required=True,
    type=click.Choice(["languages", "expand", "mixture", "pairs"]),
    help="languages: which to train with --target; expand: what more languages cost; mixture: the best one "
    "for --target at --flops; pairs: all transfer scores.",
)
@click.option("--target", "targets", callback=comma_list, help="Languages that the decision is about.")
@click.option("--flops", type=float, help="Of the run that a mixture is for.")
@click.option("--budget", type=float, default=float("inf"), help="FLOPs for the next runs in all.")
@click.option("--runs", default=5, show_default=True)
@RESULTS
def plan_next(
    decision: str,
    targets: list[str] | None,
    flops: float | None,
    budget: float,
    runs: int,
    source: Path | None,
) -> None:
    """The runs that would most reduce the uncertainty of a decision, and their price."""
    from analysis.next_runs import next_runs

    if source is None:
        raise click.UsageError("the next runs follow from your own: --results my-study/laws.json")
    print_answer(
        next_runs(
            decision, basis(source, None) or {}, targets=targets or (), flops=flops, budget=budget, runs=runs
        )
    )


@cli.command()
@click.argument("quantity", default="tau")
@click.option("--effect", type=float, help="Its true value; default: about what the literature found.")
@click.option(
    "--seeds", default="1,2,4", show_default=True, callback=comma_list, help="Trunks a cell, to compare."
)
@click.option("--studies", default=40, show_default=True, help="Planted studies for each.")
def power(quantity: str, effect: float | None, seeds: list[str], studies: int) -> None:
    """How many runs tell QUANTITY (tau, lambda, phi, alpha, beta) from none: by planted studies."""
    from analysis.power import answer
    from analysis.power import power as simulate

    table = simulate(quantity, effect=effect, seeds=[int(number) for number in seeds], studies=studies)
    print(table.to_string(index=False, float_format="{:.2f}".format))
    print(answer(table, quantity))
