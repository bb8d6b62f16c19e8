"""Feeding a mixture: mscale, SeqIO and Grain on the same text, and the bound set by memory bandwidth.

    python benchmarks/mixture_feed.py [--corpus DIR] [--seconds 5] [--only NAME …] > mixture_feed.json

Every contestant runs in a process of its own over the same packed store or corpus (bytes, sequence 1,024, batches of
256), whose files are read once before, and reports: seconds from opening its data to the first batch, steady tokens/s
(wall, and per CPU second of all its threads, which other work on the machine changes little), and the peak of its
anonymous memory over that of a bare interpreter (pages of mapped files are not counted). One JSON object on standard
output.
About four minutes on two idle cores, most of them SeqIO's.

    ours            all languages, uniform, mscale.data.feed
    ours_cold       the same, with the store's files dropped from the page cache first (POSIX_FADV_DONTNEED)
    packed_task     the same through SeqIO, as the one task `packed.uniform`
    grain           grain.MapDataset.mix of one shuffled, repeated source a language, all languages
    seqio_20, _50   a SeqIO mixture of 20 or 50 tasks, shuffled as for training
    simulated       the schedule alone for 420 languages of 10^9 windows each at ATLAS's rates, near and far
    limit           copying and gathering with nothing else: what the memory gives
"""

import argparse
import ctypes
import json
import mmap
import os
import platform
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
BATCH, S = 256, 1024
TOKENS = BATCH * S
# Seconds after which a contestant is ended and reported as such.
TIMEOUT = 300


def anonymous_bytes() -> int:
    """Anonymous memory of this process: its own pages, not those of mapped files."""
    with open("/proc/self/status") as status:
        return next(int(line.split()[1]) for line in status if line.startswith("RssAnon")) * 1024


class Peak:
    """The peak of anonymous memory, sampled every 5 ms."""

    def __init__(self) -> None:
        self.base = self.peak = anonymous_bytes()
        threading.Thread(target=self._watch, daemon=True).start()

    def _watch(self) -> None:
        while True:
            self.peak = max(self.peak, anonymous_bytes())
            time.sleep(0.005)

    @property
    def over_interpreter(self) -> int:
        return max(self.peak, anonymous_bytes()) - self.base


def measure(open_data: Callable[[], Iterator[Any]], seconds: float) -> dict[str, Any]:
    """First batch and steady rate of the batches that ``open_data`` returns."""
    start = time.perf_counter()
    batches = open_data()
    first = next(batches)
    to_first = time.perf_counter() - start
    assert first.shape == (BATCH, S), first.shape
    rates, cpu_rates = [], []
    for _ in range(3):  # the best of three thirds: other work shares the machine
        begun, cpu, count = time.perf_counter(), time.process_time(), 0
        while time.perf_counter() - begun < seconds / 3:
            next(batches)
            count += 1
        rates.append(count * TOKENS / (time.perf_counter() - begun))
        cpu_rates.append(count * TOKENS / max(time.process_time() - cpu, 1e-9))
    return {
        "seconds_to_first_batch": round(to_first, 4),
        "tokens_per_second": round(max(rates)),
        "tokens_per_second_thirds": [round(rate) for rate in rates],
        "tokens_per_cpu_second": round(max(cpu_rates)),
    }


def warm(folder: str) -> None:
    """Reads all files, so that they are in the page cache."""
    for path in Path(folder).rglob("*"):
        if path.is_file():
            path.read_bytes()


def ours(store: str, corpus: str, seconds: float) -> dict[str, Any]:
    from mscale.data import feed, schedule
    from mscale.data.mixture import SamplingOptions, resolve
    from mscale.data.store import open_store

    languages = 0

    def open_data() -> Iterator[Any]:
        nonlocal languages
        opened = open_store(store)
        mixture = resolve("uniform", opened, S, options=SamplingOptions(drop_short=True))
        languages = len(mixture.languages)
        return feed.batches(opened, schedule.single(mixture, BATCH), S, 0)

    return {**measure(open_data, seconds), "languages": languages}


def ours_cold(store: str, corpus: str, seconds: float) -> dict[str, Any]:
    import mscale.data.feed  # noqa: F401 (only the store is to be cold)

    paths = [path for path in Path(store).rglob("*") if path.is_file()]
    for path in paths:
        with open(path, "rb") as file:
            os.fsync(file.fileno())
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
    left = sum(resident(path) for path in paths) / sum(path.stat().st_size for path in paths)
    return {**ours(store, corpus, seconds), "fraction_still_in_page_cache": round(left, 4)}


def resident(path: Path) -> int:
    """Bytes of a file that are in the page cache."""
    size = path.stat().st_size
    if not size:
        return 0
    with open(path, "r+b") as file, mmap.mmap(file.fileno(), size) as mapped:
        pages = -(-size // mmap.PAGESIZE)
        found = (ctypes.c_ubyte * pages)()
        start = ctypes.addressof(ctypes.c_char.from_buffer(mapped))
        if ctypes.CDLL(None, use_errno=True).mincore(ctypes.c_void_p(start), ctypes.c_size_t(size), found):
            raise OSError(ctypes.get_errno(), "mincore")
        count = sum(page & 1 for page in found) * mmap.PAGESIZE
    return min(count, size)


def packed_task(store: str, corpus: str, seconds: float) -> dict[str, Any]:
    import gin
    import seqio

    import mixtures.registry  # noqa: F401

    gin.parse_config(f'corpora.store = "{store}"\nmixture.drop_short = True')

    def open_data() -> Iterator[Any]:
        dataset = seqio.get_dataset(
            "packed.uniform",
            {"targets": S},
            seqio.PassThroughFeatureConverter(),
            batch_size=BATCH,
            verbose=False,
        )
        return (batch["targets"] for batch in dataset.as_numpy_iterator())

    return measure(open_data, seconds)


def grain(store: str, corpus: str, seconds: float) -> dict[str, Any]:
    import grain as library
    import numpy as np

    from mscale.data.store import open_store

    class Windows:
        def __init__(self, tokens: np.ndarray):
            self.windows = tokens[: len(tokens) // S * S].reshape(-1, S)

        def __len__(self) -> int:
            return len(self.windows)

        def __getitem__(self, index: int) -> np.ndarray:
            return self.windows[index].astype(np.int32)

    languages = 0

    def open_data() -> Iterator[Any]:
        nonlocal languages
        opened = open_store(store)
        names = [name for name in opened.languages if opened.windows(name, S)]
        languages = len(names)
        parts = [
            library.MapDataset.source(Windows(opened.train(name))).shuffle(seed=i).repeat()
            for i, name in enumerate(names)
        ]
        mixed = library.MapDataset.mix(parts, weights=[1 / len(parts)] * len(parts))
        # Its default of 16 threads that each make a batch of 256 under one interpreter lock gives the first one late.
        options = library.ReadOptions(num_threads=2, prefetch_buffer_size=4)
        return iter(mixed.batch(BATCH).to_iter_dataset(options))

    return {**measure(open_data, seconds), "languages": languages}


def seqio_mixture(count: int) -> Callable[[str, str, float], dict[str, Any]]:
    def run(store: str, corpus: str, seconds: float) -> dict[str, Any]:
        import gin
        import seqio

        import mixtures.registry
        from mscale.data.store import open_store

        gin.parse_config(f'corpora.synthetic = "{corpus}"')
        opened = open_store(store)
        richest = sorted(opened.languages, key=opened.train_tokens, reverse=True)[:count]

        def open_data() -> Iterator[Any]:
            name = mixtures.registry.seqio_name("synthetic", "+".join(sorted(richest)))
            dataset = seqio.get_dataset(
                name,
                {"targets": S},
                seqio.PassThroughFeatureConverter(),
                shuffle=True,
                seed=0,
                num_epochs=None,
                batch_size=BATCH,
                verbose=False,
            )
            return (batch["targets"] for batch in dataset.as_numpy_iterator())

        return {**measure(open_data, seconds), "languages": count}

    return run


def simulated(store: str, corpus: str, seconds: float) -> dict[str, Any]:
    from mscale import languages
    from mscale.data import schedule
    from mscale.data.mixture import Mixture

    start = time.perf_counter()
    rates = languages.published_rates()
    names, windows = (*rates, "rest"), (10**9,) * (len(rates) + 1)  # 419 are printed, 420 were trained on
    mixture = Mixture("simulated", names, (*(0.999 * rate for rate in rates.values()), 0.001), windows, S)
    plan = schedule.single(mixture, BATCH)
    plan.batch(0)
    found: dict[str, Any] = {
        "languages": len(names),
        "windows_of_each": 10**9,
        "seconds_to_first_batch": round(time.perf_counter() - start, 4),
    }
    for step in (0, 10**7):
        count, begun = 0, time.perf_counter()
        while time.perf_counter() - begun < seconds / 4:
            plan.batches(step + 8 * count, step + 8 * count + 8)
            count += 1
        found[f"tokens_per_second_scheduled_from_step_{step}"] = round(
            count * 8 * TOKENS / (time.perf_counter() - begun)
        )
    begun = time.perf_counter()
    plan.exposure(10**7, S)
    found["seconds_for_exposure_at_step_10000000"] = round(time.perf_counter() - begun, 5)
    found["bound_in_windows"] = round(plan.bound, 3)
    return found


def limit(store: str, corpus: str, seconds: float) -> dict[str, Any]:
    import numpy as np

    from mscale.data.store import open_store

    opened = open_store(store)
    tokens = np.concatenate([opened.train(name) for name in opened.languages])
    windows = tokens[: len(tokens) // S * S].reshape(-1, S)
    rows = np.random.default_rng(0).integers(0, len(windows), (64, BATCH))
    batch = np.empty((BATCH, S), np.int32)

    def rate(work: Callable[[int], None], clock: Callable[[], float] = time.process_time) -> float:
        best = 0.0
        for _ in range(5):
            begun = clock()
            for i in range(64):
                work(i)
            best = max(best, 64 / (clock() - begun))
        return best

    def gather(i: int) -> None:
        for row, window in enumerate(rows[i].tolist()):
            batch[row] = windows[window]

    def take(i: int) -> None:
        batch[:] = windows[rows[i]]

    half = tokens[: len(tokens) // 2]
    target = np.empty_like(half)
    copy = rate(lambda i: np.copyto(target, half)) * half.nbytes * 2
    return {
        "copy_bytes_per_cpu_second": round(copy),
        "tokens_per_cpu_second_if_2_bytes_read_and_4_written_at_that_rate": round(copy / 6),
        "gather_of_rows_tokens_per_cpu_second": round(rate(gather) * TOKENS),
        "gather_of_rows_tokens_per_second": round(rate(gather, time.perf_counter) * TOKENS),
        "gather_by_index_tokens_per_cpu_second": round(rate(take) * TOKENS),
    }


CONTESTANTS: dict[str, Callable[[str, str, float], dict[str, Any]]] = {
    "ours": ours,
    "ours_cold": ours_cold,
    "limit": limit,
    "simulated": simulated,
    "grain": grain,
    "packed_task": packed_task,
    "seqio_20": seqio_mixture(20),
    "seqio_50": seqio_mixture(50),
}


def run(name: str, store: str, corpus: str, seconds: float) -> dict[str, Any]:
    """Measures one library in a process of its own."""
    command = [sys.executable, __file__, "--contestant", name, "--store", store, "--corpus", corpus]
    environment = {
        **os.environ,
        "PYTHONPATH": str(ROOT),
        "TF_CPP_MIN_LOG_LEVEL": "3",
        "CUDA_VISIBLE_DEVICES": "",
    }
    start = time.perf_counter()
    try:
        done = subprocess.run(
            [*command, "--seconds", str(seconds)],
            capture_output=True,
            text=True,
            timeout=TIMEOUT,
            env=environment,
        )
    except subprocess.TimeoutExpired:
        return {"failed": f"no end within {TIMEOUT} s"}
    if done.returncode:
        return {"failed": (done.stderr.strip().splitlines() or [f"exit status {done.returncode}"])[-1]}
    return {
        **json.loads(done.stdout.splitlines()[-1]),
        "seconds_in_all": round(time.perf_counter() - start, 1),
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--corpus", default=str(ROOT.parent / "shared" / "corpora" / "madlad_mini"))
    parser.add_argument(
        "--store", help="a byte store of the corpus; packed into a temporary folder if not given"
    )
    parser.add_argument("--seconds", type=float, default=6, help="of the steady part of each contestant")
    parser.add_argument("--only", nargs="*", choices=CONTESTANTS, default=list(CONTESTANTS))
    parser.add_argument("--contestant", choices=CONTESTANTS, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.contestant:
        if not arguments.contestant.endswith("_cold"):
            warm(arguments.corpus if arguments.contestant.startswith("seqio") else arguments.store)
        peak = Peak()
        found = CONTESTANTS[arguments.contestant](arguments.store, arguments.corpus, arguments.seconds)
        print(json.dumps({**found, "peak_anonymous_bytes_over_interpreter": peak.over_interpreter}))
        return 0
    if not Path(arguments.corpus).is_dir():
        print(f"{arguments.corpus}: no corpus there; give one with --corpus", file=sys.stderr)
        return 0
    sys.path.insert(0, str(ROOT))
    with tempfile.TemporaryDirectory(prefix="mscale-bench-") as folder:
        store = arguments.store or folder + "/store"
        if not Path(store, "store.json").exists():
            from mixtures.packing.pack import pack
            from mscale.data.vocabulary import byte_vocabulary

            pack(arguments.corpus, store, byte_vocabulary())
        results = {}
        for name in arguments.only:
            print(f"{name} …", file=sys.stderr)
            results[name] = run(name, store, arguments.corpus, arguments.seconds)
    report: dict[str, Any] = {
        "benchmark": "mixture_feed",
        "batch": [BATCH, S],
        "cores": len(os.sched_getaffinity(0)),
        "load_average": os.getloadavg()[0],
        "python": platform.python_version(),
        "results": results,
    }
    fed, most = results.get("ours", {}), results.get("limit", {})
    if "tokens_per_cpu_second" in fed and "copy_bytes_per_cpu_second" in most:
        report["ours_over_bare_gather"] = round(
            fed["tokens_per_cpu_second"] / most["gather_of_rows_tokens_per_cpu_second"], 3
        )
        report["ours_over_memory_bandwidth"] = round(
            fed["tokens_per_cpu_second"]
            / most["tokens_per_cpu_second_if_2_bytes_read_and_4_written_at_that_rate"],
            3,
        )
    print(json.dumps(report, indent=2))
    return 0


if __name__ == "__main__":
    sys.exit(main())
