"""Fits reach the published optimum and recover true parameters; what the data do not identify is reported so."""

import numpy as np
import pandas as pd
import pytest

import analysis
from analysis.validation import simulate
from mscale.errors import MscaleError

TRUE = {"E": 1.7, "A": 30.0, "alpha": 0.32, "B": 90.0, "beta": 0.36}
SIZES = np.geomspace(2e4, 4e5, 5)
TOKENS = (2e6, 4e6, 8e6)


@pytest.fixture(scope="module")
def points(chinchilla_points):
    table = pd.read_csv(chinchilla_points)
    assert len(table) == 245
    table["D"] = table["training_flop"] / (6 * table["model_size"])
    return table.sort_values("loss").iloc[:-5]


COLUMNS = {"N": "model_size", "D": "D", "loss": "loss"}


@pytest.fixture(scope="module")
def published(points):
    return analysis.fit("chinchilla", points, columns=COLUMNS)


def test_the_published_optimum(published):
    assert published.objective <= 0.0010182741
    expected = {"E": 1.8172, "A": 477.8, "B": 2143, "alpha": 0.3473, "beta": 0.3672}
    for name, value in expected.items():
        assert published.params[name] == pytest.approx(value, rel=1e-3)
    assert published.agreement["agreeing"] == published.agreement["starts"]


def test_the_printed_estimates_lie_within_the_intervals(published):
    found = published.interval(0.9)
    for name, value in {"E": 1.8172, "A": 482.01, "B": 2085.43, "alpha": 0.3478, "beta": 0.3658}.items():
        assert found.loc[name, "low"] < value < found.loc[name, "high"]
    assert found["identified"].all()


def test_bootstraps_are_as_good_as_scipy_from_many_starts(published):
    from scipy.optimize import minimize

    problem, theta = published.problem, published.theta
    rng = np.random.default_rng(1)
    from analysis.estimation.optimize import minimise

    for _ in range(3):
        times = rng.multinomial(240, np.full(240, 1 / 240)).astype(float)[None]
        batch = problem.batch(multiplicity=times)
        ours = minimise(problem, theta[None], batch, damping=1e-3, tolerance=1e-8).objective[0]

        def value(t, batch=batch):
            return problem.objective(t[None], batch)[0] * 1e3

        starts = [theta + rng.normal(0, 0.1, 5) for _ in range(3)]
        best = min(minimize(value, start, method="BFGS").fun for start in starts) / 1e3
        assert ours <= best * (1 + 1e-6)


def test_compute_optimal_is_where_marginal_returns_are_equal(published):
    found = published.compute_optimal([1e19, 1e21], level=0.9)
    p = published.params
    slope_n = p["alpha"] * p["A"] * found["N"] ** -p["alpha"]
    slope_d = p["beta"] * p["B"] * found["D"] ** -p["beta"]
    np.testing.assert_allclose(slope_n, slope_d, rtol=1e-4)
    np.testing.assert_allclose(6 * found["N"] * found["D"], found["C"], rtol=1e-9)
    assert ((found["N_low"] < found["N"]) & (found["N"] < found["N_high"])).all()


def test_json_gives_the_same_fit_back(published, points):
    again = analysis.from_json(published.to_json())
    pd.testing.assert_series_equal(again.params, published.params)
    pd.testing.assert_frame_equal(again.interval(0.8), published.interval(0.8))
    pd.testing.assert_frame_equal(again.predict(points, level=0.9), published.predict(points, level=0.9))
    assert again.summary() == published.summary()


def test_out_of_range_predictions_are_flagged(published, points):
    wanted = points.head(2).assign(model_size=[1e9, 1e13])
    assert published.predict(wanted)["in_range"].tolist() == [True, False]


def test_a_chart_is_made(published):
    assert "vega-lite" in published.plot().to_dict()["$schema"]


@pytest.fixture(scope="module")
def study():
    design = simulate.monolingual_design(SIZES, TOKENS, ("en", "sw"), seeds=2)
    return simulate.draw_observations(
        "chinchilla", design, {**TRUE, "E[sw]": 2.0}, trunk=0.002, checkpoint=0.0005, seed=3
    )


def test_noiseless_parameters_come_back():
    table = simulate.draw_observations(
        "chinchilla", simulate.monolingual_design(SIZES, TOKENS, seeds=2), TRUE, trunk=0, checkpoint=0
    )
    for loss in ("huber", "squares"):
        found = analysis.fit("chinchilla", table, loss=loss)
        for name, value in TRUE.items():
            assert found.params[name] == pytest.approx(value, rel=1e-4)


def test_shared_exponents_and_own_constants(study):
    found = analysis.fit("chinchilla", study, share=("alpha", "beta"))
    assert list(found.params.index[:5]) == ["E[en]", "A[en]", "alpha", "B[en]", "beta"]
    table = found.interval(0.95)
    assert table.loc["E[sw]", "low"] < 2.0 < table.loc["E[sw]", "high"]
    assert table.loc["alpha", "low"] < TRUE["alpha"] < table.loc["alpha", "high"]


def test_tied_fixed_and_prior(study):
    assert analysis.fit("chinchilla", study, per=None, tie={"beta": "alpha"}).names == (
        "E",
        "A",
        "alpha",
        "B",
    )
    fixed = analysis.fit("chinchilla", study, target="en", fixed={"alpha": 0.32, "A": 30.0})
    assert fixed.names == ("E", "B", "beta")
    assert fixed.params["beta"] == pytest.approx(0.36, abs=0.06)
    pulled = analysis.fit("chinchilla", study, target="en", priors={"beta": (0.8, 1e-4)})
    assert pulled.params["beta"] == pytest.approx(0.8, abs=0.01)


def test_rows_of_one_trunk_share_their_noise(study):
    found = analysis.fit("chinchilla", study, target="en")
    assert found.method == "profile"
    assert found.problem.ratio > 2  # planted: 16
    ungrouped = analysis.fit("chinchilla", study.drop(columns=["group", "run"]), target="en")
    width = [f.interval(0.9).eval("high - low")["beta"] for f in (found, ungrouped)]
    assert width[0] < width[1]  # noise that the budgets of a trunk share cancels in their differences


def test_weights_stand_for_repeated_rows(study):
    rows = study[study["language"] == "en"].drop(columns=["run", "group"])
    twice = pd.concat([rows, rows.head(5)])
    heavy = analysis.fit("chinchilla", rows, weights=[2.0] * 5 + [1.0] * (len(rows) - 5), loss="squares")
    plain = analysis.fit("chinchilla", twice.reset_index(drop=True), loss="squares")
    np.testing.assert_allclose(heavy.params[:5], plain.params[:5], rtol=1e-6)


def test_huber_is_robust_to_an_outlier_and_squares_are_not(study):
    rows = study[study["language"] == "en"].copy()
    rows.iloc[0, rows.columns.get_loc("loss")] *= 1.5
    error = [
        abs(analysis.fit("chinchilla", rows, loss=loss).params["E"] - TRUE["E"])
        for loss in ("huber", "squares")
    ]
    assert error[0] < 0.3 * error[1]


def test_unidentified_parameters_have_a_reason_instead_of_an_estimate():
    design = simulate.monolingual_design(SIZES, (4e6, 4.4e6), seeds=2)  # hardly any spread in D
    table = simulate.draw_observations("chinchilla", design, TRUE, trunk=0.01, checkpoint=0.005, seed=1)
    found = analysis.fit("chinchilla", table)
    assert "beta" in found.identification()
    assert "not identified" in next(line for line in found.summary().splitlines() if "beta " in line)
    assert not np.isfinite(found.interval(0.9).loc["beta", ["low", "high"]].to_numpy(float)).all()


def test_collinear_parameters_are_named():
    design = simulate.monolingual_design(SIZES, TOKENS, seeds=2)
    design["target_tokens"] = design["params"] * 100  # D moves only with N
    table = simulate.draw_observations(
        "chinchilla", design, {**TRUE, "beta": 0.32}, trunk=0.0, checkpoint=1e-3
    )
    found = analysis.fit("chinchilla", table, fixed={"beta": 0.32, "alpha": 0.32})
    assert set(found.identification()) >= {"A", "B"}


def test_too_few_groups_are_refused_with_the_number_missing():
    table = simulate.draw_observations("chinchilla", simulate.monolingual_design(SIZES, TOKENS), TRUE)
    with pytest.raises(MscaleError, match="5 groups .* for 5 parameters .* so 3 more"):
        analysis.fit("chinchilla", table)
    assert analysis.fit("chinchilla", table, few_groups=True).params["E"] == pytest.approx(1.7, abs=0.3)


def test_fitting_does_not_switch_jax_to_double_precision():
    import jax.numpy as jnp

    analysis.fit(
        "power", {"x": np.geomspace(1e6, 1e9, 50), "loss": 1 + np.geomspace(1e6, 1e9, 50) ** -0.3}, {"x": "x"}
    )
    assert jnp.ones(1).dtype == jnp.float32


def test_priors_survive_json(study):
    pulled = analysis.fit("chinchilla", study, target="en", priors={"beta": (0.4, 0.01)})
    again = analysis.from_json(pulled.to_json())
    for loaded, original in zip(again.problem.prior, pulled.problem.prior, strict=True):
        np.testing.assert_array_equal(loaded, original)
    pd.testing.assert_frame_equal(again.interval(0.9), pulled.interval(0.9))


def test_resampling_few_groups_is_warned_about(study):
    notes = " ".join(analysis.fit("chinchilla", study, target="en", loss="huber").notes)
    assert "intervals resample 10 groups" in notes
    assert "resample" not in " ".join(analysis.fit("chinchilla", study, target="en").notes)
