"""All analyses of a study: from tables of observations to one JSON-serialisable dictionary (laws.json).

A number that the study does not identify is None, with the reason beside it.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, cast

import numpy as np
import pandas as pd

from analysis.crossover import crossover
from analysis.curves.study import StudyCurves, study_curves
from analysis.estimation.objective import one_blas_thread
from analysis.laws.atlas import co_sampled_sources
from analysis.second_process import SecondProcess
from analysis.study.law_comparison import COMPARED_SPLITS, compare_laws
from analysis.study.laws import atlas_results, capacity_results, cooled_rows, fit_atlas, fit_chinchilla
from analysis.study.results import (
    RESULTS_FORMAT,
    CellRow,
    Kind,
    MixtureAdvice,
    Results,
    ScaleRow,
    StudySummary,
    as_results,
)
from analysis.study.transfer import matrix_results, measured_matrix, transfer_results
from analysis.tables.checks import select_split
from analysis.tables.mixtures import describe_mixtures
from analysis.tables.observations import validate_exposure, validate_observations
from analysis.tables.records import records
from analysis.tables.remarks import Remark
from analysis.transfer.forest import VocabularyOverlap
from analysis.transfer.matrix import INTERVAL_LEVEL
from mscale.errors import MscaleError
from mscale.progress import progress
from mscale.scales import training_flops

_STAGES = (
    "matrix",
    "atlas",
    "curves",
    "intervals",
    "capacity",
    "transfer",
    "crossover",
    "chinchilla",
    "pairs",
    "held out",
    "mixture",
)
SECOND_PROCESS_MIN_ROWS = 2_000  # with fewer losses the start of a second process costs more than it saves


def analyse_tables(
    observations: pd.DataFrame,
    exposure: pd.DataFrame | None = None,
    truth: Mapping[str, Any] | None = None,
    *,
    study: Mapping[str, Any] | None = None,
    level: float = INTERVAL_LEVEL,
    seed: int = 0,
    splits: Sequence[str] = COMPARED_SPLITS,
    notes: tuple[Remark, ...] = (),
    exclusions: tuple[Remark, ...] = (),
    overlap: VocabularyOverlap | None = None,
    premiums: Mapping[str, float] | None = None,
    advise: Callable[[str, StudySummary, float, float], MixtureAdvice] | None = None,
) -> Results:
    """Runs all analyses of a study; the larger ones in parallel in a second process.

    Args:
      observations, exposure: the tables, which are validated here.
      truth: truth.json of a generated corpus, whose relatedness the transfer scores are compared with.
      study: what only the executor knows, all optional: "title", "seconds", "flops", "peak_memory_bytes",
        "failed" ([{"run", "reason"}]), "workers", "command".
      level: of all intervals. splits: of `analysis.validation.splits`, for held-out R².
      overlap, premiums: shared vocabulary and byte premiums of languages.
      advise: recommends a mixture, such as `planning.mixture.advice`; called with the saved ATLAS fit, the study, the
        FLOPs of its largest run, and the level.
      notes, exclusions: from reading the tables (`study.read.StudyInputs`); they become part of the results.

    Raises:
      MscaleError: invalid tables. For laws that cannot be fitted the results hold the reason.
    """
    observations, more_notes, more_exclusions = validate_observations(observations)
    exposure = None if exposure is None or exposure.empty else validate_exposure(exposure)
    rows = select_split(observations, None)
    runs = describe_mixtures(rows)
    curves = study_curves(rows, runs=runs)
    with one_blas_thread(), progress("Analysing", len(_STAGES), "steps") as advance:

        def stage(name: str, compute: Callable[[], Any]) -> Any:
            found = compute()
            advance(1, name)
            return found

        second = SecondProcess(len(rows) >= SECOND_PROCESS_MIN_ROWS)
        cooled = cooled_rows(rows)  # laws are fitted to these only; fewer rows to pickle for the worker
        chinchilla = second.submit(fit_chinchilla, cooled, runs, level, seed)
        measured = stage("matrix", lambda: measured_matrix(curves, level, seed))
        planted = (truth or {}).get("languages")
        pairs = second.submit(
            matrix_results, measured.main_matrix, measured.adaptation, planted, overlap, level, seed
        )
        sources = {} if exposure is None else co_sampled_sources(rows, exposure, measured.matrix)
        atlas = stage("atlas", lambda: fit_atlas(cooled, exposure, sources, seed))
        heldout = second.submit(
            compare_laws, atlas.table, exposure, atlas.sources or sources, level, seed, splits
        )
        summary = _study(rows, runs, study or {})
        loss_curves = stage("curves", lambda: _loss_curves(rows, runs))
        law, points = stage("intervals", lambda: atlas_results(atlas, exposure, level))
        mixture: Callable[[], MixtureAdvice] = lambda: MixtureAdvice(reason="not asked for")  # noqa: E731
        if advise is not None and law["fitted"]:
            flops = max(float(training_flops(row["params"], row["tokens"])) for row in points)
            mixture = second.submit(advise, law["saved"], summary, flops, level)
        grown = stage("capacity", lambda: capacity_results(cooled, level, seed))
        transfer = stage("transfer", lambda: transfer_results(curves, measured, truth, level, seed, premiums))
        crossed = stage("crossover", lambda: _crossover(curves, level, seed))
        chinchilla_law, chinchilla_points = stage("chinchilla", chinchilla)
        transfer |= stage("pairs", pairs)
        laws = {"chinchilla": chinchilla_law, "atlas": law, "capacity": grown.pop("law")}
        scores = stage("held out", heldout)
        recommended = stage("mixture", mixture)
    return as_results(
        {
            "format": RESULTS_FORMAT,
            "level": level,
            "seed": seed,
            "study": summary,
            "loss_curves": loss_curves,
            "fits": {name: law.pop("saved") for name, law in laws.items() if "saved" in law},
            "laws": laws,
            "fit_points": chinchilla_points + points,
            "heldout": scores,
            "transfer": transfer,
            "capacity": grown,
            "crossover": crossed,
            "mixture": recommended,
            # Each note once: tables from files were validated when they were read, too.
            "notes": list(dict.fromkeys([*notes, *more_notes])),
            "exclusions": [*exclusions, *more_exclusions, *curves.exclusions, *_failed(study or {})],
            "truth": dict(truth) if truth else None,
        }
    )


def _study(rows: pd.DataFrame, runs: pd.DataFrame, extra: Mapping[str, Any]) -> StudySummary:
    """What was run: counts, languages, scales, tokens, FLOPs, and a record for each kind of cell."""
    scales = runs.groupby("scale")["params"].first().sort_values()
    trunks = runs.groupby("group")["tokens"].max()
    first = rows.groupby("run")["tokens"].min()
    cells = []
    for name, part in runs.groupby(_kinds(runs), sort=False):
        cells.append(
            CellRow(
                kind=cast(Kind, name),
                mixtures=int(part["mixture"].nunique()),
                scales=int(part["scale"].nunique()),
                trunks=int(part["group"].nunique()),
                runs=len(part),
                cooled=int((part["end_phase"] == "end").sum()),
                seeds=int(part["seed"].nunique()),
                tokens_low=int(part["tokens"].min()),
                tokens_high=int(part["tokens"].max()),
                flops=_trained_flops(first, part),
            )
        )
    return StudySummary(
        title=extra.get("title") or str(rows["study"].iloc[0] or "study"),
        runs=int(runs["run"].nunique()),
        trunks=int(runs["group"].nunique()),
        observations=len(rows),
        evaluations=int(rows.groupby("run")["step"].nunique().sum()),
        languages=sorted(rows["language"].unique()),
        unique_tokens=_unique_tokens(rows),
        trained_languages=sorted(rows.loc[rows["target_tokens"] > 0, "language"].unique()),
        scales=[ScaleRow(scale=str(name), params=int(value)) for name, value in scales.items()],
        tokens=int(trunks.sum()),
        flops=float(extra.get("flops") or _trained_flops(first, runs)),
        vocabularies=sorted(map(str, rows["vocabulary"].unique())),
        cells=cells,
        seconds=extra.get("seconds"),
        workers=extra.get("workers"),
        peak_memory_bytes=extra.get("peak_memory_bytes"),
        command=extra.get("command"),
    )


def _kinds(runs: pd.DataFrame) -> pd.Series:
    """The `kind` of `describe_mixtures`, or repeated or continued."""
    kind = runs["kind"].where(runs["repeats"] <= 1.5, "repeated")
    return kind.where(runs["init"] == "scratch", "continued")


def _unique_tokens(rows: pd.DataFrame) -> dict[str, int]:
    """Unique tokens of each trained language: the largest `target_unique` of its rows.

    Languages whose `target_unique` always equals `target_tokens` are left out: no run repeated data, so that the table
    does not hold their limit.
    """
    trained = rows.loc[rows["target_tokens"] > 0, ["language", "target_tokens", "target_unique"]]
    repeated = trained[trained["target_unique"] != trained["target_tokens"]]
    most = trained[trained["language"].isin(repeated["language"])].groupby("language")["target_unique"].max()
    return {str(name): int(value) for name, value in most.items()}


def _trained_flops(first: pd.Series, runs: pd.DataFrame) -> float:
    """Compute spent, 6ND: each trunk once, and each branch from where it left its trunk.

    Args:
      first: tokens at the first evaluation of each run, taken as those where a branch left its trunk; at most 90% of
        the tokens of the branch.
    """
    trunk = runs["end_phase"] != "end"
    branch = ~trunk & trunk.groupby(runs["group"]).transform("any")
    branched_at = runs["run"].map(first).clip(upper=0.9 * runs["tokens"])
    return float(training_flops(runs["params"], runs["tokens"] - branched_at.where(branch, 0.0)).sum())


def _failed(extra: Mapping[str, Any]) -> list[Remark]:
    """An exclusion for each run that failed."""
    return [
        Remark("failed", names=(str(one.get("run", "?")),), others=(str(one.get("reason", "")),))
        for one in extra.get("failed") or ()
    ]


def _loss_curves(
    rows: pd.DataFrame, runs: pd.DataFrame, most_points: int = 40, most_rows: int = 9000
) -> list[dict]:
    """Points of every trunk and cooled branch on the languages that it trains on, thinned for the figure."""
    kind = _kinds(runs)
    unimax = runs["mixture"].astype(str).str.contains("unimax", case=False)
    kind = kind.where(~unimax | kind.isin(["repeated", "continued"]), "unimax")
    rows = rows[(rows["target_tokens"] > 0) & rows["phase"].isin(["stable", "end"])].sort_values("tokens")
    # Thin evenly within each run and language, keeping its last point; keep all cooled points.
    curve = [rows["run"], rows["language"], rows["phase"] == "end"]
    size, place = rows.groupby(curve)["loss"].transform("size"), rows.groupby(curve).cumcount()
    curves = rows.groupby(curve).ngroups
    keep = int(np.clip(most_rows / max(curves, 1), 5, most_points))
    step = np.ceil(size / keep).clip(lower=1)
    kept = ((size - 1 - place) % step == 0) | (rows["phase"] == "end")
    columns = ["run", "scale", "params", "mixture", "language", "tokens", "phase", "loss", "bits_per_byte"]
    thinned = rows.loc[kept, columns].assign(kind=rows["run"].map(dict(zip(runs["run"], kind, strict=True))))
    return thinned.to_dict("records")


def _crossover(curves: pd.DataFrame | StudyCurves, level: float, seed: int) -> dict:
    """Crossovers of the stable and the cooled curves, the gap over tokens, and power laws in N."""
    stable = crossover.curve_pairs(curves, seed=seed)
    table = crossover.crossovers(stable, level=level)
    cooled = crossover.crossovers(crossover.curve_pairs(curves, seed=seed, phase="end"), level=level)
    answer: dict[str, Any] = {"table": records(table), "cooled": records(cooled)}
    answer["gaps"] = records(crossover.gap_curves(stable, level=level))
    try:
        law = crossover.fit_power_law(table, level=level, seed=seed)
        answer["law"] = {name: getattr(law, name) for name in ("coefficient", "exponent", "low", "high")}
    except MscaleError as error:
        answer["error"] = str(error)
    return answer
