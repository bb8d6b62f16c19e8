"""The runs recommended for a crossover are judged by making them, on planted studies."""

import dataclasses

import made_results
import numpy as np
import pandas as pd
import pytest
from scipy.optimize import brentq

from analysis.crossover import crossover
from analysis.planning import answer as answer_
from analysis.planning import gaussian_process, next_crossover_runs, start
from analysis.planning.next_runs import next_runs
from analysis.tables.observations import validate_observations
from analysis.tables.records import records, to_json_value
from mscale.errors import MscaleError

SIZES = {"s": 2e7, "m": 6e7, "l": 2e8}
CHECKPOINT, RUN = 0.002, 0.004


def loss(language, N, tokens, continued):
    """A continued run has 4B more tokens from the start, and a reducible data term that is 8% (bb: 13%) larger."""
    shift = 0.05 * (language == "bb")
    left = 900.0 / (tokens + 4e9 * continued * (N / 6e7) ** 0.5) ** 0.3
    return 1.8 + shift + 60 / N**0.3 + left * (1 + (0.08 + shift) * continued)


def planted_crossing(language, scale):
    N = SIZES[scale]
    return np.exp(
        brentq(
            lambda x: loss(language, N, np.exp(x), 0) - loss(language, N, np.exp(x), 1),
            np.log(1e8),
            np.log(1e15),
        )
    )


def trunk(rng, language, scale, continued, tokens, name):
    """Observations of a run at a constant rate with 30 evaluations."""
    at = np.geomspace(tokens / 50, tokens, 30).round()
    value = (
        loss(language, SIZES[scale], at, continued) + rng.normal(0, RUN) + rng.normal(0, CHECKPOINT, len(at))
    )
    return pd.DataFrame(
        {"run": name, "scale": scale, "params": SIZES[scale], "languages": language, "tokens": at, "loss": value,
         "phase": "stable", "language": language, "init": "unimax" if continued else "scratch"}
    )  # fmt: skip


def study(rng, tokens):
    """Both languages from scratch and continued at every size, bb at the smallest three times, to `tokens` by size."""
    parts = [
        trunk(rng, language, scale, continued, tokens[scale], f"{language}-{scale}-{continued}")
        for language in ("aa", "bb")
        for scale in SIZES
        for continued in (0, 1)
    ]
    again = [
        trunk(rng, "bb", "s", side, tokens["s"], f"bb-s-{side}-again-{n}") for side in (0, 1) for n in (1, 2)
    ]
    return pd.concat([*parts, *again])


def results_of(table):
    pairs = crossover.curve_pairs(validate_observations(table)[0], draws=60)
    found = {
        "table": records(crossover.crossovers(pairs)),
        "gaps": records(crossover.gap_curves(pairs, points=20)),
    }
    scales = [{"scale": name, "params": size} for name, size in SIZES.items()]
    return made_results.results(
        crossover=to_json_value(found), study={"scales": scales, "languages": ["aa", "bb"]}
    )


def made(rng, name, tokens, number):
    """The observations of the runs that a row of the answer recommends."""
    language, scale = name.split(",")[0].split(" at ")
    scale = scale.split(" ")[0]
    sides = [side for side, words in ((0, "from scratch"), (1, "from the checkpoint")) if words in name]
    return [trunk(rng, language, scale, side, tokens, f"new-{number}-{side}") for side in sides]


def crossing(table, language, scale):
    rows = table[(table["languages"] == language) & (table["scale"] == scale) | (table["languages"] == "bb")]
    found = crossover.crossovers(crossover.curve_pairs(validate_observations(rows)[0], draws=120))
    return found.set_index(["language", "scale"]).loc[(language, scale)]


def width(table, language, scale):
    """Width of the interval of the log tokens of a crossover; infinite where an end is open."""
    row = crossing(table, language, scale)
    ends = np.log([row["low"], row["high"]])
    return np.diff(ends)[0] if row["status"] == "measured" and np.isfinite(ends).all() else np.inf


def test_recommended_runs_narrow_the_crossover_more_than_others_of_equal_price():
    before, after, random = [], [], []
    for seed in range(20, 25):
        rng = np.random.default_rng(seed)
        table = study(rng, {scale: 3 * planted_crossing("bb", scale) for scale in SIZES})
        results = results_of(table)
        answer = next_runs("start", results, targets=["aa"], params=6e7, runs=4)
        assert "known to a factor of" in answer.text
        spent = answer.rows[-1]["flops_so_far"]
        new = [part for i, row in enumerate(answer.rows) for part in made(rng, row["run"], row["tokens"], i)]
        before.append(width(table, "aa", "m"))
        after.append(width(pd.concat([table, *new]), "aa", "m"))
        # Others: another seed of any run of the study, drawn until as much is spent.
        cells, paid, others = gaussian_process.crossover_cells(results, "aa", SIZES), 0.0, []
        while paid < spent:
            cell = cells[rng.integers(len(cells))]
            tokens = float(np.exp(cell.log_tokens)) * next_crossover_runs.CROSSOVER_MARGIN
            paid += 6 * cell.params * tokens
            others.append(
                trunk(rng, cell.language, cell.scale, int(rng.integers(2)), tokens, f"other-{len(others)}")
            )
        random.append(width(pd.concat([table, *others]), "aa", "m"))
        falls = [row["interval_after"] for row in answer.rows]
        assert falls == sorted(falls, reverse=True) and falls[0] < answer.rows[0]["interval_before"]
    assert np.median(after) < 0.85 * np.median(before)
    assert np.median(after) < 0.85 * np.median(random)


def surprise(cells, wanted, true):
    """Mean negative log-likelihood of what happens when the runs of a cell are extended to each multiple."""
    level, variance = gaussian_process.crossover_posterior(cells, wanted)
    end = min(wanted.last_tokens)
    chances = [
        next_crossover_runs.chance_to_show(level, np.sqrt(variance), end * by, end)
        for by in next_crossover_runs.EXTENSIONS
    ]
    came = [true < end * by for by in next_crossover_runs.EXTENSIONS]
    return np.mean([-np.log(max(p if yes else 1 - p, 1e-3)) for p, yes in zip(chances, came, strict=True)])


def test_a_crossover_beyond_the_data_is_shown_by_the_run_that_is_named(monkeypatch):
    shown, chances, surprises = [], [], {}
    for seed in range(40, 52):
        rng = np.random.default_rng(seed)
        share = rng.uniform(0.35, 0.85)
        reach = {scale: share * planted_crossing("aa", scale) for scale in SIZES}
        table = study(rng, reach)
        if crossing(table, "aa", "m")["status"] == "measured":  # noise made the curves cross before they do
            continue
        results = results_of(table)
        answer = next_runs("start", results, targets=["aa"], params=6e7, runs=1)
        assert "not within the data: continuing is still ahead" in answer.text
        assert any("showed the crossover" in reason for reason in answer.reasons)
        cells = gaussian_process.crossover_cells(results, "aa", SIZES)
        beyond = [cell for cell in cells if cell.language == "aa" and cell.status == "bound"]
        for trend in (gaussian_process.TREND_ERROR, 1.0):  # a trend may err by less than all of its distance
            with monkeypatch.context() as changed:
                changed.setattr(gaussian_process, "TREND_ERROR", trend)
                surprises.setdefault(trend, []).extend(
                    surprise(cells, cell, planted_crossing("aa", cell.scale)) for cell in beyond
                )
        (row,) = answer.rows
        direct = next(
            reason for reason in answer.reasons if reason.startswith("at that size itself, further ")
        )
        assert "shows it with a chance of" in direct and "FLOPs" in direct
        scale = row["run"].split(" at ")[1].split(",")[0]
        assert "further" in row["run"] and row["tokens"] > reach[scale]
        # Trained on, the same runs go further.
        longer = made(rng, row["run"], row["tokens"], 0)
        shown.append(crossing(pd.concat([table, *longer]), "aa", scale)["status"] == "measured")
        chances.append(row["chance_to_show"])
    assert len(shown) >= 8 and 0.2 < np.mean(chances) <= 1
    assert abs(np.mean(shown) - np.mean(chances)) < 0.3
    narrow, wide = (np.mean(values) for values in surprises.values())
    assert narrow < 0.35 and narrow < wide


def test_a_run_reduces_the_variance_by_at_most_its_chance_to_show_the_crossover():
    """If the crossover is not shown the variance stays, also after runs that are supposed to have shown theirs."""
    for seed, share in ((40, 0.1), (41, 0.2), (42, 0.4)):
        rng = np.random.default_rng(seed)
        table = study(rng, {scale: share * planted_crossing("aa", scale) for scale in SIZES})
        rows = next_runs("start", results_of(table), targets=["aa"], params=6e7, runs=4).rows
        variance = [
            {name: np.log(row[f"interval_{name}"]) ** 2 for name in ("before", "after")} for row in rows
        ]
        assert rows[0]["chance_to_show"] < 0.95
        for row, value in zip(rows, variance, strict=True):
            assert value["after"] >= (1 - row["chance_to_show"]) * value["before"] - 1e-9
        for value, following in zip(variance, variance[1:], strict=False):
            assert following["before"] <= value["after"] + 1e-9


def test_what_was_never_run_is_asked_for_and_what_makes_no_sense_is_refused():
    rng = np.random.default_rng(3)
    table = study(rng, {scale: 3 * planted_crossing("bb", scale) for scale in SIZES})
    gone = table[~((table["languages"] == "aa") & (table["init"] == "unimax"))]
    answer = next_runs("start", results_of(gone), targets=["aa"], params=6e7, runs=2)
    assert "aa at 60M parameters was not both trained from scratch and continued" in answer.text
    assert "from the checkpoint" in answer.rows[0]["run"] and 0 < answer.rows[0]["chance_to_show"] <= 1
    results = results_of(table)
    for how, message in (
        ({}, "name the one language it is about with --target"),
        ({"targets": ["aa", "bb"]}, "name the one language"),
        ({"targets": ["aaa"]}, "no language 'aaa'; did you mean 'aa'"),
        (
            {"targets": ["aa"], "params": 1e11},
            "100B parameters are more than a factor of two from every size",
        ),
        ({"targets": ["aa"], "params": float("nan")}, "--params is nan, expected a positive number"),
        ({"targets": ["aa"], "budget": 1e3}, "no run fits into 1k FLOPs; the cheapest takes"),
        ({"targets": ["aa"], "budget": -1.0}, "--budget is -1, expected a positive number"),
        ({"targets": ["aa"], "runs": 0}, "--runs is 0, expected a positive number"),
    ):
        with pytest.raises(MscaleError, match=message):
            next_runs("start", results, **how)


def test_start_answers_at_other_sizes_from_the_crossovers_that_there_are():
    rng = np.random.default_rng(11)
    table = study(rng, {scale: 3 * planted_crossing("bb", scale) for scale in SIZES})
    known = results_of(table[~((table["languages"] == "aa") & (table["scale"] == "m"))])
    for asked, scale in ((6e7, "m"), (8e8, None)):
        low, high = gaussian_process.crossover_interval(known, "aa", asked)
        truth = planted_crossing("aa", scale) if scale else 1.9 * planted_crossing("aa", "l")
        assert low < truth < high < 20 * low
        assert "from scratch. By the study's other" in start.start("aa", asked, 2 * high, known).text
        assert "from the checkpoint. By" in start.start("aa", asked, low / 2, known).text
        answer = start.start("aa", asked, np.sqrt(low * high), known)
        assert "too close to call" in answer.text and answer.basis == answer_.BASIS_STUDY
        assert any("no crossover of aa within a factor of two" in reason for reason in answer.reasons)
    assert any("outside the study's" in reason for reason in answer.reasons)
    with pytest.raises(MscaleError, match="more than a hundredfold outside"):
        start.start("aa", 1e12, 1e12, known)
    assert gaussian_process.crossover_interval(known, "cc", 6e7) is None


def test_the_expected_interval_is_the_one_that_more_runs_give():
    """Two runs of each curve in place of one: the variance halves, as it does when they are really made."""
    expected, real = [], []
    for seed in range(60, 65):
        rng = np.random.default_rng(seed)
        table = study(rng, {scale: 3 * planted_crossing("bb", scale) for scale in SIZES})
        cells = gaussian_process.crossover_cells(results_of(table), "aa", SIZES)
        wanted = next(cell for cell in cells if (cell.language, cell.scale) == ("aa", "m"))
        again = dataclasses.replace(wanted, runs=(2, 2))
        after = [again if cell is wanted else cell for cell in cells]
        before_sd, after_sd = (
            np.sqrt(gaussian_process.crossover_posterior(some, wanted)[1]) for some in (cells, after)
        )
        expected.append(after_sd / before_sd)
        tokens = 3 * planted_crossing("bb", "m")
        more = [trunk(rng, "aa", "m", side, tokens, f"more-{side}") for side in (0, 1)]
        real.append(width(pd.concat([table, *more]), "aa", "m") / width(table, "aa", "m"))
    assert abs(np.mean(expected) - np.mean(real)) < 0.12
