"""Answers to the questions of `mscale plan`."""

import made_results
import msgspec
import numpy as np
import pandas as pd
import planted_mixtures
import pytest

from analysis.fitting.fit import fit
from analysis.planning import answer as answer_
from analysis.planning import expand, start
from analysis.planning import languages as languages_
from analysis.planning import mixture as mixture_plan
from analysis.planning.co_training import co_training
from analysis.planning.mixture import best_mixture
from analysis.planning.next_runs import BUDGET_SHARES, CandidateTrunk, next_runs, residual_slopes
from analysis.report.findings import recommended_mixture
from analysis.text import count
from analysis.uncertainty.delta_method import covariance
from analysis.validation import simulate
from mscale.errors import MscaleError


def test_published_answers():
    answer = languages_.source_languages("es")
    assert answer.text.startswith("Train es with pt: score +0.50")
    helps = languages_.source_languages("es", decide=False).text
    assert helps.startswith("Trained half and half with es, pt helps most: score +0.50")
    assert answer.rows[0]["source"] == "pt" and answer.rows[0]["tau"] == pytest.approx(0.5 / 1.5)
    assert "interval not published" in answer.basis
    grown = expand.expand(8, 16, 2e9, 4e11)
    assert grown.rows[0]["times_parameters"] == pytest.approx(1.18, abs=0.01)
    assert grown.rows[0]["tokens"] == pytest.approx(1.66 * 4e11, rel=0.01)
    assert "from scratch" in start.start("en", 2e9, 4e11).text
    assert "from the checkpoint" in start.start("en", 2e9, 5e10).text
    assert "too close" in start.start("zh", 2e9, 2.5e11).text
    at_2b = start.start("en", 2e9, 1e11)
    # The paper measured it there, so that its two laws have nothing to say.
    assert at_2b.rows[0]["crossover_tokens"] == at_2b.rows[0]["other_constants"] == pytest.approx(144e9)
    assert "two sets of constants)" not in at_2b.text and any("factor of two" in one for one in at_2b.reasons)
    at_4b = start.start("en", 4e9, 1e11)
    assert at_4b.rows[0]["crossover_tokens"] == pytest.approx(144e9 * 2**0.65)
    assert at_4b.rows[0]["other_constants"] == pytest.approx(144e9 * 2**0.54)
    assert "209B to 226B by the paper's two sets of constants" in at_4b.text
    other = start.start("sw", 2e9, 1e11).rows[0]
    assert other["crossover_tokens"] == pytest.approx(1_113_708 * 2e9**1.65 / 12e9)


def test_refusals_say_what_is_missing():
    with pytest.raises(MscaleError, match="no transfer score for 'qqq'"):
        languages_.source_languages("qqq")
    with pytest.raises(MscaleError, match="tenfold outside"):
        expand.expand(8, 16, 1e13, 4e11)
    with pytest.raises(MscaleError, match="tenfold outside"):
        start.start("en", 1e5, 1e6)
    nan, inf = float("nan"), float("inf")
    for few, many, params, tokens in (
        (0, 4, 1e9, 1e9),
        (4, nan, 1e9, 1e9),
        (4, 8, inf, 1e9),
        (4, 8, 1e9, -1),
    ):
        with pytest.raises(MscaleError, match="plan expand: --.* expected a positive number"):
            expand.expand(few, many, params, tokens)
    with pytest.raises(MscaleError, match="0.5 languages, expected 1 or more"):
        expand.expand(0.5, 8, 1e9, 1e9)
    for params, tokens in ((nan, 1e9), (1e9, 0), (-1e9, 1e9), (1e9, inf)):
        with pytest.raises(MscaleError, match="plan start: --.* expected a positive number"):
            start.start("en", params, tokens)
    for flops, params in ((nan, None), (0, None), (1e15, -2)):
        with pytest.raises(MscaleError, match="plan languages: --.* expected a positive number"):
            co_training("a", planted_mixtures.results(0), flops, params)
    unfitted = made_results.results(laws={"atlas": {"fitted": False, "reason": "no exposure"}})
    with pytest.raises(MscaleError, match="ATLAS law, which is not fitted: no exposure"):
        best_mixture(["a"], 1e14, unfitted)
    with pytest.raises(MscaleError, match="ATLAS law, which is not fitted: no exposure"):
        co_training("a", unfitted, 1e14)
    with pytest.raises(MscaleError, match="ATLAS law, which is not fitted: no exposure"):
        next_runs("languages", unfitted, targets=["a"])
    with pytest.raises(MscaleError, match="no decision 'mixtures'; did you mean 'mixture'"):
        next_runs("mixtures", unfitted)


def test_a_study_comes_before_the_paper():
    row = {
        "scale": "s",
        "target": "es",
        "source": "xx",
        "status": "measured",
        "score": 0.2,
        "low": 0.1,
        "high": 0.3,
    }
    results = made_results.results(transfer={"scale": "s", "matrix": [{**row, "tau": 0.111}]})
    answer = languages_.source_languages("es", results)
    assert answer.rows[0]["source"] == "xx" and answer.basis == answer_.BASIS_STUDY
    assert any(other["basis"] == answer_.BASIS_PUBLISHED for other in answer.rows)


def test_a_pair_that_never_reached_the_loss_is_said_to_score_at_most_its_bound():
    row = {"scale": "s", "target": "es", "source": "pt", "status": "bound", "bound": "at most", "tau": None}
    cells = [{**row, "score": -0.5, "low": None, "high": -0.2}]
    results = made_results.results(transfer={"scale": "s", "matrix": cells})
    answer = languages_.source_languages("es", results)
    assert "No source is known to help es; the best is pt, at most −0.50." in answer.text
    # The paper's figure for a pair that the study ran stays out.
    assert [one["basis"] for one in answer.rows if one["source"] == "pt"] == [answer_.BASIS_STUDY]
    results.transfer.matrix = [{**cells[0], "bound": "at least", "score": 0.4}]
    early = languages_.source_languages("es", results)
    assert early.text.startswith("Train es with pt: score at least +0.40")
    # A measured score whose interval is open below is not known to help.
    open_ = {**cells[0], "status": "measured", "bound": "", "score": 0.1, "high": 0.4, "tau": 0.05}
    results.transfer.matrix = [open_]
    assert "No source is known" in languages_.source_languages("es", results).text


FLOPS = 6 * 3e5 * 1.2e7


def test_the_mixture_comes_with_intervals_usual_mixtures_and_reasons():
    results = planted_mixtures.results(0)
    answer = best_mixture(["a", "b", "c", "d"], FLOPS, results, weights=[2, 1, 1, 1])
    rates = {row["language"]: row for row in answer.rows}
    assert sum(row["rate"] for row in answer.rows) == pytest.approx(1, abs=1e-3)
    assert all(row["low"] <= row["rate"] <= row["high"] for row in answer.rows)
    assert rates["a"]["epochs"] == pytest.approx(rates["a"]["tokens"] / planted_mixtures.UNIQUE["a"])
    (title, compared), *_ = answer.more
    mine, *rivals = compared
    assert mine["low"] < mine["loss"] < mine["high"] and mine["high"] - mine["low"] < 0.1
    truth = planted_mixtures.true_laws(planted_mixtures.planted(0))
    chosen = np.array([rates.get(name, {"rate": 0.0})["rate"] for name in planted_mixtures.NAMES])
    size = mine["parameters"]
    true = truth.loss(chosen / chosen.sum(), size, FLOPS / 6 / size)[0] @ np.array([2, 1, 1, 1]) / 5
    assert mine["low"] <= true <= mine["high"]
    assert len(rivals) == 4 and all(row["worse_by"] > 0 for row in rivals)
    assert any("extrapolated" in reason for reason in answer.reasons) == (size > planted_mixtures.SIZES[-1])
    held = best_mixture(["a"], FLOPS, results, params=1e5, unique={"a": 1e9})
    assert held.rows[0]["rate"] == pytest.approx(1, abs=1e-3) and "100k parameters" in held.text


def test_the_mixture_refuses_bad_arguments():
    results = planted_mixtures.results(0)
    for wrong, message in (
        ({"targets": ["a", "a"], "flops": 1e12}, "named twice"),
        ({"targets": ["a", "b"], "flops": 1e12, "weights": [1]}, "as many weights"),
        ({"targets": ["a", "b"], "flops": 1e12, "weights": [1, -1]}, "none negative"),
        (
            {"targets": ["a", "b"], "flops": 1e12, "weights": [1, float("nan")]},
            "1, nan: 2 targets need as many",
        ),
        ({"targets": ["a"], "flops": 0}, "--flops is 0, expected a positive number"),
        ({"targets": ["a"], "flops": float("inf")}, "--flops is inf, expected a positive number"),
        ({"targets": ["a"], "flops": 1e12, "params": -1.0}, "--params is -1, expected"),
        ({"targets": ["q"], "flops": 1e12}, "no ATLAS law of 'q'"),
        ({"targets": ["a"], "flops": 1e12, "unique": {"q": 1e6}}, "the laws have no such language"),
        ({"targets": ["a"], "flops": 1e12, "unique": {"a": 0}}, "expected a positive number"),
        ({"targets": ["a"], "flops": 1e24}, "more than a hundredfold outside"),
    ):
        with pytest.raises(MscaleError, match=message):
            best_mixture(results=results, **wrong)


def test_a_size_that_a_target_was_not_run_at_is_refused_with_what_to_run():
    """At one size E and A are not identified: only the loss at that size is known."""
    results = planted_mixtures.results(0, lone="d")
    middle = planted_mixtures.SIZES[2]
    for decide in (
        lambda **held: best_mixture(["a", "d"], FLOPS, results, **held),
        lambda **held: co_training("d", results, FLOPS, **held),
    ):
        with pytest.raises(
            MscaleError, match=rf"loss on d at .* d was run at {count(middle)} alone.*--params"
        ):
            decide()
        assert decide(params=middle).text
    held = best_mixture(["a", "d"], FLOPS, results, params=middle)
    mine = held.more[0][1][0]
    rates = {row["language"]: row["rate"] for row in held.rows}
    truth = planted_mixtures.true_laws(planted_mixtures.planted(0))
    chosen = np.array([rates.get(name, 0.0) for name in planted_mixtures.NAMES])
    true = truth.loss(chosen / chosen.sum(), middle, FLOPS / 6 / middle)[0, [0, 3]].mean()
    assert mine["low"] <= true <= mine["high"] and mine["high"] - mine["low"] < 0.1
    assert best_mixture(["a", "b"], FLOPS, results).text  # other targets are not held back
    for targets, first in (["a", "d"], True), (["a", "b"], False):
        reasons = next_runs("mixture", results, targets=targets, flops=FLOPS, runs=1).reasons
        assert any("first run d at other sizes" in reason for reason in reasons) == first


def test_a_gain_smaller_than_the_misfit_of_the_law_is_not_sure(monkeypatch):
    results = planted_mixtures.results(0)
    sure = best_mixture(["a", "b", "c", "d"], FLOPS, results, weights=[1, 0, 0, 3]).reasons
    assert any(reason.endswith(": surely") for reason in sure)
    monkeypatch.setattr(mixture_plan, "misfit", lambda fit: 1.0)
    reasons = best_mixture(["a", "b", "c", "d"], FLOPS, results, weights=[1, 0, 0, 3]).reasons
    assert any("not surely, since the law misses" in reason for reason in reasons)


def test_a_report_advises_the_best_mixture_or_a_usual_one_where_none_is_surely_better(monkeypatch):
    results = planted_mixtures.results(1)
    largest = max(6 * row["params"] * row["tokens"] for row in results.fit_points)

    def advice(results):
        return mixture_plan.advice(results.fits["atlas"], results.study, largest, results.level)

    def said(results, found):
        return recommended_mixture(msgspec.structs.replace(results, mixture=found))[0]

    found = advice(results)
    assert found.better and found.flops == largest
    assert said(results, found).sure == "likely"
    assert f"tokens of {next(iter(found.rates))} " in said(results, found).text
    assert sum(found.rates.values()) == pytest.approx(1, abs=0.02)
    asked = best_mixture(list("abcd"), largest, results)
    rates = {row["language"]: row["rate"] for row in asked.rows}
    assert all(rate == pytest.approx(rates[name], abs=0.05) for name, rate in found.rates.items())
    monkeypatch.setattr(mixture_plan, "misfit", lambda fit: 1.0)
    careful = advice(results)
    text = said(results, careful).text
    assert said(results, careful).sure == "unclear" and "is not surely better" in text
    usual = min(careful.compared[1:], key=lambda row: row["worse_by"])
    assert f"mixed as usual ({usual['mixture']})" in text
    lone = planted_mixtures.results(0, lone="d")
    assert "run at one size alone" in advice(lone).reason
    assert "No mixture is recommended: d: run at one size" in said(lone, advice(lone)).text


def test_sources_help_once_ones_own_text_is_exhausted():
    """By the planted law: fresh text of the best source is worth more than repeats from 1 + ln(1/τ)/λ epochs on."""
    results, params = planted_mixtures.results(1), planted_mixtures.planted(1)
    rich = co_training("c", results, 6 * 1e5 * 4e6)
    assert "costs c more than it gives" in rich.text
    assert not any(
        "count alike" in reason for reason in (*rich.reasons, *co_training("d", results, FLOPS).reasons)
    )
    poor = co_training("d", results, FLOPS)
    assert "lower than alone" in poor.text and "not surely" not in poor.text
    by = {row["source"]: row for row in poor.rows}
    best = max(by, key=lambda name: params[f"tau[d,{name}]"])
    assert by[best]["rate"] == max(row["rate"] for row in poor.rows) > 0.3
    ((_, path),) = poor.more
    assert path[1]["added"] == best and path[1]["loss"] < path[0]["loss"] - 0.01
    exact = 1 + np.log(1 / params[f"tau[d,{best}]"]) / params["lambda"]
    said = next(reason for reason in poor.reasons if "epochs on" in reason)
    low, high = (float(word.strip("()")) for word in said.split("on (")[1].rstrip(")").split(" to "))
    assert low <= exact <= high < 6 * low


def test_the_uncertainty_after_a_run_is_that_of_a_fit_with_its_rows_added():
    """By the information of the rows of the trunk, at the same noise."""
    found = planted_mixtures.fitted(0)
    row = next_runs("languages", planted_mixtures.results(0), targets=["a"], runs=1).rows[0]
    languages, scale = row["run"].split(" at ")
    params = {one["scale"]: one["params"] for one in planted_mixtures.results(0).study.scales}[scale]
    run = CandidateTrunk(tuple(languages.split("+")), scale, params, row["tokens"])
    slopes = residual_slopes(found, run, planted_mixtures.UNIQUE)
    assert slopes.shape == (len(run.languages) * len(BUDGET_SHARES), len(found.theta))
    noise = found.noise
    sigma2, ratio = noise.at_best(noise.sigma2)[0], noise.ratio[noise.best[0]]
    shared = np.eye(len(slopes)) + ratio
    information = np.linalg.inv(covariance(found)) + slopes.T @ np.linalg.inv(shared) @ slopes / sigma2
    taus = [index for index, name in enumerate(found.names) if name.startswith("tau[a,")]
    for known, name in (
        (covariance(found), "uncertainty_before"),
        (np.linalg.inv(information), "uncertainty_after"),
    ):
        assert row[name] == pytest.approx(np.sqrt(np.diag(known)[taus].mean()), rel=1e-5)


def test_the_recommended_run_narrows_the_decision_more_than_other_runs_do():
    """Judged by fits of planted studies with the run added, against other runs of the same price."""
    results = planted_mixtures.results(0)
    answer = next_runs("languages", results, targets=["a"])
    assert "FLOPs" in answer.text and len(answer.rows) == 5
    falls = [row["uncertainty_after"] for row in answer.rows]
    assert falls == sorted(falls, reverse=True)
    assert answer.rows[0]["uncertainty_before"] > 1.1 * falls[-1]
    assert all("a" in row["run"].split(" at ")[0].split("+") for row in answer.rows)
    rows, exposure = planted_mixtures.design()

    def error_after(languages):
        cells = [(languages, [planted_mixtures.SIZES[0]], (2e6, 4e6, 8e6))] * 4
        extra, seen = simulate.multilingual_design(cells, unique=planted_mixtures.UNIQUE)
        for table in (extra, seen):
            table["run"] = "new-" + table["run"]
        extra["group"] = "new-" + extra["group"]
        design = pd.concat([rows, extra], ignore_index=True)
        seen = pd.concat([exposure, seen], ignore_index=True)
        study = simulate.draw_observations(
            "atlas",
            design,
            planted_mixtures.planted(0),
            exposure=seen,
            sources=planted_mixtures.SOURCES,
            seed=5,
        )
        made = fit("atlas", study, exposure=seen, sources=planted_mixtures.SOURCES)
        which = [name.startswith("tau[a,") for name in made.names]
        return np.sqrt(np.mean(np.diag(covariance(made))[which]))

    assert error_after(("a", "b")) < 0.97 * error_after(("c", "d"))


def test_next_runs_keep_to_a_budget_and_say_what_they_need():
    results = planted_mixtures.results(0)
    free = next_runs("mixture", results, targets=["a", "d"], flops=FLOPS)
    cheap = next_runs("mixture", results, targets=["a", "d"], flops=FLOPS, budget=2.5 * free.rows[0]["flops"])
    assert sum(row["flops"] for row in cheap.rows) <= 2.5 * free.rows[0]["flops"]
    for wrong, message in (
        ({"decision": "languages"}, "--target"),
        ({"decision": "languages", "targets": ["q"]}, "no ATLAS law of 'q'"),
        ({"decision": "mixture", "targets": ["a"]}, "--flops"),
        ({"decision": "languages", "targets": ["a"], "budget": 1.0}, "no run fits into"),
        ({"decision": "expand"}, "capacity law, which is not fitted: one K"),
    ):
        with pytest.raises(MscaleError, match=message):
            next_runs(results=results, **wrong)


def crossing(status="measured", bound="", tokens=2e6):
    row = {
        "scale": "s", "params": 1e5, "language": "xx", "tokens": tokens, "low": 1.5e6, "high": 3e6,
        "status": status, "bound": bound, "gap": -0.02, "gap_low": -0.03, "gap_high": -0.01, "gap_tokens": 4e6,
    }  # fmt: skip
    gaps = [
        {"scale": "s", "language": "xx", "tokens": x, "gap": g, "low": g - 0.01, "high": g + 0.01}
        for x, g in ((1e6, 0.1), (2e6, 0.0), (4e6, -0.02))
    ]
    scales = [{"scale": "s", "params": 1e5}]
    return made_results.results(crossover={"table": [row], "gaps": gaps}, study={"scales": scales})


def test_start_says_how_close_the_call_is():
    early = start.start("xx", 1.2e5, 1e6, crossing())
    assert "from the checkpoint" in early.text and "+0.100 nats (+0.090 to +0.110)" in early.text
    assert "from scratch" in start.start("xx", 1e5, 3.9e6, crossing()).text
    close = start.start("xx", 1e5, 2e6, crossing())
    assert "too close to call" in close.text and "0.000 nats" in close.text
    beyond = start.start("xx", 1e5, 9e6, crossing("bound", "at least", 4e6))
    assert "not within the data" in beyond.text
    assert any("nothing is extrapolated" in reason for reason in beyond.reasons)
    # Within noise the crossover may lie before the bound.
    noisy = crossing("bound", "at least", 4e6)
    near = start.start("xx", 1e5, 2e6, noisy)
    assert (
        "too close to call (continuing is still ahead at 4M)" in near.text
        and "above 1.5M tokens" in near.text
    )
    assert "from the checkpoint" in start.start("xx", 1e5, 1.2e6, noisy).text
    early = start.start("xx", 1e5, 2.5e6, crossing("bound", "at most", 2e6))
    assert "too close to call (scratch is already ahead at 2M)" in early.text and "below 3M" in early.text
    with pytest.raises(MscaleError, match="no crossover of yy within a factor of two of 100k.*xx at 100k"):
        start.start("yy", 1e5, 1e6, crossing())


def test_predicted_pairs_are_flagged_and_generated_languages_are_not_the_papers():
    cell = {"target": "es", "source": "zz", "score": 0.3, "low": 0.1, "high": 0.5}
    results = made_results.results(
        transfer={"scale": "s", "predicted": {"cells": [cell]}}, truth={"languages": {}}
    )
    answer = languages_.source_languages("es", results)
    assert [row["source"] for row in answer.rows] == ["zz"] and answer.basis == answer_.BASIS_PREDICTED
    answer = languages_.source_languages("es", msgspec.structs.replace(results, truth=None))
    assert answer.rows[0]["basis"] == answer_.BASIS_PREDICTED and answer.rows[1]["source"] == "pt"
    with pytest.raises(MscaleError, match="no transfer score for 'pt'"):
        languages_.source_languages("pt", results)


def test_sources_that_share_one_tau_are_said_to_count_alike():
    rows, exposure = planted_mixtures.design()
    how = {"exposure": exposure, "sources": {name: ["a"] for name in "bcd"} | {"a": ["b"]}}
    study = simulate.draw_observations("atlas", rows, planted_mixtures.planted(0), seed=1, **how)
    results = planted_mixtures.results(0)
    results.fits = {"atlas": fit("atlas", study, **how).to_json()}
    answer = co_training("c", results, FLOPS)
    assert any("no τ of their own of b, d: they count alike" in reason for reason in answer.reasons)


def test_how_much_is_too_much_is_said_of_shares_that_can_be():
    for seed in (0, 1):
        for target in "abcd":
            text = co_training(target, planted_mixtures.results(seed), FLOPS).text
            assert "more than 100%" not in text and "more than 95% of the tokens" not in text
