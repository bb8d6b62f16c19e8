"""The mixture schedule: which window of which language is in which row of which batch, with no state.

Global row g (= step·B + row) falls to a language through a tree (`mscale.data.schedule_tree`), by integer
arithmetic on g alone. Random access is what makes the batches the same on any number of hosts, resuming a
matter of a step number, and exposure arithmetic. The count of each language differs from the sum of rate ×
rows by at most 8 at every row, also where the weights change at steps; a run can be continued on other
weights, as what came before a change does not depend on it.

**Epochs.** Item m of a language with n windows is window π(m mod n) of epoch m div n, with π a Feistel
permutation keyed by (seed, language, epoch): a language's windows come in the same order whatever it is
mixed with.
"""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from mscale.data import permutation, schedule_tree
from mscale.data.mixture import Mixture
from mscale.errors import MscaleError

MAX_ROWS = 1 << 42  # of a whole run; ⌊kp + c⌋ is exact up to here
MAX_ERROR = 8.0  # windows that a language may be ahead of or behind its rates, at any row


@dataclass(frozen=True)
class Schedule:
    """A pure function step → (languages, windows) of the global batch.

    Args:
      phases: (first step, mixture), the first at step 0, in ascending order; usually one.
      windows: n of each language, whole windows of S tokens; its windows are 0..n-1.
      batch_size: B, rows of the global batch.
      seed: another seed, another order of languages and windows; counts stay within the same bound.

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
        """Returns (language ids int32, window ids int64) of ``rows`` of the batch at ``step`` (all B by
        default)."""
        return self.batches(step, step + 1, rows)

    def batches(self, start: int, stop: int, rows: slice | None = None) -> tuple[np.ndarray, np.ndarray]:
        """Returns the batches of steps ``start`` to ``stop`` - 1, one after the other, as ``batch`` does
        one."""
        if not 0 <= start <= stop or stop * self.batch_size > MAX_ROWS:
            raise MscaleError(
                f"steps {start} to {stop} of {self.batch_size} rows: expected 0 ≤ start ≤ stop and at most "
                f"{MAX_ROWS:,} rows in all"
            )
        chosen = np.arange(self.batch_size, dtype=np.int64)[rows or slice(None)]
        steps = np.arange(start, stop, dtype=np.int64)
        return self.rows((steps[:, None] * self.batch_size + chosen).ravel())

    def rows(self, positions: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Returns (language ids, window ids) of any rows, position g being row g mod B of step g div B."""
        tree, phases, _ = self._plan
        languages = np.empty(positions.size, np.int32)
        items = np.empty(positions.size, np.int64)
        index = np.searchsorted([phase.first for phase in phases], positions, side="right") - 1
        for i in np.unique(index):
            of_phase = slice(None) if len(phases) == 1 else np.flatnonzero(index == i)
            leaf, k = schedule_tree.locate_items(tree, phases[i], positions[of_phase] - phases[i].first)
            languages[of_phase] = leaf
            items[of_phase] = k + phases[i].before[leaf]
        return languages, permutation.permuted_windows(self._domains, languages, items)

    def windows_seen(self, step: int) -> dict[str, int]:
        """Returns how many windows of each language the steps before ``step`` held; exact, no
        enumeration."""
        if step < 0:
            raise MscaleError(f"windows seen before step {step}: expected a step of 0 or above")
        tree, phases, _ = self._plan
        rows = step * self.batch_size
        phase = [phase for phase in phases if phase.first <= rows][-1]
        counts = dict(zip(self.languages, phase.before.tolist(), strict=True))
        for child, count in enumerate(schedule_tree.items_received(tree, phase, rows - phase.first)):
            if tree.child[child] < 0:
                counts[self.languages[~tree.child[child]]] += count
        return counts

    def exposure(self, step: int, sequence_length: int) -> dict[str, tuple[int, int]]:
        """Returns language → (tokens, unique tokens) that a run has seen before ``step``."""
        return {
            language: (
                count * sequence_length,
                min(count, self.windows[language]) * sequence_length if count else 0,
            )
            for language, count in self.windows_seen(step).items()
        }

    @property
    def bound(self) -> float:
        """Windows by which the count of any language may differ from its rates' share, at any row."""
        return self._plan[2]

    @cached_property
    def _plan(self) -> tuple[schedule_tree.Tree, tuple[schedule_tree.Phase, ...], float]:
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
        return tree, *schedule_tree.plan_phases(tree, firsts, weights, len(self.languages))

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
    """Returns the schedule of mixtures that follow each other, with the windows that they give.

    Raises:
      MscaleError: two phases allow a language different numbers of windows, or cut windows of different
        lengths.
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
    """64 bits that depend on all parts, the same on every machine and Python."""
    return int.from_bytes(hashlib.blake2b(repr(parts).encode(), digest_size=8).digest(), "little")
