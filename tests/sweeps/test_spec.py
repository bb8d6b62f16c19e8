"""Run specs: the id hashes all that determines a result and nothing else."""

import json
from dataclasses import replace

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mscale.errors import MscaleError
from mscale.files import atomic_json
from sweeps import spec as specs

BINDINGS = {"STEPS": 10, "BATCH_SIZE": 4, "SEQUENCE_LENGTH": 8, "SCALE": "nano2"}


def make(
    *,
    study="s",
    tag="mono",
    kind="single",
    bindings=BINDINGS,
    store="/a/store",
    data="text",
    gin_files=(),
    parent=None,
    parent_step=None,
):
    return specs.make_run(
        specs.RunLabel(study, tag, "nano2-en"),
        kind,
        bindings,
        specs.RunInputs(store, data, gin_files),
        params=1000,
        start=specs.StartingPoint(parent, parent_step) if parent else None,
    )


def test_counts_are_exact():
    run = make()
    assert run.tokens == 320 and run.flops == 6 * 1000 * 320 and run.group == run.id


def test_branch_counts_only_its_own_steps():
    trunk = make(kind="trunk")
    bindings = {"STEPS": 12, "BATCH_SIZE": 4, "SEQUENCE_LENGTH": 8}
    branch = make(kind="branch", parent=trunk, parent_step=9, bindings=bindings)
    assert branch.tokens == 3 * 32 and branch.group == trunk.id
    continued = make(parent=branch, parent_step=12)
    assert continued.tokens == 320 and continued.group == trunk.id


def test_filing_and_folders_do_not_enter_the_id():
    assert make().id == make(study="other", tag="pairs", store="/b/store").id


@pytest.mark.parametrize(
    "changes",
    [
        {"bindings": {"STEPS": 11, "BATCH_SIZE": 4, "SEQUENCE_LENGTH": 8, "SCALE": "nano2"}},
        {"data": "other text"},
        {"parent": make(kind="trunk"), "parent_step": 3},
    ],
)
def test_what_determines_the_result_enters_the_id(changes):
    assert make(**changes).id != make().id


def test_branching_and_continuing_one_checkpoint_differ():
    trunk = make(kind="trunk")
    assert (
        make(kind="branch", parent=trunk, parent_step=3).id
        != make(kind="single", parent=trunk, parent_step=3).id
    )


PRETRAIN = "gin/train/pretrain.gin"


def launched(kind="single", text="", **changes):
    """The id of a run with a gin file of the user's own, `text` after what it includes."""
    bindings = {
        "STEPS": 10,
        "BATCH_SIZE": 4,
        "SEQUENCE_LENGTH": 8,
        "SCALE": "nano2",
        "MIXTURE": "en",
    } | changes
    file = launched.folder / "mine.gin"
    file.write_text(f"include '{PRETRAIN}'\n{text}\n")
    return make(kind=kind, bindings=bindings, gin_files=(str(file),)).id


@pytest.fixture(autouse=True)
def own_gin_file(tmp_path_factory):
    launched.folder = tmp_path_factory.mktemp("gin")


def test_a_comment_a_moved_file_or_another_way_to_write_it_leave_an_id_alone(tmp_path):
    assert launched(text="# a comment\n") == launched()
    assert launched(text="model.dropout = 1e-1") == launched(**{"model.dropout": 0.1})
    assert launched(text="mscale.model.dropout = 0.1") == launched(text="MINE = 0.1\nmodel.dropout = %MINE")
    before = launched()
    launched.folder = tmp_path
    assert launched() == before == launched(LOG_EVERY=7, PROGRESS=False, TENSORBOARD=True)


@pytest.mark.parametrize(
    "text",
    ["LEARNING_RATE = 0.004", "model.dropout = 0.1", "optimizer.b2 = 0.99", "train.optimizer = @mine.lion"],
)
def test_what_a_gin_file_says_of_the_result_changes_an_id(text):
    assert launched(text=text) != launched()


def test_the_length_of_a_trunk_leaves_its_id_alone():
    longer = dict(
        STEPS=900, EVAL_STEPS=(5, 900), CHECKPOINT_STEPS=(100, 900), LOG_EVERY=3, CHECKPOINT_EVERY=50
    )
    assert launched("trunk", **longer) == launched("trunk")
    assert launched("trunk", LEARNING_RATE=0.004) != launched("trunk")
    assert launched("single", **longer) != launched("single")
    cosine = {"optimizer.schedule": "cosine"}  # its decay begins after the warmup, so its length counts
    assert launched("trunk", **cosine, **longer) != launched("trunk", **cosine)


def test_a_gin_file_that_includes_itself_is_named(tmp_path):
    inner, outer = tmp_path / "inner.gin", tmp_path / "outer.gin"
    outer.write_text(f"include '{inner}'\n")
    inner.write_text(f"include '{outer}'\n")
    with pytest.raises(MscaleError, match="includes itself"):
        make(gin_files=(str(outer),))


def test_unknown_gin_file_is_named(tmp_path):
    with pytest.raises(MscaleError, match="nowhere.gin"):
        make(gin_files=("gin/nowhere.gin",))


def test_argv_places_the_run_and_its_parent():
    trunk = make(kind="trunk")
    branch = make(kind="branch", parent=trunk, parent_step=3)
    arguments = specs.argv(branch, "/root/study")
    assert f'--gin.BRANCH_FROM="/root/study/runs/{trunk.id}"' in arguments
    assert f'--gin.WORKDIR="/root/study/runs/{branch.id}"' in arguments
    continued = specs.argv(make(parent=trunk, parent_step=3), "/root/study")
    assert f'--gin.INIT_FROM="/root/study/runs/{trunk.id}@3"' in continued
    assert not any("BRANCH_FROM" in argument for argument in continued)


def test_placement_cannot_be_bound_by_a_study():
    with pytest.raises(MscaleError, match="WORKDIR"):
        make(bindings={"STEPS": 1, "BATCH_SIZE": 1, "SEQUENCE_LENGTH": 1, "WORKDIR": "/x"})


@pytest.mark.parametrize("value", [float("nan"), float("inf"), object()])
def test_values_that_gin_cannot_hold_are_refused(value):
    with pytest.raises(MscaleError):
        specs.canonical_value({"A": [value]})


values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=6,
)


@given(values)
def test_specs_survive_json(tmp_path_factory, value):
    run = make(bindings={"STEPS": 1, "BATCH_SIZE": 1, "SEQUENCE_LENGTH": 1, "A": value})
    folder = tmp_path_factory.getbasetemp() / "spec"
    atomic_json(folder / "spec.json", run)
    assert specs.read_spec(folder) == run


@given(values)
def test_gin_literals_are_python_literals(value):
    import ast

    value = specs.canonical_value(value)
    assert ast.literal_eval(specs.gin_literal(value)) == value


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"steps": "many"}, "spec.json: this run spec .* Expected `int`, got `str` - at `\\$.steps`; delete"),
        ({"bindings": {"A": [float("nan")]}}, "spec.json: .* binding is nan"),
    ],
)
def test_damaged_spec_names_file_and_field(tmp_path, change, message):
    (tmp_path / "spec.json").write_text(json.dumps(msgspec.to_builtins(make()) | change))
    with pytest.raises(MscaleError, match=message):
        specs.read_spec(tmp_path)


@given(st.text(max_size=80))
def test_slugs_fit_a_pod_name(text):
    assert (
        set(specs.slug(text)) <= set("abcdefghijklmnopqrstuvwxyz0123456789.-") and len(specs.slug(text)) <= 40
    )


@pytest.mark.parametrize("run_id", ["../../x", "/tmp/x", "", ".", "..", "a/b", "a\nb", "a b", "-x"])
def test_a_run_id_is_the_name_of_a_folder(tmp_path, run_id):
    with pytest.raises(MscaleError, match="expected letters, digits"):
        specs.workdir(tmp_path, run_id)
    with pytest.raises(MscaleError, match="expected letters, digits"):
        replace(make(), id=run_id)
