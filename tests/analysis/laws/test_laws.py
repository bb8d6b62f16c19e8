"""Every law recovers the parameters that its observations were drawn with; the printed ones where a paper has them."""

import numpy as np
import pandas as pd
import pytest

import analysis
from analysis.laws import LAWS, atlas, data_constrained, examples, mixing
from analysis.validation import simulate
from mscale.errors import MscaleError

SIZES = np.geomspace(2e4, 8e5, 5)


def assert_recovers(law, table, params, rel=1e-3, **options):
    found = analysis.fit(law, table, **options)
    for name, value in params.items():
        assert found.params[name] == pytest.approx(value, rel=rel, abs=1e-4), name
    return found


@pytest.mark.parametrize("law", list(LAWS.values()), ids=list(LAWS))
def test_declarations_are_complete(law):
    names = [parameter.name for parameter in law.parameters]
    assert len(set(names)) == len(names) and law.equation and law.source
    for parameter in law.parameters:
        assert parameter.bounds[0] <= parameter.start[0] < parameter.start[1] <= parameter.bounds[1]
        assert not parameter.log or parameter.bounds[0] > 0
        assert all(exponent in names and v in law.columns for exponent, v, _ in parameter.reference)


@pytest.fixture(scope="module")
def multilingual():
    languages = ["en", "fr", "sw", "hi"]
    budgets = (2e6, 6e6, 2e7)
    pairs = [(a, b) for i, a in enumerate(languages) for b in languages[i + 1 :]]
    cells = [((name,), SIZES, budgets) for name in languages]
    cells += [(pair, SIZES, budgets) for pair in pairs]
    cells += [(tuple(languages), SIZES, budgets), (tuple(languages[:3]), SIZES, budgets)]
    design, exposure = simulate.multilingual_design(cells)
    repeated, seen = simulate.multilingual_design(
        [((name,), SIZES, budgets) for name in languages], {n: 7e5 for n in languages}
    )
    repeated["run"] += "-r"
    repeated["group"] += "-r"
    seen["run"] += "-r"
    return pd.concat([design, repeated], ignore_index=True), pd.concat([exposure, seen], ignore_index=True)


TAU = {"tau[en,fr]": 0.4, "tau[en,sw]": 0.1, "tau[en,hi]": -0.05}
ATLAS = {"E": 1.6, "A": 25.0, "alpha": 0.3, "B": 80.0, "beta": 0.35, "lambda": 0.6}


def test_atlas_recovers_transfer_and_repetition(multilingual):
    design, exposure = multilingual
    truth = {**ATLAS, **TAU, **{f"tau_{k}": 0.2 for k in (1, 2, 3)}, "tau_other": 0.0}
    table = simulate.draw_observations(
        "atlas", design[design["language"] == "en"], truth, exposure=exposure, trunk=0, checkpoint=0
    )
    found = assert_recovers(
        "atlas", table, {**TAU, "lambda": 0.6, "alpha": 0.3, "beta": 0.35}, exposure=exposure
    )
    assert found.identification() == {"tau_other[en]": "no row depends on it"}


def test_atlas_shares_exponents_and_lambda(multilingual):
    design, exposure = multilingual
    sources = {
        name: [other for other in ("en", "fr", "sw", "hi") if other != name]
        for name in ("en", "fr", "sw", "hi")
    }
    truth = {**ATLAS, "E[sw]": 2.0, "tau_other": 0.0}
    for target, found in sources.items():
        truth |= {f"tau[{target},{source}]": 0.1 * (k + 1) for k, source in enumerate(found)}
    table = simulate.draw_observations(
        "atlas", design, truth, exposure=exposure, sources=sources, trunk=0.001, checkpoint=0.0005
    )
    found = analysis.fit("atlas", table, exposure=exposure, sources=sources)
    assert {"alpha", "beta", "lambda"} <= set(found.names)
    for name, value in truth.items():
        if name.startswith("tau["):
            assert found.params[name] == pytest.approx(value, abs=0.05)
    assert found.params["E[sw]"] == pytest.approx(2.0, abs=0.05)


def test_atlas_holds_effective_data_above_its_floor(multilingual):
    design, exposure = multilingual
    rows = design[design["language"] == "en"]
    truth = {**ATLAS, "tau[en,fr]": -0.5, "tau[en,sw]": -0.3, "tau[en,hi]": -0.15, "tau_other": 0.0}
    table = simulate.draw_observations(
        "atlas", rows, truth, exposure=exposure, trunk=0.02, checkpoint=0.02, seed=5
    )
    found = analysis.fit("atlas", table, exposure=exposure)
    assert (found.problem.constraint(found.theta[None]) > 0).all()
    few = found.predict(rows.head(3).assign(D_1=1e5, U_1=1e9), level=0.9)
    assert (few["low"] < few["prediction"]).all() and (few["prediction"] < few["high"]).all()
    crowded = pd.DataFrame(
        {"params": [1e5], "target_tokens": [1e6], "target_unique": [1e9], "language": ["en"]}
    )
    crowded = crowded.assign(D_1=5e6, U_1=1e9, D_2=5e6, U_2=1e9, D_3=5e6, U_3=1e9)
    assert np.isnan(found.predict(crowded)["prediction"][0])


def test_sources_are_the_most_co_sampled():
    design, exposure = simulate.multilingual_design(
        [
            (("en", "fr"), SIZES[:1], (8e6,)),
            (("en", "hi"), SIZES[:1], (2e6,)),
            (("en", "sw"), SIZES[:1], (4e6,)),
        ]
    )
    assert atlas.co_sampled_sources(design, exposure)["en"] == ["fr", "sw", "hi"]
    assert atlas.co_sampled_sources(design, exposure, count=2) == {
        "en": ["fr", "sw"],
        "fr": ["en"],
        "hi": ["en"],
        "sw": ["en"],
    }
    continued = design.assign(init=np.where(design["mixture"] == "en+fr", "en-trunk", "scratch"))
    assert atlas.co_sampled_sources(continued, exposure)["en"] == ["sw", "hi"]


def test_ties_among_sources_go_to_the_higher_measured_score_then_to_the_name():
    design, exposure = simulate.multilingual_design(
        [
            (("en", other), SIZES[:1], (tokens,))
            for other, tokens in (("fr", 4e6), ("hi", 4.1e6), ("sw", 4e6), ("zh", 2e6))
        ]
    )
    assert atlas.co_sampled_sources(design, exposure)["en"] == ["fr", "hi", "sw"]
    scores = pd.DataFrame(
        [("en", "sw", "measured", 0.4), ("en", "hi", "bound", 0.9), ("en", "zh", "measured", 0.9)],
        columns=["target", "source", "status", "score"],
    )
    assert atlas.co_sampled_sources(design, exposure, scores)["en"] == ["sw", "fr", "hi"]


def test_saturation():
    D, U = np.array([1e6, 2e6, 1e9]), np.array([2e6, 1e6, 1e6])
    S = atlas.saturated_tokens(D, U, 0.5)
    assert S[0] == 1e6
    assert S[1] == pytest.approx(1e6 * (1 + (1 - np.exp(-0.5)) / 0.5))
    assert S[2] == pytest.approx(1e6 * (1 + 1 / 0.5))


def test_capacity(multilingual):
    design, _ = multilingual
    truth = {"E": 1.5, "A": 25.0, "phi": 0.11, "alpha": 0.31, "B": 80.0, "psi": -0.04, "beta": 0.37}
    table = simulate.draw_observations("capacity", design, truth, trunk=0, checkpoint=0, per=None)
    found = assert_recovers("capacity", table, truth, per=None)
    one, four = (found.compute_optimal(1e12, K=K)["N"][0] for K in (1, 4))
    assert four > one  # more languages want a larger model


def test_data_constrained_at_the_published_constants():
    truth = {
        "alpha": 0.3527,
        "beta": 0.3527,
        "A": np.exp(6.2554),
        "B": np.exp(7.3050),
        "E": np.exp(0.6255),
        "R_D": 15.39,
        "R_N": 5.31,
    }
    N, D, epochs = (
        grid.ravel()
        for grid in np.meshgrid(np.geomspace(1e7, 9e9, 8), np.geomspace(1e9, 2e11, 6), [1, 4, 16, 64])
    )
    design = pd.DataFrame({"params": N, "target_tokens": D, "target_unique": D / epochs})
    table = simulate.draw_observations("data_constrained", design, truth, trunk=0, checkpoint=0)
    assert_recovers("data_constrained", table, truth, rel=5e-3)


def test_data_constrained_in_two_stages():
    languages, truth = ("en", "sw"), {**ATLAS, "E[sw]": 2.1, "R_D": 10.0, "R_N": 5.0}
    design = simulate.monolingual_design(SIZES, (2e6, 6e6, 2e7), languages, seeds=2)
    again = design.assign(run=design["run"] + "r", group=design["group"] + "r", target_unique=2.5e5)
    table = simulate.draw_observations(
        "data_constrained",
        pd.concat([design, again], ignore_index=True),
        truth,
        trunk=0.002,
        checkpoint=0.001,
        seed=4,
    )
    staged = analysis.fit("data_constrained", table, two_stage=True)
    first = analysis.fit("chinchilla", table[table["target_unique"] > 1e6], share=("alpha", "beta"))
    assert staged.names == ("R_D", "R_N")
    assert f"alpha {first.params['alpha']:.4g}" in staged.notes[0] and "E[sw]" in staged.notes[0]
    joint = analysis.fit("data_constrained", table)
    widths = []
    for found in (staged, joint):
        row = found.interval().loc["R_D"]
        assert row["estimate"] == pytest.approx(10.0, rel=0.15)
        widths.append(row["high"] / row["low"])
    assert widths[0] < widths[1]  # the uncertainty of stage one is ignored
    with pytest.raises(MscaleError, match="60 of 60 rows see their data once"):
        analysis.fit("data_constrained", design.assign(loss=2.0), two_stage=True)


def test_compute_optimal_size_is_chinchillas():
    from types import SimpleNamespace

    p = SimpleNamespace(A=500.0, B=1500.0, alpha=0.34, beta=0.37)
    N = data_constrained.compute_optimal_size(p, 1e9)
    assert p.alpha * p.A * N**-p.alpha == pytest.approx(p.beta * p.B * 1e9**-p.beta)


def test_family_and_bimix(multilingual):
    design, _ = multilingual
    truth = {"E": 1.5, "A": 25.0, "alpha": 0.31, "B": 80.0, "beta": 0.37, "gamma": 0.08}
    shares = design.assign(family_share=design["target_tokens"] / design["tokens"])
    table = simulate.draw_observations("family", shares, truth, trunk=0, checkpoint=0)
    assert_recovers("family", table, truth, per=None)
    truth = {"alpha": 0.1, "B": 40.0, "beta": 0.3, "C": 1.4}
    table = simulate.draw_observations("bimix", design, truth, trunk=0, checkpoint=0)
    assert_recovers("bimix", table, truth, per=None)


def test_mixing_recovers_the_parameters_in_its_gauge():
    rng = np.random.default_rng(0)
    table = pd.DataFrame(rng.dirichlet(np.ones(3), 60), columns=["web", "code", "books"])
    t = np.array([-1.2, 0.9, 0.3])
    table["loss"] = 1.8 + 0.6 * np.exp(table[["web", "code", "books"]].to_numpy() @ t)
    found = assert_recovers(
        "mixing",
        table,
        {"c": 1.8, "k": 0.6, "t[web]": -1.2, "t[code]": 0.9},
        domains=["web", "code", "books"],
    )
    assert -found.params["t[web]"] - found.params["t[code]"] == pytest.approx(0.3, rel=1e-3)
    with pytest.raises(MscaleError, match="add up to"):
        analysis.fit("mixing", table.assign(web=0.9), domains=["web", "code", "books"])
    with pytest.raises(MscaleError, match="at least two"):
        mixing.mixing_law(["web"], [""])


def test_transfer_at_the_published_exponents():
    rng = np.random.default_rng(0)
    table = pd.DataFrame(
        {"finetuning_tokens": 10 ** rng.uniform(5, 9, 50), "params": 10 ** rng.uniform(6, 9, 50)}
    )
    table["data_transferred"] = 1.9e4 * table["finetuning_tokens"] ** 0.18 * table["params"] ** 0.38
    assert_recovers("transfer", table, {"k": 1.9e4, "alpha": 0.18, "beta": 0.38})


def test_the_two_examples_of_the_guide():
    rng = np.random.default_rng(0)
    tokens = 10 ** rng.uniform(5.5, 10, 60)
    table = pd.DataFrame({"tokens": tokens, "score": -2.0 - 30.0 * np.log10(tokens) ** -1.6})
    assert_recovers("monolingual_equivalent", table, {"a": 30.0, "b": 1.6, "c": -2.0})
    assert examples.equivalent_tokens(-2.0 - 30.0 * 8.0**-1.6, 30.0, 1.6, -2.0) == pytest.approx(1e8)
    assert examples.equivalent_tokens(-1.0, 30.0, 1.6, -2.0) == np.inf
    n = 10 ** rng.uniform(1, 3.8, 200)
    table = pd.DataFrame(
        {"flops": 10 ** rng.uniform(20, 23, 200), "prompt_tokens": n, "context_limit": 4096.0}
    )
    truth = {"A": 0.8, "alpha": 0.3, "B": 2.0, "beta": 0.5}
    law = examples.CONTEXT_AWARE
    table["accuracy"] = simulate.evaluate_law(law, table, truth)
    assert table.loc[n > 4200, "accuracy"].max() < 1e-6
    assert_recovers("context_aware", table, truth)


def test_a_law_of_the_users_own():
    law = analysis.Law(
        name="logarithmic",
        equation="L = a - b*log(D)",
        source="a test",
        columns={"D": "words"},
        parameters=(
            analysis.Parameter("a", (0.0, 10.0), (-100.0, 100.0), linear=True),
            analysis.Parameter("b", (0.0, 1.0), (-10.0, 10.0), linear=True),
        ),
        predict=lambda p, x: p.a - p.b * np.log(x.D),
        response="nll",
    )
    D = np.geomspace(10, 1e4, 20)
    found = assert_recovers(law, {"words": D, "nll": 9.0 - 0.5 * np.log(D)}, {"a": 9.0, "b": 0.5})
    assert analysis.from_json(found.to_json(), law=law).params["a"] == found.params["a"]
    with pytest.raises(MscaleError, match="pass it as law="):
        analysis.from_json(found.to_json())
