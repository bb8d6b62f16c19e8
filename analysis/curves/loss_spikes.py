"""Evaluations that stand far above their neighbours: a loss spike says nothing of how good the model is.

One in a hundred makes the noise between checkpoints look several times what it is, and every interval with it. So they
are left out of learning curves, and counted.
"""

from typing import Any

import numpy as np
import pandas as pd

# So many robust standard deviations above its neighbours; noise alone goes there once in 10⁹.
FAR = 6.0
# Neighbours to either side, and passes: a spike beside a spike shows once the first is out.
NEIGHBOURS, PASSES = 3, 3
LEAST_POINTS = 8
# Nats that a spike is above its neighbours at least, lest curves without noise have any.
LEAST = 1e-3


def spikes(rows: pd.DataFrame) -> np.ndarray:
    """Which rows (n,) are spikes of their curve: a run's losses on one language in one phase of its schedule.

    A loss is compared with the line between the medians of three evaluations before and three after, in log tokens;
    curves fall ever more slowly, so without noise all lie below it. The last two are compared with the three
    before. The first ones, where curves fall steeply, are never spikes.
    """
    if rows.empty:
        return np.zeros(0, dtype=bool)
    curve = rows.groupby(["run", "language", "phase"], sort=False).ngroup().to_numpy()
    tokens = rows["tokens"].to_numpy(dtype=float)
    order = np.lexsort((tokens, curve))
    curve, x = curve[order], np.log(np.maximum(tokens[order], 1.0))
    loss = rows["loss"].to_numpy(dtype=float)[order]
    size = np.bincount(curve)[curve]
    flagged = np.zeros(len(loss), dtype=bool)
    for _ in range(PASSES):
        before, x_before = _medians(loss, x, curve, flagged, 1)
        after, x_after = _medians(loss, x, curve, flagged, -1)
        with np.errstate(invalid="ignore", divide="ignore"):
            share = (x - x_before) / (x_after - x_before)
            above = loss - (before + share * (after - before))
            scale = pd.Series(np.abs(above)).groupby(curve).transform("median").to_numpy() * 1.4826
            above = np.where(np.isnan(after), loss - before, above)
            found = (above > np.maximum(FAR * scale, LEAST)) & (size >= LEAST_POINTS) & ~flagged
        if not found.any():
            break
        flagged |= found
    back = np.zeros(len(loss), dtype=bool)
    back[order] = flagged
    return back


def _medians(
    loss: np.ndarray, x: np.ndarray, curve: np.ndarray, flagged: np.ndarray, side: int
) -> tuple[np.ndarray, np.ndarray]:
    """Median loss and mean log tokens of the neighbours before (side 1) or after (−1); NaN with fewer than two."""
    values = np.full((NEIGHBOURS, len(loss)), np.nan)
    places = np.full((NEIGHBOURS, len(loss)), np.nan)
    for step in range(1, NEIGHBOURS + 1):
        to = slice(step, None) if side > 0 else slice(None, -step)
        source = slice(None, -step) if side > 0 else slice(step, None)
        fits = (curve[to] == curve[source]) & ~flagged[source]
        values[step - 1, to] = np.where(fits, loss[source], np.nan)
        places[step - 1, to] = np.where(fits, x[source], np.nan)
    enough = np.isfinite(values).sum(axis=0) >= 2
    median, mean = np.full(len(loss), np.nan), np.full(len(loss), np.nan)
    median[enough] = np.nanmedian(values[:, enough], axis=0)
    mean[enough] = np.nanmean(places[:, enough], axis=0)
    return median, mean


def found_spikes(rows: pd.DataFrame) -> tuple[np.ndarray, list[dict[str, Any]]]:
    """Which rows (n,) are spikes of languages that their run trains on; and the exclusion, {"what", "rows", "why"}."""
    trained = (rows["target_tokens"] > 0).to_numpy()
    found = np.zeros(len(rows), dtype=bool)
    found[trained] = spikes(rows[trained])
    if not found.any():
        return found, []
    runs = rows.loc[found, "run"].nunique()
    why = "a loss spike, far above the evaluations before and after: left out of learning curves"
    return found, [{"what": f"evaluations of {runs} run(s)", "rows": int(found.sum()), "why": why}]
