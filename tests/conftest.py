"""Settings every test shares: one CPU core a worker, no network, deterministic hypothesis profiles."""

import os

# Set before any test imports JAX: pytest-xdist runs one worker a core, so each keeps to its own.
os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
os.environ.setdefault("CUDA_VISIBLE_DEVICES", "")
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
os.environ.setdefault("MKL_NUM_THREADS", "1")
# Tests compile more than they compute: without XLA's optimisation those of mscale take 210 s of CPU, at level 1 249 s.
# `make test-wheel` and `make demo` compile as users do.
os.environ.setdefault("XLA_FLAGS", "--xla_backend_optimization_level=0")

from pathlib import Path

import pytest
import script_text
from hypothesis import settings

settings.register_profile("mscale", deadline=None, derandomize=True, max_examples=50)
settings.load_profile("mscale")

HERE = Path(__file__).resolve().parent
SHARED = HERE.parents[1] / "shared"
MADLAD_MINI = SHARED / "corpora" / "madlad_mini"


@pytest.fixture(scope="session")
def published_tables() -> Path:
    """tests/data: numbers of published tables, kept apart from the packages' own copies; see its README."""
    return HERE / "data"


@pytest.fixture(scope="session", params=["generated", pytest.param("real", marks=pytest.mark.slow)])
def many_languages(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A corpus of several hundred languages in their scripts, in MADLAD-400's layout; a test runs once on each:

    - generated: tests/fakes/script_text.py makes it, so that every checkout has it;
    - real: 502 languages in ../shared/corpora/madlad_mini, by `make test-slow`; skipped where it is absent, since it is
      not distributed.

    languages.csv in the folder lists every language (`code`) and its script (`script`).
    """
    if request.param == "generated":
        return script_text.write(tmp_path_factory.mktemp("script_text"))
    if not MADLAD_MINI.is_dir():
        pytest.skip(
            "real text is not distributed (no ../shared/corpora/madlad_mini); generated text is tested"
        )
    return MADLAD_MINI


@pytest.fixture(scope="session")
def chinchilla_points() -> Path:
    """The 245 runs of Hoffmann et al. (2022) as recovered by Besiroglu et al. (2024), whose licence is not stated."""
    path = SHARED / "data" / "chinchilla_points.csv"
    if not path.is_file():
        pytest.skip(
            "the points of Besiroglu et al. are not distributed (no ../shared/data/chinchilla_points.csv)"
        )
    return path


@pytest.fixture(scope="session")
def jobset_crd() -> Path:
    """JobSet's CustomResourceDefinition, of kubernetes-sigs/jobset (Apache-2.0)."""
    path = SHARED / "kubernetes" / "jobset_crd.yaml"
    if not path.is_file():
        pytest.skip("JobSet's schema is not distributed (no ../shared/kubernetes/jobset_crd.yaml)")
    return path
