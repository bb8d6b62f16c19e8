"""The two assertions of `run.sh`: check.py contents WHEEL SOURCE, and check.py opened LOG SITE_PACKAGES."""

import sys
import zipfile
from pathlib import Path

PACKAGES = ("mscale", "mixtures", "sweeps", "analysis")
NOT_SHIPPED = {".ipynb"}  # notebooks are read in the checkout


def contents(wheel: Path, source: Path) -> None:
    """The wheel holds every file of the packages, gin/ as mscale/gin, the licence, and nothing else."""
    expected = {"mscale/" + str(path.relative_to(source)) for path in (source / "gin").rglob("*.gin")}
    for name in PACKAGES:
        files = (path for path in (source / name).rglob("*") if path.is_file())
        expected |= {str(path.relative_to(source)) for path in files if path.suffix not in NOT_SHIPPED}
    names = zipfile.ZipFile(wheel).namelist()
    found = {name for name in names if ".dist-info/" not in name}
    if missing := sorted(expected - found):
        raise SystemExit(f"{wheel.name} lacks {missing}: no pattern of package_data in setup.py covers them")
    if more := sorted(found - expected):
        raise SystemExit(f"{wheel.name} holds what is in no package: {more}")
    if not any(".dist-info/" in name and name.endswith("LICENSE") for name in names):
        raise SystemExit(f"{wheel.name} has no LICENSE")


def opened(log: Path, site_packages: Path) -> None:
    """All that was opened lies in site-packages, and gin files, tables and templates are among it."""
    files = [Path(line) for line in log.read_text(encoding="utf-8").splitlines()]
    if outside := sorted({str(path) for path in files if not path.is_relative_to(site_packages)}):
        raise SystemExit(f"read from the checkout instead of the wheel: {outside}")
    own = {
        path
        for path in files
        if path.is_relative_to(site_packages) and _package(path, site_packages) in PACKAGES
    }
    for suffix in (".gin", ".csv", ".j2"):
        if not any(path.suffix == suffix for path in own):
            raise SystemExit(
                f"no {suffix} file of the wheel was opened: this test no longer shows that it ships"
            )
    if unused := sorted(set(PACKAGES) - {_package(path, site_packages) for path in own}):
        raise SystemExit(f"never imported from the wheel: {unused}")


def _package(path: Path, site_packages: Path) -> str:
    return path.relative_to(site_packages).parts[0]


if __name__ == "__main__":
    {"contents": contents, "opened": opened}[sys.argv[1]](*map(Path, sys.argv[2:]))
