"""From the arguments of `analysis.fit` to a problem."""

import dataclasses
import inspect

import numpy as np
import planted_chinchilla

import analysis
from analysis.estimation.specify import ModelOptions, RowOptions, specify, split_arguments


def test_options_are_the_arguments_of_fit_with_their_defaults():
    arguments = inspect.signature(analysis.fit).parameters
    defaults = {
        name: argument.default
        for name, argument in arguments.items()
        if name not in ("law", "table", "few_groups", "seed", "options")
    }
    fields = [field for kind in (RowOptions, ModelOptions) for field in dataclasses.fields(kind)]
    assert {field.name: field.default for field in fields} == defaults
    assert len(fields) == len(defaults)


def test_what_is_no_option_of_rows_or_model_is_left_to_the_law():
    rows, model, own = split_arguments({"group": "run", "loss": "squares", "variant": "K_t"})
    assert rows == RowOptions(group="run") and model == ModelOptions(loss="squares")
    assert own == {"variant": "K_t"}


def test_rows_are_sorted_by_level_and_group_and_inactive_parameters_left_out():
    table = planted_chinchilla.study(2, 0).sample(frac=1.0, random_state=0)
    found = specify("data_constrained", table, RowOptions(group="run"))
    assert found.names == ("E", "A", "alpha", "B", "beta")  # no data repeat, so R_D and R_N have no effect
    assert set(found.problem.inactive) == {"R_D", "R_N"}
    in_order = found.rows.table.iloc[found.order]
    np.testing.assert_array_equal(found.problem.y, in_order["loss"])
    assert (np.diff(found.problem.group) >= 0).all()
