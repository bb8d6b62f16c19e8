"""Published figures of Longpre et al. 2026 (ATLAS, arXiv 2510.22037v2), to compare results with.

Each file in `analysis/data` names its table or figure. The paper prints no intervals for them.
"""

from importlib import resources

import pandas as pd

# The transfer figures use ISO 639-1 codes, the corpora those of MADLAD-400; they differ for Hebrew.
ISO_OF_MADLAD = {"iw": "he"}
MADLAD_OF_ISO = {figure: code for code, figure in ISO_OF_MADLAD.items()}


def published_table(name: str) -> pd.DataFrame:
    """One of the package's data files (`analysis/data/<name>.csv`), such as ``atlas_expansion``."""
    with resources.files("analysis").joinpath("data", f"{name}.csv").open("rb") as file:
        # `na_values` only: "nan" is a language code, not a missing value.
        return pd.read_csv(file, comment="#", keep_default_na=False, na_values=[""])


def published_transfer() -> pd.DataFrame:
    """Fig. C.2 in long form: target, source, score; the 38 × 37 cells off the diagonal."""
    wide = published_table("atlas_transfer").set_index("target")
    long = pd.DataFrame({"score": wide.stack()}).rename_axis(["target", "source"]).reset_index()
    return long[long["target"] != long["source"]].reset_index(drop=True)


def published_expansion() -> pd.DataFrame:
    """Fig. 5: ratio (factor of K), and the factors N, D_tot and C that keep the loss."""
    printed = published_table("atlas_expansion").rename(columns={"r": "ratio"})
    return printed.assign(C=printed["N"] * printed["D_tot"])


def published_exponents() -> dict[str, float]:
    """φ, ψ and the exponents of r in N (``size``), D_tot (``data``) and C (``compute``)."""
    rows = published_table("atlas_capacity")
    return dict(zip(rows["name"], rows["value"].astype(float), strict=True))


def published_findings() -> dict[str, float]:
    """Statistics of the transfer matrix in the text: mean scores by script, symmetry, accuracy of predicted pairs."""
    rows = published_table("atlas_findings")
    return dict(zip(rows["name"], rows["value"].astype(float), strict=True))


def published_crossovers() -> pd.DataFrame:
    """Section 6: tokens of the crossover at 2B parameters; columns language, tokens."""
    return published_table("atlas_crossover")


def published_heldout() -> pd.DataFrame:
    """Table 1: held-out R² of the laws on monolingual and multilingual runs."""
    return published_table("atlas_heldout_r2")


def join_published_scores(matrix: pd.DataFrame) -> pd.DataFrame:
    """The measured cells that the paper has too, as an inner join; columns target, source, score, published."""
    paper = published_transfer().rename(columns={"score": "published"})
    measured = matrix[matrix["status"] == "measured"].copy()
    for side in ("target", "source"):
        measured[side] = measured[side].replace(ISO_OF_MADLAD)
    return measured.merge(paper, on=["target", "source"])[["target", "source", "score", "published"]]
