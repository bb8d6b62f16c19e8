"""Progress without a terminal: the remaining time is a time or is not shown."""

import pytest

from mscale import progress


@pytest.mark.parametrize("steps", [(0,), (3,), (0, 0.5, 1.5, 1), (2, 1)])
def test_remaining_time_is_neither_infinite_nor_negative(monkeypatch, capsys, steps):
    monkeypatch.setattr(progress, "LINE_SECONDS", 0.0)
    with progress.progress("Training", 2, "runs") as advance:
        for step in steps:
            advance(step, note="x")
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == len(steps)
    assert not any(word in line for line in lines for word in ("inf", "nan", "-"))
    assert lines[-1].endswith("x") and (sum(steps) == 0) == ("left" not in lines[-1])
