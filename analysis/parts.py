"""Parts of a problem's rows as one batch, each a member for which the other rows are not there."""

import dataclasses

import numpy as np

from analysis import uncertainty
from analysis.engine import minimise
from analysis.problem import Members, Problem
from analysis.reduction import reduce
from analysis.sufficiency import SPARE
from analysis.uncertainty import SHARING


@dataclasses.dataclass(frozen=True)
class Parts:
    """F parts of a problem's rows: kept (F, n) bool, active (F, P) the parameters on which some kept row depends."""

    problem: Problem
    kept: np.ndarray
    active: np.ndarray

    @property
    def freedom(self) -> np.ndarray:
        return np.maximum(1, self.kept.sum(axis=1) - self.active.sum(axis=1))

    @property
    def weight(self) -> np.ndarray:
        """(F, G) of the kept rows of each group."""
        return self.problem.group_sums(self.problem.weight * self.kept)

    def members(self, which: np.ndarray, ratio: np.ndarray, precision: np.ndarray | None) -> Members:
        """Members of parts which (B,) with ρ ratio (B,) and the priors of the parts, precision (F, P)."""
        given = {} if precision is None else {"precision": precision[which]}
        return self.problem.members(kept=self.kept[which], ratio=ratio, **given)

    def ratios(self) -> list[np.ndarray]:
        """The values of ρ that are gone through, of each part, as `uncertainty.ratios` has them."""
        found = []
        count = self.problem.group_sums(self.kept.astype(float))
        for rows, weight, active in zip(count, self.weight, self.active, strict=True):
            told = rows.max() > 1 and np.count_nonzero(rows) >= active.sum() + SPARE
            found.append((SHARING - 1.0) / weight.max() if told else np.zeros(1))
        return found


def sharing(problem: Problem) -> float:
    """1 + m·ρ̂, m the weight of the largest group."""
    return 1.0 + problem.ratio * np.bincount(problem.group, problem.weight).max()


def climb(
    parts: Parts, theta: np.ndarray, near: Problem, precision: np.ndarray | None
) -> tuple[np.ndarray, np.ndarray]:
    """ρ̂ (F,) and the optima (F, P) given it, from theta (F, P).

    The likelihood of ρ is climbed from the ρ̂ of a problem near, which takes a few of the values that
    `uncertainty.noise` goes through, and is that of the problem that it goes through them with.
    """
    ratios, reduced = parts.ratios(), reduce(parts.problem)
    parts = dataclasses.replace(parts, problem=reduced.inner, active=parts.active[:, reduced.kept])
    precision = None if precision is None else precision[:, reduced.kept]
    theta = reduced.inwards(theta)
    first = int(np.argmin(np.abs(np.log(SHARING / sharing(near)))))
    place = [first if len(ratio) > 1 else 0 for ratio in ratios]
    known: list[dict[int, tuple[float, np.ndarray]]] = [{} for _ in ratios]
    while True:
        asked = [
            (part, at)
            for part, ratio in enumerate(ratios)
            for at in (place[part] - 1, place[part], place[part] + 1)
            if 0 <= at < len(ratio) and at not in known[part]
        ]
        if not asked:
            best = np.array([of[at][1] for of, at in zip(known, place, strict=True)])
            found = np.array([ratio[at] for ratio, at in zip(ratios, place, strict=True)])
            return found, reduced.outwards(best)
        which = np.array([part for part, _ in asked])
        start = np.array([known[part][place[part]][1] if known[part] else theta[part] for part in which])
        members = parts.members(which, np.array([ratios[part][at] for part, at in asked]), precision)
        given = _restricted(parts, start, members, which)
        for (part, at), likelihood, optimum in zip(asked, *given, strict=True):
            known[part][at] = (likelihood, optimum)
        for part in set(which):
            mine = known[part]
            place[part] = max(mine, key=lambda at: mine[at][0])


def _restricted(
    parts: Parts, theta: np.ndarray, members: Members, which: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """The restricted log likelihood (B,) given ρ of parts which (B,), and their optima (B, P), from theta (B, P)."""
    problem, freedom = parts.problem, parts.freedom[which]
    theta = minimise(problem, theta, members, damping=1e-3).theta
    information = problem.system(theta, members)[3]
    np.einsum("bii->bi", information)[~parts.active[which]] = 1.0
    rss = 2 * problem.objective(theta, members)
    _, log_determinant = uncertainty.invert(information)
    weight = parts.weight[which]
    found = uncertainty.likelihood(problem, members.ratio, rss, log_determinant, freedom, weight)
    return found[1], theta
