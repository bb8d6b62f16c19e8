"""What an earlier version left on disk is still read: a store, a study, a checkpoint, fitted laws.

Numbers are compared with those that the earlier version recorded; tests/fixtures/made_by_890c71a/README.md says
how they were made. If a format is changed on purpose, expect here the one line that names the remedy.
"""

import json
import math
import re
import shutil
import tarfile
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

import analysis
from mscale import cli, observations, train
from mscale.data.store import open_store
from mscale.data.verification import damaged_files

MADE = Path(__file__).parent / "fixtures" / "made_by_890c71a"
TRUNK = "nano0-aa-ab-trunk-s0-d34ee675c6"
SHORT, LONG = "nano0-aa-ab-40-s0-e5cde555c9", "nano0-aa-ab-80-s0-8f4f3e044b"
NEAR = 1e-4  # relative: another processor rounds otherwise

pytestmark = pytest.mark.upgrades


@pytest.fixture(scope="module", autouse=True)
def compiled(tmp_path_factory):
    """Runs of one shape compile once."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MSCALE_COMPILE_CACHE", str(tmp_path_factory.mktemp("compiled")))
        yield


@pytest.fixture
def old(tmp_path, monkeypatch):
    """The files of the earlier version, moved to another folder, as the working folder."""
    with tarfile.open(MADE / "made.tar.xz") as archive:
        archive.extractall(tmp_path / "moved", filter="data")
    monkeypatch.chdir(tmp_path / "moved")
    monkeypatch.setenv("COLUMNS", "120")  # no column of a printed table is cut short
    return tmp_path / "moved"


def run(*arguments: object) -> int:
    with pytest.raises(SystemExit) as stopped:
        cli.main([str(argument) for argument in arguments])
    return int(stopped.value.code or 0)


def launch(gin_file: object, **macros: object) -> int:
    return train.main(
        [f"--gin_file={gin_file}", *(f"--gin.{name}={value!r}" for name, value in macros.items())]
    )


def rows(workdir):
    return observations.read_rows(workdir / "observations.jsonl")


def same(found, recorded):
    """Whether rows hold the same, numbers that were computed within rounding."""
    assert len(found) == len(recorded) > 0
    for one, other in zip(found, recorded, strict=True):
        assert one.keys() == other.keys()
        for name, value in other.items():
            close = isinstance(value, float) and math.isclose(one[name], value, rel_tol=NEAR)
            assert close or one[name] == value, (name, one[name], value)


def interrupt_trunk(root: Path) -> Path:
    """Makes of the trunk what a preemption after step 36, its only checkpoint, would have left."""
    folder = root / "runs" / TRUNK
    status = json.loads((folder / "status.json").read_text())
    (folder / "status.json").write_text(json.dumps(status | {"state": "preempted", "step": 36}))
    for name in ("observations.jsonl", "exposure.jsonl", "metrics.jsonl"):
        lines = (folder / name).read_text().splitlines(keepends=True)
        (folder / name).write_text("".join(line for line in lines if json.loads(line)["step"] <= 36))
    return folder


def tables(root: Path) -> list[pd.DataFrame]:
    return [pd.read_parquet(root / f"{name}.parquet") for name in ("observations", "exposure")]


def status_rows(root: Path, capsys) -> dict[str, list[str]]:
    """The cells of `mscale sweep status`, by the row's first."""
    capsys.readouterr()
    assert run("sweep", "status", root) == 0
    lines = (re.split("[│┃]", line) for line in capsys.readouterr().out.splitlines() if line[0] in "│┃")
    return {cells[1].strip(): [cell.strip() for cell in cells[2:-1]] for cells in lines}


# The store ------------------------------------------------------------------------------------------------


def test_a_store_opens_and_every_file_is_as_it_was_packed(old):
    store = open_store(old / "store")
    assert not damaged_files(store)
    assert store.languages == ("aa", "ab", "ba", "bb") and store.vocabulary["fingerprint"] == "bytes-259"
    assert sum(map(store.train_tokens, store.languages)) == 194_316
    assert sum(map(store.valid_tokens, store.languages)) == 48_072
    tokens, index = store.valid("ba"), store.valid_index("ba")
    start, length, size = index[10]
    text = bytes((tokens[start : start + length - 1] - 3).astype(np.uint8)).decode()
    assert text == "Биет ковон ролуреф. Фас би пибуур." and size == len(text.encode()) and len(index) == 26
    assert store.unigram("ba").sum() == store.train_tokens("ba")


def test_a_mixture_over_an_old_store_is_shown(old, capsys):
    assert run("mixture", "show", "aa+ab", "--store", "store", "--tokens", 2e4, "--csv", "mixture.csv") == 0
    shown = pd.read_csv(old / "mixture.csv").set_index("language")
    assert shown["rate"].to_dict() == {"aa": 0.5, "ab": 0.5}


# Runs and checkpoints ---------------------------------------------------------------------------------------


def test_a_run_resumes_from_an_old_checkpoint(old):
    """By its own config.gin, which names folders that are gone: only what was moved is given anew."""
    recorded = rows(old / "study/runs" / TRUNK)
    folder = interrupt_trunk(old / "study")
    measured = (folder / "metrics.jsonl").read_text()  # with the old speed: a new start would write another
    assert launch(folder / "config.gin", STORE="store", WORKDIR=str(folder)) == 0
    assert (folder / "metrics.jsonl").read_text().startswith(measured) and '"step": 36,' in measured
    assert sorted(path.name for path in (folder / "checkpoints").iterdir()) == ["step_36", "step_72"]
    same(rows(folder), recorded)


def test_a_branch_is_taken_off_an_old_trunk(old):
    folder = old / "study/runs" / SHORT
    recorded = rows(folder)
    again = folder.rename(old / "recorded")
    trunk = f"study/runs/{TRUNK}"
    assert launch(again / "config.gin", STORE="store", WORKDIR=str(folder), BRANCH_FROM=trunk) == 0
    same(rows(folder), recorded)
    assert {row["phase"] for row in recorded} == {"end"} and {row["step"] for row in recorded} == {40}


def test_a_run_starts_from_the_parameters_of_an_old_checkpoint(old):
    recorded = rows(old / "continued")
    (old / "continued").rename(old / "recorded")
    start = f"study/runs/{TRUNK}@36"
    assert launch("recorded/config.gin", STORE="store", WORKDIR="continued", INIT_FROM=start) == 0
    same(rows(old / "continued"), recorded)
    assert {(row["init"], row["init_tokens"], row["group"]) for row in recorded} == {(TRUNK, 36 * 256, TRUNK)}


def test_an_old_run_that_is_done_is_left_as_it_is(old, capsys):
    folder, start = old / "continued", f"study/runs/{TRUNK}@36"
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    again = {"STORE": "store", "WORKDIR": "continued", "INIT_FROM": start}
    assert launch(folder / "config.gin", **again) == 0
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before
    assert launch(folder / "config.gin", **again, SEED=1) == 1
    told = capsys.readouterr().err.strip()
    assert told.startswith("error:") and "holds a run with seed 0, this one has 1" in told


# Studies ----------------------------------------------------------------------------------------------------


def test_an_old_study_tells_its_state_without_its_store(old, capsys):
    shutil.rmtree("store")
    assert status_rows(old / "study", capsys) == {
        "tag": ["runs", "done", "tokens", "FLOPs"],
        "alone": ["2", "2", "100% of 2.05e+04", "100% of 1.77e+09"],
        "together": ["3", "3", "100% of 2.15e+04", "100% of 1.86e+09"],
        "continued": ["1", "1", "100% of 5.12e+03", "100% of 4.43e+08"],
        "total": ["6", "6", "100% of 4.71e+04", "100% of 4.07e+09"],
    }


def test_an_old_study_is_collected_to_the_same_tables(old, capsys):
    recorded = tables(old / "study")
    for name in ("observations", "exposure"):
        for suffix in ("csv", "parquet"):
            (old / "study" / f"{name}.{suffix}").unlink()
    shutil.rmtree("store")
    assert run("sweep", "collect", "study") == 0
    assert "49 rows of 6 runs" in capsys.readouterr().out
    for table, before in zip(tables(old / "study"), recorded, strict=True):
        pd.testing.assert_frame_equal(table, before, check_exact=True)
    assert json.loads((old / "study" / "missing.json").read_text())["runs"] == {}


def test_an_old_study_half_done_is_finished_to_the_same_tables(old, capsys):
    """Its store has moved. Ids hash the text of gin/train/pretrain.gin: a comment changed there refuses the study."""
    recorded = tables(old / "study")
    interrupt_trunk(old / "study")
    for run_id in (SHORT, LONG):
        shutil.rmtree(old / "study/runs" / run_id)
    (old / "store").rename(old / "elsewhere")
    table = status_rows(old / "study", capsys)
    assert dict(zip(table["tag"], table["total"], strict=True)) == {
        "runs": "6",
        "done": "3",
        "waiting": "2",
        "interrupted": "1",
        "tokens": "74% of 4.71e+04",
        "FLOPs": "74% of 4.07e+09",
    }
    kept = (old / "study/runs" / TRUNK / "metrics.jsonl").read_text()
    study = (MADE / "upgrade.gin", "--store", "elsewhere", "--root", "study", "--workers", 1)
    assert run("sweep", "run", *study) == 0
    assert (old / "study/runs" / TRUNK / "metrics.jsonl").read_text().startswith(kept)
    for table, before in zip(tables(old / "study"), recorded, strict=True):
        pd.testing.assert_frame_equal(table, before, check_exact=False, rtol=NEAR)
    assert json.loads((old / "study" / "runner.json").read_text())["sessions"][-1]["trained"] == 3


# Laws -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("command", [("report",), ("plan", "languages", "--target", "aka", "--results")])
def test_old_results_are_refused_with_the_remedy(old, capsys, command):
    """Format 3 held sentences; format 4 holds numbers, from which the page makes them."""
    assert run(*command, "laws.json") == 1
    told = capsys.readouterr().err
    assert "laws.json: not results of this mscale (format 3, expected 4): run `mscale fit` again" in told


def test_one_old_law_is_read_as_it_was_fitted_and_is_no_report(old, capsys):
    text = (old / "chinchilla.json").read_text(encoding="utf-8")
    recorded = json.loads(text)
    fit = analysis.from_json(text)
    assert fit.params.to_dict() == pytest.approx(recorded["params"], rel=1e-9)
    assert fit.objective == pytest.approx(recorded["objective"], rel=1e-9)
    assert fit.params["beta"] == pytest.approx(0.1855, abs=1e-4) and len(fit.problem.y) == 40
    for command in (("report",), ("plan", "languages", "--target", "aka", "--results")):
        assert run(*command, "chinchilla.json") == 1
        told = capsys.readouterr().err.strip()
        assert told.startswith("error:") and "\n" not in told and "run `mscale fit` again" in told
    assert not (old / "report.html").exists()
