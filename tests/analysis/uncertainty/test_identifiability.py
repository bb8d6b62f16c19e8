"""Parameters that the data do not determine are named, with the reason."""

import numpy as np
import pandas as pd
from planted_chinchilla import TRUE

import analysis
from analysis.validation import simulate


def test_aliased_parameters_have_no_limits_and_name_their_partner():
    design = pd.concat(
        [
            simulate.monolingual_design((2e4, 8e4, 3e5), (2e6, 4e6, 8e6), ("a", "b"), seeds=2),
            simulate.monolingual_design((8e4,), (2e6, 4e6, 8e6), ("c", "d"), seeds=6),
        ]
    )
    found = analysis.fit(
        "chinchilla", simulate.draw_observations("chinchilla", design, TRUE), share=("alpha", "beta")
    )
    frame = found.interval()
    flat = [f"{name}[{language}]" for language in "cd" for name in ("E", "A", "A_mean")]
    assert not frame.loc[flat, "identified"].any() and frame.drop(flat)["identified"].all()
    assert np.isinf(frame.loc[flat, "high"]).all()
    # Only the language's own parameter is named, although the flat directions of both languages are found together.
    assert frame.loc["E[c]", "reason"] == "cannot be told apart from A[c]"
    assert frame.loc["A[d]", "reason"] == "cannot be told apart from E[d]"
    assert np.isfinite(frame.drop(flat)[["low", "high"]]).all(axis=None)
