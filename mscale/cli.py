"""The command line: one command a stage, and ``demo``, which runs them all.

This module alone imports the other packages, inside the command that needs them, so that a training host
needs no pandas and a laptop with a CSV needs no JAX.
"""

import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

from mscale.errors import MscaleError

EXTRA_OF_MODULE = {
    "altair": "analysis",
    "jinja2": "analysis",
    "pandas": "analysis",
    "pyarrow": "analysis",
    "scipy": "analysis",
    "sklearn": "analysis",
    "vl_convert": "analysis",
    "sentencepiece": "data",
    "seqio": "data",
    "tensorflow": "data",
    "tensorflow_datasets": "data",
}

WAY_THROUGH = """Multilingual pretraining scaling: from text to fitted laws to the next run.

\b
The way through, a stage a command (mscale demo runs them all on a generated corpus):
  mscale corpus my-corpus                   a generated corpus (or bring your own, see below)
  mscale pack my-corpus my-store            text to a token store, with held-out parts
  mscale train --gin_file=... --gin...=     one run
  mscale sweep run demo --store my-store --root my-study    a study of many runs
  mscale fit my-study/observations.parquet        laws, with intervals
  mscale report my-study/observations.parquet     report.html

\b
Your own text is a folder in MADLAD-400's layout: data/<lang>/<lang>_clean_0000.jsonl.gz,
one {"text": ...} a line. Every stage continues where it was interrupted.
"""


class Commands(click.Group):
    """Lists commands in the order of the way through rather than of the alphabet."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(self.commands)


def comma_list(_ctx: click.Context, _param: click.Parameter, value: str | None) -> list[str] | None:
    """Parses ``en,fr`` into a list without empty names."""
    if value is None:
        return None
    names = [name.strip() for name in value.split(",") if name.strip()]
    if not names:
        raise click.BadParameter("expected codes separated by commas, such as en,fr")
    return names


@click.group(cls=Commands, help=WAY_THROUGH, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="mscale")
def cli() -> None:
    pass


FOLDER = click.Path(path_type=Path)
LANGUAGES = click.option("--languages", callback=comma_list, help="Codes separated by commas; default: all.")


@cli.command()
@click.argument("folder", type=FOLDER)
@click.option("--languages", callback=comma_list, help="A number, or codes such as aa,ab,ba; default: 6.")
@click.option("--families", default=3, show_default=True)
@click.option("--bytes", "size", default=1_000_000, show_default=True, help="Of text, per language.")
@click.option("--seed", default=0, show_default=True)
@click.option("--processes", default=1, show_default=True)
def corpus(
    folder: Path, languages: list[str] | None, families: int, size: int, seed: int, processes: int
) -> None:
    """Generate text in related languages, with the truth about them beside it."""
    from mscale.synthetic import generate

    truth = generate(folder, generated_languages(languages), families, size, seed, processes=processes)
    print(f"{folder}: {len(truth['languages'])} languages, {size:,} bytes each; relatedness in truth.json")


def generated_languages(names: list[str] | None) -> int | list[str]:
    """What ``--languages`` means for a generated corpus: how many, or which."""
    if names is None:
        return 6
    return int(names[0]) if len(names) == 1 and names[0].isdecimal() else names


@cli.command()
@click.argument("corpus", type=FOLDER)
@click.argument("store", type=FOLDER)
@LANGUAGES
@click.option("--vocabulary", type=FOLDER, help="A .model of SentencePiece; default: bytes.")
@click.option("--valid-tokens", default=20_000_000, show_default=True, help="Most held out, per language.")
@click.option("--processes", type=int, help="Default: one per core.")
def pack(
    corpus: Path,
    store: Path,
    languages: list[str] | None,
    vocabulary: Path | None,
    valid_tokens: int,
    processes: int | None,
) -> None:
    """Turn a corpus into a token store with held-out parts."""
    from mixtures.pack import pack as pack_store
    from mscale.vocabulary import byte_vocabulary, load_vocabulary

    vocab = load_vocabulary(vocabulary) if vocabulary else byte_vocabulary()
    packed = pack_store(corpus, store, vocab, languages, valid_tokens=valid_tokens, processes=processes)
    train, valid = (
        sum(count(language) for language in packed.languages)
        for count in (packed.train_tokens, packed.valid_tokens)
    )
    print(f"{store}: {len(packed.languages)} languages, {train:,} tokens to train on, {valid:,} held out")


@cli.command(context_settings={"ignore_unknown_options": True, "help_option_names": []})
@click.argument("arguments", nargs=-1, type=click.UNPROCESSED)
def train(arguments: tuple[str, ...]) -> int:
    """Train one run: --gin_file=gin/train/pretrain.gin --gin.NAME=VALUE ...; as python -m mscale.train."""
    from mscale.train import main as train_main

    return train_main(list(arguments))


@cli.group(cls=Commands)
def sweep() -> None:
    """Plan, run and collect a study of many runs."""


def study_options(command: Callable) -> Callable:
    """The arguments that say which study is meant."""
    for option in (
        click.option("--seed", default=0, show_default=True),
        LANGUAGES,
        click.option("--truth", type=FOLDER, help="truth.json of a generated corpus, for its families."),
        click.option("--store", type=FOLDER, required=True, help="The token store, from mscale pack."),
        click.argument("study", type=click.Choice(["demo"])),
    ):
        command = option(command)
    return command


def demo_study(store: Path, languages: list[str] | None, seed: int, truth: Path | None) -> Any:
    from mscale.files import read_json
    from mscale.store import open_store
    from sweeps.studies.demo import demo as study

    families = None
    if truth is not None:
        described = read_json(truth, what="ground truth")["languages"]
        families = {language: facts["family"] for language, facts in described.items()}
    return study(open_store(store), languages=languages, families=families, seed=seed)


@sweep.command("plan")
@study_options
def sweep_plan(study: str, store: Path, truth: Path | None, languages: list[str] | None, seed: int) -> None:
    """Print what a study would run and what it costs."""
    from rich.console import Console

    from sweeps.planner import plan_table

    Console().print(plan_table(demo_study(store, languages, seed, truth)))


@sweep.command("run")
@study_options
@click.option("--root", type=FOLDER, required=True, help="The study's folder; called again it continues.")
@click.option("--workers", type=int, help="Processes; default: one per core.")
def sweep_run(
    study: str,
    store: Path,
    truth: Path | None,
    languages: list[str] | None,
    seed: int,
    root: Path,
    workers: int | None,
) -> None:
    """Train all runs of a study that are not done, then collect its tables."""
    from sweeps.local import run

    run(demo_study(store, languages, seed, truth), root, workers=workers)
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


@cli.command()
@click.argument("observations", type=FOLDER)
@click.option("--law", help="One law alone, such as chinchilla; default: all that the data allow.")
@click.option("--target", help="With --law: one language alone.")
@click.option("--truth", type=FOLDER, help="truth.json of a generated corpus, to set measurements against.")
@click.option(
    "--out", type=FOLDER, help="Results as JSON; default: laws.json, or LAW.json, beside the table."
)
def fit(
    observations: Path, law: str | None, target: str | None, truth: Path | None, out: Path | None
) -> None:
    """Fit the laws to OBSERVATIONS, a table or the folder of a study: findings here, all numbers as JSON."""
    folder = observations if observations.is_dir() else observations.parent
    if law is None:
        if target is not None:
            raise click.UsageError("--target needs --law")
        analyse(observations, out or folder / "laws.json", truth)
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


def analyse(observations: Path, out: Path, truth: Path | None = None, study: dict | None = None) -> dict:
    """Answers all that a study can answer, into the JSON file ``out`` and as a table on the terminal."""
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
@click.option("--workdir", type=FOLDER, default=Path("demo-work"), show_default=True)
@click.option("--corpus", type=FOLDER, help="Text of your own; default: a generated corpus.")
@click.option("--languages", callback=comma_list, help="Codes, or for generated text a number; default: 6.")
@click.option("--seed", default=0, show_default=True, help="Of text, models and data order.")
@click.option("--workers", type=int, help="Processes that train; default: one per core.")
def demo(
    workdir: Path, corpus: Path | None, languages: list[str] | None, seed: int, workers: int | None
) -> None:
    """All stages, from text to report.html, in a few minutes."""
    from mscale.files import atomic_json, read_json

    page, record = workdir / "report.html", workdir / "demo.json"
    asked = {"corpus": str(corpus.resolve()) if corpus else None, "languages": languages, "seed": seed}
    before = read_json(record, what="record of the demo") if record.exists() else {}
    differing = [name for name in asked if name in before and before[name] != asked[name]]
    if differing:
        raise MscaleError(
            f"{record}: this folder holds a demo with {differing[0]} {before[differing[0]]}, asked for is "
            f"{asked[differing[0]]}; choose another --workdir, or delete this one"
        )
    if "finished" in before and page.exists():
        print(f"already done: {page} ({before['finished']}); choose another --workdir to run it again")
        return
    atomic_json(record, asked)
    finished = run_demo(workdir, corpus, languages, seed, workers)
    atomic_json(record, {**asked, "finished": finished})
    print(f"{page}: open it in a browser ({finished})")


def run_demo(
    workdir: Path, corpus: Path | None, languages: list[str] | None, seed: int, workers: int | None
) -> str:
    """Runs the stages one after the other, each of which skips what is done; returns what it took."""
    import resource
    import shutil
    import time

    from analysis.report import write_report
    from mixtures.pack import pack as pack_store
    from mscale.synthetic import generate
    from mscale.vocabulary import byte_vocabulary
    from sweeps.local import run

    began = time.monotonic()
    store, root, truth = workdir / "store", workdir / "study", None
    if corpus is None:
        corpus = workdir / "corpus"
        print("1/6 generating a corpus whose languages are related by known amounts")
        generate(corpus, generated_languages(languages), seed=seed)
        truth, languages = corpus / "truth.json", None
    else:
        print(f"1/6 reading {corpus}")
    print("2/6 packing it into a token store")
    pack_store(corpus, store, byte_vocabulary(), languages)
    study = demo_study(store, None, seed, truth)
    print(f"3/6 training {len(study.runs)} runs")
    for note in study.notes:
        print(f"  note: {note}")
    ran_now = run(study, root, workers=workers)
    print("4/6 collecting observations")
    print_collected(root)
    if truth is not None:
        shutil.copyfile(truth, root / "truth.json")
    print("5/6 fitting the laws")
    results = analyse(root, workdir / "laws.json", truth)
    print("6/6 drawing the report")
    write_report(results, workdir / "report.html")
    kilobytes = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    peak = max(ran_now.peak_memory_bytes, kilobytes * 1024)
    return f"{time.monotonic() - began:,.0f} s, peak memory {peak / 1e9:.2f} GB"


def main(argv: list[str] | None = None) -> None:
    """Runs the command line; errors a user can mend are one message and exit status 1."""
    sys.exit(_status(lambda: cli.main(args=argv, prog_name="mscale", standalone_mode=False)))


def _status(command: Callable[[], Any]) -> int:
    try:
        result = command()
        return result if isinstance(result, int) else 0
    except MscaleError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except click.ClickException as error:
        error.show()
        return error.exit_code
    except (click.Abort, KeyboardInterrupt):
        print("interrupted; the same command continues where it stopped", file=sys.stderr)
        return 130
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except ModuleNotFoundError as error:
        extra = EXTRA_OF_MODULE.get((error.name or "").partition(".")[0])
        if extra is None:
            raise
        print(f"error: this needs {error.name}: pip install 'mscale[{extra}]'", file=sys.stderr)
        return 1


if __name__ == "__main__":
    main()
