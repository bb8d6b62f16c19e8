"""Transfer between languages: the bilingual transfer score as a curve, and the finetuning adaptation score.

ATLAS (Longpre et al. 2026, section 4):

    BTS(s→t) = −(σ(L_t(d)) − 2d)/d

with d tokens of the monolingual model of t, L_t(d) its loss there, and σ(ℓ) the total tokens that the 50/50
bilingual model needs to first reach ℓ on t. 0: no transfer; above: the source helps; below: it interferes.
A single number misleads, since the score drifts with d: here it is a curve over d with an interval.
"""

from dataclasses import dataclass

import numpy as np
import pandas as pd
from scipy.stats import spearmanr

from analysis.curves import Curve, Noise, Points, cell_generator, fit_curve, gather, interval, measure_noise
from analysis.tables import describe_mixtures
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
# Data repeated more than this often is a run about repetition, not about transfer.
MOST_EPOCHS = 1.001


@dataclass(frozen=True)
class Cells:
    """The cells of a study that transfer needs, grouped once: rows by (scale, languages), and the noise."""

    rows: dict[tuple[str, tuple[str, ...]], pd.DataFrame]
    params: dict[str, int]
    noise: dict[str, Noise]
    seed: int
    draws: int

    def curve(self, scale: str, languages: tuple[str, ...], target: str, phase: str) -> Curve | None:
        """The curve of one cell on one language, or None where it was not run."""
        rows = self.rows.get((scale, tuple(sorted(languages))))
        if rows is None:
            return None
        points = gather(rows[rows["language"] == target], phase)
        if points is None:
            return None
        rng = cell_generator(self.seed, scale, sorted(languages), target, phase)
        return fit_curve(points, self.noise[phase], self.draws, rng)


def cells(
    observations: pd.DataFrame, *, split: str | None = None, draws: int = DRAWS, seed: int = 0
) -> Cells:
    """Groups the monolingual and 50/50 bilingual runs from scratch, without repeated data, by scale.

    Raises:
      MscaleError: losses of several vocabularies, or several splits with none chosen.
    """
    rows = one_split(observations, split)
    runs = describe_mixtures(rows)
    eligible = runs[
        runs["kind"].isin(["mono", "bilingual"])
        & (runs["init"] == "scratch")
        & ((runs["kind"] != "mono") | (runs["repeats"] <= MOST_EPOCHS))
    ]
    if eligible["vocabulary"].nunique() > 1:
        raise MscaleError(
            "transfer compares losses per token: found runs of the vocabularies "
            f"{', '.join(sorted(map(str, eligible['vocabulary'].unique())))}; analyse one at a time"
        )
    grouped: dict[tuple[str, tuple[str, ...]], pd.DataFrame] = {}
    by_run = dict(list(rows[rows["run"].isin(eligible["run"])].groupby("run", sort=False)))
    for (scale, languages), part in eligible.groupby(["scale", "languages"], sort=False):
        key = (str(scale), tuple(sorted(languages)))
        frames = [by_run[run] for run in part["run"]]
        grouped[key] = pd.concat([grouped[key], *frames]) if key in grouped else pd.concat(frames)
    params = {str(scale): int(value) for scale, value in rows.groupby("scale")["params"].first().items()}
    return Cells(grouped, params, study_noise(rows, runs), seed, draws)


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
    for phase in ("stable", "end"):
        chosen = rows[(rows["phase"] == phase) & (rows["target_tokens"] > 0)]
        collected: dict[tuple, list[Points]] = {}
        for (key, language, _), part in chosen.groupby([cell, "language", "group"], sort=False):
            points = gather(part, phase)
            if points is not None:
                collected.setdefault((key, language), []).append(points)
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
    base = {
        "scale": scale,
        "params": table.params.get(scale),
        "target": target,
        "source": source,
        "phase": phase,
    }
    alone = table.curve(scale, (target,), target, phase)
    both = table.curve(scale, (target, source), target, phase)
    reason = _why_missing(alone, both, target, source, phase)
    if reason or alone is None or both is None:
        asked = [np.nan] if d is None else np.atleast_1d(d)
        return _frame([{**base, "d": float(x), "status": "missing", "reason": reason} for x in asked])
    if d is None and phase == "end":
        reached, _ = alone.reach(*both.at(both.points.tokens))
        d = reached[np.isfinite(reached) & (reached > 0)]
        if not len(d):
            reason = "the cooled losses of the two never meet"
            return _frame([{**base, "d": np.nan, "status": "missing", "reason": reason}])
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
        row = {**base, "d": float(x), "reason": ""}
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
    return _frame(rows)


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
    frames = []
    for scale in wanted:
        here = sorted({language for at, languages in pairs if at == scale for language in languages})
        reference = d if d is not None else reference_tokens(table, scale, phase)
        for target in here:
            for source in here:
                if source == target:
                    continue
                if reference is None:
                    curve = transfer_curve(table, target, source, scale=scale, phase=phase, level=level)
                    frames.append(curve.tail(1))
                else:
                    frames.append(
                        transfer_curve(
                            table, target, source, scale=scale, d=[reference], phase=phase, level=level
                        )
                    )
    if not frames:
        return _frame([])
    return pd.concat(frames, ignore_index=True)


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
            one = None if alone is None else gather(alone[alone["language"] == target], phase)
            two = gather(both[both["language"] == target], phase)
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


def in_units(matrix: pd.DataFrame, content_per_token: dict[str, float]) -> pd.DataFrame:
    """The matrix for equal bytes or equal content in place of equal tokens.

    A token of the source is worth τ tokens of the target; per unit of content (bytes, or bytes over the
    byte premium of parallel text) it is worth τ·c_t/c_s, and the score of that is 2τ/(1+τ).

    Args:
      content_per_token: c of each language: bytes per token, divided by the language's byte premium for
        content-matched scores.

    Raises:
      MscaleError: a language of the matrix has no entry.
    """
    for language in sorted(set(matrix["target"]) | set(matrix["source"])):
        if language not in content_per_token:
            raise MscaleError(
                f"no content per token for {language!r}: give bytes per token (and byte premium)"
            )
    ratio = matrix["target"].map(content_per_token) / matrix["source"].map(content_per_token)
    changed = matrix.copy()
    for column in ("score", "low", "high"):
        tau = effective_transfer(matrix[column].astype(float)) * ratio
        changed[column] = 2 * tau / (1 + tau)
    changed["tau"] = matrix["tau"] * ratio
    return changed


def bytes_per_token(observations: pd.DataFrame) -> dict[str, float]:
    """UTF-8 bytes per token of every evaluated language, from its evaluation sets."""
    rows = observations[observations["eval_tokens"] > 0]
    sums = rows.groupby("language")[["eval_bytes", "eval_tokens"]].sum()
    return (sums["eval_bytes"] / sums["eval_tokens"]).to_dict()


def adaptation_scores(
    observations: pd.DataFrame, *, d_max: float | None = None, split: str | None = None
) -> pd.DataFrame:
    """The finetuning adaptation score: FAS(s→t) = (1/d_max)·∫₀^d_max [L_t^base − L_{s→t}(x)] dx.

    Continues a checkpoint on s alone and averages the loss gained on t over the tokens x of s; L_t^base is
    the checkpoint's own loss on t.

    Args:
      d_max: tokens to integrate to; the shortest of the continued runs of a scale by default.

    Returns:
      Columns scale target source d_max score status reason. Status `missing` where the checkpoint itself was
      not evaluated on t, or a run is shorter than `d_max`.
    """
    rows = one_split(observations, split)
    runs = describe_mixtures(rows)
    continued = runs[(runs["init"] != "scratch") & (runs["kind"] == "mono")]
    output = []
    for scale, part in continued.groupby("scale", sort=True):
        stable = rows[rows["run"].isin(part["run"]) & rows["phase"].isin(["warmup", "stable"])]
        longest = stable.groupby("run")["tokens"].max()
        if longest.empty:
            continue
        limit = float(d_max if d_max is not None else longest.min())
        for run, source, init in zip(part["run"], part["languages"], part["init"], strict=True):
            mine = stable[stable["run"] == run]
            if mine.empty:  # a cooled branch of a continued trunk: its trunk is the curve
                continue
            start = rows[rows["run"] == init]
            start = rows[rows["group"] == init] if start.empty else start
            for target, curve in mine.groupby("language"):
                row = {"scale": scale, "target": target, "source": source[0], "d_max": limit}
                base = start[start["language"] == target]
                base = base[base["tokens"] <= mine["init_tokens"].max()].sort_values("tokens").tail(1)
                if base.empty or curve["tokens"].max() < limit * 0.999:
                    why = (
                        "the checkpoint has no evaluation of it"
                        if base.empty
                        else "the run is shorter than d_max"
                    )
                    output.append({**row, "status": "missing", "reason": why})
                    continue
                level = float(base["loss"].iloc[0])
                curve = curve[curve["tokens"] > 0].groupby("tokens")["loss"].mean()
                x = np.concatenate([[0.0], curve.index.to_numpy(dtype=float)])
                y = np.concatenate([[level], curve.to_numpy(dtype=float)])
                end = np.interp(limit, x, y)
                keep = x < limit
                x, y = np.append(x[keep], limit), np.append(y[keep], end)
                score = float(np.trapezoid(level - y, x) / limit)
                output.append({**row, "score": score, "status": "measured", "reason": ""})
    columns = ["scale", "target", "source", "d_max", "score", "status", "reason"]
    return pd.DataFrame(output).reindex(columns=columns)


def relatedness_agreement(
    matrix: pd.DataFrame, truth: dict, *, permutations: int = 2000, seed: int = 0
) -> dict:
    """Spearman correlation of measured scores with planted relatedness, and its permutation p-value.

    Pairs share languages, so labels of whole languages are permuted (a Mantel test), not pairs.

    Returns:
      {"pairs", "spearman", "p", "smallest_p", "table"}: the pairs with their planted value; `smallest_p` is
      what a perfect agreement could reach at best with so few languages. No correlation for fewer than four
      measured pairs.
    """
    planted = truth.get("relatedness", {})
    rows = matrix[matrix["status"] == "measured"].copy()
    rows["relatedness"] = [
        planted.get(target, {}).get(source, np.nan)
        for target, source in zip(rows["target"], rows["source"], strict=True)
    ]
    families = {code: entry.get("family") for code, entry in truth.get("languages", {}).items()}
    rows["same_family"] = [
        families.get(target) is not None and families.get(target) == families.get(source)
        for target, source in zip(rows["target"], rows["source"], strict=True)
    ]
    rows = rows[rows["relatedness"].notna()]
    result: dict = {"pairs": len(rows), "spearman": None, "p": None, "smallest_p": None, "table": rows}
    if len(rows) < 4 or rows["relatedness"].nunique() < 2:
        return result
    found = float(spearmanr(rows["score"], rows["relatedness"]).statistic)
    names = sorted(set(rows["target"]) | set(rows["source"]))
    rng = np.random.default_rng(seed)
    above = same = 0
    for _ in range(permutations):
        label = dict(zip(names, rng.permutation(names), strict=True))
        shuffled = [
            planted.get(label[target], {}).get(label[source], np.nan)
            for target, source in zip(rows["target"], rows["source"], strict=True)
        ]
        above += spearmanr(rows["score"], shuffled, nan_policy="omit").statistic >= found - 1e-12
        same += bool(np.allclose(shuffled, rows["relatedness"], equal_nan=True))
    p, floor = (above + 1) / (permutations + 1), (same + 1) / (permutations + 1)
    return {**result, "spearman": found, "p": p, "smallest_p": floor}


def one_split(observations: pd.DataFrame, split: str | None) -> pd.DataFrame:
    """The rows of one evaluation split; raises MscaleError where there are several and none is chosen."""
    found = sorted(map(str, observations["split"].unique()))
    if split is None and len(found) > 1:
        split = "valid" if "valid" in found else None
        if split is None:
            raise MscaleError(f"the table holds the splits {', '.join(found)}: choose one")
    if split is not None and split not in found:
        raise MscaleError(f"no split {split!r} in the table; found {', '.join(found)}")
    return observations if split is None else observations[observations["split"] == split]


def _why_missing(alone: Curve | None, both: Curve | None, target: str, source: str, phase: str) -> str:
    state = "in the stable phase" if phase == "stable" else "cooled"
    if alone is None:
        return f"no monolingual run of {target} {state}"
    if both is None:
        return f"no 50/50 run of {target} with {source} {state}"
    if phase == "stable" and min(len(alone.points.tokens), len(both.points.tokens)) < 2:
        return "a curve of one point"
    return ""


def _frame(rows: list[dict]) -> pd.DataFrame:
    frame = pd.DataFrame(rows).reindex(columns=COLUMNS)
    for name in ("d", "score", "low", "high", "tau"):
        frame[name] = pd.to_numeric(frame[name])
    for name in ("bound", "reason"):
        frame[name] = frame[name].fillna("")
    return frame
