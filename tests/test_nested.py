"""A law searched from one that it contains has the optimum, priors and noise that it has when searched from nothing."""

import dataclasses

import numpy as np
import pytest

from analysis import heldout, nested, planted
from analysis.drafting import draft
from analysis.fitting import estimate
from analysis.lawfits import atlas_rows

TAU = {"tau_other": heldout.TAU, "tau": heldout.TAU}


@pytest.fixture(scope="module")
def study():
    observations, exposure, _ = planted.study(seed=5, small=True)
    table = heldout._tellable(atlas_rows(observations), "R2")
    names = sorted(map(str, table["language"].unique()))
    return table, {
        "chinchilla": draft("chinchilla", table, share=("alpha", "beta")),
        "D_t": draft("atlas", table, variant="D_t"),
        "D_other": draft("atlas", table, variant="D_other", exposure=exposure),
        "K_t": draft(
            "atlas",
            table,
            variant="K_t",
            exposure=exposure,
            sources={name: [names[number - 1]] for number, name in enumerate(names)},
        ),
    }


def priors(label):
    return TAU if label in ("D_other", "K_t") else {}


@pytest.fixture(scope="module")
def found(study):
    """Each law from nothing, and from those before."""
    wholes, plain = [], []
    for label, drafted in study[1].items():
        given = (drafted.problem, drafted.names, priors(label), 0)
        plain.append(estimate(*given))
        wholes.append(nested.nested(*given, wholes))
    return plain, wholes


def test_the_optimum_is_that_of_the_search_from_nothing(found):
    for plain, mine in zip(*found, strict=True):
        assert mine.names == plain.names
        assert mine.problem.ratio == pytest.approx(plain.problem.ratio)
        values = plain.problem.system(np.array([mine.theta, plain.theta]), plain.problem.members(), False)[0]
        assert values[0] <= values[1] * (1 + 1e-7)
        np.testing.assert_allclose(
            plain.problem.predict(mine.theta[None]), plain.problem.predict(plain.theta[None]), rtol=2e-5
        )
        if plain.problem.prior is not None:
            np.testing.assert_allclose(mine.problem.prior[1], plain.problem.prior[1], rtol=1e-3)


def test_a_bad_smaller_optimum_does_not_matter(study, found):
    plain, wholes = found
    drafted = study[1]["D_other"]
    far = np.clip(wholes[1].theta + 1.5, wholes[1].problem.lower, wholes[1].problem.upper)
    lost = dataclasses.replace(wholes[1], theta=far, alone=far)
    mine = nested.nested(drafted.problem, drafted.names, priors("D_other"), 0, [lost])
    values = [one.problem.objective(one.theta[None])[0] for one in (mine, plain[2])]
    assert values[0] == pytest.approx(values[1], rel=1e-5)


def test_only_laws_that_are_contained_on_the_same_rows_are_started_from(study, found, monkeypatch):
    table, drafts = study
    searched = []
    full = nested.estimate
    monkeypatch.setattr(nested, "estimate", lambda *given: searched.append(given[1]) or full(*given))
    chinchilla, small = found[1][:2]
    nested.nested(drafts["chinchilla"].problem, drafts["chinchilla"].names, {}, 0, [small])
    assert len(searched) == 1  # ATLAS is no part of Chinchilla
    less = draft("atlas", table.iloc[:-1], variant="D_t")
    nested.nested(less.problem, less.names, {}, 0, [chinchilla])
    assert len(searched) == 2
