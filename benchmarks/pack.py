"""Throughput of packing relative to the tokenizer alone: same text, same run, on one core and on all.

    python benchmarks/pack.py --corpus ../shared/corpora/madlad_mini --vocabulary my-vocabulary --out pack.json

The raw encoder is SentencePiece alone, a call a document on text that is already in memory, in two ways: `encode`,
which is what people call, and `encode_as_numpy`, the fastest there is and what packing calls. Packing reads,
decompresses and parses the files, splits, encodes, counts, hashes, joins and writes. What is compared is CPU seconds
(of all processes, with their start), as other work on the machine does not change them; wall seconds stand beside.
Rounds alternate; the best of each counts.
"""

import argparse
import json
import multiprocessing
import os
import resource
import sys
import tempfile
import time
from pathlib import Path

from mixtures.packing.inputs import InputFile, find_inputs, read_documents
from mixtures.packing.pack import pack
from mscale.data.vocabulary import Vocabulary, byte_vocabulary, load_vocabulary

SHARED = Path(__file__).resolve().parents[2] / "shared" / "corpora" / "madlad_mini"


def cpu_seconds() -> float:
    """CPU seconds of this process and of its ended children."""
    return sum(
        used.ru_utime + used.ru_stime
        for used in map(resource.getrusage, (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    )


def measured(function, *arguments) -> tuple[float, float]:
    """Wall and CPU seconds."""
    wall, cpu = time.perf_counter(), cpu_seconds()
    function(*arguments)
    return time.perf_counter() - wall, cpu_seconds() - cpu


def encode_raw(vocabulary: Vocabulary, files: list, results) -> None:
    """Reads its share of the text, then times the encoder alone."""
    texts = [text for one in files for text in read_documents(one) if text]
    processor = getattr(vocabulary, "_processor", None)
    found: dict[str, float] = {"bytes": sum(len(text.encode()) for text in texts)}
    for name in ("encode", "encode_as_numpy"):
        encode = getattr(processor, name, vocabulary.encode)
        encode(texts[0])  # loads the model
        wall, cpu = time.perf_counter(), time.process_time()
        for text in texts:
            encode(text)
        found[f"{name}_wall"], found[f"{name}_cpu"] = time.perf_counter() - wall, time.process_time() - cpu
    results.put(found)


def raw(vocabulary: Vocabulary, files: list, processes: int) -> dict[str, float]:
    """Wall seconds of the slowest process, CPU seconds and bytes of all."""
    context = multiprocessing.get_context("spawn")
    results = context.Queue()
    shares: list[list] = [[] for _ in range(processes)]
    for one in sorted(files, key=lambda one: -one.size):  # the largest to whoever has least
        min(shares, key=lambda share: sum(other.size for other in share)).append(one)
    workers = [context.Process(target=encode_raw, args=(vocabulary, share, results)) for share in shares]
    for worker in workers:
        worker.start()
    parts = [results.get() for _ in workers]
    for worker in workers:
        worker.join()
    return {
        key: (max if key.endswith("wall") else sum)(part[key] for part in parts)  # type: ignore[operator]
        for key in parts[0]
    }


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--corpus", type=Path, default=SHARED)
    parser.add_argument("--vocabulary", type=Path, help="a SentencePiece vocabulary; default: bytes")
    parser.add_argument("--languages", default="en,es,fr,ja,zh,ko", help="codes separated by commas, or all")
    parser.add_argument("--processes", default=f"1,{len(os.sched_getaffinity(0))}")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--folder", type=Path, help="where stores are made; default: the temporary folder")
    parser.add_argument("--out", type=Path, help="the figures as JSON; default: to the terminal")
    options = parser.parse_args()
    if not options.corpus.is_dir():
        print(f"{options.corpus}: no corpus there; give --corpus", file=sys.stderr)
        return
    vocabulary = load_vocabulary(options.vocabulary) if options.vocabulary else byte_vocabulary()
    languages = None if options.languages == "all" else options.languages.split(",")
    files = [one for of_language in find_inputs(options.corpus, languages).values() for one in of_language]

    with tempfile.TemporaryDirectory(dir=options.folder) as stores:
        result = compare(options, vocabulary, languages, files, stores)
    text = json.dumps(result, indent=2)
    print(text)
    if options.out:
        options.out.write_text(text + "\n")


def compare(
    options: argparse.Namespace,
    vocabulary: Vocabulary,
    languages: list[str] | None,
    files: list[InputFile],
    stores: str,
) -> dict:
    """Packs and encodes in turn; returns the figures."""
    result: dict = {"vocabulary": vocabulary.fingerprint, "languages": len(files), "rounds": options.rounds}
    for processes in map(int, options.processes.split(",")):
        best: dict[str, list[float]] = {}
        for _ in range(options.rounds):
            found = raw(vocabulary, files, processes)
            # Stores are kept to the end: a file system is slow to make files just after many were deleted.
            folder = tempfile.mkdtemp(dir=stores)
            wall, cpu = measured(pack, options.corpus, folder, vocabulary, languages, 20_000_000, processes)
            for key, value in (found | {"pack_wall": wall, "pack_cpu": cpu}).items():
                best.setdefault(key, []).append(value)
        seconds = {key: min(values) for key, values in best.items()}
        size = seconds.pop("bytes") / 1e6
        result["text_MB"] = round(size, 1)
        result[f"processes_{processes}"] = {
            **{f"{key}_seconds": round(value, 3) for key, value in seconds.items()},
            **{f"{key}_MB_per_s": round(size / value, 2) for key, value in seconds.items()},
            "pack_over_encode_per_core": round(seconds["encode_cpu"] / seconds["pack_cpu"], 3),
            "pack_over_encode_as_numpy_per_core": round(
                seconds["encode_as_numpy_cpu"] / seconds["pack_cpu"], 3
            ),
        }
    result["peak_memory_MB"] = round(
        max(resource.getrusage(who).ru_maxrss for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
        / 1e3
    )
    return result


if __name__ == "__main__":
    main()
