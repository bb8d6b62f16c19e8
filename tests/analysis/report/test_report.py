import copy
import html
import html.parser
import json
import re
import shutil
import subprocess
import time

import msgspec
import numpy as np
import pandas as pd
import pytest
from rich.console import Console

from analysis.report import findings, report
from analysis.report.findings import headlines, recommendations
from analysis.report.report import analyse
from analysis.study.results import main_matrix, read_results, write_results
from analysis.study.transfer import published_comparison
from analysis.tables.published import published_transfer
from analysis.tables.remarks import Remark
from analysis.validation import planted_study
from mscale.errors import MscaleError


@pytest.fixture(scope="module")
def results():
    observations, exposure, truth = planted_study.make_study(seed=1, small=True)
    study = {
        "title": "Planted </script><b>study",
        "seconds": 231,
        "failed": [{"run": "r9", "reason": "diverged"}],
    }
    return analyse(observations, exposure, truth, study=study, splits=("R2",))


@pytest.fixture(scope="module")
def page(results):
    return report.render_page(results)


class Elements(html.parser.HTMLParser):
    """Collects ids, addresses and table cells of a page."""

    def __init__(self, text):
        super().__init__()
        self.ids, self.addresses, self.scripts, self.open = [], [], 0, []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        attributes = dict(attrs)
        self.ids.append(attributes.get("id"))
        self.addresses += [attributes[name] for name in ("src", "href") if name in attributes]
        self.scripts += tag == "script"
        if tag not in ("meta", "link", "input", "br"):
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag


def test_results_survive_json_and_draw_the_same_page(results, page, tmp_path):
    write_results(results, tmp_path / "laws.json")
    again = read_results(tmp_path)
    assert again == results
    assert report.render_page(again) == page


def test_results_of_another_version_are_refused(results, tmp_path):
    for version in (1, 3, 5):
        write_results(msgspec.structs.replace(results, format=version), tmp_path / "laws.json")
        with pytest.raises(
            MscaleError, match=f"laws.json: .* \\(format {version}, expected 4\\): run `mscale fit` again"
        ):
            read_results(tmp_path)


def test_the_results_hold_no_sentences_but_refusals(results):
    """Codes and names are one or two words; texts are of the user (title), or say why an analysis refused the data."""

    def texts(value, key):
        if isinstance(value, str):
            yield key, value
        for name, part in value.items() if isinstance(value, dict) else ():
            yield from texts(part, name)
        for part in value if isinstance(value, list | tuple) else ():
            yield from texts(part, key)

    allowed = {"reason", "refused", "error", "title", "fits", "unit", "mixture"}
    sections = {name: part for name, part in msgspec.to_builtins(results).items() if name not in allowed}
    found = {text for key, text in texts(sections, "") if key not in allowed and text.count(" ") > 1}
    assert found <= {"Planted </script><b>study"}


def test_the_page_is_whole_and_needs_no_network(results, page):
    elements = Elements(page)
    assert not elements.open  # every element closed
    for section in (
        "findings",
        "recommended",
        "run",
        "curves",
        "laws",
        "transfer",
        "languages",
        "start",
        "methods",
    ):
        assert section in elements.ids
    assert all(address.startswith(("#", "data:")) for address in elements.addresses)
    assert "@import" not in page and not re.search(r"url\(\s*['\"]?http", page)
    assert elements.scripts == 3 and page.count("window.vegaEmbed = ") + page.count("window.vegaEmbed=") == 1
    assert len(page) < 5e6


def test_every_figure_has_a_place_data_and_panels(results, page):
    figures = report.draw_figures(results)
    assert {
        "loss-curves",
        "predicted-observed",
        "transfer-matrix",
        "planted",
        "capacity",
        "relative-loss",
        "crossover",
    } <= set(figures)
    elements = Elements(page)
    embedded = json.loads(re.search(r'id="figures">(.*?)</script>', page, re.S)[1])
    for name, figure in figures.items():
        assert elements.ids.count(name) == 1
        assert len(embedded[name]["specs"]) == len(figure.panels) > 0
        assert len(embedded[name]["csv"].splitlines()) == len(figure.data) + 1 > 1


def test_relative_losses_are_the_losses_over_those_of_one_language(results, page):
    figures = report.draw_figures(results)
    data, lines = figures["relative-loss"].data, pd.DataFrame(results.capacity.lines)
    assert len(data) > 3 and (data["relative"] > 0).all()
    for row in data.to_dict("records"):
        points = pd.DataFrame(results.capacity.points)
        points = points[(points["scale"] == row["size"]) & (points["K"] == row["K"])]
        assert points["loss"].min() - 1e-9 <= row["loss"] <= points["loss"].max() + 1e-9
        alone = row["loss"] / (1 + row["relative"])
        one = lines[(lines["scale"] == row["size"]) & (lines["K"] == 1)]["loss"]
        assert one.min() - 1e-9 <= alone <= one.max() + 1e-9
    ks = [point["K"] for point in results.capacity.points]
    assert f"Mixtures of {min(ks)} to {max(ks)} languages were run" in page


def test_the_published_matrix_stands_beside_with_its_correlation(results):
    changed = copy.deepcopy(results)
    natural = dict(zip(planted_study.LANGUAGES, ("en", "es", "iw", "ru", "fr", "zh"), strict=True))
    transfer = changed.transfer
    transfer.scale = "nano2"
    for row in transfer.matrix:
        row["target"], row["source"] = natural[row["target"]], natural[row["source"]]
    mine = pd.DataFrame(main_matrix(changed))
    transfer.published = found = published_comparison(mine, 0.9)
    paper = published_transfer().set_index(["target", "source"])["score"]
    measured = mine[mine["status"] == "measured"].replace({"iw": "he"})
    pairs = [
        (t, s) for t, s in zip(measured["target"], measured["source"], strict=True) if (t, s) in paper.index
    ]
    expected = np.corrcoef(measured.set_index(["target", "source"]).loc[pairs, "score"], paper.loc[pairs])[
        0, 1
    ]
    assert found["pairs"] == len(pairs) > 3 and found["correlation"] == pytest.approx(expected)
    assert -1 <= found["low"] < found["correlation"] < found["high"] <= 1
    figure = report.draw_figures(changed)["beside-published"]
    assert f"over {len(pairs)} pairs" in figure.caption and len(figure.panels) == 2
    drawn = pd.DataFrame(next(iter(figure.specs()[0]["datasets"].values())))
    assert set(drawn["target"]) <= {"en", "es", "he", "ru", "fr", "zh"} and len(drawn) >= len(pairs)
    assert all(paper[row.target, row.source] == row.score for row in drawn.itertuples())


def test_markup_in_names_is_escaped(page):
    assert "</script><b>study" not in page
    assert "Planted &lt;/script&gt;&lt;b&gt;study" in page


def test_planted_truths_are_found_and_said(results):
    parameters = {row["name"]: row for row in results.laws["atlas"].parameters}
    for name, truth, slack in (
        ("alpha", planted_study.TRUE_ALPHA, 0.05),
        ("beta", planted_study.TRUE_BETA, 0.05),
        ("lambda", planted_study.TRUE_LAMBDA, 0.1),
    ):
        row = parameters[name]
        assert row["identified"] and row["low"] - slack <= truth <= row["high"] + slack
        assert row["high"] - row["low"] < 4 * slack
    # Two languages at three sizes are too few runs for Chinchilla: it is refused, and the page says why.
    assert not results.laws["chinchilla"].fitted and "groups" in results.laws["chinchilla"].reason
    best = max(
        (row for row in results.transfer.matrix if row["scale"] == "nano2" and row["status"] == "measured"),
        key=lambda row: row["score"],
    )
    assert {best["target"], best["source"]} == {"aka", "abo"}
    texts = " ".join(item.text for item in headlines(results))
    assert "aka" in texts and "overtakes" in texts and "Spearman" in texts
    assert {item.sure for item in headlines(results)} <= {"clear", "likely", "unclear", "not identified"}
    heldout = {(row["law"], row["split"]): row["r2"] for row in results.heldout}
    assert heldout["atlas_D_other", "R2"] > heldout["chinchilla", "R2"]
    groups = {item.group: item for item in recommendations(results)}
    assert "FLOPs of the largest run" in groups["Which mixture"].text or results.mixture.reason


def test_a_law_that_misses_by_far_more_than_runs_differ_is_not_called_clear(results):
    """Its intervals assume that it holds. Here it does not: all other languages share one τ."""
    assert "its form is not all of the truth" in findings.misfit_warning(results, "atlas")

    def missing_by(nats):
        changed = copy.deepcopy(results)
        for number, row in enumerate(changed.fit_points):
            row["predicted"] = row["observed"] + (nats if number % 2 else -nats)
        return changed

    assert not findings.misfit_warning(missing_by(0.001), "atlas")
    off = missing_by(0.1)
    assert findings.typical_misfit(off, "atlas") == pytest.approx(0.1)
    law = next(item for item in headlines(off) if item.title == "The law")
    assert "misses the losses by 0.100 nats" in law.text and law.sure != "clear"
    assert "misses the losses by 0.100 nats" in report.render_page(off, "")
    off.transfer.noise["end"]["repeated_runs"] = 0  # how runs differ is only assumed then
    assert not findings.misfit_warning(off, "atlas")


def test_symmetry_alone_is_as_sure_as_its_own_p(results):
    alone = copy.deepcopy(results)
    statistics = alone.transfer.statistics
    statistics["family"] = statistics["script"] = None
    for p, sure in ((0.001, "clear"), (0.03, "likely"), (0.4, "unclear")):
        statistics["symmetry"] |= {"p": p, "low": 0.1, "high": 0.9, "correlation": 0.5}
        kinship = next(item for item in headlines(alone) if item.title == "Kinship")
        assert kinship.sure == sure and kinship.text.startswith("The two directions")


def test_what_atlas_gains_is_credited_to_what_the_study_has(results):
    """To other languages' data; to repeats where D_t alone gains as much; to neither where no run has either."""

    def said(own, kinds):
        changed = copy.deepcopy(results)
        changed.study.cells = [{"kind": kind} for kind in kinds]
        scores = {"chinchilla": 0.90, "atlas_D_t": own, "atlas_D_other": 0.99, "atlas_K_t": 0.99}
        changed.heldout = [
            {"law": law, "split": "R2", "r2": r2, "difference": r2 - 0.9, "difference_low": r2 - 0.92,
             "difference_high": r2 - 0.88}
            for law, r2 in scores.items()
        ]  # fmt: skip
        found = [item.text for item in headlines(changed) if item.title == "Which law"]
        return found, {item.text for item in recommendations(changed)}

    both, runs = said(0.91, ["mono", "bilingual"])
    assert both[0].startswith("Counting the other languages' data helps") and "0.990 with ATLAS" in both[0]
    assert not any(text.startswith("Train pairs") for text in runs)
    alone, runs = said(0.98, ["mono", "repeated"])
    assert alone[0].startswith("Counting repeats of a language's own text helps")
    assert any(text.startswith("Train pairs of the languages half and half") for text in runs)
    assert said(0.90, ["mono"])[0] == []


def test_where_every_pair_was_run_nothing_is_said_to_be_unpredicted(results):
    changed = copy.deepcopy(results)
    changed.transfer.predicted = {"cells": [], "reason": "held-out pairs are predicted no better"}
    assert "No pair is predicted: held-out pairs are" in report.render_page(changed)
    changed.transfer.matrix = [row for row in main_matrix(changed) if row["status"] != "missing"]
    assert "No pair is predicted" not in report.render_page(changed)


def test_a_p_that_so_few_languages_cannot_better_says_so(results):
    changed = copy.deepcopy(results)
    effect = changed.transfer.statistics["family"]
    for p, smallest, said in ((0.0667, 0.0667, True), (0.3, 0.0667, False), (0.002, 0.002, False)):
        changed.transfer.statistics["family"] = {**effect, "p": p, "smallest_p": smallest}
        text = next(item.text for item in headlines(changed) if item.title == "Kinship")
        assert ("the least that so few languages can give" in text.split(";")[0]) == said


def test_what_failed_is_reported(results, page):
    assert Remark("failed", names=("r9",), others=("diverged",)) in results.exclusions
    assert "diverged" in page


def test_a_study_that_identifies_nothing_says_so_and_prints_no_number():
    rows = [
        {"run": "a", "scale": "s", "params": 1000, "languages": "xx", "tokens": tokens, "phase": phase,
         "language": "xx", "loss": 3.0 - 0.1 * np.log(tokens)}
        for tokens, phase in ((1e5, "stable"), (2e5, "stable"), (2e5 + 1, "end"))
    ]  # fmt: skip
    results = analyse(pd.DataFrame(rows), None)
    assert not any(law.fitted for law in results.laws.values())
    assert all(item.sure == "not identified" for item in headlines(results))
    page = report.render_page(results)
    assert "is not fitted" in page and "No transfer matrix" in page
    assert "No R² on held-out runs is given: no law is fitted." in page
    Elements(page)


def test_the_summary_fits_a_terminal(results):
    console = Console(width=90, record=True, file=open("/dev/null", "w"))  # noqa: SIM115
    console.print(report.summary_table(results))
    text = console.export_text()
    assert "Transfer" in text and "How sure" in text and max(map(len, text.splitlines())) <= 90


def test_a_matrix_of_38_languages_stays_within_bounds(results):
    """As many languages as the published matrix: all ordered pairs with their curves take at most 5 MB and 10 s."""
    names = [f"{a}{b}" for a in "abcdefg" for b in "abcdefg"][:38]
    changed = copy.deepcopy(results)
    transfer = changed.transfer
    curve = [row for row in transfer.curves if row["status"] == "measured"]
    cell = next(row for row in main_matrix(changed) if row["status"] == "measured")
    pairs = [{"target": t, "source": s} for t in names for s in names if t != s]
    transfer.matrix = [cell | pair for pair in pairs]
    transfer.units = {"bytes": transfer.matrix, "content": transfer.matrix}
    transfer.curves = [row | pair for pair in pairs for row in (curve * 24)[:24]]
    began = time.process_time()
    page = report.render_page(changed)
    assert len(transfer.curves) > 33_000 and len(page.encode()) < 5e6
    assert time.process_time() - began < 10


PROBE = """
<script>
window.problems = [];
window.addEventListener("error", (event) => window.problems.push(event.message));
window.addEventListener("unhandledrejection", (event) => window.problems.push(String(event.reason)));
const warn = console.error; console.error = (...words) => { window.problems.push(words.join(" ")); warn(...words); };
</script>
"""
EXERCISE = """
<script>
(async () => {
  const saved = {};
  URL.createObjectURL = (blob) => { saved.last = blob; return "#"; };
  HTMLAnchorElement.prototype.click = function () { saved[this.download] = saved.last; };
  while (!document.body.dataset.ready) await new Promise((done) => setTimeout(done, 50));
  const matrix = () => document.querySelector("#transfer-matrix .vega svg").outerHTML;
  const choose = async (select, value) => {
    const before = matrix();
    select.value = value;
    select.dispatchEvent(new Event("change"));
    await new Promise((done) => setTimeout(done, 400));
    return before !== matrix();
  };
  const named = (name) => document.querySelector(`#transfer-matrix select[name=${name}]`);
  const hatched = () => [...document.querySelectorAll("#transfer-matrix .vega svg path")].filter((node) =>
    (node.getAttribute("d").match(/M/g) || []).length === 3 && node.getAttribute("stroke") === "#1c2430").length;
  const before = hatched();
  const sorted = await choose(named("order"), "similarity");
  const counted = await choose(named("unit"), "bytes");
  const curves = document.querySelector("#loss-curves .vega svg").outerHTML;
  const language = document.querySelector("#loss-curves select");
  language.value = [...language.options].map((option) => option.value).find((value) => value !== language.value);
  language.dispatchEvent(new Event("change"));
  document.querySelector("#transfer-matrix [data-save=csv]").click();
  document.querySelector("#transfer-matrix [data-save=svg]").click();
  document.querySelector("#loss-curves [data-save=svg]").click();
  await new Promise((done) => setTimeout(done, 1500));
  const wide = [...document.querySelectorAll("figure, p, ul")].filter((node) =>
    node.getBoundingClientRect().right > document.documentElement.clientWidth + 1).length;
  const files = {};
  for (const [name, blob] of Object.entries(saved)) if (name !== "last") files[name] = await blob.text();
  const shapes = (text) => new DOMParser().parseFromString(text, "image/svg+xml");
  const found = {
    problems: window.problems, wide, sorted, counted,
    empty: [...document.querySelectorAll(".vega")].filter((node) => !node.querySelector("svg")).length,
    language: curves !== document.querySelector("#loss-curves .vega svg").outerHTML,
    resources: performance.getEntriesByType("resource").map((entry) => entry.name),
    csv: files["transfer-matrix.csv"] || "",
    svg: Object.keys(files).filter((name) => name.endsWith(".svg") && !shapes(files[name]).querySelector("parsererror")
      && shapes(files[name]).querySelectorAll("path").length > 10),
    hatched: [before, hatched()],
  };
  document.body.dataset.found = JSON.stringify(found);
})();
</script>
"""


def with_predictions(results):
    """The results with predictions for the missing pairs, and with scores per byte that are half those per token."""
    changed = copy.deepcopy(results)
    transfer = changed.transfer
    missing = [row for row in main_matrix(changed) if row["status"] == "missing"]
    transfer.predicted = {
        "cells": [
            {"target": row["target"], "source": row["source"], "score": 0.2, "low": 0.0, "high": 0.4,
             "status": "predicted"}
            for row in missing
        ],
        "reason": "", "groups": ["language"], "features": {"adaptation": [], "language": ["same family"]},
        "r2": 0.5, "r2_low": 0.2, "r2_high": 0.8, "spearman": 0.6, "pairs": 9, "ablation": [], "gains": [],
        "importance": {},
    }  # fmt: skip
    for row in transfer.units["bytes"]:
        row["score"] = row["score"] and row["score"] / 2
    return changed


@pytest.mark.parametrize("width", [500, 1300])
def test_in_a_browser_it_draws_without_errors_or_network_and_its_controls_work(results, tmp_path, width):
    browser = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if not browser:
        pytest.skip("no Chromium on this machine: apt-get install chromium")
    results = with_predictions(results)
    page = report.render_page(results)
    probed = page.replace("<head>", "<head>" + PROBE, 1)
    probed = probed[: probed.rindex("</body>")] + EXERCISE + "</body></html>"
    (tmp_path / "page.html").write_text(probed, encoding="utf-8")
    command = [browser, "--headless=new", "--no-sandbox", "--disable-gpu", "--disable-background-networking"]
    command += [
        "--virtual-time-budget=90000",
        f"--window-size={width},2000",
        f"--user-data-dir={tmp_path}/profile",
    ]
    command += ["--dump-dom", (tmp_path / "page.html").as_uri()]
    # On a busy machine the browser's virtual time may run out before the page is drawn: then once more.
    for _ in range(4):
        dom = subprocess.run(command, capture_output=True, text=True, timeout=240, check=True).stdout
        body = re.search(r'<body[^>]*data-found="([^"]*)"', dom)
        if body:
            break
    assert body, "the page never became ready"
    found = json.loads(html.unescape(body[1]))
    assert found["problems"] == [] and found["resources"] == []
    assert found["empty"] == 0 and found["wide"] == 0
    assert found["sorted"] and found["counted"] and found["language"]
    head, *lines = found["csv"].strip().splitlines()
    assert head.startswith("scale,target,source,d,score") and len(lines) == 30
    assert sum(",predicted," in line for line in lines) == len(results.transfer.predicted["cells"]) > 0
    assert sorted(found["svg"]) == ["loss-curves.svg", "transfer-matrix.svg"]
    # In tokens every predicted cell is hatched; a prediction is not carried over to bytes.
    assert found["hatched"] == [len(results.transfer.predicted["cells"]), 0]
