"""One version, and packages that are found by pattern."""

import re
import runpy
from pathlib import Path

import pytest

import mscale

CHECKOUT = Path(__file__).resolve().parents[1]
TOP_LEVEL = ("mscale", "mixtures", "sweeps", "analysis")


@pytest.fixture
def setup(monkeypatch, tmp_path) -> dict:
    """What setup.py passes to setuptools, whichever folder it runs in."""
    setuptools = pytest.importorskip("setuptools")
    found: dict = {}
    monkeypatch.setattr(setuptools, "setup", found.update)
    monkeypatch.chdir(tmp_path)
    runpy.run_path(str(CHECKOUT / "setup.py"))
    return found


def test_every_place_has_the_same_version(setup):
    assert setup["version"] == mscale.__version__
    citation = (CHECKOUT / "CITATION.cff").read_text(encoding="utf-8")
    assert re.findall(r"^version: (.+)$", citation, re.MULTILINE) == [mscale.__version__]


def test_the_changelog_has_this_version_or_unreleased_changes():
    headings = re.findall(
        r"^## \[(.+?)\]", (CHECKOUT / "CHANGELOG.md").read_text(encoding="utf-8"), re.MULTILINE
    )
    assert len(headings) == len(set(headings))
    assert headings[0] == "Unreleased" or headings[0] == mscale.__version__


def test_packages_are_the_folders_of_modules_and_gin(setup):
    """tests/, benchmarks/ and gin/ itself must not become top-level packages of an installation."""
    modules = {
        ".".join(path.parent.relative_to(CHECKOUT).parts)
        for name in TOP_LEVEL
        for path in (CHECKOUT / name).rglob("*.py")
    }
    gin = {
        ".".join(("mscale", *path.parent.relative_to(CHECKOUT).parts))
        for path in (CHECKOUT / "gin").rglob("*.gin")
    }
    assert set(setup["packages"]) == modules | gin | {"mscale.gin"}
    assert len(setup["packages"]) == len(set(setup["packages"]))
    assert setup["package_dir"] == {"mscale.gin": "gin"}


@pytest.mark.parametrize("name", TOP_LEVEL)
def test_type_checkers_may_read_the_annotations(name):
    assert (CHECKOUT / name / "py.typed").exists()


def test_citation_is_whole():
    yaml = pytest.importorskip("yaml")
    citation = yaml.safe_load((CHECKOUT / "CITATION.cff").read_text(encoding="utf-8"))
    assert {"cff-version", "message", "title", "authors", "license"} <= set(citation)
    assert any("2510.22037" in str(reference) for reference in citation["references"])


def test_the_packages_beside_mscale_are_its_attributes():
    assert mscale.analysis.fit and mscale.sweeps.__name__ == "sweeps"
    with pytest.raises(AttributeError):
        _ = mscale.analyses
