"""The bilingual transfer score (BTS) of ordered pairs of languages, as a curve over the reference tokens d.

ATLAS (Longpre et al. 2026, section 4):

    BTS(s→t) = −(σ(L_t(d)) − 2d)/d

L_t(d) is the loss on t of the monolingual model of t after d tokens; σ(ℓ) are the total tokens after which the 50/50
bilingual model first reaches the loss ℓ on t. The score is 0 without transfer, positive where the source helps and
negative where it interferes. It changes with d, so it is reported as a curve over d, with intervals.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike

from analysis.curves.curve import Curve, CurveNoise, CurvePoints, cell_generator, fit_curves
from analysis.curves.study import CURVE_PHASES, MAX_EPOCHS, StudyCurves, study_curves
from analysis.tables.remarks import Code, Remark, remark_text
from analysis.text import first_few
from analysis.transfer.score import missing_scores, pair_scores
from mscale.errors import MscaleError

INTERVAL_LEVEL = 0.9
CURVE_DRAWS = 200
SCORE_COLUMNS = ["scale", "params", "target", "source", "d", "score", "low", "high", "tau", "status", "bound"]
SCORE_COLUMNS += ["phase", "reason"]
# Degrees of freedom of a noise between runs that the user gives: it is taken as exactly known.
EXACT_DEGREES = 1_000_000
CellKey = tuple[str, tuple[str, ...]]  # scale, languages in order


@dataclass(frozen=True)
class TransferCells:
    """The monolingual and bilingual cells of a study, with the noise of their curves.

    Attributes:
      points: of each cell, by language and phase. params: N of each scale. noise: of each phase.
      seed: of the bootstrap draws of curves.
      left_out: sentences on the runs of one or two languages that are not used, with the reasons.
      cache: curves fitted so far.
    """

    points: Mapping[CellKey, Mapping[str, Mapping[str, CurvePoints]]]
    params: dict[str, int]
    noise: dict[str, CurveNoise]
    seed: int
    left_out: tuple[str, ...] = ()
    cache: dict = field(default_factory=dict, repr=False, compare=False)

    def at(self, scale: str, languages: tuple[str, ...], target: str) -> Mapping[str, CurvePoints]:
        """The points of a cell on the target, by phase; empty where it was not run."""
        return self.points.get((scale, tuple(sorted(languages))), {}).get(target, {})

    def curves(self, wanted: Sequence[tuple[str, tuple[str, ...], str]], phase: str) -> list[Curve | None]:
        """The smoothed curve of each (scale, languages, target), or None where it was not run."""
        keys = [(scale, tuple(sorted(languages)), target, phase) for scale, languages, target in wanted]
        new = [key for key in dict.fromkeys(keys) if key not in self.cache and phase in self.at(*key[:3])]
        generators = [cell_generator(self.seed, *key) for key in new]
        points = [self.at(*key[:3])[phase] for key in new]
        self.cache.update(
            zip(new, fit_curves(points, self.noise[phase], CURVE_DRAWS, generators), strict=True)
        )
        return [self.cache.get(key) for key in keys]


def transfer_cells(
    observations: pd.DataFrame | StudyCurves,
    *,
    run_noise: float | None = None,
    seed: int = 0,
) -> TransferCells:
    """Groups the monolingual and 50/50 bilingual runs from scratch, without repeated data, into cells.

    Args:
      run_noise: standard deviation in nats between runs that differ in the seed only; by default it is measured on
        repeated runs.

    Raises:
      MscaleError: `run_noise` is negative or not finite; losses of several vocabularies; several splits.
    """
    study = study_curves(observations)
    runs = study.runs
    chosen = (
        runs["kind"].isin(["mono", "bilingual"])
        & (runs["init"] == "scratch")
        & ((runs["kind"] != "mono") | (runs["repeats"] <= MAX_EPOCHS))
    )
    if runs.loc[chosen, "vocabulary"].nunique() > 1:
        raise MscaleError(
            "transfer compares losses per token: found runs of the vocabularies "
            f"{', '.join(sorted(map(str, runs.loc[chosen, 'vocabulary'].unique())))}; analyse one at a time (mscale "
            "transfer --vocabulary), or keep the rows of one"
        )
    noise = study.noise
    if run_noise is not None:
        if not 0 <= run_noise < np.inf:
            raise MscaleError(f"transfer: run noise is {run_noise:g}, expected nats, 0 or more")
        noise = {
            phase: replace(one, run=run_noise, run_degrees=EXACT_DEGREES) for phase, one in noise.items()
        }
    first = study.observations.drop_duplicates("scale")
    params = {str(scale): int(value) for scale, value in zip(first["scale"], first["params"], strict=True)}
    excluded = tuple(map(remark_text, study.exclusions))
    return TransferCells(
        _points(study, chosen.to_numpy()), params, noise, seed, (*_excluded_runs(runs), *excluded)
    )


def _points(study: StudyCurves, chosen: np.ndarray) -> dict[CellKey, dict[str, dict[str, CurvePoints]]]:
    """The points of the cells of the runs `chosen` (R,) bool, on the languages that each trains on."""
    place = {name: index for index, name in enumerate(study.languages)}
    cell = np.full(len(chosen), -1)
    trained_on = np.zeros((len(chosen), len(place)), dtype=bool)
    keys: dict[CellKey, int] = {}
    names = zip(study.runs["scale"], study.runs["languages"], strict=True)
    for run, (scale, languages) in enumerate(names):
        if chosen[run]:
            cell[run] = keys.setdefault((str(scale), tuple(sorted(languages))), len(keys))
            trained_on[run, [place[language] for language in languages if language in place]] = True
    curve = cell[study.run] * len(place) + study.language
    which = trained_on[study.run, study.language]
    found: dict[CellKey, dict[str, dict[str, CurvePoints]]] = {}
    numbers = list(keys)
    for phase in CURVE_PHASES:
        # Include cells that were evaluated on other languages only, without points.
        for number in np.unique(cell[study.run[study.phases[phase]]]):
            if number >= 0:
                found.setdefault(numbers[number], {})
        for number, points in study.points(curve, which, phase).items():
            cell_, language = divmod(number, len(place))
            found[numbers[cell_]].setdefault(study.languages[language], {})[phase] = points
    return found


def _excluded_runs(runs: pd.DataFrame) -> tuple[str, ...]:
    """Sentences on the runs of one or two languages that no score uses, with the reason."""
    reasons = {
        "two languages, but not half and half": (runs["K"] == 2) & (runs["kind"] == "mixed"),
        "one language, its data repeated": (runs["kind"] == "mono") & (runs["repeats"] > MAX_EPOCHS),
        "continued from a checkpoint": (runs["K"] <= 2) & (runs["init"] != "scratch"),
    }
    return tuple(
        f"{int(which.sum())} runs left out ({why}): {first_few(list(map(str, runs.loc[which, 'run'])))}"
        for why, which in reasons.items()
        if which.any()
    )


def transfer_curve(
    observations: pd.DataFrame | StudyCurves | TransferCells,
    target: str,
    source: str,
    *,
    scale: str,
    d: ArrayLike | None = None,
    phase: str = "stable",
    level: float = INTERVAL_LEVEL,
) -> pd.DataFrame:
    """The bilingual transfer score of one ordered pair over d, with its interval.

    Args:
      d: reference tokens (m,); by default 24 values, evenly spaced in log tokens over the monolingual curve. With
        cooled runs (`phase="end"`) the default is one d for every cooled bilingual budget: the d at which the
        monolingual curve has the same loss.
      level: of the intervals.

    Returns:
      A row for each d with the columns `SCORE_COLUMNS`. `status` is `measured`; `bound` (the bilingual curve never
      reaches the loss, or lies below it from its first point on: `bound` is then "at most" or "at least", and `score`
      is the bound); or `missing` (with the reason, without a score).
    """
    table = observations if isinstance(observations, TransferCells) else transfer_cells(observations)
    tokens = None if d is None else np.atleast_1d(np.asarray(d, dtype=float))
    return _score_rows(table, [(scale, target, source, tokens)], phase, level)[0]


def transfer_curves(
    table: TransferCells,
    pairs: Iterable[tuple[str, str]],
    *,
    scale: str,
    phase: str = "stable",
    level: float = INTERVAL_LEVEL,
) -> pd.DataFrame:
    """The curves of many pairs (target, source) in one table; see `transfer_curve`."""
    return _score_rows(table, [(scale, *pair, None) for pair in pairs], phase, level)[0]


def _score_rows(
    table: TransferCells, wanted: Sequence[tuple[str, str, str, np.ndarray | None]], phase: str, level: float
) -> tuple[pd.DataFrame, np.ndarray]:
    """The rows of all (scale, target, source, d) in one table, and the number of rows of each (one or more)."""
    columns: dict[str, list] = {name: [] for name in SCORE_COLUMNS}
    counts = []
    # Fit all curves together: those of the same tokens are smoothed in one batch.
    alone = table.curves([(scale, (target,), target) for scale, target, _, _ in wanted], phase)
    both = table.curves([(scale, (target, source), target) for scale, target, source, _ in wanted], phase)
    for (scale, target, source, d), one, two in zip(wanted, alone, both, strict=True):
        scores = missing_scores(d)
        if one is None or two is None:
            languages: tuple[str, ...] = (target,) if one is None else (target, source)
            code: Code = "no_run_alone" if one is None else "no_run_of_both"
            # Never compare across phases: decay alone lowers the loss by as much as most transfer effects.
            others = tuple(sorted(table.at(scale, languages, target)))
            reason = Remark(code, names=(*languages, phase), others=others)
        elif phase == "stable" and min(len(one.points.tokens), len(two.points.tokens)) < 2:
            reason = Remark("one_point")
        else:
            reason = Remark("outside_the_curve", names=(target,), numbers=(float(one.first), float(one.last)))
            scores = pair_scores(one, two, d, phase, level)
            if not len(scores.d):
                scores, reason = missing_scores(None), Remark("never_meet")
        counts.append(len(scores.d))
        labels = {"scale": scale, "params": table.params.get(scale), "target": target, "source": source}
        for name, value in {**labels, "phase": phase}.items():
            columns[name] += [value] * len(scores.d)
        for name, values in vars(scores).items():
            columns[name] += values.tolist()
        columns["reason"] += [reason if status == "missing" else None for status in scores.status]
    return pd.DataFrame(columns, columns=SCORE_COLUMNS), np.array(counts, dtype=int)


def transfer_matrix(
    observations: pd.DataFrame | StudyCurves | TransferCells,
    *,
    d: float | None = None,
    scales: Iterable[str] | None = None,
    phase: str = "stable",
    level: float = INTERVAL_LEVEL,
) -> pd.DataFrame:
    """The score of every ordered pair at every scale: one row each, with the columns `SCORE_COLUMNS`.

    Args:
      d: reference tokens; by default one value per scale, see `reference_tokens`.
      scales: by default all with a bilingual run.

    Pairs that were not run at a scale have the status `missing`.
    """
    table = observations if isinstance(observations, TransferCells) else transfer_cells(observations)
    pairs = [(scale, languages) for scale, languages in table.points if len(languages) == 2]
    scales = sorted({scale for scale, _ in pairs} if scales is None else set(scales))
    wanted = []
    for scale in scales:
        here = sorted({language for at, languages in pairs if at == scale for language in languages})
        reference = d if d is not None else reference_tokens(table, scale, phase)
        at = None if reference is None else np.array([float(reference)])
        wanted += [(scale, target, source, at) for target in here for source in here if source != target]
    rows, counts = _score_rows(table, wanted, phase, level)
    # Without reference tokens a pair is represented by the last row of its curve.
    return rows.iloc[np.cumsum(counts) - 1].reset_index(drop=True)


def reference_tokens(table: TransferCells, scale: str, phase: str = "stable") -> float | None:
    """The d of a scale at which scores of most pairs down to −0.5 can be measured; None where no pair has both curves.

    A score of −0.5 is measured and not a bound where the bilingual run has 2.5·d tokens and the monolingual one d: d is
    the median over pairs of the largest such value.
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


def effective_transfer(score: ArrayLike) -> np.ndarray:
    """τ = BTS/(2 − BTS): the worth of one token of the source in tokens of the target."""
    score = np.asarray(score, dtype=float)
    return score / (2 - score)


def main_scale(matrix: pd.DataFrame, cells: TransferCells) -> str:
    """The scale with most pairs that were run; of several, the one of the largest N, since scores rise with N."""
    counts = matrix[matrix["status"] != "missing"].groupby("scale").size()
    most = counts[counts == counts.max()].index if len(counts) else matrix["scale"].unique()
    return str(max(most, key=lambda scale: cells.params.get(scale) or 0))
