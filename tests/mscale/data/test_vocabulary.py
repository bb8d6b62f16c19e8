"""Vocabularies: exact round trips of text, and errors for damaged or different vocabularies."""

import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mscale.data.vocabulary import byte_vocabulary, check_same, describe, load_vocabulary
from mscale.errors import MscaleError

texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=50)


@given(st.lists(texts, max_size=8))
def test_bytes_come_back_exactly_one_by_one_and_in_batches(batch):
    vocabulary = byte_vocabulary()
    flat, lengths = vocabulary.encode_batch(batch)
    pieces = np.split(flat, np.cumsum(lengths))[: len(batch)]
    for text, piece in zip(batch, pieces, strict=True):
        assert vocabulary.encode(text).tolist() == [byte + 3 for byte in text.encode()] == piece.tolist()
        assert vocabulary.decode(piece) == text
        assert vocabulary.decode([0, *piece.tolist(), vocabulary.eos_id]) == text


def test_a_cut_window_decodes_to_text_all_the_same():
    assert byte_vocabulary().decode(byte_vocabulary().encode("日本")[1:]).endswith("本")


def test_saved_and_loaded(tmp_path):
    vocabulary = byte_vocabulary()
    file = vocabulary.save(tmp_path)
    for path in (file, tmp_path, "bytes"):
        assert load_vocabulary(path) == vocabulary
    assert describe(vocabulary) == {
        "kind": "bytes",
        "size": 259,
        "fingerprint": "bytes-259",
        "eos_id": 1,
        "pad_id": 0,
    }


def test_two_vocabularies_are_an_error_that_names_both():
    other = {"fingerprint": "sentencepiece-64000-abc"}
    with pytest.raises(MscaleError, match="the store s has sentencepiece-64000-abc, the run has bytes-259"):
        check_same(other, byte_vocabulary(), "the store s", "the run")


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("vocabulary.json", b"{", "damaged"),
        ("vocabulary.json", b'{"kind": "words"}', "expected 'bytes'"),
        ("vocabulary.json", b"[]", "expected 'bytes'"),
        ("x.model", b"not a model", "not a SentencePiece model"),
    ],
)
def test_bad_files_are_named(tmp_path, name, content, message):
    if name.endswith(".model"):
        pytest.importorskip("sentencepiece")
    (tmp_path / name).write_bytes(content)
    with pytest.raises(MscaleError, match=message) as raised:
        load_vocabulary(tmp_path / name)
    assert name in str(raised.value)


def test_missing_vocabularies_and_lone_surrogates_are_named(tmp_path):
    with pytest.raises(MscaleError, match="no vocabulary here"):
        load_vocabulary(tmp_path)
    with pytest.raises(MscaleError, match="no such"):
        load_vocabulary(tmp_path / "absent.json")
    with pytest.raises(MscaleError, match=r"U\+D800 at character 1"):
        byte_vocabulary().encode("a\ud800")


def test_the_module_loads_neither_sentencepiece_nor_jax():
    code = (
        "import sys, mscale.data.vocabulary; print({'sentencepiece', 'jax', 'tensorflow'} & set(sys.modules))"
    )
    assert (
        subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout.strip() == "set()"
    )
