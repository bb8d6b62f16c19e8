"""Each kind of bad input raises an error, or leaves a note, that says what to do."""

import numpy as np
import pytest
from planted_chinchilla import TRUE

import analysis
from analysis.validation import simulate
from mscale.errors import MscaleError


@pytest.fixture
def table():
    design = simulate.monolingual_design(np.geomspace(2e4, 4e5, 5), (2e6, 4e6, 8e6), seeds=2)
    return simulate.draw_observations("chinchilla", design, TRUE)


def refuses(match, table, law="chinchilla", **how):
    with pytest.raises(MscaleError, match=match):
        analysis.fit(law, table, **how)


def test_missing_column_suggests_the_nearest(table):
    refuses("'params' .*did you mean 'param_s'", table.rename(columns={"params": "param_s"}))
    refuses("no column 'parms'.*did you mean 'params'", table, columns={"N": "parms"})
    refuses("no variable 'n'", table, columns={"n": "params"})
    refuses("column 'loss'", table.drop(columns="loss"))


def test_losses_that_are_not_positive_where_logs_are_taken(table):
    table["loss"] -= 3.0
    refuses("takes logarithms.*residual='additive'", table)
    found = analysis.fit(
        "chinchilla", table[["params", "target_tokens", "loss", "group", "run"]], residual="additive"
    )
    assert found.r2 > 0.98


def test_rows_without_tokens_are_counted_and_left_out(table):
    table.loc[table.index[0], "target_tokens"] = 0
    assert any("1 rows with target_tokens = 0" in note for note in analysis.fit("chinchilla", table).notes)
    refuses("nothing is left", table.assign(target_tokens=0))


def test_continued_runs_are_left_out_of_a_law_of_pretraining(table):
    table.loc[table.index[:3], "init"] = "other-run"
    assert any("3 rows of runs continued" in note for note in analysis.fit("chinchilla", table).notes)
    refuses("every run continues a checkpoint", table.assign(init="other-run"))


def test_phases_are_not_mixed_unless_asked(table):
    table.loc[table.index[:3], "phase"] = "stable"
    assert any("3 rows outside phase end" in note for note in analysis.fit("chinchilla", table).notes)
    assert len(analysis.fit("chinchilla", table, phases=None).problem.y) == 30
    refuses("not comparable.*phases=", table.assign(phase="stable"))


def test_one_scale_only(table):
    refuses(
        "params .*one value only.*fix the exponent",
        table[table["params"] == table["params"].min()],
        few_groups=True,
    )


def test_one_budget_only(table):
    refuses("target_tokens .*one value only", table[table["target_tokens"] == 2e6])


def test_fewer_points_than_parameters(table):
    refuses("4 distinct points for 5 parameters", table.iloc[[0, 1, 8, 12]])


def test_constant_response(table):
    refuses("every loss is 2", table.assign(loss=2.0))


def test_unit_of_tokens_is_questioned(table):
    found = analysis.fit("chinchilla", table.assign(target_tokens=table["target_tokens"] / 1e6))
    assert any("'target_tokens'" in note and "billions" in note for note in found.notes)
    assert not any("billions" in note for note in analysis.fit("chinchilla", table).notes)
    large = table.assign(params=table["params"] * 1e6)
    assert any("tokens a parameter" in note for note in analysis.fit("chinchilla", large).notes)
    assert not any("tokens a parameter" in note for note in analysis.fit("chinchilla", table).notes)


def test_repetition_needs_unique_tokens(table):
    refuses("'target_unique'", table.drop(columns="target_unique"), law="data_constrained")
    refuses(
        "target_unique.*found 0, .*where nothing repeats",
        table.assign(target_unique=0),
        law="data_constrained",
    )
    refuses(
        "target_unique.*row 4: found 0, expected at least one unique",
        table.assign(target_unique=table["target_unique"].where(table.index != 4, 0)),
        law="data_constrained",
    )
    refuses(
        "target_unique.*row 4: found nan, expected a finite",
        table.assign(target_unique=table["target_unique"].where(table.index != 4)),
        law="data_constrained",
    )


def test_text_where_a_number_belongs(table):
    refuses(
        "row 2: found 'many', expected a number",
        table.assign(params=table["params"].astype(object).where(table.index != 2, "many")),
    )


def test_names_that_do_not_exist(table):
    refuses("no law 'chinchila'; did you mean 'chinchilla'", table, law="chinchilla"[:-2] + "a")
    refuses("no parameter 'alfa'; did you mean 'alpha'", table, fixed={"alfa": 1})
    refuses("target 'fr' is not in column 'language'", table, target="fr")
    refuses("no option 'variant'", table, variant="K_t")
    refuses("loss='l1'", table, loss="l1")
    refuses("no rows", table.head(0))


def test_atlas_asks_for_the_exposure(table):
    refuses("pass exposure=", table, law="atlas")
    refuses(
        "'unique_tokens' is missing",
        table,
        law="atlas",
        exposure=table[["run", "step", "language", "tokens"]],
    )
    exposure = table[["run", "step", "language", "tokens"]].assign(unique_tokens=1).iloc[1:]
    refuses("no rows for run", table, law="atlas", exposure=exposure)


def test_negative_or_unusable_weights(table):
    refuses("weights must be finite and positive", table, weights=[-1.0] * len(table))
    refuses("weights='wt'", table, weights="wt")
