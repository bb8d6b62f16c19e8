"""Vocabularies: text to token ids and back, exactly, each with a fingerprint that ties stores and runs to
it.

All vocabularies number their special ids as T5 does: 0 pads (and begins a sequence), 1 ends a document, 2
is unknown.
"""

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from mscale.errors import MscaleError
from mscale.files import atomic_json, atomic_write, read_json

PAD_ID, EOS_ID, UNK_ID = 0, 1, 2
BYTE_OFFSET = 3
_FILE = "vocabulary.json"


class Vocabulary(Protocol):
    """What packing, training and evaluation need of a vocabulary."""

    @property
    def kind(self) -> str: ...
    @property
    def size(self) -> int: ...
    @property
    def pad_id(self) -> int: ...
    @property
    def eos_id(self) -> int: ...
    @property
    def fingerprint(self) -> str: ...

    def encode(self, text: str) -> np.ndarray:
        """Token ids of ``text`` (int, without EOS)."""
        ...

    def encode_batch(self, texts: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
        """All ids of ``texts`` in one flat array, and the number of ids of each text (int64)."""
        ...

    def decode(self, ids: Iterable[int]) -> str:
        """Text of ``ids``; special ids are left out."""
        ...

    def save(self, path: str | Path) -> Path:
        """Writes the vocabulary under the folder ``path``; returns the file ``load_vocabulary`` reads."""
        ...


@dataclass(frozen=True)
class ByteVocabulary:
    """UTF-8 bytes: byte b has id b + 3 (ByT5, Xue et al. 2022), so V = 259 and nothing is unknown."""

    kind: str = "bytes"
    size: int = 256 + BYTE_OFFSET
    pad_id: int = PAD_ID
    eos_id: int = EOS_ID
    fingerprint: str = "bytes-259"

    def encode(self, text: str) -> np.ndarray:
        return np.frombuffer(_utf8(text), np.uint8).astype(np.uint16) + np.uint16(BYTE_OFFSET)

    def encode_batch(self, texts: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
        encoded = [_utf8(text) for text in texts]
        flat = np.frombuffer(b"".join(encoded), np.uint8).astype(np.uint16)
        flat += np.uint16(BYTE_OFFSET)
        return flat, np.fromiter(map(len, encoded), np.int64, len(encoded))

    def decode(self, ids: Iterable[int]) -> str:
        array = np.asarray(ids if isinstance(ids, np.ndarray) else list(ids), np.int64)
        array = array[array >= BYTE_OFFSET] - BYTE_OFFSET
        if array.size and array.max() > 255:
            raise MscaleError(
                f"id {array.max() + BYTE_OFFSET} is not of the byte vocabulary, whose size is {self.size}"
            )
        return array.astype(np.uint8).tobytes().decode("utf-8", errors="replace")

    def save(self, path: str | Path) -> Path:
        file = Path(path) / _FILE
        atomic_json(file, describe(self))
        return file


@dataclass(frozen=True)
class SentencePieceVocabulary:
    """A SentencePiece model (Kudo and Richardson 2018); the library is imported at the first use."""

    model: bytes = field(repr=False)
    kind: str = "sentencepiece"

    @property
    def _processor(self) -> Any:
        return _sentencepiece(self.model)

    @property
    def size(self) -> int:
        return self._processor.vocab_size()

    @property
    def pad_id(self) -> int:
        return PAD_ID

    @property
    def eos_id(self) -> int:
        return EOS_ID

    @property
    def fingerprint(self) -> str:
        return f"sentencepiece-{self.size}-{hashlib.blake2b(self.model, digest_size=8).hexdigest()}"

    def encode(self, text: str) -> np.ndarray:
        return np.asarray(self._processor.encode(text), np.int32)

    def encode_batch(self, texts: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
        pieces = self._processor.encode(list(texts), num_threads=1)
        lengths = np.fromiter(map(len, pieces), np.int64, len(pieces))
        flat = np.empty(int(lengths.sum()), np.int32)
        end = 0
        for ids in pieces:
            flat[end : end + len(ids)] = ids
            end += len(ids)
        return flat, lengths

    def decode(self, ids: Iterable[int]) -> str:
        return self._processor.decode([int(i) for i in ids if int(i) not in (PAD_ID, EOS_ID)])

    def save(self, path: str | Path) -> Path:
        file = Path(path) / "vocabulary.model"
        atomic_write(file, self.model)
        return file


def byte_vocabulary() -> ByteVocabulary:
    """Returns the byte vocabulary: 0 pad and BOS, 1 EOS, 2 unknown, byte b is b + 3."""
    return ByteVocabulary()


def load_vocabulary(path: str | Path) -> Vocabulary:
    """Reads a vocabulary: ``bytes``, a ``vocabulary.json``, a SentencePiece ``.model``, or a folder with
    one.

    Raises:
      MscaleError: nothing there, a damaged file, or a model whose special ids are not 0, 1, 2.
    """
    if str(path) == "bytes":
        return byte_vocabulary()
    path = Path(path)
    if path.is_dir():
        found = [path / name for name in (_FILE, "vocabulary.model") if (path / name).exists()]
        if not found:
            raise MscaleError(
                f"{path}: no vocabulary here; expected {_FILE} or vocabulary.model (made by `mscale "
                "vocabulary train`), "
                "or give `bytes` for the byte vocabulary"
            )
        path = found[0]
    if path.suffix == ".model":
        try:
            model = path.read_bytes()
        except OSError as error:
            raise MscaleError(f"{path}: cannot read this SentencePiece model: {error.strerror}") from None
        return _checked(SentencePieceVocabulary(model), path)
    described = read_json(path, what="vocabulary file")
    if not isinstance(described, dict) or described.get("kind") != "bytes":
        kind = described.get("kind") if isinstance(described, dict) else type(described).__name__
        raise MscaleError(
            f"{path}: field kind is {kind!r}, expected 'bytes' (a SentencePiece model is a .model file)"
        )
    check_same(byte_vocabulary(), described, "this version's byte vocabulary", str(path))
    return byte_vocabulary()


def describe(vocabulary: Vocabulary) -> dict[str, Any]:
    """Returns what a store records of its vocabulary: kind, size, fingerprint, eos_id, pad_id."""
    return {key: getattr(vocabulary, key) for key in ("kind", "size", "fingerprint", "eos_id", "pad_id")}


def check_same(a: Any, b: Any, name_a: str, name_b: str) -> None:
    """Raises an error naming both fingerprints if two vocabularies (or their descriptions) differ."""
    one, other = (v["fingerprint"] if isinstance(v, Mapping) else v.fingerprint for v in (a, b))
    if one != other:
        raise MscaleError(
            f"two vocabularies: {name_a} has {one}, {name_b} has {other}; token ids of one mean "
            "nothing in the other, "
            "so pack, train and evaluate with a single vocabulary"
        )


def _utf8(text: str) -> bytes:
    try:
        return text.encode("utf-8")
    except UnicodeEncodeError as error:
        raise MscaleError(
            f"text holds a lone surrogate (U+{ord(text[error.start]):04X} at character {error.start}), "
            "which no UTF-8 has; repair the document"
        ) from None


_PROCESSORS: dict[bytes, Any] = {}


def _sentencepiece(model: bytes) -> Any:
    if model not in _PROCESSORS:
        try:
            import sentencepiece
        except ImportError:
            raise MscaleError(
                "a SentencePiece vocabulary needs the package sentencepiece: pip install 'mscale[data]'"
            ) from None
        _PROCESSORS[model] = sentencepiece.SentencePieceProcessor(model_proto=model)
    return _PROCESSORS[model]


def _checked(vocabulary: SentencePieceVocabulary, path: Path) -> SentencePieceVocabulary:
    try:
        processor = vocabulary._processor
    except MscaleError:
        raise
    except Exception as error:  # the library raises RuntimeError with its own text
        raise MscaleError(f"{path}: not a SentencePiece model, or damaged ({error})") from None
    found = (processor.pad_id(), processor.eos_id(), processor.unk_id())
    if found != (PAD_ID, EOS_ID, UNK_ID):
        raise MscaleError(
            f"{path}: pad, eos and unk have ids {found}, expected {(PAD_ID, EOS_ID, UNK_ID)}; "
            "train it with pad_id=0, eos_id=1, unk_id=2, bos_id=-1 (`mscale vocabulary train` does)"
        )
    return vocabulary
