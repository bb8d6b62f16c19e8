"""`mscale doctor` reports the installation and the machine, and works if JAX does not."""

import json
import re
import runpy
import subprocess
import sys
from importlib import metadata
from pathlib import Path

import pytest
from packaging.requirements import Requirement

from mscale import cli, doctor

CHECKOUT = Path(__file__).resolve().parents[2]
BROKEN = {
    "raises": ('raise ImportError("no accelerator library of that version")', "no accelerator library"),
    "crashes": ("import os, signal; os.kill(os.getpid(), signal.SIGSEGV)", "signal 11"),
    "hangs": ("import time; time.sleep(600)", "no answer within"),
    "prints": ('print("warning"); raise SystemExit(0)', "printed"),
}


def declared(monkeypatch) -> dict:
    """The arguments that setup.py passes to setuptools."""
    setuptools = pytest.importorskip("setuptools")
    found: dict = {}
    monkeypatch.setattr(setuptools, "setup", found.update)
    runpy.run_path(str(CHECKOUT / "setup.py"))
    return found


def run(*arguments: str) -> int:
    with pytest.raises(SystemExit) as stopped:
        cli.main(["doctor", *arguments])
    return int(stopped.value.code or 0)


@pytest.fixture
def break_jax(tmp_path, monkeypatch):
    """Puts a broken package named jax before the real one on the path of started processes."""

    def put(code: str) -> None:
        (tmp_path / "jax.py").write_text(code)
        monkeypatch.setenv("PYTHONPATH", str(tmp_path))

    return put


@pytest.fixture
def without_jax(monkeypatch):
    answer = doctor.JaxStatus("0.0", "cpu", {"cpu": 1}, 1, 0.0, "")
    monkeypatch.setattr(doctor, "probe_jax", lambda seconds: answer)


def test_names_every_installed_distribution_that_setup_py_asks_for(capsys, monkeypatch, without_jax):
    setup = declared(monkeypatch)
    lines = setup["install_requires"] + [line for extra in setup["extras_require"].values() for line in extra]
    names = {re.match(r"[\w.-]+", line)[0] for line in lines}  # type: ignore[index]
    assert run("--json") == 0
    report = json.loads(capsys.readouterr().out)
    assert run() == 0
    text = capsys.readouterr().out
    for name in names:
        try:
            version = metadata.version(name)
        except metadata.PackageNotFoundError:
            assert name not in report["versions"]
            continue
        assert report["versions"][name] == version
        assert re.search(rf"^  {re.escape(name)} +{re.escape(version)}$", text, re.MULTILINE)
    assert set(report["extras"]) == set(setup["extras_require"])


def test_the_devices_are_those_that_jax_finds():
    import jax

    found = doctor.probe_jax()
    assert not found.error and found.version == jax.__version__ and found.backend == "cpu"
    assert sum(found.devices.values()) == len(jax.devices())


@pytest.mark.parametrize(("code", "words"), BROKEN.values(), ids=BROKEN)
@pytest.mark.parametrize("as_json", [False, True], ids=["text", "json"])
def test_a_jax_that_does_not_work_is_said_to_and_is_no_failure(capsys, break_jax, code, words, as_json):
    break_jax(code)
    limit = ["--timeout", "1"] if "sleep" in code else []
    assert run(*limit, *(["--json"] if as_json else [])) == 0
    out = capsys.readouterr().out
    assert "jax does not work" in out and words in out
    if as_json:
        report = json.loads(out)
        assert words in report["jax"]["error"] and report["jax"]["devices"] == {}


def test_what_is_missing_or_too_old_is_a_problem(monkeypatch, without_jax):
    real = metadata.version
    changed = {"optax": "0.1.99", "scipy": None}

    def version(name: str) -> str:
        found = changed.get(name, real(name))
        if found is None:
            raise metadata.PackageNotFoundError(name)
        return found

    monkeypatch.setattr(metadata, "version", version)
    report = doctor.examine_installation()
    assert "scipy" in report.extras["analysis"] and "scipy" not in report.versions
    assert [problem for problem in report.problems if "optax 0.1.99" in problem]
    changed["optax"] = None  # type: ignore[assignment]
    assert any("optax is not installed" in problem for problem in doctor.examine_installation().problems)


def test_an_extra_of_a_requirement_counts(monkeypatch):
    """An extra of mscale that requires jax[tpu] is complete only with the requirements of that extra of jax."""
    listed = {"jax": {"tpu": [Requirement("libtpu-absent")]}}
    monkeypatch.setattr(doctor, "requirements", lambda name: listed[name])
    wanted = {"tpu": [Requirement("jax[tpu]>=0.10")], "other": [Requirement("jax>=0.10")]}
    assert doctor.missing_by_extra(wanted) == {"other": [], "tpu": ["libtpu-absent"]}


def test_variables_that_matter_are_shown_and_secrets_are_not(monkeypatch):
    monkeypatch.setenv("HOME", "/home/someone")
    shown = doctor.relevant_variables(
        {
            "JAX_PLATFORMS": "cpu",
            "XLA_FLAGS": "--xla_dump_to=/home/someone/dump",
            "MSCALE_COMPILE_CACHE": "s3://user:hunter2@bucket/cache",
            "MSCALE_API_KEY": "hunter2",
            "TPU_TOKEN": "hunter2",
            "AWS_SECRET_ACCESS_KEY": "hunter2",
            "EDITOR": "vi",
        }
    )
    assert shown["JAX_PLATFORMS"] == "cpu" and shown["XLA_FLAGS"] == "--xla_dump_to=~/dump"
    assert set(shown) == {"JAX_PLATFORMS", "XLA_FLAGS", "MSCALE_COMPILE_CACHE", "MSCALE_API_KEY", "TPU_TOKEN"}
    assert "hunter2" not in str(shown)


def test_another_package_of_the_same_name_is_a_problem(tmp_path, monkeypatch, without_jax):
    (tmp_path / "analysis").mkdir()
    (tmp_path / "analysis" / "__init__.py").touch()
    monkeypatch.delitem(sys.modules, "analysis", raising=False)
    monkeypatch.syspath_prepend(str(tmp_path))
    assert any("'analysis' is taken from" in problem for problem in doctor.examine_installation().problems)


def test_it_imports_nothing_large():
    """The command works if one of these packages is broken; JAX is imported in another process."""
    code = (
        "import sys; from mscale import doctor; doctor.examine_installation(0.01); "
        "print(*{'jax', 'pandas', 'tensorflow', 'numpy', 'gin'} & set(sys.modules))"
    )
    ran = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, cwd=CHECKOUT, check=True
    )
    assert ran.stdout.strip() == ""
