"""The capacity law: published growth factors, iso-loss curves, and the growth of least compute."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.optimize import minimize_scalar

from analysis.laws import capacity
from analysis.planning import expand
from analysis.study import laws
from analysis.tables import published
from analysis.tables.observations import validate_observations
from analysis.validation import planted_study

EXPONENTS = {"phi": 0.11, "psi": -0.04, "alpha": 0.4527, "beta": 0.1471}


def test_published_multipliers_follow_from_published_exponents():
    printed = published.published_expansion()
    assert list(printed["ratio"]) == [2, 4, 8, 16]
    for row in printed.itertuples():
        found = expand.published_growth(row.ratio)
        assert pytest.approx(row.N, abs=0.01) == found.N
        assert found.D_tot == pytest.approx(row.D_tot, abs=0.01)
    exponents = published.published_exponents()
    assert exponents["size"] + exponents["data"] == pytest.approx(exponents["compute"], abs=0.0015)


@given(
    st.floats(1.1, 20), st.floats(0.02, 0.2), st.floats(-0.1, 0.1), st.floats(0.2, 0.6), st.floats(0.2, 0.6),
    st.floats(1e7, 1e10), st.floats(1e9, 1e12), st.integers(1, 50),
)  # fmt: skip
def test_growth_keeps_the_loss(ratio, phi, psi, alpha, beta, n, d, k):
    grown = capacity.growth(ratio, phi, psi, alpha, beta)

    def loss(k, n, d):
        return 1.5 + 300 * k**phi / n**alpha + 900 * k**psi / d**beta

    assert loss(k * ratio, n * grown.N, d * grown.D_t) == pytest.approx(loss(k, n, d), rel=1e-9)
    assert grown.D_tot == pytest.approx(ratio * grown.D_t)
    assert pytest.approx(grown.N * grown.D_tot) == grown.C


@given(st.floats(1.2, 16), st.floats(0.1, 0.9), st.floats(0.02, 0.2), st.floats(-0.1, 0.1))
def test_iso_loss_curve_keeps_the_loss_and_ends_at_its_limit(ratio, weight, phi, psi):
    alpha, beta = 0.35, 0.3
    curve = capacity.iso_loss_curve(ratio, weight, phi, psi, alpha, beta)
    kept = ratio**phi * weight * curve["s"] ** -alpha + ratio**psi * (1 - weight) * curve["t"] ** -beta
    assert np.allclose(kept, 1)
    limit = capacity.feasibility_limit(ratio, weight, phi, alpha)
    assert (curve["s"] > limit).all()
    assert ratio**phi * weight * limit**-alpha == pytest.approx(1)


def test_growth_is_cheapest_exactly_where_the_start_is_compute_optimal():
    phi, psi, alpha, beta = 0.11, -0.04, 0.35, 0.30
    optimal = beta / (alpha + beta)
    plain = capacity.growth(4, phi, psi, alpha, beta)
    cheap = capacity.cheapest_growth(4, optimal, phi, psi, alpha, beta)
    assert pytest.approx(plain.C, rel=1e-3) == cheap.C and pytest.approx(plain.N, rel=0.02) == cheap.N
    # The start is too small a model: growing it more than the formula does is cheaper.
    off = capacity.cheapest_growth(4, 0.75, phi, psi, alpha, beta)
    assert off.C < plain.C * 0.9 and off.N > plain.N

    def compute(log_s):  # an independent minimisation
        s = np.exp(log_s)
        left = 1 - 4**phi * 0.75 * s**-alpha
        return s * 4 * (4**psi * 0.25 / left) ** (1 / beta) if left > 0 else np.inf

    limit = np.log(capacity.feasibility_limit(4, 0.75, phi, alpha))
    found = minimize_scalar(compute, bounds=(limit + 1e-6, limit + 5), method="bounded")
    assert pytest.approx(found.fun, rel=1e-3) == off.C


def test_rows_are_cooled_uniform_unrepeated_and_trained_on():
    observations, _, _ = planted_study.make_study(seed=1, small=True)
    rows = laws.capacity_rows(validate_observations(observations)[0])
    assert set(rows["phase"]) == {"end"} and set(rows["K"]) == {1, 2, 4, 6}
    assert set(rows["init"]) == {"scratch"} and "repeat" not in set(rows["tag"])
    assert np.allclose(rows["target_tokens"] * rows["K"], rows["tokens"], rtol=1e-3)
    assert laws.why_not_identifiable(rows) == ""
    assert "different K" in laws.why_not_identifiable(rows[rows["K"] == 1])
    assert "sizes" in laws.why_not_identifiable(rows[rows["scale"] == "nano2"])
