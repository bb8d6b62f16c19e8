"""Users' own studies, from a gin file or a Python file."""

import pytest
import tiny_corpus

from mixtures.packing.pack import pack
from mscale.data.vocabulary import byte_vocabulary
from mscale.errors import MscaleError
from mscale.launch import SEARCH_PATHS
from sweeps import grid

EXAMPLE = SEARCH_PATHS[0] / "gin" / "studies" / "pairs.gin"


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    folder = tmp_path_factory.mktemp("grid")
    texts = {name: tiny_corpus.documents(60, 60, seed=seed) for seed, name in enumerate(("en", "fr"))}
    return pack(tiny_corpus.write(folder / "corpus", texts), folder / "store", byte_vocabulary(), processes=1)


def test_the_example_is_the_grid_that_it_says(store):
    study = grid.load(EXAMPLE, store)
    assert study.name == "pairs"
    found = {(one.tag, one.scale, one.mixture, one.init and one.init.mixture) for one in study.cells}
    scales = ("nano0", "nano1", "nano2")
    expected = {("alone", scale, name, None) for scale in scales for name in ("en", "fr")}
    expected |= {("together", scale, "en+fr", None) for scale in scales}
    expected |= {("continued", scale, name, "en+fr") for scale in scales for name in ("en", "fr")}
    assert found == expected and len(study.cells) == len(expected)
    # Whole steps of 4 × 128 tokens, nearest to what was asked for.
    assert {one.tokens for one in study.cells if one.tag == "alone"} == {(156 * 512, 312 * 512)}
    for one in study.cells:
        assert one.init is None or (one.init.scale, one.init.seed) == (one.scale, one.seed)
        assert one.init is None or one.init.tokens == (312 * 512, 625 * 512)


def test_python_gives_the_same_runs_as_gin(store, tmp_path):
    (tmp_path / "mine.py").write_text(
        """
from sweeps import grid

SCALES = ("nano0", "nano1", "nano2")

def study(store):
    alone = grid.cells(("en", "fr"), (8e4, 16e4), SCALES, tag="alone")
    together = grid.cells(("en+fr",), (16e4, 32e4), SCALES, tag="together")
    continued = grid.cells(("en", "fr"), (4e4,), start=together, tag="continued")
    return grid.study(store, "pairs", (alone, together, continued), sequence_length=128, batch_size=4)
"""
    )
    assert grid.load(tmp_path / "mine.py", store) == grid.load(EXAMPLE, store)


def test_cells_in_another_vocabulary_train_on_its_store(store, tmp_path):
    (tmp_path / "two.gin").write_text(
        f"""
study.name = "two"
study.cells = (@here/cells(), @there/cells())
study.stores = {{"other": "{store.path}"}}
cells.scales = ("nano0",)
cells.mixtures = ("en",)
cells.tokens = (8e4,)
there/cells.vocabulary = "other"
"""
    )
    study = grid.load(tmp_path / "two.gin", store)
    assert [(one.tag, one.vocabulary) for one in study.cells] == [("here", ""), ("there", "other")]
    (tmp_path / "two.gin").write_text((tmp_path / "two.gin").read_text().replace('"other":', '"others":'))
    with pytest.raises(MscaleError, match="'other' has no token store.*did you mean 'others'"):
        grid.load(tmp_path / "two.gin", store)


def test_one_files_bindings_do_not_reach_the_next(store, tmp_path):
    grid.load(EXAMPLE, store)
    (tmp_path / "bare.gin").write_text('study.name = "bare"\n')
    with pytest.raises(MscaleError, match=r"bare.gin: .*cells"):
        grid.load(tmp_path / "bare.gin", store)


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("x.gin", "", "says nothing of study"),
        ("x.gin", "study.names = 'a'\n", r"x\.gin.*names"),
        ("x.gin", "stud.name = 'a'\n", r"x\.gin.*no configurable 'stud'.*did you mean 'study'"),
        ("x.gin", "study.name = a\n", r"x\.gin.*not a gin value"),
        (
            "x.gin",
            CELL := "study.name='a'\nstudy.cells=(@b/cells(),)\nb/cells.tokens=(1e5,)\n",
            r"x\.gin.*mixtures",
        ),
        (
            "x.gin",
            CELL + "b/cells.mixtures='en'\nb/cells.scales=('nano0',)\n",
            r"cells 'b': mixtures is the text 'en'",
        ),
        ("x.gin", CELL + "b/cells.mixtures=('en',)\n", "cells 'b': give either scales"),
        (
            "x.gin",
            CELL + "b/cells.mixtures=('de',)\nb/cells.scales=('nano0',)\n",
            "b cell 'de' at scale 'nano0'.*de",
        ),
        ("x.gin", CELL + "b/cells.mixtures=('en',)\nb/cells.scales=('nano',)\n", "'nano'.*did you mean"),
        ("x.py", "", "defines no function study"),
        ("x.py", "def study(store): return 3", "returned a int; expected a Study"),
        ("x.txt", "", "a study is a .gin or .py file"),
        ("gone.gin", None, "no gin file"),
        ("gone.py", None, "no such study file"),
    ],
)
def test_bad_files_are_named(store, tmp_path, name, text, message):
    path = tmp_path / name
    if text is not None:
        path.write_text(text)
    with pytest.raises(MscaleError, match=f"(?s){message}"):
        grid.load(path, store)


def test_all_faults_of_a_study_are_listed_at_once(store, tmp_path):
    path = tmp_path / "my study.gin"
    text = """
study.name = "mine"
study.cells = (@alone/cells(), @pair/cells())
study.warmup_steps = 5
alone/cells.scales = ("nano0", "nano9")
alone/cells.mixtures = ("en", "zz")
alone/cells.tokens = (1e3, 1e5)
pair/cells.scales = ("nano0",)
pair/cells.mixtures = ("en+qq",)
pair/cells.tokens = (1e5,)
"""
    path.write_text(text)
    with pytest.raises(MscaleError) as error:
        grid.load(path, store)
    lines = str(error.value).splitlines()
    assert all(line.startswith(f"{path}: study mine, ") for line in lines) and len(lines) == 4
    for part in (
        "alone cell 'en' at scale 'nano0' and 3 more: budget of 1,024 tokens is 1 steps",
        "alone cell 'en' at scale 'nano9' and 1 more: unknown scale 'nano9'",
        "alone cell 'zz' at scale 'nano0' and 1 more: mixture 'zz'",
        "pair cell 'en+qq' at scale 'nano0': mixture 'en+qq'",
    ):
        assert any(part in line for line in lines), part
    path.write_text(
        text.replace("(1e3, 1e5)", "1e5").replace('("en+qq",)', "(3,)").replace('("nano0",)', "True")
    )
    with pytest.raises(MscaleError) as error:
        grid.load(path, store)
    assert str(error.value).splitlines() == [
        f"{path}: cells 'alone': tokens is 100000.0, expected several: (100000.0,)",
        f"{path}: cells 'pair': mixtures has 3, expected text in quotes",
        f"{path}: cells 'pair': scales is True, expected several: (True,)",
    ]


@pytest.mark.parametrize(
    ("binding", "message"),
    [
        ('study.batch_size = "4"', "study a: batch_size is '4', expected a whole number of at least 1"),
        ("study.warmup_steps = 0.1", "study a: warmup_steps is 0.1, expected a whole number of at least 0"),
        ("study.learning_rate = None", "study a: learning_rate is None, expected a number"),
        ("study.stores = 3", "study a: stores is 3, expected a dictionary"),
        ("b/cells.tokens = (1e999,)", "cells 'b': tokens has inf, expected numbers"),
        ("b/cells.seeds = 1", "cells 'b': seeds is 1, expected several: (1,)"),
        ("study.cells = (3,)", "study: 'int' object is not iterable"),
    ],
)
def test_a_value_of_another_type_is_one_line_without_gins_call_stack(store, tmp_path, binding, message):
    path = tmp_path / "x.gin"
    path.write_text(CELL + "b/cells.mixtures=('en',)\nb/cells.scales=('nano0',)\n" + binding + "\n")
    with pytest.raises(MscaleError) as error:
        grid.load(path, store)
    assert str(error.value).startswith(f"{path}: {message}") and len(str(error.value).splitlines()) == 1


def test_a_missing_value_is_named_as_gin_calls_it(store, tmp_path):
    path = tmp_path / "x.gin"
    path.write_text(CELL)
    with pytest.raises(MscaleError, match=r"x.gin: no value for mixtures; add b/cells.mixtures = ..."):
        grid.load(path, store)
