"""Parts of a table's rows, fitted together from the fit to all of them, are what each is when fitted alone."""

import numpy as np
import pytest

import analysis
from analysis.estimation.estimate import estimate
from analysis.estimation.specify import ModelOptions, specify, split_arguments
from analysis.study import law_comparison
from analysis.study.laws import atlas_rows
from analysis.validation import compare, held_out, planted_study, simulate
from analysis.validation.refit import refit
from mscale.errors import MscaleError

TRUE = {"E": 1.7, "A": 30.0, "alpha": 0.32, "B": 90.0, "beta": 0.36}


@pytest.fixture(scope="module")
def curves():
    """Two languages whose runs are seen at four token counts each, so that the rows of a run share noise."""
    design = simulate.grid(np.geomspace(2e4, 4e5, 5), (1e6, 2e6, 4e6, 8e6), ("en", "sw"), seeds=2)
    return simulate.study("chinchilla", design, {**TRUE, "E[sw]": 2.2}, trunk=0.01, checkpoint=0.003)


@pytest.fixture(scope="module")
def mixtures():
    observations, exposure, _ = planted_study.study(seed=3, small=True)
    return law_comparison.identifiable_rows(atlas_rows(observations), "R2"), exposure


def against_fits(law, table, masks, priors=None, **how):
    """Each part's predictions for all rows agree with those of a fit to the part."""
    drafted = specify(law, table, *split_arguments({"priors": priors, **how}))
    whole = estimate(drafted.problem, drafted.names, priors or {}, 0)
    found = refit(whole, priors or {}, np.array(masks)[:, drafted.order], True)
    apart = 0.0
    for mask, theta in zip(masks, found, strict=True):
        alone = analysis.fit(law, table[mask], priors=priors, few_groups=True, **how)
        rows = table.iloc[drafted.order]
        expected = alone.predict(rows, exposure=how.get("exposure"))["prediction"].to_numpy()
        mine, all_rows = whole.problem.predict(np.array([theta, whole.theta]))
        inside = np.isfinite(expected)  # the law's constraint does not hold on every row held out
        assert inside.mean() > 0.9
        np.testing.assert_allclose(mine[inside], expected[inside], rtol=3e-5)
        apart = max(apart, np.abs(mine / all_rows - 1).max())
    assert apart > 1e-3  # or the parts would tell nothing that the whole does not


def test_folds_of_whole_runs(curves):
    masks = [~test for test in compare.folds(curves, "R2").values()]
    against_fits("chinchilla", curves, masks, share=("alpha", "beta"))
    against_fits("chinchilla", curves, masks, share=("alpha", "beta"), loss="huber")


def test_parts_of_runs(curves):
    (most,) = compare.folds(curves, "R2_D").values()
    assert curves.groupby("group")["tokens"].nunique().min() > 1  # every run is split
    against_fits("chinchilla", curves, [~most, (curves["language"] == "en") | ~most], loss="squares")


def test_priors_weigh_against_the_residuals_of_each_part(mixtures):
    table, exposure = mixtures
    masks = [~test for test in compare.folds(table, "R2").values()]
    how = {"exposure": exposure, "variant": "D_other", "priors": {"tau_other": law_comparison._TAU_PRIOR}}
    against_fits("atlas", table, masks, **how)


def test_what_a_part_says_nothing_of_is_as_in_its_own_fit(mixtures):
    table, exposure = mixtures
    once = (
        table["target_unique"] >= table["target_tokens"]
    ).to_numpy()  # tells nothing of how repeats wear out
    assert 0 < (~once).sum() < len(once)
    against_fits("atlas", table, [once], variant="D_t")


def test_a_language_at_one_size_shares_no_more_noise_than_its_own_fit_says(curves):
    """Its A does only what its E does, which fits leave out: so do parts where that is so of all rows, or say None."""
    one_size = curves[(curves["language"] == "en") | (curves["params"] == curves["params"].min())]
    masks = [~test for test in compare.folds(one_size, "R2").values()]
    how = {"share": ("alpha", "beta"), "loss": "squares"}
    drafted = specify("chinchilla", one_size, *split_arguments(how))
    whole = estimate(drafted.problem, drafted.names, {}, 0)
    found = refit(whole, {}, np.array(masks)[:, drafted.order], True)
    for mask, theta in zip(masks, found, strict=True):
        alone = analysis.fit("chinchilla", one_size[mask], few_groups=True, **how)
        expected = alone.predict(one_size.iloc[drafted.order])["prediction"].to_numpy()
        np.testing.assert_allclose(whole.problem.predict(theta[None])[0], expected, rtol=3e-5)
    drafted = specify("chinchilla", curves, *split_arguments(how))
    whole = estimate(drafted.problem, drafted.names, {}, 0)
    kept = ((curves["language"] == "en") | (curves["params"] == curves["params"].min())).to_numpy()
    assert refit(whole, {}, kept[None, drafted.order], True) == [None]


def test_a_part_without_enough_says_so_and_the_others_are_fitted(curves):
    drafted = specify("chinchilla", curves, model=ModelOptions(share=("alpha", "beta")))
    whole = estimate(drafted.problem, drafted.names, {}, 0)
    one_size = (curves["params"] == curves["params"].min()).to_numpy()
    refused, fitted = refit(whole, {}, np.array([one_size, ~one_size])[:, drafted.order], True)
    with pytest.raises(MscaleError, match="one value only"):
        raise refused
    with pytest.raises(MscaleError) as alone:
        analysis.fit("chinchilla", curves[one_size], share=("alpha", "beta"))
    assert str(refused) == str(alone.value)
    assert np.isfinite(fitted).all()


def test_splits_may_be_of_some_languages_only(curves):
    how = {"share": ("alpha", "beta")}
    found = held_out.predictions("chinchilla", curves, {"R2": None, "leave_one_scale_out": ["sw"]}, how, 0)
    assert set(found["R2"]["level"]) == {"en", "sw"}
    assert len(found["leave_one_scale_out"]) == (curves["language"] == "sw").sum()
    own = compare.predictions("chinchilla", curves[curves["language"] == "sw"], "leave_one_scale_out")
    mine = found["leave_one_scale_out"]
    np.testing.assert_allclose(mine["predicted"], own["predicted"], rtol=3e-5)
    assert (mine["in_range"] == own["in_range"]).all()
