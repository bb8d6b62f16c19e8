"""Which languages to train with a target: `mscale plan languages`."""

from collections.abc import Mapping
from typing import Any

from analysis.planning.answer import PREDICTED, PUBLISHED, PUBLISHED_SIZE, PUBLISHED_TOKENS, STUDY, Answer
from analysis.study.results import main_matrix
from analysis.tables import published as reference
from analysis.text import count, few, signed, span
from analysis.transfer.matrix import effective_transfer
from mscale.errors import MscaleError, nearest


def languages(target: str, results: Mapping[str, Any] | None = None, *, decide: bool = True) -> Answer:
    """Sources to train together with ``target``, best first: score, interval, and the worth τ of a token.

    Scores that were measured come first, then those predicted for pairs that were not run, then the paper's.

    Args:
      decide: False where a budget decides how much of which (`co_training`): then only who helps is said.

    Raises:
      MscaleError: neither the study nor the paper has a score for the target.
    """
    rows = []
    measured = main_matrix(dict(results)) if results else []
    for row in measured:
        if row["target"] == target and row["status"] in ("measured", "bound"):
            keep = {name: row[name] for name in ("source", "score", "low", "high", "tau")}
            rows.append({**keep, "bound": row.get("bound") or "", "basis": STUDY})
    known = {reference.ALIASES.get(row["source"], row["source"]) for row in rows}
    # The basis sorts: what was measured before what is predicted, the study before the paper.
    predicted = results["transfer"].get("predicted", {}).get("cells", ()) if results else ()
    for row in predicted:
        source = reference.ALIASES.get(row["source"], row["source"])
        if row["target"] == target and source not in known:
            keep = {name: row[name] for name in ("source", "score", "low", "high")}
            tau = float(effective_transfer(row["score"]))
            rows.append({**keep, "tau": tau, "bound": "", "basis": PREDICTED})
            known.add(source)
    # Generated languages may bear the codes of natural ones, of which the paper speaks.
    generated = bool(results and results.get("truth"))
    paper = reference.published_transfer()
    paper = paper.head(0) if generated else paper
    alias = reference.ALIASES.get(target, target)
    for entry in paper[paper["target"] == alias].dropna().to_dict("records"):
        if entry["source"] not in known:
            tau = float(effective_transfer(entry["score"]))
            keep = {"source": entry["source"], "score": entry["score"], "low": None, "high": None, "tau": tau}
            rows.append({**keep, "bound": "", "basis": PUBLISHED})
    if not rows:
        names = sorted({row["target"] for row in measured} | set(paper["target"]))
        raise MscaleError(
            f"no transfer score for {target!r}{nearest(target, names)}: neither the study nor the paper "
            f"(38 languages) measured it; known: {few(names, 40)}. Run it alone and in 50/50 pairs with the candidates"
        )
    order = (STUDY, PREDICTED, PUBLISHED)
    rows.sort(key=lambda row: (order.index(row["basis"]), -row["score"]))
    best = rows[0]
    # A score without a lower end is known to help only where it is itself such an end, or the paper gives none.
    floor = best["score"] if best["basis"] == PUBLISHED or best["bound"] == "at least" else best["low"]
    said = f"{best['bound']} {signed(best['score'])}".strip()
    if best["basis"] != PUBLISHED and not best["bound"]:
        said += f" ({span(best['low'], best['high'])})"
    worth = (
        ""
        if best["tau"] is None
        else f"; a token of {best['source']} is worth {best['tau']:.2f} tokens of {target}"
    )
    told = f"Train {target} with {best['source']}"
    if not decide:
        told = f"Trained half and half with {target}, {best['source']} helps most"
    text = (
        f"{told}: score {said}{worth}."
        if floor is not None and floor > 0
        else f"No source is known to help {target}; the best is {best['source']}, {said}."
    )
    reasons = [
        "scores do not add: two sources together may give less than either promises",
        f"scores are {'published' if best['basis'] == PUBLISHED else 'of this study'}, and drift with size and budget",
    ]
    if best["basis"] == PUBLISHED:
        size, budget = count(PUBLISHED_SIZE), count(PUBLISHED_TOKENS)
        reasons.append(f"the paper measured at {size} parameters and d = {budget} tokens; yours may differ")
    elif any(row["basis"] == PUBLISHED for row in rows):
        reasons.append(f"sources the study did not run are shown as {PUBLISHED}")
    if any(row["bound"] for row in rows):
        reasons.append(
            "at most: the pair's runs never reached the loss, so its score lies below; at least: the other way"
        )
    return Answer(text, tuple(rows), best["basis"], tuple(reasons))
