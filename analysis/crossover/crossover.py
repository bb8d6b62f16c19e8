"""Crossovers: after how many tokens a model from scratch has a lower loss than a continued checkpoint.

ATLAS (Longpre et al. 2026, section 6 and Fig. 7): at few tokens of a language, continuing a multilingual checkpoint
gives the lower loss; with enough tokens training from scratch does. The compute of the crossover is a power law in N,
for which the paper prints two sets of constants: those of the text and of the legend of Fig. 7 differ, and its caption
mixes them. The text's are used; the legend's are `PUBLISHED_LEGEND_POWER_LAW`.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike

from analysis.curves.curve import Curve, cell_generator, fit_curves, percentile_interval
from analysis.curves.study import MAX_EPOCHS, StudyCurves, study_curves
from analysis.tables.remarks import Remark
from analysis.transfer.matrix import CURVE_DRAWS, INTERVAL_LEVEL
from mscale.errors import MscaleError
from mscale.scales import training_flops

# Columns computed from the two curves; `gap` is at `gap_tokens`, see `crossovers`.
CROSSOVER_MEASURES = ["tokens", "low", "high", "status", "bound", "gap", "gap_low", "gap_high", "gap_tokens"]
CROSSOVER_COLUMNS = ["scale", "params", "language", *CROSSOVER_MEASURES, "phase", "init"]
CROSSOVER_COLUMNS += ["scratch_runs", "continued_runs", "scratch_tokens", "continued_tokens", "reason"]

_POWER_LAW_DRAWS = 1000  # of the bootstrap


@dataclass(frozen=True)
class PowerLaw:
    """Compute of the crossover in FLOPs, C = coefficient·N^exponent.

    source: of the constants. low, high: interval of the exponent, if it was fitted.
    """

    coefficient: float
    exponent: float
    source: str
    low: float | None = None
    high: float | None = None

    def flops(self, params: ArrayLike) -> np.ndarray:
        """FLOPs of the crossover at N = `params`, a number or an array."""
        return self.coefficient * np.asarray(params, dtype=float) ** self.exponent

    def tokens(self, params: ArrayLike) -> np.ndarray:
        """Tokens of the crossover, D = C/(6N)."""
        return self.flops(params) / training_flops(np.asarray(params, dtype=float), 1)


PUBLISHED_POWER_LAW = PowerLaw(1_113_708.0, 1.65, "Longpre et al. 2026, section 6 (text)")
PUBLISHED_LEGEND_POWER_LAW = PowerLaw(10_283_128.0, 1.54, "Longpre et al. 2026, legend of Fig. 7")


@dataclass(frozen=True)
class CurvePair:
    """The curves of a language at a scale, from scratch and continued.

    labels: scale, params, language, phase and init, as in `CROSSOVER_COLUMNS`. reason: why a curve is None.
    """

    labels: dict[str, Any]
    scratch: Curve | None
    continued: Curve | None
    reason: Remark | None


def crossovers(pairs: Sequence[CurvePair], *, level: float = INTERVAL_LEVEL) -> pd.DataFrame:
    """The crossover of every language and scale at which a checkpoint was continued.

    Both curves are in the same phase of the schedule, and tokens count from the start of each run, as in the paper's
    figure. The crossover is where the model from scratch has the lower loss from there to the end of the data.

    Args:
      pairs: of `curve_pairs`. level: of the intervals.

    Returns:
      A row for each pair with the columns of `CROSSOVER_COLUMNS`: `tokens` and its interval; the number of trunks of
      each curve and its last tokens; `status` is `measured`, `bound` (`bound` "at least": continuing has the lower loss
      at the last shared tokens; "at most": scratch has it from the first) or `missing`. `gap` is the loss from scratch
      minus that of continuing at `gap_tokens`, the last shared tokens.
    """
    rows = []
    for pair in pairs:
        row = dict(pair.labels)
        for name, curve in (("scratch", pair.scratch), ("continued", pair.continued)):
            row[f"{name}_runs"] = 0 if curve is None else len(curve.points.groups)
            row[f"{name}_tokens"] = 0.0 if curve is None else curve.last
        rows.append({**row, **_crossover_row(pair, level)})
    frame = pd.DataFrame(rows).reindex(columns=CROSSOVER_COLUMNS)
    return frame.fillna({"bound": ""})


def gap_curves(
    pairs: Sequence[CurvePair], *, level: float = INTERVAL_LEVEL, points: int = 40
) -> pd.DataFrame:
    """The loss from scratch minus that of continuing against tokens, with its interval, at `points` token counts.

    Returns:
      Columns scale language tokens gap low high; no rows for pairs without a shared range of tokens.
    """
    frames = [pd.DataFrame(columns=["scale", "language", "tokens", "gap", "low", "high"])]
    for pair in pairs:
        if shared := _gap(pair, points):
            at, gap, draws = shared
            low, high = percentile_interval(draws, level)
            keys = {name: pair.labels[name] for name in ("scale", "language")}
            frames.append(pd.DataFrame({**keys, "tokens": at, "gap": gap, "low": low, "high": high}))
    return pd.concat(frames[1:] or frames, ignore_index=True)


def curve_pairs(
    observations: pd.DataFrame | StudyCurves,
    *,
    phase: str = "stable",
    draws: int = CURVE_DRAWS,
    seed: int = 0,
) -> list[CurvePair]:
    """A pair of curves for every (scale, language, checkpoint) that was continued.

    Runs of one language that do not repeat their data are used.

    Args:
      phase: of both curves. draws: of each curve.

    Raises:
      MscaleError: several splits.
    """
    study = study_curves(observations)
    runs = study.runs
    single = ((runs["kind"] == "mono") & (runs["repeats"] <= MAX_EPOCHS)).to_numpy()
    # Number the curves: keys (scale, language) from scratch and (scale, language, checkpoint) continued.
    numbers: dict[tuple, int] = {}
    of_run, language_of_run = np.full(len(runs), -1), np.full(len(runs), -1)
    language_index = {name: index for index, name in enumerate(study.languages)}
    first: dict[tuple, int] = {}
    columns = (runs[name] for name in ("scale", "languages", "init"))
    for run, (scale, languages, init) in enumerate(zip(*columns, strict=True)):
        if single[run]:
            key = (scale, languages[0]) if init == "scratch" else (scale, languages[0], init)
            first.setdefault(key, run)
            of_run[run] = numbers.setdefault(key, len(numbers))
            language_of_run[run] = language_index.get(languages[0], -1)
    points = study.points(of_run[study.run], language_of_run[study.run] == study.language, phase)
    wanted = sorted(key for key in numbers if len(key) == 3)
    vocabulary = {key: runs["vocabulary"].iloc[run] for key, run in first.items()}
    differ = {key for key in wanted if vocabulary.get(key[:2], vocabulary[key]) != vocabulary[key]}
    cells: dict[tuple, tuple[str, str, str]] = {}
    for scale, language, init in wanted:
        if (scale, language, init) not in differ:
            cells[scale, language] = ("scratch", scale, language)
            cells[scale, language, init] = ("continued", scale, language)
    known = [key for key in cells if numbers.get(key) in points]
    generators = [cell_generator(seed, *cells[key], phase) for key in known]
    fitted = fit_curves([points[numbers[key]] for key in known], study.noise[phase], draws, generators)
    curves = dict(zip(known, fitted, strict=True))
    found = []
    for key in wanted:
        scale, language, init = key
        labels = {"scale": str(scale), "params": int(runs["params"].iloc[first[key]]), "language": language}
        labels |= {"phase": phase, "init": init}
        what = "continued" if key[:2] in curves else "from scratch"
        reason = Remark("no_such_run", names=(language, what, phase))
        if key in differ:
            reason = Remark("other_vocabulary")
        both = (None, None) if key in differ else (curves.get(key[:2]), curves.get(key))
        found.append(CurvePair(labels, *both, reason))
    return found


def fit_power_law(table: pd.DataFrame, *, level: float = INTERVAL_LEVEL, seed: int = 0) -> PowerLaw:
    """C = a·N^b fitted to the measured crossovers of at least three sizes, by least squares in logs.

    The interval of b is a bootstrap: crossovers are resampled, and each is redrawn within its own interval.

    Raises:
      MscaleError: fewer than three sizes have a measured crossover.
    """
    rows = table[(table["status"] == "measured") & table["tokens"].gt(0)]
    if rows["params"].nunique() < 3:
        raise MscaleError(
            f"a power law in N needs crossovers measured at three sizes or more, found "
            f"{rows['params'].nunique()}: continue the checkpoint of more sizes, for more tokens"
        )
    x = np.log(rows["params"].to_numpy(dtype=float))
    y = np.log(training_flops(rows["params"], rows["tokens"]).to_numpy(dtype=float))
    slope, offset = np.polyfit(x, y, 1)
    spread = np.log(rows["high"].fillna(rows["tokens"] * 2) / rows["low"].fillna(rows["tokens"] / 2)) / 3.3
    rng = np.random.default_rng(seed)
    slopes = []
    for _ in range(_POWER_LAW_DRAWS):
        pick = rng.integers(len(x), size=len(x))
        if len(set(x[pick])) > 1:
            noisy = y[pick] + np.asarray(spread)[pick] * rng.standard_normal(len(x))
            slopes.append(np.polyfit(x[pick], noisy, 1)[0])
    tail = 100 * (1 - level) / 2
    low, high = np.percentile(slopes, [tail, 100 - tail])
    return PowerLaw(float(np.exp(offset)), float(slope), "this study", float(low), float(high))


def _crossover_row(pair: CurvePair, level: float) -> dict:
    """The columns from `tokens` to `gap_tokens` of `CROSSOVER_COLUMNS`, and the reason."""
    shared = _gap(pair, 400)
    if shared is None:
        both = pair.scratch is not None and pair.continued is not None
        reason = Remark("no_shared_tokens") if both else pair.reason
        return {"status": "missing", "reason": reason}
    at, gap, gaps = shared
    tokens, *draws = _last_crossing(at, np.concatenate([gap[None], gaps])).tolist()
    (low, gap_low), (high, gap_high) = percentile_interval(np.column_stack([draws, gaps[:, -1]]), level)
    row = {
        "tokens": tokens,
        "low": low if low > 0 and np.isfinite(low) else np.nan,
        "high": high if high > 0 and np.isfinite(high) else np.nan,
        "status": "measured",
        "gap": gap[-1],
        "gap_low": gap_low,
        "gap_high": gap_high,
        "gap_tokens": at[-1],
    }
    if tokens == np.inf:
        row |= {"tokens": at[-1], "high": np.nan, "status": "bound", "bound": "at least"}
    elif tokens == 0:
        row |= {"tokens": at[0], "low": np.nan, "status": "bound", "bound": "at most"}
    return row


def _gap(pair: CurvePair, points: int) -> tuple[np.ndarray, np.ndarray, np.ndarray] | None:
    """Tokens (m,) that both curves cover, loss from scratch minus continued there, (m,), and its draws (R, m).

    None where a curve is missing or the two share no range of tokens.
    """
    scratch, continued = pair.scratch, pair.continued
    if scratch is None or continued is None:
        return None
    first, last = max(scratch.first, continued.first), min(scratch.last, continued.last)
    if first >= last:
        return None
    at = np.geomspace(first, last, points)
    loss, draws = scratch.at(np.clip(at, scratch.first, scratch.last))
    other, other_draws = continued.at(np.clip(at, continued.first, continued.last))
    return at, loss - other, draws - other_draws


def _last_crossing(tokens: np.ndarray, gaps: np.ndarray) -> np.ndarray:
    """Tokens (R,) from which each of `gaps` (R, m) at `tokens` (m,) stays below 0; 0 if always, inf if never."""
    positive = gaps >= 0
    never, always = positive[:, -1], ~positive.any(axis=1)
    last = gaps.shape[1] - 1 - np.argmax(positive[:, ::-1], axis=1)
    i = np.minimum(np.where(always, 0, last), gaps.shape[1] - 2)
    row, log = np.arange(len(gaps)), np.log(tokens)
    with np.errstate(divide="ignore", invalid="ignore"):
        share = gaps[row, i] / (gaps[row, i] - gaps[row, i + 1])
    return np.select([always, never], [0.0, np.inf], np.exp(log[i] * (1 - share) + log[i + 1] * share))
