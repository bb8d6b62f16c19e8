"""What continuing a checkpoint on one language does to others, and how transfer agrees with what is known of it."""

import numpy as np
import pandas as pd
from scipy.stats import rankdata, spearmanr

from analysis.tables import describe_mixtures
from analysis.transfer import one_split


def adaptation_scores(
    observations: pd.DataFrame, *, d_max: float | None = None, split: str | None = None
) -> pd.DataFrame:
    """The finetuning adaptation score: FAS(s→t) = (1/d_max)·∫₀^d_max [L_t^base − L_{s→t}(x)] dx.

    Continues a checkpoint on s alone and averages the loss gained on t over the tokens x of s; L_t^base is
    the checkpoint's own loss on t.

    Args:
      d_max: tokens to integrate to; the shortest of the continued runs of a scale by default.

    Returns:
      Columns scale target source d_max score final (the loss on t at d_max) status reason. Status `missing`
      where the checkpoint itself was not evaluated on t, or a run is shorter than `d_max`.
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
                ends = {"score": score, "final": float(end)}
                output.append({**row, **ends, "status": "measured", "reason": ""})
    columns = ["scale", "target", "source", "d_max", "score", "final", "status", "reason"]
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
    place = {name: index for index, name in enumerate(names)}
    wide = np.array([[planted.get(t, {}).get(s, np.nan) for s in names] for t in names], dtype=float)
    targets = rows["target"].map(place).to_numpy()
    sources = rows["source"].map(place).to_numpy()
    # All permutations give nearly the same values to rank, so ranks are taken once over the whole matrix.
    ranked = rankdata(wide.ravel(), nan_policy="omit").reshape(wide.shape)
    scores = rankdata(rows["score"])
    reference = np.corrcoef(scores, ranked[targets, sources])[0, 1]
    rng = np.random.default_rng(seed)
    above = same = 0
    for _ in range(permutations):
        label = rng.permutation(len(names))
        shuffled = ranked[label[targets], label[sources]]
        known = np.isfinite(shuffled)
        if known.sum() > 2 and np.ptp(shuffled[known]) > 0:
            above += np.corrcoef(scores[known], shuffled[known])[0, 1] >= reference - 1e-12
        same += np.array_equal(shuffled, ranked[targets, sources])
    p, floor = (above + 1) / (permutations + 1), (same + 1) / (permutations + 1)
    return {**result, "spearman": found, "p": p, "smallest_p": floor}
