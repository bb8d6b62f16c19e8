"""Batches: the windows of the schedule, on any number of hosts, with the thread ended and its errors raised."""

import threading
import time

import numpy as np
import pytest
import tiny_corpus

from mixtures.packing.pack import pack
from mscale.data import feed, schedule
from mscale.data.mixture import resolve
from mscale.data.store import Store, open_store
from mscale.data.vocabulary import byte_vocabulary
from mscale.errors import MscaleError

S = 32


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    folder = tmp_path_factory.mktemp("feed")
    texts = {"aa": tiny_corpus.documents(20, 9), "bb": tiny_corpus.documents(4, 30, seed=1)}
    return pack(tiny_corpus.write(folder / "corpus", texts), folder / "store", byte_vocabulary())


@pytest.fixture(scope="module")
def plan(store):
    return schedule.single(resolve("aa=0.7+bb=0.3", store, S), batch_size=6, seed=3)


@pytest.mark.parametrize("prefetch", [0, 1, 3])
def test_batches_are_the_scheduled_windows(store, plan, prefetch):
    found = list(feed.batches(store, plan, S, 4, 9, prefetch=prefetch))
    assert len(found) == 5
    for step, batch in enumerate(found, 4):
        assert batch.dtype == np.int32
        languages, windows = plan.batch(step)
        for row, language, window in zip(batch, languages, windows, strict=True):
            tokens = store.train(plan.languages[language])
            np.testing.assert_array_equal(row, tokens[window * S : (window + 1) * S])


def test_hosts_rows_and_resuming_give_the_same_batches(store, plan):
    whole = list(feed.batches(store, plan, S, 0, 10))
    low = list(feed.batches(store, plan, S, 0, 10, rows=slice(0, 2)))
    high = list(feed.batches(store, plan, S, 0, 10, rows=slice(2, 6)))
    for batch, first, second in zip(whole, low, high, strict=True):
        np.testing.assert_array_equal(batch, np.concatenate([first, second]))
    for batch, again in zip(whole[7:], feed.batches(store, plan, S, 7, 10), strict=True):
        np.testing.assert_array_equal(batch, again)
    assert next(feed.batches(store, plan, S, 0, rows=slice(6, 6))).shape == (0, S)


def test_an_epoch_reads_all_text_once(store):
    plan = schedule.single(resolve("aa", store, S), batch_size=1)
    n = plan.windows["aa"]
    rows = np.concatenate(list(feed.batches(store, plan, S, 0, n)))
    expected = store.train("aa")[: n * S].reshape(n, S)
    np.testing.assert_array_equal(
        np.sort(rows.view(f"V{4 * S}").ravel()), np.sort(expected.astype(np.int32).view(f"V{4 * S}").ravel())
    )


def test_cold_windows_are_asked_for_together_and_warm_ones_not(store, plan, monkeypatch):
    asked = []
    monkeypatch.setattr(Store, "read_ahead", lambda _, languages, windows, S: asked.append(len(windows)))
    monkeypatch.setattr(feed, "ROWS_PER_LOOKUP", 12)
    monkeypatch.setattr(feed, "COLD_ROW_SECONDS", 1e9)
    list(feed.batches(store, plan, S, 0, 10, prefetch=0))
    assert asked == [12]
    monkeypatch.setattr(feed, "COLD_ROW_SECONDS", 0.0)
    list(feed.batches(store, plan, S, 0, 10, prefetch=0))
    assert asked == [12] * 6


def test_reading_ahead_changes_no_window(store):
    store.read_ahead(["aa", "bb"], [1, 0], S)
    np.testing.assert_array_equal(
        store.gather_windows(["aa", "bb"], [1, 0], S), [store.train("aa", S, 2 * S), store.train("bb", 0, S)]
    )


def test_endless_feeding_stops_with_its_iterator(store, plan):
    before = threading.active_count()
    batches = feed.batches(store, plan, S, 10**6)
    for _ in range(50):
        next(batches)
    batches.close()
    deadline = time.monotonic() + 5
    while threading.active_count() > before and time.monotonic() < deadline:
        time.sleep(0.01)
    assert threading.active_count() == before


def test_a_schedule_of_another_sequence_length_is_refused(store, plan):
    with pytest.raises(MscaleError, match="resolve the mixture from this store and sequence length"):
        next(feed.batches(store, plan, 2 * S, 0))


@pytest.mark.parametrize("prefetch", [0, 2])
def test_what_fails_in_the_thread_is_raised_here(store, plan, prefetch, tmp_path):
    import shutil

    gone = open_store(shutil.copytree(store.path, tmp_path / "gone"))
    shutil.rmtree(gone.path / "bb")
    with pytest.raises(MscaleError, match="bb/train.bin: cannot be read"):
        list(feed.batches(gone, plan, S, 0, 5, prefetch=prefetch))
