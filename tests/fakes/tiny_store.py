"""A token store of a few kilobytes for tests, written in the store's format without the package that packs.

The text of a language repeats a few letters with noise, so that a tiny model learns it within tens of steps.
"""

import json
from pathlib import Path

import numpy as np

from mscale.data import store, vocabulary

EOS, OFFSET = 1, 3


def documents(rng: np.random.Generator, letters: str, tokens: int, longest: int = 90) -> list[np.ndarray]:
    """Documents with ``tokens`` tokens in total, EOS included."""
    found, remaining = [], tokens
    cycle = np.frombuffer(letters.encode(), np.uint8).astype(np.uint16) + OFFSET
    while remaining > 0:
        length = min(int(rng.integers(20, longest)), remaining)
        text = np.resize(np.roll(cycle, int(rng.integers(len(cycle)))), length - 1)
        noise = rng.random(length - 1) < 0.1
        text = np.where(noise, rng.choice(cycle, length - 1), text)
        found.append(np.append(text, EOS).astype("<u2"))
        remaining -= length
    return found


def write(
    path: Path, languages=("en", "fr", "sw"), train_tokens: int = 6000, valid_tokens: int = 700, seed=0
):
    """Writes the store and opens it."""
    entries = {}
    described = vocabulary.describe(vocabulary.byte_vocabulary())
    for number, language in enumerate(languages):
        rng = np.random.default_rng((seed, number))
        letters = "abcdefghijklmnopqrstuvwxyz"[number * 3 : number * 3 + 6]
        folder = path / language
        folder.mkdir(parents=True)
        train = np.concatenate(documents(rng, letters, train_tokens))
        valid = documents(rng, letters, valid_tokens)
        lengths = np.array([len(document) for document in valid], np.int64)
        index = np.stack([np.cumsum(lengths) - lengths, lengths, lengths - 1], axis=1)
        train.tofile(folder / "train.bin")
        np.concatenate([*valid, np.empty(0, "<u2")]).tofile(folder / "valid.bin")
        np.save(folder / "valid_index.npy", index)
        np.save(folder / "unigram.npy", np.stack(np.unique(train, return_counts=True)).astype(np.int64))
        entries[language] = {
            "train": {"tokens": len(train), "bytes": int((train != EOS).sum()), "documents": 1},
            "valid": {
                "tokens": int(lengths.sum()),
                "bytes": int(index[:, 2].sum()),
                "documents": len(valid),
            },
            "files": {
                name: {"size": (folder / name).stat().st_size, "blake2b": store.checksum(folder / name)}
                for name in store.LANGUAGE_FILES
            },
        }
    (path / store.MANIFEST).write_text(
        json.dumps(
            {
                "format": store.STORE_FORMAT,
                "version": store.STORE_VERSION,
                "vocabulary": described,
                "dtype": "uint16",
                "languages": entries,
            }
        )
    )
    return store.open_store(path)


def flip_a_bit(path: Path) -> None:
    """Flips a bit in the middle of a file; a second time mends it."""
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)
