"""Crossovers: planted ones are covered, those beyond the data are bounds, published ones follow from the power law."""

import numpy as np
import pandas as pd
import pytest
from scipy.optimize import brentq

from analysis.crossover import crossover
from analysis.tables.observations import validate_observations
from analysis.tables.remarks import remark_text
from analysis.validation import planted_study
from mscale.errors import MscaleError


def planted_crossing(language):
    n = planted_study.PARAMS["nano2"]

    def gap(tokens):
        seen = {language: tokens}
        return planted_study.loss(language, n, seen, {}) - planted_study.loss(language, n, seen, {}, 8e5, 0.1)

    return brentq(gap, 1e5, 1e8)


def test_intervals_cover_the_planted_crossovers():
    observations, _, _ = planted_study.make_study(seed=5)
    table = crossover.crossovers(crossover.curve_pairs(validate_observations(observations)[0]))
    assert len(table) == 3 and (table["status"] == "measured").all()
    for row in table.itertuples():
        truth = planted_crossing(row.language)
        assert row.low <= truth <= (row.high if row.high == row.high else np.inf)


def test_a_crossover_beyond_the_data_is_a_bound():
    observations, _, _ = planted_study.make_study(seed=5)
    early = observations[observations["tokens"] <= 1_000_000]
    table = crossover.crossovers(crossover.curve_pairs(validate_observations(early)[0]))
    assert (table["status"] == "bound").all() and (table["bound"] == "at least").all()
    assert (table["tokens"] <= 1_000_000).all() and (table["gap"] > 0).all()
    assert table["reason"].isna().all()


def test_a_language_with_no_run_from_scratch_is_missing():
    observations, _, _ = planted_study.make_study(seed=5, small=True)
    gone = observations[~((observations["languages"] == "bek") & (observations["tag"] == "mono"))]
    table = crossover.crossovers(crossover.curve_pairs(validate_observations(gone)[0])).set_index("language")
    reason = remark_text(table.loc["bek", "reason"])
    assert table.loc["bek", "status"] == "missing" and "from scratch" in reason
    assert table.loc["aka", "status"] != "missing"


def test_published_law_gives_the_printed_figures():
    assert float(crossover.PUBLISHED_POWER_LAW.flops(2e9)) == pytest.approx(2.5e21, rel=0.02)
    assert float(crossover.PUBLISHED_LEGEND_POWER_LAW.flops(2e9)) == pytest.approx(2.2e21, rel=0.02)
    assert float(crossover.PUBLISHED_POWER_LAW.tokens(2e9)) == pytest.approx(207e9, rel=0.01)


def test_power_law_recovers_the_exponent_and_needs_three_sizes():
    n = np.array([1e8, 3e8, 1e9, 2e9, 5e9])
    tokens = crossover.PUBLISHED_POWER_LAW.tokens(n)
    table = pd.DataFrame(
        {"params": n, "tokens": tokens, "low": tokens / 1.1, "high": tokens * 1.1, "status": "measured"}
    )
    law = crossover.fit_power_law(table)
    assert law.exponent == pytest.approx(1.65, abs=1e-6) and law.low < 1.65 < law.high
    with pytest.raises(MscaleError, match="three sizes"):
        crossover.fit_power_law(table.head(2))
