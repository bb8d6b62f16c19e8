"""Parameter types and command groups that the commands of all packages share, and the commands `store` and `train`.

A command is a click command in the ``commands`` module of the package that it belongs to; ``cli`` lists them all.
"""

import importlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import click


class OrderedGroup(click.Group):
    """A group that lists its commands in the order of their definition instead of the alphabet."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(self.commands)


class LazyGroup(click.Group):
    """A group that lists its commands from a table and imports a command's module only when it runs."""

    def __init__(self, *args: Any, table: Mapping[str, tuple[str, str]], **options: Any):
        """``table`` maps the name of a command to ("module:attribute", one line of help)."""
        super().__init__(*args, **options)
        self.table = table

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(self.table)

    def get_command(self, ctx: click.Context, name: str) -> click.Command | None:
        if name not in self.table:
            return None
        module, _, attribute = self.table[name][0].partition(":")
        return getattr(importlib.import_module(module), attribute)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl([(name, text) for name, (_, text) in self.table.items()])


class LocalPath(click.Path):
    """A local path; a URL is an error, since ``Path`` would turn it into a folder named ``s3:``."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        if isinstance(value, str):
            from mscale.remote import Url, location

            place = location(value)
            if isinstance(place, Url):
                self.fail(f"{value} is a URL, and this is a path of the local disk", param, ctx)
            value = str(place)
        return super().convert(value, param, ctx)


LOCAL_FOLDER = LocalPath(path_type=Path)


STORE_PATH = click.Path(path_type=Path)  # a folder or a URL


def comma_list(_ctx: click.Context, _param: click.Parameter, value: str | None) -> list[str] | None:
    """Click callback that parses ``en,fr`` into a list without empty names; None stays None."""
    if value is None:
        return None
    names = [name.strip() for name in value.split(",") if name.strip()]
    if not names:
        raise click.BadParameter("expected codes separated by commas, such as en,fr")
    return names


def number_map_parser(example: str) -> Any:
    """Returns a click callback that parses ``ca=2e9,es=5e9`` into a dict; ``example`` is for its error."""

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


LANGUAGES_OPTION = click.option(
    "--languages", callback=comma_list, help="Codes separated by commas; default: all."
)


@click.group(cls=OrderedGroup)
def store() -> None:
    """Bring a token store to where it is trained on."""


@store.command("copy")
@click.argument("source", type=STORE_PATH)
@click.argument("destination", type=STORE_PATH)
def store_copy(source: Path, destination: Path) -> None:
    """Copy the store SOURCE to DESTINATION, each a folder or a URL such as gs://bucket/store.

    Files are checked as they are copied. An interrupted copy continues, and a damaged one is mended; store.json is
    written last.
    """
    from mscale.data.copying import copy_store

    copied = copy_store(source, destination)
    print(f"{copied.path}: {len(copied.languages)} languages")


@click.command(context_settings={"ignore_unknown_options": True}, add_help_option=False)
@click.argument("arguments", nargs=-1, type=click.UNPROCESSED)
def train(arguments: tuple[str, ...]) -> int:
    """Train one run, or continue it; the same as python -m mscale.train, whose ``main`` has the help too."""
    from mscale.train import main as train_main

    return train_main(list(arguments))
