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
    return study(open_store(store), languages, seed=seed, families=families)


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
@click.option("--exposure", type=FOLDER, help="Default: exposure.parquet beside the observations.")
@click.option("--law", help="One law only, such as chinchilla; default: all that the data allow.")
@click.option("--target", help="A language; default: all.")
@click.option("--out", type=FOLDER, help="Where the results go as JSON; default: laws.json beside them.")
def fit(
    observations: Path, exposure: Path | None, law: str | None, target: str | None, out: Path | None
) -> None:
    """Fit the laws to observations: a table here, all numbers in a JSON file."""
    raise NotImplementedError


@cli.command()
@click.argument("observations", type=FOLDER)
@click.option("--truth", type=FOLDER, help="truth.json of a generated corpus, to set measurements against.")
@click.option("--out", type=FOLDER, help="Default: report.html beside the observations.")
def report(observations: Path, truth: Path | None, out: Path | None) -> None:
    """Draw one self-contained HTML page from observations."""
    raise NotImplementedError


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
    raise NotImplementedError


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
