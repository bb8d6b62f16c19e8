"""Freed memory is kept: repeated large allocations cause no page faults."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

PROGRAM = """
import resource
import numpy as np
from mscale.training import runtime
if not runtime.retain_freed_memory():
    raise SystemExit(77)
faults = []
for _ in range(4):
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    np.full(20_000_000, 1.0)
    faults.append(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
assert faults[0] > 1000 or faults[0] > 10 * faults[-1], faults
assert faults[-1] < 100, faults
"""


def test_large_blocks_are_reused():
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM],
        cwd=Path(__file__).parents[3],
        env=os.environ,
        capture_output=True,
        text=True,
    )
    if done.returncode == 77:
        pytest.skip("the C library is not glibc")
    assert done.returncode == 0, done.stderr
