"""Laws are compared only on languages that the training rows of every fold identify."""

import numpy as np
import pandas as pd

from analysis.study import law_comparison


def cells(sizes):
    """A trunk for each language and size."""
    rows = [(language, float(N)) for language, of in sizes.items() for N in of]
    table = pd.DataFrame(rows, columns=["language", "params"])
    return table.assign(group=np.arange(len(table)).astype(str), languages=table["language"])


def test_a_size_in_turn_needs_three_others():
    four, three = (1e4, 2e4, 4e4, 8e4), (1e4, 2e4, 4e4)
    whole = law_comparison.identifiable_rows(cells({"aa": four, "bb": three}), "leave_one_scale_out")
    assert set(whole["language"]) == {"aa", "bb"}
    assert law_comparison.identifiable_rows(cells({"aa": three, "bb": three}), "leave_one_scale_out").empty


def test_languages_at_one_size_are_left_out_of_all_laws():
    table = cells({"aa": (1e4, 2e4, 4e4, 8e4), "bb": (1e4, 2e4)})
    assert set(law_comparison.identifiable_rows(table, "leave_one_scale_out")["language"]) == {"aa"}


def test_what_cannot_be_split_is_empty():
    assert law_comparison.identifiable_rows(cells({"aa": (1e4, 2e4, 4e4)}), "R2_M").empty
    # A table of curves at a constant rate holds no cooled row at all.
    assert law_comparison.identifiable_rows(cells({"aa": (1e4, 2e4)}).head(0), "R2").empty
