"""`mscale demo`: every stage from a corpus to the report, on one machine."""

from pathlib import Path

import click

from analysis.commands.laws import analyse_and_print
from mixtures.commands import generated_languages
from mscale.commands import LOCAL_FOLDER, comma_list
from mscale.errors import MscaleError
from sweeps.commands import make_study, print_collected


@click.command()
@click.option("--workdir", type=LOCAL_FOLDER, default=Path("demo-work"), show_default=True)
@click.option("--corpus", type=LOCAL_FOLDER, help="Text of your own; default: a generated corpus.")
@click.option("--languages", callback=comma_list, help="Codes, or for generated text a number; default: 6.")
@click.option("--seed", default=0, show_default=True, help="Of text, models and data order.")
@click.option("--workers", type=int, help="Processes that train; default: one per core.")
def demo(
    workdir: Path, corpus: Path | None, languages: list[str] | None, seed: int, workers: int | None
) -> None:
    """All stages, from text to report.html, in a few minutes."""
    from mscale.files import atomic_json, read_json

    page, record = workdir / "report.html", workdir / "demo.json"
    options = {"corpus": str(corpus.resolve()) if corpus else None, "languages": languages, "seed": seed}
    before = read_json(record, what="record of the demo") if record.exists() else {}
    differing = [name for name in options if name in before and before[name] != options[name]]
    if differing:
        raise MscaleError(
            f"{record}: this folder holds a demo with {differing[0]} {before[differing[0]]}, asked for is "
            f"{options[differing[0]]}; choose another --workdir, or delete this one"
        )
    if "finished" in before and page.exists():
        print(f"already done: {page} ({before['finished']}); choose another --workdir to run it again")
        return
    atomic_json(record, options)
    finished = run_demo(workdir, corpus, languages, seed, workers)
    atomic_json(record, {**options, "finished": finished})
    print(f"{page}: open it in a browser ({finished})")


def run_demo(
    workdir: Path, corpus: Path | None, languages: list[str] | None, seed: int, workers: int | None
) -> str:
    """Runs the stages in order; each skips what is already done. Returns the time and memory they took, as text."""
    import resource
    import shutil
    import time

    from analysis.report.report import write_report
    from analysis.second_process import SecondProcess
    from analysis.vega import scripts
    from mixtures.packing.pack import pack as pack_store
    from mixtures.synthetic.generate import generate
    from mscale.data.parallel_text import byte_premiums
    from mscale.data.store import unigram_overlap
    from mscale.data.vocabulary import byte_vocabulary
    from sweeps.executors.local import run

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
    study = make_study("demo", store, truth, None, seed)
    print(f"3/6 training {len(study.runs)} runs")
    for note in study.notes:
        print(f"  note: {note}")
    ran_now = run(study, root, workers=workers)
    print("4/6 collecting observations")
    print_collected(root)
    if truth is not None:
        shutil.copyfile(truth, root / "truth.json")
    print("5/6 fitting the laws")
    vega_scripts = SecondProcess(True).submit(scripts)  # in parallel with the fits
    results = analyse_and_print(
        root,
        workdir / "laws.json",
        truth,
        overlap=unigram_overlap(store),
        premiums=None if truth is None else byte_premiums(corpus),
    )
    print("6/6 drawing the report")
    write_report(results, workdir / "report.html", vega_scripts())
    kilobytes = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    peak = max(ran_now.peak_memory_bytes, kilobytes * 1024)
    return f"{time.monotonic() - began:,.0f} s, peak memory {peak / 1e9:.2f} GB"
