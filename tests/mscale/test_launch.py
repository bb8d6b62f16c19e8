"""Launch: gin files and overrides; every wrong name is an error."""

import gin
import pytest

from mscale import gin_files, launch
from mscale.errors import MscaleError


@gin.configurable("launch_test_model")
def model(width=1, depth=2):
    return width, depth


@gin.configurable("launch_test_unused")
def unused(size=1):
    return size


FILE = """
WIDTH = %gin.REQUIRED
DEPTH = 3
SPARE = 1
launch_test_model.width = %WIDTH
launch_test_model.depth = %DEPTH
launch_test_unused.size = %SPARE
"""


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "a.gin"
    path.write_text(FILE)
    return path


def run(file, *arguments):
    parsed = launch.parse_arguments([f"--gin_file={file}", *arguments])
    with launch.configured(parsed):
        result = model()
        launch.check_overrides_used(parsed)
        return result, launch.operative_config()


def test_overrides_win_and_the_operative_config_repeats_the_run(file, tmp_path):
    result, operative = run(file, "--gin.WIDTH=5", "--gin.launch_test_model.depth=7")
    assert result == (5, 7)
    again = tmp_path / "config.gin"
    again.write_text(operative)
    assert run(again)[0] == (5, 7)


def test_nothing_of_a_run_is_left_for_the_next(file):
    run(file, "--gin.WIDTH=5", "--gin.DEPTH=9")
    assert model() == (1, 2)
    assert run(file, "--gin.WIDTH=6")[0] == (6, 3)


def test_text_is_quoted_as_in_t5x(file):
    assert run(file, "--gin.WIDTH='a b'")[0][0] == "a b"
    with pytest.raises(MscaleError, match="quotes"):
        run(file, "--gin.WIDTH=/some/folder")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--gin.WIDHT=5"], r"unknown name; did you mean 'WIDTH'\?"),
        (["--gin.WIDTH=5", "--gin.launch_test_modle.depth=5"], "did you mean 'launch_test_model'"),
        (["--gin.WIDTH=5", "--gin.launch_test_model.dept=5"], "did you mean 'depth'"),
        (["--gin.WIDTH=5", "--gin.SPARE=5"], "SPARE=5 has no effect"),
        (["--gin.WIDTH=5", "--gin.launch_test_unused.size=5"], "has no effect"),
        (["--gin.WIDTH=5", "--gin.other/launch_test_model.width=5"], "has no effect"),
        ([], "no value for WIDTH"),
        (["--gin.WIDTH"], "needs a value"),
        (["--gin_fil=x"], "did you mean '--gin_file'"),
        (["--gin.WIDTH=%WIDE"], "no value for WIDE"),
        (["--gin.WIDTH=@nothing"], "nothing"),
    ],
)
def test_wrong_names_are_errors_with_a_suggestion(file, arguments, message):
    with pytest.raises(MscaleError, match=message):
        run(file, *arguments)


def test_unused_bindings_in_files_are_fine(file):
    assert run(file, "--gin.WIDTH=5")[0] == (5, 3)


def write(path, text):
    path.write_text(text)
    return path


def test_a_macro_of_a_file_that_nothing_reads_is_an_error(file, tmp_path):
    mine = write(tmp_path / "mine.gin", f"include '{file}'\n\nWIDTH = 5\nDETPH = 7\n")
    with pytest.raises(
        MscaleError, match=r"mine\.gin:4: nothing reads the macro DETPH; did you mean 'DEPTH'\?"
    ):
        run(mine)
    # The file's own line takes DEPTH's place; another file or an override may.
    text = f"include '{file}'\nWIDTH = 5\nDEPTH = 8\nlaunch_test_model.depth = 7\n"
    with pytest.raises(MscaleError, match=r"mine\.gin:3: nothing reads the macro DEPTH"):
        run(write(mine, text))
    assert run(write(mine, text.replace("DEPTH = 8\n", "")))[0] == (5, 7)
    assert run(file, "--gin.WIDTH=5", "--gin.launch_test_model.depth=7")[0] == (5, 7)


def test_a_macro_that_is_defined_by_itself_is_an_error(file):
    parsed = launch.parse_arguments([f"--gin_file={file}", "--gin.WIDTH=%DEPTH", "--gin.DEPTH=%WIDTH"])
    with pytest.raises(MscaleError, match="the macro WIDTH is defined by itself"), launch.configured(parsed):
        launch.bound_parameters()


def test_a_binding_above_an_include_that_overrides_it_is_an_error(file, tmp_path):
    mine = write(tmp_path / "mine.gin", f"WIDTH = 5\nDEPTH = 7\ninclude '{file}'\n")
    with pytest.raises(
        MscaleError, match=r"mine\.gin:1: WIDTH has no effect: .*a\.gin:2, .* put the include first"
    ):
        run(mine)
    assert run(write(mine, f"include '{file}'\nWIDTH = 5\n"))[0] == (5, 3)


def test_help_lists_macros_and_parameters_with_their_comments(tmp_path):
    shown = launch.help_text(["--help"])
    assert "\n  SEQUENCE_LENGTH = 128             tokens of a sequence\n" in shown
    assert "\n  SCALE = (required) " in shown and "train.scale" not in shown
    text = "include 'gin/train/pretrain.gin'\n# Mine.\nSEED = 3\nmodel.dropout = 0.1  # as ATLAS\n"
    mine = write(tmp_path / "mine.gin", text)
    shown = launch.help_text(["--help", f"--gin_file={mine}", "--gin.STEPS=5"])
    assert (
        "\n  SEED = 3                          of the initialisation" in shown and "\n  STEPS = 5 " in shown
    )
    assert shown.endswith("# Mine.\n  model.dropout = 0.1               as ATLAS")


def test_unknown_configurable_in_a_file_names_the_file(tmp_path):
    path = tmp_path / "b.gin"
    path.write_text("launch_test_modle.width = 3\n")
    with pytest.raises(MscaleError, match=r"b\.gin.*did you mean 'launch_test_model'\?") as info:
        run(path)
    assert "line 1" in str(info.value)


def test_missing_file_says_where_it_looked(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(MscaleError, match="gin/train/pretrian.gin.*did you mean 'gin/train/pretrain.gin'"):
        run("gin/train/pretrian.gin")
    assert gin_files.find_gin_file("gin/train/pretrain.gin").is_file()


def test_gin_adds_its_stack_to_messages_and_it_is_taken_off_again():
    @gin.configurable("launch_test_fails")
    def fails():
        raise MscaleError("store.json: broken\nsecond line")

    with pytest.raises(MscaleError) as info:
        fails()
    assert "In call to configurable" in str(info.value)
    assert launch.plain_message(info.value) == "store.json: broken\nsecond line"


def test_an_included_file_of_the_project_is_found_without_a_word(tmp_path, monkeypatch, caplog):
    import mscale.training.settings  # noqa: F401  # the configurables that the file names

    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine.gin").write_text(
        "include 'gin/train/pretrain.gin'\nSCALE = 1\nMIXTURE = 'en'\nSTEPS = 5\n"
    )
    given = launch.parse_arguments(["--gin_file=mine.gin", "--gin.STORE='s'", "--gin.WORKDIR='w'"])
    with launch.configured(given):
        assert not caplog.records
