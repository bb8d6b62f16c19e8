"""The code of docs/laws.md runs as it stands, and its laws recover the parameters of its simulated observations."""

import re
from pathlib import Path

import pytest

GUIDE = Path(__file__).resolve().parents[3] / "docs" / "laws.md"


@pytest.fixture(scope="module")
def names():
    blocks = re.findall(r"```python\n(.*?)```", GUIDE.read_text(encoding="utf-8"), flags=re.DOTALL)
    found: dict = {}
    for block in blocks:
        exec(compile(block, str(GUIDE), "exec"), found)
    return found


@pytest.mark.parametrize(
    ("fit", "planted"),
    [
        ("fit", {"alpha": 0.32, "beta": 0.36}),
        ("equivalent", {"a": 40.0, "b": 1.6, "c": 2.0}),
        ("performance", {"A": 1.2, "alpha": 0.3, "B": 1.5, "beta": 0.4}),
    ],
)
def test_intervals_of_the_guide_cover_its_true_parameters(names, fit, planted):
    found = names[fit].interval(0.99)
    for name, value in planted.items():
        assert found.loc[name, "low"] < value < found.loc[name, "high"], name
        assert found.loc[name, "identified"], name


def test_a_saved_fit_is_the_same(names):
    assert (names["again"].params == names["fit"].params).all()


def test_the_coverage_table_is_complete_and_marks_cells_outside_the_tolerance():
    """Shares outside 85 to 95% are bold."""
    text = GUIDE.read_text(encoding="utf-8")
    rows = [
        line
        for line in text.splitlines()
        if re.match(r"\| [^|]+ \| (8|16|40|200) \| (trunk|checkpoint) \|", line)
    ]
    assert len(rows) > 60
    for row in rows:
        shares = row.split("|")[5]
        for marked, share in re.findall(r"(\*\*)?(\d+)(?:\*\*)?(?=,|\s*$)", shares):
            assert bool(marked) or 85 <= int(share) <= 95, row
