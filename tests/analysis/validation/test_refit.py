"""Subsets of rows, refitted from the fit to all rows, give the same predictions as separate fits."""

import numpy as np
import pytest

import analysis
from analysis.estimation.estimate import estimate
from analysis.estimation.specify import FitOptions, specify
from analysis.study import law_comparison
from analysis.study.laws import atlas_rows
from analysis.validation import held_out, planted_study, simulate, splits
from analysis.validation.refit import refit
from mscale.errors import MscaleError

TRUE = {"E": 1.7, "A": 30.0, "alpha": 0.32, "B": 90.0, "beta": 0.36}
TAU_PRIOR = (0.0, 0.5)


@pytest.fixture(scope="module")
def curves():
    """Two languages whose runs are evaluated at four token counts each, so that the rows of a run share noise."""
    design = simulate.monolingual_design(
        np.geomspace(2e4, 4e5, 5), (1e6, 2e6, 4e6, 8e6), ("en", "sw"), seeds=2
    )
    return simulate.draw_observations(
        "chinchilla", design, {**TRUE, "E[sw]": 2.2}, trunk=0.01, checkpoint=0.003
    )


@pytest.fixture(scope="module")
def mixtures():
    observations, exposure, _ = planted_study.make_study(seed=3, small=True)
    return law_comparison.identifiable_rows(atlas_rows(observations), "R2"), exposure


def assert_as_separate_fits(law, table, masks, priors=None, **options):
    """The predictions for all rows from each refitted subset agree with those of a fit to the subset."""
    specified = specify(law, table, FitOptions.of(priors=priors, **options))
    whole = estimate(specified.problem, priors or {}, 0)
    largest_change = 0.0
    for mask in masks:
        theta = refit(whole, priors or {}, np.asarray(mask)[specified.order], True)
        alone = analysis.fit(law, table[mask], priors=priors, few_groups=True, **options)
        rows = table.iloc[specified.order]
        expected = alone.predict(rows, exposure=options.get("exposure"))["prediction"].to_numpy()
        refitted, all_rows = whole.problem.predict(np.array([theta, whole.theta]))
        inside = np.isfinite(expected)  # the law's constraint does not hold on every row held out
        assert inside.mean() > 0.9
        np.testing.assert_allclose(refitted[inside], expected[inside], rtol=3e-5)
        largest_change = max(largest_change, np.abs(refitted / all_rows - 1).max())
    assert largest_change > 1e-3  # otherwise the optimum of all rows would pass too


def test_folds_of_whole_runs(curves):
    masks = [~test for test in splits.folds(curves, "R2").values()]
    assert_as_separate_fits("chinchilla", curves, masks, share=("alpha", "beta"))
    assert_as_separate_fits("chinchilla", curves, masks, share=("alpha", "beta"), loss="huber")


def test_subsets_that_split_runs(curves):
    (most,) = splits.folds(curves, "R2_D").values()
    assert curves.groupby("group")["tokens"].nunique().min() > 1  # every run is split
    assert_as_separate_fits(
        "chinchilla", curves, [~most, (curves["language"] == "en") | ~most], loss="squares"
    )


def test_priors_are_scaled_by_the_dispersion_of_each_subset(mixtures):
    table, exposure = mixtures
    masks = [~test for test in splits.folds(table, "R2").values()]
    options = {"exposure": exposure, "variant": "D_other", "priors": {"tau_other": TAU_PRIOR}}
    assert_as_separate_fits("atlas", table, masks, **options)


def test_parameters_without_rows_in_a_subset_are_as_in_its_own_fit(mixtures):
    table, exposure = mixtures
    once = (table["target_unique"] >= table["target_tokens"]).to_numpy()  # λ has no effect on these rows
    assert 0 < (~once).sum() < len(once)
    assert_as_separate_fits("atlas", table, [once], variant="D_t")


def test_subsets_with_aliased_parameters_are_as_their_fits_or_left_to_them(curves):
    """A and E of a language at one size are aliased: refitted if they are so in all rows, else None."""
    one_size = curves[(curves["language"] == "en") | (curves["params"] == curves["params"].min())]
    masks = [~test for test in splits.folds(one_size, "R2").values()]
    options = {"share": ("alpha", "beta"), "loss": "squares"}
    specified = specify("chinchilla", one_size, FitOptions.of(**options))
    whole = estimate(specified.problem, {}, 0)
    for mask in masks:
        theta = refit(whole, {}, mask[specified.order], True)
        alone = analysis.fit("chinchilla", one_size[mask], few_groups=True, **options)
        expected = alone.predict(one_size.iloc[specified.order])["prediction"].to_numpy()
        np.testing.assert_allclose(whole.problem.predict(theta[None])[0], expected, rtol=3e-5)
    specified = specify("chinchilla", curves, FitOptions.of(**options))
    whole = estimate(specified.problem, {}, 0)
    kept = ((curves["language"] == "en") | (curves["params"] == curves["params"].min())).to_numpy()
    assert refit(whole, {}, kept[specified.order], True) is None


def test_a_subset_with_too_few_rows_is_refused_as_its_own_fit_is(curves):
    specified = specify("chinchilla", curves, FitOptions(share=("alpha", "beta")))
    whole = estimate(specified.problem, {}, 0)
    one_size = (curves["params"] == curves["params"].min()).to_numpy()
    with pytest.raises(MscaleError, match="one value only") as refused:
        refit(whole, {}, one_size[specified.order], True)
    with pytest.raises(MscaleError) as alone:
        analysis.fit("chinchilla", curves[one_size], share=("alpha", "beta"))
    assert str(refused.value) == str(alone.value)
    assert np.isfinite(refit(whole, {}, ~one_size[specified.order], True)).all()


def test_a_split_can_be_restricted_to_some_languages(curves):
    options = FitOptions(share=("alpha", "beta"))
    found = held_out.predict_splits(
        "chinchilla", curves, {"R2": None, "leave_one_scale_out": ["sw"]}, options, 0
    )
    assert set(found["R2"]["level"]) == {"en", "sw"}
    assert len(found["leave_one_scale_out"]) == (curves["language"] == "sw").sum()
    sw, split = curves[curves["language"] == "sw"], "leave_one_scale_out"
    own = held_out.predict_splits("chinchilla", sw, {split: None}, FitOptions(), 0)[split]
    refitted = found[split]
    np.testing.assert_allclose(refitted["predicted"], own["predicted"], rtol=3e-5)
    assert (refitted["in_range"] == own["in_range"]).all()
