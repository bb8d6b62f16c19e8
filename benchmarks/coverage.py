"""How often intervals hold what was planted: for each law, number of groups and kind of noise, as a table.

    python benchmarks/coverage.py --studies 1000 --out coverage.json      # everything: many hours on two cores
    python benchmarks/coverage.py --laws chinchilla --groups 8 16 --studies 100 --seed 12345

A cell plants `studies` studies and fits each without knowing the truth. A fit that fails counts as a miss. Reported:
the share of 90% intervals that hold the truth for every parameter, an interpolated and a 3x extrapolated
prediction, the compute-optimal exponent; the median width over the Cramér-Rao width; and the share of
intervals without an end.
A cell stops early, and says so, after `--minutes`.
"""

import argparse
import json
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import numpy as np
import pandas as pd

import analysis
from analysis import simulate, uncertainty
from mscale.errors import MscaleError

LEVEL = 0.9
GROUPS = (8, 16, 40, 200)
NOISES = {"trunk": (0.003, 0.001), "checkpoint": (0.0, 0.003)}
CURVE = {"E": 1.7, "A": 30.0, "alpha": 0.32, "B": 90.0, "beta": 0.36}
TOKENS = (2e6, 4e6, 8e6)


@dataclass(frozen=True)
class Case:
    """A planted law: its design for a number of groups, its truth, and how it is fitted."""

    law: str
    truth: dict[str, float]
    design: Callable[[int], tuple[pd.DataFrame, pd.DataFrame | None]]
    options: dict[str, Any] = field(default_factory=dict)
    predicts: bool = True  # rows 3x beyond the largest N can be made by scaling column "params"


def sizes(count: int) -> np.ndarray:
    return np.geomspace(2e4, 4e5, count)


def trunks(groups: int, build: Callable[[float, int], pd.DataFrame]) -> pd.DataFrame:
    """`groups` trunks over five sizes (more seeds where there are more groups)."""
    chosen = np.resize(sizes(5), groups)
    return pd.concat([build(N, number) for number, N in enumerate(chosen)], ignore_index=True)


def one(N: float, number: int, columns: dict[str, Any]) -> pd.DataFrame:
    frame = pd.DataFrame({"params": N, "target_tokens": TOKENS} | columns)
    return frame.assign(group=f"g{number}", run=[f"g{number}-{row}" for row in range(len(frame))])


def chinchilla(groups: int) -> tuple[pd.DataFrame, None]:
    return trunks(groups, lambda N, number: one(N, number, {})), None


def data_constrained(groups: int) -> tuple[pd.DataFrame, None]:
    unique = (1e12, 1e6, 2.5e5, 1e12, 5e5, 1.25e5, 1e12)
    return trunks(groups, lambda N, n: one(N, n, {"target_unique": unique[n % len(unique)]})), None


def capacity(groups: int) -> tuple[pd.DataFrame, None]:
    K = (1, 4, 2, 8, 16, 1, 2)
    return trunks(groups, lambda N, number: one(N, number, {"languages_trained": K[number % len(K)]})), None


def family(groups: int) -> tuple[pd.DataFrame, None]:
    p = (1.0, 0.5, 0.25, 1.0, 0.1, 0.5, 0.05)
    return trunks(
        groups, lambda N, number: one(N, number, {"family_share": p[number % len(p)], "tokens": TOKENS})
    ), None


def transfer(groups: int) -> tuple[pd.DataFrame, None]:
    return trunks(groups, lambda N, n: one(N, n, {"finetuning_tokens": [1e5, 1e6, 1e7]})), None


def atlas(groups: int) -> tuple[pd.DataFrame, pd.DataFrame]:
    """A target alone and in 50/50 pairs with each of two sources, and together with both; some trunks repeat data."""
    mixes = (("t",), ("t", "a"), ("t", "b"), ("t", "a", "b"), ("t",), ("t", "c"), ("t", "a", "c"))
    rows, seen = [], []
    for number, N in enumerate(np.resize(sizes(5), groups)):
        mix = mixes[number % len(mixes)]
        unique = {"t": (5e5, 2.5e5)[number % 2]} if number % 7 == 4 else None
        frame, exposure = simulate.mixtures([(mix, [N], np.multiply(TOKENS, len(mix)))], unique)
        for part in (frame, exposure):
            part["run"] += f"#{number}"
        rows.append(frame[frame["language"] == "t"].assign(group=f"g{number}"))
        seen.append(exposure)
    return pd.concat(rows, ignore_index=True), pd.concat(seen, ignore_index=True)


CASES = (
    Case("chinchilla", CURVE, chinchilla),
    Case("data_constrained", {**CURVE, "R_D": 15.39, "R_N": 5.31}, data_constrained),
    Case("capacity", {**CURVE, "phi": 0.11, "psi": -0.04}, capacity),
    Case("family", {**CURVE, "gamma": 0.1}, family),
    Case("transfer", {"k": 30.0, "alpha": 0.18, "beta": 0.38}, transfer, predicts=False),
    Case(
        "atlas",
        {**CURVE, "lambda": 0.5, "tau[t,a]": 0.4, "tau[t,b]": 0.1, "tau_other": 0.05},
        atlas,
        {"sources": {"t": ["a", "b"]}},
        predicts=False,
    ),
)


def cell(case: Case, groups: int, noise: str, studies: int, seed: int, minutes: float) -> dict[str, Any]:
    """One cell of the table, or why it is refused."""
    design, exposure = case.design(groups)
    trunk, checkpoint = NOISES[noise]
    held: dict[str, list[bool]] = {}
    widths: dict[str, list[float]] = {}
    endless: dict[str, list[bool]] = {}
    bounds: dict[str, float] = {}
    failed, refused, done = 0, "", 0
    began = time.monotonic()
    for number in range(studies):
        if time.monotonic() - began > 60 * minutes:
            break
        done += 1
        table = simulate.study(
            case.law,
            design,
            case.truth,
            exposure=exposure,
            trunk=trunk,
            checkpoint=checkpoint,
            seed=seed + number,
            **case.options,
        )
        try:
            fit = analysis.fit(case.law, table, exposure=exposure, **case.options)
        except MscaleError as error:
            refused = str(error)
            if "are needed before an interval" in refused:
                return {"law": case.law, "groups": groups, "noise": noise, "refused": refused}
            failed += 1
            continue
        found = fit.interval(LEVEL)
        if not bounds:
            bounds = cramer_rao(fit, case.truth, trunk, checkpoint)
        entries = {
            name: (row["low"], row["high"], truth_of(str(name), case.truth), bool(row["identified"]))
            for name, row in found.iterrows()
            if truth_of(str(name), case.truth) is not None
        }
        if case.predicts:
            entries |= predictions(fit, table, case)
        for name, (low, high, truth, identified) in entries.items():
            held.setdefault(name, []).append(bool(low <= truth <= high))
            widths.setdefault(name, []).append(float(high - low))
            endless.setdefault(name, []).append(not identified)
    return {
        "law": case.law,
        "groups": groups,
        "noise": noise,
        "studies": done,
        "failed": failed,
        "quantities": {
            name: {
                "coverage": sum(hits) / done,
                "width_over_cramer_rao": float(np.median(widths[name]) / bounds[name])
                if bounds.get(name)
                else None,
                "unbounded": float(np.mean(endless[name])),
            }
            for name, hits in held.items()
        },
    }


def truth_of(name: str, truth: dict[str, float]) -> float | None:
    plain = name if name in truth else name.split("[")[0]
    return None if name.endswith("_mean") else truth.get(plain)


def predictions(fit: Any, table: pd.DataFrame, case: Case) -> dict[str, tuple]:
    """An interpolated and a 3x extrapolated prediction, and the exponent of the compute-optimal N."""
    middle = table.iloc[[len(table) // 2]].assign(params=9e4, target_tokens=5e6)
    beyond = table.iloc[[0]].assign(
        params=3 * table["params"].max(), target_tokens=3 * table["target_tokens"].max()
    )
    entries = {}
    for name, rows in (("interpolated", middle), ("extrapolated 3x", beyond)):
        truth = simulate.evaluate(fit.law, rows, case.truth)[0]
        row = fit.predict(rows, level=LEVEL).iloc[0]
        entries[name] = (row["low"], row["high"], truth, True)
    draws = pd.DataFrame(fit.natural(fit.draws()), columns=fit.params.index)
    exponent = draws["beta"] / (draws["alpha"] + draws["beta"])
    low, high = np.quantile(exponent, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    truth = case.truth["beta"] / (case.truth["alpha"] + case.truth["beta"])
    entries["compute-optimal exponent"] = (low, high, truth, True)
    return entries


def cramer_rao(fit: Any, truth: dict[str, float], trunk: float, checkpoint: float) -> dict[str, float]:
    """{parameter: width of the 90% interval if the noise were known}, at the fit (truth is close to it)."""
    if fit.problem.delta is not None or checkpoint == 0:
        return {}
    members = fit.problem.members(ratio=np.full(1, (trunk / checkpoint) ** 2))
    information = fit.problem.system(fit.theta[None], members)[3]
    inverse, _ = uncertainty._invert(information)
    deviation = np.sqrt(np.diag(inverse[0])) * checkpoint * 2 * 1.645
    which = fit.problem.held["parameters"]
    return {
        name: float(width)
        for name, width, q in zip(fit.names, deviation, which, strict=True)
        if not q.log and truth_of(name, truth) is not None
    }


def markdown(cells: list[dict[str, Any]]) -> str:
    lines = [
        "| law | groups | noise | studies | coverage of 90% intervals | width / Cramér–Rao | without an end |",
        "| --- | --- | --- | --- | --- | --- | --- |",
    ]
    for found in cells:
        head = f"| {found['law']} | {found['groups']} | {found['noise']} |"
        if "refused" in found:
            lines.append(f"{head} – | refused: too few groups | – | – |")
            continue
        per = found["quantities"]
        shown = ", ".join(f"{name} {q['coverage']:.0%}" for name, q in per.items())
        ratio = ", ".join(
            f"{name} {q['width_over_cramer_rao']:.2f}"
            for name, q in per.items()
            if q["width_over_cramer_rao"]
        )
        ends = (
            ", ".join(f"{name} {q['unbounded']:.0%}" for name, q in per.items() if q["unbounded"]) or "none"
        )
        lines.append(f"{head} {found['studies']} ({found['failed']} failed) | {shown} | {ratio} | {ends} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--laws", nargs="*", default=[case.law for case in CASES])
    parser.add_argument("--groups", nargs="*", type=int, default=list(GROUPS))
    parser.add_argument("--noise", nargs="*", default=list(NOISES))
    parser.add_argument("--studies", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=20_000)
    parser.add_argument("--minutes", type=float, default=60.0, help="a cell stops after so long, and says so")
    parser.add_argument("--out", help="JSON, rewritten after every cell")
    args = parser.parse_args()
    cells = []
    for case in CASES:
        if case.law not in args.laws:
            continue
        for groups in args.groups:
            for noise in args.noise:
                cells.append(cell(case, groups, noise, args.studies, args.seed, args.minutes))
                print(markdown(cells[-1:]).splitlines()[-1], flush=True)
                if args.out:
                    Path(args.out).write_text(json.dumps(cells, indent=1) + "\n", encoding="utf-8")
    print(markdown(cells))


if __name__ == "__main__":
    main()
