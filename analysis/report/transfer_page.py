"""Texts and tables of the report's section on transfer."""

from collections.abc import Mapping
from typing import Any

from analysis.study.results import Results, TransferResult, main_matrix
from analysis.tables.published import published_findings
from analysis.tables.remarks import remark_text
from analysis.text import count, minus, p_value, signed, span


def page_table(head: list[str], rows: list[list], caption: str = "", text: tuple[int, ...] = (0,)) -> dict:
    """A table of the report; `text`: indices of the columns that hold text and not numbers."""
    return {"head": head, "rows": rows, "caption": caption, "text": text}


def transfer_text(results: Results, level: str) -> str:
    """The definition of the score, how many pairs have one, and the units it is known in."""
    transfer = results.transfer
    if transfer.error:
        return f"Not measured: {transfer.error}."
    cells = main_matrix(results)
    counts = {
        status: sum(row["status"] == status for row in cells) for status in ("measured", "bound", "missing")
    }
    return (
        "The bilingual transfer score compares how many tokens the 50/50 model of two languages needs to reach the "
        "loss that the monolingual model of the target has at d tokens: BTS = −(σ(L(d)) − 2d)/d. 0 is no transfer; "
        f"1 means that the source's tokens are worth as much as the target's own. At this size {counts['measured']} "
        f"ordered pairs are measured, {counts['bound']} are bounds and {counts['missing']} are missing. Intervals "
        f"are {level}." + _units_text(transfer)
    )


def _units_text(transfer: TransferResult) -> str:
    """Which other units the matrix is known in, and why not in the rest."""
    missing = transfer.units_missing
    text = " Scores count tokens; languages differ in how much text a token is."
    if "bytes" in missing:
        return text + f" They cannot be counted in bytes: {remark_text(missing['bytes'])}."
    if "content" in missing:
        return text + f" The matrix can also count bytes; not content: {remark_text(missing['content'])}."
    return text + " The matrix can also count bytes, and content by the languages' byte premium."


def kinship_table(results: Results) -> dict:
    """Symmetry and the effects of script and family, with the published values."""
    found: Mapping[str, Any] = results.transfer.statistics or {}
    paper = published_findings()
    rows = []
    symmetry = found.get("symmetry")
    if symmetry:
        about = _interval(symmetry["correlation"], symmetry["low"], symmetry["high"])
        cells = ["correlation of A→B with B→A", str(symmetry["pairs"]), about, "", p_value(symmetry["p"])]
        rows.append([*cells, "", signed(paper["symmetry"])])
    for key in ("script", "family"):
        effect = found.get(key)
        if not effect:
            continue
        means = f"{signed(effect['same'])} against {signed(effect['different'])}"
        published = (
            f"{signed(paper['same_script'])} against {signed(paper['different_script'])}"
            if key == "script"
            else "–"
        )
        rows.append(
            [
                f"same {key}, or different: {means}",
                f"{effect['pairs_same']} and {effect['pairs_different']}",
                _interval(effect["difference"], effect["low"], effect["high"]),
                "–" if effect["size"] is None else signed(effect["size"], 1),
                p_value(effect["p"]),
                _interval(effect["adjusted"], effect["adjusted_low"], effect["adjusted_high"]),
                published,
            ]
        )
    head = ["Scores of the measured cells", "cells", "estimate", "in deviations", "p", "adjusted", "paper"]
    return page_table(head, rows, "Is transfer symmetric, and does kinship matter?")


def _interval(value: float | None, low: float | None, high: float | None) -> str:
    if value is None or low is None:
        return "–"
    return f"{signed(value)} ({span(low, high)})"


def predictions_table(results: Results) -> dict:
    """Held-out accuracy of predicted pairs, for each set of feature groups."""
    found = results.transfer.predicted
    if found["reason"]:
        return page_table([], [])
    gains = {row["group"]: row for row in found["gains"]}
    rows = [
        [
            " + ".join(row["groups"]) + (" (chosen)" if row["groups"] == found["groups"] else ""),
            _share(row["r2"], row["r2_low"], row["r2_high"]),
            signed(row["spearman"]),
            _interval(gain["r2"], gain["low"], gain["high"])
            if len(row["groups"]) == 1 and (gain := gains.get(row["groups"][0]))
            else "",
        ]
        for row in found["ablation"]
    ]
    whole = _share(found["r2"], found["r2_low"], found["r2_high"])
    rows.append(["the choice made anew for each fold", whole, signed(found["spearman"]), ""])
    head = ["Features", "R² on held-out pairs", "Spearman", "adds to all others, R²"]
    return page_table(head, rows, "Predicting pairs that were not run")


def _share(value: float, low: float | None, high: float | None) -> str:
    return minus(value, 2) + (f" ({span(low, high, lambda x: minus(x, 2))})" if low is not None else "")


def prediction_text(results: Results) -> str:
    """How pairs that were not run are predicted, or why they are not."""
    found = results.transfer.predicted
    if found["reason"]:
        # No reason is needed where every pair was run.
        gaps = any(row["status"] == "missing" for row in main_matrix(results))
        return f"No pair is predicted: {found['reason']}." if gaps else ""
    names = [*found["features"]["adaptation"], *found["features"]["language"]]
    known = f" (here {', '.join(names)})" if names else ""
    paper = published_findings()
    return (
        f"Pairs that were not run are predicted by a random forest of 300 trees, as in the paper, on what "
        f"continued checkpoints and the inventory tell of the languages{known} and on how the two, and languages that "
        f"transfer like them, fare in other pairs. Which of these help is decided within the training pairs; pairs are "
        f"held out with both directions, a tenth at a time. The paper has R² {paper['predictor_r2']:.2f} and Spearman "
        f"{paper['predictor_spearman']:.2f} with the adaptation features on its own runs."
    )


def adaptation_table(results: Results) -> dict:
    """The adaptation scores; one row for each language that the checkpoint was continued on."""
    rows = [row for row in results.transfer.adaptation if row["status"] == "measured"]
    if not rows:
        return page_table([], [])
    sources = sorted({row["source"] for row in rows})
    targets = sorted({row["target"] for row in rows})
    scores = {(row["source"], row["target"]): row for row in rows}
    if len(targets) > 14:
        return page_table([], [])

    def cell(source: str, target: str) -> str:
        row = scores.get((source, target))
        if row is None or row.get("high") is None:
            return signed(row["score"] if row else None)
        return f"{signed(row['score'])} ± {row['high'] - row['score']:.2f}"

    body = [[source, *(cell(source, target) for target in targets)] for source in sources]
    size, d_max = rows[0]["scale"], count(rows[0]["d_max"])
    caption = (
        "Adaptation score: mean loss gained on the column's language while the checkpoint continues on "
        f"the row's ({size}, {d_max} tokens), ± half its {results.level:.0%} interval"
    )
    return page_table(["continued on", *targets], body, caption)
