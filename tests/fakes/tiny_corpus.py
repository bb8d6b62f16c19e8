"""Small corpora in MADLAD-400's layout for tests: `write(folder, {"aa": ["text", …]})`."""

import gzip
import json
from pathlib import Path

import numpy as np

from mscale.data.corpus import shard_name


def write(folder: Path, texts: dict[str, list[str]], shard: int = 0) -> Path:
    """Writes one file per language (number ``shard``) and returns ``folder``."""
    for language, documents in texts.items():
        path = folder / shard_name(language, shard)
        path.parent.mkdir(parents=True, exist_ok=True)
        lines = "".join(json.dumps({"text": text}, ensure_ascii=False) + "\n" for text in documents)
        path.write_bytes(gzip.compress(lines.encode(), mtime=0))
    return folder


def documents(count: int, words: int, seed: int = 0) -> list[str]:
    """Documents of several lines with characters of one to four bytes, all different."""
    rng = np.random.default_rng(seed)
    alphabet = ["a", "bé", "日本", "🙂", "xyz", "ж"]
    return [
        "\n".join(
            f"{seed}.{number}.{line} " + " ".join(rng.choice(alphabet, size=words)) for line in range(3)
        )
        for number in range(count)
    ]
