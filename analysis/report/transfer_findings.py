"""The headlines on transfer, and the recommendation of partners for each language."""

from collections.abc import Mapping
from typing import Any

from analysis.report.wording import Finding
from analysis.study.results import Results, main_matrix
from analysis.text import count, join_names, minus, p_value, signed, span


def transfer_headlines(results: Results) -> list[Finding]:
    """Headlines on measured scores, planted relatedness, kinship, and predicted pairs."""
    found = [*_measured(results), *_planted(results)]
    return [*found, *_kinship(results), *_predicted(results)]


def _measured(results: Results) -> list[Finding]:
    """How many pairs help and interfere beyond noise, and the strongest one."""
    cells = [row for row in main_matrix(results) if row["status"] == "measured"]
    bounds = [row for row in main_matrix(results) if row["status"] == "bound"]
    if not cells:
        text = "Transfer between languages could not be read from this study."
        because = results.transfer.error or "no pair has both curves at the same schedule phase"
        return [Finding(text, "not identified", because, "Transfer")]
    helps = [row for row in cells if row["low"] is not None and row["low"] > 0]
    hurts = [row for row in cells if row["high"] is not None and row["high"] < 0]
    best = max(cells, key=lambda row: row["score"])
    below = sum(row["bound"] == "at most" and (row["high"] or 0) < 0 for row in bounds)
    more = f" {len(bounds)} more pairs are bounds, {below} of them interference for sure." if bounds else ""
    text = (
        f"Of {len(cells)} measured source→target pairs {len(helps)} help and {len(hurts)} interfere beyond "
        f"noise; {len(cells) - len(helps) - len(hurts)} cannot be told from no transfer. The strongest is "
        f"{best['source']}→{best['target']}: {signed(best['score'])} ({span(best['low'], best['high'])}).{more}"
    )
    told = len(helps) + len(hurts)
    sure = "clear" if told >= len(cells) / 3 else "likely" if told else "unclear"
    d = count(results.transfer.d, "tokens")
    because = f"scale {results.transfer.scale}, d = {d}, stable against stable"
    return [Finding(text, sure, because, "Transfer")]


def _planted(results: Results) -> list[Finding]:
    """Rank correlation with the planted relatedness of a generated corpus."""
    agreement = results.transfer.agreement
    if not agreement or agreement["spearman"] is None:
        return []
    p, floor = agreement["p"], agreement["smallest_p"]
    sure = "clear" if p < 0.05 else "likely" if p <= max(0.1, 1.5 * floor) else "unclear"
    text = (
        f"Measured transfer ranks the pairs as planted: Spearman {signed(agreement['spearman'])} over "
        f"{agreement['pairs']} pairs (p = {p:.3f}{_permutation_limit(p, floor)})."
    )
    return [Finding(text, sure, "p by permuting whole languages, since pairs share them", "Planted truth")]


def _permutation_limit(p: float, smallest: float) -> str:
    """A remark on a p-value near the smallest one that the permutations of this few languages can give."""
    return ", the least that so few languages can give" if 0.01 < p <= 1.2 * smallest else ""


def _kinship(results: Results) -> list[Finding]:
    """The effects of family and script, and the correlation of the two directions of a pair."""
    statistics: Mapping[str, Any] = results.transfer.statistics or {}
    pieces, least = [], 1.0
    for key, name in (("family", "family"), ("script", "script")):
        effect = statistics.get(key)
        if effect and effect["low"] is not None:
            pieces.append(
                f"pairs of one {name} score {signed(effect['same'])} on average, others "
                f"{signed(effect['different'])} (difference {signed(effect['difference'])}, "
                f"{span(effect['low'], effect['high'])}, p {_p_text(effect['p'])}"
                f"{_permutation_limit(effect['p'], effect['smallest_p'])})"
            )
            least = min(least, effect["p"])
    symmetry = statistics.get("symmetry")
    if symmetry and symmetry["low"] is not None:
        pieces.append(
            f"the two directions of a pair correlate {signed(symmetry['correlation'])} "
            f"({span(symmetry['low'], symmetry['high'])})"
        )
        least = symmetry["p"] if not pieces[:-1] else least  # where script and family are unknown
    if not pieces:
        return []
    text = "; ".join(pieces)
    sure = "clear" if least < 0.01 else "likely" if least < 0.05 else "unclear"
    because = "p by permuting whole languages, intervals by leaving one out: cells of a language are not independent"
    return [Finding(f"{text[0].upper()}{text[1:]}.", sure, because, "Kinship")]


def _predicted(results: Results) -> list[Finding]:
    """How well the missing scores are predicted, and the most promising of them."""
    predicted = results.transfer.predicted or {}
    cells = predicted.get("cells")
    if not cells:
        return []
    best = max(cells, key=lambda cell: cell["score"])
    ends = span(predicted["r2_low"], predicted["r2_high"], lambda value: minus(value, 2))
    text = (
        f"{len(cells)} scores were not measured and are predicted. On pairs held out such predictions reach R² "
        f"{minus(predicted['r2'], 2)} ({ends}) and Spearman "
        f"{signed(predicted['spearman'])}. The most promising is {best['source']}→{best['target']}: "
        f"{signed(best['score'])} ({span(best['low'], best['high'])})."
    )
    sure = "likely" if (predicted["r2_low"] or -1) > 0.5 else "unclear"
    because = f"a forest on {predicted['pairs']} pairs, from {join_names(predicted['groups'])}"
    return [Finding(text, sure, because, "Pairs not run")]


def _p_text(p: float) -> str:
    shown = p_value(p)
    return shown if shown.startswith("<") else f"= {shown}"


def partner_recommendations(results: Results) -> list[Finding]:
    """Which languages to train each language with, and which to keep apart from it."""
    cells = [row for row in main_matrix(results) if row["status"] == "measured"]
    known = [row for row in main_matrix(results) if row["status"] != "missing"]
    output = []
    best_first = sorted({row["target"] for row in cells})
    if len(best_first) > 12:  # a long list starts with the largest sure gains
        gain = {name: max(row["low"] or -9 for row in cells if row["target"] == name) for name in best_first}
        best_first.sort(key=lambda name: -gain[name])
    for target in best_first:
        of_target = [row for row in cells if row["target"] == target]
        helps = sorted(
            (row for row in of_target if row["low"] is not None and row["low"] > 0),
            key=lambda row: -row["score"],
        )
        # A bound counts as interference where its upper end is below zero.
        hurts = [
            row for row in known if row["target"] == target and row["high"] is not None and row["high"] < 0
        ]
        if helps:
            shown = ", ".join(f"{row['source']} ({span(row['low'], row['high'])})" for row in helps[:3])
            text = f"{target}: train it with {shown}."
            sure = "clear" if helps[0]["low"] > 0.1 else "likely"
        else:
            best = max(of_target, key=lambda row: row["score"])
            text = f"{target}: no partner helps beyond noise; the best guess is {best['source']}."
            sure = "unclear"
        if hurts:
            worst = sorted(hurts, key=lambda row: row["score"])
            names = [row["source"] for row in worst[:3]] + (
                [f"{len(worst) - 3} more"] if len(worst) > 3 else []
            )
            text += f" Keep it apart from {join_names(names)}."
        output.append(Finding(text, sure, "", "Train together", group="Which languages together"))
    return output
