"""The token store: the files that a training host reads.

    <store>/store.json                 written last, so that a store is complete or absent
    <store>/<lang>/train.bin           token ids, EOS after each document (uint16, or uint32 from V = 65,537 on)
    <store>/<lang>/valid.bin           the held-out part, in the same format
    <store>/<lang>/valid_index.npy     (documents, 3) int64: offset and tokens (EOS included) in valid.bin, UTF-8 bytes
    <store>/<lang>/unigram.npy         (2, ids seen) int64: token ids and their counts in train.bin

Window i of S tokens is train.bin[i·S:(i+1)·S], so a store serves any sequence length. The unigram counts have a file
of their own: in store.json, those of 420 languages × 64,000 pieces would take longer to parse than the rest. A store
may be remote (``gs://…``): ``copying.copy_store`` brings it there, and its token files are read by byte ranges.
"""

import contextlib
import errno
import hashlib
import io
import json
import mmap
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from mscale.errors import MscaleError, nearest
from mscale.remote import CACHE_BYTES, RemoteFiles, Url, location

STORE_FORMAT = "mscale token store"
STORE_VERSION = 1
MANIFEST = "store.json"
PACKING_FOLDER = ".packing"  # subfolder of a store that exists while packing is unfinished
_RANDOM_ACCESS_BYTES = (
    64 << 20
)  # in a larger file, the kernel's read-ahead around a window reads unused bytes
LANGUAGE_FILES = ("train.bin", "valid.bin", "valid_index.npy", "unigram.npy")  # of each language
file_hash = partial(hashlib.blake2b, digest_size=16)  # of a store's files, named "blake2b" in store.json


@dataclass(frozen=True)
class Store:
    """An open store, from ``open_store``; token files are memory-mapped at their first use.

    Attributes:
      path: its folder or, of a remote store, its URL.
      vocabulary: kind, size, fingerprint, eos_id and pad_id of its vocabulary.
      languages: codes, sorted.
      dtype: of the token files.
      entries: of each language, its entry in store.json.
      remote: reads the files of a remote store; None of a local one.
    """

    path: Path | Url
    vocabulary: Mapping[str, Any]
    languages: tuple[str, ...]
    dtype: np.dtype
    entries: Mapping[str, Mapping[str, Any]] = field(repr=False)
    remote: RemoteFiles | None = field(default=None, repr=False, compare=False)
    _mapped: dict[tuple[str, str], tuple[mmap.mmap | None, np.ndarray]] = field(
        default_factory=dict, repr=False, compare=False
    )

    def __hash__(self) -> int:
        return hash(self.data_hash())

    def train(self, language: str, start: int = 0, stop: int | None = None) -> np.ndarray:
        """Returns the train tokens ``start`` to ``stop`` - 1, by default all, (tokens,), read-only.

        Of a local store they are a view of the mapped file; of a remote one they are read now.
        """
        return self._tokens(language, "train", start, stop)

    def valid(self, language: str, start: int = 0, stop: int | None = None) -> np.ndarray:
        """Returns the held-out tokens ``start`` to ``stop`` - 1, as ``train``."""
        return self._tokens(language, "valid", start, stop)

    def valid_index(self, language: str) -> np.ndarray:
        """Returns offset and tokens in the held-out part, and UTF-8 bytes, of each document: (documents, 3) int64.

        Raises:
          MscaleError: the index does not fit store.json.
        """
        index = self._array(language, "valid_index.npy")
        tokens, size = self.valid_tokens(language), self.valid_bytes(language)
        good = index.ndim == 2 and index.shape[1] == 3 and index.dtype.kind == "i"
        if good and len(index):
            ends = index[:, 0] + index[:, 1]
            good = index[0, 0] == 0 and ends[-1] == tokens and bool((index[1:, 0] == ends[:-1]).all())
        if not good or index[:, 2].sum() != size or (len(index) == 0) != (tokens == 0):
            raise self._inconsistent(language, "valid_index.npy", f"{tokens:,} tokens and {size:,} bytes")
        return index

    def gather_windows(
        self, languages: Sequence[str], windows: Sequence[int], sequence_length: int
    ) -> np.ndarray:
        """Returns train windows, (rows, S) int32; those of a remote store are read concurrently.

        Args:
          languages: the language of each row.
          windows: the number of each row's window.
          sequence_length: S.
        """
        S = sequence_length
        rows = np.empty((len(windows), S), np.int32)
        if self.remote is not None:
            ranges = [
                self._range(language, "train", window * S, (window + 1) * S)
                for language, window in zip(languages, windows, strict=True)
            ]
            for row, data, (name, *_) in zip(rows, self.remote.read_ranges(ranges), ranges, strict=True):
                row[:] = self._ids(name, data)
            return rows
        tokens = {language: self._map(language, "train")[1] for language in set(languages)}
        for row, language, window in zip(rows, languages, windows, strict=True):
            start = window * S
            row[:] = tokens[language][start : start + S]
        return rows

    def read_ahead(self, languages: Sequence[str], windows: Sequence[int], sequence_length: int) -> None:
        """Asks the kernel to read windows of a local store into the page cache concurrently (MADV_WILLNEED).

        Otherwise reading them one by one waits for the disk once per window. Arguments as ``gather_windows``.
        """
        if self.remote is not None or not hasattr(mmap, "MADV_WILLNEED"):
            return
        size = sequence_length * self.dtype.itemsize
        for language, window in zip(languages, windows, strict=True):
            mapping = self._map(language, "train")[0]
            if mapping is not None:
                first = window * size // mmap.PAGESIZE * mmap.PAGESIZE
                mapping.madvise(mmap.MADV_WILLNEED, first, (window + 1) * size - first)

    def unigram(self, language: str) -> np.ndarray:
        """Returns the count of each token id in the train part: (V,) int64, without smoothing.

        Raises:
          MscaleError: the counts do not fit store.json.
        """
        found = self._array(language, "unigram.npy")
        vocabulary_size, tokens = self.vocabulary["size"], self.train_tokens(language)
        good = found.ndim == 2 and len(found) == 2 and found.dtype.kind == "i" and found[1].sum() == tokens
        if not good or (found.size and not 0 <= found[0].min() <= found[0].max() < vocabulary_size):
            expected = f"{tokens:,} tokens of {vocabulary_size:,} ids"
            raise self._inconsistent(language, "unigram.npy", expected)
        ids, counts = found
        dense = np.zeros(vocabulary_size, np.int64)
        dense[ids] = counts
        return dense

    def unigram_log_probabilities(self, language: str) -> np.ndarray:
        """Returns log p(token) in nats from the train counts with add-one smoothing, (V,) float64."""
        counts = self.unigram(language) + 1.0
        return np.log(counts / counts.sum())

    def train_tokens(self, language: str) -> int:
        """Tokens of the train part, EOS included."""
        return self._entry(language)["train"]["tokens"]

    def train_bytes(self, language: str) -> int:
        """UTF-8 bytes of the train part's text."""
        return self._entry(language)["train"]["bytes"]

    def valid_tokens(self, language: str) -> int:
        """Tokens of the held-out part, EOS included."""
        return self._entry(language)["valid"]["tokens"]

    def valid_bytes(self, language: str) -> int:
        """UTF-8 bytes of the held-out part's text."""
        return self._entry(language)["valid"]["bytes"]

    def data_hash(self, languages: Iterable[str] | None = None) -> str:
        """Returns a hash of the tokens of ``languages``, by default all: of their files' checksums.

        Folder, inputs, other languages, and when and how the store was packed do not enter.
        """
        names = sorted(set(self.languages if languages is None else languages))
        files = {name: self._entry(name)["files"] for name in names}
        return file_hash(json.dumps(files, sort_keys=True).encode()).hexdigest()

    def windows(self, language: str, sequence_length: int) -> int:
        """Number of whole windows of ``sequence_length`` train tokens; U of the language is that times S."""
        return self.train_tokens(language) // sequence_length

    def _entry(self, language: str) -> Mapping[str, Any]:
        try:
            return self.entries[language]
        except KeyError:
            shown = ", ".join(self.languages[:20]) + (" …" if len(self.languages) > 20 else "")
            raise MscaleError(
                f"{self.path}: no language {language!r} in this store{nearest(language, self.languages)}. "
                f"There are {len(self.languages)}: {shown}"
            ) from None

    def _inconsistent(self, language: str, name: str, expected: str) -> MscaleError:
        return MscaleError(
            f"{self.path / language / name}: damaged, it does not describe the {expected} of store.json; copy the "
            "store again or pack the corpus again"
        )

    def _tokens(self, language: str, part: str, start: int, stop: int | None) -> np.ndarray:
        if self.remote is None:
            return self._map(language, part)[1][start:stop]
        start, stop, _ = slice(start, stop).indices(self._entry(language)[part]["tokens"])
        found = self._range(language, part, start, stop)
        return self._ids(found[0], self.remote.read_ranges([found])[0])

    def _ids(self, name: str, data: bytes) -> np.ndarray:
        """Token ids of a part of a remote file, which is never read as a whole; all are below V."""
        ids = np.frombuffer(data, self.dtype)
        if damage := unknown_id(self, name, int(ids.max(initial=0))):
            raise damaged_store(self, {name: damage})
        return ids

    def _range(self, language: str, part: str, start: int, stop: int) -> tuple[str, int, int, int]:
        """The bytes of tokens in a remote file, for ``RemoteFiles.read_ranges``."""
        width = self.dtype.itemsize
        size = self._entry(language)[part]["tokens"] * width
        return f"{language}/{part}.bin", start * width, stop * width, size

    def _map(self, language: str, part: str) -> tuple[mmap.mmap | None, np.ndarray]:
        """The mapping of a local token file, and all its tokens; an empty file has no mapping."""
        if (language, part) not in self._mapped:
            path = self.path / language / f"{part}.bin"
            tokens = self._entry(language)[part]["tokens"]
            if not tokens:
                return None, np.empty(0, self.dtype)
            with _reading(path), open(path, "rb") as file:
                mapping = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
                # A plain array: slicing an np.memmap takes longer than reading a window.
                self._mapped[language, part] = mapping, np.frombuffer(mapping, self.dtype, tokens)
            if part == "train" and len(mapping) > _RANDOM_ACCESS_BYTES and hasattr(mmap, "MADV_RANDOM"):
                mapping.madvise(mmap.MADV_RANDOM)
        return self._mapped[language, part]

    def _array(self, language: str, name: str) -> np.ndarray:
        self._entry(language)
        path = self.path / language / name
        with _reading(path):
            if self.remote is None:
                return np.load(path, allow_pickle=False)
            data = self.remote.read(f"{language}/{name}")
            if file_hash(data).hexdigest() != self.entries[language]["files"][name]["blake2b"]:
                raise damaged_store(self, {name: f"{path} has another checksum"})
            return np.load(io.BytesIO(data), allow_pickle=False)


def open_store(path: str | Path, cache_bytes: int = CACHE_BYTES) -> Store:
    """Opens the store in the folder ``path``: reads store.json and checks that all files exist in their size.

    Their content is checked by ``verification.verify_store``, for the languages that are read.

    Args:
      path: the folder, or a URL that fsspec opens.
      cache_bytes: of a remote store, the size of the cache in memory.

    Raises:
      MscaleError: as ``read_store``, or files are missing or have another size; all of these are named.
    """
    store = read_store(path, cache_bytes)
    if damaged := missized_files(store, file_entries(store)):
        raise damaged_store(store, damaged)
    return store


def read_store(path: str | Path, cache_bytes: int = CACHE_BYTES) -> Store:
    """Returns the store that store.json describes, without a look at its other files.

    Raises:
      MscaleError: there is no store, packing is unfinished, or store.json is damaged or of a newer version.
    """
    path = location(path)
    manifest = path / MANIFEST
    remote = RemoteFiles(path, cache_bytes) if isinstance(path, Url) else None
    described = _manifest(path, remote)
    if not isinstance(described, dict) or described.get("format") != STORE_FORMAT:
        raise MscaleError(
            f"{manifest}: field format is not {STORE_FORMAT!r}: this is no token store; choose another folder"
        )
    version = described.get("version")
    if version != STORE_VERSION:
        newer = isinstance(version, int) and version > STORE_VERSION
        remedy = "install a newer mscale" if newer else "delete it and pack the corpus again"
        raise MscaleError(
            f"{manifest}: field version is {version}, this mscale reads version {STORE_VERSION}; {remedy}"
        )
    try:
        store = Store(
            path=path,
            vocabulary={
                key: described["vocabulary"][key]
                for key in ("kind", "size", "fingerprint", "eos_id", "pad_id")
            },
            languages=tuple(described["languages"]),
            dtype=np.dtype(described["dtype"]).newbyteorder("<"),
            entries=described["languages"],
            remote=remote,
        )
        wrong = _wrong_counts(store)
    except (KeyError, TypeError, AttributeError, ValueError) as error:
        raise MscaleError(
            f"{manifest}: damaged, field {error} is missing or unreadable; delete it and pack the corpus again"
        ) from None
    if wrong:
        raise MscaleError(
            f"{manifest}: damaged, {'; '.join(wrong[:10])}; delete it and pack the corpus again"
        )
    return store


def _wrong_counts(store: Store) -> list[str]:
    """Tells the token counts in store.json that do not fit the sizes of files there; KeyError for an absent field."""
    found = []
    width = store.dtype.itemsize
    for language, entry in store.entries.items():
        files = entry["files"]
        sizes = {name: files[name]["size"] for name in LANGUAGE_FILES if files[name]["blake2b"]}
        for part in ("train", "valid"):
            tokens, size = entry[part]["tokens"], sizes[f"{part}.bin"]
            if tokens * width != size:
                found.append(
                    f"languages.{language} has {tokens:,} {part} tokens of {width} bytes in a file of {size:,}"
                )
    return found


def missized_files(store: Store, names: Iterable[str]) -> dict[str, str]:
    """Returns those of a store's files that are missing or have another size, by name, each with what is wrong."""
    found = {}
    sizes = store.remote.sizes() if store.remote is not None else None
    entries = file_entries(store)
    for name in names:
        path, expected = store.path / name, entries[name]
        try:
            size = Path(path).stat().st_size if sizes is None else sizes.get(name)
        except (FileNotFoundError, NotADirectoryError):
            size = None
        except OSError as error:
            found[name] = f"{path} cannot be read ({error.strerror})"
            continue
        if size is None:
            found[name] = f"{path} is missing"
        elif size != expected["size"]:
            found[name] = f"{path} has {size:,} bytes, expected {expected['size']:,}"
    return found


def file_entries(store: Store) -> dict[str, Mapping[str, Any]]:
    """Returns size and blake2b of every file of a store, by its path below the folder (``en/train.bin``)."""
    return {
        f"{language}/{name}": store.entries[language]["files"][name]
        for language in store.languages
        for name in LANGUAGE_FILES
    }


def unknown_id(store: Store, name: str, largest: int) -> str:
    """Returns what is wrong with a file whose largest token id is ``largest``; "" if the vocabulary has it."""
    V = store.vocabulary["size"]
    return f"{store.path / name} holds the id {largest:,}, expected less than {V:,}" if largest >= V else ""


def damaged_store(store: Store, damaged: Mapping[str, str]) -> MscaleError:
    """The error for files of a store that are not as store.json describes them, by name, each with what is wrong."""
    remedy = "run the same `mscale pack` or `mscale store copy` into this folder again: it mends them"
    if store.remote is not None:
        remedy = "delete the store there and bring it there again with `mscale store copy`"
    shown = "; ".join(list(damaged.values())[:10])
    more = f"; and {len(damaged) - 10} more" if len(damaged) > 10 else ""
    return MscaleError(
        f"{store.path}: damaged store, {len(damaged)} difference(s) to {MANIFEST}: {shown}{more}; {remedy}"
    )


def token_dtype(vocabulary_size: int) -> np.dtype:
    """Returns uint16 if it holds all ids, else uint32; both little-endian."""
    return np.dtype("<u2" if vocabulary_size <= 1 << 16 else "<u4")


def checksum(path: str | Path) -> str:
    """Returns the BLAKE2b hash (128 bits, hex) of a file."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, file_hash).hexdigest()


def _manifest(path: Path | Url, remote: RemoteFiles | None) -> Any:
    manifest = path / MANIFEST
    try:
        content = remote.read(MANIFEST) if remote is not None else Path(manifest).read_bytes()
    except (FileNotFoundError, NotADirectoryError):
        raise MscaleError(_absent(path)) from None
    except OSError as error:
        raise MscaleError(f"{manifest}: cannot be read ({error.strerror or error})") from None
    try:
        return json.loads(content)
    except ValueError as error:
        raise MscaleError(
            f"{manifest}: this token store is damaged ({error}); copy it again, or delete it and pack the corpus again"
        ) from None


def _absent(path: Path | Url) -> str:
    if isinstance(path, Url):
        return f"{path}: no {MANIFEST} here; expected a token store, brought there by `mscale store copy`"
    if not path.exists():
        return f"{path}: no such folder; expected a token store, made by `mscale pack`"
    if (path / PACKING_FOLDER).exists():
        return (
            f"{path}: packing of this store has not finished; run the same `mscale pack` again, it continues"
        )
    return f"{path}: no {MANIFEST} here; expected a token store, made by `mscale pack`"


@contextlib.contextmanager
def _reading(path: Path | Url) -> Iterator[None]:
    """Converts errors of reading a file into a ``MscaleError`` with a remedy."""
    try:
        yield
    except (OSError, ValueError, EOFError) as error:
        if isinstance(error, OSError) and error.errno == errno.EMFILE:
            raise MscaleError(
                f"{path}: too many open files; a store needs one for each language: `ulimit -n 4096`"
            ) from None
        raise MscaleError(
            f"{path}: cannot be read ({error}); copy the store again or pack the corpus again"
        ) from None


def unigram_overlap(path: str | Path) -> dict[str, dict[str, float]]:
    """Returns Σ_v min(p_a(v), p_b(v)) of every two languages of a token store, with p their unigram frequencies."""
    store = open_store(path)
    counts = {name: store.unigram(name).astype(np.float32) for name in store.languages}
    shares = {name: count / count.sum() for name, count in counts.items() if count.sum() > 0}
    return {
        one: {other: float(np.minimum(p, q).sum()) for other, q in shares.items()}
        for one, p in shares.items()
    }
