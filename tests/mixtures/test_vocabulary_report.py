import gzip
import json

import pytest
import tiny_corpus

from mixtures.vocabulary_report import report_tables, vocabulary_report
from mscale.data.parallel_text import parallel_text
from mscale.data.vocabulary import byte_vocabulary
from mscale.errors import MscaleError

LINES = {"en": ["one two", "three"], "ru": ["один два", "три"], "ja": ["一二", "三"]}


def generated(folder):
    (folder / "parallel").mkdir(parents=True)
    for code, lines in LINES.items():
        text = "".join(json.dumps({"text": line}) + "\n" for line in lines)
        (folder / "parallel" / f"{code}.jsonl.gz").write_bytes(gzip.compress(text.encode()))
    return folder


def flores(folder):
    (folder / "devtest").mkdir(parents=True)
    for code, lines in LINES.items():
        (folder / "devtest" / f"{code}.devtest").write_text("\n".join(lines) + "\n", encoding="utf-8")
    return folder


@pytest.mark.parametrize("layout", [generated, flores])
def test_premiums_on_parallel_text_of_either_layout(tmp_path, layout):
    report = vocabulary_report(byte_vocabulary(), parallel=layout(tmp_path))
    assert report.reference == "en"
    assert [row["language"] for row in report.parallel] == ["en", "ja", "ru"]
    by_code = {row["language"]: row for row in report.parallel}
    assert (
        by_code["ru"]["bytes"] == by_code["ru"]["tokens"] == sum(len(line.encode()) for line in LINES["ru"])
    )
    assert by_code["ru"]["byte_premium"] == pytest.approx(21 / 12)
    assert by_code["ja"]["token_premium"] == pytest.approx(9 / 12)
    assert by_code["en"]["token_premium"] == 1
    other = vocabulary_report(byte_vocabulary(), parallel=tmp_path, reference="ru")
    assert {row["language"]: row["byte_premium"] for row in other.parallel}["en"] == pytest.approx(12 / 21)


def test_fertility_counts_what_there_is(tmp_path):
    corpus = tiny_corpus.write(
        tmp_path, {"en": ["one  two\nthree"], "ja": ["一二三"], "am": ["ሀለ፡ሐመ ሠ"], "xx": ["1 2"]}
    )
    rows = {row["language"]: row for row in vocabulary_report(byte_vocabulary(), corpus).languages}
    assert (rows["en"]["words"], rows["en"]["tokens"], rows["en"]["bytes"]) == (3, 14, 14)
    assert rows["en"]["tokens_per_word"] == pytest.approx(14 / 3)
    assert rows["en"]["tokens_per_byte"] == 1 and rows["en"]["byte_tokens"] == 1
    assert rows["ja"]["tokens_per_character"] == 3 and rows["ja"]["tokens_per_word"] is None
    assert rows["am"]["words"] == 3
    assert [rows[code]["script"] for code in ("en", "ja", "am", "xx")] == ["Latin", "Han", "Ethiopic", "none"]


def test_pieces_by_script(tmp_path):
    sentencepiece = pytest.importorskip("sentencepiece")
    import io

    from mscale.data.vocabulary import SentencePieceVocabulary

    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(["the cat sat", "кот сидел", "the dog sat"] * 50),
        model_writer=model,
        vocab_size=300,
        hard_vocab_limit=False,
        byte_fallback=True,
        normalization_rule_name="identity",
        pad_id=0,
        eos_id=1,
        unk_id=2,
        bos_id=-1,
        minloglevel=2,
    )
    vocabulary = SentencePieceVocabulary(model.getvalue())
    rows = vocabulary_report(vocabulary, parallel=generated(tmp_path)).pieces
    counts = {row["script"]: row["pieces"] for row in rows}
    assert counts["single bytes"] == 256
    assert counts["special"] == 3
    assert sum(counts.values()) == vocabulary.size
    assert counts["Latin"] > 5 and counts["Cyrillic"] > 5
    assert sum(row["share"] for row in rows) == pytest.approx(1)


def test_tables_show_every_row(tmp_path):
    from rich.console import Console

    generated(tmp_path)
    tiny_corpus.write(tmp_path, {"en": ["one two"], "ja": ["一"]})
    console = Console(width=200, record=True, file=open("/dev/null", "w"))  # noqa: SIM115
    for table in report_tables(vocabulary_report(byte_vocabulary(), tmp_path, parallel=tmp_path)):
        console.print(table)
    text = console.export_text()
    assert "bytes-259" in text and "premiums over en" in text and "byte premium" in text and "–" in text


def test_bad_parallel_text_is_named(tmp_path):
    with pytest.raises(MscaleError, match="give a corpus, parallel text, or both"):
        vocabulary_report(byte_vocabulary())
    with pytest.raises(MscaleError, match="found no parallel text"):
        parallel_text(tmp_path)
    flores(tmp_path)
    with pytest.raises(MscaleError, match="'de' has no parallel text.*there are en, ja, ru"):
        vocabulary_report(byte_vocabulary(), parallel=tmp_path, reference="de")
    (tmp_path / "devtest" / "ja.devtest").write_text("一\n", encoding="utf-8")
    with pytest.raises(MscaleError, match=r"most have 2, but not ja\.devtest \(1\)"):
        parallel_text(tmp_path)
    (tmp_path / "devtest" / "ja.devtest").write_bytes(b"\xff\n")
    with pytest.raises(MscaleError, match=r"ja\.devtest: not UTF-8 at byte 0"):
        parallel_text(tmp_path)
