"""The token store: parts, counts and index agree, and damage is reported with the name of the file."""

import json
import shutil

import numpy as np
import pytest
import tiny_corpus

from mixtures.packing.pack import pack
from mscale.data.store import MANIFEST, PACKING_FOLDER, open_store, token_dtype
from mscale.data.vocabulary import byte_vocabulary
from mscale.errors import MscaleError


@pytest.fixture(scope="module")
def packed(tmp_path_factory):
    folder = tmp_path_factory.mktemp("store")
    texts = {"aa": tiny_corpus.documents(120, 9), "bb": tiny_corpus.documents(4, 30, seed=1)}
    pack(tiny_corpus.write(folder / "corpus", texts), folder / "store", byte_vocabulary())
    return folder / "store"


@pytest.fixture
def copied(packed, tmp_path):
    return shutil.copytree(packed, tmp_path / "copy")


def edit(store, change):
    described = json.loads((store / MANIFEST).read_text())
    change(described)
    (store / MANIFEST).write_text(json.dumps(described))


def test_parts_counts_and_index_agree(packed):
    store = open_store(packed)
    vocabulary = byte_vocabulary()
    assert store.languages == ("aa", "bb")
    assert store.dtype == np.uint16
    assert store.vocabulary["fingerprint"] == vocabulary.fingerprint
    for language in store.languages:
        train = store.train(language)
        assert not train.flags.writeable
        assert len(train) == store.train_tokens(language)
        np.testing.assert_array_equal(store.unigram(language), np.bincount(train, minlength=vocabulary.size))
        assert np.exp(store.unigram_log_probabilities(language)).sum() == pytest.approx(1)
        assert np.isfinite(store.unigram_log_probabilities(language)).all()
        assert store.train_bytes(language) == (train != vocabulary.eos_id).sum()
        assert store.windows(language, 100) == len(train) // 100
        tokens, index = store.valid(language), store.valid_index(language)
        assert len(tokens) == store.valid_tokens(language) == index[:, 1].sum()
        assert store.valid_bytes(language) == index[:, 2].sum()
        for offset, length, size in index:
            document = tokens[offset : offset + length]
            assert document[-1] == vocabulary.eos_id
            assert len(vocabulary.decode(document).encode()) == size


def truncate(store):
    path = store / "aa" / "train.bin"
    path.write_bytes(path.read_bytes()[:-2])


DAMAGES = {
    "a truncated file": (truncate, "aa/train.bin has"),
    "a missing file": (lambda store: (store / "bb" / "valid.bin").unlink(), "bb/valid.bin is missing"),
    "a missing language": (lambda store: shutil.rmtree(store / "aa"), r"4 difference\(s\)"),
    "a half-written manifest": (lambda store: (store / MANIFEST).write_text('{"form'), "damaged"),
    "another kind of JSON": (lambda store: (store / MANIFEST).write_text("[]"), "no token store"),
    "a newer version": (lambda store: edit(store, lambda d: d.update(version=2)), "install a newer mscale"),
    "an unreadable version": (
        lambda store: edit(store, lambda d: d.update(version="x")),
        "pack the corpus again",
    ),
    "no vocabulary": (lambda store: edit(store, lambda d: d.pop("vocabulary")), "'vocabulary'"),
    "no file list": (lambda store: edit(store, lambda d: d["languages"]["aa"].pop("files")), "'files'"),
    "an unknown dtype": (lambda store: edit(store, lambda d: d.update(dtype="token")), "token"),
}


@pytest.mark.parametrize(("damage", "message"), DAMAGES.values(), ids=DAMAGES)
def test_damage_is_named_when_the_store_is_opened(copied, damage, message):
    damage(copied)
    with pytest.raises(MscaleError, match=message) as raised:
        open_store(copied)
    assert str(copied) in str(raised.value)


def replace_array(name, change):
    """Damages an array in place: the file keeps its size."""

    def damage(store):
        path = store / "bb" / name
        array = np.load(path)
        change(array)
        np.save(path, array)

    return damage


def swap(store):
    (store / "aa" / "train.bin").rename(store / "x")
    (store / "bb" / "train.bin").rename(store / "aa" / "train.bin")
    (store / "x").rename(store / "bb" / "train.bin")


def replace_by_folder(store):
    (store / "bb" / "unigram.npy").unlink()
    (store / "bb" / "unigram.npy").mkdir()


def read_all(store):
    for language in store.languages:
        store.train(language)[-1:].sum()
        store.valid_index(language)
        store.unigram(language)


BY_HAND = {
    "a file cut short": (truncate, "aa/train.bin has"),
    "a file with more at its end": (
        lambda store: (store / "bb" / "valid.bin").open("ab").write(b"xx"),
        "bb/valid.bin has",
    ),
    "a file deleted": (
        lambda store: (store / "bb" / "valid_index.npy").unlink(),
        "bb/valid_index.npy is missing",
    ),
    "a folder renamed": (lambda store: (store / "aa").rename(store / "ab"), "aa/train.bin is missing"),
    "a folder in place of a file": (replace_by_folder, "bb/unigram.npy"),
    "the files of two languages swapped": (swap, "aa/train.bin has .*bb/train.bin has"),
    "an array overwritten with something else": (
        lambda store: (store / "bb" / "unigram.npy").write_bytes(
            bytes((store / "bb" / "unigram.npy").stat().st_size)
        ),
        "bb/unigram.npy",
    ),
    "counts edited": (
        replace_array("unigram.npy", lambda array: array.__setitem__((1, 0), 7)),
        "bb/unigram.npy",
    ),
    "an id that the vocabulary lacks": (
        replace_array("unigram.npy", lambda array: array.__setitem__((0, -1), 259)),
        "bb/unigram.npy",
    ),
    "an offset edited": (
        replace_array("valid_index.npy", lambda array: array.__setitem__((1, 0), 10**9)),
        "bb/valid_index.npy",
    ),
    "the tokens of a language edited": (
        lambda store: edit(store, lambda d: d["languages"]["aa"]["train"].update(tokens=10**6)),
        "store.json: damaged, languages.aa has 1,000,000 train tokens",
    ),
    "the type of the tokens edited": (
        lambda store: edit(store, lambda d: d.update(dtype="uint32")),
        "store.json: damaged, languages.aa has",
    ),
    "the manifest cut short": (
        lambda store: (store / MANIFEST).write_bytes((store / MANIFEST).read_bytes()[:200]),
        "store.json: this token store is damaged",
    ),
    "the manifest of another program": (
        lambda store: (store / MANIFEST).write_text('{"a": 1}'),
        "store.json",
    ),
}


@pytest.mark.parametrize(("damage", "message"), BY_HAND.values(), ids=BY_HAND)
def test_a_store_damaged_by_hand_names_the_file_when_opened_and_read(copied, damage, message):
    read_all(open_store(copied))
    damage(copied)
    with pytest.raises(MscaleError, match=message) as raised:
        read_all(open_store(copied))
    assert str(copied) in str(raised.value)


def test_a_store_that_is_not_there_or_not_finished(tmp_path, packed):
    with pytest.raises(MscaleError, match="no such folder"):
        open_store(tmp_path / "absent")
    with pytest.raises(MscaleError, match=r"no store\.json here"):
        open_store(tmp_path)
    (tmp_path / PACKING_FOLDER).mkdir()
    with pytest.raises(MscaleError, match="has not finished"):
        open_store(tmp_path)
    with pytest.raises(MscaleError, match=r"no language 'ab'.*There are 2: aa, bb"):
        open_store(packed).train("ab")


def test_ids_fit_their_type():
    assert token_dtype(259) == token_dtype(65_536) == np.uint16
    assert token_dtype(65_537) == np.uint32
