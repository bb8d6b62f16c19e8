"""Files of a store are checked once for each place, before a run reads them; damage names the file."""

import json
import os
from pathlib import Path

import pytest
import tiny_store

from mscale.data import verification
from mscale.data.store import LANGUAGE_FILES, MANIFEST, checksum, open_store
from mscale.data.verification import RECORD, damaged_files, verify_store
from mscale.errors import MscaleError


@pytest.fixture
def store(tmp_path, monkeypatch):
    """A store whose path is relative, with a space and a letter that is not ASCII."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tiny_store.write(Path("mein Korpus é") / "store")


@pytest.mark.parametrize("name", LANGUAGE_FILES)
def test_one_bit_in_the_middle_of_a_file_is_found(store, name):
    assert not damaged_files(store)
    tiny_store.flip_a_bit(store.path / "fr" / name)
    assert damaged_files(open_store(store.path)) == {
        f"fr/{name}": f"{store.path}/fr/{name} has another checksum"
    }


def test_all_damage_is_named_with_what_to_do(store):
    tiny_store.flip_a_bit(store.path / "en" / "train.bin")
    (store.path / "fr" / "valid.bin").write_bytes((store.path / "fr" / "valid.bin").read_bytes()[:-2])
    (store.path / "sw" / "unigram.npy").unlink()
    with pytest.raises(MscaleError) as raised:
        verify_store(store, store.languages, store.languages)
    for text in ("3 difference", "en/train.bin has another", "fr/valid.bin has", "sw/unigram.npy is missing"):
        assert text in str(raised.value)
    assert "mscale store copy" in str(raised.value)


def test_only_what_a_run_reads_is_checked(store):
    tiny_store.flip_a_bit(store.path / "fr" / "train.bin")
    tiny_store.flip_a_bit(store.path / "sw" / "valid.bin")
    verify_store(store, ["en", "sw"], ["en", "fr"])
    with pytest.raises(MscaleError, match="1 difference.*fr/train.bin"):
        verify_store(store, ["en", "fr"], ["en"])
    with pytest.raises(MscaleError, match="1 difference.*sw/valid.bin"):
        verify_store(store, ["en"], ["sw"])


def test_ids_that_the_vocabulary_lacks_are_found_though_the_checksum_agrees(store):
    path = store.path / "en" / "valid.bin"
    data = bytearray(path.read_bytes())
    data[-2:] = (259).to_bytes(2, "little")
    path.write_bytes(data)
    described = json.loads((store.path / MANIFEST).read_text())
    described["languages"]["en"]["files"]["valid.bin"]["blake2b"] = checksum(path)
    (store.path / MANIFEST).write_text(json.dumps(described))
    with pytest.raises(MscaleError, match="en/valid.bin holds the id 259, expected less than 259"):
        verify_store(open_store(store.path), [], ["en"])


@pytest.mark.parametrize("writable", [True, False])
def test_what_was_checked_is_read_again_only_if_it_changed(store, tmp_path, monkeypatch, writable):
    if not writable:
        (store.path / RECORD).mkdir()  # it cannot be written there, also for root
    assert not damaged_files(store)
    assert (store.path / RECORD).is_file() == writable
    assert bool(list(tmp_path.glob("cache/mscale/*"))) != writable
    read = []
    content_damage = verification.content_damage
    monkeypatch.setattr(
        verification, "content_damage", lambda *args: read.append(args[1]) or content_damage(*args)
    )
    monkeypatch.chdir(store.path)
    assert not damaged_files(open_store("."))
    assert not read
    path = Path("en/train.bin").absolute()
    times = path.stat()
    tiny_store.flip_a_bit(path)
    os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))
    assert list(damaged_files(open_store("."))) == ["en/train.bin"] == read
    assert list(damaged_files(open_store("."))) == ["en/train.bin"]  # damage is not remembered as good
    tiny_store.flip_a_bit(path)
    assert not damaged_files(open_store("."))


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b'{"en/train.bin": [1]}', b"\xff"])
def test_a_damaged_record_is_made_again(store, content):
    (store.path / RECORD).write_bytes(content)
    assert not damaged_files(store)
    assert len(json.loads((store.path / RECORD).read_text())) == 12
