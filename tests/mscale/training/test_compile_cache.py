"""The compile cache: a second process hits it, and a damaged entry is removed and written again."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from mscale.training import runtime

CODE = """
import logging, sys
from mscale.training import runtime
runtime.use_compile_cache(sys.argv[1])
import jax, jax.numpy as jnp
hits = []
jax.monitoring.register_event_listener(lambda name, **_: hits.append(name))
print(float(jax.jit(lambda x: jnp.sin(x @ x).sum())(jnp.ones((64, 64)))))
print(sum(name.endswith("cache_hits") for name in hits), sum(name.endswith("cache_misses") for name in hits))
"""


def run(folder):
    root = Path(__file__).resolve().parents[3]
    done = subprocess.run(
        [sys.executable, "-c", CODE, str(folder)],
        capture_output=True,
        text=True,
        cwd=root,
        env=os.environ | {"JAX_PLATFORMS": "cpu"},
    )
    assert done.returncode == 0, done.stderr
    value, counts = done.stdout.splitlines()
    return float(value), *map(int, counts.split())


@pytest.mark.parametrize("damage", ["flip", "truncate", "empty"])
def test_a_damaged_entry_is_written_again(tmp_path, damage):
    value, hits, misses = run(tmp_path / "cache")
    assert hits == 0 and misses > 0
    entries = sorted((tmp_path / "cache").glob("*-cache"))
    assert len(entries) == misses
    for entry in entries:
        data = entry.read_bytes()
        middle = len(data) // 2
        broken = {
            "flip": data[:middle] + bytes([data[middle] ^ 1]) + data[middle + 1 :],
            "truncate": data[:middle],
            "empty": b"",
        }[damage]
        entry.write_bytes(broken)
        os.utime(entry, (1, 1))
    assert run(tmp_path / "cache") == (value, 0, misses)
    assert run(tmp_path / "cache") == (value, misses, 0)


def test_entries_being_written_are_left_alone(tmp_path):
    (tmp_path / "a-cache").write_bytes(b"half")
    assert runtime.remove_damaged_entries(tmp_path) == []
    os.utime(tmp_path / "a-cache", (1, 1))
    assert runtime.remove_damaged_entries(tmp_path) == ["a-cache"]
