"""Transfer between languages: the bilingual transfer score as a curve over the reference budget.

ATLAS (Longpre et al. 2026, section 4):

    BTS(s→t) = −(σ(L_t(d)) − 2d)/d

with d tokens of the monolingual model of t, L_t(d) its loss there, and σ(ℓ) the total tokens that the 50/50
bilingual model needs to first reach ℓ on t. 0: no transfer; above: the source helps; below: it interferes.
A single number misleads, since the score drifts with d: here it is a curve over d with an interval.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import pandas as pd

from analysis.curves.curve import Curve, Noise, Points, cell_generator, fit_curves
from analysis.curves.study import MOST_EPOCHS, PHASES, StudyCurves, study_curves
from analysis.text import few
from analysis.transfer.score import nothing, scores_of
from mscale.errors import MscaleError

LEVEL = 0.9
DRAWS = 200
COLUMNS = [
    "scale",
    "params",
    "target",
    "source",
    "d",
    "score",
    "low",
    "high",
    "tau",
    "status",
    "bound",
    "phase",
    "reason",
]
# Degrees of freedom of a noise of runs that is given, not measured: it counts as exact.
GIVEN = 1_000_000
Key = tuple[str, tuple[str, ...]]


@dataclass(frozen=True)
class Cells:
    """The cells of a study that transfer needs, and the noise of their curves.

    `points` holds, by (scale, languages in order), the points of each of those languages by phase; `left_out` says
    which runs of one or two languages are no reference, and why.
    """

    points: Mapping[Key, Mapping[str, Mapping[str, Points]]]
    params: dict[str, int]
    noise: dict[str, Noise]
    seed: int
    draws: int
    left_out: tuple[str, ...] = ()
    cache: dict = field(default_factory=dict, repr=False, compare=False)

    def at(self, scale: str, languages: tuple[str, ...], target: str) -> Mapping[str, Points]:
        """The points of a cell on one language by phase; none where it was not run."""
        return self.points.get((scale, tuple(sorted(languages))), {}).get(target, {})

    def curves(self, asked: Sequence[tuple[str, tuple[str, ...], str]], phase: str) -> list[Curve | None]:
        """The curve of each (scale, languages, target), or None where it was not run."""
        keys = [(scale, tuple(sorted(languages)), target, phase) for scale, languages, target in asked]
        new = [key for key in dict.fromkeys(keys) if key not in self.cache and phase in self.at(*key[:3])]
        generators = [cell_generator(self.seed, *key) for key in new]
        points = [self.at(*key[:3])[phase] for key in new]
        self.cache.update(
            zip(new, fit_curves(points, self.noise[phase], self.draws, generators), strict=True)
        )
        return [self.cache.get(key) for key in keys]


def cells(
    observations: pd.DataFrame | StudyCurves,
    *,
    split: str | None = None,
    run_noise: float | None = None,
    draws: int = DRAWS,
    seed: int = 0,
) -> Cells:
    """Groups the monolingual and 50/50 bilingual runs from scratch, without repeated data, by scale.

    Args:
      run_noise: standard deviation in nats between runs that differ in the seed alone, where it is known from
        elsewhere; else it is measured on repeated runs.

    Raises:
      MscaleError: a noise that is none, losses of several vocabularies, or several splits with none chosen.
    """
    study = study_curves(observations, split=split)
    runs = study.runs
    fit = (
        runs["kind"].isin(["mono", "bilingual"])
        & (runs["init"] == "scratch")
        & ((runs["kind"] != "mono") | (runs["repeats"] <= MOST_EPOCHS))
    )
    if runs.loc[fit, "vocabulary"].nunique() > 1:
        raise MscaleError(
            "transfer compares losses per token: found runs of the vocabularies "
            f"{', '.join(sorted(map(str, runs.loc[fit, 'vocabulary'].unique())))}; analyse one at a time (mscale "
            "transfer --vocabulary), or keep the rows of one"
        )
    noise = study.noise
    if run_noise is not None:
        if not 0 <= run_noise < np.inf:
            raise MscaleError(f"transfer: run noise is {run_noise:g}, expected nats, 0 or more")
        noise = {phase: replace(one, run=run_noise, run_degrees=GIVEN) for phase, one in noise.items()}
    first = study.observations.drop_duplicates("scale")
    params = {str(scale): int(value) for scale, value in zip(first["scale"], first["params"], strict=True)}
    said = tuple(f"{one['rows']} {one['what']} left out: {one['why']}" for one in study.exclusions)
    return Cells(_points(study, fit.to_numpy()), params, noise, seed, draws, (*_left_out(runs), *said))


def _points(study: StudyCurves, fit: np.ndarray) -> dict[Key, dict[str, dict[str, Points]]]:
    """The points of the cells of the runs `fit` (R,), on the languages that each trains on."""
    place = {name: index for index, name in enumerate(study.languages)}
    cell = np.full(len(fit), -1)
    inside = np.zeros((len(fit), len(place)), dtype=bool)
    keys: dict[Key, int] = {}
    names = zip(study.runs["scale"], study.runs["languages"], strict=True)
    for run, (scale, languages) in enumerate(names):
        if fit[run]:
            cell[run] = keys.setdefault((str(scale), tuple(sorted(languages))), len(keys))
            inside[run, [place[language] for language in languages if language in place]] = True
    curve = cell[study.run] * len(place) + study.language
    which = inside[study.run, study.language]
    found: dict[Key, dict[str, dict[str, Points]]] = {}
    numbers = list(keys)
    for phase in PHASES:
        # Cells that were evaluated on other languages only are there too, with no points.
        for number in np.unique(cell[study.run[study.phases[phase]]]):
            if number >= 0:
                found.setdefault(numbers[number], {})
        for number, points in study.points(curve, which, phase).items():
            cell_, language = divmod(number, len(place))
            found[numbers[cell_]].setdefault(study.languages[language], {})[phase] = points
    return found


def _left_out(runs: pd.DataFrame) -> tuple[str, ...]:
    reasons = {
        "two languages, but not half and half": (runs["K"] == 2) & (runs["kind"] == "mixed"),
        "one language, its data repeated": (runs["kind"] == "mono") & (runs["repeats"] > MOST_EPOCHS),
        "continued from a checkpoint": (runs["K"] <= 2) & (runs["init"] != "scratch"),
    }
    return tuple(
        f"{int(which.sum())} runs left out ({why}): {few(list(map(str, runs.loc[which, 'run'])))}"
        for why, which in reasons.items()
        if which.any()
    )


def transfer_curve(
    observations: pd.DataFrame | StudyCurves | Cells,
    target: str,
    source: str,
    *,
    scale: str,
    d=None,
    phase: str = "stable",
    level: float = LEVEL,
) -> pd.DataFrame:
    """The bilingual transfer score over d, with its interval.

    Args:
      d: reference token counts (m,); by default 24 of them, evenly in log tokens over the range in which
        the score can be read. With cooled runs (`phase="end"`) that is one d for every cooled bilingual
        budget: the d at which the monolingual curve has the same loss.

    Returns:
      A row for each d with the columns of `COLUMNS`. `status` is `measured`, `bound` (the bilingual curve
      never reaches the loss, or lies below it from its first point on: `bound` is then "at most" or
      "at least" and `score` is that bound) or `missing` (with the reason; no number).
    """
    table = observations if isinstance(observations, Cells) else cells(observations)
    given = None if d is None else np.atleast_1d(np.asarray(d, dtype=float))
    return _rows(table, [(scale, target, source, given)], phase, level)[0]


def transfer_curves(
    table: Cells, pairs: Iterable[tuple[str, str]], *, scale: str, phase: str = "stable", level: float = LEVEL
) -> pd.DataFrame:
    """The curves of many pairs (target, source) below one another, each as `transfer_curve` gives it."""
    return _rows(table, [(scale, *pair, None) for pair in pairs], phase, level)[0]


def _rows(
    table: Cells, asked: Sequence[tuple[str, str, str, np.ndarray | None]], phase: str, level: float
) -> tuple[pd.DataFrame, np.ndarray]:
    """The rows of each (scale, target, source, d), below one another, and how many each has, one or more."""
    alone = table.curves([(scale, (target,), target) for scale, target, _, _ in asked], phase)
    both = table.curves([(scale, (target, source), target) for scale, target, source, _ in asked], phase)
    reasons, pairs = [], []
    for (scale, target, source, d), one, two in zip(asked, alone, both, strict=True):
        reasons.append(_why_missing(table, scale, one, two, target, source, phase))
        if not reasons[-1] and one and two:
            pairs.append((one, two, d))
    found = iter(scores_of(pairs, phase, level))
    columns: dict[str, list] = {name: [] for name in COLUMNS}
    counts = []
    for (scale, target, source, d), one, reason in zip(asked, alone, reasons, strict=True):
        scores = nothing(d) if reason else next(found)
        if not len(scores.d):
            scores, reason = nothing(None), "the cooled losses of the two never meet"
        if one and not reason:
            reason = f"the monolingual curve of {target} covers {one.first:.3g} to {one.last:.3g} tokens"
        counts.append(len(scores.d))
        labels = {"scale": scale, "params": table.params.get(scale), "target": target, "source": source}
        for name, value in {**labels, "phase": phase}.items():
            columns[name] += [value] * len(scores.d)
        for name, values in vars(scores).items():
            columns[name] += values.tolist()
        columns["reason"] += [reason if status == "missing" else "" for status in scores.status]
    return pd.DataFrame(columns, columns=COLUMNS), np.array(counts, dtype=int)


def transfer_matrix(
    observations: pd.DataFrame | StudyCurves | Cells,
    *,
    d: float | None = None,
    scales=None,
    phase: str = "stable",
    level: float = LEVEL,
) -> pd.DataFrame:
    """Every ordered pair at every scale that has a bilingual run: a long table with the columns `COLUMNS`.

    Args:
      d: the reference tokens; by default one per scale, see `reference_tokens`.
      scales: which scales; all with a bilingual run by default.

    Pairs of languages that never ran together at a scale are rows of status `missing`: they stay missing.
    """
    table = observations if isinstance(observations, Cells) else cells(observations)
    pairs = [(scale, languages) for scale, languages in table.points if len(languages) == 2]
    wanted = sorted({scale for scale, _ in pairs} if scales is None else set(scales))
    asked = []
    for scale in wanted:
        here = sorted({language for at, languages in pairs if at == scale for language in languages})
        reference = d if d is not None else reference_tokens(table, scale, phase)
        at = None if reference is None else np.array([float(reference)])
        asked += [(scale, target, source, at) for target in here for source in here if source != target]
    rows, counts = _rows(table, asked, phase, level)
    # Without a reference a pair stands by the last row of its curve.
    return rows.iloc[np.cumsum(counts) - 1].reset_index(drop=True)


def reference_tokens(table: Cells, scale: str, phase: str = "stable") -> float | None:
    """The d of a scale at which most pairs can be read: where interference to −0.5 is still in the data.

    The bilingual runs must have 2.5 d tokens for a score of −0.5 to be a number and not a bound, and the
    monolingual ones d. None where no pair has both curves.
    """
    limits, floors = [], []
    for at, languages in table.points:
        if at != scale or len(languages) != 2:
            continue
        for target in languages:
            one = table.at(scale, (target,), target).get(phase)
            two = table.at(scale, languages, target).get(phase)
            if one is None or two is None:
                continue
            limits.append(min(one.tokens[-1], two.tokens[-1] / 2.5))
            floors.append(max(one.tokens[0], two.tokens[0] / 2))
    if not limits:
        return None
    return float(max(np.median(limits), np.median(floors)))


def effective_transfer(score):
    """τ of a score, τ = BTS/(2 − BTS): what one token of the source is worth in tokens of the target."""
    score = np.asarray(score, dtype=float)
    return score / (2 - score)


def _why_missing(
    table: Cells, scale: str, alone: Curve | None, both: Curve | None, target: str, source: str, phase: str
) -> str:
    for curve, languages, what in (
        (alone, (target,), f"monolingual run of {target}"),
        (both, (target, source), f"50/50 run of {target} with {source}"),
    ):
        if curve is None:
            # Runs of the other state are no stand-in: a cooled model's lead is as large as most effects.
            other = table.at(scale, languages, target)
            state, otherwise = (
                ("in the stable phase", "cooled") if phase == "stable" else ("cooled", "stable")
            )
            return f"no {what} {state}" + (
                f": {otherwise} losses only, which are not compared" if other else ""
            )
    if alone and both and phase == "stable" and min(len(alone.points.tokens), len(both.points.tokens)) < 2:
        return "a curve of one point"
    return ""


def main_scale(matrix: pd.DataFrame, cells: Cells) -> str:
    """The scale with most pairs; of several, the largest, since scores rise with N."""
    counts = matrix[matrix["status"] != "missing"].groupby("scale").size()
    most = counts[counts == counts.max()].index if len(counts) else matrix["scale"].unique()
    return str(max(most, key=lambda scale: cells.params.get(scale) or 0))
