"""Packaging of mscale. Packages and their data are found by pattern: a new sub-package needs no change here."""

import re
from pathlib import Path

from setuptools import find_packages, setup

HERE = Path(__file__).resolve().parent
TOP_LEVEL = ("mscale", "mixtures", "sweeps", "analysis")
# The one place of the version. Read as text, since importing mscale needs its dependencies.
VERSION = re.findall(
    r'^__version__ = "(.+)"$', (HERE / "mscale" / "__init__.py").read_text("utf-8"), re.MULTILINE
)[0]
# A wheel holds the gin files as mscale/gin; mscale.launch finds them there, or beside mscale/ in a checkout.
GIN_FOLDERS = [
    "mscale." + ".".join(folder.relative_to(HERE).parts)
    for folder in sorted({path.parent for path in (HERE / "gin").rglob("*.gin")} | {HERE / "gin"})
]

EXTRAS = {
    "data": [
        "seqio>=0.0.20",
        "sentencepiece>=0.2.1",
        "tensorflow>=2.20",
        "tensorflow-datasets>=4.9.9",
    ],
    "analysis": [
        "altair>=6.0",
        "jinja2>=3.1",
        "loky>=3.5",
        "pandas>=2.2",
        "pyarrow>=18",
        "scikit-learn>=1.6",
        "scipy>=1.14",
        "threadpoolctl>=3.5",
        "vl-convert-python>=1.8",
    ],
    "cuda": ["jax[cuda12]>=0.10"],
    "tpu": ["jax[tpu]>=0.10"],
    "curves": ["tensorboard>=2.16"],
    "bench": ["grain>=0.2.18", "psutil>=6"],
    "test": [
        "hypothesis>=6.100",
        "ipykernel>=6.29",
        "jsonschema>=4.23",
        "nbclient>=0.10",
        "pytest>=8.3",
        "pytest-xdist>=3.6",
        "pyyaml>=6",
        "tensorboard>=2.16",
    ],
    "dev": ["import-linter>=2.17", "mypy>=1.14", "pandas-stubs", "ruff>=0.9"],
}

setup(
    name="mscale",
    version=VERSION,
    description="Multilingual pretraining scaling: mixtures, sharded training, sweeps and laws",
    long_description=(HERE / "README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    author="The mscale developers",
    license="Apache-2.0",
    license_files=["LICENSE"],
    keywords=["scaling laws", "multilingual", "pretraining", "language models", "JAX"],
    classifiers=[
        "Development Status :: 4 - Beta",
        "Intended Audience :: Science/Research",
        "License :: OSI Approved :: Apache Software License",
        "Programming Language :: Python :: 3",
        "Programming Language :: Python :: 3 :: Only",
        "Programming Language :: Python :: 3.11",
        "Programming Language :: Python :: 3.12",
        "Programming Language :: Python :: 3.13",
        "Topic :: Scientific/Engineering :: Artificial Intelligence",
        "Typing :: Typed",
    ],
    python_requires=">=3.11",
    packages=[
        *find_packages(str(HERE), include=[pattern for name in TOP_LEVEL for pattern in (name, f"{name}.*")]),
        *GIN_FOLDERS,
    ],
    package_dir={"mscale.gin": "gin"},
    package_data={
        "": ["py.typed", "*.csv", "data/*.csv", "templates/**"],  # "": of every package
        **{folder: ["*.gin"] for folder in GIN_FOLDERS},
    },
    install_requires=[
        "click>=8.1",
        "filelock>=4.0",
        "flax>=0.12.8",
        "fsspec>=2025.3",
        "gin-config>=0.5.0",
        "isal>=1.7",
        "jax>=0.10.2",
        "msgspec>=0.19",
        "numpy>=2.0",
        "optax>=0.2.8",
        "orbax-checkpoint>=0.12.8",
        "packaging>=24.0",
        "rich>=13.9",
    ],
    extras_require=EXTRAS,
    entry_points={"console_scripts": ["mscale=mscale.cli:main"]},
)
