"""Reads the results of a study (laws.json): its fits, its range of sizes, its transfer matrix."""

from collections.abc import Mapping
from typing import Any

from analysis.fitting.fit import from_json
from analysis.fitting.result import Fit
from mscale.errors import MscaleError


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
