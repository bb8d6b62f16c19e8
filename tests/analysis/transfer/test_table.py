"""The matrix as a table, and `mscale transfer` on CSV files of other projects."""

import json

import numpy as np
import one_billion
import pandas as pd
import pytest

from analysis.tables.observations import validate_observations
from analysis.transfer.table import TRANSFER_TABLE_COLUMNS, format_score, transfer_table
from analysis.validation import planted_study
from mscale.cli import main
from mscale.errors import MscaleError


@pytest.fixture(scope="module")
def planted():
    observations, _, _ = planted_study.make_study(seed=3, small=True)
    return validate_observations(observations)[0]


def test_every_pair_in_every_unit_measured_apart_from_bounds_and_predictions(planted):
    table, about = transfer_table(planted, d=1.5e6, premiums=dict.fromkeys(planted_study.LANGUAGES, 1.0))
    assert list(table.columns) == TRANSFER_TABLE_COLUMNS and about["scale"] == "nano2"
    assert set(table["unit"]) == {"tokens", "bytes", "content"} and not about["units_missing"]
    pairs = len(planted_study.LANGUAGES) * (len(planted_study.LANGUAGES) - 1)
    tokens = table[(table["unit"] == "tokens") & (table["scale"] == "nano2")]
    assert len(tokens) == pairs and (tokens["d"] == 1.5e6).all() and (tokens["level"] == 0.9).all()
    measured = tokens[tokens["status"] == "measured"]
    assert measured["score"].notna().all() and (measured["low"] < measured["high"]).any()
    # Pairs that were not run are predicted or missing, never measured, and keep the reason.
    rest = tokens[~tokens["status"].isin(["measured", "bound"])]
    assert len(rest) and rest["reason"].str.contains("no 50/50 run").all()
    assert (table["censored"] == (table["status"] == "bound")).all()
    assert not (table[table["unit"] != "tokens"]["status"] == "predicted").any()


def test_bad_arguments_are_refused(planted):
    for how, message in (
        ({"scale": "nano9"}, "no 50/50 run at scale 'nano9'; found"),
        ({"d": -1.0}, "expected a positive number of tokens"),
        ({"d": float("nan")}, "expected a positive number of tokens"),
    ):
        with pytest.raises(MscaleError, match=message):
            transfer_table(planted, **how)
    with pytest.raises(MscaleError, match="a score needs one, and each language alone"):
        transfer_table(planted[planted["tag"] == "mono"])


def test_scores_are_formatted_by_their_status():
    row = {"status": "measured", "bound": "", "score": 0.214, "low": 0.1, "high": 0.3}
    assert format_score(row) == "+0.21*" and format_score({**row, "low": -0.1}) == "+0.21"
    assert format_score({**row, "low": float("nan")}) == "+0.21"
    assert format_score({**row, "status": "bound", "bound": "at most", "score": -0.5}) == "≤−0.50"
    assert (
        format_score({**row, "status": "predicted"}) == "(+0.21)"
        and format_score({**row, "status": "missing"}) == "·"
    )


def run(*arguments):
    with pytest.raises(SystemExit) as stop:
        main([str(one) for one in arguments])
    return stop.value.code


def test_from_a_csv_with_a_column_a_language_to_the_matrix(tmp_path, capsys):
    """The steps of docs/transfer.md."""
    table, tau = one_billion.curves(7, checkpoint=0.003, run=0.001)
    table = table[table["languages"].isin(["en", "es", "en+es", "en+zh"])]
    wide = table.pivot_table(index=["run", "languages", "tokens"], columns="language", values="loss")
    wide.columns = [f"loss_{language}" for language in wide.columns]
    wide = wide.reset_index().rename(columns={"languages": "mix"})
    wide.assign(billions=wide.pop("tokens") / 1e9).to_csv(tmp_path / "curves.csv", index=False)
    columns = ("--column", "mixture=mix", "--column", "tokens=billions*1e9", "--wide", "loss_{language}")
    constants = ("--constant", "params=1.0124B", "--constant", "phase=stable")
    study = tmp_path / "observations.parquet"
    assert run("sweep", "import", tmp_path / "curves.csv", study, *columns, *constants) == 0
    assert "half and half: en+es, en+zh" in capsys.readouterr().out
    assert run("transfer", study, "--d", "2e10") == 0
    shown = capsys.readouterr().out
    assert "at 1.01B parameters, d = 20B tokens" in shown and "2 repeated runs" in shown
    assert "missing, 2: no monolingual run of zh in the stable phase" in shown
    cells = pd.read_csv(tmp_path / "transfer.csv").set_index(["target", "source"])
    row = cells.loc[("en", "es")]
    assert row["status"] == "measured" and row["low"] <= one_billion.score(tau["en", "es"]) <= row["high"]
    assert cells.loc[("zh", "en"), "status"] == "missing" and np.isnan(cells.loc[("zh", "en"), "score"])
    assert run("transfer", tmp_path / "none.csv") == 1
    assert "no such table" in capsys.readouterr().err


@pytest.fixture(scope="module")
def curves():
    table, _ = one_billion.curves(3, repeats=1)
    table = table[table["languages"].isin(["en", "es", "de", "en+es", "de+en"])]
    return table.assign(phase="stable").reset_index(drop=True)


def at(table, **cells):
    """The table with cells of its sixth row changed."""
    changed = table.astype({name: object for name in cells})
    for name, value in cells.items():
        changed.loc[5, name] = value
    return changed


def where(table, languages, **columns):
    """Sets columns to the first of two values in runs of these languages, and to the second in others."""
    mine = table["languages"] == languages
    return table.assign(**{name: np.where(mine, *values) for name, values in columns.items()})


def en(table):
    return table["languages"] == "en"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: t[~en(t) | (t["tokens"] == t[en(t)]["tokens"].max())], "missing, 2: a curve of one point"),
        (lambda t: t[~(en(t) & (t["tokens"] > 5e9))], "missing, 2: the monolingual curve of en covers"),
        (lambda t: t[~en(t)], "missing, 2: no monolingual run of en in the stable phase"),
        (
            lambda t: where(t, "en", phase=("end", "stable")),
            "en in the stable phase: cooled losses only, which",
        ),
        (
            lambda t: where(t, "en", eval_tokens=(1000, 2000)),
            "evaluation sets differ in size between runs (first: en",
        ),
        (lambda t: pd.concat([t, t.iloc[[5]]]), "1 duplicate rows dropped"),
        (lambda t: at(t, loss=float("nan")), "rows of 1 run(s) left out (1): the loss is not finite"),
        (lambda t: t.assign(tokens=t["tokens"] / 1e9), "check the units"),
        (
            lambda t: where(t, "en+es", mixed=(0.8, 0.5)).pipe(
                lambda t: t.assign(
                    target_tokens=t["tokens"] * np.where(t["languages"].str.contains("[+]"), t["mixed"], 1.0)
                )
            ),
            "1 runs left out (two languages, but not half and half): en-es-0",
        ),
    ],
)
def test_scores_that_cannot_be_measured_are_reported_with_the_reason(
    tmp_path, capsys, curves, change, message
):
    change(curves).to_csv(tmp_path / "curves.csv", index=False)
    assert run("transfer", tmp_path / "curves.csv", "--d", 2e10) == 0
    output = " ".join(capsys.readouterr().out.split())
    assert message in output
    cells = pd.read_csv(tmp_path / "transfer.csv")
    assert cells.loc[cells["status"] == "missing", "score"].isna().all()
    assert cells.loc[cells["status"] == "missing", "reason"].notna().all()


def test_curves_over_d_and_one_of_several_vocabularies(tmp_path, capsys, curves):
    both = pd.concat(
        [curves.assign(vocabulary="small"), curves.assign(vocabulary="big", run=curves["run"] + "-big")]
    )
    both.to_csv(tmp_path / "curves.csv", index=False)
    assert run("transfer", tmp_path / "curves.csv", "--vocabulary", "bigg") == 1
    assert "no vocabulary 'bigg' in the table; did you mean 'big'" in capsys.readouterr().err
    over = tmp_path / "over-d.csv"
    assert run("transfer", tmp_path / "curves.csv", "--vocabulary", "big", "--curves", over) == 0
    scores = pd.read_csv(over)
    assert (scores.groupby(["target", "source"])["d"].count() == 24).all() and len(scores) == 4 * 24
    one = pd.read_csv(tmp_path / "transfer.csv").set_index(["target", "source"]).loc[("en", "es")]
    mine = scores[(scores["target"] == "en") & (scores["source"] == "es") & (scores["status"] == "measured")]
    read = np.interp(np.log(one["d"]), np.log(mine["d"]), mine["score"])
    assert one["status"] == "measured" and read == pytest.approx(one["score"], abs=0.05)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: where(t, "en", vocabulary=("own", "spm")), "runs of the vocabularies own, spm"),
        (lambda t: where(t, "en", split=("flores", "dev")), "holds dev, flores: losses on different texts"),
        (lambda t: pd.concat([t, t.iloc[[5]].assign(loss=9)]), "2 rows share run, step, language, split"),
        (lambda t: at(t, loss=-2), "column 'loss', row 6: found -2, expected nats per token"),
        (lambda t: at(t, loss="oops"), "column 'loss', row 6: found 'oops', expected a number"),
        (
            lambda t: at(t, tokens=float("nan")),
            "column 'tokens', row 6: found nan, expected a positive number",
        ),
        (lambda t: t.assign(params=np.inf), "column 'params', row 1: found inf, expected a positive number"),
        (lambda t: t.assign(tokens=t["tokens"].max() - t["tokens"]), "tokens must not fall"),
        (lambda t: t.drop(columns="phase"), "column 'phase' is missing"),
        (lambda t: t.drop(columns="tokens"), "column 'tokens' is missing"),
        (lambda t: t[~t["languages"].str.contains("[+]")], "a score needs one, and each language alone"),
        (lambda t: t.head(0), "no rows"),
    ],
)
def test_bad_tables_are_refused_and_no_file_is_written(tmp_path, capsys, curves, change, message):
    change(curves).to_csv(tmp_path / "curves.csv", index=False)
    assert run("transfer", tmp_path / "curves.csv", "--d", 2e10) == 1
    assert message in capsys.readouterr().err
    assert not (tmp_path / "transfer.csv").exists()


def test_headlines_of_such_curves_word_open_ends(curves):
    from analysis.report.findings import headlines
    from analysis.report.report import analyse

    # Short pairs leave intervals open; the crossover has one too, its curves being of 1B parameters alike.
    continued = curves[en(curves)].assign(run="more", init="unimax")
    continued["loss"] = continued["loss"] - 0.02 + 0.012 * np.log(continued["tokens"] / 4e9)
    table = pd.concat([curves[curves["tokens"] < 5e10].assign(init="scratch"), continued])
    results = analyse(table, splits=())
    cells = results.transfer.matrix
    assert any(row["status"] == "measured" and row["low"] is None for row in cells)
    output = " ".join(item.text for item in headlines(results))
    assert "nan" not in output and "overtakes" in output


def test_a_given_noise_between_runs_replaces_the_assumed_one(tmp_path, capsys, curves):
    curves.to_csv(tmp_path / "curves.csv", index=False)
    widths = {}
    for noise in ((), ("--run-noise", 0.006), ("--run-noise", 0.001)):
        assert run("transfer", tmp_path / "curves.csv", "--d", 2e10, *noise) == 0
        output = capsys.readouterr().out
        assert ("(as given)" in output) == bool(noise) and ("only assumed" in output) != bool(noise)
        cells = pd.read_csv(tmp_path / "transfer.csv").set_index(["target", "source"])
        row = cells.loc[("es", "en")]
        widths[noise] = row["high"] - row["low"]
    assumed, given, small = widths.values()
    assert small < 0.7 * given and given < assumed
    assert run("transfer", tmp_path / "curves.csv", "--run-noise", -1) == 1
    assert "run noise is -1, expected nats, 0 or more" in capsys.readouterr().err


def test_laws_are_fitted_to_one_vocabulary_and_split_and_the_rest_is_counted(tmp_path, curves, capsys):
    other = curves.assign(run="other-" + curves["run"], loss=3 * curves["loss"], vocabulary="spm")
    flores = curves.assign(loss=curves["loss"] + 1, split="flores", vocabulary="bytes")
    both = pd.concat([curves.assign(split="valid", vocabulary="bytes"), flores, other.assign(split="valid")])
    both.to_csv(tmp_path / "both.csv", index=False)
    curves.to_csv(tmp_path / "one.csv", index=False)
    for arguments, message in (
        (
            ("fit", tmp_path / "both.csv"),
            "runs of 2 vocabularies (bytes, spm), whose losses per token are not",
        ),
        (("fit", tmp_path / "both.csv", "--law", "chinchilla"), "choose one, such as --vocabulary bytes"),
        (("report", tmp_path / "both.csv", "--vocabulary", "bytse"), "did you mean 'bytes'"),
        (("fit", tmp_path / "both.csv", "--vocabulary", "spm", "--split", "test"), "no split 'test' in the"),
        (("fit", tmp_path / "one.csv", "--law", "chinchilla", "--split", "valid"), "no column 'split', so"),
        (("transfer", tmp_path / "both.csv", "--vocabulary", "bytes"), "Choose one, such as --split valid"),
    ):
        assert run(*arguments) == 1
        assert message in " ".join(capsys.readouterr().err.split())

    def matrix(name, *arguments):
        assert run("fit", tmp_path / name, "--out", tmp_path / "laws.json", *arguments) == 0
        found = json.loads((tmp_path / "laws.json").read_text())
        rows = found["transfer"]["matrix"]
        codes = [note["code"] for note in found["notes"]]
        assert len(codes) == len(set(codes)) and "vocabularies" not in codes
        return [row["score"] for row in rows], {
            " ".join(row["names"]): row["rows"] for row in found["exclusions"]
        }

    where(curves, "en", eval_tokens=(1000, 2000)).to_csv(tmp_path / "uneven.csv", index=False)
    matrix("uneven.csv")
    assert (
        sum(
            note["code"] == "evaluation_sizes"
            for note in json.loads((tmp_path / "laws.json").read_text())["notes"]
        )
        == 1
    )
    alone, none = matrix("one.csv")
    chosen, left_out = matrix("both.csv", "--vocabulary", "bytes", "--split", "valid")
    assert chosen == alone and any(score is not None for score in alone)
    assert {
        "vocabulary spm": len(other),
        "split flores": len(flores),
    }.items() <= left_out.items()
    assert not none
    assert matrix("both.csv", "--vocabulary", "bytes", "--split", "flores")[0] == pytest.approx(alone)
    assert run("report", tmp_path / "laws.json", "--vocabulary", "bytes") == 2
    assert "give them to mscale fit" in capsys.readouterr().err
