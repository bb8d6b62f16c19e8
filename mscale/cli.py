"""The command line: a table of commands, each defined in the package that it belongs to.

A command's module is imported only when it runs, so that a training host needs no pandas and analysis needs no JAX.
"""

import os
import sys
from collections.abc import Callable
from typing import Any

import click

from mscale.commands import LazyGroup
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

HELP_TEXT = """Multilingual pretraining scaling: from text to fitted laws to the next run.

\b
The way through, a stage a command (mscale demo runs them all on a generated corpus):
  mscale corpus my-corpus             generated text (or bring your own, see below)
  mscale pack my-corpus my-store      text to a token store, with held-out parts
  mscale store copy my-store gs://my-bucket/my-store       where hosts train from a bucket
  mscale mixture show unimax --store my-store --tokens 1e6    what a run would see
  mscale train --gin_file=gin/train/pretrain.gin --gin.SCALE='"nano2"' ...    one run
  mscale sweep plan demo --store my-store                     what many runs cost
  mscale sweep run demo --store my-store --root my-study      many runs, and their table
  mscale fit my-study                 laws with intervals, into my-study/laws.json
  mscale report my-study/laws.json    my-study/report.html
  mscale transfer my-study            every pair's transfer score, as a table
  mscale plan languages --target aa --results my-study/laws.json     decisions

\b
Your own text is a folder in MADLAD-400's layout: data/<lang>/<lang>_clean_0000.jsonl.gz,
one {"text": ...} a line. Every stage continues where it was interrupted.
"""

COMMANDS = {
    "corpus": ("mixtures.commands:corpus", "Generate text in related languages, with the truth beside it."),
    "pack": ("mixtures.commands:pack", "Turn a corpus into a token store with held-out parts."),
    "vocabulary": ("mixtures.commands:vocabulary", "Train vocabularies and compare them."),
    "store": ("mscale.commands:store", "Copy a token store, to a bucket for instance."),
    "mixture": ("mixtures.commands:mixture", "See what a mixture draws."),
    "train": ("mscale.commands:train", "Train one run, or continue it, from gin files and overrides."),
    "sweep": ("sweeps.commands:sweep", "Plan, run and collect a study of many runs."),
    "fit": (
        "analysis.commands.laws:fit",
        "Fit laws to a table or a study: findings, and all numbers as JSON.",
    ),
    "report": ("analysis.commands.laws:report", "Draw one self-contained HTML page."),
    "transfer": (
        "analysis.commands.laws:transfer",
        "Read the transfer matrix off a table of curves or a study.",
    ),
    "plan": ("analysis.commands.plan:plan", "Decide: which languages, how large, from where, which mixture."),
    "power": (
        "analysis.commands.plan:power",
        "How many seeds tell a quantity from zero, by planted studies.",
    ),
    "demo": ("analysis.commands.demo:demo", "All stages, from text to report.html, in a few minutes."),
    "doctor": (
        "mscale.doctor:doctor",
        "Print versions, devices, extras and settings: what a bug report needs.",
    ),
}
"""Command to (module:attribute, one line of help)."""


@click.group(
    cls=LazyGroup,
    table=COMMANDS,
    help=HELP_TEXT,
    context_settings={"help_option_names": ["-h", "--help"]},
)
@click.version_option(package_name="mscale")
def cli() -> None:
    pass


def main(argv: list[str] | None = None) -> None:
    """Runs the command line; a ``MscaleError`` is printed as one message, with exit status 1."""
    sys.exit(exit_status(lambda: cli.main(args=argv, prog_name="mscale", standalone_mode=False)))


def exit_status(command: Callable[[], Any]) -> int:
    """Runs ``command`` and returns the exit status; expected errors are printed without a traceback."""
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
