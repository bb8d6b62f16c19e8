"""SeqIO tasks over corpora: MADLAD-400's layout (local or remote), mC4 and Wiki-40B through TFDS, FLORES, and
the generated corpus.

Text tasks are for decoder-only pretraining: documents are encoded, ended by EOS, concatenated, and cut without padding
into windows ``targets``, as in a token store. Without a sequence length (None) each example is one document. The paths
of the corpora and of the vocabulary are bound in gin:

    corpora.madlad400 = "gs://bucket/madlad-400"      # data/<lang>/<lang>_clean_NNNN.jsonl.gz below it
    corpora.synthetic = "work/corpus"                 # from mixtures.synthetic.generate, same layout
    corpora.flores = "flores200_dataset"              # dev/<code>.dev and devtest/<code>.devtest below it
    corpora.tfds = "gs://tfds-data/datasets"          # None: TFDS's own default
    corpora.vocabulary = "vocabulary.model"           # or "bytes"
    corpora.store = "work/store"                      # for packed tasks, and for rates that depend on sizes
"""

import atexit
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import cache, partial
from pathlib import Path
from typing import Any

import gin
import seqio
import tensorflow as tf

from mixtures.packing import inputs
from mscale import languages as inventory
from mscale.data.store import Store, open_store
from mscale.data.vocabulary import SentencePieceVocabulary, load_vocabulary
from mscale.errors import MscaleError, nearest
from mscale.remote import Url, connect, location

_FILES_AT_ONCE = 8  # interleaved when shuffling


@gin.configurable("corpora")  # type: ignore[attr-defined]  # mypy takes the folder gin/ for it
def settings(
    madlad400: str | None = None,
    synthetic: str | None = None,
    flores: str | None = None,
    tfds: str | None = None,
    vocabulary: str = "bytes",
    store: str | None = None,
) -> dict[str, str | None]:
    """Paths of corpora, vocabulary and store, as bound in gin (``corpora.madlad400 = …``)."""
    return dict(locals())


def bound_setting(name: str) -> str:
    """Returns one of ``settings``.

    Raises:
      MscaleError: it is not bound.
    """
    value = settings()[name]
    if not value:
        raise MscaleError(f"corpora.{name} is not set: bind it in gin, --gin.corpora.{name}='\"…\"'")
    return os.fspath(value)


class CorpusSource(seqio.DataSource):
    """Documents of one language of a corpus in MADLAD-400's layout; the files are its shards.

    Files are listed when the first dataset is made, and read and checked as in packing: bad input stops the pipeline
    with an error that names file and line.
    """

    def __init__(self, root: str, language: str):
        super().__init__(splits=("train",))
        self.root, self.language = root, language

    @property
    def supports_arbitrary_sharding(self) -> bool:
        return False

    def list_shards(self, split: str) -> Sequence[str]:
        return [str(one.path) for one in _files(self.root, self.language)]

    def get_dataset(  # type: ignore[override]
        self,
        split: str = "train",
        shuffle: bool = True,
        seed: int | None = None,
        shard_info: seqio.ShardInfo | None = None,
        **_: Any,
    ) -> tf.data.Dataset:
        """Yields ``{"text": string}``; with ``shuffle`` the files are shuffled and interleaved."""
        files = _files(self.root, self.language)
        chosen = (
            range(len(files))[shard_info.index :: shard_info.num_shards] if shard_info else range(len(files))
        )

        def documents(file: int) -> Iterator[dict[str, str]]:
            for text in inputs.read_documents(files[int(file)]):
                yield {"text": text}

        def of_file(file: tf.Tensor) -> tf.data.Dataset:
            return tf.data.Dataset.from_generator(
                documents, args=(file,), output_signature={"text": tf.TensorSpec((), tf.string)}
            )

        order = tf.data.Dataset.from_tensor_slices(list(chosen))
        if shuffle:
            order = order.shuffle(len(chosen), seed=seed)
        return order.interleave(of_file, cycle_length=_FILES_AT_ONCE if shuffle else 1)


@cache
def _files(root: str, language: str) -> tuple[inputs.InputFile, ...]:
    return tuple(inputs.find_inputs(root, [language])[language])


def corpus_languages(root: str) -> tuple[str, ...]:
    """Returns the languages of a corpus, local or remote, sorted."""
    return tuple(inputs.find_inputs(root))


def madlad400(name: str, language: str) -> seqio.Task:
    """One language of MADLAD-400 (Kudugunta et al. 2023, arXiv 2309.04662), by any of its codes.

    Raises:
      MscaleError: ``corpora.madlad400`` is not set; or, when it is read, the language is not in the corpus.
    """
    return text_task(name, CorpusSource(bound_setting("madlad400"), inventory.canonical(language)))


def synthetic(name: str, language: str) -> seqio.Task:
    """One language of a generated corpus (``mixtures.synthetic.generate``)."""
    return text_task(name, CorpusSource(bound_setting("synthetic"), language))


def mc4(name: str, language: str) -> seqio.Task:
    """One language of mC4 (Xue et al. 2021) through TFDS, with its own validation split."""
    own = _corpus_code(name, language, mc4_languages())
    source = seqio.TfdsDataSource(
        tfds_name="c4/multilingual:3.1.0",
        tfds_data_dir=settings()["tfds"],
        splits={"train": own, "validation": f"{own}-validation"},
    )
    return text_task(name, source)


def wiki40b(name: str, language: str) -> seqio.Task:
    """One language of Wiki-40B (Guo et al. 2020) through TFDS, without its structure markers."""
    own = _corpus_code(name, language, wiki40b_languages())
    source = seqio.TfdsDataSource(
        tfds_name=f"wiki40b/{own}:1.3.0",
        tfds_data_dir=settings()["tfds"],
        splits=("train", "validation", "test"),
    )
    return text_task(name, source, before=(remove_wiki_markers,))


def flores(name: str, languages: Mapping[str, str]) -> seqio.Task:
    """Sentences of FLORES-200 (or -101), for evaluation; each ends with EOS.

    Args:
      name: of the task.
      languages: feature to language: ``{"targets": "sw"}``, or ``{"inputs": "en", "targets": "sw"}`` for parallel
        sentences.
    """
    return seqio.Task(
        name,
        _flores_source(languages),
        output_features={key: _feature() for key in languages},
        preprocessors=[seqio.preprocessors.tokenize, seqio.preprocessors.append_eos],
    )


def mc4_languages() -> tuple[str, ...]:
    """Languages of mC4 in TFDS's spelling."""
    from tensorflow_datasets.text import c4

    return tuple(c4.MC4_LANGUAGES)


def wiki40b_languages() -> tuple[str, ...]:
    """Languages of Wiki-40B in TFDS's spelling."""
    from tensorflow_datasets.text import wiki40b as dataset

    return tuple(dataset.WIKIPEDIA_LANGUAGES)


def bound_store() -> Store:
    """Returns the token store ``corpora.store``, opened once."""
    return _open_store_once(bound_setting("store"))


_open_store_once = cache(open_store)


@cache
def seqio_vocabulary(path: str) -> seqio.Vocabulary:
    """Returns SeqIO's form of a vocabulary: ``bytes``, a ``.model``, a vocabulary.json or a folder with either.

    Ids are the same as mscale's, except that SeqIO reads U+2581 in a text as a space.
    """
    loaded = load_vocabulary(path)
    if not isinstance(loaded, SentencePieceVocabulary):
        return seqio.ByteVocabulary()
    # SeqIO reads the model lazily, from a file: keep a copy until the process ends.
    folder = tempfile.mkdtemp(prefix="mscale-vocabulary-")
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    loaded.save(folder)
    return seqio.SentencePieceVocabulary(str(Path(folder) / "vocabulary.model"))


def _feature() -> seqio.Feature:
    return seqio.Feature(seqio_vocabulary(bound_setting("vocabulary")), add_eos=True)


def text_task(
    name: str, source: seqio.DataSource, before: Sequence[Callable[..., tf.data.Dataset]] = ()
) -> seqio.Task:
    """A pretraining task over ``source``, which yields ``{"text": string}``; ``before`` preprocesses the text."""
    return seqio.Task(
        name,
        source,
        output_features={"targets": _feature()},
        preprocessors=[
            *before,
            partial(seqio.preprocessors.rekey, key_map={"targets": "text"}),
            seqio.preprocessors.tokenize,
            seqio.preprocessors.append_eos,
            cut_windows,
        ],
    )


def cut_windows(dataset: tf.data.Dataset, sequence_length: Mapping[str, int] | None) -> tf.data.Dataset:
    """Concatenates the documents' ``targets`` and cuts windows of S tokens; a remainder at the end is dropped.

    Without a length for ``targets`` the documents are returned unchanged.
    """
    length = (sequence_length or {}).get("targets")
    if not length:
        return dataset
    dataset = dataset.map(lambda example: {"targets": example["targets"]})
    return dataset.rebatch(length, drop_remainder=True)


def remove_wiki_markers(dataset: tf.data.Dataset) -> tf.data.Dataset:
    """Replaces Wiki-40B's structure markers (``_START_PARAGRAPH_``, ``_NEWLINE_``, …) in ``text`` by line ends."""

    def clean(example: Mapping[str, tf.Tensor]) -> dict[str, tf.Tensor]:
        text = tf.strings.regex_replace(example["text"], r"\n?_START_(ARTICLE|SECTION|PARAGRAPH)_\n", "\n")
        return {"text": tf.strings.strip(tf.strings.regex_replace(text, "_NEWLINE_", "\n"))}

    return dataset.map(clean, num_parallel_calls=tf.data.AUTOTUNE)


def _corpus_code(name: str, language: str, known: Sequence[str]) -> str:
    found = inventory.find(language, known)
    if not found:
        raise MscaleError(
            f"{name}: {language} is not in this corpus{nearest(language, known)}; it has {', '.join(known)}"
        )
    return found


def _flores_source(of_feature: Mapping[str, str]) -> seqio.DataSource:
    root = bound_setting("flores")

    def dataset_fn(split: str, shuffle_files: bool, seed: int | None = None) -> tf.data.Dataset:
        kind = {"validation": "dev", "test": "devtest"}[split]
        files = {key: _flores_file(root, kind, language) for key, language in of_feature.items()}
        lines = {key: tf.data.TextLineDataset(file) for key, file in files.items()}
        return tf.data.Dataset.zip(lines)

    return seqio.FunctionDataSource(dataset_fn, splits=("validation", "test"))


def _flores_file(root: str, kind: str, language: str) -> str:
    """The file of a language in FLORES-200 (``eng_Latn.devtest``) or FLORES-101 (``eng.devtest``)."""
    code = inventory.flores_codes().get(inventory.canonical(language), language)
    place = location(root)
    tried = []
    for own in (code, code.split("_")[0]):
        path = place / kind / f"{own}.{kind}"
        tried.append(str(path))
        if isinstance(path, Url):
            system, remote = connect(path)
            if system.exists(remote):
                return str(path)
        elif path.is_file():
            return str(path)
    raise MscaleError(
        f"{language}: FLORES has no file for it: found neither {' nor '.join(tried)}; "
        "check corpora.flores, or give FLORES's own code, such as eng_Latn"
    )
