"""Studies: trunks and branches follow from cells, and each kind of wrong study gives its own error."""

import dataclasses
import json

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from studies import LANGUAGES, STEP, cell, make

from mscale.errors import MscaleError
from mscale.files import atomic_json, read_json_as
from sweeps.study import Cell, Study


def test_budgets_share_one_trunk():
    study = make(cell())
    trunk, *branches = study.runs
    assert trunk.kind == "trunk" and trunk.steps == 90 and trunk.bindings["DECAY_STEPS"] == 0
    assert trunk.bindings["CHECKPOINT_STEPS"] == (18, 45, 90)
    assert [(one.start_step, one.steps) for one in branches] == [(18, 20), (45, 50), (90, 100)]
    assert all(one.parent == trunk.id == one.group for one in branches)
    assert study.ends == (tuple(one.id for one in branches),)


@given(st.lists(st.integers(10, 500), min_size=2, max_size=6, unique=True))
def test_trunk_sharing_costs_what_the_design_says(tens):
    """The tokens trained are 0.9·D_k + 0.1·ΣD_i where every budget is a multiple of ten steps."""
    steps = [10 * count for count in tens]
    study = make(cell(steps=tuple(steps)))
    assert sum(run.tokens for run in study.runs) * 10 == STEP * (9 * max(steps) + sum(steps))


def test_one_budget_is_one_run():
    (run,) = make(cell(steps=(100,))).runs
    assert run.kind == "single" and run.parent is None and run.bindings["DECAY_STEPS"] == 10


def test_tags_share_the_same_training():
    study = make(cell(steps=(20, 50)), cell("pairs", steps=(50, 100), evaluate=("fr",)), cell(seed=1))
    assert len([run for run in study.runs if run.kind == "trunk"]) == 2
    assert study.ends[0][1] == study.ends[1][0]
    assert study.runs[0].bindings["EVAL_LANGUAGES"] == ("en", "fr")
    assert study.by_id[study.ends[1][1]].tag == "pairs"


def test_continuing_runs_depend_on_the_cooled_checkpoint():
    unimax = cell("unimax", mixture="uniform", steps=(50, 100))
    study = make(cell("continue", init=unimax), unimax)
    trunk = next(run for run in study.runs if run.tag == "continue" and run.kind == "trunk")
    parent = study.by_id[trunk.parent]
    assert parent.steps == trunk.parent_step == 100 and parent.kind == "branch" and trunk.start_step == 0
    assert [run.id for run in study.runs].index(parent.id) < [run.id for run in study.runs].index(trunk.id)
    assert {run.group for run in study.runs} == {parent.group}


def test_scales_may_have_their_own_bindings():
    study = make(cell(steps=(100,)), per_scale={"nano2": {"LEARNING_RATE": 0.5}})
    assert study.runs[0].bindings["LEARNING_RATE"] == 0.5


def test_studies_are_deterministic_and_survive_json(tmp_path):
    one, other = make(cell(), cell("x", mixture="en+fr")), make(cell(), cell("x", mixture="en+fr"))
    assert one == other
    assert one.by_id  # what is computed from the fields is not written
    atomic_json(tmp_path / "study.json", one)
    assert read_json_as(tmp_path / "study.json", Study, what="study") == one


def test_a_damaged_study_names_file_and_field(tmp_path):
    data = msgspec.to_builtins(make(cell()))
    del data["runs"][2]["steps"]
    (tmp_path / "study.json").write_text(json.dumps(data))
    with pytest.raises(MscaleError, match="study.json: .*required field `steps` - at `\\$.runs\\[2\\]`"):
        read_json_as(tmp_path / "study.json", Study, what="study")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"scale": "nano9"}, "unknown scale 'nano9'"),
        ({"mixture": "en+frr"}, "mono cell 'en\\+frr'.*frr is not there"),
        ({"mixture": "unimax"}, "UniMax needs the tokens"),
        ({"evaluate": ("xx",)}, "language 'xx' is to be evaluated"),
        ({"steps": (4,)}, "4 warmup steps and the decay"),
        ({"steps": ()}, "no token budgets"),
        ({"unique_tokens": (("fr", 64),)}, "unique_tokens for mixture 'en'"),
        ({"unique_tokens": (("en", 63),)}, "multiple of .*the sequence length 8"),
    ],
)
def test_wrong_cells_are_named(changes, message):
    with pytest.raises(MscaleError, match=message):
        make(cell(**changes))


def test_budget_of_part_of_a_step_is_refused():
    with pytest.raises(MscaleError, match="not whole steps of 32 tokens; use 640"):
        make(Cell("mono", "nano2", "en", (641,)))


def with_runs(study, runs):
    return dataclasses.replace(study, runs=tuple(runs))


def test_duplicate_ids_are_refused():
    study = make(cell())
    with pytest.raises(MscaleError, match="occurs twice"):
        with_runs(study, [*study.runs, study.runs[0]])


def test_missing_parents_are_refused():
    study = make(cell())
    with pytest.raises(MscaleError, match="not in the study"):
        with_runs(study, study.runs[1:])


def test_cycles_are_refused():
    study = make(cell(steps=(20,)), cell(mixture="fr", steps=(20,)))
    a, b = study.runs
    a, b = dataclasses.replace(a, parent=b.id), dataclasses.replace(b, parent=a.id)
    with pytest.raises(MscaleError, match=f"cycle: {a.id} → {b.id} → {a.id}"):
        with_runs(study, [a, b])


def test_branches_off_the_end_of_a_trunk_are_refused():
    study = make(cell())
    late = dataclasses.replace(study.runs[-1], parent_step=91)
    with pytest.raises(MscaleError, match="branches off .* at step 91, but that trunk has 90"):
        with_runs(study, [*study.runs[:-1], late])


def test_unimax_rates_are_fixed_for_the_study():
    cells = (cell("unimax", mixture="unimax"), cell("unimax", "nano1", "unimax", (100,)))
    study = make(*cells, unimax_budget=9_000)
    assert {run.bindings["UNIMAX_BUDGET"] for run in study.runs} == {9_000}
    assert study.mixtures["unimax"] == {name: pytest.approx(1 / 3) for name in LANGUAGES}
    assert not {run.id for run in study.runs} & {run.id for run in make(*cells, unimax_budget=8_000).runs}
