"""What is noted or left out when a study is read and measured: codes in tables and files, and the one wording of each.

A `Remark` is part of laws.json; `remark_text` says it, on the page, on the terminal and in CSV files.
"""

from typing import Literal

import msgspec

from analysis.text import first_few

Code = Literal[
    # Notes on a table.
    "duplicates",
    "duplicates_kept",
    "few_tokens",
    "filled_columns",
    "halves",
    "no_exposure",
    "exposure_from_observations",
    "evaluation_sizes",
    "scale_from_parameters",
    "vocabularies",
    # What was left out.
    "failed",
    "not_finite",
    "other_evaluation",
    "spikes",
    # Why a transfer score, an adaptation score or a crossover is missing.
    "no_run_alone",
    "no_run_of_both",
    "one_point",
    "never_meet",
    "outside_the_curve",
    "below_the_bound",
    "no_evaluation",
    "short_run",
    "no_such_run",
    "other_vocabulary",
    "no_shared_tokens",
    # Why scores are unknown in a unit.
    "no_bytes",
    "no_byte_premium",
]


class Remark(msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """A code and what it is about. rows: of the table. names, others, numbers: what the sentence of the code names."""

    code: Code
    rows: int = 0
    names: tuple[str, ...] = ()
    others: tuple[str, ...] = ()
    numbers: tuple[float, ...] = ()


def remark_text(remark: Remark | None) -> str:
    """The remark in words, without a full stop; empty for None."""
    if remark is None:
        return ""
    names, numbers = remark.names, remark.numbers
    match remark.code:
        case "duplicates":
            return f"{remark.rows} duplicate rows dropped"
        case "duplicates_kept":
            return f"{remark.rows} rows are exact duplicates of others and count twice; drop them if unmeant"
        case "few_tokens":
            return (
                f"run {names[0]} ends at {numbers[0]:,.0f} tokens for {numbers[1]:,.0f} parameters: both are expected "
                "as plain counts, so check the units"
            )
        case "filled_columns":
            return (
                f"columns not in the table and filled in: {', '.join(names)} (groups default to runs, data to never "
                "repeated, starts to scratch, compute to 6ND)"
            )
        case "halves":
            return "target_tokens was not given: taken as all tokens of runs of one language, half of those of two"
        case "no_exposure":
            return "no exposure table: laws that count other languages' tokens cannot be fitted"
        case "exposure_from_observations":
            return (
                "no exposure table: what runs trained on was read off the observations, which hold all of it"
            )
        case "evaluation_sizes":
            return (
                f"evaluation sets differ in size between runs (first: {names[0]}, {numbers[0]:g} sizes): differences "
                "of loss carry that noise too"
            )
        case "scale_from_parameters":
            return "scale was not given: taken as the number of parameters"
        case "vocabularies":
            return (
                f"{numbers[0]:g} vocabularies in one table: losses per token are compared only between runs of the "
                "same vocabulary"
            )
        case "no_run_alone" | "no_run_of_both":
            run = f"monolingual run of {names[0]}"
            if remark.code == "no_run_of_both":
                run = f"50/50 run of {names[0]} with {names[1]}"
            # Phases are never compared: decay alone lowers the loss by as much as most transfer effects.
            state, other = ("cooled", "stable") if names[-1] == "end" else ("in the stable phase", "cooled")
            return f"no {run} {state}" + (
                f": {other} losses only, which are not compared" if remark.others else ""
            )
        case "one_point":
            return "a curve of one point"
        case "never_meet":
            return "the cooled losses of the two never meet"
        case "outside_the_curve":
            return f"the monolingual curve of {names[0]} covers {numbers[0]:.3g} to {numbers[1]:.3g} tokens"
        case "below_the_bound":
            return f"in these units the bound lies below {numbers[0]:g}: it says nothing"
        case "no_evaluation":
            return "the checkpoint has no evaluation of it"
        case "short_run":
            return "the run is shorter than d_max"
        case "no_such_run":
            return f"no run of {names[0]} {names[1]} ({names[2]})"
        case "other_vocabulary":
            return "the vocabularies of the two differ"
        case "no_shared_tokens":
            return "the two curves share no range of tokens"
        case "no_bytes":
            without = first_few([*names])
            return f"the observations hold neither eval_bytes and eval_tokens nor bits_per_byte of {without}"
        case "no_byte_premium":
            return f"no byte premium of {first_few([*names])}: give parallel text (mscale fit --parallel)"
        case _:
            what, why = exclusion_text(remark)
            return f"{what} left out ({remark.rows}): {why}"


def exclusion_text(remark: Remark) -> tuple[str, str]:
    """What was left out, and why, for the codes of exclusions."""
    names, others = ", ".join(remark.names), ", ".join(remark.others)
    match remark.code:
        case "failed":
            return f"run {names}", f"did not finish: {others}"
        case "not_finite":
            return f"rows of {remark.numbers[0]:g} run(s)", "the loss is not finite"
        case "other_evaluation":
            kind, *left = remark.names
            why = f"only {others} is analysed: the two are not comparable"
            return f"losses of {kind} {', '.join(left)}", why
        case "spikes":
            why = "a loss spike, far above the evaluations before and after: left out of learning curves"
            return f"evaluations of {remark.numbers[0]:g} run(s)", why
    raise ValueError(f"{remark.code} is no exclusion")
