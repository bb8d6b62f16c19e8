"""From text to batches: corpora, vocabularies, the token store, mixtures and their schedule. Uses NumPy, not JAX.

What other folders import from here:

- `corpus`: text by language.
- `vocabulary`: bytes and SentencePiece.
- `store`: the token store.
- `verification`: its files against their checksums.
- `copying`: it is brought elsewhere.
- `mixture`: names and rates of mixtures.
- `schedule`: which window of which language at which step.
- `feed`: batches.
- `parallel_text`: the same text in many languages.
"""

__all__ = [
    "copying",
    "corpus",
    "feed",
    "mixture",
    "parallel_text",
    "schedule",
    "store",
    "verification",
    "vocabulary",
]
