"""Parallel text: the same lines in many languages, and the UTF-8 bytes of each language for it."""

import os
from collections import Counter
from pathlib import Path

from mscale.data import corpus as corpora
from mscale.errors import MscaleError


def parallel_name(code: str) -> str:
    """Returns the path of a language's parallel text below the folder of a generated corpus."""
    return f"parallel/{code}.jsonl.gz"


def parallel_text(path: str | os.PathLike) -> dict[str, list[str]]:
    """Reads parallel text as ``{code: lines}``, sorted by code; line i has the same meaning in every language.

    Raises:
      MscaleError: there is no parallel text, a file is unreadable, or languages differ in their number of lines.
    """
    path = Path(path)
    for folder, pattern in (
        (path / "parallel", "*.jsonl.gz"),
        (path, "*.jsonl.gz"),
        (path / "devtest", "*.devtest"),
        (path / "dev", "*.dev"),
        (path, "*.devtest"),
        (path, "*.dev"),
    ):
        files = sorted(folder.glob(pattern)) if folder.is_dir() else []
        if files:
            break
    else:
        raise MscaleError(
            f"{path}: found no parallel text; expected {parallel_name('<code>')} (mscale corpus writes it), or "
            "devtest/<code>.devtest or dev/<code>.dev as Flores has it; check the path"
        )
    text = {file.name.split(".")[0]: _lines(file) for file in files}
    counts = Counter(map(len, text.values()))
    usual_count = counts.most_common(1)[0][0]
    if len(counts) > 1:
        odd = ", ".join(
            f"{file.name} ({len(text[file.name.split('.')[0]]):,})"
            for file in files
            if len(text[file.name.split(".")[0]]) != usual_count
        )
        raise MscaleError(
            f"{folder}: parallel text needs as many lines in each language; most have {usual_count:,}, but not {odd}; "
            "copy these files again or take them out"
        )
    if not usual_count:
        raise MscaleError(f"{folder}: the parallel files are empty; copy them again")
    return text


def _lines(file: Path) -> list[str]:
    if file.name.endswith(".jsonl.gz"):
        return list(corpora.documents(file))
    try:
        return file.read_bytes().decode("utf-8").splitlines()
    except UnicodeDecodeError as error:
        raise MscaleError(f"{file}: not UTF-8 at byte {error.start}; convert the file") from None
    except OSError as error:
        raise MscaleError(f"{file}: cannot be read ({error.strerror or error}); copy it again") from None


def byte_premiums(path: str | os.PathLike) -> dict[str, float]:
    """Returns the UTF-8 bytes of each language of parallel text, divided by those of the first language.

    Byte premium as in Arnett et al. 2024 (arXiv 2403.00686).
    """
    sizes = {code: sum(len(line.encode()) for line in lines) for code, lines in parallel_text(path).items()}
    return {code: size / next(iter(sizes.values())) for code, size in sizes.items()}
