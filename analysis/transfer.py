"""Transfer between languages: the bilingual transfer score as a curve over the reference budget.

ATLAS (Longpre et al. 2026, section 4):

    BTS(s→t) = −(σ(L_t(d)) − 2d)/d

with d tokens of the monolingual model of t, L_t(d) its loss there, and σ(ℓ) the total tokens that the 50/50
bilingual model needs to first reach ℓ on t. 0: no transfer; above: the source helps; below: it interferes.
A single number misleads, since the score drifts with d: here it is a curve over d with an interval.
"""

from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import pandas as pd

from analysis.curves import (
    Curve,
    Noise,
    Points,
    cell_generator,
    fit_curve,
    gather,
    interval,
    measure_noise,
    points_of,
)
from analysis.spikes import without_spikes
from analysis.tables import describe_mixtures
from analysis.wording import few
from mscale.errors import MscaleError

LEVEL = 0.9
DRAWS = 200
COLUMNS = [
    "scale",
    "params",
    "target",
    "source",
    "d",
    "score",
    "low",
    "high",
    "tau",
    "status",
    "bound",
    "phase",
    "reason",
]
# Degrees of freedom of a noise of runs that is given, not measured: it counts as exact.
GIVEN = 1_000_000
# Data repeated more than this often is a run about repetition, not about transfer.
MOST_EPOCHS = 1.001


@dataclass(frozen=True)
class Cells:
    """The cells of a study that transfer needs, grouped once, and the noise of their curves.

    `rows` holds, by (scale, languages), the rows of each evaluated language; `left_out` says which runs of one or two
    languages are no reference, and why.
    """

    rows: dict[tuple[str, tuple[str, ...]], dict[str, pd.DataFrame]]
    params: dict[str, int]
    noise: dict[str, Noise]
    seed: int
    draws: int
    left_out: tuple[str, ...] = ()
    cache: dict = field(default_factory=dict, repr=False, compare=False)

    def curve(self, scale: str, languages: tuple[str, ...], target: str, phase: str) -> Curve | None:
        """The curve of one cell on one language, or None where it was not run."""
        key = (scale, tuple(sorted(languages)), target, phase)
        if key not in self.cache:
            self.cache[key] = self._curve(*key)
        return self.cache[key]

    def _curve(self, scale: str, languages: tuple[str, ...], target: str, phase: str) -> Curve | None:
        rows = self.rows.get((scale, languages))
        if rows is None or target not in rows:
            return None
        points = gather(rows[target], phase)
        if points is None:
            return None
        rng = cell_generator(self.seed, scale, languages, target, phase)
        return fit_curve(points, self.noise[phase], self.draws, rng)


def cells(
    observations: pd.DataFrame,
    *,
    split: str | None = None,
    run_noise: float | None = None,
    draws: int = DRAWS,
    seed: int = 0,
) -> Cells:
    """Groups the monolingual and 50/50 bilingual runs from scratch, without repeated data, by scale.

    Args:
      run_noise: standard deviation in nats between runs that differ in the seed alone, where it is known from
        elsewhere; else it is measured on repeated runs.

    Raises:
      MscaleError: a noise that is none, losses of several vocabularies, or several splits with none chosen.
    """
    rows = one_split(observations, split)
    runs = describe_mixtures(rows)
    rows, spiky = without_spikes(rows)
    eligible = runs[
        runs["kind"].isin(["mono", "bilingual"])
        & (runs["init"] == "scratch")
        & ((runs["kind"] != "mono") | (runs["repeats"] <= MOST_EPOCHS))
    ]
    if eligible["vocabulary"].nunique() > 1:
        raise MscaleError(
            "transfer compares losses per token: found runs of the vocabularies "
            f"{', '.join(sorted(map(str, eligible['vocabulary'].unique())))}; analyse one at a time (mscale transfer "
            "--vocabulary), or keep the rows of one"
        )
    cell = eligible.set_index("run")
    chosen = rows[rows["run"].isin(cell.index) & rows["phase"].isin(["stable", "end"])]
    key = chosen["run"].map(cell["languages"].map(lambda languages: tuple(sorted(languages))))
    grouped: dict[tuple[str, tuple[str, ...]], dict[str, pd.DataFrame]] = {}
    slim = chosen[["tokens", "loss", "phase", "group", "tag"]]
    keys: Any
    for keys, part in slim.groupby([chosen["scale"], key, chosen["language"]], sort=False):
        grouped.setdefault((str(keys[0]), keys[1]), {})[str(keys[2])] = part
    params = {str(scale): int(value) for scale, value in rows.groupby("scale")["params"].first().items()}
    noise = study_noise(rows, runs)
    if run_noise is not None:
        if not 0 <= run_noise < np.inf:
            raise MscaleError(f"transfer: run noise is {run_noise:g}, expected nats, 0 or more")
        noise = {phase: replace(one, run=run_noise, run_degrees=GIVEN) for phase, one in noise.items()}
    return Cells(grouped, params, noise, seed, draws, (*_left_out(runs), *_said(spiky)))


def _said(exclusions: list[dict]) -> tuple[str, ...]:
    return tuple(f"{one['rows']} {one['what']} left out: {one['why']}" for one in exclusions)


def _left_out(runs: pd.DataFrame) -> tuple[str, ...]:
    reasons = {
        "two languages, but not half and half": (runs["K"] == 2) & (runs["kind"] == "mixed"),
        "one language, its data repeated": (runs["kind"] == "mono") & (runs["repeats"] > MOST_EPOCHS),
        "continued from a checkpoint": (runs["K"] <= 2) & (runs["init"] != "scratch"),
    }
    return tuple(
        f"{int(which.sum())} runs left out ({why}): {few(list(map(str, runs.loc[which, 'run'])))}"
        for why, which in reasons.items()
        if which.any()
    )


def study_noise(rows: pd.DataFrame, runs: pd.DataFrame | None = None) -> dict[str, Noise]:
    """Checkpoint and run noise of a study, for stable and for cooled curves, pooled over its cells.

    Only languages that a run trains on count: a model's loss on languages foreign to it scatters far more.
    """
    runs = describe_mixtures(rows) if runs is None else runs
    cell = rows["run"].map(
        {
            run: f"{scale}|{mixture}|{init}|{repeats:.2f}"
            for run, scale, mixture, init, repeats in zip(
                runs["run"],
                runs["scale"],
                runs["mixture"],
                runs["init"],
                runs["repeats"].where(runs["repeats"] > MOST_EPOCHS, 0),
                strict=True,
            )
        }
    )
    noise = {}
    keys = [pd.factorize(column)[0] for column in (cell, rows["language"], rows["group"])]
    names = rows["group"].to_numpy()
    tokens, losses = rows["tokens"].to_numpy(dtype=float), rows["loss"].to_numpy(dtype=float)
    for phase in ("stable", "end"):
        chosen = (rows["phase"] == phase) & (rows["target_tokens"] > 0) & (rows["tokens"] > 0)
        at = np.flatnonzero(chosen.to_numpy())
        at = at[np.lexsort([key[at] for key in reversed(keys)])]
        collected: dict[tuple, list[Points]] = {}
        starts = np.flatnonzero(np.any([np.diff(key[at], prepend=-1) != 0 for key in keys], axis=0))
        for part in np.split(at, starts[1:]) if len(at) else ():
            points = points_of(tokens[part], losses[part], (str(names[part[0]]),), phase)
            collected.setdefault((keys[0][part[0]], keys[1][part[0]]), []).append(points)
        noise[phase] = measure_noise(collected.values())
    # Cooled budgets are too few a curve to show their own scatter: that measured on the trunks stands in.
    if not noise["end"].checkpoint:
        noise["end"] = noise["stable"]
    return noise


def transfer_curve(
    observations: pd.DataFrame | Cells,
    target: str,
    source: str,
    *,
    scale: str,
    d=None,
    phase: str = "stable",
    level: float = LEVEL,
) -> pd.DataFrame:
    """The bilingual transfer score over d, with its interval.

    Args:
      d: reference token counts (m,); by default 24 of them, evenly in log tokens over the range in which
        the score can be read. With cooled runs (`phase="end"`) that is one d for every cooled bilingual
        budget: the d at which the monolingual curve has the same loss.

    Returns:
      A row for each d with the columns of `COLUMNS`. `status` is `measured`, `bound` (the bilingual curve
      never reaches the loss, or lies below it from its first point on: `bound` is then "at most" or
      "at least" and `score` is that bound) or `missing` (with the reason; no number).
    """
    table = observations if isinstance(observations, Cells) else cells(observations)
    return _frame(_curve_rows(table, target, source, scale, d, phase, level))


def transfer_curves(
    table: Cells, pairs: Iterable[tuple[str, str]], *, scale: str, phase: str = "stable", level: float = LEVEL
) -> pd.DataFrame:
    """The curves of many pairs (target, source) below one another, each as `transfer_curve` gives it."""
    return _frame([row for pair in pairs for row in _curve_rows(table, *pair, scale, None, phase, level)])


def _curve_rows(
    table: Cells, target: str, source: str, scale: str, d: Any, phase: str, level: float
) -> list[dict[str, Any]]:
    base = {
        "scale": scale,
        "params": table.params.get(scale),
        "target": target,
        "source": source,
        "phase": phase,
    }
    alone = table.curve(scale, (target,), target, phase)
    both = table.curve(scale, (target, source), target, phase)
    reason = _why_missing(table, scale, alone, both, target, source, phase)
    if reason or alone is None or both is None:
        asked = [np.nan] if d is None else np.atleast_1d(d)
        return [{**base, "d": float(x), "status": "missing", "reason": reason} for x in asked]
    if d is None and phase == "end":
        reached, _ = alone.reach(*both.at(both.points.tokens))
        d = reached[np.isfinite(reached) & (reached > 0)]
        if not len(d):
            reason = "the cooled losses of the two never meet"
            return [{**base, "d": np.nan, "status": "missing", "reason": reason}]
    elif d is None:
        d = np.geomspace(alone.first, alone.last, 24)
    d = np.atleast_1d(np.asarray(d, dtype=float))
    loss, loss_draws = alone.at(d)
    sigma, sigma_draws = both.reach(loss, loss_draws)
    rows = []
    with np.errstate(invalid="ignore"):
        score, scores = 2 - sigma / d, 2 - sigma_draws / d
    low, high = interval(scores, level)
    for i, x in enumerate(d):
        row: dict[str, Any] = {**base, "d": float(x), "reason": ""}
        if np.isnan(loss[i]):
            why = f"the monolingual curve of {target} covers {alone.first:.3g} to {alone.last:.3g} tokens"
            rows.append({**row, "status": "missing", "reason": why})
            continue
        if sigma[i] == np.inf:
            row |= {"status": "bound", "bound": "at most", "score": 2 - both.last / x}
            row["high"] = max(float(high[i]), row["score"]) if np.isfinite(high[i]) else row["score"]
        elif sigma[i] == 0:
            row |= {"status": "bound", "bound": "at least", "score": 2 - both.first / x}
            row["low"] = min(float(low[i]), row["score"]) if low[i] < 2 else row["score"]
        else:
            row |= {"status": "measured", "bound": "", "score": float(score[i])}
            # A draw that never reaches the loss bounds the score from above only: that side stays open.
            row |= {"low": float(low[i]) if np.isfinite(low[i]) else np.nan}
            row |= {"high": float(high[i]) if np.isfinite(high[i]) and high[i] < 2 else np.nan}
            row["tau"] = row["score"] / (2 - row["score"]) if row["score"] < 2 else np.nan
        rows.append(row)
    return rows


def transfer_matrix(
    observations: pd.DataFrame | Cells,
    *,
    d: float | None = None,
    scales=None,
    phase: str = "stable",
    level: float = LEVEL,
) -> pd.DataFrame:
    """Every ordered pair at every scale that has a bilingual run: a long table with the columns `COLUMNS`.

    Args:
      d: the reference tokens; by default one per scale, see `reference_tokens`.
      scales: which scales; all with a bilingual run by default.

    Pairs of languages that never ran together at a scale are rows of status `missing`: they stay missing.
    """
    table = observations if isinstance(observations, Cells) else cells(observations)
    pairs = [(scale, languages) for scale, languages in table.rows if len(languages) == 2]
    wanted = sorted({scale for scale, _ in pairs} if scales is None else set(scales))
    rows = []
    for scale in wanted:
        here = sorted({language for at, languages in pairs if at == scale for language in languages})
        reference = d if d is not None else reference_tokens(table, scale, phase)
        for target in here:
            for source in here:
                if source != target:
                    asked = None if reference is None else [reference]
                    # Without a reference the pair stands by the last row of its curve.
                    rows.append(_curve_rows(table, target, source, scale, asked, phase, level)[-1])
    return _frame(rows)


def reference_tokens(table: Cells, scale: str, phase: str = "stable") -> float | None:
    """The d of a scale at which most pairs can be read: where interference to −0.5 is still in the data.

    The bilingual runs must have 2.5 d tokens for a score of −0.5 to be a number and not a bound, and the
    monolingual ones d. None where no pair has both curves.
    """
    limits, floors = [], []
    for at, languages in table.rows:
        if at != scale or len(languages) != 2:
            continue
        for target in languages:
            alone = table.rows.get((scale, (target,)))
            both = table.rows[at, languages]
            one = gather(alone[target], phase) if alone and target in alone else None
            two = gather(both[target], phase) if target in both else None
            if one is None or two is None:
                continue
            limits.append(min(one.tokens[-1], two.tokens[-1] / 2.5))
            floors.append(max(one.tokens[0], two.tokens[0] / 2))
    if not limits:
        return None
    return float(max(np.median(limits), np.median(floors)))


def effective_transfer(score):
    """τ of a score, τ = BTS/(2 − BTS): what one token of the source is worth in tokens of the target."""
    score = np.asarray(score, dtype=float)
    return score / (2 - score)


def one_split(observations: pd.DataFrame, split: str | None) -> pd.DataFrame:
    """The rows of one evaluation split; raises MscaleError where there are several and none is chosen."""
    found = sorted(map(str, observations["split"].unique()))
    if split is None and len(found) > 1:
        split = "valid" if "valid" in found else None
        if split is None:
            raise MscaleError(
                f"the table holds losses on the splits {', '.join(found)}, which are not comparable: choose one "
                "(mscale transfer --split), or keep the rows of one"
            )
    if split is not None and split not in found:
        raise MscaleError(f"no split {split!r} in the table; found {', '.join(found)}")
    return observations if split is None else observations[observations["split"] == split]


def _why_missing(
    table: Cells, scale: str, alone: Curve | None, both: Curve | None, target: str, source: str, phase: str
) -> str:
    for curve, languages, what in (
        (alone, (target,), f"monolingual run of {target}"),
        (both, (target, source), f"50/50 run of {target} with {source}"),
    ):
        if curve is None:
            # Runs of the other state are no stand-in: a cooled model's lead is as large as most effects.
            other = target in table.rows.get((scale, tuple(sorted(languages))), {})
            state, otherwise = (
                ("in the stable phase", "cooled") if phase == "stable" else ("cooled", "stable")
            )
            return f"no {what} {state}" + (
                f": {otherwise} losses only, which are not compared" if other else ""
            )
    if alone and both and phase == "stable" and min(len(alone.points.tokens), len(both.points.tokens)) < 2:
        return "a curve of one point"
    return ""


def _frame(rows: list[dict]) -> pd.DataFrame:
    frame = pd.DataFrame(rows).reindex(columns=COLUMNS)
    for name in ("d", "score", "low", "high", "tau"):
        frame[name] = pd.to_numeric(frame[name])
    for name in ("bound", "reason"):
        frame[name] = frame[name].fillna("")
    return frame
