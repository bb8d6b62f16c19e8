"""What each run was trained on, derived from its observations."""

import numpy as np
import pandas as pd

from mscale.observations import PHASES

# A run whose share of a language is within this of 1/K counts as uniform over its K languages.
UNIFORM_TOLERANCE = 0.02


def describe_mixtures(observations: pd.DataFrame) -> pd.DataFrame:
    """One row per run: the mixture, its kind, repeated data, initialisation.

    Returns:
      Columns run group scale params seed vocabulary init tag mixture, languages (tuple), K (their number), tokens,
      end_phase (phase of its last row), flops, kind, repeats (largest number of epochs over an evaluated language).
      `kind` is mono, bilingual (50/50), uniform (K > 2 at equal shares) or mixed.
    """
    code, names = pd.factorize(observations["run"])
    phase, phases = pd.factorize(observations["phase"])
    rank = np.array([PHASES.index(name) for name in phases], dtype=int)[phase]
    tokens, seen, unique, flops = (
        observations[name].to_numpy(dtype=float)
        for name in ("tokens", "target_tokens", "target_unique", "flops")
    )
    order = np.lexsort((rank, tokens, code))
    last = order[np.append(np.diff(code[order]) != 0, True)] if len(order) else order
    columns = ["group", "scale", "params", "seed", "vocabulary", "init", "tag", "mixture", "languages"]
    runs = observations.iloc[last][columns].set_axis(pd.Index(names, name="run"))
    runs["languages"] = runs["languages"].astype(object).str.split("+").map(tuple)
    runs["K"] = runs["languages"].map(len).astype(int)
    runs["tokens"] = observations["tokens"].to_numpy()[last]
    runs["end_phase"] = observations["phase"].array[last]
    # Shares at the run's last step, where the schedule's rounding (a few windows) matters least.
    at_last = (tokens > 0) & (tokens == tokens[last][code]) & (seen > 0)
    known = at_last & (unique > 0)
    off = np.abs(seen[at_last] / tokens[at_last] - 1 / runs["K"].to_numpy()[code[at_last]])
    runs["flops"] = _largest(code, flops, len(names))
    even = _largest(code[at_last], off, len(names)) <= UNIFORM_TOLERANCE
    kind = runs["K"].map(lambda count: {1: "mono", 2: "bilingual"}.get(count, "uniform"))
    runs["kind"] = kind.where(even | (runs["K"] == 1), "mixed")
    repeats = _largest(code[known], seen[known] / unique[known], len(names))
    runs["repeats"] = np.where(np.isnan(repeats), 0.0, repeats)
    return runs.reset_index()


def _largest(code: np.ndarray, values: np.ndarray, count: int) -> np.ndarray:
    """The largest value of each code, (count,); NaN where it has none."""
    found = np.full(count, np.nan)
    np.fmax.at(found, code, values)
    return found
