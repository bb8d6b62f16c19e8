"""Reads the results of a study (laws.json): its fits, its range of sizes, its transfer matrix."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from analysis.fitting.fit import from_json
from analysis.fitting.result import Fit
from mscale.errors import MscaleError
from mscale.files import read_json

RESULTS_FORMAT = 3
"""Of laws.json; raised when a field changes, and results of another number are refused."""


def read_results(source: str | Path) -> dict:
    """Reads the results that `mscale fit` wrote: `source` is the JSON file, or a folder with laws.json in it."""
    source = Path(source)
    path = source / "laws.json" if source.is_dir() else source
    if path.exists() and path.suffix != ".json":
        raise MscaleError(
            f"{path}: expected the laws.json that `mscale fit` writes, found a {path.suffix or 'nameless'} file; run "
            f"`mscale fit {path}` first"
        )
    results = read_json(path, what="results of mscale fit")
    found = results.get("format") if isinstance(results, dict) else None
    if found != RESULTS_FORMAT:
        raise MscaleError(
            f"{path}: not results of this mscale (format {found}, expected {RESULTS_FORMAT}): run `mscale fit` again"
        )
    return results


def saved_fit(results: Mapping[str, Any], law: str) -> Fit | None:
    """The fitted law of that name, or None where these results have none."""
    text = results.get("fits", {}).get(law)
    return None if text is None else from_json(text)


def required_fit(results: Mapping[str, Any], law: str, what: str) -> Fit:
    """The fitted law of that name; raises MscaleError that says which fit `what` needs and why it is missing."""
    title = {"atlas": "ATLAS", "capacity": "capacity", "chinchilla": "Chinchilla"}[law]
    record = results["laws"].get(law, {})
    if not record.get("fitted"):
        raise MscaleError(
            f"{what} needs the {title} law, which is not fitted: {record.get('reason', 'no runs')}"
        )
    found = saved_fit(results, law)
    if found is None:
        raise MscaleError(
            f"{what} needs the fitted {title} law itself, which these results do not hold: made by an older "
            "mscale; run `mscale fit` again"
        )
    return found


def params_range(results: Mapping[str, Any]) -> tuple[float, float]:
    """The smallest and the largest N of a study."""
    sizes = [scale["params"] for scale in results["study"]["scales"]]
    return float(min(sizes)), float(max(sizes))


def main_matrix(results: dict) -> list[dict]:
    """The cells of the transfer matrix at the scale that the report shows."""
    return [row for row in results["transfer"]["matrix"] if row["scale"] == results["transfer"]["scale"]]
