"""Sizes of MADLAD-400's languages for planning without a token store.

Token counts under ATLAS's vocabulary are not published. What is: the UniMax rates over one trillion tokens (Table
B.4). UniMax gives every language the same number of tokens until its text is exhausted. So a language below the
common rate was used whole: its tokens are rate × 10¹², counted as one epoch. A language at the common rate (or
English, capped at 5%) has at least that many; how many more is unknown, and it is assumed never to repeat.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any

from mscale import languages, scales

_UNIMAX_TOKENS = 10**12
UNLIMITED_TOKENS = 10**13  # tokens of a language that is assumed never to repeat
PLACEHOLDER_STORE = "store-of-the-plan"  # not a folder: a study planned without a store cannot run


@dataclass(frozen=True)
class AssumedSizes:
    """Sizes of MADLAD-400's 419 languages that the published rates imply; a ``sweeps.build.PlannedStore``."""

    path: str = PLACEHOLDER_STORE
    vocabulary_name: str = "ATLAS vocabulary"

    @property
    def vocabulary(self) -> Mapping[str, Any]:
        """As that of a token store."""
        return {"size": scales.ATLAS_VOCABULARY, "fingerprint": self.vocabulary_name}

    def data_hash(self, languages: Iterable[str]) -> str:
        """Stands for the hash of text that is not there."""
        return "assumed sizes of MADLAD-400"

    @property
    def languages(self) -> tuple[str, ...]:
        """All 419 codes."""
        return languages.codes()

    def train_tokens(self, language: str) -> int:
        """Tokens of a language, at least one window of 2,048."""
        rate = languages.published_rates()[language]
        return UNLIMITED_TOKENS if rate >= 0.999 * _common_rate() else max(2048, round(rate * _UNIMAX_TOKENS))

    def windows(self, language: str, sequence_length: int) -> int:
        """Whole windows of a language."""
        return self.train_tokens(language) // sequence_length


def is_assumed(store: str) -> bool:
    """Whether a run's store is that of a plan without one."""
    return store.startswith(PLACEHOLDER_STORE)


@cache
def _common_rate() -> float:
    return sorted(languages.published_rates().values())[-2]  # English alone is above it
