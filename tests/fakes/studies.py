"""Small studies over a fake token store that has sizes but no text."""

import dataclasses

from sweeps.build import Recipe, build_study
from sweeps.study import Cell

LANGUAGES = ("en", "fr", "hi")


RECIPE = Recipe(
    sequence_length=8,
    batch_size=4,
    learning_rate=0.01,
    warmup_steps=4,
    gin_files=(),
)


STEP = 32


class FakeStore:
    """A token store that has sizes but no text."""

    def __init__(self, languages=LANGUAGES, tokens=8_000, path="/store"):
        self.path, self.languages, self.tokens = path, tuple(languages), tokens
        self.vocabulary = {"kind": "byte", "size": 259, "fingerprint": "f"}

    def train_tokens(self, language):
        return self.tokens

    def data_hash(self, languages):
        return " ".join(sorted(languages))

    def windows(self, language, sequence_length):
        return self.tokens // sequence_length


def cell(tag="mono", scale="nano2", mixture="en", steps=(20, 50, 100), **changes):
    return Cell(tag, scale, mixture, tuple(STEP * count for count in steps), **changes)


def make(*cells, store=None, **changes):
    return build_study("test", cells, dataclasses.replace(RECIPE, **changes), store or FakeStore())
