"""A store on a remote file system that is slow and sometimes fails."""

import threading
import time
from pathlib import Path

import fsspec
import numpy as np
import pytest
import tiny_run
import tiny_store
from fsspec.implementations.memory import MemoryFileSystem

from mscale import remote
from mscale.cli import cli, exit_status
from mscale.data import feed, schedule
from mscale.data.copying import copy_store
from mscale.data.mixture import resolve
from mscale.data.store import MANIFEST, open_store
from mscale.data.verification import damaged_files
from mscale.errors import MscaleError
from mscale.files import locked
from mscale.remote import Url, location


class Fake(MemoryFileSystem):
    """A file system whose reads take ``latency``; every ``fails_every``-th read raises or returns too few bytes."""

    protocol = "fake"
    store: dict = {}
    latency = 0.0
    fails_every = 0
    calls = bytes_read = running = most_at_once = 0
    lock = threading.Lock()

    @classmethod
    def _strip_protocol(cls, path):
        return MemoryFileSystem._strip_protocol(str(path).replace("fake://", "memory://"))

    def cat_file(self, path, start=None, end=None, **kwargs):
        cls = type(self)
        with cls.lock:
            cls.calls += 1
            cls.running += 1
            cls.most_at_once = max(cls.most_at_once, cls.running)
            number = cls.calls
        try:
            time.sleep(cls.latency)
            data = super().cat_file(path, start=start, end=end, **kwargs)
            if cls.fails_every and number % cls.fails_every == 0:
                if number % 2:
                    raise ConnectionResetError("connection reset by peer")
                return data[:-1] if start is not None else (_ for _ in ()).throw(TimeoutError())
            cls.bytes_read += len(data)
            return data
        finally:
            with cls.lock:
                cls.running -= 1


@pytest.fixture
def fake(monkeypatch):
    fsspec.register_implementation("fake", Fake, clobber=True)
    monkeypatch.setattr(remote, "FIRST_RETRY_SECONDS", 0.001)
    Fake.store.clear()
    Fake.latency, Fake.fails_every = 0.0, 0
    Fake.calls = Fake.bytes_read = Fake.running = Fake.most_at_once = 0
    return Fake


@pytest.fixture
def local(tmp_path):
    return tiny_store.write(tmp_path / "store", train_tokens=200_000)


@pytest.fixture
def url(fake, local):
    copy_store(local.path, "fake://bucket/store")
    fake.calls = 0
    return "fake://bucket/store"


S = 128


def plan(store, batch_size=32):
    windows = {code: store.windows(code, S) for code in store.languages}
    mixture = resolve("uniform", store, S)
    return schedule.Schedule(((0, mixture),), windows, batch_size, seed=0)


def test_a_flaky_remote_store_gives_the_same_batches(local, url, fake):
    fake.latency, fake.fails_every = 0.001, 7
    store = open_store(url)
    for mine, theirs in zip(
        feed.batches(store, plan(store), S, 3, 9), feed.batches(local, plan(local), S, 3, 9), strict=True
    ):
        np.testing.assert_array_equal(mine, theirs)
    for language in local.languages:
        np.testing.assert_array_equal(store.valid(language), local.valid(language))
        np.testing.assert_array_equal(store.valid_index(language), local.valid_index(language))
        np.testing.assert_array_equal(store.unigram(language), local.unigram(language))
    assert store.data_hash() == local.data_hash()
    assert store.path == url


def test_only_the_share_is_read_and_a_second_time_nothing(local, url, fake):
    store = open_store(url)
    store.remote.block_bytes = 256
    fake.bytes_read = 0
    ids = [3, 700, 1501]
    found = store.gather_windows(["en"] * 3, ids, S)
    read = fake.bytes_read
    assert read <= 3 * (2 * S + 2 * 256)
    np.testing.assert_array_equal(found, local.train("en")[: 1502 * S].reshape(-1, S)[ids])
    np.testing.assert_array_equal(store.train("en", 700 * S, 701 * S), found[1])
    assert fake.bytes_read == read


def test_a_run_from_a_flaky_remote_store_measures_the_same(local, url, fake, tmp_path):
    """All losses of training and evaluation are equal, and the standard errors over held-out windows."""
    fake.fails_every, fake.latency = 7, 0.001
    found = []
    for name, store in (("remote", url), ("local", str(local.path))):
        assert tiny_run.run(local, tmp_path / name, STORE=store, RUN="r", STEPS=8, EVAL_STEPS=(4, 8)) == 0
        found.append(tiny_run.rows(tmp_path / name))
    assert fake.calls > 0 and len(found[0]) == 6
    assert found[0] == found[1]


def test_a_batch_is_read_at_once_and_not_window_by_window(url, fake):
    store = open_store(url)
    store.remote.block_bytes = 256
    fake.latency, fake.most_at_once = 0.1, 0  # long enough for a busy machine to start its threads meanwhile
    store.gather_windows(["en", "fr"] * 64, list(range(128)), S)
    assert fake.most_at_once > 16


def test_the_cache_stays_within_its_bound(local, url, fake):
    store = open_store(url, cache_bytes=10_000)
    store.remote.block_bytes = 1000
    np.testing.assert_array_equal(store.train("en"), local.train("en"))
    assert 9_000 < store.remote.cached_bytes <= 10_000


def test_after_the_last_attempt_the_error_names_file_range_and_reason(url, fake):
    store = open_store(url)
    fake.fails_every = 1
    with pytest.raises(
        MscaleError, match=r"bytes 0 to 65,536 of fake://bucket/store/fr/train.bin: 6 attempts failed"
    ):
        store.train("fr", 0, 10)
    with pytest.raises(MscaleError, match="cannot read fake://bucket/store/store.json: 6 attempts"):
        open_store(url)


def test_what_vanished_or_changed_is_named(url, fake):
    with pytest.raises(MscaleError, match=r"fake://bucket/other: no store\.json here"):
        open_store("fake://bucket/other")
    with pytest.raises(MscaleError, match="nosuch.*cannot open this kind of URL"):
        open_store("nosuch://bucket/other")
    store = open_store(url)
    fake().rm("/bucket/store/fr/valid.bin")
    fake().pipe("/bucket/store/sw/train.bin", b"short")
    with pytest.raises(MscaleError, match=r"(?s)store/fr/valid.bin is missing.*sw/train.bin has 5 bytes"):
        open_store(url)
    with pytest.raises(MscaleError, match="fr/valid.bin"):
        store.valid("fr")


def test_what_is_read_of_a_remote_store_is_checked(url, fake):
    """Small files by their checksums, token ids by the size of the vocabulary."""
    for name in ("en/valid_index.npy", "en/unigram.npy", "en/train.bin", "en/valid.bin"):
        data = bytearray(fake().cat_file(f"/bucket/store/{name}"))
        data[-1] ^= 4  # of a token: its high byte
        fake().pipe(f"/bucket/store/{name}", bytes(data))
    store = open_store(url)
    with pytest.raises(MscaleError, match="en/valid_index.npy has another checksum"):
        store.valid_index("en")
    with pytest.raises(MscaleError, match="en/unigram.npy has another checksum"):
        store.unigram("en")
    with pytest.raises(MscaleError, match="en/valid.bin holds the id 1,0.*expected less than 259"):
        store.valid("en")
    S = 100
    last = store.windows("en", S) - 1
    with pytest.raises(MscaleError, match="en/train.bin holds the id 1,0.*mscale store copy"):
        store.gather_windows(["en", "en"], [0, last], S)


@pytest.fixture
def written(fake, monkeypatch):
    """Names of the files that are written to the fake file system, in order."""
    names, opened = [], fake.open

    def open_and_note(self, path, mode="rb", **options):
        if "w" in mode:
            names.append(path.partition("again/")[2])
        return opened(self, path, mode, **options)

    monkeypatch.setattr(fake, "open", open_and_note)
    return names


def test_a_copy_of_a_store_is_whole_or_absent_and_continues(local, fake, written, monkeypatch, tmp_path):
    again = "fake://bucket/again"
    limited, opened = list(range(5)), fake.open

    def fail_after_five(self, path, mode="rb", **options):
        if "w" in mode and not (limited and limited.pop() is not None):
            raise PermissionError("over quota")
        return opened(self, path, mode, **options)

    with monkeypatch.context() as patch:
        patch.setattr(fake, "open", fail_after_five)
        with pytest.raises(MscaleError, match="cannot copy fake://bucket/again/.*over quota"):
            copy_store(local.path, again)
    with pytest.raises(MscaleError, match="no store.json here"):
        open_store(again)
    whole = set(written) - {".copying"}
    assert len(whole) == 4
    written.clear()
    assert copy_store(local.path, again).data_hash() == local.data_hash()
    assert written[-1] == MANIFEST and not whole & set(written)
    written.clear()
    copy_store(local.path, again)
    assert not written
    assert copy_store(again, tmp_path / "back").data_hash() == local.data_hash()
    assert not damaged_files(open_store(tmp_path / "back"))
    assert not (tmp_path / "back" / ".copying").exists()


def test_what_another_copy_left_is_not_taken_over_and_other_stores_stay(local, url, fake, tmp_path):
    other = tiny_store.write(tmp_path / "other", train_tokens=200_000, seed=1)
    with pytest.raises(MscaleError, match="holds another store"):
        copy_store(other.path, url)
    fake().rm(f"/bucket/store/{MANIFEST}")
    fake().pipe("/bucket/store/.copying", local.data_hash().encode())
    assert copy_store(other.path, url).data_hash() == other.data_hash()
    assert not damaged_files(copy_store(url, tmp_path / "back"))
    with pytest.raises(MscaleError, match="choose another folder"):
        copy_store(url, f"{url}/")


def test_a_copy_is_mended_and_gets_languages_that_the_source_gained(local, written, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    copy = Path("a copy é")
    copy_store(local.path, copy)
    kept = (copy / "fr" / "train.bin").stat()
    data = bytearray((copy / "en" / "train.bin").read_bytes())
    data[1001] ^= 1
    (copy / "en" / "train.bin").write_bytes(data)
    (copy / "sw" / "valid.bin").unlink()
    assert not damaged_files(copy_store(local.path, copy))
    grown = tiny_store.write(tmp_path / "grown", languages=("en", "fr", "sw", "yo"), train_tokens=200_000)
    assert copy_store(grown.path, copy).languages == grown.languages
    assert not damaged_files(open_store(copy))
    assert (copy / "fr" / "train.bin").stat() == kept
    with pytest.raises(MscaleError, match="holds another store"):
        copy_store(local.path, copy)
    with locked(copy / ".copying.lock", ""), pytest.raises(MscaleError, match="another copy is at work"):
        copy_store(grown.path, copy)


def test_a_damaged_file_is_found_while_it_is_copied(local, url, fake, tmp_path, capsys):
    data = bytearray(fake().cat_file("/bucket/store/en/train.bin"))
    data[1000] ^= 4
    fake().pipe("/bucket/store/en/train.bin", bytes(data))
    command = ["store", "copy", url, str(tmp_path / "s")]
    for _ in range(2):  # nor does a second call take the damaged copy for a good one
        assert exit_status(lambda: cli.main(command, standalone_mode=False)) == 1
        assert "en/train.bin has another checksum" in capsys.readouterr().err
    assert not (tmp_path / "s" / MANIFEST).exists()


def test_locations():
    assert location("gs://a/b/") == location(location("gs://a/b")) == Url("gs://a/b")
    from pathlib import Path

    assert location(Path("gs://a/b")) == Url("gs://a/b")
    assert location("a/b") == location(Path("a/b")) == Path("a/b")
    assert location("file:///a/b") == Path("/a/b")
    assert str(Url("gs://a") / "b" / "c") == "gs://a/b/c"


def test_home_and_file_urls_are_local(monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path))
    assert location("~/store") == tmp_path / "store"
    assert location("FILE:///a/b") == location("file:/a/b")
