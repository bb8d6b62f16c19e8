"""A report from the observations of a study as large as ATLAS's: the time of every stage, as JSON.

    python benchmarks/report.py [--languages 20] [--seed 0] [--keep FOLDER]       # half a minute on one core

The study is planted (`analysis.planted`): one run of every pair of languages, a few alone and together, so 20 languages
make 724 runs. The 774 runs of ATLAS trained 38, of which --pairs leaves pairs out at random (0.29: 787 runs). What
is timed is what `mscale report` does with the two CSV files: reading, all answers, the page.
"""

import argparse
import contextlib
import itertools
import json
import platform
import resource
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import numpy as np

from analysis import answers, planted, report
from analysis.tables import read_study


def plant(folder: Path, languages: int, pairs: float, seed: int) -> None:
    """Writes observations.csv and exposure.csv of a planted study; pairs: the share of pairs that were run."""
    codes = ["".join(code) for code in itertools.product("abc", "mnopqrst", "uvwxyz")]
    planted.LANGUAGES = tuple(codes[:: len(codes) // languages][:languages])
    tables = planted.study(seed=seed)[:2]
    names = sorted(set(tables[0].loc[tables[0]["tag"] == "pairs", "mixture"]))
    kept = np.random.default_rng(seed).random(len(names)) < pairs
    left = {name for name, keep in zip(names, kept, strict=True) if not keep}
    runs = set(tables[0].loc[tables[0]["mixture"].isin(left), "run"])
    for name, table in zip(("observations", "exposure"), tables, strict=True):
        table[~table["run"].isin(runs)].to_csv(folder / f"{name}.csv", index=False)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--languages", type=int, default=20)
    parser.add_argument("--pairs", type=float, default=1.0, help="share of the pairs that were run")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--keep", type=Path, help="folder for the tables and the page")
    arguments = parser.parse_args()
    with contextlib.ExitStack() as stack:
        folder = arguments.keep or Path(stack.enter_context(tempfile.TemporaryDirectory()))
        folder.mkdir(parents=True, exist_ok=True)
        plant(folder, arguments.languages, arguments.pairs, arguments.seed)
        print(json.dumps(measure(folder), indent=1))


def measure(folder: Path) -> dict[str, Any]:
    """Seconds of each stage, wall clock, of the report of a study in a folder."""
    seconds: dict[str, float] = {}
    last = began = time.perf_counter()

    def lap(name: str) -> None:
        nonlocal last
        now = time.perf_counter()
        seconds[name], last = round(now - last, 2), now

    @contextlib.contextmanager
    def laps(*_: Any) -> Iterator[Any]:
        yield lambda _done, name: lap(name)

    cpu = time.process_time()
    answers.progress = laps
    tables = read_study(folder, None)
    lap("reading")
    results = answers.analyse(
        tables.observations, tables.exposure, notes=tables.notes, exclusions=tables.exclusions
    )
    lap("results as JSON")
    report.write_results(results, folder / "laws.json")
    page = folder / "report.html"
    lap("writing results")
    report.write_report(results, page)
    lap("page")
    return {
        "runs": results["study"]["runs"],
        "languages": len(results["study"]["trained_languages"]),
        "rows": results["study"]["observations"],
        "seconds": seconds,
        "total_s": round(time.perf_counter() - began, 1),
        "cpu_s": round(time.process_time() - cpu, 1),
        "page_MB": round(page.stat().st_size / 1e6, 2),
        "results_MB": round((folder / "laws.json").stat().st_size / 1e6, 2),
        "peak_memory_MB": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024),
        "machine": platform.machine(),
    }


if __name__ == "__main__":
    main()
