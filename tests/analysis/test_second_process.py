"""The second process gives the same results as one process, and reports its failures."""

import operator
import os
import time

import pytest

from analysis import second_process
from analysis.second_process import SecondProcess
from analysis.study import analyse
from analysis.validation import planted_study
from mscale.errors import MscaleError


@pytest.fixture
def two_cores(monkeypatch):
    monkeypatch.setattr(second_process, "cpu_count", lambda: 2)


def test_answers_are_the_same_with_one_process_and_with_two(monkeypatch, two_cores):
    observations, exposure, _ = planted_study.make_study(seed=5, small=True)
    found = []
    for min_rows in (0, 10**9):
        monkeypatch.setattr(analyse, "SECOND_PROCESS_MIN_ROWS", min_rows)
        found.append(analyse.analyse_tables(observations, exposure, splits=("R2_M",)))
    assert found[0] == found[1]
    assert all(found[0].laws[name].fitted for name in ("atlas", "capacity")) and found[0].heldout


def test_work_runs_in_another_process_in_the_meantime(two_cores):
    started = time.perf_counter()
    process, slept = (
        SecondProcess(True).submit(os.getpid),
        SecondProcess(True).submit(time.sleep, 0.5),
    )
    assert process() != os.getpid()
    waited = time.perf_counter()
    slept()
    assert time.perf_counter() - started >= 0.5 and time.perf_counter() - waited < 0.55


def test_without_a_second_core_or_enough_work_it_runs_in_this_process(monkeypatch, two_cores):
    assert SecondProcess(False).submit(os.getpid)() == os.getpid()
    monkeypatch.setattr(second_process, "cpu_count", lambda: 1)
    assert SecondProcess(True).submit(os.getpid)() == os.getpid()


def test_an_exception_of_the_worker_is_raised_here(two_cores):
    with pytest.raises(ZeroDivisionError):
        SecondProcess(True).submit(operator.truediv, 1, 0)()


def test_a_killed_worker_is_reported_and_the_next_one_works(two_cores):
    with pytest.raises(MscaleError, match="want of memory"):
        SecondProcess(True).submit(os._exit, 1)()
    assert SecondProcess(True).submit(operator.add, 1, 2)() == 3


def test_where_no_process_can_be_started_it_runs_in_this_process(monkeypatch, two_cores):
    class Full:
        def submit(self, *_):
            raise OSError(11, "Resource temporarily unavailable")

    def without_semaphores(**_):
        raise OSError(38, "Function not implemented")

    for started in (lambda **_: Full(), without_semaphores):
        monkeypatch.setattr(second_process, "get_reusable_executor", started)
        assert SecondProcess(True).submit(os.getpid)() == os.getpid()
