"""How close packing comes to the bare tokenizer: both on the same text, in the same run, on 1 core and on all.

    python benchmarks/pack.py --corpus ../shared/corpora/madlad_mini --vocabulary my-vocabulary --out pack.json

The raw encoder is SentencePiece alone, a call a document into a NumPy array, on text that is already in memory;
packing reads, decompresses and parses the files, splits, encodes, counts, hashes, joins and writes. CPU seconds
(of all processes) are what is compared, as other work on the machine does not change them; wall seconds are
printed beside. Rounds alternate between the two; the best of each counts.
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

from mixtures.inputs import documents, find
from mixtures.pack import pack
from mscale.vocabulary import Vocabulary, byte_vocabulary, load_vocabulary

SHARED = Path(__file__).resolve().parents[2] / "shared" / "corpora" / "madlad_mini"


def cpu_seconds() -> float:
    """Of this process and of all that it started and that ended."""
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
    """Reads its share of the text, then times nothing but the encoder."""
    texts = [text for one in files for text in documents(one) if text]
    encode = vocabulary._processor.encode_as_numpy if hasattr(vocabulary, "_processor") else vocabulary.encode
    encode(texts[0])  # loads the model
    wall, cpu = time.perf_counter(), time.process_time()
    for text in texts:
        encode(text)
    results.put((time.perf_counter() - wall, time.process_time() - cpu, sum(len(t.encode()) for t in texts)))


def raw(vocabulary: Vocabulary, files: list, processes: int) -> tuple[float, float, int]:
    """Wall seconds of the slowest process, CPU seconds of all, bytes of all."""
    context = multiprocessing.get_context("spawn")
    results = context.Queue()
    shares: list[list] = [[] for _ in range(processes)]
    for one in sorted(files, key=lambda one: -one.size):  # the largest to whoever has least
        min(shares, key=lambda share: sum(other.size for other in share)).append(one)
    workers = [context.Process(target=encode_raw, args=(vocabulary, share, results)) for share in shares]
    for worker in workers:
        worker.start()
    walls, cpus, sizes = zip(*(results.get() for _ in workers), strict=True)
    for worker in workers:
        worker.join()
    return max(walls), sum(cpus), sum(sizes)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--corpus", type=Path, default=SHARED)
    parser.add_argument("--vocabulary", type=Path, help="a SentencePiece vocabulary; default: bytes")
    parser.add_argument("--languages", default="en,es,fr,ja,zh,ko", help="codes separated by commas, or all")
    parser.add_argument("--processes", default=f"1,{len(os.sched_getaffinity(0))}")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--out", type=Path, help="the figures as JSON; default: to the terminal")
    options = parser.parse_args()
    if not options.corpus.is_dir():
        print(f"{options.corpus}: no corpus there; give --corpus", file=sys.stderr)
        return
    vocabulary = load_vocabulary(options.vocabulary) if options.vocabulary else byte_vocabulary()
    languages = None if options.languages == "all" else options.languages.split(",")
    files = [one for of_language in find(options.corpus, languages).values() for one in of_language]

    result: dict = {"vocabulary": vocabulary.fingerprint, "languages": len(files), "rounds": options.rounds}
    for processes in map(int, options.processes.split(",")):
        best: dict[str, list[float]] = {}
        for _ in range(options.rounds):
            wall, cpu, size = raw(vocabulary, files, processes)
            found = {"raw_wall": wall, "raw_cpu": cpu}
            with tempfile.TemporaryDirectory() as folder:
                wall, cpu = measured(
                    pack, options.corpus, folder, vocabulary, languages, 20_000_000, processes
                )
            found |= {"pack_wall": wall, "pack_cpu": cpu}
            for key, value in found.items():
                best.setdefault(key, []).append(value)
        seconds = {key: min(values) for key, values in best.items()}
        result["text_MB"] = size / 1e6
        result[f"processes_{processes}"] = {
            **{f"{key}_seconds": round(value, 3) for key, value in seconds.items()},
            "raw_MB_per_cpu_second": round(size / 1e6 / seconds["raw_cpu"], 2),
            "pack_MB_per_cpu_second": round(size / 1e6 / seconds["pack_cpu"], 2),
            "pack_MB_per_second": round(size / 1e6 / seconds["pack_wall"], 2),
            "share_of_raw_per_core": round(seconds["raw_cpu"] / seconds["pack_cpu"], 3),
        }
    result["peak_memory_MB"] = round(
        max(resource.getrusage(who).ru_maxrss for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
        / 1e3
    )
    text = json.dumps(result, indent=2)
    print(text)
    if options.out:
        options.out.write_text(text + "\n")


if __name__ == "__main__":
    main()
