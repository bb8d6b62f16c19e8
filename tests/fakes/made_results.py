"""Results of a study (`analysis.study.results`) that hold only what a test gives."""

from analysis.study.results import (
    RESULTS_FORMAT,
    CapacityResult,
    CrossoverResult,
    LawResult,
    MixtureAdvice,
    Results,
    StudySummary,
    TransferResult,
)

NOTHING_RUN = {
    "title": "made",
    **dict.fromkeys(("runs", "trunks", "observations", "evaluations", "tokens"), 0),
    **{name: [] for name in ("languages", "trained_languages", "scales", "vocabularies", "cells")},
    **{"unique_tokens": {}, "flops": 0.0},
    **dict.fromkeys(("seconds", "workers", "peak_memory_bytes", "command")),
}


def results(**given):
    """The sections `given`, as dictionaries of some of their fields; rows of tables are taken as they are."""

    def section(name, **defaults):
        return {**defaults, **given.pop(name, {})}

    laws = {name: {"fitted": False, "reason": "one K"} for name in ("chinchilla", "atlas", "capacity")}
    made = {
        "study": StudySummary(**section("study", **NOTHING_RUN)),
        "transfer": TransferResult(**section("transfer")),
        "capacity": CapacityResult(**section("capacity", reason="one K")),
        "crossover": CrossoverResult(**section("crossover")),
        "laws": {name: LawResult(name=name, **law) for name, law in section("laws", **laws).items()},
        "mixture": MixtureAdvice(reason="not asked for"),
    }
    empty = {name: [] for name in ("loss_curves", "fit_points", "heldout", "notes", "exclusions")}
    numbers = {"format": RESULTS_FORMAT, "level": 0.9, "seed": 0, "fits": {}, "truth": None}
    return Results(**{**numbers, **empty, **made, **given})
