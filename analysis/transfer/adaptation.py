"""What continuing a checkpoint on one language does to others, and how transfer agrees with what is known of it."""

import numpy as np
import pandas as pd
from scipy.stats import t as student

from analysis.curves.curve import Noise
from analysis.curves.study import StudyCurves, study_curves

LEVEL = 0.9


def adaptation_scores(
    observations: pd.DataFrame | StudyCurves,
    *,
    d_max: float | None = None,
    split: str | None = None,
    noise: Noise | None = None,
    level: float = LEVEL,
) -> pd.DataFrame:
    """The finetuning adaptation score: FAS(s→t) = (1/d_max)·∫₀^d_max [L_t^base − L_{s→t}(x)] dx.

    Continues a checkpoint on s alone and averages the loss gained on t over the tokens x of s; L_t^base is
    the checkpoint's own loss on t.

    Args:
      d_max: tokens to integrate to; the shortest of the continued runs of a scale by default.
      noise: of the study's stable curves (`StudyCurves.noise`); without it there are no intervals.

    Returns:
      Columns scale target source d_max score low high final (the loss on t at d_max) status reason. Status `missing`
      where the checkpoint itself was not evaluated on t, or a run is shorter than `d_max`. The interval counts the
      noise of the evaluations that the integral is of, and that of the continued run as a whole.
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
    # A cooled branch of a continued trunk has no such rows: its trunk is the curve.
    there = continued & (longest > -np.inf)
    scales = runs["scale"].to_numpy(dtype=object)
    limit = np.full(len(runs), np.nan)
    for scale in set(scales[there]):
        here = there & (scales == scale)
        limit[here] = longest[here].min() if d_max is None else d_max
    base = _checkpoints(study, there, start)
    curve = run * size + study.language[rows]
    furthest = np.full(len(runs) * size, -np.inf)
    np.maximum.at(furthest, curve, tokens)
    evaluated = np.flatnonzero(furthest > -np.inf)
    goes = furthest[evaluated] >= limit[evaluated // size] * 0.999
    known = np.isfinite(base.ravel()[evaluated])
    measured = evaluated[goes & known]
    place = np.full(len(furthest), -1)
    place[measured] = np.arange(len(measured))
    use = (place[curve] >= 0) & (tokens > 0)
    score, final, weight = _integrate(
        place[curve[use]],
        tokens[use],
        study.loss[rows[use]],
        base.ravel()[measured],
        limit[measured // size],
    )
    half = _half_widths(weight, noise, level)
    order = sorted(evaluated, key=lambda at: (scales[at // size], at))
    reasons = np.where(known, "the run is shorter than d_max", "the checkpoint has no evaluation of it")
    why = dict(zip(evaluated.tolist(), reasons.tolist(), strict=True))
    output = []
    for at in map(int, order):
        row = {"scale": scales[at // size], "target": study.languages[at % size]}
        row |= {"source": runs["languages"].iloc[at // size][0], "d_max": float(limit[at // size])}
        if place[at] < 0:
            output.append({**row, "status": "missing", "reason": why[at]})
        else:
            value, away = float(score[place[at]]), float(half[place[at]])
            ends = {
                "score": value,
                "low": value - away,
                "high": value + away,
                "final": float(final[place[at]]),
            }
            output.append({**row, **ends, "status": "measured", "reason": ""})
    columns = ["scale", "target", "source", "d_max", "score", "low", "high", "final", "status", "reason"]
    return pd.DataFrame(output).reindex(columns=columns)


def _checkpoints(study: StudyCurves, continued: np.ndarray, start: np.ndarray) -> np.ndarray:
    """The loss (R, L) that each continued run's checkpoint has on each language at the tokens (R,) it starts from."""
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
        found[run, study.language[at]] = study.loss[at]  # of several, the last
    return found


def _integrate(
    curve: np.ndarray, tokens: np.ndarray, losses: np.ndarray, base: np.ndarray, limit: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Mean gain over `base` (C,) from 0 to `limit` (C,) tokens, and the loss there, of curves given by rows (n,).

    Third: the sum (C,) of the squared weights that single evaluations have in the gain, the checkpoint's among them.
    """
    everyone = np.arange(len(base))
    curve = np.concatenate([everyone, curve])
    tokens, losses = np.concatenate([0 * base, tokens]), np.concatenate([base, losses])
    order = np.lexsort((tokens, curve))
    curve, tokens = curve[order], tokens[order]
    new = (np.diff(curve, prepend=-1) != 0) | (np.diff(tokens, prepend=-1.0) != 0)
    which = np.cumsum(new) - 1
    repeats = np.maximum(np.bincount(which), 1)
    y = np.bincount(which, losses[order]) / repeats
    curve, x = curve[new], tokens[new]
    # A curve that ends just before the limit stays level to it.
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
    # A segment weighs its two ends by where it is cut off; a checkpoint counts in full, less its share of the first.
    length = np.where(inside, end - x, 0.0) / limit[curve]
    share = np.where(last, 0.0, (end - x) / (2 * width))
    weight = length * (1 - share)
    weight[1:] += (length * share)[:-1] * ~last[:-1]
    begins = np.append(True, np.diff(curve) != 0)[: len(curve)]
    weight = np.where(begins, 1.0 - weight, weight)
    squares = np.bincount(curve, weight**2 / repeats, minlength=len(base))
    return np.bincount(curve, gain, minlength=len(base)) / limit, final, squares


def _half_widths(squares: np.ndarray, noise: Noise | None, level: float) -> np.ndarray:
    """(C,) of intervals, Student's, with the degrees of freedom that Satterthwaite gives the sum of both noises."""
    if noise is None:
        return np.full(len(squares), np.nan)
    variance = squares * noise.checkpoint**2 + noise.run**2
    share = noise.run**2 / np.maximum(variance, 1e-300)
    freedom = noise.degrees / np.maximum(share, 1e-3) ** 2
    return student.ppf((1 + level) / 2, freedom) * np.sqrt(variance)
