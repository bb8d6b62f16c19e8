"""Trains a SentencePiece unigram vocabulary on a sample of a corpus, in bounded memory.

As in ATLAS (Longpre et al. 2025, arXiv 2510.22037, section 3): temperature sampling over languages, byte
fallback, 99.9995% character coverage, 64,000 pieces and 512 special ids. Text is not normalised
(identity rule, no dummy prefix, no collapsed spaces), so that decoding returns the exact text.
"""

import contextlib
import io
import re
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from mixtures.packing.inputs import InputFile, find_inputs, read_documents
from mscale import sampling
from mscale.data.vocabulary import (
    EOS_ID,
    PAD_ID,
    UNK_ID,
    SentencePieceVocabulary,
    load_vocabulary,
    sentencepiece_library,
)
from mscale.errors import MscaleError
from mscale.files import atomic_json, locked, read_json
from mscale.progress import progress

_BYTE_PIECES = 256
_RECIPE = "recipe.json"  # beside vocabulary.json: the parameters of the training
_SENTENCE_ENDS = re.compile(r"[\n\t\0]+")  # never inside a piece: SentencePiece reserves tab and NUL
_SENTENCE_CHARACTERS = 4000  # longer lines are cut; SentencePiece would skip them
_THREADS = 16  # of the trainer; the last digits of the model's scores depend on it


def train_vocabulary(
    corpus: str | Path,
    path: str | Path,
    pieces: int = 64_000,
    special: int = 512,
    languages: Sequence[str] | None = None,
    temperature: float = 100.0,
    sample_bytes: int = 200_000_000,
    character_coverage: float = 0.999995,
    threads: int = _THREADS,
) -> SentencePieceVocabulary:
    """Trains a vocabulary of ``pieces`` + ``special`` ids and saves it in the folder ``path``.

    The sample gives language l the share p_l ∝ c_l^(1/T) of ``sample_bytes``, c_l the bytes of its files.
    Of a language with more text than its share, the beginnings of its files are read, the same number of bytes from
    each. One with less is read whole, and its sentences are weighted to fill the share. So at most ``sample_bytes``
    are read and held in memory for a corpus of any size; training needs about 120 times the memory of the text read.
    vocabulary.json records how much of each language was read, and its weight.

    The same call gives the same model, byte for byte; a second call in the same folder returns at once.

    Args:
      corpus: folder or URL in MADLAD-400's layout.
      path: gets vocabulary.json and vocabulary.model.
      pieces: including the 256 of byte fallback.
      special: number of ids that no text encodes to: 0 (pad, BOS), 1 (EOS), 2 (unknown) and ``<extra_id_0>``, …
      languages: codes, one for a monolingual vocabulary; None for all of the corpus.
      temperature: T of the sampling; 1 is proportional to bytes, infinity is uniform.
      sample_bytes: UTF-8 bytes of the whole sample, repetitions counted.
      character_coverage: share of the sample's characters that get a piece; the others are encoded as bytes.
      threads: of the trainer; the last digits of the model's scores depend on it.

    Raises:
      MscaleError: bad input, parameters out of range, a sample too small for so many pieces, another
        vocabulary in the folder, or another process that trains there.
    """
    _check_parameters(pieces, special, temperature, sample_bytes, character_coverage, threads)
    files = dict(sorted(find_inputs(corpus, languages).items()))
    sizes = {code: sum(file.size for file in files[code]) for code in files}
    recipe = {
        "pieces": pieces,
        "special": special,
        "temperature": temperature if np.isfinite(temperature) else "inf",
        "sample_bytes": sample_bytes,
        "character_coverage": character_coverage,
        "threads": threads,
        "file_bytes": sizes,
    }
    path = Path(path)
    with _locked(path):
        if (path / _RECIPE).exists():
            return _load_trained(path, recipe)
        if (path / "vocabulary.json").exists() or (path / "vocabulary.model").exists():
            raise MscaleError(
                f"{path}: a vocabulary of unknown origin is here already (no {_RECIPE}); choose another folder"
            )
        started = time.monotonic()
        shares = _bytes_by_language(sizes, temperature, sample_bytes)
        used: dict[str, dict[str, float]] = {}
        model = _train(sample_sentences(files, shares, used), recipe)
        seconds = round(time.monotonic() - started, 1)
        versions = {"sentencepiece": sentencepiece_library().__version__, "seconds": seconds}
        training = {**{key: value for key, value in recipe.items() if key != "file_bytes"}, **versions}
        vocabulary = SentencePieceVocabulary(model, training={**training, "sample": used})
        vocabulary.save(path)
        atomic_json(path / _RECIPE, {**recipe, "fingerprint": vocabulary.fingerprint})
        return vocabulary


@contextlib.contextmanager
def _locked(path: Path) -> Iterator[None]:
    """Locks the folder for one training, since a second one would replace its model."""
    made = not path.exists()
    lock_path = path / ".training"
    with locked(lock_path, f"{path}: another training is at work here; wait for it or choose another folder"):
        try:
            yield
        finally:
            lock_path.unlink(missing_ok=True)
            if made and not any(path.iterdir()):
                path.rmdir()


def _check_parameters(
    pieces: int, special: int, temperature: float, sample_bytes: int, coverage: float, threads: int
) -> None:
    ranges: list[tuple[str, Any, bool, str]] = [
        ("pieces", pieces, pieces > _BYTE_PIECES, f"more than {_BYTE_PIECES}, those of byte fallback"),
        ("special", special, special >= 3, "3 or more: pad, EOS and unknown"),
        ("temperature", temperature, temperature >= 1, "1 or more"),
        ("sample_bytes", sample_bytes, sample_bytes > 0, "a positive number of bytes"),
        ("character_coverage", coverage, 0 < coverage <= 1, "a share in (0, 1]"),
        ("threads", threads, threads >= 1, "1 or more"),
    ]
    for name, value, good, expected in ranges:
        if not good:
            raise MscaleError(f"{name} is {value}, expected {expected}")


def _bytes_by_language(sizes: dict[str, int], temperature: float, sample_bytes: int) -> dict[str, float]:
    """Language to its bytes of the sample."""
    rates = sampling.temperature(list(sizes.values()), temperature)
    return dict(zip(sizes, (rates * sample_bytes).tolist(), strict=True))


def sample_sentences(
    files: dict[str, list[InputFile]], shares: dict[str, float], used: dict[str, dict[str, float]]
) -> Iterator[str]:
    """Yields ``sentence<TAB>frequency``, one language in memory at a time.

    Args:
      files: input files of each language.
      shares: bytes of the sample for each language.
      used: gets bytes and sentences read of each language, and the weight ``times`` of its sentences.
    """
    with progress("sample", len(files), "languages") as advance:
        for code, inputs in files.items():
            sentences, size = _beginnings(inputs, shares[code])
            times = max(shares[code] / size, 1.0) if size else 0.0
            used[code] = {"bytes": size, "sentences": len(sentences), "times": round(times, 4)}
            for number, sentence in enumerate(sentences):
                # Integer frequencies whose cumulative sum differs from `times` per sentence by less than one.
                yield f"{sentence}\t{int((number + 1) * times) - int(number * times)}"
            advance()
    text = sum(one["bytes"] for one in used.values())
    print(f"training on {text / 1e6:,.1f} MB of {len(used)} languages", file=sys.stderr, flush=True)


def _beginnings(inputs: Sequence[InputFile], share: float) -> tuple[list[str], int]:
    """Sentences from the beginning of every file, of ``share`` bytes in all or the whole text, and their bytes."""
    sentences: list[str] = []
    size = 0
    for number, file in enumerate(inputs):
        target = size + (share - size) / (len(inputs) - number)
        if size >= target:
            continue
        texts = read_documents(file)
        for text in texts:
            for sentence in split_sentences(text):
                sentences.append(sentence)
                size += len(sentence.encode())
                if size >= target:
                    break
            if size >= target:
                texts.close()  # type: ignore[attr-defined]
                break
    return sentences, size


def split_sentences(text: str) -> Iterator[str]:
    """Yields the lines of a text, split at tabs and NULs too; lines above 4,000 characters are cut at a space."""
    for line in _SENTENCE_ENDS.split(text):
        while len(line) > _SENTENCE_CHARACTERS:
            end = line.rfind(" ", 1, _SENTENCE_CHARACTERS)
            end = end if end > 0 else _SENTENCE_CHARACTERS
            yield line[:end]
            line = line[end:]
        if line:
            yield line


def _train(sentences: Iterator[str], recipe: dict[str, Any]) -> bytes:
    special = recipe["special"]
    model = io.BytesIO()
    try:
        sentencepiece_library().SentencePieceTrainer.train(
            sentence_iterator=sentences,
            input_format="tsv",
            model_writer=model,
            model_type="unigram",
            vocab_size=recipe["pieces"] + special,
            character_coverage=recipe["character_coverage"],
            byte_fallback=True,
            normalization_rule_name="identity",
            add_dummy_prefix=False,
            remove_extra_whitespaces=False,
            pad_id=PAD_ID,
            eos_id=EOS_ID,
            unk_id=UNK_ID,
            bos_id=-1,
            control_symbols=[f"<extra_id_{number}>" for number in range(special - 3)],
            max_sentence_length=4 * _SENTENCE_CHARACTERS + 64,
            input_sentence_size=0,  # all of it: the text is sampled already
            shuffle_input_sentence=False,
            train_extremely_large_corpus=recipe["sample_bytes"] > 1 << 30,
            num_threads=recipe["threads"],
            minloglevel=2,
        )
    except RuntimeError as error:
        raise MscaleError(
            f"SentencePiece cannot train {recipe['pieces']:,} pieces on this sample: {_reason(str(error))}. Ask for "
            "fewer pieces or a larger sample where the size is too high, for more pieces where it is too small"
        ) from None
    return model.getvalue()


def _reason(message: str) -> str:
    """SentencePiece's message without the position in its source code."""
    if high := re.search(r"Vocabulary size (?:is )?too high \((\d+)\).*?<= (\d+)", message):
        return f"its size {int(high[1]):,} is too high, at most {int(high[2]):,} ids can be told apart"
    if low := re.search(r"Vocabulary size is smaller than required_chars\. (\d+) vs (\d+)", message):
        return (
            f"its size {int(low[1]):,} is too small, the characters and bytes alone need {int(low[2]):,} ids"
        )
    return message.split("] ")[-1].strip() or "no reason given"


def _load_trained(path: Path, recipe: dict[str, Any]) -> SentencePieceVocabulary:
    """Loads the vocabulary of a folder; raises MscaleError where it was trained with other parameters."""
    found = read_json(path / _RECIPE, what="vocabulary recipe")
    differ = [key for key, value in recipe.items() if found.get(key) != value]
    if differ:
        shown = "; ".join(
            key if key == "file_bytes" else f"{key} was {found.get(key)}, now {recipe[key]}" for key in differ
        ).replace("file_bytes", "the corpus or the languages differ")
        raise MscaleError(
            f"{path}: another vocabulary is here already ({shown}); choose another folder, or delete this one"
        )
    vocabulary = load_vocabulary(path)
    assert isinstance(vocabulary, SentencePieceVocabulary)
    return vocabulary
