"""Training a vocabulary: exact round trips, the sample's shares, the same model from the same call."""

import subprocess
import sys

import numpy as np
import pytest
import tiny_corpus
from hypothesis import given, settings
from hypothesis import strategies as st

pytest.importorskip("sentencepiece")

import sentencepiece

from mixtures.packing.inputs import find_inputs
from mixtures.packing.pack import pack
from mixtures.train_vocabulary import sample_sentences, split_sentences, train_vocabulary
from mscale.data import corpus as corpora
from mscale.data.store import open_store
from mscale.data.vocabulary import SentencePieceVocabulary, byte_vocabulary, load_vocabulary
from mscale.errors import MscaleError

texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=60)
awkward = st.text(
    st.sampled_from("\u2581 ▁\t\n\r\0\u3000é\u0301ﬁ①<0x41>⁇\ufeff\ufffd\U0010ffffа日"), max_size=20
)


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    rng = np.random.default_rng(0)
    english = ["the " + "".join(rng.choice(list("aeinost   "), 160)) + ".\n\tnext line" for _ in range(400)]
    lines = [" человек ".join(rng.choice(list("аеинос"), 8)) + "." for _ in range(60)]
    russian = ["\n".join(lines[start : start + 6]) for start in range(0, 60, 6)]
    return tiny_corpus.write(tmp_path_factory.mktemp("corpus"), {"en": english, "ru": russian})


@pytest.fixture(scope="module")
def trained(corpus, tmp_path_factory):
    folder = tmp_path_factory.mktemp("vocabulary")
    return train_vocabulary(corpus, folder, pieces=350, special=20, sample_bytes=60_000, threads=2), folder


@given(st.one_of(texts, awkward))
@settings(max_examples=300)
def test_decoding_gives_back_the_exact_text(trained, text):
    vocabulary, _ = trained
    assert vocabulary.decode(vocabulary.encode(text)) == text
    flat, lengths = vocabulary.encode_batch([text, "", text])
    assert lengths.sum() == len(flat) and lengths[1] == 0
    assert flat[: lengths[0]].tolist() == vocabulary.encode(text).tolist() == flat[lengths[0] :].tolist()


def test_special_ids_come_from_no_text_and_vanish_from_it(trained):
    vocabulary, _ = trained
    assert vocabulary.size == 370
    pieces = vocabulary.pieces()
    assert pieces[:20] == [None] * 20
    assert pieces[20 : 20 + 256] == [bytes([byte]) for byte in range(256)]
    assert all(isinstance(piece, str) for piece in pieces[20 + 256 :])
    ids = vocabulary.encode("<pad></s><unk><extra_id_0> the")
    assert ids.min() >= 20
    assert vocabulary.decode([0, 5, *ids, 1]) == "<pad></s><unk><extra_id_0> the"
    with pytest.raises(MscaleError, match="370 are not all of the vocabulary"):
        vocabulary.decode([3, 370])


def test_a_saved_vocabulary_describes_its_training(trained, corpus):
    vocabulary, folder = trained
    loaded = load_vocabulary(folder)
    assert loaded == vocabulary == load_vocabulary(folder / "vocabulary.model")
    assert loaded.fingerprint == vocabulary.fingerprint
    training = loaded.training
    assert (training["pieces"], training["temperature"], training["threads"]) == (350, 100.0, 2)
    sample = training["sample"]
    # T = 100 is close to uniform: English gives a part of its text, Russian all of it, several times.
    assert 25_000 < sample["en"]["bytes"] < 35_000 and sample["en"]["times"] < 1.01
    russian = sum(
        len(text.replace("\n", "").encode())
        for path in corpora.language_files(corpus, "ru")
        for text in corpora.documents(path)
    )
    assert sample["ru"]["bytes"] == russian
    assert sample["ru"]["times"] * russian == pytest.approx(30_000, rel=0.03)


def test_the_same_call_gives_the_same_model_and_a_finished_one_returns(
    trained, corpus, tmp_path, monkeypatch
):
    vocabulary, folder = trained
    code = (
        "import sys; from mixtures.train_vocabulary import train_vocabulary as train\n"
        "train(sys.argv[1], sys.argv[2], pieces=350, special=20, sample_bytes=60_000, threads=2)"
    )
    subprocess.run([sys.executable, "-c", code, str(corpus), str(tmp_path)], check=True, capture_output=True)
    assert (tmp_path / "vocabulary.model").read_bytes() == vocabulary.model
    monkeypatch.setattr(sentencepiece.SentencePieceTrainer, "train", None)  # nothing is trained again
    again = train_vocabulary(corpus, folder, pieces=350, special=20, sample_bytes=60_000, threads=2)
    assert again == vocabulary
    with pytest.raises(MscaleError, match="pieces was 350, now 360"):
        train_vocabulary(corpus, folder, pieces=360, special=20, sample_bytes=60_000, threads=2)
    with pytest.raises(MscaleError, match="the corpus or the languages differ"):
        train_vocabulary(corpus, folder, 350, 20, ["en"], sample_bytes=60_000, threads=2)


def test_monolingual(corpus, tmp_path):
    vocabulary = train_vocabulary(corpus, tmp_path, 272, 10, ["ru"], sample_bytes=20_000, threads=1)
    assert list(vocabulary.training["sample"]) == ["ru"]
    assert vocabulary.encode("человек").min() >= 10 + 256  # pieces
    assert vocabulary.encode("thq").max() < 10 + 256  # single bytes


def sample(files, shares):
    used = {}
    lines = [line.rsplit("\t", 1) for line in sample_sentences(files, shares, used)]
    return [(sentence, int(times)) for sentence, times in lines], used


@given(st.floats(1_000, 100_000), st.floats(1_000, 100_000))
@settings(max_examples=5)
def test_each_language_gets_its_share_and_no_more_is_read(corpus, en, ru):
    files = find_inputs(corpus)
    lines, used = sample(files, {"en": en, "ru": ru})
    assert all("\n" not in sentence and "\t" not in sentence and sentence for sentence, _ in lines)
    counts = {"en": 0, "ru": 0}
    for sentence, times in lines:
        counts["ru" if any("а" <= c <= "я" for c in sentence) else "en"] += times * len(sentence.encode())
    for code, share in {"en": en, "ru": ru}.items():
        assert used[code]["bytes"] <= share + 600  # a sentence
        assert counts[code] == pytest.approx(share, abs=600 * max(used[code]["times"], 1))


def test_every_file_of_a_language_gives_its_beginning(tmp_path):
    for shard in range(4):
        tiny_corpus.write(tmp_path, {"aa": [f"{shard} {number}" for number in range(1000)]}, shard=shard)
    lines, used = sample(find_inputs(tmp_path), {"aa": 400})
    assert {sentence.split()[0] for sentence, _ in lines} == {"0", "1", "2", "3"}
    assert used["aa"]["bytes"] == pytest.approx(400, abs=10)


def test_long_lines_are_cut_and_not_lost():
    line = ("word " * 3000).strip()
    parts = list(split_sentences(line + "\n" + "日" * 9000 + "\0x"))
    assert "".join(parts) == line + "日" * 9000 + "x"
    assert max(map(len, parts)) <= 4000


def test_bad_requests_are_named(corpus, tmp_path):
    for arguments, message in [
        ({"pieces": 256}, "pieces is 256, expected more than 256"),
        ({"special": 2}, "special is 2"),
        ({"temperature": 0.5}, "temperature is 0.5"),
        ({"sample_bytes": 0}, "sample_bytes is 0"),
        ({"character_coverage": 1.5}, "character_coverage is 1.5"),
        ({"languages": ["xx"]}, "xx"),
        ({"pieces": 60_000, "sample_bytes": 5_000}, r"its size 60,512 is too high, at most [\d,]+ ids"),
        ({"pieces": 260, "special": 3}, "is too small, the characters and bytes alone need"),
    ]:
        with pytest.raises(MscaleError, match=message):
            train_vocabulary(corpus, tmp_path / "v", **{"sample_bytes": 5_000, "threads": 1, **arguments})
    assert not (tmp_path / "v").exists()
    byte_vocabulary().save(tmp_path / "b")
    with pytest.raises(MscaleError, match="of unknown origin is here already"):
        train_vocabulary(corpus, tmp_path / "b")


def test_a_second_training_in_the_same_folder_is_refused(corpus, tmp_path):
    import fcntl

    with open(tmp_path / ".training", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        with pytest.raises(MscaleError, match="another training is at work here"):
            train_vocabulary(corpus, tmp_path, 350, 20, sample_bytes=60_000, threads=2)
    assert not (tmp_path / "vocabulary.model").exists()


def test_a_model_that_is_not_its_own_description(trained, tmp_path):
    vocabulary, _ = trained
    vocabulary.save(tmp_path)
    file = tmp_path / "vocabulary.json"
    file.write_text(file.read_text().replace(vocabulary.fingerprint, "sentencepiece-370-0"))
    with pytest.raises(
        MscaleError, match=f"two vocabularies: .*{vocabulary.fingerprint}.*sentencepiece-370-0"
    ):
        load_vocabulary(tmp_path)
    (tmp_path / "vocabulary.model").unlink()
    with pytest.raises(MscaleError, match=r"vocabulary\.model: cannot read"):
        load_vocabulary(tmp_path)


def test_a_store_packed_with_it_decodes_to_its_text(trained, corpus, tmp_path):
    vocabulary, _ = trained
    store = pack(corpus, tmp_path, vocabulary, processes=2)
    loaded = load_vocabulary(tmp_path)
    assert open_store(tmp_path).vocabulary["fingerprint"] == loaded.fingerprint == vocabulary.fingerprint
    for language in store.languages:
        whole = {
            text for path in corpora.language_files(corpus, language) for text in corpora.documents(path)
        }
        tokens, index = store.valid(language), store.valid_index(language)
        if language == "en":
            held = {loaded.decode(tokens[start : start + length]) for start, length, _ in index}
            assert held and held < whole
        size = len(loaded.decode(store.train(language)).encode())
        assert size == store.train_bytes(language)
    with pytest.raises(MscaleError, match=f"{vocabulary.fingerprint}, the vocabulary given has bytes-259"):
        pack(corpus, tmp_path, byte_vocabulary())


@pytest.fixture(scope="module")
def of_all_languages(many_languages, tmp_path_factory):
    folder = tmp_path_factory.mktemp("mini")
    return train_vocabulary(
        many_languages, folder, 4000, sample_bytes=400_000, character_coverage=0.99, threads=2
    )


def not_exact(vocabulary: SentencePieceVocabulary, corpus, size: float) -> list[str]:
    """Languages with a document, within the first ``size`` bytes, that encoding and decoding changes."""
    found = []
    codes = corpora.list_languages(corpus)
    assert len(codes) in (456, 502)  # generated, real
    for code in codes:
        left = size
        for text in (
            text for path in corpora.language_files(corpus, code) for text in corpora.documents(path)
        ):
            if vocabulary.decode(vocabulary.encode(text[:100_000])) != text[:100_000]:
                found.append(code)
                break
            left -= len(text.encode())
            if left < 0:
                break
    return found


def test_all_languages_come_back_exactly(of_all_languages, many_languages):
    assert not_exact(of_all_languages, many_languages, 5_000) == []


@pytest.mark.slow
def test_all_text_of_all_languages_comes_back_exactly(of_all_languages, many_languages):
    assert not_exact(of_all_languages, many_languages, float("inf")) == []
