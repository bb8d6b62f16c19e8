"""Fits the laws of a report, each to the rows that identify it, and turns the fits into records of laws.json."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike

from analysis.curves.study import MAX_EPOCHS
from analysis.estimation.quantities import Derived
from analysis.fitting.fit import fit
from analysis.fitting.result import Fit
from analysis.laws import capacity
from analysis.tables.checks import select_split
from analysis.tables.mixtures import describe_mixtures
from mscale.errors import MscaleError

# Ratios of the number of languages (after to before) for which the growth is reported.
_RATIOS = (2, 4, 8, 16)
# At fewer sizes the monolingual runs of a language do not identify its A and E.
_MIN_SIZES = 3


def capacity_rows(observations: pd.DataFrame, *, split: str | None = None) -> pd.DataFrame:
    """The cooled rows that the capacity law describes: from scratch, no repeated data, uniform over K ≥ 1 languages.

    The rows are those of languages that the run trains on; a column `K` is added.
    """
    rows = select_split(observations, split)
    runs = describe_mixtures(rows).set_index("run")
    chosen = runs[
        runs["kind"].isin(["mono", "bilingual", "uniform"])
        & (runs["init"] == "scratch")
        & (runs["repeats"] <= MAX_EPOCHS)
    ]
    rows = rows[rows["run"].isin(chosen.index) & (rows["phase"] == "end") & (rows["target_tokens"] > 0)]
    return rows.assign(K=rows["run"].map(chosen["K"]))


def why_not_identifiable(rows: pd.DataFrame) -> str:
    """Why these `capacity_rows` do not identify the capacity law, or the empty string."""
    if rows["K"].nunique() < 3:
        return f"mixtures of {rows['K'].nunique()} different K: the law needs three or more"
    spread = rows.groupby("K")["params"].nunique()
    if (spread >= 3).sum() < 2:
        return "fewer than two values of K at three sizes or more: φ and α cannot be told apart"
    if rows["target_tokens"].max() < 2 * rows["target_tokens"].min():
        return "tokens per language span less than a factor of two: ψ and β cannot be told apart"
    return ""


def fit_chinchilla(
    rows: pd.DataFrame, runs: pd.DataFrame, level: float, seed: int
) -> tuple[dict, list[dict]]:
    """Fits the Chinchilla law to the monolingual runs, with α and β shared by the languages.

    Returns:
      The record of the law, and one for each point.
    """
    alone = runs[(runs["kind"] == "mono") & (runs["init"] == "scratch") & (runs["repeats"] <= MAX_EPOCHS)]
    table = cooled_rows(rows[rows["run"].isin(alone["run"])])
    sizes = table.groupby("language")["params"].nunique()
    enough = sorted(sizes[sizes >= _MIN_SIZES].index)
    too_few = sorted(set(sizes.index) - set(enough))
    if not enough:
        return unfitted_record(
            "chinchilla", f"no language was run alone at {_MIN_SIZES} sizes or more, cooled"
        ), []
    table = table[table["language"].isin(enough)]
    share = ("alpha", "beta") if len(enough) > 1 else None
    try:
        law, points = law_record(fit("chinchilla", table, share=share, seed=seed), table, level)
    except MscaleError as error:
        return unfitted_record("chinchilla", str(error)), []
    return {**law, "left_out": too_few}, points


@dataclasses.dataclass(frozen=True)
class AtlasFit:
    """A fitted ATLAS law and the rows it is fitted to.

    Attributes:
      fit: None where no variant could be fitted, with the reason. options: fields of the record: "variant",
        "own_sources", "sources" and "refused".
    """

    fit: Fit | None
    table: pd.DataFrame
    reason: str = ""
    options: Mapping[str, Any] = dataclasses.field(default_factory=dict)

    @property
    def sources(self) -> Mapping[str, Sequence[str]] | None:
        """The sources K_t of each language with a τ of their own; None where there are none."""
        return self.options.get("sources") or None


def fit_atlas(
    rows: pd.DataFrame, exposure: pd.DataFrame | None, sources: Mapping[str, Sequence[str]], seed: int
) -> AtlasFit:
    """Fits the ATLAS law with α, β and λ shared by the languages and as many τ as the runs identify.

    Args:
      sources: of each language, in descending order of importance. Up to three get a τ of their own (K_t), the other
        languages share one. Where that is refused, fewer get one, down to the language's own tokens alone.
    """
    table = atlas_rows(rows)
    if exposure is None:
        return AtlasFit(None, table, "no exposure table: what else a run trained on is not known")
    if table.empty:
        return AtlasFit(None, table, "no cooled run from scratch")
    first_error = ""
    for count in (3, 2, 1, 0, None):
        fewer = {target: list(found)[:count] for target, found in sources.items()} if count else None
        options: dict[str, Any] = {"variant": "K_t", "sources": fewer} if count else {"variant": "D_other"}
        options = options if count is not None else {"variant": "D_t"}
        try:
            found = fit("atlas", table, exposure=exposure, seed=seed, **options)
        except MscaleError as error:
            first_error = first_error or str(error)
            continue
        described = {"variant": options["variant"], "own_sources": count or 0, "sources": fewer or {}}
        return AtlasFit(found, table, "", {**described, "refused": first_error})
    return AtlasFit(None, table, first_error)


def atlas_results(
    atlas: AtlasFit, exposure: pd.DataFrame | None, level: float
) -> tuple[dict[str, Any], list[dict]]:
    """The record of the ATLAS law, and one for each point."""
    if atlas.fit is None:
        return unfitted_record("atlas", atlas.reason), []
    try:
        law, points = law_record(atlas.fit, atlas.table, level, exposure)
    except MscaleError as error:
        return unfitted_record("atlas", str(error)), []
    return {**law, **atlas.options}, points


def atlas_rows(rows: pd.DataFrame) -> pd.DataFrame:
    """The cooled rows of runs from scratch, on the languages that the run trains on."""
    rows = cooled_rows(rows)
    return rows[rows["init"] == "scratch"]


def cooled_rows(rows: pd.DataFrame) -> pd.DataFrame:
    """The cooled rows, on the languages that the run trains on."""
    return rows[(rows["phase"] == "end") & (rows["target_tokens"] > 0)]


def capacity_results(rows: pd.DataFrame, level: float, seed: int) -> dict:
    """Fits the capacity law (ATLAS eq. 7) with φ, ψ, α and β shared by the languages.

    Returns:
      The section "capacity" of laws.json: points, multipliers of N, D and C with intervals, iso-loss curves, fitted
      lines, "identified" with the "reason" if not, and "law", the record of the law.
    """
    table = capacity_rows(rows)
    points: list[dict] = []
    if len(table):
        cells = table.groupby(["scale", "params", "K", "tokens", "language"], as_index=False)
        points = cells.agg(loss=("loss", "mean")).to_dict("records")
    reason = "" if len(table) else "no cooled uniform mixture"
    # As in the comparison on held-out rows: at one size a language's A and E are not identified.
    sizes = table.groupby("language")["params"].nunique()
    too_few = sorted(sizes[sizes < 2].index)
    table = table[~table["language"].isin(too_few)]
    reason = reason or why_not_identifiable(table)
    if not reason:
        try:
            found = fit("capacity", table, seed=seed)
        except MscaleError as error:
            reason = str(error)
    if reason:
        return {"points": points, "reason": reason, "law": unfitted_record("capacity", reason)}
    answer: dict[str, Any] = {"points": points, "multipliers": [], "iso": []}
    answer["law"] = law_record(found, table, level)[0] | {"left_out": too_few}
    names = ("phi", "psi", "alpha", "beta")
    params = {name: float(found.params[name]) for name in names}
    reasons = found.identification()
    bad = [name for name in names if name in reasons]
    # Multipliers are powers of the ratio r: the interval of an exponent gives that of its multiplier at any r.
    derived = [
        Derived(0, exponent, {}, 1) for exponent in (_size_exponent, _data_exponent, _compute_exponent)
    ]
    exponents = pd.DataFrame(dict(zip(("estimate", "low", "high"), found.ends(derived, level), strict=True)))
    for ratio in _RATIOS:
        point = capacity.growth(ratio, **params)
        row: dict[str, Any] = {"ratio": ratio, "N": point.N, "D_tot": point.D_tot, "C": point.C}
        for name, exponent in zip(("N", "D_tot", "C"), exponents.to_dict("records"), strict=True):
            with np.errstate(over="ignore"):
                row[f"{name}_low"], row[f"{name}_high"] = (
                    ratio ** np.array([exponent[side] for side in ("low", "high")])
                ).tolist()
        answer["multipliers"].append(row)
    answer["exponents"] = dict(zip(("N", "D_tot", "C"), exponents.to_dict("records"), strict=True))
    answer["reason"] = (
        f"{', '.join(bad)}: {reasons[bad[0]]}" if bad else why_unreliable(answer["multipliers"])
    )
    answer["identified"] = not answer["reason"]
    answer["lines"] = _capacity_lines(found, table)
    if answer["identified"]:
        middle = table.loc[table["params"] == table["params"].median(), :]
        middle = middle if len(middle) else table
        weights = _weight_of_size(found, middle)
        # The share of the reducible loss that is due to size: at the start of the curves, and at a compute-optimal one.
        optimal = params["beta"] / (params["alpha"] + params["beta"])
        answer["start"] = {"share": weights, "optimal": optimal}
        for ratio in _RATIOS[:3]:
            powers = (params["phi"], params["psi"], params["alpha"], params["beta"])
            curve = capacity.iso_loss_curve(ratio, weights, *powers)
            limit = capacity.feasibility_limit(ratio, weights, params["phi"], params["alpha"])
            answer["iso"] += [{**row, "ratio": ratio, "limit": limit} for row in curve.to_dict("records")]
    return answer


def _size_exponent(p: Any, _x: Any) -> Any:
    return p.phi / p.alpha


def _data_exponent(p: Any, _x: Any) -> Any:
    return 1.0 + p.psi / p.beta


def _compute_exponent(p: Any, _x: Any) -> Any:
    return 1.0 + p.phi / p.alpha + p.psi / p.beta


def why_unreliable(multipliers: list[dict]) -> str:
    """Why the intervals of the multipliers (rows by ratio) are unreliable, or the empty string."""
    for row in multipliers:
        for name in ("N", "D_tot", "C"):
            if not row[f"{name}_low"] <= row[name] <= row[f"{name}_high"]:
                return "the estimate lies outside its own interval: the fit did not settle"
    # Exponents of multipliers are quotients: near a zero denominator their intervals are too wide to mean anything.
    last = multipliers[-1]
    wide = max(last[f"{name}_high"] / max(last[f"{name}_low"], 1e-9) for name in ("N", "D_tot"))
    return "" if np.isfinite(wide) and wide < 30 else "the intervals are too wide"


def _weight_of_size(found: Fit, table: pd.DataFrame) -> float:
    """w_N, the share of the reducible loss that is due to size, averaged over rows."""
    params = found.params
    values = []
    for row in table.to_dict("records"):
        local = {name: float(params[name]) for name in ("phi", "psi", "alpha", "beta")}
        for name in ("A", "B"):
            label = f"{name}[{row['language']}]"
            local[name] = float(params[label] if label in params.index else params[name])
        values.append(capacity.size_share_of_loss(local, row["K"], row["params"], row["target_tokens"]))
    return float(np.mean(values))


def _capacity_lines(found: Fit, table: pd.DataFrame) -> list[dict]:
    """The fitted loss over K, for the languages, sizes and total tokens that were run."""
    cells = table[["scale", "params", "tokens", "language"]].drop_duplicates()
    # Totals that are equal to two digits are one budget: schedules round the tokens.
    budget = cells["tokens"].map(lambda tokens: float(f"{tokens:.2g}"))
    cells = cells.assign(budget=budget).drop_duplicates(["scale", "budget", "language"])
    ks = np.unique(np.round(np.linspace(table["K"].min(), table["K"].max(), 21), 2))
    grid = cells.merge(pd.DataFrame({"languages_trained": ks}), how="cross")
    grid["target_tokens"] = grid["tokens"] / grid["languages_trained"]
    grid["loss"] = found.predict(grid)["prediction"].to_numpy()
    grid = grid.rename(columns={"languages_trained": "K"})
    return grid[["scale", "params", "tokens", "language", "K", "loss"]].to_dict("records")


def law_record(
    found: Fit, table: pd.DataFrame, level: float, exposure: pd.DataFrame | None = None
) -> tuple[dict, list[dict]]:
    """The record of a fitted law (parameters with intervals, R², counts, saved fit), and one for each point."""
    name = found.law.name
    parameters = [
        _checked_interval({"name": str(label), **row})
        for label, row in found.interval(level).to_dict(orient="index").items()
    ]
    predicted = found.predict(table, exposure=exposure)["prediction"].to_numpy()
    columns = ["run", "language", "scale", "params", "tokens", "target_tokens", "mixture"]
    points = table[columns].assign(
        law=name,
        epochs=(table["target_tokens"] / table["target_unique"].where(table["target_unique"] > 0)).fillna(0),
        K=1 + table["languages"].str.count(r"\+"),
        observed=table["loss"],
        predicted=predicted,
    )
    kept = np.isfinite(predicted)
    law = {
        "name": name,
        "fitted": True,
        "parameters": parameters,
        "r2": found.r2,
        "r2_within": within_r2(table["language"][kept], table["loss"][kept], predicted[kept]),
        "points": len(table),
        "groups": int(table["group"].nunique()),
        "reason": "",
        "saved": found.to_json(),
    }
    return law, points.to_dict("records")


def _checked_interval(parameter: dict) -> dict:
    """The record of a parameter; not identified where the interval excludes the estimate: the fit did not converge."""
    if parameter["identified"] and not parameter["low"] <= parameter["estimate"] <= parameter["high"]:
        reason = "its interval does not hold the estimate: some direction of the fit is flat"
        return {**parameter, "identified": False, "reason": reason}
    return parameter


def within_r2(language: ArrayLike, observed: ArrayLike, predicted: ArrayLike) -> float:
    """R² within languages: about the mean of each language, so that differences between languages do not raise it."""
    frame = pd.DataFrame({"language": np.asarray(language), "y": observed, "p": predicted})
    centre = frame.groupby("language")["y"].transform("mean")
    total = float(((frame["y"] - centre) ** 2).sum())
    return float(1 - ((frame["y"] - frame["p"]) ** 2).sum() / total) if total > 0 else float("nan")


def unfitted_record(name: str, reason: str) -> dict:
    """The record of a law that this study cannot fit."""
    return {"name": name, "fitted": False, "reason": reason, "parameters": [], "points": 0}
