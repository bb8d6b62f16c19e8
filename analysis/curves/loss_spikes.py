"""Loss spikes: evaluations far above their neighbours. They are left out of learning curves, and counted.

One spike in a hundred evaluations inflates the estimated noise between checkpoints several times, and every interval
with it.
"""

import numpy as np
import pandas as pd

from analysis.tables.remarks import Remark

# Robust standard deviations above the neighbours; Gaussian noise exceeds it once in 10⁹.
_THRESHOLD = 6.0
# Neighbours on each side, and passes: a spike next to another is found once that one is excluded.
NEIGHBOURS, PASSES = 3, 3
_MIN_POINTS = 8
# Least height of a spike in nats, so that curves without noise have none.
_MIN_NATS = 1e-3


def spike_mask(rows: pd.DataFrame) -> np.ndarray:
    """Mask (n,) of rows that are spikes of their curve: a run's losses on one language in one phase.

    A loss is compared with the line between the medians of the three evaluations before and the three after, in log
    tokens; curves are convex, so without noise all lie below it. The last two are compared with the three before.
    The first ones, where curves fall steeply, are never spikes, and curves of fewer than eight points have none.
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
        before, x_before = _neighbour_medians(loss, x, curve, flagged, 1)
        after, x_after = _neighbour_medians(loss, x, curve, flagged, -1)
        with np.errstate(invalid="ignore", divide="ignore"):
            share = (x - x_before) / (x_after - x_before)
            above = loss - (before + share * (after - before))
            scale = pd.Series(np.abs(above)).groupby(curve).transform("median").to_numpy() * 1.4826
            above = np.where(np.isnan(after), loss - before, above)
            found = (above > np.maximum(_THRESHOLD * scale, _MIN_NATS)) & (size >= _MIN_POINTS) & ~flagged
        if not found.any():
            break
        flagged |= found
    mask = np.zeros(len(loss), dtype=bool)
    mask[order] = flagged
    return mask


def _neighbour_medians(
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


def find_spikes(rows: pd.DataFrame) -> tuple[np.ndarray, list[Remark]]:
    """Mask (n,) of spikes on languages of the run's mixture, and the exclusions."""
    trained = (rows["target_tokens"] > 0).to_numpy()
    found = np.zeros(len(rows), dtype=bool)
    found[trained] = spike_mask(rows[trained])
    if not found.any():
        return found, []
    runs = rows.loc[found, "run"].nunique()
    return found, [Remark("spikes", rows=int(found.sum()), numbers=(runs,))]
