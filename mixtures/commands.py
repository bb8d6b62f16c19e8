"""The commands from text to tokens: corpus, vocabulary, pack, mixture."""

from pathlib import Path

import click

from mscale.commands import LANGUAGES_OPTION, LOCAL_FOLDER, STORE_PATH, OrderedGroup, comma_list


@click.command()
@click.argument("folder", type=LOCAL_FOLDER)
@click.option("--languages", callback=comma_list, help="A number, or codes such as aa,ab,ba; default: 6.")
@click.option("--families", default=3, show_default=True)
@click.option("--bytes", "size", default=1_000_000, show_default=True, help="Of text, per language.")
@click.option("--seed", default=0, show_default=True)
@click.option("--processes", default=1, show_default=True)
def corpus(
    folder: Path, languages: list[str] | None, families: int, size: int, seed: int, processes: int
) -> None:
    """Generate text in related languages, with the truth about them beside it."""
    from mixtures.synthetic.generate import generate

    truth = generate(folder, generated_languages(languages), families, size, seed, processes=processes)
    print(f"{folder}: {len(truth['languages'])} languages, {size:,} bytes each; relatedness in truth.json")


def generated_languages(names: list[str] | None) -> int | list[str]:
    """``--languages`` of a generated corpus: their number, or their codes; 6 by default."""
    if names is None:
        return 6
    return int(names[0]) if len(names) == 1 and names[0].isdecimal() else names


@click.command()
@click.argument("corpus", type=LOCAL_FOLDER)
@click.argument("store", type=LOCAL_FOLDER)
@LANGUAGES_OPTION
@click.option("--vocabulary", type=LOCAL_FOLDER, help="A vocabulary's folder or .model; default: bytes.")
@click.option("--valid-tokens", default=20_000_000, show_default=True, help="Most held out, per language.")
@click.option("--split-from", type=LOCAL_FOLDER, help="Another store: hold out the same text as it does.")
@click.option("--sequence-length", type=int, help="Every language must have a window of so many tokens.")
@click.option("--drop-short", is_flag=True, help="Leave out the languages that have none.")
@click.option("--processes", type=int, help="Default: one per core.")
def pack(
    corpus: Path,
    store: Path,
    languages: list[str] | None,
    vocabulary: Path | None,
    valid_tokens: int,
    split_from: Path | None,
    sequence_length: int | None,
    drop_short: bool,
    processes: int | None,
) -> None:
    """Turn a corpus into a token store with held-out parts."""
    from mixtures.packing.pack import pack as pack_store
    from mscale.data.vocabulary import byte_vocabulary, load_vocabulary

    vocab = load_vocabulary(vocabulary) if vocabulary else byte_vocabulary()
    packed = pack_store(
        corpus,
        store,
        vocab,
        languages,
        valid_tokens=valid_tokens,
        processes=processes,
        split_from=split_from,
        sequence_length=sequence_length,
        drop_short=drop_short,
    )
    train, valid = (
        sum(count(language) for language in packed.languages)
        for count in (packed.train_tokens, packed.valid_tokens)
    )
    print(f"{store}: {len(packed.languages)} languages, {train:,} tokens to train on, {valid:,} held out")


@click.group(cls=OrderedGroup)
def vocabulary() -> None:
    """Train a SentencePiece vocabulary, and see whether it is fair to the languages."""


@vocabulary.command("train")
@click.argument("corpus", type=LOCAL_FOLDER)
@click.argument("folder", type=LOCAL_FOLDER)
@LANGUAGES_OPTION
@click.option("--pieces", default=64_000, show_default=True, help="Including the 256 of byte fallback.")
@click.option("--special", default=512, show_default=True, help="Ids that no text encodes to.")
@click.option("--temperature", default=100.0, show_default=True, help="Of sampling the languages.")
@click.option("--sample-bytes", default=200_000_000, show_default=True, help="Text to train on, in all.")
def vocabulary_train(
    corpus: Path,
    folder: Path,
    languages: list[str] | None,
    pieces: int,
    special: int,
    temperature: float,
    sample_bytes: int,
) -> None:
    """Train a vocabulary on CORPUS into FOLDER."""
    from mixtures.train_vocabulary import train_vocabulary

    made = train_vocabulary(corpus, folder, pieces, special, languages, temperature, sample_bytes)
    print(f"{folder}: {made.size:,} ids, {made.fingerprint}")


@vocabulary.command("report")
@click.argument("vocabulary", type=LOCAL_FOLDER)
@click.option("--corpus", type=LOCAL_FOLDER, help="Text to measure fertility on.")
@click.option("--parallel", type=LOCAL_FOLDER, help="The same text in many languages, for byte premiums.")
@LANGUAGES_OPTION
def vocabulary_report(
    vocabulary: Path, corpus: Path | None, parallel: Path | None, languages: list[str] | None
) -> None:
    """Tabulate tokens per byte and word, pieces per script, and byte premiums."""
    from rich.console import Console

    from mixtures.vocabulary_report import report_tables
    from mixtures.vocabulary_report import vocabulary_report as measure
    from mscale.data.vocabulary import load_vocabulary

    for table in report_tables(measure(load_vocabulary(vocabulary), corpus, languages, parallel)):
        Console().print(table)


@click.group(cls=OrderedGroup)
def mixture() -> None:
    """See what a mixture draws."""


@mixture.command("show")
@click.argument("name")
@click.option("--store", type=STORE_PATH, required=True)
@click.option("--tokens", type=float, required=True, help="Budget of the run.")
@click.option("--sequence-length", default=128, show_default=True)
@click.option("--limit", type=int, help="Print so many languages, and the others as one line; default: all.")
@click.option("--csv", type=LOCAL_FOLDER, help="A file for the table.")
@click.option("--plot", type=LOCAL_FOLDER, help="A .png, .svg or .html to draw.")
def mixture_show(
    name: str,
    store: Path,
    tokens: float,
    sequence_length: int,
    limit: int | None,
    csv: Path | None,
    plot: Path | None,
) -> None:
    """Print, for mixture NAME (en+fr, uniform, unimax, ...): language, unique tokens, rate, tokens, epochs."""
    from rich.console import Console

    from mixtures import show
    from mscale.data.mixture import SamplingOptions, resolve
    from mscale.data.store import open_store
    from mscale.files import atomic_write

    opened = open_store(store)
    resolved = resolve(name, opened, sequence_length, options=SamplingOptions(budget_tokens=int(tokens)))
    rows = show.mixture_rows(resolved, tokens, opened)
    Console().print(show.mixture_table(resolved, rows, limit))
    if csv is not None:
        atomic_write(csv, show.rows_to_csv(rows))
        print(csv)
    if plot is not None:
        show.save_chart(show.mixture_chart(resolved, rows), plot)
        print(plot)
