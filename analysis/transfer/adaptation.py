"""Finetuning adaptation scores (FAS): how continuing a checkpoint on one language changes the loss on others."""

import numpy as np
import pandas as pd
from scipy.stats import t as student

from analysis.curves.curve import CurveNoise
from analysis.curves.study import StudyCurves, study_curves
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
    runs, size = study.runs, len(study.languages)
    continued = ((runs["init"] != "scratch") & (runs["kind"] == "mono")).to_numpy()
    stable = study.observations["phase"].isin(["warmup", "stable"]).to_numpy(dtype=bool)
    rows = np.flatnonzero(continued[study.run] & stable)
    run, tokens = study.run[rows], study.tokens[rows]
    longest, start = np.full(len(runs), -np.inf), np.full(len(runs), -np.inf)
    np.maximum.at(longest, run, tokens)
    np.maximum.at(start, run, study.observations["init_tokens"].to_numpy(dtype=float)[rows])
    # A cooled branch of a continued trunk has no stable rows: the curve is that of its trunk.
    with_curve = continued & (longest > -np.inf)
    scales = runs["scale"].to_numpy(dtype=object)
    limit = np.full(len(runs), np.nan)
    for scale in set(scales[with_curve]):
        here = with_curve & (scales == scale)
        limit[here] = longest[here].min() if d_max is None else d_max
    base = _checkpoint_losses(study, with_curve, start)
    curve = run * size + study.language[rows]
    furthest = np.full(len(runs) * size, -np.inf)
    np.maximum.at(furthest, curve, tokens)
    evaluated = np.flatnonzero(furthest > -np.inf)
    long_enough = furthest[evaluated] >= limit[evaluated // size] * 0.999
    known = np.isfinite(base.ravel()[evaluated])
    measured = evaluated[long_enough & known]
    index = np.full(len(furthest), -1)  # of a curve among the measured ones
    index[measured] = np.arange(len(measured))
    use = (index[curve] >= 0) & (tokens > 0)
    score, final, weight = integrate_gain(
        index[curve[use]],
        tokens[use],
        study.loss[rows[use]],
        base.ravel()[measured],
        limit[measured // size],
    )
    half_widths = interval_half_widths(weight, noise, level)
    order = sorted(evaluated, key=lambda at: (scales[at // size], at))
    reasons = np.where(known, "the run is shorter than d_max", "the checkpoint has no evaluation of it")
    why = dict(zip(evaluated.tolist(), reasons.tolist(), strict=True))
    output = []
    for at in map(int, order):
        row = {"scale": scales[at // size], "target": study.languages[at % size]}
        row |= {"source": runs["languages"].iloc[at // size][0], "d_max": float(limit[at // size])}
        if index[at] < 0:
            output.append({**row, "status": "missing", "reason": why[at]})
        else:
            value, half_width = float(score[index[at]]), float(half_widths[index[at]])
            ends = {
                "score": value,
                "low": value - half_width,
                "high": value + half_width,
                "final": float(final[index[at]]),
            }
            output.append({**row, **ends, "status": "measured", "reason": ""})
    columns = ["scale", "target", "source", "d_max", "score", "low", "high", "final", "status", "reason"]
    return pd.DataFrame(output).reindex(columns=columns)


def _checkpoint_losses(study: StudyCurves, continued: np.ndarray, start: np.ndarray) -> np.ndarray:
    """Losses (R, L) on each language of the checkpoint that a run continues, at the `start` (R,) tokens of the run."""
    found = np.full((len(study.runs), len(study.languages)), np.nan)
    runs = {name: index for index, name in enumerate(study.runs["run"])}
    groups = {name: index for index, name in enumerate(study.groups)}
    rows: dict[str, np.ndarray] = {}
    for run in np.flatnonzero(continued):
        init = study.runs["init"].iloc[run]
        if init not in rows:
            of = study.run == runs[init] if init in runs else study.group == groups.get(init, -1)
            at = np.flatnonzero(of)
            rows[init] = at[np.argsort(study.tokens[at], kind="stable")]
        at = rows[init][study.tokens[rows[init]] <= start[run]]
        found[run, study.language[at]] = study.loss[at]  # of several evaluations, the last
    return found


def integrate_gain(
    curve: np.ndarray, tokens: np.ndarray, losses: np.ndarray, base: np.ndarray, limit: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Mean reduction of the loss below `base` (C,) from 0 to `limit` (C,) tokens, by the trapezoidal rule.

    Args:
      curve, tokens, losses: the evaluations (n,), each of a curve 0 to C−1.

    Returns:
      The mean reduction (C,); the loss at `limit` (C,); and the sum (C,) of the squared weights that the evaluations,
      the checkpoint's included, have in the mean: times the variance of an evaluation it is the variance of the mean.
    """
    curves = np.arange(len(base))
    curve = np.concatenate([curves, curve])
    tokens, losses = np.concatenate([0 * base, tokens]), np.concatenate([base, losses])
    order = np.lexsort((tokens, curve))
    curve, tokens = curve[order], tokens[order]
    new = (np.diff(curve, prepend=-1) != 0) | (np.diff(tokens, prepend=-1.0) != 0)
    which = np.cumsum(new) - 1
    repeats = np.maximum(np.bincount(which), 1)
    y = np.bincount(which, losses[order]) / repeats
    curve, x = curve[new], tokens[new]
    # A curve that ends just before the limit is extended to it at its last loss.
    last = np.append(np.diff(curve) != 0, True)[: len(curve)]
    after, level = np.where(last, np.inf, np.roll(x, -1)), np.where(last, y, np.roll(y, -1))
    end = np.minimum(after, limit[curve])
    width = np.where(last, 1.0, after - x)
    height = y + (level - y) * (end - x) / width
    inside = x < limit[curve]
    gain = np.where(inside, (end - x) * (base[curve] - (y + height) / 2), 0.0)
    final = np.full(len(base), np.nan)
    here = inside & (limit[curve] <= after)
    final[curve[here]] = height[here]
    # Weights of the two ends of each segment, which may be cut off at the limit. The checkpoint has weight 1 (it is
    # `base`) minus its weight in the first segment.
    length = np.where(inside, end - x, 0.0) / limit[curve]
    share = np.where(last, 0.0, (end - x) / (2 * width))
    weight = length * (1 - share)
    weight[1:] += (length * share)[:-1] * ~last[:-1]
    begins = np.append(True, np.diff(curve) != 0)[: len(curve)]
    weight = np.where(begins, 1.0 - weight, weight)
    squares = np.bincount(curve, weight**2 / repeats, minlength=len(base))
    return np.bincount(curve, gain, minlength=len(base)) / limit, final, squares


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
