"""The learning curves of a study, sorted once for all that read them: transfer, crossover, adaptation.

Rows are kept as arrays of codes and numbers: matching names row by row is what takes long in a large table.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import pandas as pd

from analysis.curves.curve import Noise, Points, measure_noise, points_by
from analysis.curves.loss_spikes import found_spikes
from analysis.tables.mixtures import describe_mixtures, one_split

PHASES = ("stable", "end")
# Data repeated more than this often is a run about repetition, not about transfer.
MOST_EPOCHS = 1.001


@dataclass(frozen=True)
class StudyCurves:
    """Rows (n,) of one evaluation split.

    Attributes:
      observations: the rows. runs: what each trained on (`tables.describe_mixtures`), (R,). languages (L,), names.
      run, language, group: of each row, its place in those and in groups, names. tokens, loss. trained: whether its run
      trains on its language. kept: not a loss spike; exclusions say how many are.
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
    exclusions: tuple[dict, ...]

    @cached_property
    def phases(self) -> dict[str, np.ndarray]:
        """The rows (n,) that curves of each phase may be made of."""
        phase = self.observations["phase"]
        good = self.kept & (self.tokens > 0)
        return {name: (phase == name).to_numpy(dtype=bool) & good for name in PHASES}

    @cached_property
    def noise(self) -> dict[str, Noise]:
        """Checkpoint and run noise, for stable and for cooled curves, pooled over the cells.

        Only languages that a run trains on count: a model's loss on languages foreign to it scatters far more.
        """
        repeats = self.runs["repeats"].where(self.runs["repeats"] > MOST_EPOCHS, 0)
        kinds = zip(*(self.runs[name] for name in ("scale", "mixture", "init")), repeats, strict=True)
        cells = pd.factorize(
            np.array([f"{a}|{b}|{c}|{times:.2f}" for a, b, c, times in kinds], dtype=object)
        )[0]
        curve = (cells[self.run] * len(self.languages) + self.language) * len(self.groups) + self.group
        noise = {}
        for phase in PHASES:
            collected: dict[int, list[Points]] = {}
            for key, points in self.points(curve, self.trained, phase).items():
                collected.setdefault(key // len(self.groups), []).append(points)
            noise[phase] = measure_noise(collected.values())
        # Cooled budgets are too few a curve to show their own scatter: that measured on the trunks stands in.
        return {**noise, "end": noise["end"] if noise["end"].checkpoint else noise["stable"]}

    def points(self, curve: np.ndarray, which: np.ndarray, phase: str) -> dict[int, Points]:
        """The points of every curve, a number of each row (n,), over the rows `which` (n,) of a phase."""
        at = np.flatnonzero(self.phases[phase] & which)
        own, names = self.group[at], self.groups
        return points_by(curve[at], self.tokens[at], self.loss[at], own, names, phase)


def study_curves(
    observations: pd.DataFrame | StudyCurves, *, split: str | None = None, runs: pd.DataFrame | None = None
) -> StudyCurves:
    """Sorts a table's curves; what is sorted already stays as it is.

    Args:
      runs: `tables.describe_mixtures` of the same rows, where it is known already.

    Raises:
      MscaleError: several splits and none chosen.
    """
    if isinstance(observations, StudyCurves):
        return observations
    rows = one_split(observations, split)
    runs = describe_mixtures(rows) if runs is None else runs
    codes, names = pd.factorize(rows["run"])
    place: Mapping[str, int] = {name: index for index, name in enumerate(runs["run"])}
    language, languages = pd.factorize(rows["language"], sort=True)
    group, groups = pd.factorize(rows["group"])
    spiky, exclusions = found_spikes(rows)
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
        ~spiky,
        tuple(exclusions),
    )
