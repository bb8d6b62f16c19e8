"""Which languages help a target, by their transfer scores: `mscale plan languages`."""

from collections.abc import Iterable, Mapping
from typing import Any

from analysis.planning.answer import (
    BASIS_PREDICTED,
    BASIS_PUBLISHED,
    BASIS_STUDY,
    PUBLISHED_MATRIX_PARAMS,
    PUBLISHED_MATRIX_TOKENS,
    Answer,
)
from analysis.study.results import Results, main_matrix
from analysis.tables import published as reference
from analysis.text import count, first_few, signed, span
from analysis.transfer.matrix import effective_transfer
from mscale.errors import MscaleError, nearest


def source_languages(target: str, results: Results | None = None, *, decide: bool = True) -> Answer:
    """The sources to train together with `target`, best first, with score, interval and τ.

    Measured scores come first, then those predicted for pairs that were not run, then the published ones.

    Args:
      decide: False where a budget decides how much of which (`co_training`); the text then only says who helps.

    Raises:
      MscaleError: neither the study nor the paper has a score for the target.
    """
    rows: list[dict[str, Any]] = []
    known: set[str] = set()

    def add(found: Iterable[Mapping[Any, Any]], target: str, basis: str) -> None:
        """Adds the scores for the target of the sources that are not known yet."""
        for row in found:
            source = reference.ISO_OF_MADLAD.get(row["source"], row["source"])
            if row["target"] == target and source not in known:
                fields = {name: row.get(name) for name in ("source", "score", "low", "high")}
                tau = row["tau"] if "tau" in row else float(effective_transfer(row["score"]))
                rows.append({**fields, "tau": tau, "bound": row.get("bound") or "", "basis": basis})
                known.add(source)

    measured = main_matrix(results) if results else []
    add((row for row in measured if row["status"] in ("measured", "bound")), target, BASIS_STUDY)
    add(results.transfer.predicted.get("cells", ()) if results else (), target, BASIS_PREDICTED)
    # Generated languages may have the codes of natural ones: the published scores are not theirs.
    generated = bool(results and results.truth)
    paper = reference.published_transfer()
    paper = paper.head(0) if generated else paper
    add(paper.dropna().to_dict("records"), reference.ISO_OF_MADLAD.get(target, target), BASIS_PUBLISHED)
    if not rows:
        names = sorted({row["target"] for row in measured} | set(paper["target"]))
        raise MscaleError(
            f"no transfer score for {target!r}{nearest(target, names)}: neither the study nor the paper "
            f"(38 languages) measured it; known: {first_few(names, 40)}. Run it alone and in 50/50 pairs with "
            "the candidates"
        )
    order = (BASIS_STUDY, BASIS_PREDICTED, BASIS_PUBLISHED)
    rows.sort(key=lambda row: (order.index(row["basis"]), -row["score"]))
    best = rows[0]
    # A source is known to help where the lower end of its score is above 0. A lower bound is its own lower end; a
    # published score has no interval and stands for itself.
    lower_end = (
        best["score"] if best["basis"] == BASIS_PUBLISHED or best["bound"] == "at least" else best["low"]
    )
    score_text = f"{best['bound']} {signed(best['score'])}".strip()
    if best["basis"] != BASIS_PUBLISHED and not best["bound"]:
        score_text += f" ({span(best['low'], best['high'])})"
    worth_text = (
        ""
        if best["tau"] is None
        else f"; a token of {best['source']} is worth {best['tau']:.2f} tokens of {target}"
    )
    advice = f"Train {target} with {best['source']}"
    if not decide:
        advice = f"Trained half and half with {target}, {best['source']} helps most"
    text = (
        f"{advice}: score {score_text}{worth_text}."
        if lower_end is not None and lower_end > 0
        else f"No source is known to help {target}; the best is {best['source']}, {score_text}."
    )
    reasons = [
        "scores do not add: two sources together may give less than either promises",
        f"scores are {'published' if best['basis'] == BASIS_PUBLISHED else 'of this study'}, and drift with size and "
        "budget",
    ]
    if best["basis"] == BASIS_PUBLISHED:
        size, budget = count(PUBLISHED_MATRIX_PARAMS), count(PUBLISHED_MATRIX_TOKENS)
        reasons.append(f"the paper measured at {size} parameters and d = {budget} tokens; yours may differ")
    elif any(row["basis"] == BASIS_PUBLISHED for row in rows):
        reasons.append(f"sources the study did not run are shown as {BASIS_PUBLISHED}")
    if any(row["bound"] for row in rows):
        reasons.append(
            "at most: the pair's runs never reached the loss, so its score lies below; at least: the other way"
        )
    return Answer(text, tuple(rows), best["basis"], tuple(reasons))
