import time
from collections import Counter
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mscale.errors import MscaleError
from mscale.mixture import Mixture
from mscale.schedule import Schedule, _tree, from_phases, single

BOUND = 3 + 1e-3


def mixture(rates, windows=None, languages=None, name="m"):
    rates = np.asarray(rates, np.float64) / np.sum(rates)
    languages = languages or tuple(f"l{i}" for i in range(len(rates)))
    windows = windows if windows is not None else [1000] * len(rates)
    return Mixture(name, tuple(languages), tuple(rates.tolist()), tuple(windows), 8)


# Rates over ten orders of magnitude, as UniMax gives them.
weights = st.lists(st.floats(-10, 0).map(lambda x: 10**x), min_size=1, max_size=40)
seeds = st.integers(0, 2**32)


@st.composite
def schedules(draw, max_phases=3):
    phases, start, languages = [], 0, [f"l{i}" for i in range(8)]
    windows = {language: draw(st.integers(1, 40)) for language in languages}
    for index in range(draw(st.integers(1, max_phases))):
        chosen = draw(st.lists(st.sampled_from(languages), min_size=1, unique=True))
        rates = [draw(st.floats(1e-6, 1)) for _ in chosen]
        phases.append((start, mixture(rates, [windows[one] for one in chosen], chosen, f"m{index}")))
        start += draw(st.integers(1, 12))
    return from_phases(phases, draw(st.integers(1, 17)), draw(seeds))


def enumerate_windows(schedule, steps):
    """(language, window) of every row of the first steps, in order."""
    rows = []
    for step in range(steps):
        languages, windows = schedule.batch(step)
        rows += [
            (schedule.languages[language], window)
            for language, window in zip(languages.tolist(), windows.tolist(), strict=True)
        ]
    return rows


@given(schedules(), st.integers(0, 40), st.integers(1, 6), st.data())
def test_the_hosts_rows_are_the_global_batch(schedule, step, hosts, data):
    languages, windows = schedule.batch(step)
    assert languages.dtype == np.int32
    assert windows.dtype == np.int64
    assert len(languages) == schedule.batch_size
    cuts = sorted(
        data.draw(st.lists(st.integers(0, schedule.batch_size), min_size=hosts - 1, max_size=hosts - 1))
    )
    edges = [0, *cuts, schedule.batch_size]
    parts = [schedule.batch(step, slice(a, b)) for a, b in zip(edges, edges[1:], strict=False)]
    np.testing.assert_array_equal(np.concatenate([part[0] for part in parts]), languages)
    np.testing.assert_array_equal(np.concatenate([part[1] for part in parts]), windows)
    # Interleaved rows, and several steps at once, are the same too.
    np.testing.assert_array_equal(schedule.batch(step, slice(1, None, 3))[1], windows[1::3])
    both = schedule.batches(step, step + 2)
    np.testing.assert_array_equal(both[1][: len(windows)], windows)
    np.testing.assert_array_equal(both[0][len(windows) :], schedule.batch(step + 1)[0])


@given(schedules(), st.integers(0, 50))
def test_exposure_is_what_counting_gives(schedule, steps):
    rows = enumerate_windows(schedule, steps)
    seen = Counter(language for language, _ in rows)
    unique = Counter(language for language, _ in set(rows))
    assert schedule.windows_seen(steps) == {language: seen[language] for language in schedule.languages}
    assert schedule.exposure(steps, 8) == {
        language: (seen[language] * 8, unique[language] * 8) for language in schedule.languages
    }


@given(schedules(), st.integers(1, 50))
def test_every_window_of_a_language_once_per_epoch_also_across_phases(schedule, steps):
    visits: dict = {}
    for language, window in enumerate_windows(schedule, steps):
        visits.setdefault(language, []).append(window)
    for language, windows in visits.items():
        n = schedule.windows[language]
        for start in range(0, len(windows), n):
            epoch = windows[start : start + n]
            assert len(set(epoch)) == len(epoch)
            assert min(epoch) >= 0 and max(epoch) < n
            if len(epoch) == n:
                assert sorted(epoch) == list(range(n))


@given(weights, seeds, st.integers(1, 300))
def test_counts_stay_within_three_of_rate_times_rows_at_every_prefix(rates, seed, rows):
    schedule = single(mixture(rates), 1, seed)
    languages, _ = schedule.batches(0, rows)
    exact = np.array(schedule.phases[0][1].rates)
    counts = np.cumsum(languages[:, None] == np.arange(len(rates)), axis=0)
    assert np.abs(counts - np.arange(1, rows + 1)[:, None] * exact).max() <= BOUND


@given(weights, seeds, st.integers(0, 10**7), st.integers(1, 2**16))
def test_counts_stay_within_three_far_out(rates, seed, step, batch_size):
    schedule = single(mixture(rates), batch_size, seed)
    counts = schedule.windows_seen(step)
    assert sum(counts.values()) == step * batch_size
    for language, rate in zip(schedule.languages, schedule.phases[0][1].rates, strict=True):
        assert abs(counts[language] - Fraction(rate) * step * batch_size) <= BOUND


@given(weights, seeds)
def test_no_inner_node_holds_more_than_two_thirds_of_its_parent(rates, seed):
    # What the proof of the bound rests on, and with it the depth.
    p = np.array(rates) / np.sum(rates)
    tree = _tree(range(len(rates)), p, seed)
    for node in range(len(tree.share)):
        share = int(tree.share[node]) / 2**60
        right, left = tree.children[2 * node : 2 * node + 2]
        assert left < 0 or share <= 2 / 3 + 1e-9
        assert right < 0 or 1 - share <= 2 / 3 + 1e-9
        assert 0.25 <= int(tree.phase[node]) / 2**60 < 0.75
    assert tree.depth <= max(np.log(1 / p.min()) / np.log(1.5) + 2, 1)


@settings(deadline=None, max_examples=40)
@given(
    weights, seeds, st.integers(0, 10**7), st.sampled_from([1, 256, 10_000, 2**16]), st.integers(1, 10**10)
)
def test_far_steps_are_exact_whatever_the_sizes(rates, seed, step, batch_size, n):
    # Counts before and after a step differ by exactly the rows of the step: no rounding, no overflow.
    schedule = single(mixture(rates, [n] * len(rates)), batch_size, seed)
    languages, windows = schedule.batch(step)
    before, after = schedule.windows_seen(step), schedule.windows_seen(step + 1)
    found = np.bincount(languages, minlength=len(rates))
    assert {one: after[one] - before[one] for one in schedule.languages} == dict(
        zip(schedule.languages, found.tolist(), strict=True)
    )
    assert windows.min() >= 0
    assert windows.max() < n
    for language in np.unique(languages):  # without repeats inside an epoch, far out as at the start
        epoch = before[schedule.languages[language]] // n
        if after[schedule.languages[language]] // n == epoch:
            mine = windows[languages == language]
            assert len(np.unique(mine)) == len(mine)


def test_descent_equals_integers_of_any_size():
    rates = np.random.default_rng(0).dirichlet(np.full(60, 0.1)) + 1e-12
    schedule = single(mixture(rates), 7, seed=5)
    tree = schedule._trees[0]
    for position in [0, 1, 2**31, 2**40 + 12345, 2**42 - 8]:
        step, row = divmod(position, 7)
        node, k = 0, position
        while node >= 0:
            share, phase = int(tree.share[node]), int(tree.phase[node])
            before, after = (k * share + phase) >> 60, ((k + 1) * share + phase) >> 60
            left = after > before
            k, node = (before if left else k - before), int(tree.children[2 * node + left])
        assert schedule.batch(step)[0][row] == ~node


def test_a_languages_windows_come_in_the_same_order_whatever_it_is_mixed_with():
    alone = single(mixture([1], [50], ("en",)), 4, seed=3)
    mixed = single(mixture([1, 2, 5], [7, 50, 9], ("fr", "en", "sw")), 4, seed=3)

    def order(schedule):
        return [window for language, window in enumerate_windows(schedule, 60) if language == "en"][:100]

    assert len(order(mixed)) >= 60
    assert order(alone)[: len(order(mixed))] == order(mixed)
    other_seed = single(mixture([1], [50], ("en",)), 4, seed=4)
    assert order(alone)[:50] != order(other_seed)[:50]
    assert order(alone)[:50] != order(alone)[50:100]  # and each epoch in another


def test_a_change_of_weights_goes_on_where_the_windows_were():
    first, then = mixture([1, 1], [40, 40], ("en", "fr")), mixture([1], [40], ("fr",))
    changed = from_phases([(0, first), (5, then)], 4, seed=1)
    kept = single(first, 4, seed=1)
    assert enumerate_windows(changed, 5) == enumerate_windows(kept, 5)
    fr = [window for language, window in enumerate_windows(changed, 15) if language == "fr"]
    assert len(fr) == 10 + 40
    assert len(set(fr[:40])) == 40
    assert changed.windows_seen(15) == {"en": 10, "fr": 50}


def test_permutations_of_small_sizes_are_all_reached_about_equally():
    found = Counter(
        tuple(single(mixture([1], [3], ("en",)), 3, seed).batch(0)[1].tolist()) for seed in range(3000)
    )
    assert len(found) == 6
    assert max(found.values()) < 1.3 * min(found.values())


def test_windows_of_an_epoch_are_spread_like_a_random_order():
    _, windows = single(mixture([1], [10**6], ("en",)), 10_000).batch(0)
    assert len(np.unique(windows)) == 10_000
    histogram = np.histogram(windows, 50, (0, 10**6))[0]
    assert (abs(histogram - 200) < 5 * np.sqrt(200)).all()
    assert abs(np.corrcoef(windows[1:], windows[:-1])[0, 1]) < 0.05


def test_a_batch_of_502_languages_is_cheap_and_no_dearer_far_into_training():
    rates = np.random.default_rng(0).lognormal(0, 4, 502)
    schedule = single(mixture(rates, [10**9] * 502), 256)
    schedule.batch(0)

    def seconds(step):
        best = np.inf
        for _ in range(5):
            start = time.thread_time()
            for i in range(10):
                schedule.batch(step + i)
            best = min(best, (time.thread_time() - start) / 10)
        return best

    near, far = seconds(0), seconds(10**9)
    assert far < 3 * near
    assert near < 0.01  # 0.35 ms on an idle core


def test_the_same_on_every_machine():
    # Values written down once: a change breaks resuming and the comparison of runs.
    languages, windows = single(mixture([3, 1, 1e-3], [100, 20, 5]), 8, seed=17).batch(12345)
    assert languages.tolist() == [0, 0, 0, 1, 0, 0, 0, 1]
    assert windows.tolist() == [56, 37, 79, 10, 89, 14, 76, 5]


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda m: from_phases([(1, m)], 4), "start at steps"),
        (lambda m: from_phases([(0, m), (0, m)], 4), "ascending"),
        (lambda m: single(m, 0), "batch size is 0"),
        (lambda m: single(m, 4).batch(-1), "steps -1"),
        (lambda m: single(m, 4).batch(2**41), "rows in all"),
        (lambda m: single(m, 4).windows_seen(-1), "0 or above"),
        (lambda m: Schedule(((0, m),), {"l0": 3}, 4), "l1 has rate 0.5 but 0 windows"),
        (lambda m: from_phases([(0, m), (3, mixture([1], [5], ("l0",)))], 4), "l0 has 5 unique windows"),
    ],
)
def test_bad_schedules_are_named(call, message):
    with pytest.raises(MscaleError, match=message):
        call(mixture([1, 1]))
