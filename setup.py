"""Packaging of mscale. Packages are listed explicitly: auto-discovery refuses this layout."""

from pathlib import Path

from setuptools import setup

HERE = Path(__file__).parent
# The gin files ship inside the package (mscale/gin in a wheel; see mscale.launch.gin_search_paths).
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
        "kubernetes>=31",
        "nbclient>=0.10",
        "pytest>=8.3",
        "pytest-xdist>=3.6",
        "tensorboard>=2.16",
    ],
    "dev": ["import-linter>=2.17", "mypy>=1.14", "pandas-stubs", "ruff>=0.9"],
}

setup(
    name="mscale",
    version="0.1.0",
    description="Multilingual pretraining scaling: mixtures, sharded training, sweeps and laws",
    long_description=(HERE / "README.md").read_text(encoding="utf-8")
    if (HERE / "README.md").exists()
    else "",
    long_description_content_type="text/markdown",
    python_requires=">=3.11",
    packages=[
        "mscale",
        "mscale.cli",
        "mscale.data",
        "mixtures",
        "sweeps",
        "sweeps.studies",
        "analysis",
        *sorted(f"analysis.{folder.parent.name}" for folder in (HERE / "analysis").glob("*/__init__.py")),
        *GIN_FOLDERS,
    ],
    package_dir={"mscale.gin": "gin"},
    package_data={
        **{folder: ["*.gin"] for folder in GIN_FOLDERS},
        "mscale.data": ["*.csv"],
        "analysis": ["report/templates/*", "data/*.csv"],
    },
    install_requires=[
        "click>=8.1",
        "flax>=0.12.8",
        "fsspec>=2025.3",
        "gin-config>=0.5.0",
        "isal>=1.7",
        "jax>=0.10.2",
        "msgspec>=0.19",
        "numpy>=2.0",
        "optax>=0.2.8",
        "orbax-checkpoint>=0.12.8",
        "rich>=13.9",
    ],
    extras_require=EXTRAS,
    entry_points={"console_scripts": ["mscale=mscale.cli:main"]},
)
