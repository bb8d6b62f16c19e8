"""Published figures, cited, so that a user's results can be drawn beside the paper's.

All from Longpre et al. 2026 (ATLAS, arXiv 2510.22037v2); each file in `analysis/data` names its table or
figure. The paper prints no intervals for them.
"""

from importlib import resources

import pandas as pd

# The transfer figures use ISO 639-1, corpora MADLAD-400's codes.
ALIASES = {"iw": "he"}
MADLAD = {figure: code for code, figure in ALIASES.items()}


def table(name: str) -> pd.DataFrame:
    """Reads one of the package's data files, such as ``atlas_expansion``."""
    with resources.files("analysis").joinpath("data", f"{name}.csv").open("rb") as file:
        # `na_values` only: "nan" is a language code, not a missing value.
        return pd.read_csv(file, comment="#", keep_default_na=False, na_values=[""])


def published_transfer() -> pd.DataFrame:
    """Fig. C.2 in long form: target, source, score; the 38 × 37 cells off the diagonal."""
    wide = table("atlas_transfer").set_index("target")
    long = pd.DataFrame({"score": wide.stack()}).rename_axis(["target", "source"]).reset_index()
    return long[long["target"] != long["source"]].reset_index(drop=True)


def published_expansion() -> pd.DataFrame:
    """Fig. 5: r, and the growth of N and D_tot that keeps the loss."""
    return table("atlas_expansion")


def published_exponents() -> dict[str, float]:
    """φ, ψ and the exponents of r in N (``size``), D_tot (``data``) and C (``compute``)."""
    rows = table("atlas_capacity")
    return dict(zip(rows["name"], rows["value"].astype(float), strict=True))


def published_findings() -> dict[str, float]:
    """What the paper says of its matrix: mean scores by script, symmetry, and how well pairs are predicted."""
    rows = table("atlas_findings")
    return dict(zip(rows["name"], rows["value"].astype(float), strict=True))


def published_crossovers() -> pd.DataFrame:
    """Section 6: language and tokens of the crossover at 2B parameters."""
    return table("atlas_crossover")


def published_heldout() -> pd.DataFrame:
    """Table 1: held-out R² of the laws on monolingual and multilingual runs."""
    return table("atlas_heldout_r2")


def beside_published(matrix: pd.DataFrame) -> pd.DataFrame:
    """The cells of a measured matrix that the paper measured too: target, source, score, published."""
    paper = published_transfer().rename(columns={"score": "published"})
    mine = matrix[matrix["status"] == "measured"].copy()
    for side in ("target", "source"):
        mine[side] = mine[side].replace(ALIASES)
    return mine.merge(paper, on=["target", "source"])[["target", "source", "score", "published"]]
