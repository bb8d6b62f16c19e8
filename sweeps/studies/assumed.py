"""Sizes of MADLAD-400's languages for planning without a token store.

Token counts under ATLAS's vocabulary are not published. What is: the UniMax rates over one trillion tokens (Table
B.4). UniMax gives every language the same until it runs out of text, so a language below the common rate gave all
it had: its tokens are rate × 10¹², counted as one epoch. A language at the common rate (or English, capped at 5%)
has at least that much, how much more is unknown; it is taken never to repeat.
"""

from dataclasses import dataclass
from functools import cache

from mscale import languages, scales

UNIMAX_TOKENS = 10**12
PLENTY = 10**13  # tokens of a language that is taken never to repeat
FINGERPRINT = "assumed sizes of MADLAD-400, ATLAS vocabulary"
STORE = "store-of-the-plan"  # no such folder: a study planned without a store cannot run


@dataclass(frozen=True)
class AssumedSizes:
    """MADLAD-400's 419 languages as far as the published rates tell their sizes; a ``mixture.Sizes``."""

    path: str = STORE
    vocabulary_size: int = scales.ATLAS_VOCABULARY

    @property
    def languages(self) -> tuple[str, ...]:
        """All 419 codes."""
        return languages.codes()

    def train_tokens(self, language: str) -> int:
        """Tokens of a language, at least one window of 2,048."""
        rate = languages.published_rates()[language]
        return PLENTY if rate >= 0.999 * _common_rate() else max(2048, round(rate * UNIMAX_TOKENS))

    def windows(self, language: str, sequence_length: int) -> int:
        """Whole windows of a language."""
        return self.train_tokens(language) // sequence_length


@cache
def _common_rate() -> float:
    return sorted(languages.published_rates().values())[-2]  # English alone is above it
