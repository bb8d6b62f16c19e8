"""The coverage benchmark measures nominal coverage, resumes from its file, and marks cells outside the tolerance."""

import importlib.util
import json
import sys
from pathlib import Path

import numpy as np
import pytest

SCRIPT = Path(__file__).resolve().parents[3] / "benchmarks" / "coverage.py"


@pytest.fixture(scope="module")
def coverage():
    spec = importlib.util.spec_from_file_location("coverage_benchmark", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


def test_coverage_is_nominal_at_both_levels_and_too_low_shares_are_marked(coverage, monkeypatch):
    case = next(case for case in coverage.CASES if case.law == "transfer")
    found = coverage.cell(case, 16, "trunk", 150, seed=3)
    shares = {name: q["coverage"] for name, q in found["quantities"].items()}
    assert {"k at means", "alpha", "beta", "k", "interpolated", "extrapolated 3×"} == set(shares)
    assert all(0.8 < share < 0.98 for share in shares.values())
    assert all(0.9 < q["width_over_cramer_rao"] < 1.3 for q in found["quantities"].values())
    monkeypatch.setattr(coverage, "LEVEL", 0.5)
    narrower = coverage.cell(case, 16, "trunk", 150, seed=3)
    shares = [q["coverage"] for q in narrower["quantities"].values()]
    assert np.mean(shares) == pytest.approx(0.5, abs=0.1)
    row = coverage.markdown([narrower]).splitlines()[-1]
    assert row.count("**") == 2 * len(shares)


def test_a_cell_with_too_few_groups_has_the_refusal_in_the_table(coverage):
    case = next(case for case in coverage.CASES if case.law == "capacity")
    found = coverage.cell(case, 8, "trunk", 10, seed=3)
    assert "10 are needed" in found["refused"]


def test_cells_in_the_file_are_not_run_again(coverage, tmp_path, monkeypatch, capsys):
    out = tmp_path / "coverage.json"
    arguments = ["coverage.py", "--laws", "transfer", "--groups", "8", "--studies", "5", "--out", str(out)]
    monkeypatch.setattr("sys.argv", arguments)
    coverage.main()
    first = out.read_text(encoding="utf-8")
    assert len(json.loads(first)) == 2
    monkeypatch.setattr(coverage, "cell", lambda *_: pytest.fail("run again"))
    coverage.main()
    assert out.read_text(encoding="utf-8") == first
    assert capsys.readouterr().out.count("| transfer | 8 | trunk |") == 3  # as it ran, and in both tables
