"""Runs programs on eight simulated CPU devices, each in a process of its own."""

import os
import subprocess
import sys
from pathlib import Path


def eight_devices(program):
    """Runs Python code in a process with eight simulated devices, and fails with its stderr if it fails."""
    environment = os.environ | {
        "XLA_FLAGS": f"{os.environ['XLA_FLAGS']} --xla_force_host_platform_device_count=8",
        "JAX_PLATFORMS": "cpu",
    }
    done = subprocess.run(
        [sys.executable, "-c", program],
        env=environment,
        cwd=Path(__file__).parents[2],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr[-3000:]
