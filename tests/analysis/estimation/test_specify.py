"""From the arguments of `analysis.fit` to a problem."""

import dataclasses
import inspect

import numpy as np
import planted_chinchilla

import analysis
from analysis.estimation.specify import FitOptions, specify


def test_options_are_the_arguments_of_fit_with_their_defaults():
    arguments = inspect.signature(analysis.fit).parameters
    defaults = {
        name: argument.default
        for name, argument in arguments.items()
        if name not in ("law", "table", "options")
    }
    assert {
        one.name: one.default for one in dataclasses.fields(FitOptions) if one.name != "of_law"
    } == defaults


def test_what_is_no_argument_of_fit_is_left_to_the_law():
    assert FitOptions.of(group="run", variant="K_t") == FitOptions(group="run", of_law={"variant": "K_t"})


def test_rows_are_sorted_by_level_and_group_and_inactive_parameters_left_out():
    table = planted_chinchilla.study(2, 0).sample(frac=1.0, random_state=0)
    found = specify("data_constrained", table, FitOptions(group="run"))
    assert found.problem.names == (
        "E",
        "A",
        "alpha",
        "B",
        "beta",
    )  # no data repeat, so R_D and R_N have no effect
    assert set(found.problem.inactive) == {"R_D", "R_N"}
    in_order = found.rows.table.iloc[found.order]
    np.testing.assert_array_equal(found.problem.y, in_order["loss"])
    assert (np.diff(found.problem.group) >= 0).all()


def test_a_parameter_is_active_where_it_matters_at_the_values_that_others_are_fixed_at():
    """At these A, B, α and β the runs have more parameters than are optimal for their unique tokens."""
    table = planted_chinchilla.study(2, 0).assign(target_unique=1e6)
    fixed = {"A": 25.0, "alpha": 0.34, "B": 60.0, "beta": 0.31}
    assert (table["params"] > (0.34 * 25 / (0.31 * 60)) ** (1 / 0.34) * 1e6 ** (0.31 / 0.34)).any()
    assert (table["params"] < 1e6).all()
    names = specify("data_constrained", table, FitOptions(fixed=fixed)).problem.names
    assert names == ("E", "R_D", "R_N")
    assert "R_N" not in specify("data_constrained", table, FitOptions()).problem.names
