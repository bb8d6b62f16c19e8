"""Tasks and mixtures in SeqIO: their names and examples, and the packed task against the feed."""

import subprocess
import sys

import gin
import numpy as np
import pytest
import tiny_corpus
import tiny_store

seqio = pytest.importorskip("seqio", reason="needs the extra [data]")

import tensorflow as tf  # noqa: E402

from mixtures import packed, registry, tasks  # noqa: E402
from mixtures.packing.pack import pack  # noqa: E402
from mscale import languages  # noqa: E402
from mscale.data import feed, schedule  # noqa: E402
from mscale.data.mixture import gin_sampling_options, resolve  # noqa: E402
from mscale.data.vocabulary import byte_vocabulary  # noqa: E402
from mscale.errors import MscaleError  # noqa: E402

S = 32
TEXTS = {
    "aa": tiny_corpus.documents(30, 9),
    "bb": tiny_corpus.documents(8, 30, seed=1),
    "zh-Hant": tiny_corpus.documents(5, 20, seed=2),
}


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    folder = tmp_path_factory.mktemp("registry")
    tiny_corpus.write(folder / "corpus", TEXTS)
    tiny_corpus.write(folder / "corpus", {"aa": tiny_corpus.documents(4, 9, seed=7)}, shard=1)
    store = pack(folder / "corpus", folder / "store", byte_vocabulary())
    flores = folder / "flores"
    for code, text in (("eng_Latn", "one\ntwo\n"), ("swh_Latn", "moja\nmbili\n"), ("fra", "un\ndeux\n")):
        for kind in ("dev", "devtest"):
            (flores / kind).mkdir(parents=True, exist_ok=True)
            (flores / kind / f"{code}.{kind}").write_text(text)
    gin.clear_config()
    gin.parse_config(f"""
        corpora.madlad400 = "{folder}/corpus"
        corpora.synthetic = "{folder}/corpus"
        corpora.flores = "{flores}"
        corpora.store = "{folder}/store"
        mixture.budget_tokens = 20000
        mixture.max_epochs = 2
    """)
    yield store
    gin.clear_config()


def dataset(name, length=S, **options):
    return seqio.get_dataset(
        name,
        {"targets": length},
        seqio.DecoderFeatureConverter(pack=False),
        shuffle=False,
        verbose=False,
        **options,
    )


def rows(name, count, **options):
    found = dataset(name, **options).take(count).as_numpy_iterator()
    return np.stack([example["decoder_target_tokens"] for example in found])


def text(ids):
    assert ids[-1] == 1
    return bytes((np.array(ids)[:-1] - 3).tolist()).decode()


@pytest.mark.parametrize(
    ("mixture", "name"),
    [
        ("en", "madlad400.en"),
        ("en+zh-Hant", "madlad400.en#zh.Hant"),
        ("en=0.999+fr=1e-3", "madlad400.en:0.999#fr:0.001"),
        ("zh-Hant=0.5+fr=0.5", "madlad400.zh.Hant:0.5#fr:0.5"),
        ("uniform", "madlad400.uniform"),
        ("temperature2.5:en+zh-Hant", "madlad400.temperature2.5:en#zh.Hant"),
        ("atlas_8v0", "madlad400.atlas_8v0"),
        ("atlas_unimax:en+fr", "madlad400.atlas_unimax:en#fr"),
    ],
)
def test_names_are_valid_and_say_the_same_mixture(mixture, name):
    assert registry.seqio_name("madlad400", mixture) == name
    corpus, spec = registry.mixture_name(name)
    assert corpus == "madlad400"
    assert registry.seqio_name(corpus, spec) == name
    assert seqio.dataset_providers._VALID_TASK_NAME_REGEX.match(name)


def test_every_published_code_is_a_task_and_every_published_mixture_is_known(corpus):
    for code in languages.codes():
        name = registry.seqio_name("madlad400", code)
        assert name in seqio.TaskRegistry.names()
        assert name not in seqio.MixtureRegistry.names()
        assert seqio.get_mixture_or_task(name).name == name
    for name, members in languages.capacity_mixtures().items():
        found = seqio.get_mixture_or_task(f"madlad400.atlas_{name}")
        assert {task.name for task in found.tasks} == {f"madlad400.{code}" for code in members}


def test_rates_are_those_that_training_resolves(corpus):
    for name in (
        "uniform",
        "proportional",
        "temperature3",
        "unimax",
        "aa+bb",
        "aa=0.9+bb=0.1",
        "unimax:aa+bb",
    ):
        mixture = seqio.get_mixture_or_task(registry.seqio_name("synthetic", name))
        expected = resolve(name, corpus, 1, options=gin_sampling_options())
        rates = {registry.mixture_name(task.name)[1]: mixture.get_rate(task) for task in mixture.tasks}
        assert rates == pytest.approx(dict(zip(expected.languages, expected.rates, strict=True)))


def test_what_is_not_ours_stays_as_it_was(corpus):
    with pytest.raises(ValueError, match="No Task or Mixture found"):
        seqio.get_mixture_or_task("madlad500.en")
    with pytest.raises(ValueError, match="not registered"):
        seqio.TaskRegistry.get("c4")
    task = seqio.TaskRegistry.add("mine", tasks.CorpusSource("x", "aa"), output_features={}, preprocessors=[])
    assert seqio.get_mixture_or_task("mine") is task
    assert list(seqio.TaskRegistry.names()) == ["mine"]
    seqio.TaskRegistry.remove("mine")
    with pytest.raises(MscaleError, match="did you mean 'unimax'"):
        seqio.get_mixture_or_task("madlad400.unimaxx:en#fr")


def test_a_task_gives_the_documents_end_to_end_in_windows(corpus):
    documents = [*TEXTS["aa"], *tiny_corpus.documents(4, 9, seed=7)]
    tokens = np.concatenate([[*byte_vocabulary().encode(text), 1] for text in documents])
    whole = len(tokens) // S
    found = rows("synthetic.aa", -1)
    np.testing.assert_array_equal(found, tokens[: whole * S].reshape(whole, S))
    shards = [
        rows("synthetic.aa", -1, shard_info=seqio.ShardInfo(index, 2), num_epochs=1) for index in range(2)
    ]
    first = np.concatenate([[*byte_vocabulary().encode(text), 1] for text in TEXTS["aa"]])
    np.testing.assert_array_equal(shards[0], first[: len(first) // S * S].reshape(-1, S))
    (example,) = (
        seqio.get_mixture_or_task("synthetic.zh.Hant").get_dataset(None, "train", shuffle=False).take(1)
    )
    assert text(example["targets"]) == TEXTS["zh-Hant"][0]


def test_a_mixture_mixes(corpus):
    found = rows("madlad400.aa:0.9#bb:0.1", 40, num_epochs=None)
    assert found.shape == (40, S)


def test_bad_input_stops_with_file_and_line(corpus, tmp_path):
    tiny_corpus.write(tmp_path, {"aa": ["good"]})
    (tmp_path / "data/aa/aa_clean_0001.jsonl").write_text('{"text": "fine"}\n{"txt": 1}\n')
    task = tasks.text_task("broken", tasks.CorpusSource(str(tmp_path), "aa"))
    with pytest.raises(
        tf.errors.OpError, match=r"aa_clean_0001.jsonl:2: found Object missing required field `text`"
    ):
        list(task.get_dataset({"targets": 4}, "train", shuffle=False))
    with pytest.raises(MscaleError, match="cc"):
        list(dataset("madlad400.cc"))


def test_flores_for_evaluation_and_in_parallel(corpus):
    task = seqio.get_mixture_or_task("flores.sw")
    texts = [text(one["targets"]) for one in task.get_dataset(None, "test", shuffle=False)]
    assert texts == ["moja", "mbili"]
    pair = seqio.get_mixture_or_task("flores.en:fr").get_dataset(None, "validation", shuffle=False)
    assert [one["inputs_pretokenized"].numpy() for one in pair] == [b"one", b"two"]
    assert [one["targets_pretokenized"].numpy() for one in pair] == [b"un", b"deux"]
    with pytest.raises(MscaleError, match="FLORES has no file for it.*deu_Latn.dev.*deu.dev"):
        list(seqio.get_mixture_or_task("flores.de").get_dataset(None, "validation"))


def test_tfds_tasks_name_the_right_dataset_and_split(corpus):
    mc4 = seqio.get_mixture_or_task("mc4.fil")
    assert mc4.source.tfds_dataset.name == "c4/multilingual:3.1.0"
    assert mc4.source.tfds_dataset._split_map == {"train": "fil", "validation": "fil-validation"}
    assert seqio.get_mixture_or_task("wiki40b.he").source.tfds_dataset.name.startswith("wiki40b/he")
    assert len(seqio.get_mixture_or_task("wiki40b.uniform").tasks) == 41
    with pytest.raises(MscaleError, match="wiki40b.sw: sw is not in this corpus"):
        seqio.get_mixture_or_task("wiki40b.sw")


def test_wiki_markers_are_taken_out():
    text = "\n_START_ARTICLE_\nTitle\n_START_SECTION_\nPart\n_START_PARAGRAPH_\nOne._NEWLINE_Two."
    (found,) = tasks.remove_wiki_markers(tf.data.Dataset.from_tensors({"text": text}))
    assert found["text"].numpy().decode() == "Title\nPart\nOne.\nTwo."


@pytest.mark.parametrize("mixture", ["unimax", "aa", "aa+bb", "aa=0.9+zh-Hant=0.1", "temperature5"])
def test_the_packed_task_gives_the_feeds_batches(corpus, mixture):
    plan = schedule.single(resolve(mixture, corpus, S, options=gin_sampling_options()), batch_size=6, seed=3)
    ours = np.concatenate(list(feed.batches(corpus, plan, S, 0, 25)))
    name = registry.seqio_name("packed", mixture)
    np.testing.assert_array_equal(rows(name, 150, seed=3), ours)


def test_the_packed_task_resumes_at_a_step_and_shards_over_hosts(corpus):
    plan = schedule.single(resolve("unimax", corpus, S, options=gin_sampling_options()), batch_size=6)
    ours = np.concatenate(list(feed.batches(corpus, plan, S, 1000, 1010)))
    with gin.unlock_config():
        gin.parse_config("packed.start_step = 1000\npacked.batch_size = 6")
    try:
        np.testing.assert_array_equal(rows("packed.unimax", 60), ours)
        for host in range(3):
            mine = rows("packed.unimax", 20, shard_info=seqio.ShardInfo(host, 3))
            np.testing.assert_array_equal(mine, ours[host::3])
    finally:
        with gin.unlock_config():
            gin.parse_config("packed.start_step = 0")


def test_the_packed_iterator_can_be_saved_and_restored(corpus, tmp_path):
    whole = rows("packed.unimax", 40)
    iterator = iter(dataset("packed.unimax"))
    for _ in range(15):
        next(iterator)
    path = tf.train.Checkpoint(iterator=iterator).write(str(tmp_path / "at15"))
    fresh = iter(dataset("packed.unimax"))
    tf.train.Checkpoint(iterator=fresh).read(path).assert_consumed()
    for row in whole[15:]:
        np.testing.assert_array_equal(next(fresh)["decoder_target_tokens"], row)


def test_the_packed_validation_split_is_the_held_out_text_once(corpus):
    task = seqio.get_mixture_or_task("packed.aa#bb")
    found = np.stack(
        [one["targets"] for one in task.get_dataset({"targets": S}, "validation").as_numpy_iterator()]
    )
    expected = []
    for language in ("aa", "bb"):
        tokens = np.asarray(corpus.valid(language), np.int32)
        expected.append(np.pad(tokens, (0, -len(tokens) % S)).reshape(-1, S))
    np.testing.assert_array_equal(found, np.concatenate(expected))
    assert task.output_features["targets"].vocabulary.vocab_size == corpus.vocabulary["size"]


def test_a_damaged_store_is_refused_before_its_first_window(corpus):
    path = corpus.path / "bb" / "valid.bin"
    tiny_store.flip_a_bit(path)
    try:
        with pytest.raises(MscaleError, match="bb/valid.bin has another checksum"):
            rows("packed.unimax", 1)
    finally:
        tiny_store.flip_a_bit(path)


def test_unset_corpora_are_named():
    with gin.unlock_config():
        before = gin.config_str()
        gin.clear_config()
    try:
        with pytest.raises(MscaleError, match="corpora.madlad400 is not set"):
            seqio.get_mixture_or_task("madlad400.en")
        with pytest.raises(MscaleError, match="corpora.store is not set"):
            seqio.get_mixture_or_task("packed.en")
    finally:
        gin.parse_config(before)


def test_nothing_is_registered_before_it_is_asked_for():
    assert not list(seqio.TaskRegistry.names())
    assert not list(seqio.MixtureRegistry.names())


@pytest.mark.slow  # another process imports TensorFlow
def test_import_is_light_and_registers_for_t5x():
    # What T5X does: import the module named in gin, then look the name up.
    code = """
import time, tensorflow, seqio, resource
start = time.process_time()
import mixtures.registry
seconds = time.process_time() - start
assert "madlad400.unimax" in seqio.MixtureRegistry.names()
print(seconds)
"""
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert float(found.stdout.split()[-1]) < 1  # beyond TensorFlow's and SeqIO's own
    assert packed.packed_task.__doc__
