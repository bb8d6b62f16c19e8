"""Coverage of intervals in simulations: for each law, number of groups and kind of noise, as a table.

    python benchmarks/coverage.py --studies 1000 --out coverage.json  # half an hour; keeps the cells in the file
    python benchmarks/coverage.py --laws chinchilla --groups 8 16 --studies 100 --seed 12345
    python benchmarks/coverage.py --out coverage.json --print             # the table of what is there

A cell plants `studies` studies of one design and fits each without knowing the truth, all together: the same
functions that `analysis.fit` calls, batched. A fit that fails counts as a miss. Reported for every parameter (A and
B as contributions at the geometric means), an interpolated and a 3x extrapolated prediction and the compute-optimal
exponent: the share of 90% intervals that hold the truth, their median width over the Cramér-Rao width (that of an
unbiased estimate with the noise known), and the share without an end.
"""

import argparse
import dataclasses
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
from analysis.estimation import multistart, variance_components
from analysis.estimation.problem import Problem
from analysis.estimation.quantities import Derived
from analysis.fitting import compute_optimal
from analysis.fitting.result import Fit
from analysis.uncertainty import bootstrap, profile
from analysis.validation import simulate
from mscale.errors import MscaleError

LEVEL = 0.9
GROUPS = (8, 16, 40, 200)
NOISES = {"trunk": (0.003, 0.001), "checkpoint": (0.0, 0.003)}
CURVE = {"E": 1.7, "A": 30.0, "alpha": 0.32, "B": 90.0, "beta": 0.36}
TOKENS = (1e6, 4e6, 1.6e7)
CHUNK = 4_000_000  # studies × scalars × rows that are worked on together
DRAWS = 500


@dataclass(frozen=True)
class Case:
    """A law, its design for a number of groups, its true parameters, and the variables that a prediction scales."""

    law: str
    truth: dict[str, float]
    design: Callable[[int], tuple[pd.DataFrame, pd.DataFrame | None]]
    scaled: tuple[str, ...]
    options: dict[str, Any] = field(default_factory=dict)
    name: str = ""

    @property
    def label(self) -> str:
        return self.name or self.law


def trunks(groups: int, build: Callable[[float, int], pd.DataFrame]) -> tuple[pd.DataFrame, None]:
    """`groups` trunks over five sizes, with further seeds for more than five groups."""
    chosen = np.resize(np.geomspace(2e4, 4e5, 5), groups)
    return pd.concat([build(N, number) for number, N in enumerate(chosen)], ignore_index=True), None


def one(N: float, number: int, columns: dict[str, Any]) -> pd.DataFrame:
    frame = pd.DataFrame({"params": N, "target_tokens": TOKENS} | columns)
    return frame.assign(group=f"g{number}", run=[f"g{number}-{row}" for row in range(len(frame))])


def chinchilla(groups: int):
    return trunks(groups, lambda N, number: one(N, number, {}))


def single(groups: int):
    """Sizes × budgets, each run a group of its own."""
    N, D = np.resize(np.geomspace(2e4, 4e5, 5), groups), np.resize(np.geomspace(1e6, 1.6e7, 4), groups)
    frame = pd.DataFrame({"params": N, "target_tokens": D})
    return frame.assign(run=[f"g{row}" for row in range(groups)]), None


def data_constrained(groups: int):
    unique = (1e12, 1e6, 2.5e5, 1e12, 5e5, 1.25e5, 1e12)
    return trunks(groups, lambda N, n: one(N, n, {"target_unique": unique[n % len(unique)]}))


def capacity(groups: int):
    K = (1, 4, 2, 8, 16, 1, 2)
    return trunks(groups, lambda N, number: one(N, number, {"languages_trained": K[number % len(K)]}))


def family(groups: int):
    p = (1.0, 0.5, 0.25, 1.0, 0.1, 0.5, 0.05)
    return trunks(
        groups, lambda N, number: one(N, number, {"family_share": p[number % len(p)], "tokens": TOKENS})
    )


def transfer(groups: int):
    return trunks(groups, lambda N, n: one(N, n, {"finetuning_tokens": [1e5, 1e6, 1e7]}))


def power(groups: int):
    """Trunks over the whole range of tokens, seven apart: the offset shows only where the curve has flattened."""
    start = np.resize(np.geomspace(1e5, 1e7, 7), groups)
    return trunks(groups, lambda N, n: one(N, n, {"target_tokens": start[n] * np.array([1.0, 3.0, 9.0])}))


def mixing(groups: int):
    """Proportions of three domains, spread over the simplex; one mixture a trunk, three evaluation seeds each."""
    r = np.random.default_rng(0).dirichlet(np.ones(3), groups)
    r[:3] = np.eye(3) * 0.8 + 0.2 / 3
    names = ("web", "code", "books")
    return trunks(groups, lambda N, n: one(N, n, dict(zip(names, r[n], strict=True))))


def bimix(groups: int):
    r = (0.5, 0.1, 0.25, 0.8, 0.05, 0.4, 0.15)
    return trunks(groups, lambda N, n: one(N, n, {"proportion": r[n % len(r)], "tokens": TOKENS}))


def atlas(groups: int):
    """A target alone, in 50/50 pairs with each of two sources, and with both; some trunks repeat data."""
    mixes = (("t",), ("t", "a"), ("t", "b"), ("t", "a", "b"), ("t",), ("t", "c"), ("t", "a", "c"))
    rows, seen = [], []
    for number, N in enumerate(np.resize(np.geomspace(2e4, 4e5, 5), groups)):
        mix = mixes[number % len(mixes)]
        unique = {"t": (5e5, 2.5e5)[number % 2]} if number % 7 == 4 else None
        frame, exposure = simulate.multilingual_design([(mix, [N], np.multiply(TOKENS, len(mix)))], unique)
        for part in (frame, exposure):
            part["run"] += f"#{number}"
        rows.append(frame[frame["language"] == "t"].assign(group=f"g{number}"))
        seen.append(exposure)
    return pd.concat(rows, ignore_index=True), pd.concat(seen, ignore_index=True)


SEEN = ("N", "D_t", "U_t")
CASES = (
    Case("chinchilla", CURVE, chinchilla, ("N", "D")),
    Case("chinchilla", CURVE, single, ("N", "D"), name="chinchilla, a run a group"),
    Case("data_constrained", {**CURVE, "R_D": 15.39, "R_N": 5.31}, data_constrained, ("N", "D", "U")),
    Case("family", {**CURVE, "gamma": 0.1}, family, ("N", "D")),
    Case("atlas", {**CURVE, "lambda": 0.5}, atlas, SEEN, {"variant": "D_t"}, "ATLAS, D_t"),
    Case(
        "atlas",
        {**CURVE, "lambda": 0.5, "tau_other": 0.2},
        atlas,
        (*SEEN, "D_other", "U_other"),
        {"variant": "D_other"},
        "ATLAS, + D_other",
    ),
    Case(
        "atlas",
        {**CURVE, "lambda": 0.5, "tau[t,a]": 0.4, "tau[t,b]": 0.1, "tau_other": 0.05},
        atlas,
        (*SEEN, "D_1", "U_1", "D_2", "U_2", "D_other", "U_other"),
        {"sources": {"t": ["a", "b"]}},
        "ATLAS, + K_t",
    ),
    Case("capacity", {**CURVE, "phi": 0.11, "psi": -0.04}, capacity, ("N", "D")),
    Case("transfer", {"k": 30.0, "alpha": 0.18, "beta": 0.38}, transfer, ("N", "D_F")),
    Case(
        "mixing",
        {"c": 1.8, "k": 0.6, "t[web]": -1.2, "t[code]": 0.9},
        mixing,
        (),
        {"domains": ["web", "code", "books"]},
    ),
    Case("bimix", {"alpha": 0.1, "B": 90.0, "beta": 0.36, "C": 1.5}, bimix, ("D",)),
    Case("power", {"E": 1.7, "A": 90.0, "alpha": 0.36}, power, ("x",)),
)


def cell(case: Case, groups: int, noise: str, studies: int, seed: int) -> dict[str, Any]:
    """One cell of the table, or the reason why the fit is refused."""
    head = {"law": case.label, "groups": groups, "noise": noise}
    design, exposure = case.design(groups)
    trunk, checkpoint = NOISES[noise]
    per = None if exposure is None else "language"
    try:
        clean = simulate.draw_observations(
            case.law, design, case.truth, exposure=exposure, trunk=0, checkpoint=0, **case.options
        )
        planted = analysis.fit(case.law, clean, exposure=exposure, per=per, **case.options)
    except MscaleError as error:
        if "are needed before an interval" not in str(error):
            raise
        return {**head, "refused": str(error)}
    wanted, labels = scalars(case, planted)
    problem = dataclasses.replace(planted.problem, ratio=0.0, barrier=0.0)
    truth = np.concatenate([problem.quantity_values(q, planted.theta[None])[0] for q in wanted])
    bounds = cramer_rao(problem, planted.theta, wanted, trunk, checkpoint)
    began = time.process_time()
    low, high = (np.full((studies, len(labels)), np.nan) for _ in range(2))
    size = max(1, CHUNK // (2 * len(labels) * len(problem.y)))
    rng = np.random.default_rng([seed, groups, *map(ord, case.label + noise)])
    for first in range(0, studies, size):
        at = slice(first, min(first + size, studies))
        count = at.stop - at.start
        shared = rng.normal(0.0, trunk, (count, problem.groups))[:, problem.group]
        off = shared + rng.normal(0.0, checkpoint, (count, len(problem.y)))
        y = planted.problem.y * np.exp(off) if planted.law.residual == "log" else planted.problem.y + off
        low[at], high[at] = intervals(problem, wanted, y, seed)
    kept = np.isfinite(bounds) & (bounds > 0) & recovered(planted, case, labels)
    return {
        **head,
        "studies": studies,
        "failed": int(np.isnan(low).any(axis=1).sum()),
        "seconds": round(time.process_time() - began, 1),
        "left_out": [label for label, keep in zip(labels, kept, strict=True) if not keep],
        "quantities": {
            label: {
                "coverage": float(np.mean((low[:, i] <= truth[i]) & (truth[i] <= high[:, i]))),
                "width_over_cramer_rao": float(
                    np.median(np.nan_to_num(high[:, i] - low[:, i], nan=np.inf)) / bounds[i]
                ),
                "unbounded": float(np.mean(np.isinf(high[:, i]) | np.isinf(low[:, i]))),
            }
            for i, label in enumerate(labels)
            if kept[i]
        },
    }


def intervals(problem: Problem, wanted: list, y: np.ndarray, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """(S, m) limits for studies with responses y (S, n); NaN where the fit failed."""
    found = multistart.optima(problem, seed, y)
    good = np.isfinite(found.theta).all(axis=1)
    low, high = (np.full((len(y), sum(map(len, wanted))), np.nan) for _ in range(2))
    if problem.delta is None:
        noise = variance_components.estimate_noise(found.problem, found.theta[good], y[good])
        theta = noise.at_best(noise.theta)
        low[good], high[good] = profile.intervals(found.problem, theta, noise, wanted, LEVEL, y[good])
        return low, high
    for s in np.flatnonzero(good):
        own = dataclasses.replace(found.problem, y=y[s])
        drawn = bootstrap.bootstrap(own, found.theta[s], DRAWS, seed)
        values = np.concatenate([own.quantity_values(q, drawn) for q in wanted], axis=1)
        low[s], high[s] = np.quantile(values, [(1 - LEVEL) / 2, (1 + LEVEL) / 2], axis=0)
    return low, high


def scalars(case: Case, planted: Fit) -> tuple[list, list[str]]:
    """The quantities estimated by every fit, and their names."""
    parameters = planted.parameters_and_constants()
    constants = [
        name for name, q in zip(planted.names, planted.problem.fitted_parameters, strict=True) if q.reference
    ]
    means = [f"{name} at means" if name in constants else name for name in planted.names]
    wanted, labels = [parameters], [*means, *constants]
    x = places(case, planted.problem.x)
    wanted.append(Derived(0, planted.law.predict, x, 1 + bool(case.scaled)))
    labels += ["interpolated", "extrapolated 3×"][: 1 + bool(case.scaled)]
    if planted.law.trade is not None:
        wanted.append(Derived(0, lambda p, x: compute_optimal.omega(p), {}, 1))
        labels.append("compute-optimal exponent")
    return wanted, labels


def places(case: Case, x: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Variables (2,) of the two predictions: inside the design, and 3 times beyond its largest row in all it scales."""
    if not case.scaled:
        return {name: np.array([np.mean(values)]) for name, values in x.items()}
    cost = np.sum([np.log(np.maximum(x[name], 1.0)) for name in case.scaled], axis=0)
    order = np.argsort(cost, kind="stable")
    middle, last = order[len(order) // 2], order[-1]
    return {
        name: np.array(
            [
                values[middle] * (1.1 if name in case.scaled else 1.0),
                values[last] * (3.0 if name in case.scaled else 1.0),
            ]
        )
        for name, values in x.items()
    }


def recovered(planted: Fit, case: Case, labels: list[str]) -> np.ndarray:
    """(m,): False for a parameter that a fit to noiseless data does not recover."""
    found = planted.params
    lost = set()
    for name in found.index:
        true = case.truth.get(str(name), case.truth.get(str(name).split("[")[0]))
        if true is not None and abs(found[name] - true) > 1e-3 * max(abs(true), 0.1):
            lost |= {name, f"{name} at means"}
    return np.array([label not in lost for label in labels])


def cramer_rao(
    problem: Problem, theta: np.ndarray, wanted: list, trunk: float, checkpoint: float
) -> np.ndarray:
    """(m,) widths of 90% intervals for known noise and the law linearised at the true theta (P,)."""
    squares = dataclasses.replace(problem, delta=None, penalised=tuple(wanted))
    m = sum(map(len, wanted))
    plain = dataclasses.replace(squares, penalised=())
    information = plain.derivatives(theta[None], plain.batch(ratio=np.full(1, (trunk / checkpoint) ** 2)))[3]
    inverse, _ = variance_components.pseudo_inverse(information)
    slope = squares.penalised_derivatives(np.tile(theta, (m, 1)), np.arange(m))[1]
    return np.sqrt(np.einsum("mi,ij,mj->m", slope, inverse[0], slope)) * checkpoint * 2 * 1.6449


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
        shown = ", ".join(f"{name} {_share(q['coverage'])}" for name, q in per.items())
        ratios = [q["width_over_cramer_rao"] for q in per.values()]
        wide = ", ".join(
            f"{name} {q['width_over_cramer_rao']:.2f}"
            if np.isfinite(q["width_over_cramer_rao"])
            else f"{name} ∞"
            for name, q in per.items()
            if q["width_over_cramer_rao"] > WIDE
        )
        ratio = (
            f"{min(ratios):.2f} to {max(ratios):.2f}" if not wide else f"**{wide}**, others {_least(ratios)}"
        )
        ends = ", ".join(f"{name} {q['unbounded']:.1%}" for name, q in per.items() if q["unbounded"] >= 0.001)
        failed = f" ({found['failed']} failed)" if found["failed"] else ""
        lines.append(f"{head} {found['studies']}{failed} | {shown} | {ratio} | {ends or 'none'} |")
    return "\n".join(lines)


WIDE = 1.5


def _least(ratios: list[float]) -> str:
    inside = [ratio for ratio in ratios if ratio <= WIDE]
    return f"{min(inside):.2f} to {max(inside):.2f}" if inside else "none"


def _share(coverage: float) -> str:
    text = f"{100 * coverage:.0f}"
    return text if 0.85 <= coverage <= 0.95 else f"**{text}**"


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--laws", nargs="*", help="names of laws or cases (default: all)")
    parser.add_argument("--groups", nargs="*", type=int, default=list(GROUPS))
    parser.add_argument("--noise", nargs="*", default=list(NOISES))
    parser.add_argument("--studies", type=int, default=100, help="a cell; 100 tell a share to about 5 points")
    parser.add_argument("--studies-of-200", type=int, help="with 200 groups (default: as --studies)")
    parser.add_argument("--seed", type=int, default=20_000)
    parser.add_argument("--out", help="JSON, rewritten after every cell; cells in it are not run again")
    parser.add_argument("--print", action="store_true", help="only print the table of --out")
    args = parser.parse_args()
    saved = Path(args.out) if args.out else None
    cells = json.loads(saved.read_text(encoding="utf-8")) if saved and saved.exists() else []
    done = {(found["law"], found["groups"], found["noise"]) for found in cells}
    for case in CASES:
        if args.print or (args.laws and not {case.law, case.label} & set(args.laws)):
            continue
        for groups in args.groups:
            for noise in args.noise:
                if (case.label, groups, noise) in done:
                    continue
                studies = args.studies_of_200 if groups >= 200 and args.studies_of_200 else args.studies
                cells.append(cell(case, groups, noise, studies, args.seed))
                print(markdown(cells[-1:]).splitlines()[-1], flush=True)
                if saved:
                    saved.write_text(json.dumps(cells, indent=1) + "\n", encoding="utf-8")
    order = [case.label for case in CASES]
    print(markdown(sorted(cells, key=lambda c: (order.index(c["law"]), c["groups"], c["noise"] != "trunk"))))


if __name__ == "__main__":
    main()
