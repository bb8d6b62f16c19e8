"""A report on a simulated study as large as ATLAS's: the time of every stage, as JSON.

    python benchmarks/report.py [--languages 20] [--seed 0] [--keep FOLDER]       # half a minute

The study is planted (`analysis.validation.planted_study`): one run of every pair of languages, a few alone and
together, so 20 languages make 724 runs. The 774 runs of ATLAS trained 38, of which --pairs leaves pairs out at random
(0.29: 787 runs). What is timed is `mscale report` on the two CSV files, from its start to the page, and then its
stages in this process. Memory is that of the command's two processes together. Needs psutil.
"""

import argparse
import contextlib
import itertools
import json
import platform
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import loky
import numpy as np
import psutil

from analysis.report import report
from analysis.study import analyse
from analysis.study.results import write_results
from analysis.tables.observations import read_study
from analysis.validation import planted_study
from analysis.vega import scripts


def plant(folder: Path, languages: int, pairs: float, seed: int) -> None:
    """Writes observations.csv and exposure.csv of a simulated study; ``pairs`` is the share of pairs that were run."""
    codes = ["".join(code) for code in itertools.product("abc", "mnopqrst", "uvwxyz")]
    planted_study.LANGUAGES = tuple(codes[:: len(codes) // languages][:languages])
    tables = planted_study.make_study(seed=seed)[:2]
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
    """Wall-clock time, CPU time and memory of `mscale report FOLDER`, over both of its processes."""
    code = "from mscale.cli import main; main()"
    began = time.perf_counter()
    with open(folder / "log", "w") as log:
        command = subprocess.Popen(
            [sys.executable, "-c", code, "report", str(folder)], stdout=log, stderr=log
        )
        memory = 0
        while command.poll() is None:
            memory = max(memory, resident(command.pid))
            time.sleep(0.05)
    wall = time.perf_counter() - began
    if command.returncode:
        raise SystemExit((folder / "log").read_text())
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return {
        "command_s": round(wall, 1),
        "command_cpu_s": round(used.ru_utime + used.ru_stime, 1),
        "command_peak_memory_MB": round(memory / 2**20),
        "page_MB": round((folder / "report.html").stat().st_size / 1e6, 2),
        "results_MB": round((folder / "laws.json").stat().st_size / 1e6, 2),
        **stages(folder),
    }


def resident(pid: int) -> int:
    """Memory in bytes of a process and its children."""
    try:
        parent = psutil.Process(pid)
        return sum(one.memory_info().rss for one in [parent, *parent.children(recursive=True)])
    except psutil.NoSuchProcess:
        return 0


def stages(folder: Path) -> dict[str, Any]:
    """Wall-clock time that the first process spends on each stage, or waits for the second process to finish it."""
    seconds: dict[str, float] = {}
    last = began = time.perf_counter()

    def lap(name: str) -> None:
        nonlocal last
        now = time.perf_counter()
        seconds[name], last = round(now - last, 2), now

    @contextlib.contextmanager
    def laps(*_: Any) -> Iterator[Any]:
        yield lambda _done, name: lap(name)

    analyse.progress = laps
    tables = read_study(folder)
    lap("reading")
    results = analyse.analyse_tables(
        tables.observations, tables.exposure, notes=tables.notes, exclusions=tables.exclusions
    )
    write_results(results, folder / "laws.json")
    lap("writing results")
    bundle = scripts()
    lap("charting scripts, which the command has the second process make")
    report.write_report(results, folder / "report.html", bundle)
    lap("page")
    return {
        "runs": results.study.runs,
        "languages": len(results.study.trained_languages),
        "rows": results.study.observations,
        "stages_s": seconds,
        "stages_total_s": round(time.perf_counter() - began, 1),
        "cores": loky.cpu_count(),
        "machine": platform.machine(),
    }


if __name__ == "__main__":
    main()
