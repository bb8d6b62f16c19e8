"""A second process for the analysis: the same answers as without one, and its failures told."""

import operator
import os
import time

import pytest

from analysis import second_process
from analysis.study import analyse
from analysis.validation import planted_study
from mscale.errors import MscaleError


@pytest.fixture
def two(monkeypatch):
    monkeypatch.setattr(second_process, "cpu_count", lambda: 2)


def test_answers_are_the_same_with_one_process_and_with_two(monkeypatch, two):
    observations, exposure, _ = planted_study.study(seed=5, small=True)
    found = []
    for least in (0, 10**9):
        monkeypatch.setattr(analyse, "ENOUGH", least)
        found.append(analyse.analyse_tables(observations, exposure, splits=("R2_M",)))
    assert found[0] == found[1]
    assert all(found[0]["laws"][name]["fitted"] for name in ("atlas", "capacity")) and found[0]["heldout"]


def test_work_goes_on_beside_in_another_process(two):
    started = time.perf_counter()
    process, slept = (
        second_process.SecondProcess(True)(os.getpid),
        second_process.SecondProcess(True)(time.sleep, 0.5),
    )
    assert process() != os.getpid()
    waited = time.perf_counter()
    slept()
    assert time.perf_counter() - started >= 0.5 and time.perf_counter() - waited < 0.55


def test_without_a_second_core_or_enough_work_all_is_done_here(monkeypatch, two):
    assert second_process.SecondProcess(False)(os.getpid)() == os.getpid()
    monkeypatch.setattr(second_process, "cpu_count", lambda: 1)
    assert second_process.SecondProcess(True)(os.getpid)() == os.getpid()


def test_what_fails_there_is_raised_here(two):
    with pytest.raises(ZeroDivisionError):
        second_process.SecondProcess(True)(operator.truediv, 1, 0)()


def test_a_process_ended_from_outside_is_told_and_the_next_one_works(two):
    with pytest.raises(MscaleError, match="want of memory"):
        second_process.SecondProcess(True)(os._exit, 1)()
    assert second_process.SecondProcess(True)(operator.add, 1, 2)() == 3


def test_where_no_process_can_be_started_all_is_done_here(monkeypatch, two):
    class Full:
        def submit(self, *_):
            raise OSError(11, "Resource temporarily unavailable")

    def without_semaphores(**_):
        raise OSError(38, "Function not implemented")

    for started in (lambda **_: Full(), without_semaphores):
        monkeypatch.setattr(second_process, "get_reusable_executor", started)
        assert second_process.SecondProcess(True)(os.getpid)() == os.getpid()
