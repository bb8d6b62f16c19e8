"""Planted ATLAS laws of four languages and a study that identifies them, for the tests of the planner."""

import functools
import itertools

import made_results
import numpy as np

import analysis
from analysis.planning import allocation
from analysis.validation import simulate

NAMES = ("a", "b", "c", "d")
UNIQUE = {"a": 3e6, "b": 1.5e6, "c": 6e6, "d": 4e5}
SIZES = tuple(np.geomspace(2e4, 4e5, 5))
SOURCES = {name: [other for other in NAMES if other != name] for name in NAMES}


def planted(seed):
    """True parameters in the names of a fit, drawn anew for every seed."""
    rng = np.random.default_rng(seed)
    params = {"alpha": 0.35, "beta": 0.3, "lambda": 0.2, "tau_other": 0.1}
    for name in NAMES:
        params |= {f"E[{name}]": 1 + rng.uniform(-0.2, 0.2), f"A[{name}]": rng.uniform(10, 20)}
        params[f"B[{name}]"] = rng.uniform(15, 40)
        for other in SOURCES[name]:
            params[f"tau[{name},{other}]"] = rng.uniform(0.0, 0.6)
    return params


def true_laws(params, unique=UNIQUE):
    """The planted laws as the planner holds laws: one draw, which is the truth."""

    def row(name):
        return np.array([[params.get(f"{name}[{target}]", params.get(name)) for target in NAMES]])

    tau = [[1.0 if t == s else params[f"tau[{t},{s}]"] for s in NAMES] for t in NAMES]
    limits = np.array([unique.get(name, np.inf) for name in NAMES])
    rows = [row(name) for name in ("E", "A", "B", "alpha", "beta", "lambda")]
    return allocation.LawDraws(NAMES, NAMES, *rows, tau=np.array([tau]), unique=limits)


def design(lone=""):
    """Observations without losses, and exposure: alone, in pairs and all together, with repeated data.

    lone: a language that is run at the middle size only.
    """
    others = tuple(name for name in NAMES if name != lone)
    cells = [((name,), SIZES if name in others else [SIZES[2]], (1e6, 2e6, 4e6)) for name in NAMES]
    cells += [(pair, [SIZES[2]], (2e6, 6e6)) for pair in itertools.combinations(NAMES, 2)]
    cells += [(others, SIZES[::2], (2e6, 4e6, 8e6)), (NAMES[:3], [SIZES[1]], (3e6,))]
    cells += [((NAMES[0], name), SIZES[::4], (2e6, 6e6)) for name in others[1:] if lone]
    return simulate.multilingual_design(cells, unique=UNIQUE)


@functools.cache
def fitted(seed, lone=""):
    """The ATLAS law fitted to a noisy study of `planted(seed)`."""
    rows, exposure = design(lone)
    noise = {"trunk": 0.003, "checkpoint": 0.001, "seed": seed}
    rows = simulate.draw_observations(
        "atlas", rows, planted(seed), exposure=exposure, sources=SOURCES, **noise
    )
    return analysis.fit("atlas", rows, exposure=exposure, sources=SOURCES)


def results(seed, lone=""):
    """What `mscale fit` would keep of that study, as far as decisions need it."""
    fit = fitted(seed, lone)
    rows, _ = design(lone)
    columns = ["run", "language", "scale", "params", "tokens", "target_tokens", "mixture"]
    points = rows[columns].assign(law="atlas", epochs=1.0, K=1, observed=2.0, predicted=2.0)
    return made_results.results(
        laws={"atlas": {"fitted": True}},
        fits={"atlas": fit.to_json()},
        study={
            "unique_tokens": {name: int(tokens) for name, tokens in UNIQUE.items()},
            "trained_languages": list(NAMES),
            "scales": [{"scale": f"{size:.3g}", "params": round(size)} for size in SIZES],
        },
        fit_points=points.to_dict("records"),
    )
