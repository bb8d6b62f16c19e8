"""Fills in the columns that an imported table lacks and that follow from its others: shares, phases, steps.

Columns that do not follow get the defaults of `observations.Observation`, where it has one. Both are reported as notes.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from mscale import languages, observations
from mscale.errors import MscaleError, nearest
from mscale.observations import COLUMNS, DERIVED, IMPORT_DEFAULTS, NULLABLE, Row

# Fractions of a run's highest learning rate: at or above the first it is the plateau, at or below the second decayed.
_PLATEAU_RATE, _COOLED_RATE = 0.999, 0.2
# A run with fewer tokens a parameter is assumed to be counted in another unit.
_MIN_TOKENS_PER_PARAMETER = 1e-3
_SEPARATORS = re.compile(r"\s*[+,;/|&\s]\s*")


@dataclass(frozen=True)
class SourceRow:
    """A row as the file gives it, and its place in the file for messages."""

    where: str
    row: Row


def fill_missing_columns(found: Sequence[SourceRow], source: str) -> tuple[list[Row], list[str]]:
    """Returns the rows with all columns of observations, in the same order, and notes on what was assumed.

    Raises:
      MscaleError: a required column is neither given nor follows from others.
    """
    notes: list[str] = []
    rows = [dict(each.row) for each in found]
    _steps(rows, found, source, notes)
    _mixtures(rows, found, source, notes)
    _phases(rows, source, notes)
    filled = [name for name in IMPORT_DEFAULTS if any(name not in row for row in rows)]
    plain = [name for name in filled if name not in ("study", "tag", "init", "init_tokens", "split")]
    if any("target_unique" not in row for row in rows):
        notes.append("no unique tokens given: data taken as never repeated")
    scales = observations.scale_names(row["params"] for row in rows)
    for row in rows:
        for name in NULLABLE:
            row.setdefault(name, None)
        for name, value in IMPORT_DEFAULTS.items():
            row.setdefault(name, value)
        row.setdefault("scale", scales[row["params"]])
        for name, of_row in DERIVED.items():
            row.setdefault(name, of_row(row))
    if plain:
        notes.append(
            "taken, as the file says nothing: " + ", ".join(f"{n} {IMPORT_DEFAULTS[n]}" for n in plain)
        )
    complete_rows = [{name: row[name] for name in COLUMNS} for row in rows]
    for each, row in zip(found, complete_rows, strict=True):
        observations.validate(row, where=each.where)
    return complete_rows, notes


def _steps(rows: list[Row], found: Sequence[SourceRow], source: str, notes: list[str]) -> None:
    """Fills in steps, and checks that tokens grow with the step in every run and are counted one by one."""
    for row, each in zip(rows, found, strict=True):
        if "tokens" not in row:
            raise MscaleError(
                f"{source}: nothing says tokens, those of all languages that the run had seen; map a column "
                "(--column tokens=THEIRS), or from the step: --column tokens=STEPS*1048576, with batch × sequence"
            )
        for name in ("params", "tokens"):
            if row[name] < (name == "params"):
                raise MscaleError(f"{each.where}: {name} is {row[name]}, expected a positive count")
    if any("step" not in row for row in rows):
        notes.append("no steps given: tokens stand in for them")
        for row in rows:
            row.setdefault("step", row["tokens"])
    last: dict[str, tuple[int, int]] = {}
    for row in sorted(rows, key=lambda row: row["step"]):
        step, tokens = last.get(row["run"], (-1, -1))
        if row["tokens"] < tokens or (row["tokens"] == tokens and row["step"] > step):
            raise MscaleError(
                f"{source}: run {row['run']!r} has {tokens:,} tokens at step {step} and {row['tokens']:,} at step "
                f"{row['step']}: tokens must grow. A counter that began anew on resuming? Count from the step: "
                "--column tokens=STEPS*1048576, with batch × sequence"
            )
        last[row["run"]] = row["step"], row["tokens"]
    sizes = {row["run"]: row["params"] for row in rows}
    for run, (_, tokens) in last.items():
        if tokens < _MIN_TOKENS_PER_PARAMETER * sizes[run]:
            raise MscaleError(
                f"{source}: run {run!r} of {sizes[run]:,} parameters ends at {tokens:,} tokens: is that another "
                "unit? In billions: --column tokens=THEIRS*1e9"
            )


def _mixtures(rows: list[Row], found: Sequence[SourceRow], source: str, notes: list[str]) -> None:
    """Fills in `languages` and `target_tokens` from the mixture, such as ``en``, ``en+es`` or ``en=0.7 es=0.3``."""
    evaluated = {row["language"] for row in rows}
    parsed: dict[str, dict[str, float] | None] = {}
    halves: set[str] = set()
    for row, each in zip(rows, found, strict=True):
        if "mixture" not in row and "languages" not in row:
            raise MscaleError(
                f"{source}: nothing says mixture, what a run trained on; map a column to it (--column mixture=THEIRS) "
                "with cells such as en, en+es or en=0.7+es=0.3"
            )
        text = str(row.get("languages", row.get("mixture")))
        if text not in parsed:
            parsed[text] = mixture_shares(text, evaluated, each.where, "target_tokens" in row)
        shares = parsed[text]
        row.setdefault("mixture", text)
        if shares is None:
            row.setdefault("languages", text)
            continue
        row["languages"] = "+".join(shares)
        if "target_tokens" in row:
            continue
        share = shares.get(row["language"], 0.0)
        if share != share:
            if len(shares) > 2:
                raise MscaleError(
                    f"{each.where}: {text!r} names {len(shares)} languages and no shares: write en=0.5+es=0.3+fr=0.2, "
                    "or map a column to target_tokens"
                )
            halves.add(row["languages"])
            share = 0.5
        row["target_tokens"] = round(row["tokens"] * share)
    if halves:
        pairs = sorted(halves)
        shown = ", ".join(pairs[:3]) + (f" and {len(pairs) - 3} more" if len(pairs) > 3 else "")
        notes.append(f"two languages without shares taken as half and half: {shown}")


def mixture_shares(
    text: str, evaluated: set[str], where: str, tokens_given: bool = False
) -> dict[str, float] | None:
    """A mixture's languages with their shares, which sum to one; NaN where it names several without shares.

    Args:
      evaluated: languages that the table has losses on. `en-es` is two languages where both are among them.
      tokens_given: the row has its own `target_tokens`; then a name that lists no languages is allowed and gives
        None.

    Raises:
      MscaleError: a name that is not a language, or shares that are not positive numbers.
    """
    text_without_brackets = re.sub(r"\s*([:=])\s*", r"\1", re.sub(r"[\[\](){}'\"]", " ", text)).strip()
    parts = [part for part in _SEPARATORS.split(text_without_brackets) if part]
    weighted = [re.fullmatch(r"(.+?)[:=]([0-9.eE+-]+)%?", part) for part in parts]
    if parts and all(weighted):
        weights = {}
        for match in weighted:
            assert match is not None
            try:
                weights[match[1]] = float(match[2])
            except ValueError:
                weights[match[1]] = -1.0
        if len(weights) < len(parts) or not all(value > 0 for value in weights.values()):
            raise MscaleError(f"{where}: mixture {text!r}: expected a positive share of each language, once")
        return {name: value / sum(weights.values()) for name, value in weights.items()}
    known = evaluated | set(languages.codes()) | set(languages.CODE_ALIASES)
    if len(parts) == 1 and parts[0] not in evaluated:
        for mark in "-_":
            if mark in parts[0] and set(parts[0].split(mark)) <= evaluated:
                parts = parts[0].split(mark)
    unknown = [part for part in parts if part not in known]
    if unknown or len(set(parts)) < len(parts) or not parts:
        if tokens_given:
            return None
        what = (
            f"{unknown[0]!r} is no language of the table{nearest(unknown[0], evaluated)}"
            if unknown
            else "it names no language, or one twice"
        )
        raise MscaleError(
            f"{where}: mixture {text!r}: {what}; expected languages such as en, en+es or en=0.7+es=0.3 (map a column "
            "to target_tokens where a mixture has a name of its own)"
        )
    return dict.fromkeys(parts, 1.0 if len(parts) == 1 else float("nan"))


def _phases(rows: list[Row], source: str, notes: list[str]) -> None:
    """Fills in the phase from the learning rates of the run."""
    without_phase = [row for row in rows if "phase" not in row]
    if not without_phase:
        return
    if any(row.get("lr") is None for row in without_phase):
        raise MscaleError(
            f"{source}: nothing says phase: whether a model was at a constant rate (stable) or cooled (end). Losses of "
            "the two are not compared, the second being lower by as much as the effects looked for. Give --constant "
            "phase=stable (or end) where all rows are alike, a column of phases, or one of rates (--column lr=THEIRS)"
        )
    by_run: dict[str, dict[int, float]] = {}
    for row in without_phase:
        by_run.setdefault(row["run"], {})[row["step"]] = row["lr"]
    phases = {run: phases_from_rates(run, rates, source) for run, rates in by_run.items()}
    counts: dict[str, int] = {}
    for row in without_phase:
        row["phase"] = phases[row["run"]][row["step"]]
        counts[row["phase"]] = counts.get(row["phase"], 0) + 1
    shown = ", ".join(f"{counts[name]:,} {name}" for name in observations.PHASES if name in counts)
    notes.append(f"phases read off the rate: {shown} rows")


def phases_from_rates(run: str, rates: Mapping[int, Any], source: str) -> dict[int, str]:
    """Step to phase. The plateau (stable) is where two or more evaluations are at the run's highest rate."""
    steps = sorted(rates)
    highest = max(rates.values())
    plateau = [step for step in steps if rates[step] >= _PLATEAU_RATE * highest]
    if highest > 0 and len(steps) == 1:
        raise MscaleError(
            f"{source}: run {run!r} was evaluated once, at rate {highest:g}: whether that is constant or cooled the "
            "rate does not tell; give its phase"
        )
    found = {}
    for step in steps:
        if highest == 0:
            found[step] = "end"
        elif step < plateau[0]:
            found[step] = "warmup"
        elif step in plateau and len(plateau) > 1:
            found[step] = "stable"
        else:
            found[step] = "end" if step == steps[-1] and rates[step] <= _COOLED_RATE * highest else "decay"
    return found
