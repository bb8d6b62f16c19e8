"""The mixture schedule: which window of which language is in which row of which batch, without any state.

Global row g (= step·B + row) is assigned to a language by a tree (`mscale.data.schedule_tree`), with integer
arithmetic on g alone. Because any row can be computed directly, batches are the same on any number of hosts, a run
is resumed by its step number, and exposure is a calculation. The number of rows of each language differs from the
sum of rate × rows by at most 8 at every row, also if the weights change at some steps. Rows before a change of
weights do not depend on it, so a run can be continued on other weights.

**Epochs.** Item m of a language with n windows is window π(m mod n) of epoch m div n. π is a Feistel permutation
with key (seed, language, epoch), so the order of a language's windows does not depend on the rest of the mixture.
"""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import numpy as np

from mscale.data import permutation, schedule_tree
from mscale.data.mixture import Mixture
from mscale.errors import MscaleError

MAX_RUN_ROWS = 1 << 42  # of a whole run; ⌊kp + c⌋ is exact up to here
MAX_ERROR = 8.0  # largest |rows of a language - sum of its rate over the rows|, at any row


class TreePlan(NamedTuple):
    """The tree that assigns rows to languages, its state in each phase, and the bound of all languages' errors."""

    tree: schedule_tree.Tree
    phases: tuple[schedule_tree.Phase, ...]
    bound: float


@dataclass(frozen=True)
class Schedule:
    """A pure function step → (languages, windows) of the global batch.

    Args:
      phases: (first step, mixture) in ascending order, the first at step 0; usually one.
      windows: n of each language, its number of whole windows of S tokens, which are 0..n-1.
      batch_size: B, rows of the global batch.
      seed: of the order of languages and windows; the bound on counts does not depend on it.

    Raises:
      MscaleError: phases out of order, a batch size or window count below 1, or a language without windows.
    """

    phases: tuple[tuple[int, Mixture], ...]
    windows: Mapping[str, int]
    batch_size: int
    seed: int = 0

    def __post_init__(self) -> None:
        starts = [start for start, _ in self.phases]
        if not starts or starts[0] != 0 or any(a >= b for a, b in zip(starts, starts[1:], strict=False)):
            raise MscaleError(f"mixture phases start at steps {starts}, expected ascending steps from 0")
        if self.batch_size < 1:
            raise MscaleError(f"batch size is {self.batch_size}, expected at least 1 row")
        for _, mixture in self.phases:
            for language, rate in zip(mixture.languages, mixture.rates, strict=True):
                if rate > 0 and self.windows.get(language, 0) < 1:
                    raise MscaleError(
                        f"mixture {mixture.name!r}: {language} has rate {rate:g} but "
                        f"{self.windows.get(language, 0)} windows, expected at least 1"
                    )
        if len(starts) > 1 and self.bound > MAX_ERROR:
            raise MscaleError(
                f"mixture phases that start at steps {starts}: their weights change so much and so soon that a "
                f"language may be {self.bound:.1f} windows from its rate, expected at most {MAX_ERROR:g}; "
                "lengthen the phases, raise the batch size, or change the weights in smaller parts"
            )

    @cached_property
    def languages(self) -> tuple[str, ...]:
        """All languages of all phases, in order of first appearance; language ids index this tuple."""
        return tuple(dict.fromkeys(language for _, mixture in self.phases for language in mixture.languages))

    def batch(self, step: int, rows: slice | None = None) -> tuple[np.ndarray, np.ndarray]:
        """Returns (language ids int32, window ids int64) of ``rows`` of the batch at ``step``, by default all B."""
        return self.batches(step, step + 1, rows)

    def batches(self, start: int, stop: int, rows: slice | None = None) -> tuple[np.ndarray, np.ndarray]:
        """Returns the batches of steps ``start`` to ``stop`` - 1, concatenated; each as from ``batch``."""
        if not 0 <= start <= stop or stop * self.batch_size > MAX_RUN_ROWS:
            raise MscaleError(
                f"steps {start} to {stop} of {self.batch_size} rows: expected 0 ≤ start ≤ stop and at most "
                f"{MAX_RUN_ROWS:,} rows in all"
            )
        chosen = np.arange(self.batch_size, dtype=np.int64)[rows or slice(None)]
        steps = np.arange(start, stop, dtype=np.int64)
        return self.rows((steps[:, None] * self.batch_size + chosen).ravel())

    def rows(self, positions: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Returns (language ids, window ids) of any global rows g, row g mod B of step g div B."""
        tree, phases, _ = self.plan
        languages = np.empty(positions.size, np.int32)
        items = np.empty(positions.size, np.int64)
        index = np.searchsorted([phase.first for phase in phases], positions, side="right") - 1
        for i in np.unique(index):
            of_phase = slice(None) if len(phases) == 1 else np.flatnonzero(index == i)
            leaf, index_in_phase = schedule_tree.locate_items(
                tree, phases[i], positions[of_phase] - phases[i].first
            )
            languages[of_phase] = leaf
            items[of_phase] = index_in_phase + phases[i].before[leaf]
        return languages, permutation.permuted_windows(self._domains, languages, items)

    def windows_seen(self, step: int) -> dict[str, int]:
        """Returns the exact number of windows of each language in the steps before ``step``, without enumeration."""
        if step < 0:
            raise MscaleError(f"windows seen before step {step}: expected a step of 0 or above")
        tree, phases, _ = self.plan
        rows = step * self.batch_size
        phase = [phase for phase in phases if phase.first <= rows][-1]
        counts = dict(zip(self.languages, phase.before.tolist(), strict=True))
        for child, count in enumerate(schedule_tree.items_received(tree, phase, rows - phase.first)):
            if tree.child[child] < 0:
                counts[self.languages[~tree.child[child]]] += count
        return counts

    def exposure(self, step: int, sequence_length: int) -> dict[str, tuple[int, int]]:
        """Returns language → (tokens, unique tokens) that a run has trained on before ``step``."""
        return {
            language: (
                count * sequence_length,
                min(count, self.windows[language]) * sequence_length if count else 0,
            )
            for language, count in self.windows_seen(step).items()
        }

    @property
    def bound(self) -> float:
        """Bound on |rows of a language − sum of its rate over the rows|, for all languages and rows."""
        return self.plan.bound

    @cached_property
    def plan(self) -> TreePlan:
        """The tree of this schedule and its state in each phase."""
        ids = {language: i for i, language in enumerate(self.languages)}
        weights = [
            {
                ids[language]: max(round(rate * schedule_tree.FIXED_POINT_ONE), 1)
                for language, rate in zip(mixture.languages, mixture.rates, strict=True)
                if rate > 0
            }
            for _, mixture in self.phases
        ]
        tree = schedule_tree.build_tree(weights, _key("phase", self.seed, 0))
        firsts = [start * self.batch_size for start, _ in self.phases]
        return TreePlan(tree, *schedule_tree.plan_phases(tree, firsts, weights, len(self.languages)))

    @cached_property
    def _domains(self) -> permutation.FeistelDomains:
        return permutation.feistel_domains(
            [max(self.windows.get(language, 0), 1) for language in self.languages],
            [_key("windows", self.seed, language) for language in self.languages],
        )


def single(mixture: Mixture, batch_size: int, seed: int = 0) -> Schedule:
    """Returns the schedule of one mixture from step 0 on."""
    return from_phases(((0, mixture),), batch_size, seed)


def from_phases(phases: Sequence[tuple[int, Mixture]], batch_size: int, seed: int = 0) -> Schedule:
    """Returns the schedule of a sequence of mixtures, with their numbers of unique windows.

    Raises:
      MscaleError: two phases give a language different numbers of windows, or have different sequence lengths.
    """
    windows: dict[str, int] = {}
    for _, mixture in phases:
        if mixture.sequence_length != phases[0][1].sequence_length:
            raise MscaleError(
                f"phases with windows of {phases[0][1].sequence_length} and {mixture.sequence_length} "
                "tokens: expected one sequence length"
            )
        for language, count in zip(mixture.languages, mixture.unique_windows, strict=True):
            if windows.setdefault(language, count) != count:
                raise MscaleError(
                    f"mixture {mixture.name!r}: {language} has {count} unique windows, an earlier phase gave it "
                    f"{windows[language]}; expected the same in all phases"
                )
    return Schedule(tuple(phases), windows, batch_size, seed)


def _key(*parts: object) -> int:
    """A 64-bit hash of all parts, the same on every machine and Python version."""
    return int.from_bytes(hashlib.blake2b(repr(parts).encode(), digest_size=8).digest(), "little")
