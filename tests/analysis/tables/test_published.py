"""The published tables are complete, cited and consistent with statements of the paper."""

from importlib import resources

import numpy as np
import pandas as pd

from analysis.tables import published


def test_the_matrix_is_complete_and_consistent_with_the_text_of_the_paper():
    matrix = published.published_transfer()
    assert len(matrix) == 38 * 37 - matrix["score"].isna().sum() and matrix["target"].nunique() == 38
    # "ur and ps are negative with every source"; en and fr help each other.
    for target in ("ur", "ps"):
        assert (matrix.loc[matrix["target"] == target, "score"].dropna() <= 0).all()
    wide = matrix.set_index(["target", "source"])["score"]
    assert wide[("es", "pt")] == 0.5 and wide[("en", "fr")] > 0


def test_every_file_is_cited():
    files = [
        file for file in resources.files("analysis").joinpath("data").iterdir() if file.name.endswith(".csv")
    ]
    assert len(files) >= 5
    for file in files:
        source = "Glottolog" if file.name == "languages.csv" else "arXiv 2510.22037"
        assert source in file.read_text(encoding="utf-8")


def test_other_tables():
    assert dict(published.published_crossovers().values)["en"] == 144e9
    heldout = published.published_heldout()
    assert heldout.loc[heldout["law"] == "atlas, + K_t", "R2_M"].item() == 0.82


def test_hebrew_is_matched_by_either_code():
    measured = pd.DataFrame(
        {
            "target": ["en", "iw", "xx"],
            "source": ["fr", "en", "en"],
            "score": [0.3, 0.1, 0.0],
            "status": "measured",
        }
    )
    found = published.join_published_scores(measured)
    assert list(found["target"]) == ["en", "he"] and np.isfinite(found["published"]).all()
