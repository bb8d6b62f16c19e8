"""Importers: other people's files become observations without invented values, and errors name the cell."""

import csv

import pyarrow.parquet as pq
import pytest

from mscale.errors import MscaleError
from mscale.observations import COLUMNS
from sweeps.collecting import import_defaults
from sweeps.collecting.importers import WandbRuns, import_csv, import_wandb

ATTRIBUTES = {
    "params": 9_044_352,
    "params_nonembedding": 786_816,
    "mixture": "en",
    "vocabulary": "spm",
    "seed": 0,
    "phase": "end",
    "lr": 0.0,
    "target_unique": 10**9,
    "eval_tokens": 1000,
}


def write(path, header, *rows):
    with open(path, "w", newline="") as file:
        csv.writer(file).writerows([header, *rows])
    return path


def test_plain_csv_with_a_column_map(tmp_path):
    source = write(
        tmp_path / "runs.csv",
        ["name", "iter", "toks", "lang", "val_loss", "seen", "bits_per_byte"],
        ["a", "10", "5120", "en", "3.5", "5120", "1.1"],
        ["a", "20", "10240.0", "en", "3.25", "1.024e4", ""],
    )
    columns = {"run": "name", "step": "iter", "tokens": "toks", "language": "lang", "loss": "val_loss"}
    columns["target_tokens"] = "seen"
    made = import_csv(source, tmp_path / "out.parquet", columns, ATTRIBUTES)
    assert made.rows == 2 and made.runs == 1
    first, second = pq.read_table(tmp_path / "out.parquet").to_pylist()
    assert list(first) == list(COLUMNS)
    assert first["flops"] == 6 * 9_044_352 * 5120 and first["group"] == "a" and first["bits_per_byte"] == 1.1
    assert second["tokens"] == 10_240 and second["bits_per_byte"] is None and second["loss"] == 3.25


@pytest.mark.parametrize(
    ("columns", "row", "message"),
    [
        ({"loss": "los"}, [], r"has no column 'los' \(for loss\).*did you mean 'loss'"),
        ({"lossy": "loss"}, [], "'lossy' is no column of observations.*did you mean 'loss'"),
        ({}, ["a", "1.5", "en", "3"], "runs.csv:2: step is '1.5', expected an exact integer"),
        ({}, ["a", "1", "en", "low"], "runs.csv:2: loss is 'low', expected a finite number"),
        ({}, ["a", "1", "en", "-2"], "runs.csv:2: loss is -2.0; expected 0 or more"),
        ({}, ["a", "1", "en", "nan"], "no row holds a loss"),
        ({}, ["a", "1", "en"], "runs.csv:2: not 4 cells"),
        ({}, ["a", "1", "", "3"], "runs.csv:2: language is empty"),
    ],
)
def test_invalid_columns_and_cells_are_named(tmp_path, columns, row, message):
    source = write(tmp_path / "runs.csv", ["run", "step", "language", "loss"], row)
    constants = {**ATTRIBUTES, "tokens": 10**5, "target_tokens": 10**5}
    with pytest.raises(MscaleError, match=message):
        import_csv(source, tmp_path / "o.csv", columns, constants)
    assert not (tmp_path / "o.csv").exists()


def test_missing_required_columns_are_listed(tmp_path):
    source = write(tmp_path / "runs.csv", ["run", "step", "language", "loss"], ["a", "1", "en", "3"])
    with pytest.raises(MscaleError, match="nothing says tokens, those of all languages"):
        import_csv(source, tmp_path / "o.csv", {}, ATTRIBUTES)
    known = {name: value for name, value in ATTRIBUTES.items() if name not in ("phase", "lr", "mixture")}
    for lacking, message in (({}, "nothing says mixture"), ({"mixture": "en"}, "nothing says phase")):
        with pytest.raises(MscaleError, match=message):
            import_csv(source, tmp_path / "o.csv", {}, {**known, "tokens": 10**5, **lacking})
    with pytest.raises(MscaleError, match="nothing says params.*it has run, step, language, loss"):
        import_csv(source, tmp_path / "o.csv")


def test_a_chart_of_weights_and_biases(tmp_path):
    source = write(
        tmp_path / "wandb.csv",
        ["Step", "big - _step", "big - eval/en/loss", "big - eval/en/loss__MIN", "other - eval/en/loss"],
        ["100", "100", "3.5", "3.5", "9"],
        ["200", "200", "", "", "9"],
        ["300", "300", "3.1", "3.1", ""],
    )
    count = import_wandb(source, tmp_path / "o.parquet", WandbRuns({"big": ATTRIBUTES}, 512))
    rows = pq.read_table(tmp_path / "o.parquet").to_pylist()
    assert count.rows == 2 and [(row["step"], row["tokens"], row["loss"]) for row in rows] == [
        (100, 51_200, 3.5),
        (300, 153_600, 3.1),
    ]
    assert {row["run"] for row in rows} == {"big"} and rows[0]["target_tokens"] == 51_200
    with pytest.raises(MscaleError, match="no column is 'RUN - METRIC'"):
        import_wandb(source, tmp_path / "o.parquet", WandbRuns({"huge": ATTRIBUTES}, 512))
    with pytest.raises(MscaleError, match="nothing says mixture"):
        import_wandb(source, tmp_path / "o.parquet", WandbRuns({"big": {"params": 10**6}}, 512))
    alike = {"shared": {"params": 9_044_352, "phase": "end"}, "tokens_per_step": 512}
    import_wandb(source, tmp_path / "p.parquet", WandbRuns({"big": {"mixture": "en"}}, **alike))
    again = pq.read_table(tmp_path / "p.parquet").to_pylist()
    assert [row["target_tokens"] for row in again] == [51_200, 153_600] and again[0]["lr"] is None


def test_contradicting_rows_are_refused(tmp_path):
    header = ["run", "step", "language", "loss"]
    constants = {**ATTRIBUTES, "tokens": 10**5, "target_tokens": 10**5}
    twice = write(tmp_path / "a.csv", header, ["a", "1", "en", "3"], ["a", "1", "en", "3"])
    assert import_csv(twice, tmp_path / "o.csv", {}, constants).rows == 1
    other = write(tmp_path / "b.csv", header, ["a", "1", "en", "3"], ["a", "1", "en", "4"])
    with pytest.raises(MscaleError, match=r"b.csv:3: another row than .*b.csv:2 for a, 1, en, valid"):
        import_csv(other, tmp_path / "o.csv", {}, constants)


CURVES = [  # run, mixture, billions of tokens, rate, losses of en, es
    ("a", "en", "0.5", "2e-4", "3.1", ""),
    ("a", "en", "1.0", "2e-4", "2.9", ""),
    ("ab", "en-es", "0.5", "2e-4", "3.2", "3.4"),
    ("ab", "en-es", "2", "2e-4", "2.95", "nan"),
]
MAPPED = {"run": "name", "mixture": "mix", "tokens": "billions*1e9"}


def test_long_and_wide_layouts_say_the_same(tmp_path):
    """Units, shares of a pair and phases are inferred, and each inference is in the notes."""
    wide = write(tmp_path / "wide.csv", ["name", "mix", "billions", "lr", "loss_en", "loss_es"], *CURVES)
    params = {"params": "1.2B"}
    made = import_csv(wide, tmp_path / "w.parquet", MAPPED, params, wide="loss_{language}")
    assert (made.rows, made.runs) == (5, 2)
    notes = " | ".join(made.notes)
    for part in ("half and half: en+es", "5 stable rows", "1 rows without a finite loss left out: ab (1)"):
        assert part in notes
    lines = [
        (*row[:4], language, loss)
        for row in CURVES
        for language, loss in zip(("en", "es"), row[4:], strict=True)
        if loss
    ]
    header = ["name", "mix", "billions", "lr", "language", "loss"]
    long = write(tmp_path / "long.csv", header, *lines)
    import_csv(long, tmp_path / "l.parquet", MAPPED, params)
    rows = pq.read_table(tmp_path / "w.parquet").to_pylist()
    assert rows == pq.read_table(tmp_path / "l.parquet").to_pylist()
    pair = [row for row in rows if row["run"] == "ab"]
    assert {row["languages"] for row in pair} == {"en+es"} and pair[0]["params"] == 1_200_000_000
    assert [(row["tokens"], row["target_tokens"]) for row in pair] == [(5 * 10**8, 25 * 10**7)] * 2 + [
        (2 * 10**9, 10**9)
    ]


@pytest.mark.parametrize(
    ("text", "shares"),
    [
        ("en", {"en": 1.0}),
        ("en:3,es:1", {"en": 0.75, "es": 0.25}),
        ("{'en': 0.5, 'es': 0.5}", {"en": 0.5, "es": 0.5}),
        ("zh-Hans", {"zh-Hans": 1.0}),
    ],
)
def test_mixtures_as_people_write_them(text, shares):
    assert import_defaults.mixture_shares(text, {"en", "es", "zh-Hans"}, "f.csv:2") == shares


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("unimax", "'unimax' is no language of the table"),
        ("en+en", "names no language, or one twice"),
        ("en:1 es:-1", "a positive share of each language, once"),
    ],
)
def test_invalid_mixture_names_are_refused(text, message):
    with pytest.raises(MscaleError, match=message):
        import_defaults.mixture_shares(text, {"en", "es"}, "f.csv:2")
    if text == "unimax":
        assert import_defaults.mixture_shares(text, {"en", "es"}, "f.csv:2", tokens_given=True) is None


def test_the_phase_follows_from_the_rate_where_it_can():
    def phases(*rates):
        return list(import_defaults.phases_from_rates("r", dict(enumerate(rates)), "f.csv").values())

    assert phases(1e-4, 2e-4, 2e-4, 1e-4, 0.0) == ["warmup", "stable", "stable", "decay", "end"]
    assert phases(2e-4, 2e-4, 1.5e-4) == ["stable", "stable", "decay"]  # a decay not yet at its end
    assert phases(1.8e-4, 1e-4, 0.0) == ["decay", "decay", "end"]  # a branch, or cosine: no plateau
    assert phases(0.0) == ["end"]
    with pytest.raises(MscaleError, match="evaluated once, at rate 0.0002"):
        phases(2e-4)


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([("a", "1", "100000"), ("a", "2", "90000")], "tokens must grow. A counter that began anew"),
        ([("a", "1", "42")], "9,044,352 parameters ends at 42 tokens: is that another unit"),
        ([("a", "1", "0.5")], "counted in billions"),
    ],
)
def test_impossible_tokens_are_refused(tmp_path, rows, message):
    source = write(tmp_path / "runs.csv", ["run", "step", "tokens"], *rows)
    constants = {**ATTRIBUTES, "language": "en"}
    with open(source) as file:
        lines = [line.strip() + (",loss" if number == 0 else ",3.0") for number, line in enumerate(file)]
    source.write_text("\n".join(lines))
    with pytest.raises(MscaleError, match=message):
        import_csv(source, tmp_path / "o.csv", {}, constants)


def test_an_empty_cell_of_an_optional_column_counts_as_missing(tmp_path):
    source = write(
        tmp_path / "runs.csv",
        ["run", "mixture", "tokens", "language", "loss", "init", "seed"],
        ["a", "en", "100000", "en", "3.0", "", ""],
        ["b", "en", "100000", "en", "3.0", "unimax", "4"],
    )
    import_csv(source, tmp_path / "o.parquet", {}, {"params": 10**6, "phase": "stable"})
    rows = pq.read_table(tmp_path / "o.parquet").to_pylist()
    assert [(row["init"], row["seed"]) for row in rows] == [("scratch", 0), ("unimax", 4)]


@pytest.mark.parametrize("mark", [",", ";", "\t"])
def test_delimiters_are_commas_semicolons_or_tabs(tmp_path, mark):
    lines = ["run,mixture,tokens,language,loss", "a,en,100000,en,3.0"]
    (tmp_path / "runs.csv").write_text(
        "\n".join(line.replace(",", mark) for line in lines), encoding="utf-8-sig"
    )
    made = import_csv(tmp_path / "runs.csv", tmp_path / "o.csv", {}, {"params": 10**6, "phase": "stable"})
    assert made.rows == 1


def test_csv_and_parquet_hold_the_same_exact_numbers_and_other_endings_are_refused(tmp_path):
    source = write(
        tmp_path / "runs.csv",
        ["run", "mixture", "tokens", "language", "loss", "loss_se"],
        ["a", "en", str(2**53 + 1), "en", repr(0.1 + 0.2), ""],
    )
    constants = {"params": 10**6, "phase": "stable"}
    for name in ("o.csv", "o.parquet"):
        import_csv(source, tmp_path / name, {}, constants)
    with open(tmp_path / "o.csv", newline="") as file:
        (text,) = csv.DictReader(file)
    (row,) = pq.read_table(tmp_path / "o.parquet").to_pylist()
    assert int(text["tokens"]) == row["tokens"] == 2**53 + 1
    assert float(text["loss"]) == row["loss"] == 0.1 + 0.2
    assert text["loss_se"] == "" and row["loss_se"] is None
    with pytest.raises(MscaleError, match=r"\.parquet or \.csv"):
        import_csv(source, tmp_path / "o.xlsx", {}, constants)
