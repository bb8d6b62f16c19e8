"""The rows of a study as arrays of codes and numbers, from which transfer, crossover and adaptation make their curves.

Names are matched once: doing so row by row dominates the time in large tables.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import pandas as pd

from analysis.curves.curve import CurveNoise, CurvePoints, estimate_curve_noise, points_by_curve
from analysis.curves.loss_spikes import find_spikes
from analysis.tables.checks import select_split
from analysis.tables.mixtures import describe_mixtures
from analysis.tables.remarks import Remark

CURVE_PHASES = ("stable", "end")
# Epochs; runs that repeat a language more often are about repetition and not used for transfer and crossover.
MAX_EPOCHS = 1.001


@dataclass(frozen=True)
class StudyCurves:
    """Rows (n,) of one evaluation split.

    Attributes:
      observations: the rows. runs: one row per run (`tables.mixtures.describe_mixtures`). languages, groups: names.
      run, language, group: of each row, (n,), the index in `runs`, `languages` and `groups`. tokens, loss: (n,).
      trained: (n,), whether the run trains on the row's language. kept: (n,), not a loss spike.
      exclusions: counts of the spikes left out.
    """

    observations: pd.DataFrame
    runs: pd.DataFrame
    languages: list[str]
    run: np.ndarray
    language: np.ndarray
    group: np.ndarray
    groups: list[str]
    tokens: np.ndarray
    loss: np.ndarray
    trained: np.ndarray
    kept: np.ndarray
    exclusions: tuple[Remark, ...]

    @cached_property
    def phases(self) -> dict[str, np.ndarray]:
        """{phase: mask (n,) of the rows that its curves are made of}."""
        phase = self.observations["phase"]
        good = self.kept & (self.tokens > 0)
        return {name: (phase == name).to_numpy(dtype=bool) & good for name in CURVE_PHASES}

    @cached_property
    def noise(self) -> dict[str, CurveNoise]:
        """{phase: checkpoint and run noise}, pooled over the cells.

        Only from languages of a run's own mixture: losses on other languages scatter far more.
        """
        repeats = self.runs["repeats"].where(self.runs["repeats"] > MAX_EPOCHS, 0)
        kinds = zip(*(self.runs[name] for name in ("scale", "mixture", "init")), repeats, strict=True)
        cells = pd.factorize(
            np.array([f"{a}|{b}|{c}|{times:.2f}" for a, b, c, times in kinds], dtype=object)
        )[0]
        curve = (cells[self.run] * len(self.languages) + self.language) * len(self.groups) + self.group
        noise = {}
        for phase in CURVE_PHASES:
            collected: dict[int, list[CurvePoints]] = {}
            for key, points in self.points(curve, self.trained, phase).items():
                collected.setdefault(key // len(self.groups), []).append(points)
            noise[phase] = estimate_curve_noise(collected.values())
        # Curves of decayed runs often have too few points to estimate noise: use that of the stable phase.
        return {**noise, "end": noise["end"] if noise["end"].checkpoint else noise["stable"]}

    def points(self, curve: np.ndarray, which: np.ndarray, phase: str) -> dict[int, CurvePoints]:
        """{curve: points} from the rows `which` (n,) of a phase; curve (n,) numbers the curve of each row."""
        at = np.flatnonzero(self.phases[phase] & which)
        own, names = self.group[at], self.groups
        return points_by_curve(curve[at], self.tokens[at], self.loss[at], own, names, phase)


def study_curves(
    observations: pd.DataFrame | StudyCurves, *, split: str | None = None, runs: pd.DataFrame | None = None
) -> StudyCurves:
    """The rows of one evaluation split as `StudyCurves`; a `StudyCurves` is returned unchanged.

    Args:
      runs: `tables.mixtures.describe_mixtures` of the same rows, if known already.

    Raises:
      MscaleError: several splits and none chosen.
    """
    if isinstance(observations, StudyCurves):
        return observations
    rows = select_split(observations, split)
    runs = describe_mixtures(rows) if runs is None else runs
    codes, names = pd.factorize(rows["run"])
    place: Mapping[str, int] = {name: index for index, name in enumerate(runs["run"])}
    language, languages = pd.factorize(rows["language"], sort=True)
    group, groups = pd.factorize(rows["group"])
    spikes, exclusions = find_spikes(rows)
    return StudyCurves(
        rows,
        runs,
        list(map(str, languages)),
        np.array([place[name] for name in names], dtype=int)[codes],
        language,
        group,
        list(map(str, groups)),
        rows["tokens"].to_numpy(dtype=float),
        rows["loss"].to_numpy(dtype=float),
        (rows["target_tokens"] > 0).to_numpy(dtype=bool),
        ~spikes,
        tuple(exclusions),
    )
