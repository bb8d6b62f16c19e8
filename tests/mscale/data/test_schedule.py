"""The mixture schedule: random access, exact counts, the bound on errors, and permutations of windows."""

import time
from collections import Counter
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mscale.data import schedule_tree
from mscale.data.mixture import Mixture
from mscale.data.schedule import MAX_ERROR, Schedule, from_phases, single
from mscale.errors import MscaleError

ROUNDING = 1e-3


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
def test_counts_stay_within_the_bound_of_rate_times_rows_at_every_prefix(rates, seed, rows):
    schedule = single(mixture(rates), 1, seed)
    languages, _ = schedule.batches(0, rows)
    exact = np.array(schedule.phases[0][1].rates)
    counts = np.cumsum(languages[:, None] == np.arange(len(rates)), axis=0)
    assert np.abs(counts - np.arange(1, rows + 1)[:, None] * exact).max() <= schedule.bound + ROUNDING
    assert schedule.bound <= 6.375


@given(weights, seeds, st.integers(0, 10**7), st.integers(1, 2**16))
def test_counts_stay_within_the_bound_far_out(rates, seed, step, batch_size):
    schedule = single(mixture(rates), batch_size, seed)
    counts = schedule.windows_seen(step)
    assert sum(counts.values()) == step * batch_size
    for language, rate in zip(schedule.languages, schedule.phases[0][1].rates, strict=True):
        assert abs(counts[language] - Fraction(rate) * step * batch_size) <= schedule.bound + ROUNDING


@given(weights, seeds)
def test_depth_and_rounding_are_what_the_proof_of_the_bound_rests_on(rates, seed):
    parts = {i: max(round(w / sum(rates) * 2**60), 1) for i, w in enumerate(rates)}
    tree = schedule_tree.build_tree([parts], seed)
    assert ((tree.c >= 2**60 * 15 // 32) & (tree.c < 2**60 * 17 // 32)).all()
    depth = [0] * len(tree.c)
    for slot, below in enumerate(tree.child.tolist()):
        assert below <= 0 or below > slot // 2  # parents before children
        if below > 0:
            depth[below] = depth[slot // 2] + 1
        elif below < 0:
            assert depth[slot // 2] < 12
    assert sorted(~below for below in tree.child.tolist() if below < 0) == list(range(len(rates)))


def test_a_tree_that_follows_its_weights_is_within_17_8():
    for seed in range(5):
        rates = np.random.default_rng(seed).lognormal(0, 1, 420)
        assert single(mixture(rates), 1, seed).bound <= 17 / 8
    assert single(mixture([1] * 4096), 1).bound <= 17 / 8


def errors(schedule, steps):
    """|count − Σ rate × rows| after each row of the first steps, (rows, languages)."""
    ids = {language: i for i, language in enumerate(schedule.languages)}
    rates = np.zeros((len(schedule.phases), len(ids)))
    for phase, (_, one) in enumerate(schedule.phases):
        for language, rate in zip(one.languages, one.rates, strict=True):
            rates[phase, ids[language]] = rate
    starts = [start for start, _ in schedule.phases]
    phase = np.searchsorted(starts, np.arange(steps), side="right") - 1
    expected = np.cumsum(rates[np.repeat(phase, schedule.batch_size)], axis=0)
    languages, _ = schedule.batches(0, steps)
    return np.abs(np.cumsum(languages[:, None] == np.arange(len(ids)), axis=0) - expected)


@st.composite
def curricula(draw):
    """Up to 40 phases of one or more steps, each with its own random languages and weights."""
    count = draw(st.integers(1, 30))
    rng = np.random.default_rng(draw(seeds))
    phases, start = [], 0
    for _ in range(draw(st.integers(2, 40))):
        chosen = rng.choice(count, rng.integers(1, count + 1), replace=False)
        rates = rng.lognormal(0, draw(st.sampled_from([0, 1, 5])), len(chosen))
        phases.append((start, mixture(rates, languages=[f"l{i}" for i in chosen])))
        start += int(rng.integers(1, draw(st.sampled_from([2, 5, 50]))))
    return from_phases(phases, draw(st.sampled_from([1, 2, 8, 64])), draw(seeds)), start


@given(curricula())
def test_counts_stay_within_the_bound_however_often_the_weights_change(drawn):
    schedule, end = drawn
    worst = errors(schedule, end + 20).max()
    assert worst <= schedule.bound + ROUNDING
    assert schedule.bound <= MAX_ERROR


@given(curricula())
def test_rows_before_a_change_do_not_depend_on_it(drawn):
    schedule, end = drawn
    for kept in range(1, len(schedule.phases), 7):
        start = schedule.phases[kept][0]
        before = from_phases(schedule.phases[:kept], schedule.batch_size, schedule.seed)
        for ours, theirs in zip(before.batches(0, start), schedule.batches(0, start), strict=True):
            np.testing.assert_array_equal(ours, theirs)
        seen = schedule.windows_seen(start)
        assert before.windows_seen(start) == {language: seen[language] for language in before.languages}


def test_errors_of_hundreds_of_changes_are_compensated_not_added():
    c = np.random.default_rng(0).lognormal(0, 4, 420)
    anneal = [(3 * i, mixture(c ** (1 / (1 + i / 10)))) for i in range(100)]
    schedule = from_phases(anneal, 256)
    assert schedule.bound < 4
    assert errors(schedule, 60).max() <= schedule.bound + ROUNDING
    # Late in the last phase the errors of the earlier phases have been compensated.
    step = 10**6
    expected = np.zeros(420)
    for (start, one), end in zip(anneal, [*[start for start, _ in anneal[1:]], step], strict=True):
        expected += np.array(one.rates) * (end - start) * 256
    counts = np.array(list(schedule.windows_seen(step).values()))
    assert np.abs(counts - expected).max() <= single(anneal[-1][1], 256).bound + 1


def test_a_single_remaining_language_gets_all_rows_but_a_few_that_others_lack():
    c = np.random.default_rng(1).lognormal(0, 5, 420)
    schedule = from_phases([(0, mixture(c)), (100, mixture([1], languages=("l7",)))], 256)
    before, after, later = (schedule.windows_seen(step) for step in (100, 110, 200))
    others = sum(after[one] - before[one] for one in schedule.languages if one != "l7")
    assert others <= 4
    assert sum(later[one] - after[one] for one in schedule.languages if one != "l7") == 0
    assert schedule.bound < 4


def test_adversarial_weights_stay_within_the_bound():
    # The cup game: a schedule without knowledge of later weights can lack 1/2 + … + 1/n rows of a language.
    behind = [f"l{i}" for i in range(40)]
    phases, owed = [], dict.fromkeys(behind, 0.0)
    while len(behind) > 1:
        step = len(phases)
        phases.append((step, mixture([1] * len(behind), languages=behind)))
        for one in behind:
            owed[one] += 1 / len(behind)
        counts = from_phases(phases, 1).windows_seen(step + 1)
        behind = [one for one in behind if counts[one] == 0]
    schedule = from_phases(phases, 1)
    assert errors(schedule, len(phases)).max() <= schedule.bound + ROUNDING
    assert schedule.bound <= MAX_ERROR


def test_a_schedule_that_might_break_the_bound_is_refused(monkeypatch):
    phases = [(i, mixture([1], languages=(f"l{i % 20}",))) for i in range(40)]
    phases[0] = (0, mixture([1] * 20))
    bound = from_phases(phases, 1).bound
    monkeypatch.setattr("mscale.data.schedule.MAX_ERROR", bound - 0.01)
    with pytest.raises(MscaleError, match=rf"may be {bound:.1f} windows from its rate.*lengthen the phases"):
        from_phases(phases, 1)


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
    tree, (phase,), _ = schedule.plan
    for position in [0, 1, 2**31, 2**40 + 12345, 2**42 - 8]:
        step, row = divmod(position, 7)
        node, k = 0, position
        while node >= 0:
            share, c = int(phase.share[node]), int(tree.c[node])
            before, after = (k * share + c) >> 60, ((k + 1) * share + c) >> 60
            left = after > before
            k, node = (before if left else k - before), int(tree.child[2 * node + left])
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


def test_a_batch_of_502_languages_takes_milliseconds_at_any_step():
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
    # Recorded values: another order of data would break resuming and the comparison of runs.
    languages, windows = single(mixture([3, 1, 1e-3], [100, 20, 5]), 8, seed=17).batch(12345)
    assert languages.tolist() == [0, 0, 0, 1, 0, 0, 0, 1]
    assert windows.tolist() == [56, 37, 79, 18, 89, 14, 76, 10]


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
