"""Findings, symbols, equations and the methods section of the report."""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from markupsafe import Markup, escape

from analysis.study.results import LawResult, Results
from analysis.tables.remarks import remark_text

CELL_KINDS = {
    "mono": "One language",
    "bilingual": "Two languages, 50/50",
    "uniform": "Uniform mixture",
    "mixed": "Other mixture",
    "repeated": "One language, repeated data",
    "continued": "Continued from a checkpoint",
}
HELD_OUT = {
    "R2": "each random fifth of the trunks in turn",
    "R2_M": "unseen mixtures",
    "leave_one_scale_out": "each size in turn",
}
COMPARED_LAWS = {
    "chinchilla": "Chinchilla",
    "atlas_D_t": "ATLAS, D_t only",
    "atlas_D_other": "ATLAS, + D_other",
    "atlas_K_t": "ATLAS, + K_t",
}
GREEK = {"alpha": "α", "beta": "β", "lambda": "λ", "phi": "φ", "psi": "ψ", "tau": "τ"}
CERTAINTIES = ("clear", "likely", "unclear", "not identified")


@dataclass(frozen=True)
class Finding:
    """A sentence, its certainty (one of `CERTAINTIES`), the ground for it, its title, and the group of an advice."""

    text: str
    sure: str
    because: str = ""
    title: str = ""
    group: str = ""


def capitalised(text: str) -> str:
    """The text with its first letter in upper case."""
    return text[:1].upper() + text[1:]


def times(row: Mapping[str, Any], name: str) -> str:
    """A factor of growth with its interval: ×1.18 (1.10 to 1.27)."""
    return f"×{row[name]:.2f} ({row[name + '_low']:.2f} to {row[name + '_high']:.2f})"


def effective_data_text(law: LawResult) -> str:
    """Which data the fitted ATLAS law counts; empty for other laws."""
    one = "language" if law.own_sources == 1 else f"{law.own_sources} languages"
    return {
        "": "",
        "D_t": "the language's own tokens alone",
        "D_other": "one τ for all other languages",
        "K_t": f"τ of its own for the {one} most co-sampled with each, one for the rest",
    }[law.variant]


def with_symbols(text: str) -> str:
    """Names and equations with symbols: alpha becomes α, tau[es,pt] becomes τ(pt→es)."""
    match = re.fullmatch(r"tau\[([^,\]]+),([^\]]+)\]", text)
    if match:
        return f"τ({match[2]}→{match[1]})"
    for name, letter in GREEK.items():
        text = re.sub(rf"(?<![A-Za-z]){name}(?![A-Za-z])", letter, text)
    return text.replace("*", "·").replace(" - ", " − ").replace("_mean", " at the mean")


def subscripts(text: str) -> Markup:
    """Text as HTML with subscripts: D_t."""
    return Markup(re.sub(r"_([A-Za-z]+)", r"<sub>\1</sub>", str(escape(text))))


def equation(text: str) -> Markup:
    """An equation as HTML with superscripts and subscripts."""
    text = str(escape(with_symbols(text)))
    text = re.sub(r"_([A-Za-zτ]+)", r"<sub>\1</sub>", text)
    text = re.sub(r"\^(\([^)]*\)|-?[A-Za-zα-ω0-9]+)", r"<sup>\1</sup>", text)
    return Markup(text.replace("sum ", "Σ "))


def methods_section(results: Results, level: str) -> list[tuple[str, str]]:
    """The methods section: pairs of a term and its text, filled in from the results."""
    study, transfer = results.study, results.transfer
    noise = transfer.noise.get("stable")
    sections = [
        (
            "Losses",
            f"Nats per token on held-out text; vocabularies: {', '.join(name[:16] for name in study.vocabularies)}. "
            "Only runs of one vocabulary are compared.",
        ),
        (
            "Schedule phase",
            "Laws are fitted to cooled rows only. Transfer and crossover compare constant-rate trunks with each "
            "other, after warm-up; the cooled runs' own scores are in the results file.",
        ),
        (
            "Curves",
            "Smoothed over log tokens with penalised curvature (penalty by generalised cross-validation), then "
            "made non-increasing; the loss is first reached where that curve reaches it. No curve is extrapolated: "
            "beyond its ends there are bounds.",
        ),
    ]
    if noise:
        repeated = noise["repeated_runs"]
        rests = (
            f"measured on {repeated} repeated run{'s' if repeated != 1 else ''} and on the prior guess that it "
            "equals that of checkpoints (worth 3 degrees of freedom)"
            if repeated
            else "assumed equal to that of checkpoints, since no cell was repeated"
        )
        sections.append(
            (
                "Noise",
                f"Between neighbouring checkpoints {noise['checkpoint']:.4f} nats; between runs {noise['run']:.4f} "
                f"nats, {rests}. Both enter every interval of a score or crossover.",
            )
        )
    sections += [
        (
            "Intervals",
            f"{level}. Laws: the runs of one trunk share their noise, so trunks, not rows, are the unit. A "
            "parameter whose interval the data leave open is called not identified.",
        ),
        (
            "Held out",
            "Each random fifth of the trunks in turn, with all their branches; mixtures of three languages or "
            "more, predicted from the others; each size in turn, predicted from the others. Languages that the "
            "training rows show at one size only are left out, for all laws alike. ATLAS's τ are drawn weakly to 0 "
            "(prior deviation 0.5), as some are not determined by what remains.",
        ),
    ]
    predicted = transfer.predicted
    if not predicted["reason"]:
        sections.append(
            (
                "Pairs not run",
                f"Predicted from {predicted['pairs']} measured pairs; bounds are not trained on. Intervals are the "
                "errors' own quantile on held-out pairs. In the matrix such cells are hatched, in the data their "
                "status is predicted; no law and no other figure uses them.",
            )
        )
    if transfer.statistics and transfer.statistics["symmetry"]:
        sections.append(
            (
                "Symmetry and kinship",
                "Over measured cells. Intervals leave out one language at a time; p permutes whole languages "
                "(quadratic assignment); adjusted: beside the other property and an effect of each language as "
                "target and as source.",
            )
        )
    if results.truth:
        sections.append(
            (
                "Planted truth",
                "The corpus was generated; relatedness comes from the generator's parameters, not from text.",
            )
        )
    if results.notes:
        sections.append(
            ("Notes on the data", " ".join(capitalised(remark_text(note)) + "." for note in results.notes))
        )
    if not results.exclusions:
        sections.append(("Exclusions", "No row was left out and no run failed."))
    return sections
