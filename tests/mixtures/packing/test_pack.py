"""Packing: all text is kept once, the split is stable, and any interruption continues to the same bytes."""

import itertools
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import tiny_corpus
import tiny_store
from uploads import upload

from mixtures.packing import shards, units
from mixtures.packing.pack import pack
from mscale.data.mixture import resolve
from mscale.data.store import MANIFEST, PACKING_FOLDER, open_store
from mscale.data.verification import RECORD, damaged_files
from mscale.data.vocabulary import byte_vocabulary
from mscale.errors import MscaleError

TEXTS = {
    "aa": tiny_corpus.documents(150, 9),
    "bb": tiny_corpus.documents(3, 40, seed=1),
    "cc": [*tiny_corpus.documents(101, 2, seed=2), "", "the same", "the same", "the same"],
}


def contents(folder: Path) -> dict[str, bytes]:
    files = [path for path in folder.rglob("*") if path.is_file() and path.name != RECORD]
    return {str(path.relative_to(folder)): path.read_bytes() for path in files}


def texts_of(store, language):
    """(train documents, held-out documents) as text."""
    vocabulary = byte_vocabulary()
    train = store.train(language)
    ends = np.flatnonzero(train == vocabulary.eos_id)
    valid, index = store.valid(language), store.valid_index(language)
    return (
        [vocabulary.decode(part) for part in np.split(train, ends + 1)[:-1]],
        [vocabulary.decode(valid[offset : offset + length]) for offset, length, _ in index],
    )


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    return tiny_corpus.write(tmp_path_factory.mktemp("corpus"), TEXTS)


@pytest.fixture(scope="module")
def store(corpus, tmp_path_factory):
    return pack(corpus, tmp_path_factory.mktemp("store"), byte_vocabulary())


def test_documents_are_all_there_in_order_on_one_side(store):
    for language in ("aa", "cc"):
        train, valid = texts_of(store, language)
        originals = [text for text in TEXTS[language] if text]
        assert sorted(train + valid) == sorted(originals)
        assert train == [text for text in originals if text in set(train)]
        assert not set(train) & set(valid)
        assert (
            0.1
            < store.valid_tokens(language) / (store.train_tokens(language) + store.valid_tokens(language))
            <= 0.2
        )


def test_few_documents_are_split_by_lines(store):
    train, valid = texts_of(store, "bb")
    lines = [line for text in TEXTS["bb"] for line in text.split("\n")]
    held = {text.removesuffix("\n") for text in valid}
    assert held and held < set(lines)
    assert [line for text in train for line in text.removesuffix("\n").split("\n")] == [
        line for line in lines if line not in held
    ]
    assert store.entries["bb"]["unit"] == "line"
    assert store.entries["aa"]["unit"] == "document"


def test_no_line_with_a_copy_is_on_both_sides(tmp_path):
    corpus = tiny_corpus.write(tmp_path / "c", {"aa": ["x\ny\n\nz\nx", "x\n\n  \ny\nw\r\nz"] * 5})
    store = pack(corpus, tmp_path / "s", byte_vocabulary())
    train, valid = texts_of(store, "aa")
    kept = {line for text in train for line in text.split("\n")}
    assert valid
    assert not kept & {text.removesuffix("\n") for text in valid} - {""}
    assert store.entries["aa"]["duplicates"] > 0


def test_counts(store):
    entry = store.entries["cc"]
    assert (entry["documents"], entry["empty_documents"], entry["duplicates"]) == (104, 1, 2)
    assert entry["train"]["documents"] + entry["valid"]["documents"] == 104
    assert store.train_bytes("cc") + store.valid_bytes("cc") == sum(
        len(text.encode()) for text in TEXTS["cc"]
    )


@pytest.mark.parametrize("limit", [0, 500, 3000, 10**9])
def test_the_held_out_part_is_at_most_what_was_asked_for_and_a_fifth(corpus, tmp_path, limit):
    store = pack(corpus, tmp_path, byte_vocabulary(), languages=["aa"], valid_tokens=limit)
    total = store.train_tokens("aa") + store.valid_tokens("aa")
    assert store.valid_tokens("aa") <= min(limit, 0.2 * total)
    assert store.valid_tokens("aa") > min(limit, 0.2 * total) - 250


def test_a_first_unit_above_the_limit_is_held_out_alone(corpus, tmp_path):
    store = pack(corpus, tmp_path, byte_vocabulary(), languages=["aa"], valid_tokens=1)
    assert len(texts_of(store, "aa")[1]) == 1


def test_the_same_bytes_whatever_the_number_of_workers(corpus, store, tmp_path):
    pack(corpus, tmp_path, byte_vocabulary(), processes=2)
    assert contents(tmp_path) == contents(store.path)


def test_chunk_and_batch_sizes_do_not_change_the_store(corpus, store, tmp_path, monkeypatch):
    monkeypatch.setattr(units, "BATCH_BYTES", 300)
    for name, size in {"CHUNK_TOKENS": 700, "CHUNK_UNITS": 13}.items():
        monkeypatch.setattr(shards, name, size)
    pack(corpus, tmp_path, byte_vocabulary())
    assert contents(tmp_path) == contents(store.path)


def test_a_finished_store_is_left_unchanged_and_languages_accumulate(corpus, store, tmp_path, monkeypatch):
    pack(corpus, tmp_path, byte_vocabulary(), languages=["aa"])
    stamps = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*.bin")}
    both = pack(corpus, tmp_path, byte_vocabulary())
    assert both.languages == ("aa", "bb", "cc")
    assert contents(tmp_path) == contents(store.path)
    monkeypatch.setattr("mixtures.packing.pack.packing_processes", None)  # no process is started
    assert pack(corpus, tmp_path, byte_vocabulary(), languages=["bb"]).languages == ("aa", "bb", "cc")
    assert all(path.stat().st_mtime_ns == stamp for path, stamp in stamps.items())
    assert not (tmp_path / PACKING_FOLDER).exists()


def test_added_text_moves_no_text_to_the_other_side(tmp_path):
    corpus = tiny_corpus.write(tmp_path / "c", {"aa": TEXTS["aa"], "bb": TEXTS["bb"]})
    first = pack(corpus, tmp_path / "s", byte_vocabulary())
    before = {language: texts_of(first, language) for language in first.languages}
    cutoffs = {language: entry["cutoff"] for language, entry in first.entries.items()}
    more = {"aa": tiny_corpus.documents(200, 30, seed=9), "bb": tiny_corpus.documents(120, 3, seed=8)}
    tiny_corpus.write(corpus, more, shard=1)
    after = pack(corpus, tmp_path / "s", byte_vocabulary())
    assert {language: entry["cutoff"] for language, entry in after.entries.items()} == cutoffs
    for language, (train, valid) in before.items():
        now_train, now_valid = texts_of(after, language)
        assert now_train[: len(train)] == train
        assert now_valid[: len(valid)] == valid
        assert len(now_train) > len(train)
        assert len(now_valid) > len(valid)


def test_another_store_can_take_over_the_split(corpus, store, tmp_path):
    other = pack(corpus, tmp_path, byte_vocabulary(), valid_tokens=300, split_from=store.path)
    assert texts_of(other, "aa")[1] == texts_of(store, "aa")[1]


KILLED = """
import os, sys, signal
from mixtures.packing import pack as module, shards
from mscale.data.vocabulary import byte_vocabulary
calls = int(sys.argv[3])
def counted(function):
    def call(*args, **kwargs):
        global calls
        calls -= 1
        if calls < 0:
            os.kill(os.getpid(), signal.SIGKILL)
        return function(*args, **kwargs)
    return call
os.replace, os.unlink = counted(os.replace), counted(os.unlink)
module.pack(sys.argv[1], sys.argv[2], byte_vocabulary())
"""


def pack_and_kill(corpus, folder, stride):
    """Packs again and again, each time killed ``stride`` renames later, and yields after each kill."""
    for calls in itertools.count(0, stride):  # each call continues from the last one and gets further
        result = subprocess.run(
            [sys.executable, "-c", KILLED, str(corpus), str(folder), str(calls)],
            capture_output=True,
            text=True,
        )
        if result.returncode == 0:
            assert calls >= 3 * stride
            return
        assert result.returncode == -signal.SIGKILL, result.stderr
        yield calls


def test_killed_at_any_rename_it_continues_to_the_same_store(corpus, store, tmp_path):
    expected = contents(store.path)
    for _ in pack_and_kill(corpus, tmp_path, 4):
        if (tmp_path / MANIFEST).exists():
            assert not damaged_files(open_store(tmp_path))
            continue
        with pytest.raises(MscaleError, match="has not finished|no such folder"):
            open_store(tmp_path)
    assert contents(tmp_path) == expected


def test_a_store_that_grows_can_be_used_at_every_moment(tmp_path):
    """A new language leaves the others alone; one with more text is either the old one, the new one or absent."""
    texts = {"aa": TEXTS["aa"], "bb": TEXTS["bb"]}
    corpus = tiny_corpus.write(tmp_path / "ein Korpus é", texts)
    folder = tmp_path / "s"
    first = pack(corpus, folder, byte_vocabulary())

    def files_of_aa():
        found = ((path, path.stat()) for path in sorted((folder / "aa").iterdir()))
        return [(path.name, stat.st_ino, stat.st_mtime_ns, stat.st_size) for path, stat in found]

    untouched = files_of_aa()
    old, cutoff = first.entries["bb"], first.entries["bb"]["cutoff"]
    tiny_corpus.write(corpus, {"cc": TEXTS["cc"]})
    tiny_corpus.write(corpus, {"bb": tiny_corpus.documents(120, 3, seed=8)}, shard=1)
    seen = set()
    for _ in pack_and_kill(corpus, folder, 3):
        now = open_store(folder)
        assert not damaged_files(now)
        assert files_of_aa() == untouched
        found = now.entries.get("bb")
        seen.add(None if found is None else found["files"] == old["files"])
    assert {None, True} <= seen
    grown = open_store(folder)
    assert grown.languages == ("aa", "bb", "cc") and grown.entries["bb"]["cutoff"] == cutoff
    assert grown.data_hash(["aa"]) == first.data_hash(["aa"])
    again = pack(corpus, tmp_path / "again", byte_vocabulary(), split_from=folder)
    assert again.data_hash() == grown.data_hash()


def test_packing_again_mends_a_damaged_store(corpus, store, tmp_path, capsys):
    folder = shutil.copytree(store.path, tmp_path / "s")
    for name in ("aa/train.bin", "cc/valid.bin"):
        tiny_store.flip_a_bit(folder / name)
    (folder / "bb" / "unigram.npy").unlink()
    with pytest.raises(
        MscaleError, match="aa/train.bin has another checksum; .*cc/valid.bin.*--languages aa,bb,cc"
    ):
        pack(corpus, folder, byte_vocabulary(), languages=["bb"])
    pack(corpus, folder, byte_vocabulary())
    assert "bb is packed again" in capsys.readouterr().err
    assert contents(folder) == contents(store.path)


def test_codes_that_no_mixture_can_name_are_refused_before_packing(tmp_path):
    bad = ["a+b", "a=2", "a:b", "a b", "uniform", "temperature5", "atlas_8v0", "atlas_x", "a\u00a0b", "a\tb"]
    texts = dict.fromkeys(["aa", "zh-Hant", "sr_Cyrl", "ελ", *bad], ["some text"] * 3)
    corpus = tiny_corpus.write(tmp_path / "c", texts)
    with pytest.raises(MscaleError, match=r"10 language\(s\) have codes") as raised:
        pack(corpus, tmp_path / "s", byte_vocabulary())
    assert all(repr(code) in str(raised.value) for code in bad)
    assert not (tmp_path / "s").exists()
    kept = pack(corpus, tmp_path / "s", byte_vocabulary(), languages=["aa", "zh-Hant", "sr_Cyrl", "ελ"])
    assert resolve("+".join(kept.languages), kept, 1).languages == kept.languages


def test_all_languages_without_held_out_text_are_named(tmp_path, capsys):
    texts = {"aa": TEXTS["aa"], "bb": ["one"], "cc": ["two"]}
    corpus = tiny_corpus.write(tmp_path / "c", texts)
    pack(corpus, tmp_path / "s", byte_vocabulary())
    assert "no held-out text, too little to hold some out: bb, cc;" in capsys.readouterr().err
    pack(corpus, tmp_path / "none", byte_vocabulary(), valid_tokens=0)
    assert "held-out" not in capsys.readouterr().err


def test_files_that_look_like_text_and_are_not_read_are_named(tmp_path, capsys):
    corpus = tiny_corpus.write(tmp_path / "c", {"aa": ["text"] * 3, "bb": ["text"] * 3})
    (corpus / "data" / "cc").mkdir()
    unread = [
        "aa/aa_clean_0001.JSONL.GZ",
        "aa/aa_clean_0002.jsonl.zst",
        "bb/aa_clean_0000.jsonl",
        "cc/cc.parquet",
    ]
    silent = ["aa/aa_noisy_0000.jsonl.gz", ".a.json", "aa/README.md", "aa/.aa_clean_0003.jsonl.part"]
    for name in unread + silent:
        (corpus / "data" / name).write_text("x")
    pack(corpus, tmp_path / "s", byte_vocabulary())
    told = capsys.readouterr().err
    assert "4 file(s) look like text and are not read" in told
    assert all(name in told for name in unread) and not any(name in told for name in silent)
    upload(corpus, f"memory://{tmp_path.name}/c")
    pack(f"memory://{tmp_path.name}/c", tmp_path / "s2", byte_vocabulary(), languages=["bb"])
    told = capsys.readouterr().err
    assert "1 file(s) look like text" in told and unread[2] in told


def test_workers_end_with_a_parent_that_is_killed(tmp_path):
    corpus = tiny_corpus.write(
        tmp_path / "c", {f"l{i}": tiny_corpus.documents(400, 60, seed=i) for i in range(12)}
    )
    code = (
        "from mixtures.packing.pack import pack; from mscale.data.vocabulary import byte_vocabulary; import sys\n"
        "if __name__ == '__main__': pack(sys.argv[1], sys.argv[2], byte_vocabulary(), processes=2)"
    )
    script = tmp_path / "script.py"
    script.write_text(code)
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).resolve().parents[3])}
    parent = subprocess.Popen([sys.executable, script, corpus, tmp_path / "s"], env=environment)
    children: list[int] = []
    deadline = time.monotonic() + 60
    while len(children) < 2 and parent.poll() is None and time.monotonic() < deadline:
        children = list(map(int, Path(f"/proc/{parent.pid}/task/{parent.pid}/children").read_text().split()))
        time.sleep(0.01)
    if len(children) < 2:
        pytest.skip("packing ended before its workers were seen")
    parent.kill()
    parent.wait()
    while any(_runs(pid) for pid in children):
        assert time.monotonic() < deadline, "workers outlive their parent"
        time.sleep(0.05)
    assert pack(corpus, tmp_path / "s", byte_vocabulary(), processes=1).languages


def _runs(pid: int) -> bool:
    """Whether a process exists and is not a zombie, which has released its files and locks."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except OSError:
        return False


def test_a_damaged_shard_of_an_interrupted_packing_is_made_again(corpus, store, tmp_path, monkeypatch):
    def stop(*_args):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("mixtures.packing.pack.assemble", stop)
        with pytest.raises(KeyboardInterrupt):
            pack(corpus, tmp_path, byte_vocabulary())
    shard = next((tmp_path / PACKING_FOLDER / "aa").glob("*.tokens"))
    shard.write_bytes(b"\0" * shard.stat().st_size)  # as after a power cut
    next((tmp_path / PACKING_FOLDER / "cc").glob("*gz.json")).write_text("")
    pack(corpus, tmp_path, byte_vocabulary())
    assert contents(tmp_path) == contents(store.path)


def test_a_damaged_language_of_an_interrupted_packing_is_assembled_again(
    corpus, store, tmp_path, monkeypatch
):
    def stop(*_args):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("mixtures.packing.pack.os.sync", stop)
        with pytest.raises(KeyboardInterrupt):
            pack(corpus, tmp_path, byte_vocabulary())
    made = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("train.bin")}
    assert len(made) == 3
    (tmp_path / "aa" / "train.bin").write_bytes(b"\0" * (tmp_path / "aa" / "train.bin").stat().st_size)
    pack(corpus, tmp_path, byte_vocabulary())
    assert contents(tmp_path) == contents(store.path)
    assert {path.parent.name for path, stamp in made.items() if path.stat().st_mtime_ns != stamp} == {"aa"}


def test_a_bad_file_leaves_no_store_and_a_fixed_one_continues(tmp_path):
    corpus = tiny_corpus.write(tmp_path / "c", {"aa": TEXTS["aa"], "bb": TEXTS["bb"]})
    path = corpus / "data" / "bb" / "bb_clean_0000.jsonl.gz"
    whole = path.read_bytes()
    for processes in (1, 2):
        path.write_bytes(whole[:-40])
        with pytest.raises(MscaleError, match="bb_clean_0000.*truncated"):
            pack(corpus, tmp_path / "s", byte_vocabulary(), processes=processes)
        assert not (tmp_path / "s" / MANIFEST).exists()
    path.write_bytes(whole)
    assert pack(corpus, tmp_path / "s", byte_vocabulary()).languages == ("aa", "bb")


def test_other_bad_input_is_named(corpus, store, tmp_path):
    with pytest.raises(MscaleError, match="ab"):
        pack(corpus, tmp_path / "s", byte_vocabulary(), languages=["ab"])
    with pytest.raises(MscaleError, match="valid_tokens is -1"):
        pack(corpus, tmp_path / "s", byte_vocabulary(), valid_tokens=-1)
    with pytest.raises(MscaleError, match="never changes in a store"):
        pack(corpus, store.path, byte_vocabulary(), valid_tokens=7)
    (tmp_path / "file").write_text("")
    with pytest.raises(MscaleError, match="cannot write"):
        pack(corpus, tmp_path / "file", byte_vocabulary())


def test_another_vocabulary_for_the_same_store_names_both(corpus, store):
    import dataclasses

    other = dataclasses.replace(byte_vocabulary(), fingerprint="bytes-other")
    with pytest.raises(MscaleError, match="has bytes-259, the vocabulary given has bytes-other"):
        pack(corpus, store.path, other)
    assert not (store.path / ".packing").exists()


def test_a_second_packing_of_the_same_store_is_refused(corpus, tmp_path):
    import fcntl

    (tmp_path / PACKING_FOLDER).mkdir()
    with open(tmp_path / PACKING_FOLDER / "lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        with pytest.raises(MscaleError, match="another packing is at work"):
            pack(corpus, tmp_path, byte_vocabulary())


def test_a_full_disk_is_named_and_leaves_no_store(corpus, tmp_path, monkeypatch):
    import errno

    def full(*_args):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("mixtures.packing.hashed_files.os.replace", full)
    with pytest.raises(MscaleError, match="disk is full"):
        pack(corpus, tmp_path, byte_vocabulary())
    assert not (tmp_path / MANIFEST).exists()
    assert not list(tmp_path.rglob("*.tmp"))


@pytest.fixture
def uneven(tmp_path):
    texts = {"aa": TEXTS["aa"], "bb": ["a short one"], "cc": ["x"], "dd": TEXTS["bb"]}
    return tiny_corpus.write(tmp_path / "uneven", texts)


def test_languages_shorter_than_a_window_are_all_named_with_the_flag(uneven, tmp_path, monkeypatch):
    with pytest.raises(
        MscaleError, match=r"2 language\(s\).*one window of 100 tokens: bb \(12\), cc \(2\).*--drop-short"
    ):
        pack(uneven, tmp_path / "s", byte_vocabulary(), sequence_length=100)
    with pytest.raises(MscaleError, match="has not finished"):
        open_store(tmp_path / "s")
    monkeypatch.setattr("mixtures.packing.pack.tokenize", None)  # all that was packed is kept
    store = pack(uneven, tmp_path / "s", byte_vocabulary(), sequence_length=100, drop_short=True)
    assert store.languages == ("aa", "dd")
    assert sorted(path.name for path in (tmp_path / "s").iterdir() if path.is_dir()) == ["aa", "dd"]


def test_dropping_never_leaves_an_empty_store_and_works_on_a_finished_one(uneven, tmp_path):
    with pytest.raises(MscaleError, match="4 language"):
        pack(uneven, tmp_path / "s", byte_vocabulary(), sequence_length=10**6, drop_short=True)
    assert pack(uneven, tmp_path / "s", byte_vocabulary()).languages == ("aa", "bb", "cc", "dd")
    with pytest.raises(MscaleError, match=r"1 language\(s\).*cc \(2\)"):
        pack(uneven, tmp_path / "s", byte_vocabulary(), sequence_length=5)
    assert len(open_store(tmp_path / "s").languages) == 4
    assert (
        len(pack(uneven, tmp_path / "s", byte_vocabulary(), sequence_length=5, drop_short=True).languages)
        == 3
    )
    with pytest.raises(MscaleError, match="sequence_length is 0"):
        pack(uneven, tmp_path / "s", byte_vocabulary(), sequence_length=0)


def test_a_language_without_any_text_is_named(tmp_path):
    corpus = tiny_corpus.write(tmp_path / "c", {"aa": TEXTS["aa"], "bb": ["", ""]})
    with pytest.raises(MscaleError, match=r"less train text than one token.*bb \(0\)"):
        pack(corpus, tmp_path / "s", byte_vocabulary())


def test_a_remote_corpus_gives_the_same_store(corpus, store, tmp_path):
    url = f"memory://{tmp_path.name}/corpus"
    upload(corpus, url)
    packed = pack(url, tmp_path, byte_vocabulary())
    for language in store.languages:
        for name in ("train.bin", "valid.bin", "valid_index.npy"):
            assert (tmp_path / language / name).read_bytes() == (store.path / language / name).read_bytes()
    calls = sorted((tmp_path / "aa").iterdir())
    stamps = [path.stat().st_mtime_ns for path in calls]
    assert pack(url, tmp_path, byte_vocabulary()) == packed
    assert [path.stat().st_mtime_ns for path in calls] == stamps
    for arguments, message in [
        ((url + "x",), "found no corpus there"),
        ((url, tmp_path / "s", byte_vocabulary(), ["ab"]), "not in this corpus: 'ab'; it has 3: aa, bb, cc"),
        ((corpus, url, byte_vocabulary()), "packed on a local disk"),
    ]:
        with pytest.raises(MscaleError, match=message):
            pack(*arguments, *(tmp_path / "s", byte_vocabulary())[len(arguments) - 1 :])


def test_errors_in_a_remote_file_name_its_url(corpus, tmp_path):
    import fsspec

    url = f"memory://{tmp_path.name}/corpus"
    upload(corpus, url)
    path = f"/{tmp_path.name}/corpus/data/bb/bb_clean_0000.jsonl.gz"
    system = fsspec.filesystem("memory")
    system.pipe(path, system.cat(path)[:-40])
    with pytest.raises(MscaleError, match=f"{url}/data/bb/bb_clean_0000.jsonl.gz:.*truncated"):
        pack(url, tmp_path / "s", byte_vocabulary())


def test_manifest_is_plain_json(store):
    described = json.loads((store.path / MANIFEST).read_text())
    assert described["version"] == 1
    assert set(described["languages"]["aa"]["files"]) == {
        "train.bin",
        "valid.bin",
        "valid_index.npy",
        "unigram.npy",
    }


def test_many_languages(many_languages, tmp_path):
    from mscale.data import corpus as corpora

    every = 25 if many_languages.name == "madlad_mini" else 1  # the real text is 119 MB
    some = corpora.list_languages(many_languages)[::every]
    store = pack(many_languages, tmp_path, byte_vocabulary(), languages=some)
    for language in some:
        train, valid = texts_of(store, language)
        text = [
            one
            for path in corpora.language_files(many_languages, language)
            for one in corpora.documents(path)
        ]
        total = sum(len(one.encode()) for one in text)
        assert store.train_bytes(language) + store.valid_bytes(language) == total
        assert (
            0
            < store.valid_tokens(language)
            <= 0.35 * (store.train_tokens(language) + store.valid_tokens(language))
        )
