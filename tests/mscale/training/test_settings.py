"""Settings: every invalid value is an error before the first step."""

import pytest
import tiny_run
import tiny_store
from tiny_run import prepared, run

from mscale import scales, train
from mscale.errors import MscaleError


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    return tiny_run.store(tmp_path_factory)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"MIXTURE": "en+frr"}, "frr"),
        ({"EVAL_LANGUAGES": ("en", "sww")}, "did you mean 'sw'"),
        ({"SCALE": "nano9"}, "unknown scale"),
        ({"STEPS": 0}, "STEPS is 0"),
        ({"EVAL_STEPS": (25,)}, "EVAL_STEPS holds 25"),
        ({"EVAL_STEPS": "lin"}, "EVAL_STEPS is 'lin'"),
        ({"CHECKPOINT_STEPS": (25,)}, "CHECKPOINT_STEPS holds 25"),
        ({"WARMUP_STEPS": 30}, "do not fit"),
        ({"STOER": "x"}, "did you mean 'STORE'"),
        ({"STORE": "/nowhere"}, "no such folder"),
        ({"mesh__data": 3}, "does not fit 1 devices"),
        ({"model__drop": 0.1}, "did you mean 'dropout'"),
        ({"INIT_FROM": "a", "BRANCH_FROM": "b"}, "both given"),
        ({"INIT_FROM": "/nowhere"}, "holds no checkpoint"),
        ({"ACCUMULATE": 3}, "expected a divisor of BATCH_SIZE, 4"),
        ({"BATCH_SIZE": "by scale"}, "BATCH_SIZE is 'by scale'"),
        ({"BATCH_SIZE": -4}, "BATCH_SIZE is -4"),
        ({"SEQUENCE_LENGTH": 10_000}, "one window of 10,000 tokens: en (6,000), fr (6,000)"),
        ({"SEQUENCE_LENGTH": 0}, "SEQUENCE_LENGTH is 0"),
        ({"logical_axis_rules__overrides": {"mlps": None}}, "did you mean 'mlp'"),
    ],
)
def test_wrong_settings_are_errors_before_the_first_step(store, tmp_path, capsys, changes, message):
    assert run(store, tmp_path / "w", **changes) == 1
    error = capsys.readouterr().err
    assert message in error and error.startswith("error: ") and "In call to" not in error
    assert not (tmp_path / "w" / "metrics.jsonl").exists()


@pytest.mark.parametrize(
    ("name", "value", "expected"),
    [
        ("WARMUP_STEPS", 0.1, "a whole number of steps from 0 to 2,147,483,647; shares are not taken"),
        ("DECAY_STEPS", "10%", "a whole number of steps from 0"),
        (
            "STEPS",
            4e12,
            "a whole number of steps from 1 to 2,147,483,647; did you mean tokens? A step has BATCH",
        ),
        ("STEPS", 1e3, "did you mean 1000?"),
        ("STEPS", True, "a whole number of steps"),
        ("LEARNING_RATE", "1e-3", "a number from 0 to 3.4e+38; did you mean 0.001, without quotes?"),
        ("LEARNING_RATE", -1e-3, "a number from 0"),
        ("SEED", "0", "did you mean 0, without quotes?"),
        ("SEED", -1, "a whole number from 0 to 4,294,967,295"),
        ("EVAL_STEPS", 5, '"log" or a tuple, each of it a whole number'),
        ("CHECKPOINT_STEPS", 15, "did you mean (15,)? A tuple of one has a comma"),
        ("CHECKPOINT_STEPS", (0,), "each of it a whole number of steps from 1"),
        ("EVAL_LANGUAGES", "en+fr", "a tuple, each of it text or None; did you mean ('en', 'fr')?"),
        ("UNIQUE_TOKENS", 1280, "a dictionary, each value of it a whole number of at least 1 or None"),
        ("MIXTURE", None, "text"),
        ("PROGRESS", 0, "True or False; did you mean False?"),
        ("ACCUMULATE", None, "a whole number of at least 1; leave it out for its default"),
        ("model.dropout", 1.0, "a number of at least 0 and below 1"),
        ("optimizer.b1", "0.9", "did you mean 0.9, without quotes?"),
        ("mixture.temperature", -5, "a number above 0 or None"),
        ("mesh.fsdp", 2.0, "a whole number; did you mean 2?"),
    ],
)
def test_a_value_of_another_type_or_out_of_range_is_told_with_its_place(
    store, tmp_path, capsys, name, value, expected
):
    assert run(store, tmp_path / "w", **{name.replace(".", "__"): value}) == 1
    error = capsys.readouterr().err
    assert error.startswith(f"error: {name} is {value!r} (--gin.{name}={value!r}): expected "), error
    assert expected in error and error.count("\n") == 1


def test_all_wrong_values_are_told_at_once_with_the_lines_of_the_file(store, tmp_path, capsys):
    mine = tmp_path / "mine.gin"
    mine.write_text(
        "include 'gin/train/pretrain.gin'\nSTEPS = '10'\ntrain.eval_tokens = 0.5\nHALF = 0.5\nSEED = %HALF\n"
        "TAG = @optimizer\n"
    )
    assert train.main([f"--gin_file={mine}", *tiny_run.arguments(store, "w")[1:4], "--gin.WORKDIR='w'"]) == 1
    lines = capsys.readouterr().err.removeprefix("error: ").splitlines()
    places = {line.partition("):")[0] for line in lines}
    assert places == {
        f"STEPS is '10' ({mine}:2",
        f"train.eval_tokens is 0.5 ({mine}:3",
        f"HALF is 0.5 ({mine}:4",
        f"TAG is @optimizer ({mine}:6",
    }


def test_defaults_stand_in_pretrain_gin_alone(store, tmp_path, capsys):
    mine = tmp_path / "mine.gin"
    mine.write_text("train.scale = 'nano0'\n")
    assert train.main([f"--gin_file={mine}"]) == 1
    assert "include 'gin/train/pretrain.gin', which has the defaults" in capsys.readouterr().err


def test_a_damaged_store_is_refused_before_the_first_step(tmp_path):
    """Of the languages that the run reads: one bit of the text that it trains on, or is evaluated on."""
    store = tiny_store.write(tmp_path / "mein Korpus é")
    languages = {"MIXTURE": "en", "EVAL_LANGUAGES": ("fr",)}
    for name, part in (("sw", "train"), ("fr", "train"), ("en", "valid")):
        tiny_store.flip_a_bit(store.path / name / f"{part}.bin")
        prepared(store, tmp_path / "w", **languages)
    for path in (store.path / "fr" / "valid.bin", store.path / "en" / "train.bin"):
        tiny_store.flip_a_bit(path)
        with pytest.raises(MscaleError, match=f"1 difference.*{path} has another checksum"):
            prepared(store, tmp_path / "w", **languages)
        tiny_store.flip_a_bit(path)


def test_a_folder_holds_one_run(store, tmp_path, capsys):
    assert run(store, tmp_path / "r", STEPS=4, EVAL_STEPS=()) == 0
    assert run(store, tmp_path / "r", STEPS=4, EVAL_STEPS=(), SEED=7) == 1
    assert "holds a run with seed 0, this one has 7" in capsys.readouterr().err


def test_unwritable_workdir(store, tmp_path, capsys):
    (tmp_path / "file").write_text("")
    assert run(store, tmp_path / "file" / "run") == 1
    assert "file" in capsys.readouterr().err


def test_log_spaced_evaluations(store):
    steps = prepared(store, "w", STEPS=10_000, EVAL_STEPS="log", CHECKPOINT_STEPS=(9_000,)).eval_steps
    assert {10, 100, 1000, 9000, 10_000} <= steps
    assert 24 <= len(steps) <= 28
    assert prepared(store, "w", STEPS=5, EVAL_STEPS="log").eval_steps == {5}


def test_atlas_is_table_b2(store):
    values = {"SCALE": 0, "MIXTURE": "en", "STORE": str(store.path), "WORKDIR": "w"}
    overrides = [f"--gin.{name}={value!r}" for name, value in values.items()]
    parsed = train.launch.parse_arguments(["--gin_file=gin/train/atlas.gin", *overrides])
    with train.launch.configured(parsed):
        s = train.read_settings()
        assert (s.learning_rate, s.warmup_steps, s.sequence_length, s.steps) == (2e-4, 1000, 2048, 30_000)
        assert s.decay_steps * 10 == s.steps and s.batch_size == "by size"
    for parameters, batch in ((149e6, 256), (150e6, 512), (999e6, 512), (1e9, 1024), (2e9, 2048)):
        assert scales.atlas_batch_size(int(parameters)) == batch


def test_batch_size_by_size(store):
    assert prepared(store, "w", BATCH_SIZE="by size").batch_size == 256
