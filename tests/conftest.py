"""Settings every test shares: one CPU core a worker, no network, deterministic hypothesis profiles."""

import os

# Set before any test imports JAX: pytest-xdist runs one worker a core, so each keeps to its own.
os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
os.environ.setdefault("CUDA_VISIBLE_DEVICES", "")

from pathlib import Path

import pytest
from hypothesis import settings

settings.register_profile("mscale", deadline=None, derandomize=True, max_examples=50)
settings.load_profile("mscale")

SHARED = Path(__file__).resolve().parents[2] / "shared"


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder of published figures and real text beside the checkout; the test is skipped without it."""
    if not SHARED.is_dir():
        pytest.skip("no ../shared beside the checkout")
    return SHARED


@pytest.fixture(scope="session")
def madlad_mini(shared: Path) -> Path:
    """502 real languages in MADLAD-400's layout."""
    corpus = shared / "corpora" / "madlad_mini"
    if not corpus.is_dir():
        pytest.skip("no ../shared/corpora/madlad_mini beside the checkout")
    return corpus
