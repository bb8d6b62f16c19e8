"""Finetuning adaptation scores (FAS): how continuing a checkpoint on one language changes the loss on others."""

import numpy as np
import pandas as pd
from scipy.stats import t as student

from analysis.curves.curve import CurveNoise
from analysis.curves.study import StudyCurves, study_curves
from analysis.tables.remarks import Remark
from analysis.transfer.matrix import INTERVAL_LEVEL


def adaptation_scores(
    observations: pd.DataFrame | StudyCurves,
    *,
    d_max: float | None = None,
    split: str | None = None,
    noise: CurveNoise | None = None,
    level: float = INTERVAL_LEVEL,
) -> pd.DataFrame:
    """The finetuning adaptation score: FAS(s→t) = (1/d_max)·∫₀^d_max [L_t^base − L_{s→t}(x)] dx.

    A checkpoint is continued on s alone; the score is its reduction of the loss on t, averaged over the tokens x of s.
    L_t^base is the loss of the checkpoint on t (ATLAS, Longpre et al. 2026, section 4).

    Args:
      d_max: tokens to integrate to; by default those of the shortest continued run of each scale.
      noise: of the study's stable curves (`StudyCurves.noise`); without it there are no intervals.

    Returns:
      Columns scale target source d_max score low high final (the loss on t at d_max) status reason. Status is
      `missing` where the checkpoint was not evaluated on t, or the run is shorter than `d_max`. The interval covers the
      noise of the evaluations in the integral and the noise between runs.
    """
    study = study_curves(observations, split=split)
    runs = study.runs
    continued = ((runs["init"] != "scratch") & (runs["kind"] == "mono")).to_numpy()
    # A cooled branch of a continued trunk has no stable rows: the curve is that of its trunk.
    phase = study.observations["phase"]
    rows = np.flatnonzero(continued[study.run] & phase.isin(["warmup", "stable"]).to_numpy(dtype=bool))
    by_run = {int(run): rows[study.run[rows] == run] for run in np.unique(study.run[rows])}
    longest = {run: float(study.tokens[own].max()) for run, own in by_run.items()}
    output, squares = [], []
    for run, own in by_run.items():
        scale, source = runs["scale"].iloc[run], runs["languages"].iloc[run][0]
        limit = d_max or min(one for other, one in longest.items() if runs["scale"].iloc[other] == scale)
        base = _checkpoint_losses(study, runs["init"].iloc[run], own)
        for language in np.unique(study.language[own]):
            at = own[study.language[own] == language]
            row = {"scale": scale, "target": study.languages[language], "source": source, "d_max": limit}
            square = np.nan
            if language not in base:
                row |= {"status": "missing", "reason": Remark("no_evaluation")}
            elif study.tokens[at].max() < 0.999 * limit:
                row |= {"status": "missing", "reason": Remark("short_run")}
            else:
                score, final, square = mean_gain(study.tokens[at], study.loss[at], base[language], limit)
                row |= {"score": score, "final": final, "status": "measured"}
            output.append(row)
            squares.append(square)
    columns = ["scale", "target", "source", "d_max", "score", "low", "high", "final", "status", "reason"]
    found = pd.DataFrame(output).reindex(columns=columns)
    half_width = interval_half_widths(np.array(squares), noise, level)
    found["low"], found["high"] = found["score"] - half_width, found["score"] + half_width
    return found.sort_values("scale", kind="stable", ignore_index=True)


def _checkpoint_losses(study: StudyCurves, init: str, rows: np.ndarray) -> dict[int, float]:
    """{language: loss} of the checkpoint `init`, a run or a trunk, that a run with these rows continues."""
    table = study.observations
    of = table["run"] == init
    of = of if of.any() else table["group"] == init
    start = table["init_tokens"].to_numpy(dtype=float)[rows].max()
    at = np.flatnonzero(of & (study.tokens <= start))
    at = at[np.argsort(study.tokens[at], kind="stable")]
    return dict(zip(study.language[at], study.loss[at], strict=True))  # of several evaluations, the last


def mean_gain(
    tokens: np.ndarray, losses: np.ndarray, base: float, limit: float
) -> tuple[float, float, float]:
    """Mean reduction of the loss below `base` from 0 to `limit` tokens, by the trapezoidal rule.

    A curve that ends just before the limit is extended to it at its last loss.

    Args:
      tokens, losses: the evaluations (n,) of a run.

    Returns:
      The mean reduction; the loss at `limit`; and the sum of the squared weights that the evaluations, the checkpoint's
      included, have in the mean: times the variance of an evaluation it is the variance of the mean.
    """
    later = tokens > 0
    x, which, repeats = np.unique(tokens[later], return_inverse=True, return_counts=True)
    y = np.append(base, np.bincount(which, losses[later]) / repeats)
    x = np.append(0.0, x)
    last = int((x < limit).sum()) - 1  # the last evaluation before the limit
    half = np.diff(np.append(x[: last + 1], limit)) / 2
    weight = np.zeros(len(x))
    weight[: last + 1] += half
    weight[1 : last + 1] += half[:-1]
    after = min(last + 1, len(x) - 1)
    share = (limit - x[last]) / (x[after] - x[last]) if after > last else 0.0
    weight[last] += (1 - share) * half[-1]
    weight[after] += share * half[-1]
    weight /= limit
    squares = (1 - weight[0]) ** 2 + np.sum(weight[1:] ** 2 / repeats)
    return float(base - weight @ y), float((1 - share) * y[last] + share * y[after]), float(squares)


def interval_half_widths(squares: np.ndarray, noise: CurveNoise | None, level: float) -> np.ndarray:
    """Half widths (C,) of Student-t intervals; degrees of freedom of the summed variance by Welch-Satterthwaite.

    Args:
      squares: sums of squared weights, as `integrate_gain` gives them.
    """
    if noise is None:
        return np.full(len(squares), np.nan)
    variance = squares * noise.checkpoint**2 + noise.run**2
    share = noise.run**2 / np.maximum(variance, 1e-300)
    freedom = noise.degrees / np.maximum(share, 1e-3) ** 2
    return student.ppf((1 + level) / 2, freedom) * np.sqrt(variance)
