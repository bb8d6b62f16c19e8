"""The optimum of a law from that of one it contains, as Chinchilla is ATLAS without the worth of other languages.

The optimum of the smaller law, with a few values for what it lacks, lies in the basin of the larger one's. That it does
is checked against searches from starts that know nothing of it, or else the law is searched in full.
"""

import dataclasses
from collections.abc import Sequence

import numpy as np

from analysis import search
from analysis.engine import minimise
from analysis.fitting import Estimate, estimate
from analysis.parts import Parts, climb
from analysis.priors import Priors, with_priors
from analysis.problem import Problem

STARTS = (0.0, 0.5, 1.0)  # of the range where what the smaller law lacks is searched
ROUGH = 1e-5
INSTEAD = {"tau": "tau_other"}  # what stood for a parameter in the smaller law


def _contained(problem: Problem, names: Sequence[str], before: Sequence[Estimate]) -> Estimate | None:
    """The last estimate, of those before, of a law that this one contains, on the same rows."""
    law = problem.law
    for found in reversed(before):
        same = np.array_equal(found.problem.y, problem.y) and np.array_equal(
            found.problem.group, problem.group
        )
        alike = found.problem.delta == problem.delta and found.problem.law.residual == law.residual
        if same and alike and found.problem.law.name in law.contains and set(found.names) <= set(names):
            return found
    return None


def nested(
    problem: Problem, names: tuple[str, ...], priors: Priors, seed: int, before: Sequence[Estimate]
) -> Estimate:
    """As `fitting.estimate`, from one of the estimates before: of a law on the same rows that this one contains."""
    smaller = _contained(problem, names, before)
    if smaller is None:
        return estimate(problem, names, priors, seed)
    near, n = smaller.problem, len(problem.y)
    level = float(near.objective(smaller.theta[None])[0])
    given = dataclasses.replace(problem, barrier=1e-7 * level / n, ratio=near.ratio)
    candidates, alone = _starts(given, names, smaller, smaller.theta), None
    if priors:
        rough = dataclasses.replace(given, ratio=0.0)
        found = minimise(rough, _starts(given, names, smaller, smaller.alone), tolerance=ROUGH)
        best = int(np.argmin(found.objective))
        alone = found.theta[best]
        given = dataclasses.replace(given, barrier=1e-7 * float(found.objective[best]) / n)
        given = with_priors(given, names, priors, alone)
        candidates = np.concatenate([candidates, alone[None]])
    start = candidates[[int(np.argmin(given.system(candidates, given.members(), False)[0]))]]
    if problem.delta is None:
        one = Parts(given, np.ones((1, n), bool), np.ones((1, problem.size), bool))
        ratio, theta = climb(one, start, near, None)
        given = dataclasses.replace(given, ratio=float(ratio[0]))
    else:
        theta = minimise(given, start).theta
    other = search.optima(given, seed, polished=search.FINAL).theta
    here, there = given.system(np.concatenate([theta, other]), given.members(), False)[0]
    # With priors the residuals are larger than without, unless the optimum without them was not found.
    missed = alone is not None and np.diff(np.log(_plain(given, [alone, theta[0]])))[0] < -10 * ROUGH
    if missed or there < here - 1e-6 * abs(here):
        return estimate(problem, names, priors, seed)
    return Estimate(names, given, theta[0], theta[0] if alone is None else alone)


def _plain(problem: Problem, theta: Sequence[np.ndarray]) -> np.ndarray:
    """(B,) the sum over the rows at theta (B, P), without priors or noise that groups share."""
    return problem.objective(np.array(theta), problem.members(ratio=np.zeros(1)))


def _starts(problem: Problem, names: Sequence[str], smaller: Estimate, at: np.ndarray) -> np.ndarray:
    """(K, P): the smaller law's parameters at (p,), with a few values for what it lacks."""
    known = dict(zip(smaller.names, at, strict=True))
    theta = np.empty((len(STARTS), problem.size))
    for index, (name, q) in enumerate(zip(names, problem.held["parameters"], strict=True)):
        low, high = np.log(q.start) if q.log else q.start
        theta[:, index] = known.get(name, low + np.array(STARTS) * (high - low))
        instead = INSTEAD.get(name.split("[")[0])
        if name not in known and instead in known:
            theta[0, index] = known[instead]
    return theta
