import numpy as np
import pandas as pd
import planted_study
import pytest

from analysis import adaptation, transfer
from analysis.tables import validate_observations


def test_agreement_with_planted_relatedness():
    observations, _, truth = planted_study.study(seed=3)
    cells = transfer.cells(validate_observations(observations)[0])
    result = adaptation.relatedness_agreement(transfer.transfer_matrix(cells, scales=["nano2"]), truth)
    assert result["pairs"] == 30 and result["spearman"] > 0.6
    assert result["p"] < 2 * result["smallest_p"] < 0.2


def test_adaptation_score_is_the_mean_gain():
    tokens = np.linspace(1, 1000, 200)
    base = pd.DataFrame(
        {"run": "ckpt", "scale": "s", "params": 10, "languages": "a+b", "tokens": 500, "phase": "stable",
         "language": ["a", "b"], "loss": 3.0, "target_tokens": 250, "init": "scratch", "init_tokens": 0},
        index=[0, 1],
    )  # fmt: skip
    gain = pd.DataFrame(
        {"run": "more", "scale": "s", "params": 10, "languages": "a", "tokens": tokens, "phase": "stable",
         "language": "b", "loss": 3.0 - tokens / 1000, "target_tokens": 0, "init": "ckpt", "init_tokens": 500}
    )  # fmt: skip
    observations, _, _ = validate_observations(pd.concat([base, gain]))
    row = adaptation.adaptation_scores(observations).iloc[0]
    assert (row["source"], row["target"]) == ("a", "b")
    assert row["score"] == pytest.approx(0.5, abs=1e-3)  # ∫₀¹ x dx
