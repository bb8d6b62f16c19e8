"""The runs that would most reduce the uncertainty of a crossover: `mscale plan next --decision start`.

The crossovers of the study are modelled as a Gaussian process (`analysis.crossover.gaussian_process`), so the posterior
variance after a run is known before it is made. A repeated run averages the noise of its curve; a longer one shows the
crossover with the probability that this lies within its tokens.
"""

import itertools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from scipy.special import ndtr

from analysis.gaussian import greedy_design
from analysis.planning.answer import BASIS_STUDY, Answer, check_positive
from analysis.planning.gaussian_process import (
    Z90,
    CrossoverCell,
    cell_key,
    crossover_cells,
    crossover_posterior,
)
from analysis.study.results import Results
from analysis.text import count
from mscale.errors import MscaleError
from mscale.scales import training_flops

# A run that is to show a crossover gets this multiple of its expected tokens; a run that is extended gets one of these
# multiples of the tokens it has.
CROSSOVER_MARGIN, EXTENSIONS = 1.4, (1.5, 2.0, 4.0, 8.0)
# The answer names the cheapest run that shows the crossover with at least this probability.
_MIN_CHANCE = 0.8
# A run that reduces the variance by less than this share is not proposed, however cheap.
_MIN_VARIANCE_REDUCTION = 0.03


@dataclass(frozen=True)
class CrossoverRun:
    """One or two runs at a cell.

    Attributes:
      cell: as it is after the runs, if they show the crossover. tokens: trained to.
      chance: probability that the runs show the crossover.
    """

    name: str
    cell: CrossoverCell
    tokens: float
    flops: float
    chance: float


def next_runs_for_crossover(
    results: Results, target: str, params: float | None, budget: float, runs: int
) -> Answer:
    """The runs that most reduce the variance of a crossover of `target` per FLOP, chosen greedily within the budget.

    Args:
      params: the crossover is that at the size of the study nearest to this N; by default at the largest size at which
        the language was both trained from scratch and continued.

    Raises:
      MscaleError: the study has no such language or no size within a factor of two, or no run is within the budget.
    """
    check_positive("plan next", params=params)
    scales = {str(one["scale"]): float(one["params"]) for one in results.study.scales}
    cells = crossover_cells(results, target, scales)
    wanted = _wanted(cells, target, params, scales)
    spread = float(
        np.median([cell.run_variance for cell in cells if cell.log_tokens is not None] or [0.2**2])
    )
    level, before = crossover_posterior(cells, wanted)
    at_first = candidate_runs(cells, target, spread)
    direct = [one for one in at_first if cell_key(one.cell) == cell_key(wanted)]
    shows = min(
        (one for one in direct if _MIN_CHANCE <= one.chance < 1), key=lambda one: one.flops, default=None
    )
    cheapest = min((one.flops for one in at_first), default=np.inf)

    def expected_after(cells: Sequence[CrossoverCell], run: CrossoverRun) -> float:
        """The expected variance of the log tokens of the wanted crossover after a run."""
        shown = crossover_posterior(_replaced(cells, run.cell), wanted)[1]
        return run.chance * shown + (1 - run.chance) * crossover_posterior(cells, wanted)[1]

    def reductions(cells: Sequence[CrossoverCell], offered: Sequence[CrossoverRun]) -> np.ndarray:
        now = crossover_posterior(cells, wanted)[1]
        gain = now - np.array([expected_after(cells, run) for run in offered])
        return np.where(gain > _MIN_VARIANCE_REDUCTION * now, gain, -np.inf)

    design = greedy_design(
        cells,
        lambda cells: candidate_runs(cells, target, spread),
        reductions,
        # The runs after it are chosen as if it had shown the crossover.
        lambda cells, run: _replaced(cells, run.cell),
        lambda run: run.flops,
        budget,
    )
    chosen: list[dict[str, Any]] = []
    now, total = before, 0.0
    for run, after in itertools.islice(design, runs):
        total += run.flops
        chosen.append(
            {
                "run": run.name,
                "tokens": run.tokens,
                "flops": run.flops,
                "chance_to_show": run.chance,
                "interval_before": _interval_ratio(now),
                "interval_after": _interval_ratio(expected_after(cells, run)),
                "flops_so_far": total,
            }
        )
        cells = after
        now = crossover_posterior(cells, wanted)[1]
    if not chosen and cheapest <= budget:
        raise MscaleError(
            f"plan next --decision start: no run takes {_MIN_VARIANCE_REDUCTION:.0%} off the variance of the crossover "
            f"of {target} within {'any budget' if np.isinf(budget) else f'{count(budget)} FLOPs'}"
        )
    if not chosen:
        raise MscaleError(
            f"plan next --decision start: no run fits into {count(budget)} FLOPs; the cheapest takes {count(cheapest)}"
        )
    return _answer(target, wanted, chosen, level, (before, now), results, shows)


def _wanted(
    cells: Sequence[CrossoverCell], target: str, params: float | None, scales: Mapping[str, float]
) -> CrossoverCell:
    """The cell whose crossover is asked about."""
    of_target = [cell for cell in cells if cell.language == target]
    known = [cell for cell in of_target if cell.log_tokens is not None]
    if params is None:
        return max(known or of_target, key=lambda cell: cell.params)
    wanted = min(of_target, key=lambda cell: abs(np.log(cell.params / params)))
    if not 0.5 <= wanted.params / params <= 2:
        sizes = ", ".join(count(size) for size in sorted(scales.values()))
        raise MscaleError(
            f"plan next --decision start: {count(params)} parameters are more than a factor of two from every size of "
            f"the study ({sizes}): runs at that size come first, from scratch and from a checkpoint"
        )
    return wanted


_SIDES = ("from scratch", "from the checkpoint")


def candidate_runs(cells: Sequence[CrossoverCell], target: str, spread: float) -> list[CrossoverRun]:
    """The runs of the target that could be made: another seed, an extension, or the first run at a size.

    Args:
      spread: the `CrossoverCell.run_variance` that a crossover is given which no run has shown yet.
    """
    found: list[CrossoverRun] = []
    for cell in cells:
        if cell.language == target:
            mean, variance = crossover_posterior(cells, cell)
            found += _runs_at(cell, mean, float(np.sqrt(variance)), spread)
    return found


def _runs_at(cell: CrossoverCell, mean: float, deviation: float, spread: float) -> Iterator[CrossoverRun]:
    """The runs that could be made at a cell; mean, deviation: of its log tokens."""
    where, shared, observed = f"{cell.language} at {cell.scale}", min(cell.last_tokens), cell.log_tokens
    if cell.status == "measured":
        tokens = float(np.exp(mean)) * CROSSOVER_MARGIN
        flops = training_flops(cell.params, tokens)
        for side, name in enumerate(_SIDES):
            repeated = replace(cell, runs=(cell.runs[0] + (side == 0), cell.runs[1] + (side == 1)))
            yield CrossoverRun(f"{where} {name} again, another seed", repeated, tokens, flops, 1.0)
        return
    shown = replace(
        cell,
        status="measured",
        log_tokens=mean,
        run_variance=spread if observed is None else cell.run_variance,
        extrapolation=0.0,
        runs=(max(cell.runs[0], 1), max(cell.runs[1], 1)),
    )
    if cell.status == "bound" and observed is not None and observed < np.log(max(shared, 1.0)):
        tokens = float(np.exp(observed)) * CROSSOVER_MARGIN
        flops = 2 * training_flops(cell.params, tokens)
        name = f"{where} {' and '.join(_SIDES)} again, evaluated from the first steps on"
        yield CrossoverRun(name, shown, tokens, flops, float(ndtr(np.log(CROSSOVER_MARGIN) / deviation)))
        return
    times = EXTENSIONS if observed is not None else (CROSSOVER_MARGIN, *EXTENSIONS[1:])
    start = float(np.exp(mean)) if observed is None else shared
    for tokens in (start * multiple for multiple in times):
        flops = sum(training_flops(cell.params, max(tokens - reach, 0.0)) for reach in cell.last_tokens)
        if flops > 0:
            sides = [name for name, reach in zip(_SIDES, cell.last_tokens, strict=True) if reach < tokens]
            name = f"{where}, {'further ' if shared else ''}{' and '.join(sides)}, to {count(tokens)} tokens"
            after = replace(shown, last_tokens=(tokens, tokens))
            yield CrossoverRun(name, after, tokens, flops, chance_to_show(mean, deviation, tokens, shared))


def chance_to_show(mean: float, deviation: float, tokens: float, shared: float) -> float:
    """Probability that a crossover lies below `tokens`, given that it lies above the `shared` tokens of both runs.

    Args:
      mean, deviation: of the normal distribution of its log tokens.
    """
    below = float(ndtr((np.log(tokens) - mean) / deviation))
    before = float(ndtr((np.log(shared) - mean) / deviation)) if shared > 0 else 0.0
    return max(below - before, 0.0) / max(1 - before, 1e-9)


def _replaced(cells: Sequence[CrossoverCell], changed: CrossoverCell) -> list[CrossoverCell]:
    """The cells with one of them replaced by its changed version."""
    return [changed if cell_key(cell) == cell_key(changed) else cell for cell in cells]


def _interval_ratio(variance: float) -> float:
    """Upper over lower end of the 90% interval of a crossover's tokens, from the variance of their logarithm."""
    return float(np.exp(min(2 * Z90 * np.sqrt(variance), 50.0)))


def _answer(
    target: str,
    wanted: CrossoverCell,
    rows: Sequence[dict[str, Any]],
    level: float,
    variances: tuple[float, float],
    results: Results,
    sure: CrossoverRun | None,
) -> Answer:
    """The answer in words.

    Args:
      rows: of the chosen runs. level: log tokens of the crossover. variances: of these, now and after all runs.
      sure: the cheapest run that shows the crossover almost surely, if any.
    """
    before, last = variances
    where = f"{target} at {count(wanted.params)} parameters"
    first = rows[0]
    low, high = (float(np.exp(level + sign * Z90 * np.sqrt(before))) for sign in (-1, 1))
    if wanted.status == "measured":
        now = (
            f"The crossover of {where} is known to a factor of {first['interval_before']:.2f} "
            f"({count(low)} to {count(high)} tokens)"
        )
    elif wanted.status == "bound":
        side = (
            "ahead"
            if wanted.log_tokens is not None and wanted.log_tokens > np.log(min(wanted.last_tokens))
            else "behind"
        )
        now = (
            f"The crossover of {where} is not within the data: continuing is still {side} at "
            f"{count(min(wanted.last_tokens))} tokens; by the trend of the gap it lies within {count(low)} to "
            f"{count(high)}"
        )
    else:
        now = f"{where} was not both trained from scratch and continued"
        if any(row["status"] != "missing" for row in results.crossover.table):
            now += f"; by the study's other crossovers it lies within {count(low)} to {count(high)}"
    shows = (
        ""
        if first["chance_to_show"] > 0.99
        else f", which shows it with a chance of {first['chance_to_show']:.0%}"
    )
    supposed = "" if all(row["chance_to_show"] > 0.99 for row in rows) else " if each shows its crossover"
    text = (
        f"{now}. Run {first['run']} next ({count(first['flops'])} FLOPs){shows}: the factor falls to "
        f"{first['interval_after']:.2f}; all {len(rows)} below, {count(rows[-1]['flops_so_far'])} FLOPs, "
        f"bring it to {_interval_ratio(last):.2f}{supposed}."
    )
    reasons = [
        "the factor is the upper end of its 90% interval over the lower, expected after the run by its chance to show "
        "the crossover; every row supposes that those above it showed theirs",
        "noise of a curve averages over its runs; other sizes tell by a power law in N near the published exponent",
        "priced at 6ND at a constant rate; a run that goes further pays for its new tokens alone; greedy, per FLOP",
    ]
    if sure is not None:
        reasons.insert(
            0,
            f"at that size itself, {sure.name.partition(', ')[2]}, shows it with a chance of {sure.chance:.0%}, for "
            f"{count(sure.flops)} FLOPs",
        )
    if any(row["chance_to_show"] < 0.99 for row in rows):
        reasons.append(
            "chances take the gap to go on falling as it last did, and the run picked is one that promises much: of 36 "
            "picked on planted studies, told 58% on average, 42% showed the crossover"
        )
    if not any(row["continued_runs"] for row in results.crossover.table):
        reasons.append(
            "the study continued no checkpoint: a multilingual one is needed, and its price is not counted"
        )
    return Answer(text, tuple(rows), BASIS_STUDY, tuple(reasons))
