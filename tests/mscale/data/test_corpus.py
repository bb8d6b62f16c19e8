"""Reading corpora: text is unchanged, and every invalid file gives one message with place, cause and remedy."""

import csv
import gzip
import json
import re
import tracemalloc
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mscale.data import corpus
from mscale.errors import MscaleError

GOOD = [
    json.dumps({"text": f"Document {i}.\nŽluťoučký 猫"}, ensure_ascii=False).encode() + b"\n"
    for i in range(50)
]


def write(
    folder: Path, language: str, lines: list[bytes], number: int = 0, suffix: str = ".jsonl.gz"
) -> Path:
    path = folder / "data" / language / f"{language}_clean_{number:04d}{suffix}"
    path.parent.mkdir(parents=True, exist_ok=True)
    data = b"".join(lines)
    path.write_bytes(gzip.compress(data) if suffix.endswith("gz") else data)
    return path


def message(call, *args) -> str:
    """The message of the MscaleError that the call raises, which has no chained exception."""
    with pytest.raises(MscaleError) as caught:
        result = call(*args)
        list(result)
    return str(caught.value)


def test_reads_compressed_and_plain_in_the_order_of_their_numbers(tmp_path):
    write(tmp_path, "en", GOOD[:10], number=10)
    write(tmp_path, "en", GOOD[10:20], number=9, suffix=".jsonl")
    write(tmp_path, "en", GOOD[20:], number=0)
    (tmp_path / "data/en/en_noisy_0000.jsonl.gz").write_bytes(b"not ours")
    (tmp_path / "data/en/.en_clean_0001.jsonl.gz.x.tmp").write_bytes(b"half")
    (tmp_path / "data/empty").mkdir()
    write(tmp_path, "de", GOOD)
    assert corpus.list_languages(tmp_path) == ["de", "en"]
    texts = [text for path in corpus.language_files(tmp_path, "en") for text in corpus.documents(path)]
    expected = [json.loads(line)["text"] for line in GOOD]
    assert texts == expected[20:] + expected[10:20] + expected[:10]


@given(
    texts=st.lists(st.text(st.characters(exclude_categories=["Cs"])), min_size=1, max_size=8),
    escaped=st.booleans(),
)
def test_any_text_comes_through_unchanged(tmp_path_factory, texts, escaped):
    lines = [json.dumps({"text": text}, ensure_ascii=escaped).encode() + b"\n" for text in texts]
    path = write(tmp_path_factory.mktemp("any"), "xx", lines)
    assert list(corpus.documents(path)) == texts


def test_memory_does_not_grow_with_the_file(tmp_path):
    line = json.dumps({"text": "word " * 2000}).encode() + b"\n"
    path = write(tmp_path, "en", [line] * 3000)  # 30 MB of text
    tracemalloc.start()
    count = sum(1 for _ in corpus.documents(path))
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert count == 3000
    assert peak < 3e6


def test_a_last_line_without_line_end_is_whole(tmp_path):
    path = write(tmp_path, "en", [GOOD[0], GOOD[1].rstrip()], suffix=".jsonl")
    assert len(list(corpus.documents(path))) == 2


# Folders.


def test_no_such_folder(tmp_path):
    (tmp_path / "corpus").mkdir()
    text = message(corpus.list_languages, tmp_path / "corpsu")
    assert "corpsu: no such corpus folder" in text and "did you mean 'corpus'" in text
    assert "data/<lang>/<lang>_clean_NNNN.jsonl.gz" in text
    assert "no such corpus folder" in message(corpus.list_languages, tmp_path / "a/b/c")


def test_a_folder_without_data(tmp_path):
    assert "the folder is empty" in message(corpus.list_languages, tmp_path)
    (tmp_path / "notes.txt").write_text("x")
    assert "no data folder in it: found only notes.txt" in message(corpus.list_languages, tmp_path)
    assert "found a file" in message(corpus.list_languages, tmp_path / "notes.txt")


def test_an_empty_corpus(tmp_path):
    (tmp_path / "data" / "en").mkdir(parents=True)
    assert "found no language" in message(corpus.list_languages, tmp_path)


def test_pointing_at_the_wrong_level(tmp_path):
    write(tmp_path, "en", GOOD)
    text = message(corpus.list_languages, tmp_path / "data")
    assert "this is the data folder itself" in text and f"give its parent, {tmp_path}" in text
    text = message(corpus.list_languages, tmp_path / "data" / "en")
    assert "folder of one language" in text and text.endswith(str(tmp_path))
    (tmp_path / "data").rename(tmp_path / "text")
    text = message(corpus.list_languages, tmp_path / "text")
    assert "languages' folders directly in it" in text and str(tmp_path / "text" / "data") in text


def test_all_missing_languages_at_once(tmp_path):
    for language in ("de", "en", "pt"):
        write(tmp_path, language, GOOD)
    codes = corpus.list_languages(tmp_path)
    assert corpus.select_languages(tmp_path, codes, None) == codes == ["de", "en", "pt"]
    assert corpus.select_languages(tmp_path, codes, ["pt", "de"]) == ["pt", "de"]
    text = message(corpus.select_languages, tmp_path, codes, ["en", "ptt", "zz"])
    assert "2 of the 3" in text and "'ptt' – did you mean 'pt'?" in text and "'zz'" in text
    assert "de, en, pt" in text
    assert "asked for twice: en" in message(corpus.select_languages, tmp_path, codes, ["en", "en"])
    assert "no language was asked for" in message(corpus.select_languages, tmp_path, codes, [])
    assert "not in this corpus: 'zz'" in message(corpus.language_files, tmp_path, "zz")


def test_a_shard_that_is_there_twice(tmp_path):
    write(tmp_path, "en", GOOD)
    write(tmp_path, "en", GOOD, suffix=".jsonl")
    text = message(corpus.language_files, tmp_path, "en")
    assert "en_clean_0000.jsonl" in text and "twice" in text


# Files.


def test_truncated_gzip(tmp_path):
    path = write(tmp_path, "en", GOOD)
    whole = path.read_bytes()
    for size in range(11, len(whole), 7):
        path.write_bytes(whole[:size])
        text = message(corpus.documents, path)
        found = re.match(
            rf"{re.escape(str(path))}:(\d+): the gzip stream ends early, after (\d+) whole lines", text
        )
        assert found and int(found[1]) == int(found[2]) + 1, text
    assert "download it again" in text


def test_a_flipped_bit_never_passes(tmp_path):
    path = write(tmp_path, "en", GOOD)
    whole = path.read_bytes()
    for i in range(10, len(whole), 11):  # after the header, whose time and flags are not checked
        path.write_bytes(whole[:i] + bytes([whole[i] ^ 0x10]) + whole[i + 1 :])
        assert str(path) in message(corpus.documents, path)


def test_what_stands_before_damaged_gzip_data_is_counted(tmp_path):
    """Several members and padding zeros are one stream; anything else after them is damage, at its line."""
    path = write(tmp_path, "en", GOOD)
    whole = path.read_bytes()
    path.write_bytes(whole + whole + bytes(512))
    assert len(list(corpus.documents(path))) == 2 * len(GOOD)
    path.write_bytes(whole + b"a tail of another kind")
    assert f"{path}:{len(GOOD) + 1}: the gzip stream is damaged after {len(GOOD)} whole lines" in message(
        corpus.documents, path
    )
    large = gzip.compress(b"".join(GOOD * 400), compresslevel=1)
    path.write_bytes(large[: len(large) // 2])
    lines = int(re.search(r"after (\d+) whole lines", message(corpus.documents, path))[1])
    assert lines > 100 * len(GOOD)


def test_not_gzip(tmp_path):
    path = write(tmp_path, "en", GOOD)
    path.write_bytes(b"".join(GOOD))
    text = message(corpus.documents, path)
    assert "not a gzip file" in text and "rename it to en_clean_0000.jsonl" in text
    path.write_bytes(b"<html>404</html>")
    text = message(corpus.documents, path)
    assert "it starts with b'<html>" in text and "download it again" in text


def test_gzip_under_a_plain_name(tmp_path):
    path = write(tmp_path, "en", GOOD, suffix=".jsonl")
    path.write_bytes(gzip.compress(b"".join(GOOD)))
    assert "rename it to en_clean_0000.jsonl.gz" in message(corpus.documents, path)


@pytest.mark.parametrize("suffix", [".jsonl", ".jsonl.gz"])
def test_empty_file(tmp_path, suffix):
    path = write(tmp_path, "en", [], suffix=suffix)
    text = message(corpus.documents, path)
    assert str(path) in text and ("found no line" if suffix == ".jsonl.gz" else "0 bytes") in text
    path.write_bytes(b"")
    assert "the file is empty (0 bytes)" in message(corpus.documents, path)


def test_unreadable_file(tmp_path, monkeypatch):
    path = write(tmp_path, "en", GOOD)
    assert "check the path" in message(corpus.documents, path.with_name("en_clean_0001.jsonl.gz"))
    assert "give a file, not a folder" in message(corpus.documents, path.parent)
    loop = tmp_path / "loop.jsonl"
    loop.symlink_to(loop)
    assert f"cannot read {loop}" in message(corpus.documents, loop)

    def denied(*_):
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(corpus.io, "FileIO", denied)
    text = message(corpus.documents, path)
    assert f"cannot read {path}: Permission denied" in text and "permissions" in text


# Lines. Each bad line is the third: the two before come out, the message names line 3.

BAD_LINES = {
    "truncated JSON": (b'{"text": "abc\n', "no JSON", "mend or remove"),
    "no JSON": (b"plain text\n", "no JSON", "'plain text'"),
    "blank": (b"   \n", "a blank line", "expected one"),
    "byte order mark": (b'\xef\xbb\xbf{"text": "a"}\n', "BOM", "expected one"),
    "too deep": (b"[" * 200_000 + b"\n", "no JSON", "expected one"),
    "array": (b'["text"]\n', "Expected `object`, got `array`", "expected one"),
    "string": (b'"text"\n', "Expected `object`, got `str`", "expected one"),
    "number": (b"3\n", "Expected `object`, got `int`", "expected one"),
    "without text": (b'{"content": "a"}\n', "Object missing required field `text`", "expected one"),
    "text null": (b'{"text": null}\n', "Expected `str`, got `null` - at `$.text`", "expected one"),
    "text number": (b'{"text": 5}\n', "Expected `str`, got `int` - at `$.text`", "expected one"),
    "text list": (b'{"text": ["a"]}\n', "Expected `str`, got `array` - at `$.text`", "expected one"),
    "text boolean": (b'{"text": true}\n', "Expected `str`, got `bool` - at `$.text`", "expected one"),
    "Latin-1": (b'{"text": "caf\xe9!"}\n', "not UTF-8: byte 13 of the line is 0xe9", "iconv"),
    "half a surrogate pair": (b'{"text": "ab\\ud83d"}\n', "half a surrogate pair (character 2)", "mend"),
}


@pytest.mark.parametrize("suffix", [".jsonl", ".jsonl.gz"])
@pytest.mark.parametrize("name", BAD_LINES)
def test_bad_line(tmp_path, name, suffix):
    line, *expected = BAD_LINES[name]
    path = write(tmp_path, "en", [*GOOD[:2], line, *GOOD[2:]], suffix=suffix)
    read = []
    with pytest.raises(MscaleError) as caught:
        for text in corpus.documents(path):
            read.append(text)
    assert len(read) == 2
    assert str(caught.value).startswith(f"{path}:3: ")
    for part in expected:
        assert part in str(caught.value)
    assert len(str(caught.value)) < 600


def test_other_fields_may_hold_what_json_itself_does_not_know(tmp_path):
    path = write(tmp_path, "en", [b'{"score": NaN, "text": "kept"}\n'])
    assert list(corpus.documents(path)) == ["kept"]


def test_a_last_line_that_is_cut_short_says_so(tmp_path):
    path = write(tmp_path, "en", [*GOOD, GOOD[0][:12]], suffix=".jsonl")
    assert f"{path}:51: " in message(corpus.documents, path)
    assert "may be cut short" in message(corpus.documents, path)


def test_a_line_without_end_does_not_take_all_memory(tmp_path, monkeypatch):
    monkeypatch.setattr(corpus, "MAX_LINE_BYTES", 1000)
    path = write(tmp_path, "en", [*GOOD[:2], b"x" * 5000])
    assert f"{path}:3: the line is longer than 1,000 bytes" in message(corpus.documents, path)


def test_a_corpus_of_many_languages(many_languages):
    with open(many_languages / "languages.csv") as file:
        listed = [row["code"] for row in csv.DictReader(file)]
    assert len(listed) in (456, 502)  # generated, real
    assert corpus.list_languages(many_languages) == sorted(listed)
    texts = [text for path in corpus.language_files(many_languages, "zh") for text in corpus.documents(path)]
    assert len(texts) > 10 and all(texts)
