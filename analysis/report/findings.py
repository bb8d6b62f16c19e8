"""The report's headlines (findings in one sentence) and recommendations, with their certainty.

Each is a record made by `wording.finding`. Its certainty follows from intervals and p-values.
"""

import math
from collections.abc import Iterator

from analysis.planning.answer import check_study_range
from analysis.planning.mixture import EXTRAPOLATION_CAVEAT, best_baseline
from analysis.report.transfer_findings import partner_recommendations, transfer_headlines
from analysis.report.wording import Finding, times
from analysis.study.results import CrossoverRow, HeldOutRow, ParameterRow, Results, main_matrix
from analysis.tables.published import published_expansion
from analysis.tables.remarks import remark_text
from analysis.text import count, first_few, join_names, minus, short_reason, signed, span
from mscale.scales import training_flops

# An interval within these factors is narrow: of the compute of growth, and of the tokens of a crossover.
_NARROW_GROWTH, _NARROW_CROSSOVER = 1.5, 3
# A law whose misfit exceeds the noise between runs by this factor is reported as misspecified.
_MISFIT_OVER_NOISE = 2.5


def law_parameter(results: Results, law: str, name: str) -> ParameterRow | None:
    """The record of a parameter of a fitted law, or None."""
    for entry in results.laws[law].parameters:
        if entry["name"] == name:
            return entry
    return None


def headlines(results: Results) -> list[Finding]:
    """The findings that the report begins with, most useful first."""
    found = [*_law_headline(results), *transfer_headlines(results)]
    return [*found, *_capacity_headline(results), *_crossover_headline(results)]


def _law_headline(results: Results) -> Iterator[Finding]:
    """Parameters of the fitted law, and whether ATLAS predicts held-out runs better than Chinchilla."""
    scores: dict[tuple[str, str], HeldOutRow] = {
        (row["law"], row["split"]): row for row in results.heldout if row["r2"] is not None
    }
    law = "atlas" if results.laws["atlas"].fitted else "chinchilla"
    alpha, beta = law_parameter(results, law, "alpha"), law_parameter(results, law, "beta")
    # Compare the variant that was fitted: the runs do not identify the τ of a larger one.
    fitted = "atlas_K_t" if results.laws["atlas"].variant == "K_t" else "atlas_D_other"
    if alpha and beta:
        name = "ATLAS" if law == "atlas" else "Chinchilla"
        pieces = []
        for symbol, entry in (("α", alpha), ("β", beta), ("λ", law_parameter(results, law, "lambda"))):
            if entry and entry["identified"]:
                pieces.append(
                    f"{symbol} = {entry['estimate']:.2g} ({entry['low']:.2g} to {entry['high']:.2g})"
                )
            elif entry:
                pieces.append(f"{symbol} is not identified")
        known = alpha["identified"] and beta["identified"]
        narrow = _usable(alpha) and _usable(beta)
        sure = "clear" if narrow else "unclear" if known else "not identified"
        share = scores.get((fitted if law == "atlas" else "chinchilla", "R2"))
        tail = f" R² {share['r2']:.3f} on held-out runs." if share and share["r2"] > 0 else ""
        if warning := misfit_warning(results, law):
            tail += f" But {warning}."
            sure = "likely" if sure == "clear" else sure
        because = f"{results.laws[law].points} cooled losses of {results.laws[law].groups} trunks"
        yield Finding(f"Loss follows {name}: {', '.join(pieces)}.{tail}", sure, because, "The law")
    plain = scores.get(("chinchilla", "R2"))
    best = scores.get((fitted, "R2")) or scores.get(("atlas_D_other", "R2"))
    counted = _counted(results, best, scores.get(("atlas_D_t", "R2")), plain) if best and plain else ""
    if best and plain and counted and best["difference"] is not None:
        low, high = best["difference_low"], best["difference_high"]
        better, worse = low > 0, high < 0
        verb = "helps to predict" if better else "does not help to predict"
        verb = verb if better or worse else "makes no difference beyond noise in predicting"
        yield Finding(
            f"{counted} {verb} held-out runs: R² {minus(best['r2'])} with ATLAS, {minus(plain['r2'])} with Chinchilla.",
            "clear" if better or worse else "unclear",
            "the same cooled rows, each random fifth of the trunks held out in turn, R² within languages",
            "Which law",
        )


def _counted(results: Results, best: HeldOutRow, own: HeldOutRow | None, plain: HeldOutRow) -> str:
    """What lets ATLAS predict better on this study: how it counts repeated data, or other languages' data."""
    if own and own["r2"] - plain["r2"] > (best["r2"] - plain["r2"]) / 2 > 0:
        return "Counting repeats of a language's own text"
    return "Counting the other languages' data" if _has_multilingual_runs(results) else ""


def _has_multilingual_runs(results: Results) -> bool:
    """Whether any run trains on several languages."""
    return any(cell["kind"] in ("bilingual", "uniform", "mixed") for cell in results.study.cells)


def typical_misfit(results: Results, law: str) -> float | None:
    """Root mean square residual, in nats, of a law on the losses it was fitted to; None where it was not fitted."""
    residuals = [
        row["observed"] - row["predicted"]
        for row in results.fit_points
        if row["law"] == law and row["predicted"] is not None
    ]
    return math.sqrt(sum(value**2 for value in residuals) / len(residuals)) if residuals else None


def misfit_warning(results: Results, law: str) -> str:
    """A warning where the residuals of a law are much larger than the differences between repeated runs.

    The law is then misspecified, and its intervals, which assume that it holds, are too narrow. Empty where this is not
    the case, or no run was repeated.
    """
    noise = results.transfer.noise.get("end")
    typical = typical_misfit(results, law)
    if not noise or not noise["repeated_runs"] or typical is None:
        return ""
    noise_nats = math.hypot(noise["run"], noise["checkpoint"])
    if typical < _MISFIT_OVER_NOISE * noise_nats:
        return ""
    return (
        f"it misses the losses by {typical:.3f} nats where repeated runs differ by {noise_nats:.3f}: its form is not "
        "all of the truth here, and its intervals, which take it for true, are too narrow"
    )


def _usable(entry: ParameterRow | None) -> bool:
    """Whether a parameter is identified and positive, with an interval within a factor of four."""
    if not entry or not entry["identified"] or entry["low"] is None or entry["high"] is None:
        return False
    return entry["low"] > 0 and entry["high"] < 4 * entry["low"]


def _width(low: float, high: float, factor: float) -> str:
    """The certainty of an estimate by the width of its interval."""
    return "clear" if high < factor * low else "likely"


def _capacity_headline(results: Results) -> list[Finding]:
    """The growth for twice the languages, or why it is not identified."""
    answer = results.capacity
    if not answer.multipliers or not answer.identified:
        text = "What more languages cost is not identified by this study."
        return [Finding(text, "not identified", answer.reason, "The curse")]
    row = answer.multipliers[0]
    text = (
        f"Twice the languages at unchanged loss cost {times(row, 'N')} parameters and {times(row, 'D_tot')} tokens in "
        f"all, {times(row, 'C')} compute. The paper has ×1.18, ×1.66 and ×1.96."
    )
    sure = _width(row["C_low"], row["C_high"], _NARROW_GROWTH)
    because = "eq. 7 with exponents common to the languages, from cooled uniform mixtures"
    return [Finding(text, sure, because, "The curse")]


def _crossover_headline(results: Results) -> list[Finding]:
    """When training from scratch overtakes continuing a checkpoint."""
    rows = [row for row in results.crossover.table if row["status"] != "missing"]
    if not rows:
        reason = "no run continues a checkpoint on a language that was also trained from scratch"
        text = "Whether to start from a checkpoint was not studied."
        return [Finding(text, "not identified", reason, "Scratch or checkpoint")]
    measured = [row for row in rows if row["status"] == "measured"]
    several = len({row["scale"] for row in rows}) > 1

    def name(row: CrossoverRow) -> str:
        return f"{row['language']} at {count(row['params'])} parameters" if several else row["language"]

    pieces = [
        f"{name(row)} after {count(row['tokens'])} ({span(row['low'], row['high'], count)})"
        for row in sorted(measured, key=lambda row: row["tokens"])[:4]
    ]
    later = [row for row in rows if row["bound"] == "at least"]
    sooner = [row for row in rows if row["bound"] == "at most"]
    text = ""
    if pieces:
        more = f" and {len(measured) - 4} more" if len(measured) > 4 else ""
        text = (
            f"A model from scratch overtakes the continued checkpoint on {', '.join(pieces)} tokens{more}. "
        )
    if later:
        names = join_names([name(row) for row in later])
        last = count(min(row["tokens"] for row in later))
        text += (
            f"On {names} continuing is still ahead at {last} tokens: that crossover is not within the data. "
        )
    if sooner:
        names = join_names([name(row) for row in sooner])
        text += f"On {names} scratch is ahead from the first tokens compared."
    sharp = [
        row for row in measured if row["low"] and row["high"] and row["high"] < _NARROW_CROSSOVER * row["low"]
    ]
    sure = "clear" if measured and len(sharp) == len(measured) and not later else "likely"
    return [Finding(text.strip(), sure, "stable phase against stable phase", "Scratch or checkpoint")]


def recommendations(results: Results) -> list[Finding]:
    """What to do: partners of each language, mixture, scratch or checkpoint, growth, and the runs to make next."""
    output = [
        *partner_recommendations(results),
        *recommended_mixture(results),
        *_start(results),
        *_growth(results),
    ]
    return [*output, *_next_runs(results)]


def recommended_mixture(results: Results) -> list[Finding]:
    """The recommended mixture, or why there is none."""
    found = results.mixture
    if not results.laws["atlas"].fitted:
        return []
    group = "Which mixture"
    usual = best_baseline(found.compared)
    if usual is None:
        text = f"No mixture is recommended: {short_reason(found.reason)}."
        return [Finding(text.replace("..", "."), "not identified", group=group)]
    shown = first_few([f"{language} {rate:.0%}" for language, rate in found.rates.items()], 8)
    ends = span(usual["worse_low"], usual["worse_high"], lambda value: signed(value, 4))
    gain = f"{usual['worse_by']:.4f} nats ({ends})"
    size = found.parameters if found.better else usual["parameters"]
    text = (
        f"For all languages alike, at the {count(found.flops)} FLOPs of the largest run: {count(size)} parameters on "
        f"{count(found.flops / training_flops(size, 1))} tokens"
    )
    text += (
        f" of {shown}. The best of the usual mixtures, {usual['mixture']}, is worse by {gain}."
        if found.better
        else f", mixed as usual ({usual['mixture']}). The law's own best, {shown}, is not surely better: by {gain}."
    )
    caveats: list[str] = []
    check_study_range(size, results.study, caveats)
    because = "; ".join(
        [*caveats, EXTRAPOLATION_CAVEAT, "for other targets or budgets ask mscale plan mixture"]
    )
    # Never "clear": the law is extrapolated to a mixture that was not run.
    return [Finding(text, "likely" if found.better else "unclear", because, group=group)]


def _start(results: Results) -> Iterator[Finding]:
    """For each crossover, below which tokens to continue the checkpoint."""
    for row in results.crossover.table:
        language = row["language"]
        if row["status"] == "measured":
            low, high = row["low"] or row["tokens"] / 2, row["high"] or row["tokens"] * 2
            text = (
                f"{language} at {count(row['params'])} parameters: continue the checkpoint below {count(low)} "
                f"tokens, train from scratch above {count(high)}; between the two the call is close."
            )
            sure = _width(low, high, _NARROW_CROSSOVER)
        elif row["bound"] == "at least":
            gap = f"{signed(row['gap'], 3)} nats ({span(row['gap_low'], row['gap_high'], lambda v: signed(v, 3))})"
            text = (
                f"{language} at {count(row['params'])} parameters: continue the checkpoint up to "
                f"{count(row['tokens'])} tokens at least; it is ahead by {gap} there."
            )
            sure = "clear" if (row["gap_low"] or -1) > 0 else "unclear"
        elif row["bound"] == "at most":
            text = f"{language} at {count(row['params'])} parameters: train from scratch."
            sure = "clear" if (row["gap_high"] or 1) < 0 else "unclear"
        else:
            continue
        yield Finding(text, sure, group="Scratch or checkpoint")


def _growth(results: Results) -> Iterator[Finding]:
    """Growth of parameters and tokens for more languages."""
    answer = results.capacity
    group = "More languages"
    if not answer.identified:
        first = published_expansion().iloc[0]
        text = (
            f"Your own growth factors are not identified ({answer.reason}). The published ones, for twice the "
            f"languages: ×{first['N']:.2f} parameters, ×{first['D_tot']:.2f} tokens (interval not published)."
        )
        yield Finding(text, "not identified", group=group)
        return
    for row in answer.multipliers[:2]:
        text = (
            f"For {row['ratio']}× the languages plan ×{row['N']:.2f} parameters and ×{row['D_tot']:.2f} tokens: "
            f"×{row['C']:.2f} compute ({row['C_low']:.2f} to {row['C_high']:.2f})."
        )
        sure = _width(row["C_low"], row["C_high"], _NARROW_GROWTH)
        yield Finding(text, sure, group=group)


def _next_runs(results: Results) -> Iterator[Finding]:
    """The runs that the study lacks."""

    def run(text: str, because: str) -> Finding:
        return Finding(text, "likely", because, group="What to run next")

    noise = results.transfer.noise.get("stable")
    if noise and noise["repeated_runs"] < 3:
        yield run(
            "Repeat two or three trunks at the middle scale with another seed.",
            f"the noise of runs rests on {noise['repeated_runs']} repeated run(s); every interval here uses it",
        )
    if len(results.study.trained_languages) > 1 and not _has_multilingual_runs(results):
        yield run(
            "Train pairs of the languages half and half at one size, and all of them together.",
            "no run trains on several languages: who helps whom, and what more of them cost, need such runs",
        )
    if not results.crossover.table:
        yield run(
            "Continue a multilingual checkpoint on a language that is also trained from scratch.",
            "whether to start from one was not studied",
        )
    cells = main_matrix(results)
    late = [row for row in cells if row["status"] == "bound" and row["bound"] == "at most"]
    if late:
        names = join_names([f"{row['target']}+{row['source']}" for row in late][:4])
        yield run(
            f"Train longer: {names}.", "these bilingual runs never reached the monolingual loss: only bounds"
        )
    missing = [row for row in cells if row["status"] == "missing"]
    if missing:
        best = ["+".join(row["pair"]) for row in results.transfer.next_pairs][:3]
        some = [f"{row['source']}→{row['target']}" for row in missing][:4]
        first = (
            f"first {join_names(best)}, which tell most of all scores"
            if best
            else f"such as {join_names(some)}"
        )
        yield run(f"Measure {len(missing)} missing scores: {first}.", remark_text(missing[0]["reason"]))
    straddle = [
        row
        for row in cells
        if row["status"] == "measured" and row["low"] is not None and row["high"] is not None
        if row["low"] < 0 < row["high"]
    ]
    if straddle:
        widest = max(straddle, key=lambda row: row["high"] - row["low"])
        yield run(
            f"Repeat {widest['target']}+{widest['source']} with another seed.",
            f"its score, {span(widest['low'], widest['high'])}, is the widest that could have either sign",
        )
    beyond = [row for row in results.crossover.table if row["bound"] == "at least"]
    if beyond:
        names = join_names([row["language"] for row in beyond])
        yield run(
            f"Train {names} longer, from scratch and from the checkpoint.",
            "their crossover is beyond the data",
        )
    if results.crossover.error and results.crossover.table:
        yield run("Continue the checkpoint at two more sizes.", results.crossover.error.split(":")[0])
    for name, title in (("chinchilla", "Chinchilla"), ("atlas", "ATLAS"), ("capacity", "the capacity law")):
        law = results.laws[name]
        if not law.fitted:
            yield run(f"Run what {title} lacks.", short_reason(law.reason))
