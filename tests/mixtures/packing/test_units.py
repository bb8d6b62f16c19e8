"""What becomes a unit, and that its ids are those of the vocabulary's own encoder."""

import numpy as np
import pytest
import tiny_corpus

from mixtures.packing.units import COUNT_NAMES, NEVER_HELD_OUT, encode_units
from mscale.data.vocabulary import byte_vocabulary

TEXTS = ["one\ntwo\n\n  \nthree", "", "no line end", "\n", "ends\n", "a ▁ b\n\n"]


@pytest.fixture(scope="module", params=["bytes", "sentencepiece"])
def vocabulary(request, tmp_path_factory):
    if request.param == "bytes":
        return byte_vocabulary()
    pytest.importorskip("sentencepiece")
    from mixtures.train_vocabulary import train_vocabulary

    rng = np.random.default_rng(0)
    texts = ["two three " + " ".join(rng.choice(["one", "line", "ends"], 40)) for _ in range(100)]
    corpus = tiny_corpus.write(tmp_path_factory.mktemp("corpus"), {"en": texts})
    folder = tmp_path_factory.mktemp("vocabulary")
    return train_vocabulary(corpus, folder, pieces=270, special=8, sample_bytes=9_000, threads=1)


def pack_units(unit, vocabulary):
    counts = dict.fromkeys(COUNT_NAMES, 0)
    batches = list(encode_units(iter(TEXTS), unit, vocabulary, counts))
    return np.concatenate([r for r, _ in batches]), np.concatenate([i for _, i in batches]), counts


@pytest.mark.parametrize("unit", ["line", "document"])
def test_ids_are_those_of_whole_documents(vocabulary, unit):
    records, ids, counts = pack_units(unit, vocabulary)
    assert ids.tolist() == [number for text in TEXTS for number in vocabulary.encode(text).tolist()]
    assert counts["tokens"] == records["tokens"].sum() == len(ids)
    assert (counts["documents"], counts["empty_documents"]) == (5, 1)


def test_every_line_is_a_unit_and_blank_ones_are_never_held_out(vocabulary):
    records, ids, _ = pack_units("line", vocabulary)
    lines = [line for text in TEXTS for line in text.splitlines(keepends=True)]
    ends = np.cumsum(records["tokens"])
    assert [vocabulary.decode(part) for part in np.split(ids, ends)[:-1]] == lines
    assert records["bytes"].tolist() == [len(line.encode()) for line in lines]
    assert ((records["hash"] == NEVER_HELD_OUT) == [not line.strip() for line in lines]).all()
    assert records["document"].tolist() == [0, 0, 0, 0, 0, 1, 2, 3, 4, 4]
