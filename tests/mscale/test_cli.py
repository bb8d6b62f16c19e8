"""The command line: user errors are one message and exit status 1, and leave no incomplete output."""

import gzip
import importlib
import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import click
import pytest

from mscale import cli
from mscale.errors import MscaleError

ROOT = Path(__file__).resolve().parents[2]


def run(*arguments: object) -> int:
    with pytest.raises(SystemExit) as stopped:
        cli.main([str(argument) for argument in arguments])
    return int(stopped.value.code or 0)


def write_corpus(root: Path, language: str, data: bytes) -> Path:
    path = root / "data" / language / f"{language}_clean_0000.jsonl.gz"
    path.parent.mkdir(parents=True)
    path.write_bytes(data)
    return path


def lines(count: int, text: str = "some words of text ") -> bytes:
    return b"".join(json.dumps({"text": f"{i} " + text * 20}).encode() + b"\n" for i in range(count))


def test_help_names_every_stage_in_order(capsys):
    assert run("--help") == 0
    listed = capsys.readouterr().out.partition("Commands:")[2]
    stages = ["corpus", "pack", "train", "sweep", "fit", "report", "demo"]
    places = [listed.index(f"\n  {stage}") for stage in stages]
    assert places == sorted(places)


def test_the_table_lists_every_command_with_its_line_of_help():
    """A command that a package defines is in the table, or in a group that is; the line of help is not empty."""
    listed = set()
    for dotted, text in cli.COMMANDS.values():
        module, _, attribute = dotted.partition(":")
        command = getattr(importlib.import_module(module), attribute)
        assert isinstance(command, click.Command) and text.strip() and command.help
        listed.add(command)
        listed.update(getattr(command, "commands", {}).values())
    for name in ("mscale", "mixtures", "sweeps", "analysis"):
        for path in (ROOT / name).rglob("*.py"):
            if path.stem != "commands" and path.parent.name != "commands" and path.stem != "doctor":
                continue
            module_name = ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")
            for value in vars(importlib.import_module(module_name)).values():
                assert not isinstance(value, click.Command) or value in listed, (module_name, value.name)


def test_python_m_mscale_is_the_command_line():
    done = subprocess.run([sys.executable, "-m", "mscale", "train", "--help"], capture_output=True, text=True)
    assert done.returncode == 0 and "--gin_file" in done.stdout


def test_pack_with_its_flags_then_show_a_mixture(tmp_path, capsys):
    for language, count in (("aa", 300), ("bb", 200), ("cc", 1)):
        write_corpus(tmp_path / "corpus", language, gzip.compress(lines(count)))
    store = tmp_path / "store"
    pack = ("pack", tmp_path / "corpus", store, "--processes", 1, "--sequence-length", 1000)
    assert run(*pack) == 1
    assert "cc (" in capsys.readouterr().err
    assert run(*pack, "--drop-short") == 0
    assert "2 languages" in capsys.readouterr().out
    table = tmp_path / "mixture.csv"
    assert (
        run("mixture", "show", "uniform", "--store", store, "--tokens", 1e6, "--limit", 1, "--csv", table)
        == 0
    )
    assert "1 more" in capsys.readouterr().out
    rows = table.read_text().splitlines()
    assert rows[0].startswith("language,script,unique_tokens,rate") and len(rows) == 3


def test_a_study_of_ones_own_is_planned_and_a_table_of_ones_own_imported(tmp_path, capsys):
    for language in ("en", "fr"):
        write_corpus(tmp_path / "corpus", language, gzip.compress(lines(2000)))
    store = tmp_path / "store"
    assert run("pack", tmp_path / "corpus", store, "--processes", 1) == 0
    assert run("sweep", "plan", "gin/studies/pairs.gin", "--store", store) == 0
    assert "continued" in capsys.readouterr().out
    assert run("sweep", "plan", "gin/studies/pairs.gin") == 2
    assert "--store is missing" in capsys.readouterr().err
    assert run("sweep", "plan", "atlsa") == 2
    assert "did you mean 'atlas'" in capsys.readouterr().err

    (tmp_path / "runs.csv").write_text("name,step,toks,language,loss\na,10,5120,en,3.5\na,20,10240,en,3.2\n")
    same = {
        "params": 1000,
        "params_nonembedding": 900,
        "mixture": "en",
        "vocabulary": "spm",
        "seed": 0,
        "lr": 0,
    }
    same |= {"phase": "end", "target_unique": 10**6, "eval_tokens": 100, "target_tokens": 5120}
    constants = [part for key, value in same.items() for part in ("--constant", f"{key}={value}")]
    arguments = ("sweep", "import", tmp_path / "runs.csv", tmp_path / "out.csv", "--column", "run=name")
    assert run(*arguments, *constants) == 1
    assert "nothing says tokens" in capsys.readouterr().err
    assert run(*arguments, *constants, "--column", "tokens=toks") == 0
    assert len((tmp_path / "out.csv").read_text().splitlines()) == 3


GOOD = gzip.compress(lines(300))


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (GOOD[: len(GOOD) // 2], ["truncated", "xx_clean_0000.jsonl.gz"]),
        (gzip.compress(lines(3) + b"{not json}\n"), ["xx_clean_0000.jsonl.gz:4", "JSON"]),
        (gzip.compress(lines(2) + b'{"text": "\xff\xfe"}\n'), ["xx_clean_0000.jsonl.gz:3", "UTF-8"]),
        (gzip.compress(lines(1) + b'{"body": "x"}\n'), ["xx_clean_0000.jsonl.gz:2", "text"]),
        (b"", ["xx_clean_0000.jsonl.gz", "empty"]),
    ],
    ids=["truncated", "not-json", "not-utf8", "no-text", "empty"],
)
def test_bad_text_is_named_by_file_and_line_and_leaves_no_store(tmp_path, capsys, data, words):
    write_corpus(tmp_path / "corpus", "xx", data)
    assert run("pack", tmp_path / "corpus", tmp_path / "store", "--processes", 1) == 1
    message = capsys.readouterr().err
    assert "error:" in message and "Traceback" not in message
    assert all(word in message for word in words), message
    assert not (tmp_path / "store" / "store.json").exists()


@pytest.mark.parametrize("command", [("pack", "{}", "store"), ("demo", "--workdir", "w", "--corpus", "{}")])
def test_a_missing_or_empty_corpus_is_one_message(tmp_path, capsys, monkeypatch, command):
    monkeypatch.chdir(tmp_path)
    for name in ("absent", "empty"):
        (tmp_path / "empty").mkdir(exist_ok=True)
        assert run(*(part.format(name) for part in command)) == 1
        message = capsys.readouterr().err
        assert name in message and "Traceback" not in message
    assert not list(tmp_path.glob("**/store.json"))


def test_a_language_that_is_not_there_is_named_with_the_nearest(tmp_path, capsys):
    write_corpus(tmp_path / "corpus", "fr", GOOD)
    assert run("pack", tmp_path / "corpus", tmp_path / "store", "--languages", "fra,de") == 1
    message = capsys.readouterr().err
    assert "fra" in message and "de" in message and "'fr'" in message


def test_an_unwritable_workdir_is_one_message(tmp_path, capsys):
    (tmp_path / "file").write_text("a file where a folder is wanted")
    assert run("demo", "--workdir", tmp_path / "file") == 1
    assert "cannot write" in capsys.readouterr().err


def test_a_full_disk_is_one_message(tmp_path, capsys):
    """A limit on the size of files makes the same writes fail as a full disk would."""
    script = (
        "import resource, signal, sys; signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, 50_000))\n"
        "from mscale.cli import main; main(sys.argv[1:])"
    )
    out = subprocess.run(
        [sys.executable, "-c", script, "corpus", str(tmp_path / "corpus")], capture_output=True, text=True
    )
    assert out.returncode == 1 and "cannot write" in out.stderr and "Traceback" not in out.stderr
    assert not (tmp_path / "corpus" / "truth.json").exists()
    assert not list((tmp_path / "corpus").glob("**/*.gz"))


def test_another_demo_in_the_same_folder_is_refused(tmp_path, capsys):
    (tmp_path / "demo.json").write_text(json.dumps({"corpus": None, "languages": None, "seed": 0}))
    assert run("demo", "--workdir", tmp_path, "--seed", 1) == 1
    assert "seed 0" in capsys.readouterr().err


def test_a_finished_demo_says_so_at_once(tmp_path, capsys):
    record = {"corpus": None, "languages": None, "seed": 0, "finished": "211 s"}
    (tmp_path / "demo.json").write_text(json.dumps(record))
    (tmp_path / "report.html").write_text("<html>")
    assert run("demo", "--workdir", tmp_path) == 0
    assert "already done" in capsys.readouterr().out


def test_a_missing_extra_is_named(monkeypatch, capsys):
    def broken():
        raise ModuleNotFoundError("No module named 'altair'", name="altair")

    assert cli.exit_status(broken) == 1
    assert "mscale[analysis]" in capsys.readouterr().err
    monkeypatch.undo()
    with pytest.raises(ModuleNotFoundError):
        cli.exit_status(lambda: (_ for _ in ()).throw(ModuleNotFoundError("x", name="mscale.nothing")))


def test_errors_of_users_have_no_traceback(capsys):
    def broken():
        raise MscaleError("runs.csv: no column 'loss'")

    assert cli.exit_status(broken) == 1
    assert capsys.readouterr().err == "error: runs.csv: no column 'loss'\n"


@pytest.mark.slow
def test_a_demo_killed_three_times_ends_with_the_same_observations(tmp_path):
    """Takes minutes: runs the demo twice, once killed with SIGKILL at three random moments and resumed."""
    command = [sys.executable, "-m", "mscale.cli", "demo", "--workdir"]
    began = time.monotonic()
    subprocess.run([*command, str(tmp_path / "whole")], check=True)
    seconds = time.monotonic() - began
    rng = random.Random(int(os.environ.get("KILL_SEED", "0")))
    for _ in range(3):
        process = subprocess.Popen([*command, str(tmp_path / "killed")])
        time.sleep(rng.uniform(0.05, 0.3) * seconds)
        process.send_signal(signal.SIGKILL)
        assert process.wait() != 0
    subprocess.run([*command, str(tmp_path / "killed")], check=True)
    for name in ("observations.csv", "exposure.csv", "observations.parquet"):
        whole, killed = (tmp_path / part / "study" / name for part in ("whole", "killed"))
        assert whole.read_bytes() == killed.read_bytes(), name


@pytest.mark.parametrize(
    "arguments",
    [
        ("sweep", "run", "demo", "--store", "s", "--root", "s3://bucket/study"),
        ("demo", "--workdir", "gs://bucket/demo"),
        ("demo", "--workdir", "S3://bucket/demo"),
    ],
)
def test_a_url_where_something_is_written_is_refused(tmp_path, monkeypatch, arguments, capsys):
    monkeypatch.chdir(tmp_path)
    assert run(*arguments) == 2
    assert "is a URL" in capsys.readouterr().err and not list(tmp_path.iterdir())


def test_a_file_url_is_the_local_path_and_a_squeezed_url_is_one(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    corpus = ("--bytes", 2000, "--languages", 2, "--families", 1)
    assert run("corpus", f"file://{tmp_path}/made", *corpus) == 0
    assert (tmp_path / "made" / "truth.json").exists()
    assert run("corpus", "gs:/bucket/made", *corpus) == 2
    assert "is a URL" in capsys.readouterr().err and [path.name for path in tmp_path.iterdir()] == ["made"]


def test_a_file_where_a_study_is_expected_is_one_line(tmp_path, capsys):
    (tmp_path / "x.csv").write_text("a")
    assert run("sweep", "status", tmp_path / "x.csv") == 1
    assert "cannot be read" in capsys.readouterr().err
