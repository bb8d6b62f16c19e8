import numpy as np
import pandas as pd
import pytest

import analysis
from analysis.laws.atlas import co_sampled_sources
from analysis.report.report import analyse
from analysis.study import laws
from analysis.tables.observations import validate_observations
from analysis.transfer.matrix import transfer_matrix
from analysis.validation import planted_study


@pytest.fixture(scope="module")
def planted():
    observations, exposure, _ = planted_study.make_study(seed=2, small=True)
    return validate_observations(observations)[0], exposure


def test_unreliable_intervals_are_reported(planted):
    row = {"ratio": 2}
    for name in ("N", "D_tot", "C"):
        row |= {name: 1.5, f"{name}_low": 1.2, f"{name}_high": 2.0}
    assert laws.why_unreliable([row]) == ""
    assert "outside" in laws.why_unreliable([{**row, "N": 1.0}])
    assert "wide" in laws.why_unreliable([{**row, "N_low": 0.01, "N_high": 3.0}])
    assert "wide" in laws.why_unreliable([{**row, "C_high": np.inf, "N_high": np.inf}])


def test_without_exposure_or_cooled_rows_atlas_is_refused_with_the_reason(planted):
    observations, exposure = planted
    law, points = laws.atlas_results(laws.fit_atlas(observations, None, {}, 0), None, 0.9)
    assert not law["fitted"] and "exposure" in law["reason"] and points == []
    hot = observations[observations["phase"] != "end"]
    law, _ = laws.atlas_results(laws.fit_atlas(hot, exposure, {}, 0), exposure, 0.9)
    assert not law["fitted"] and "cooled" in law["reason"]


def test_a_fit_and_the_study_choose_the_same_sources_whatever_the_order_of_rows():
    observations, exposure, _ = planted_study.make_study(seed=2)
    observations, _, _ = validate_observations(observations)
    scores = transfer_matrix(observations, scales=["nano2"])
    chosen = laws.fit_atlas(observations, exposure, co_sampled_sources(observations, exposure, scores), 0)
    assert chosen.sources["aka"] == ["abo"] and chosen.sources["abo"] == ["aka"]  # tied: highest score
    rows, seen, scores = (t.sample(frac=1, random_state=0) for t in (observations, exposure, scores))
    fitted = analysis.fit("atlas", rows, exposure=seen, scores=scores, count=1)
    assert fitted.spec.options["sources"] == chosen.sources
    assert fitted.objective == pytest.approx(chosen.fit.objective, rel=1e-6)


def test_r2_within_languages_ignores_their_levels():
    language = np.repeat(["a", "b"], 50)
    rng = np.random.default_rng(0)
    level = np.where(language == "a", 1.0, 3.0)
    observed = level + rng.normal(0, 0.1, 100)
    assert abs(laws.within_r2(language, observed, level)) < 0.05  # knows levels only
    assert laws.within_r2(language, observed, observed) == 1.0


SIXTEEN = ("ca", "de", "el", "en", "es", "fr", "id", "it", "ja", "ko", "pt", "ru", "sv", "tr", "vi", "zh")


def test_a_table_whose_laws_have_fifty_parameters_is_analysed():
    """Sixteen languages, nine runs each, every run its own group: too many for a least-squares noise model."""
    rng = np.random.default_rng(0)
    rows = [
        {
            "run": f"{language}-{params:.0f}-{tokens:.0f}",
            "params": int(params),
            "tokens": int(tokens),
            "language": language,
            "languages": language,
            "mixture": language,
            "phase": "end",
            "loss": (1.7 + 0.05 * k + 400 / params**0.34 + 410 / tokens**0.28)
            * np.exp(0.003 * rng.standard_normal()),
        }
        for k, language in enumerate(
            ["ca", "de", "el", "en", "es", "fr", "id", "it", "ja", "ko", "pt", "ru", "sv", "tr", "vi", "zh"]
        )
        for params in np.geomspace(1e7, 1e9, 3)
        for tokens in np.geomspace(1e9, 3e10, 3)
    ]
    observations, _, _ = validate_observations(pd.DataFrame(rows))
    results = analyse(observations, None)
    assert results.laws["chinchilla"].fitted
    assert results.mixture.rates or results.mixture.reason
