"""The command line: one command a stage, and ``demo``, which runs them all.

This package alone imports the other packages, inside the command that needs them, so that a training host
needs no pandas and a laptop with a CSV needs no JAX.
"""

import os
import re
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
  mscale corpus my-corpus             generated text (or bring your own, see below)
  mscale pack my-corpus my-store      text to a token store, with held-out parts
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


class Commands(click.Group):
    """Lists commands in the order of the way through rather than of the alphabet."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(self.commands)


class LocalPath(click.Path):
    """A path of this machine; a URL, of which ``Path`` would make a folder named ``s3:``, is refused."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        if isinstance(value, str) and re.match(r"(?!file:)[a-z][a-z0-9+.-]+://", value):
            self.fail(f"{value} is a URL: of all paths only --store takes one; give a local path", param, ctx)
        return super().convert(value, param, ctx)


FOLDER = LocalPath(path_type=Path)
STORE = click.Path(path_type=Path)  # a folder or a URL


def comma_list(_ctx: click.Context, _param: click.Parameter, value: str | None) -> list[str] | None:
    """Parses ``en,fr`` into a list without empty names."""
    if value is None:
        return None
    names = [name.strip() for name in value.split(",") if name.strip()]
    if not names:
        raise click.BadParameter("expected codes separated by commas, such as en,fr")
    return names


def numbers_of(example: str) -> Any:
    """A parser of options such as ``ca=2e9,es=5e9``."""

    def parse(_ctx: click.Context, _param: click.Parameter, value: str | None) -> dict[str, float] | None:
        if value is None:
            return None
        found = {}
        for part in value.split(","):
            name, equals, number = part.strip().partition("=")
            try:
                found[name] = float(number)
            except ValueError:
                equals = ""
            if not (name and equals and found[name] == found[name]):
                raise click.BadParameter(f"expected language=number, such as {example}; found {part!r}")
        return found

    return parse


LANGUAGES = click.option("--languages", callback=comma_list, help="Codes separated by commas; default: all.")


@click.group(cls=Commands, help=WAY_THROUGH, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="mscale")
def cli() -> None:
    pass


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


# Each module adds its commands to ``cli``; the order is that of the way through.
from mscale.cli import answers, memory, plan, stages, sweep

from mscale.cli import demo  # noqa: E402, F401  isort:skip
