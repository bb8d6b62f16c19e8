"""The bill of a study: exact counts, the saving of shared trunks, and the critical path."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from studies import STEP, cell, make

from mscale.errors import MscaleError
from sweeps import run_graph
from sweeps.cost import bill as planner
from sweeps.cost import plan_table


def test_bill_is_exact_and_tags_add_up():
    unimax = cell("unimax", mixture="uniform")
    study = make(cell(), cell("pairs", mixture="en+fr"), unimax, cell("continue", init=unimax))
    plan = planner.study_bill(study)
    assert plan.total.runs == len(study.runs) == 16 and plan.total.trunks == 4
    assert plan.total.tokens == sum(run.tokens for run in study.runs)
    assert plan.total.flops == sum(6 * run.params * run.tokens for run in study.runs)
    assert plan.total.naive_tokens == 4 * 170 * STEP and plan.total.cells == 12
    # 0.9·100 + 0.1·170 = 107 steps of 170, for every one of the four trunks
    assert plan.saving == pytest.approx(1 - 107 / 170)


def test_baselines_shared_by_tags_are_billed_once():
    plan = planner.study_bill(make(cell(), cell("again")))
    assert [(bill.tag, bill.cells, bill.runs) for bill in plan.tags] == [("mono", 3, 4), ("again", 3, 0)]


def test_critical_path_runs_through_the_checkpoint():
    unimax = cell("unimax", mixture="uniform")
    study = make(cell(steps=(120,)), unimax, cell("continue", init=unimax))
    plan = planner.study_bill(study)
    assert [study.by_id[run].kind for run in plan.critical_path] == ["trunk", "branch", "trunk", "branch"]
    assert plan.critical_flops == 6 * study.runs[0].params * STEP * 200


@settings(max_examples=30)
@given(st.integers(1, 4), st.lists(st.integers(20, 200), min_size=1, max_size=4, unique=True))
def test_wall_clock_is_within_its_bounds(slots, steps):
    unimax = cell("unimax", mixture="uniform", steps=tuple(steps))
    study = make(cell(steps=tuple(steps)), unimax, cell("continue", init=unimax))
    seconds = float(run_graph.makespan(study.runs, slots, lambda run: run.flops))
    total, critical = planner.study_bill(study).total.flops, planner.study_bill(study).critical_flops
    assert max(total / slots, critical) - 1 <= seconds <= total / slots + critical + 1


def test_schedule_starts_parents_first():
    unimax = cell("unimax", mixture="uniform")
    study = make(cell(), unimax, cell("continue", init=unimax))
    position = {run.id: index for index, run in enumerate(run_graph.longest_chain_first(study.runs))}
    assert len(position) == len(study.runs)
    assert all(position[run.parent] < position[run.id] for run in study.runs if run.parent)


def test_device_hours():
    assert planner.device_hours(3e19, "h200", 0.4) == pytest.approx(21.07, abs=0.01)
    with pytest.raises(MscaleError, match="unknown accelerator 'h20'; did|unknown accelerator 'h20'"):
        planner.device_hours(1, "h20")
    with pytest.raises(MscaleError, match="utilisation"):
        planner.device_hours(1, "h200", 40)


def test_table_shows_every_tag_and_the_saving():
    from rich.console import Console

    console = Console(width=140, record=True, file=open("/dev/null", "w"))  # noqa: SIM115
    console.print(plan_table.plan_table(make(cell(), cell("pairs", mixture="en+fr")), accelerator="h200"))
    text = console.export_text()
    assert "pairs" in text and "h200 hours" in text and "save 37%" in text
