"""Vocabularies: text to token ids and back without loss, each with a fingerprint that stores and runs record.

All vocabularies have T5's special ids: 0 is padding (and BOS), 1 is EOS, the end of a document, 2 is unknown.
"""

import functools
import hashlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np

from mscale.errors import MscaleError
from mscale.files import atomic_json, atomic_write, read_json

PAD_ID, EOS_ID, UNK_ID = 0, 1, 2
BYTE_OFFSET = 3
_FILE, _MODEL_FILE = "vocabulary.json", "vocabulary.model"
_SPACE_INSIDE = "\u2581"  # SentencePiece's internal character for a space
_SPACE_INSIDE_UTF8 = _SPACE_INSIDE.encode()


@dataclass(frozen=True)
class ByteVocabulary:
    """UTF-8 bytes: byte b has id b + 3 (ByT5, Xue et al. 2022), so V = 259 and no text is unknown."""

    kind: str = "bytes"
    size: int = 256 + BYTE_OFFSET
    pad_id: int = PAD_ID
    eos_id: int = EOS_ID
    fingerprint: str = "bytes-259"

    def encode(self, text: str | bytes) -> np.ndarray:
        """Token ids of ``text`` (int, without EOS); bytes are UTF-8."""
        return np.frombuffer(_utf8(text), np.uint8).astype(np.uint16) + np.uint16(BYTE_OFFSET)

    def encode_batch(self, texts: Sequence[str | bytes]) -> tuple[np.ndarray, np.ndarray]:
        """All ids of ``texts`` in one flat array, without EOS, and the number of ids of each text (int64).

        The array is uint16 if that holds all ids, else int32.
        """
        encoded = [_utf8(text) for text in texts]
        lengths = np.fromiter(map(len, encoded), np.int64, len(encoded))
        flat = np.frombuffer(b"".join(encoded), np.uint8).astype(np.uint16)
        flat += np.uint16(BYTE_OFFSET)
        return flat, lengths

    def decode(self, ids: Iterable[int]) -> str:
        """Text of ``ids``, without special ids."""
        array = np.asarray(ids if isinstance(ids, np.ndarray) else list(ids), np.int64)
        array = array[array >= BYTE_OFFSET] - BYTE_OFFSET
        if array.size and array.max() > 255:
            raise MscaleError(
                f"id {array.max() + BYTE_OFFSET} is not of the byte vocabulary, whose size is {self.size}"
            )
        return array.astype(np.uint8).tobytes().decode("utf-8", errors="replace")

    def pieces(self) -> list[str | bytes | None]:
        """The piece of each id: text, a single byte, or None for special ids."""
        return [*[None] * BYTE_OFFSET, *(bytes([byte]) for byte in range(256))]

    def save(self, path: str | Path) -> Path:
        """Writes the vocabulary under the folder ``path``; returns the file ``load_vocabulary`` reads."""
        file = Path(path) / _FILE
        atomic_json(file, describe(self))
        return file


@dataclass(frozen=True)
class SentencePieceVocabulary:
    """A SentencePiece model (Kudo and Richardson 2018), with the methods of ``ByteVocabulary``.

    With the identity normalisation that ``mixtures.train_vocabulary`` sets, decoding returns the exact text. The
    character U+2581 is a special case: SentencePiece uses it for a space, and would decode it as a space. Here it is
    encoded as its three bytes.

    Attributes:
      model: the bytes of the ``.model`` file.
      kind: "sentencepiece".
      training: options and sample that it was trained with, if known (from ``vocabulary.json``).
    """

    model: bytes = field(repr=False)
    kind: str = "sentencepiece"
    pad_id: int = PAD_ID
    eos_id: int = EOS_ID
    training: Mapping[str, Any] | None = field(default=None, repr=False, compare=False)

    @property
    def _processor(self) -> Any:
        return _processor_of(self.model)

    @property
    def size(self) -> int:
        return self._processor.vocab_size()

    @property
    def fingerprint(self) -> str:
        return f"sentencepiece-{self.size}-{_digest(self.model)}"

    def encode(self, text: str | bytes) -> np.ndarray:
        if (_SPACE_INSIDE in text) if isinstance(text, str) else (_SPACE_INSIDE_UTF8 in text):
            return self._with_bytes(_utf8(text))
        try:
            return self._processor.encode_as_numpy(text)
        except UnicodeEncodeError:
            _utf8(text)
            raise

    def encode_batch(self, texts: Sequence[str | bytes]) -> tuple[np.ndarray, np.ndarray]:
        # One call per text: a call for all texts would start threads, which takes longer.
        ids = list(map(self.encode, texts))
        lengths = np.fromiter(map(len, ids), np.int64, len(ids))
        dtype = np.uint16 if self.size <= 1 << 16 else np.int32
        flat = np.concatenate(ids, dtype=dtype, casting="unsafe") if ids else np.empty(0, dtype)
        return flat, lengths

    def decode(self, ids: Iterable[int]) -> str:
        array = np.asarray(ids if isinstance(ids, np.ndarray) else list(ids), np.int64)
        if array.size and not 0 <= array.min() <= array.max() < self.size:
            raise MscaleError(
                f"ids {array.min()} to {array.max()} are not all of the vocabulary {self.fingerprint}, whose size is "
                f"{self.size}"
            )
        return self._processor.decode(array[(array != PAD_ID) & (array != EOS_ID)].tolist())

    def pieces(self) -> list[str | bytes | None]:
        processor = self._processor

        def piece(number: int) -> str | bytes | None:
            if processor.is_control(number) or processor.is_unknown(number) or processor.is_unused(number):
                return None
            text = processor.id_to_piece(number)
            return (
                bytes([int(text[3:5], 16)]) if processor.is_byte(number) else text.replace(_SPACE_INSIDE, " ")
            )

        return [piece(number) for number in range(self.size)]

    def save(self, path: str | Path) -> Path:
        atomic_write(Path(path) / _MODEL_FILE, self.model)
        file = Path(path) / _FILE
        atomic_json(file, {**describe(self), "model": _MODEL_FILE, "training": self.training})
        return file

    def _with_bytes(self, text: bytes) -> np.ndarray:
        piece_to_id = self._processor.piece_to_id
        separator = np.array([piece_to_id(f"<0x{byte:02X}>") for byte in _SPACE_INSIDE_UTF8], np.int32)
        parts = [self.encode(part) for part in text.split(_SPACE_INSIDE_UTF8)]
        return np.concatenate([parts[0], *(ids for part in parts[1:] for ids in (separator, part))])


Vocabulary = ByteVocabulary | SentencePieceVocabulary


def byte_vocabulary() -> ByteVocabulary:
    """Returns the byte vocabulary: 0 pad and BOS, 1 EOS, 2 unknown, byte b is b + 3."""
    return ByteVocabulary()


def load_vocabulary(path: str | Path) -> Vocabulary:
    """Reads a vocabulary.

    Args:
      path: ``bytes``, a folder or ``vocabulary.json`` that ``save`` wrote (a token store has one), or a
        SentencePiece ``.model``.

    Raises:
      MscaleError: there is no vocabulary, a file is damaged, the special ids of a model are not 0, 1, 2, or a
        model has another fingerprint than its vocabulary.json.
    """
    if str(path) == "bytes":
        return byte_vocabulary()
    path = Path(path)
    if path.is_dir():
        found = [path / name for name in (_FILE, _MODEL_FILE) if (path / name).exists()]
        if not found:
            raise MscaleError(
                f"{path}: no vocabulary here; expected {_FILE} or {_MODEL_FILE} (made by `mscale vocabulary "
                "train`), or give `bytes` for the byte vocabulary"
            )
        path = found[0]
    if path.suffix == ".model":
        return _checked(SentencePieceVocabulary(_read_model(path)), path)
    described = read_json(path, what="vocabulary file")
    kind = described.get("kind") if isinstance(described, dict) else type(described).__name__
    vocabulary: Vocabulary
    if kind == "bytes":
        vocabulary = byte_vocabulary()
        name = "this version's byte vocabulary"
    elif kind == "sentencepiece":
        model = path.parent / str(described.get("model", _MODEL_FILE))
        vocabulary = _checked(
            SentencePieceVocabulary(_read_model(model), training=described.get("training")), model
        )
        name = str(model)
    else:
        raise MscaleError(
            f"{path}: field kind is {kind!r}, expected 'bytes' or 'sentencepiece'; give a {_FILE} that mscale "
            "wrote, or a SentencePiece .model"
        )
    if not isinstance(described.get("fingerprint"), str):
        raise MscaleError(f"{path}: field fingerprint is missing; copy the vocabulary again")
    check_same(vocabulary, described, name, str(path))
    return vocabulary


def describe(vocabulary: Vocabulary) -> dict[str, Any]:
    """Returns the entry of a vocabulary in store.json: kind, size, fingerprint, eos_id, pad_id."""
    return {key: getattr(vocabulary, key) for key in ("kind", "size", "fingerprint", "eos_id", "pad_id")}


def check_same(a: Any, b: Any, name_a: str, name_b: str) -> None:
    """Checks that two vocabularies (or their entries in store.json) are the same.

    Raises:
      MscaleError: they differ; the message gives both fingerprints.
    """
    one, other = (v["fingerprint"] if isinstance(v, Mapping) else v.fingerprint for v in (a, b))
    if one != other:
        raise MscaleError(
            f"two vocabularies: {name_a} has {one}, {name_b} has {other}; token ids of one mean "
            "nothing in the other, "
            "so pack, train and evaluate with a single vocabulary"
        )


def _utf8(text: str | bytes) -> bytes:
    if isinstance(text, bytes):
        return text
    try:
        return text.encode("utf-8")
    except UnicodeEncodeError as error:
        raise MscaleError(
            f"text holds a lone surrogate (U+{ord(text[error.start]):04X} at character {error.start}), "
            "which no UTF-8 has; repair the document"
        ) from None


@functools.lru_cache(maxsize=8)  # needed for every file that is packed
def _digest(model: bytes) -> str:
    return hashlib.blake2b(model, digest_size=8).hexdigest()


def _read_model(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise MscaleError(
            f"{path}: cannot read this SentencePiece model ({error.strerror}); check the path, or train it with "
            "`mscale vocabulary train`"
        ) from None


@functools.lru_cache(maxsize=8)
def _processor_of(model: bytes) -> Any:
    return sentencepiece_library().SentencePieceProcessor(model_proto=model)


def sentencepiece_library() -> ModuleType:
    """Imports SentencePiece, which a byte vocabulary does not need.

    Raises:
      MscaleError: it is not installed.
    """
    try:
        import sentencepiece
    except ImportError:
        raise MscaleError(
            "a SentencePiece vocabulary needs the package sentencepiece: pip install 'mscale[data]'"
        ) from None
    return sentencepiece


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
