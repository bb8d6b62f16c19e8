"""Time and accuracy of fitting laws, against the published scipy recipe, as JSON.

    python benchmarks/fit.py --points chinchilla_points.csv [--out fit.json]       # four minutes on two cores
    python benchmarks/fit.py --points chinchilla_points.csv --sample 1             # scipy's recipe to its end

The points are those that Besiroglu et al. (2024) recovered from Hoffmann et al. (2022): model_size, training_flop,
loss; D = FLOP/(6N) and the five largest losses are dropped. "Cold" is the first fit of a fresh process, after
imports; "warm" is the median of the following five. Both are the fit and all bootstraps, to convergence.

scipy's 4,500 starts and 4,000 bootstraps take minutes on a busy machine, so a random sample of both is timed and the
total extrapolated from it; the JSON says how many were run, and the standard error of the total.
"""

import argparse
import itertools
import json
import os
import platform
import resource
import subprocess
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import numpy as np
import pandas as pd
import scipy
from scipy.optimize import minimize

DELTA = 1e-3
COLUMNS = {"N": "model_size", "D": "D", "loss": "loss"}
GRID = (
    (0, 5, 10, 15, 20, 25),
    (0, 5, 10, 15, 20, 25),
    (-1, -0.5, 0, 0.5, 1),
    (0, 0.5, 1, 1.5, 2),
    (0, 0.5, 1, 1.5, 2),
)


def points(path: str) -> pd.DataFrame:
    table = pd.read_csv(path)
    table["D"] = table["training_flop"] / (6 * table["model_size"])
    return table.sort_values("loss").iloc[:-5].reset_index(drop=True)


def objective(p, logs, weight, gradient=False):
    """The published objective in (a, b, e, alpha, beta), and its gradient."""
    n, d, y = logs
    terms = np.stack([p[0] - p[3] * n, p[1] - p[4] * d, np.full_like(n, p[2])])
    raised = np.exp(terms - terms.max(axis=0))
    total = raised.sum(axis=0)
    r = np.log(total) + terms.max(axis=0) - y
    size = np.abs(r)
    rho = np.where(size <= DELTA, 0.5 * r * r, DELTA * (size - 0.5 * DELTA))
    if not gradient:
        return float(weight @ rho)
    share = raised / total
    pull = weight * np.clip(r, -DELTA, DELTA)
    slope = np.array(
        [pull @ share[0], pull @ share[1], pull @ share[2], -(pull * n) @ share[0], -(pull * d) @ share[1]]
    )
    return float(weight @ rho), slope


def scipy_fit(logs, weight, starts, gradient):
    best = None
    for start in starts:
        found = minimize(
            objective, start, (logs, weight, gradient), jac=gradient, method="L-BFGS-B", tol=1e-15
        )
        best = found if best is None or found.fun < best.fun else best
    return best


def scipy_recipe(table, starts: int, bootstraps: int, gradient: bool, sample: float) -> dict:
    """Seconds of the published recipe, extrapolated from a random share `sample` of its starts and bootstraps."""
    logs = tuple(np.log(table[name].to_numpy(float)) for name in ("model_size", "D", "loss"))
    weight = np.ones(len(table))
    rng = np.random.default_rng(0)
    grid = rng.permutation(np.array(list(itertools.product(*GRID)), float))[: max(2, round(starts * sample))]
    found, fit_s = [], []
    for start in grid:
        began = time.perf_counter()
        found.append(scipy_fit(logs, weight, [start], gradient))
        fit_s.append(time.perf_counter() - began)
    best = min(found, key=lambda one: one.fun)
    bootstrap_s = []
    for _ in range(max(2, round(bootstraps * sample))):
        times = rng.multinomial(len(table), weight / len(table)).astype(float)
        began = time.perf_counter()
        scipy_fit(logs, times, [best.x], gradient)
        bootstrap_s.append(time.perf_counter() - began)
    error = sum(
        (count * np.std(each) / np.sqrt(len(each))) ** 2
        for count, each in ((starts, fit_s), (bootstraps, bootstrap_s))
    )
    return {
        "gradient": "analytic" if gradient else "finite differences",
        "starts": starts,
        "starts_run": len(fit_s),
        "starts_that_reached_the_optimum": float(
            np.mean([one.fun <= best.fun * (1 + 1e-6) for one in found])
        ),
        "bootstraps": bootstraps,
        "bootstraps_run": len(bootstrap_s),
        "fit_s": float(np.mean(fit_s)) * starts,
        "bootstrap_s": float(np.mean(bootstrap_s)) * bootstraps,
        "total_s": float(np.mean(fit_s)) * starts + float(np.mean(bootstrap_s)) * bootstraps,
        "total_standard_error_s": float(np.sqrt(error)),
        "objective": best.fun,
        "theta": best.x.tolist(),
    }


def ours_once(table, bootstraps: int) -> tuple[float, float, float]:
    import analysis

    began = time.perf_counter()
    fit = analysis.fit("chinchilla", table, COLUMNS)
    fitted = time.perf_counter()
    fit.draws(bootstraps)
    return fitted - began, time.perf_counter() - fitted, fit.objective


def cold(path: str, bootstraps: int) -> dict:
    """One fit in a fresh process, without imports."""
    return alone("--points", path, "--bootstraps", str(bootstraps), "--once")


def alone(*arguments: str) -> dict:
    """Runs this script in a process of its own, so that its time after imports and its peak memory are separate."""
    command = [sys.executable, __file__, *arguments]
    return json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout)


def once(path: str, bootstraps: int) -> dict:
    table = points(path)
    import analysis  # noqa: F401

    fit_s, bootstrap_s, value = ours_once(table, bootstraps)
    return {
        "fit_s": fit_s,
        "bootstrap_s": bootstrap_s,
        "total_s": fit_s + bootstrap_s,
        "objective": value,
        "peak_memory_mb": peak_memory(),
    }


def peak_memory() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def ours(path: str, bootstraps: int) -> dict:
    table = points(path)
    import analysis

    runs = [ours_once(table, bootstraps) for _ in range(6)][1:]
    fit = analysis.fit("chinchilla", table, COLUMNS)
    return {
        "bootstraps": bootstraps,
        "cold": cold(path, bootstraps),
        "warm_fit_s": float(np.median([run[0] for run in runs])),
        "warm_bootstrap_s": float(np.median([run[1] for run in runs])),
        "warm_total_s": float(np.median([run[0] + run[1] for run in runs])),
        "warm_total_best_s": float(min(run[0] + run[1] for run in runs)),
        "objective": fit.objective,
        "agreement": dict(fit.agreement),
        "params": {name: float(value) for name, value in fit.params.items()},
        "peak_memory_mb": peak_memory(),
    }


def bootstrap_agreement(path: str, count: int, starts: int = 9) -> dict:
    """Our objective on random bootstraps against the best of `starts` scipy starts on the same resample."""
    import analysis
    from analysis.uncertainty.bootstrap import refit_resampled, resamples

    table = points(path)
    fit = analysis.fit("chinchilla", table, COLUMNS)
    problem = fit.problem
    rng = np.random.default_rng(7)
    times = resamples(len(table), count, seed=7)
    mine = refit_resampled(problem, fit.theta, times).objective
    logs = tuple(np.log(problem.x[name]) for name in ("N", "D")) + (np.log(problem.y),)
    p = fit.params
    centre = np.array([np.log(p["A"]), np.log(p["B"]), np.log(p["E"]), p["alpha"], p["beta"]])
    spread = np.array([1.0, 1.0, 0.2, 0.08, 0.08])
    worst = []
    for b in range(count):
        tries = [centre] + [centre + rng.normal(size=5) * spread for _ in range(starts - 1)]
        worst.append(mine[b] / scipy_fit(logs, times[b], tries, True).fun - 1)
    return {
        "resamples": count,
        "scipy_starts": starts,
        "within_1e-6": int(np.sum(np.array(worst) <= 1e-6)),
        "largest_excess": float(np.max(worst)),
    }


def atlas(rows: int, bootstraps: int, seed: int) -> dict:
    """The ATLAS law on simulated observations of 8 languages: seconds, memory, and coverage of the intervals."""
    import analysis
    from analysis.validation import simulate

    languages = ["de", "en", "es", "fr", "hi", "ja", "ru", "sw"]
    rng = np.random.default_rng(seed)
    sizes, tokens = np.geomspace(1e8, 4e9, 8), np.geomspace(4e9, 2e11, 4)
    cells = [((name,), sizes, tokens) for name in languages]
    cells += [(pair, sizes, tokens) for pair in itertools.combinations(languages, 2)]
    cells += [(tuple(rng.permutation(languages)[:k]), sizes, tokens) for k in (3, 4, 4, 5, 6, 8, 8)]
    design, exposure = simulate.multilingual_design(cells)
    repeated, seen = simulate.multilingual_design(
        [((name,), sizes, tokens) for name in languages], {n: 1.5e10 for n in languages}
    )
    for frame in (repeated, seen):
        frame["run"] += "-r"
    repeated["group"] += "-r"
    design, exposure = pd.concat([design, repeated]), pd.concat([exposure, seen])
    copies = -(-rows // len(design))
    design = pd.concat(
        [design.assign(run=design["run"] + f"#{c}", group=design["group"] + f"#{c}") for c in range(copies)],
        ignore_index=True,
    )
    exposure = pd.concat(
        [exposure.assign(run=exposure["run"] + f"#{c}") for c in range(copies)], ignore_index=True
    )
    keep = rng.permutation(design["group"].unique())
    counts = design.groupby("group").size().loc[keep].cumsum()
    design = design[design["group"].isin(counts.index[counts <= rows])].reset_index(drop=True)
    sources = {t: [str(s) for s in rng.permutation([s for s in languages if s != t])[:3]] for t in languages}
    truth: dict[str, float] = {"E": 0.6, "A": 130.0, "alpha": 0.3, "B": 900.0, "beta": 0.32, "lambda": 0.5}
    for target in languages:
        truth |= {f"E[{target}]": 0.5 + 0.3 * rng.random(), f"tau_other[{target}]": 0.05 * rng.random()}
        truth |= {f"tau[{target},{source}]": -0.05 + 0.5 * rng.random() for source in sources[target]}
    table = simulate.draw_observations(
        "atlas", design, truth, exposure=exposure, sources=sources, trunk=0.004, checkpoint=0.002, seed=seed
    )
    began, busy = time.perf_counter(), time.process_time()
    fit = analysis.fit("atlas", table, exposure=exposure, sources=sources, loss="huber")
    fitted = time.perf_counter()
    draws = fit.draws(bootstraps)
    ended = time.perf_counter()
    natural = fit.natural(draws)
    low, high = np.quantile(natural, [0.05, 0.95], axis=0)
    held = {
        name: bool(low[i] <= truth[name if name in truth else name.split("[")[0]] <= high[i])
        for i, name in enumerate(fit.params.index)
        if name.split("[")[0] in ("E", "A", "alpha", "B", "beta", "lambda", "tau", "tau_other")
    }
    return {
        "seed": seed,
        "observations": len(table),
        "parameters": len(fit.names),
        "bootstraps": bootstraps,
        "fit_s": fitted - began,
        "bootstrap_s": ended - fitted,
        "total_s": ended - began,
        "cpu_s": time.process_time() - busy,
        "inside": sum(held.values()),
        "of": len(held),
        "peak_memory_mb": peak_memory(),
    }


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--points", help="chinchilla_points.csv; without it only ATLAS is fitted")
    parser.add_argument("--starts", type=int, default=4500)
    parser.add_argument("--bootstraps", type=int, default=4000)
    parser.add_argument("--sample", type=float, default=0.05, help="share of scipy's recipe that is run")
    parser.add_argument("--resamples", type=int, default=100, help="for the agreement with scipy")
    parser.add_argument("--atlas-rows", type=int, default=20_000)
    parser.add_argument("--atlas-seeds", type=int, default=10)
    parser.add_argument("--first-seed", type=int, default=0)
    parser.add_argument("--atlas-seed", type=int, help=argparse.SUPPRESS)
    parser.add_argument("--out")
    parser.add_argument("--once", action="store_true", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.once:
        print(json.dumps(once(args.points, args.bootstraps)))
        return
    if args.atlas_seed is not None:
        print(json.dumps(atlas(args.atlas_rows, 1000, args.atlas_seed)))
        return
    result: dict = {
        "machine": {"cores": os.cpu_count(), "load": os.getloadavg()[0], "python": platform.python_version()},
        "versions": {"numpy": np.__version__, "scipy": scipy.__version__},
    }
    if not args.points:
        print("no --points: the published points are not fitted", file=sys.stderr)
    else:
        result["ours"] = ours(args.points, args.bootstraps)
    if args.points and args.starts:
        table = points(args.points)
        for name, gradient in (("scipy", False), ("scipy_analytic", True)):
            result[name] = scipy_recipe(table, args.starts, args.bootstraps, gradient, args.sample)
            result[f"times_faster_than_{name}"] = result[name]["total_s"] / result["ours"]["warm_total_s"]
    if args.points and args.resamples:
        result["bootstrap_agreement"] = bootstrap_agreement(args.points, args.resamples)
    if args.atlas_seeds:
        runs = []
        for seed in range(args.first_seed, args.first_seed + args.atlas_seeds):
            runs.append(alone("--atlas-rows", str(args.atlas_rows), "--atlas-seed", str(seed)))
            print(runs[-1], file=sys.stderr, flush=True)
        result["atlas"] = {
            "slowest_s": max(r["total_s"] for r in runs),
            "peak_memory_mb": max(r["peak_memory_mb"] for r in runs),
            "runs": runs,
            "share_inside": sum(r["inside"] for r in runs) / sum(r["of"] for r in runs),
        }
    text = json.dumps(result, indent=2)
    print(text)
    if args.out:
        Path(args.out).write_text(text + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
