"""The table and the chart of a mixture: arithmetic, sums, full precision in CSV, whole files."""

import csv
import io

import numpy as np
import pytest
import tiny_corpus
from rich.console import Console

from mixtures import show
from mixtures.packing.pack import pack
from mscale.data.mixture import SamplingOptions, resolve
from mscale.data.vocabulary import byte_vocabulary
from mscale.errors import MscaleError

S = 16


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    folder = tmp_path_factory.mktemp("show")
    texts = {
        "ru": ["Привет, мир. " * 40 + str(i) for i in range(10)],
        "en": tiny_corpus.documents(20, 30),
        "ja": ["日本語のテキスト。" * 20 + str(i) for i in range(6)],
    }
    texts["en"] = [text.replace("ж", "z").replace("日本", "nihon") for text in texts["en"]]
    return pack(tiny_corpus.write(folder / "corpus", texts), folder / "store", byte_vocabulary())


@pytest.fixture(scope="module")
def shown(store):
    mixture = resolve("unimax", store, S, options=SamplingOptions(budget_tokens=100_000, max_epochs=30))
    return mixture, show.mixture_rows(mixture, 100_000, store)


def text_of(table, width=120):
    console = Console(file=io.StringIO(), width=width, color_system=None)
    console.print(table)
    return console.file.getvalue()


def test_rows_are_arithmetic_on_the_mixture(store, shown):
    mixture, rows = shown
    assert {row.language: row.script for row in rows} == {"en": "Latin", "ja": "Japanese", "ru": "Cyrillic"}
    assert sum(row.tokens for row in rows) == pytest.approx(100_000)
    for row in rows:
        assert row.unique_tokens == store.windows(row.language, S) * S
        assert row.rate == mixture.rates[mixture.languages.index(row.language)]
        assert row.epochs == pytest.approx(row.tokens / row.unique_tokens)
        assert row.epochs <= 30 + 1e-9
    assert [row.rate for row in rows] == sorted((row.rate for row in rows), reverse=True)


def test_the_table_says_it_all_and_sums_up_what_it_leaves_out(shown):
    mixture, rows = shown
    text = text_of(show.mixture_table(mixture, rows))
    for part in (
        "language",
        "script",
        "unique tokens",
        "rate",
        "tokens",
        "epochs",
        "Cyrillic",
        "100,000",
        "100.0000%",
    ):
        assert part in text
    for row in rows:
        assert f"{row.unique_tokens:,}" in text
    short = text_of(show.mixture_table(mixture, rows, limit=1))
    assert "2 more" in short
    assert f"{sum(row.unique_tokens for row in rows[1:]):,}" in short
    assert "100,000" in short


def test_csv_keeps_full_precision(shown):
    _, rows = shown
    read = list(csv.DictReader(io.StringIO(show.rows_to_csv(rows))))
    np.testing.assert_array_equal([float(row["rate"]) for row in read], [row.rate for row in rows])
    assert list(read[0]) == ["language", "script", "unique_tokens", "rate", "tokens", "epochs"]


def test_charts_are_written_whole(shown, tmp_path):
    pytest.importorskip("altair")
    mixture, rows = shown
    chart = show.mixture_chart(mixture, rows)
    show.save_chart(chart, tmp_path / "m.png")
    assert (tmp_path / "m.png").read_bytes().startswith(b"\x89PNG")
    show.save_chart(chart, tmp_path / "m.html")
    html = (tmp_path / "m.html").read_text()
    assert "Cyrillic" in html
    assert "<script src=" not in html  # nothing is loaded from elsewhere
    assert "the 1 of the highest rates" in show.mixture_chart(mixture, rows, limit=1).to_json()
    with pytest.raises(MscaleError, match="expected .png, .svg or .html"):
        show.save_chart(chart, tmp_path / "m.jpg")


def test_sizes_alone_have_no_script_and_a_budget_must_be_one(store):
    mixture = resolve("uniform", store, S)
    assert {row.script for row in show.mixture_rows(mixture, 1e9)} == {""}
    with pytest.raises(MscaleError, match="a budget of 0 tokens"):
        show.mixture_rows(mixture, 0)
