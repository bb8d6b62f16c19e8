"""`mscale plan` on the command line."""

import json

import made_results
import planted_mixtures
import pytest

from analysis.study.results import write_results
from mscale.cli import main


@pytest.fixture(scope="module")
def laws(tmp_path_factory):
    path = tmp_path_factory.mktemp("results") / "laws.json"
    write_results(planted_mixtures.results(0), path)
    return str(path)


def run(*arguments):
    with pytest.raises(SystemExit) as stop:
        main([*map(str, arguments)])
    return stop.value.code


def test_the_mixture_from_saved_results(laws, capsys):
    options = ("--targets", "a,b", "--weights", "2,1", "--flops", 2e13, "--unique", "a=5e6,b=2e6")
    assert run("plan", "mixture", *options, "--results", laws) == 0
    output = " ".join(capsys.readouterr().out.split())
    assert "Train " in output and "UniMax" in output and "From: this study" in output
    for wrong, code, message in (
        (("--weights", "2,x"), 2, "expected numbers"),
        (("--unique", "a:5"), 2, "expected language=number"),
        (("--unique", "zz=5e6"), 1, "the laws have no such language"),
    ):
        assert run("plan", "mixture", "--targets", "a,b", "--flops", 2e13, "--results", laws, *wrong) == code
        assert message in " ".join(capsys.readouterr().err.split())


def test_the_next_runs_and_their_price(laws, capsys):
    assert run("plan", "next", "--decision", "languages", "--targets", "a", "--results", laws) == 0
    output = " ".join(capsys.readouterr().out.split())
    assert "standard error" in output and "FLOPs" in output
    assert run("plan", "next", "--decision", "pairs", "--results", laws) == 1
    assert "no 50/50 pair" in capsys.readouterr().err
    assert run("plan", "next", "--decision", "languages", "--target", "a") == 1
    assert "whose noise and laws they need; fit your own runs: --results" in capsys.readouterr().err


def test_the_published_figures_do_not_say_how_much(laws, capsys):
    assert run("plan", "languages", "--target", "es", "--prior", "atlas", "--flops", 1e20) == 1
    output = capsys.readouterr()
    assert "interval not published" in output.out and "needs a fitted ATLAS law" in output.err
    assert "Train es with pt" in output.out
    assert (
        run("plan", "expand", "--from", 8, "--to", 16, "--params", 1e5, "--tokens", 1e9, "--results", laws)
        == 1
    )
    assert "one K" in capsys.readouterr().err
    assert run("plan", "start", "--target", "es", "--params", 2e9, "--tokens", 1e11) == 2
    assert "--prior atlas" in capsys.readouterr().err


def test_what_the_published_figures_cannot_support_names_the_fit_that_is_missing(capsys):
    assert run("plan", "mixture", "--targets", "en,fr", "--flops", 1e20, "--prior", "atlas") == 1
    assert "fitted ATLAS laws, of which the paper prints no parameters" in capsys.readouterr().err
    assert run("plan", "next", "--decision", "start", "--target", "en", "--prior", "atlas") == 1
    assert "plan next: the next runs follow from your own" in capsys.readouterr().err


def test_files_that_are_no_results_are_said_to_be_so(tmp_path, capsys):
    (tmp_path / "bad.json").write_text('{"a": 1}')
    (tmp_path / "list.json").write_text("[]")
    (tmp_path / "runs.csv").write_text("run,loss\n")
    write_results(made_results.results(study={"title": 3}), tmp_path / "kind.json")
    for name, message in (
        ("bad.json", "not results of this mscale (format None, expected"),
        ("list.json", "not results of this mscale"),
        ("runs.csv", "expected the laws.json that `mscale fit` writes, found a .csv file"),
        ("none.json", "no such results of mscale fit"),
        (".", "laws.json: no such results"),
        (
            "kind.json",
            "not what `mscale fit` writes (Expected `str`, got `int` - at `$.study.title`): run it again",
        ),
    ):
        assert run("plan", "languages", "--target", "en", "--results", tmp_path / name) == 1
        assert message in capsys.readouterr().err


def test_an_answer_as_json(capsys):
    assert run("plan", "languages", "--target", "ca", "--prior", "atlas", "--json") == 0
    answer = json.loads(capsys.readouterr().out)
    assert len(answer["rows"]) == 37 and answer["rows"][0]["source"] == "es" and "es" in answer["text"]
    assert run("plan", "languages", "--target", "ca", "--prior", "atlas") == 0
    output = capsys.readouterr().out
    assert "and 17 more rows" in output and " low" not in output and "-0 " not in output
    assert run("plan", "start", "--target", "qq", "--params", 2e9, "--tokens", 1e11, "--prior", "atlas") == 0
    assert "'qq' is no code of a language known here" in capsys.readouterr().out
