"""The variables of the report's template: texts and tables made from the results."""

import json
from typing import Any

from analysis.crossover.crossover import PUBLISHED_LEGEND_POWER_LAW, PUBLISHED_POWER_LAW
from analysis.report.findings import headlines, misfit_warning, recommendations, typical_misfit
from analysis.report.transfer_page import (
    adaptation_table,
    kinship_table,
    page_table,
    prediction_text,
    predictions_table,
    transfer_text,
)
from analysis.report.wording import (
    CELL_KINDS,
    COMPARED_LAWS,
    HELD_OUT,
    Finding,
    capitalised,
    effective_data_text,
    equation,
    methods_section,
    subscripts,
    times,
    with_symbols,
)
from analysis.study.results import ParameterRow, Results, StudySummary
from analysis.tables import published as reference
from analysis.tables.remarks import exclusion_text, remark_text
from analysis.text import count, duration, minus, number, short_reason, signed, span

SECTIONS = (
    ("findings", "Findings"),
    ("recommended", "What to do"),
    ("run", "What was run"),
    ("curves", "Loss curves"),
    ("laws", "Laws"),
    ("transfer", "Transfer"),
    ("languages", "More languages"),
    ("start", "Scratch or checkpoint"),
    ("methods", "Methods"),
)
TITLES = {"chinchilla": "Chinchilla", "atlas": "ATLAS", "capacity": "Capacity law (ATLAS eq. 7)"}


_AHEAD = {
    "at least": "continuing is still ahead at the last tokens",
    "at most": "from scratch is ahead from the first tokens compared",
}


def page_context(results: Results) -> dict[str, Any]:
    """The variables of the template, without figures and scripts."""
    study = results.study
    level = f"{results.level:.0%}"
    advice: dict[str, list[Finding]] = {}
    for item in recommendations(results):
        advice.setdefault(item.group, []).append(item)
    return {
        "title": study.title,
        "lede": _introduction(study),
        "tiles": _tiles(study),
        "sections": SECTIONS,
        "level": level,
        "headlines": headlines(results),
        "advice": list(advice.items()),
        "run_text": _run_text(study),
        "laws": [_law(results, name) for name in ("chinchilla", "atlas", "capacity")],
        "laws_text": _heldout_refusal(results)
        + (
            "Only cooled losses of languages that a run trains on are fitted. Held-out R² is pooled over "
            "languages about each language's own mean: that some are harder than others earns nothing."
        ),
        "transfer_text": transfer_text(results, level),
        "prediction_text": prediction_text(results),
        "capacity_text": _capacity_text(results),
        "crossover_text": _crossover_text(results),
        "methods": methods_section(results, level),
        "tables": {
            "cells": _cells(study),
            "scales": _scales(results),
            "heldout": _heldout(results),
            "kinship": kinship_table(results),
            "predictions": predictions_table(results),
            "adaptation": adaptation_table(results),
            "multipliers": _multipliers(results),
            "crossover": _crossovers(results),
            "exclusions": _exclusions(results),
        },
        "command": study.command,
    }


def _introduction(study: StudySummary) -> str:
    languages = study.trained_languages
    names = ", ".join(languages) if len(languages) <= 12 else f"{len(languages)} languages"
    sizes = study.scales
    between = (
        f"{len(sizes)} sizes from {count(sizes[0]['params'])} to {count(sizes[-1]['params'])} parameters"
        if len(sizes) > 1
        else f"one size, {count(sizes[0]['params'])} parameters"
    )
    return f"Which languages to train together, how large, on how much, and from where. {names}; {between}."


def _tiles(study: StudySummary) -> list[tuple[str, str]]:
    tiles = [
        (f"{study.runs:,}", f"runs off {study.trunks} trunks"),
        (str(len(study.trained_languages)), "languages trained"),
        (str(len(study.scales)), "model sizes"),
        (count(study.tokens), "tokens trained on"),
        (count(study.flops), "FLOPs (6ND)"),
    ]
    if study.seconds:
        tiles.append((duration(study.seconds), "of training"))
    return tiles


def _run_text(study: StudySummary) -> str:
    text = (
        f"{study.runs} runs off {study.trunks} trunks, evaluated {study.evaluations:,} times on "
        f"{len(study.languages)} languages: {study.observations:,} losses. "
        f"{count(study.tokens)} tokens and {count(study.flops)} FLOPs in all, counting each trunk once."
    )
    if study.seconds:
        text += f" Training took {duration(study.seconds)}"
        text += f" on {study.workers} worker{'s' if study.workers > 1 else ''}." if study.workers else "."
    if study.peak_memory_bytes:
        text += f" Peak memory {study.peak_memory_bytes / 2**30:.1f} GiB."
    return text


def _cells(study: StudySummary) -> dict:
    head = ["Cells", "mixtures", "sizes", "trunks", "runs", "cooled", "seeds", "tokens a run", "FLOPs"]
    rows = []
    for cell in study.cells:
        low, high = count(cell["tokens_low"]), count(cell["tokens_high"])
        tokens = low if low == high else f"{low} to {high}"
        numbers = ("mixtures", "scales", "trunks", "runs", "cooled", "seeds")
        kind = CELL_KINDS[cell["kind"]]
        rows.append([kind, *(str({**cell}[name]) for name in numbers), tokens, count(cell["flops"])])
    return page_table(head, rows)


def _scales(results: Results) -> dict:
    head = ["Size", "parameters", "runs", "languages trained"]
    rows = []
    for scale in results.study.scales:
        points = [row for row in results.loss_curves if row["scale"] == scale["scale"]]
        runs = len({row["run"] for row in points})
        rows.append(
            [scale["scale"], f"{scale['params']:,}", str(runs), str(len({row["language"] for row in points}))]
        )
    return page_table(head, rows)


def _heldout_refusal(results: Results) -> str:
    if any(row["r2"] is not None for row in results.heldout):
        return ""
    reasons = dict.fromkeys(row["reason"] for row in results.heldout if row["reason"])
    fitted = any(law.fitted for law in results.laws.values())
    why = next(iter(reasons), "too few runs to hold any out" if fitted else "no law is fitted")
    return f"No R² on held-out runs is given: {why}. "


def _heldout(results: Results) -> dict:
    if all(row["r2"] is None for row in results.heldout):
        return page_table([], [])
    splits = list(dict.fromkeys(row["split"] for row in results.heldout))
    found = {(row["law"], row["split"]): row for row in results.heldout}
    counts = {
        split: max(row["n"] or 0 for row in results.heldout if row["split"] == split) for split in splits
    }
    head = [
        "Law, fitted to the same rows",
        *(f"{HELD_OUT.get(split, split)} (n = {counts[split]})" for split in splits),
    ]
    rows = []
    published = reference.published_heldout()
    published = published[published["runs"] == "multilingual"]
    for law in dict.fromkeys(row["law"] for row in results.heldout):
        theirs = published[published["law"].str.lower() == COMPARED_LAWS[law].lower()].to_dict("records")
        cells: list[str] = [subscripts(COMPARED_LAWS[law])]
        for split in splits:
            value = found[law, split]["r2"]
            shown = "–" if value is None else minus(value)
            paper = theirs[0].get(split) if theirs else None
            cells.append(f"{shown} ({minus(paper, 2)})" if paper is not None else shown)
        rows.append(cells)
    title = "R² on held-out losses, in brackets the paper's on its own runs (Table 1, multilingual)"
    return page_table(head, rows, title)


def _law(results: Results, name: str) -> dict[str, Any]:
    law = results.laws[name]
    view = {"title": TITLES[name], "fitted": law.fitted, "reason": short_reason(law.reason).rstrip(".")}
    if not law.fitted:
        return view
    shared = [row for row in law.parameters if "[" not in row["name"] and not row["name"].endswith("_mean")]
    rest = [row for row in law.parameters if "[" in row["name"] and "_mean" not in row["name"]]
    if not shared:
        shared, rest = rest, []
    counts = f"{law.points} cooled losses of {law.groups} trunks"
    saved = json.loads(results.fits[name])
    about = f"{saved['source']}. {counts}; R² {law.r2:.3f} on them, {law.r2_within:.3f} within languages."
    typical = typical_misfit(results, name)
    if typical is not None:
        far = misfit_warning(results, name)
        about += f" {capitalised(far)}." if far else f" It typically misses them by {typical:.3f} nats."
    if law.variant:
        about += f" Effective data: {effective_data_text(law)}."
    if law.left_out:
        sizes = "fewer than 3 sizes" if name == "chinchilla" else "one size only"
        about += f" Left out, run at {sizes}: {', '.join(law.left_out)}."
    if law.refused:
        about += f" More τ would be too many for the runs: {short_reason(law.refused)}."
    about += "".join(f" {capitalised(note)}." for note in saved["notes"])
    head = ["Parameter", "estimate", f"{results.level:.0%} interval", ""]
    caption = "Common to the languages" if rest else ""
    return {
        **view,
        "pretty": equation(saved["equation"]),
        "about": about.replace("..", "."),
        "shared": page_table(head, [_parameter(row) for row in shared], caption, (0, 3)),
        "rest": page_table(head, [_parameter(row) for row in rest], "", (0, 3)),
        "rest_title": f"{len(rest)} parameters of single languages",
    }


def _parameter(row: ParameterRow) -> list[str]:
    if not row["identified"]:
        return [with_symbols(row["name"]), "–", "–", f"not identified: {with_symbols(row['reason'])}"]
    return [
        with_symbols(row["name"]),
        number(row["estimate"]),
        span(row["low"], row["high"], number),
        row["unit"],
    ]


def _capacity_text(results: Results) -> str:
    law = results.laws["capacity"]
    if not law.fitted:
        return (
            f"The capacity law is not fitted: {law.reason}. Published growth is shown instead "
            "(interval not published)."
        )
    text = (
        "Uniform mixtures of K languages, every language with D tokens: the law says how the loss on "
        "each of them grows with K."
    )
    if not results.capacity.identified:
        text += (
            f" The growth factors are not identified: {with_symbols(results.capacity.reason)}. Published "
            "growth is shown instead."
        )
        return text
    run = [point["K"] for point in results.capacity.points]
    return text + (
        f" Mixtures of {min(run):g} to {max(run):g} languages were run: growth by more than "
        f"×{max(run) / min(run):g} is the law's word alone."
    )


def _multipliers(results: Results) -> dict:
    answer = results.capacity
    head = [
        "Times the languages",
        "parameters",
        "tokens in all",
        "compute",
        "published: parameters",
        "tokens in all",
        "compute",
    ]
    rows = []
    fitted = {row["ratio"]: row for row in answer.multipliers} if answer.identified else {}
    for paper in reference.published_expansion().to_dict("records"):
        ratio, names = paper["ratio"], ("N", "D_tot", "C")
        own = [times(fitted[ratio], name) if ratio in fitted else "not identified" for name in names]
        rows.append([f"×{ratio}", *own, *(f"×{paper[name]:.2f}" for name in names)])
    return page_table(head, rows, "Growth that keeps the loss")


def _crossover_text(results: Results) -> str:
    answer = results.crossover
    law, paper, other = answer.law, PUBLISHED_POWER_LAW, PUBLISHED_LEGEND_POWER_LAW
    text = (
        "A continued checkpoint starts ahead; a model from scratch overtakes it after so many tokens of the "
        "language, if the data reach that far. "
    )
    if law:
        text += (
            f"Over sizes the compute of the crossover grows as N^{law['exponent']:.2f} ({law['low']:.2f} to "
            f"{law['high']:.2f}); "
        )
    else:
        text += "This study does not identify how it grows with size; "
    return text + (
        f"the paper prints {paper.coefficient:,.0f}·N^{paper.exponent} in its text and "
        f"{other.coefficient:,.0f}·N^{other.exponent} in a legend, for its own models."
    )


def _crossovers(results: Results) -> dict:
    rows = []
    for row in results.crossover.table:
        what = {"measured": count(row["tokens"]), "bound": "not within the data"}.get(
            row["status"], "missing"
        )
        between = span(row["low"], row["high"], count) if row["status"] == "measured" else ""
        gap = "–" if row["gap"] is None else signed(row["gap"], 3)
        if row["gap"] is not None:
            gap += f" ({span(row['gap_low'], row['gap_high'], lambda value: signed(value, 3))})"
        last = count(row["gap_tokens"])
        note = _AHEAD.get(row["bound"]) or remark_text(row["reason"])
        rows.append([row["language"], row["scale"], what, between, gap, last, note])
    head = [
        "Language",
        "size",
        "crossover, tokens",
        "interval",
        "scratch − continued at the end",
        "at tokens",
        "",
    ]
    if rows and not any(row[-1] for row in rows):
        head, rows = head[:-1], [row[:-1] for row in rows]
    return page_table(head, rows, "", (0, 1, 6))


def _exclusions(results: Results) -> dict:
    rows = []
    for remark in results.exclusions:
        what, why = exclusion_text(remark)
        rows.append([what, str(remark.rows or "–"), why])
    return page_table(["Left out", "rows", "why"], rows, "Exclusions", (0, 2))
