"""Observations and exposure as pandas tables: read, checked, completed.

The columns are those of `mscale.observations`. A table from elsewhere needs only those of `REQUIRED`; notes tell which
others were filled in and how, and exclusions count the rows that were left out.
"""

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from analysis.tables.checks import drop_duplicates, drop_infinite, numeric_column, numpy_column, refuse_rows
from analysis.tables.remarks import Remark
from mscale.errors import MscaleError, nearest
from mscale.observations import (
    COLUMNS,
    DERIVED,
    EXPOSURE_COLUMNS,
    IMPORT_DEFAULTS,
    NULLABLE,
    PHASES,
    scale_names,
)

REQUIRED = ("run", "params", "languages", "tokens", "phase", "language", "loss")
_NUMBERS = [name for name, kind in COLUMNS.items() if kind is not str]
# Tokens per parameter; below it one of the two columns is probably in another unit.
_FEW_TOKENS_PER_PARAMETER = 1e-3


@dataclass(frozen=True)
class StudyTables:
    """The tables of a study: observations, exposure, planted truth (None if there is none), notes and exclusions."""

    observations: pd.DataFrame
    exposure: pd.DataFrame
    truth: dict | None = None
    notes: tuple[Remark, ...] = ()
    exclusions: tuple[Remark, ...] = field(default=())


def read_table(path: str | Path) -> pd.DataFrame:
    """Reads a table from a .parquet, .csv or .jsonl file; rows are numbered from 1, as errors name them.

    Raises:
      MscaleError: no such file, another extension, or a damaged file.
    """
    path = Path(path)
    if not path.exists():
        raise MscaleError(f"{path}: no such table; run `mscale sweep` first, or check the path")
    readers: dict[str, Any] = {
        ".parquet": pd.read_parquet,
        ".csv": lambda name: pd.read_csv(name, dtype={"scale": str, "run": str, "group": str}),
        ".jsonl": lambda name: pd.read_json(name, lines=True, dtype={"scale": str}),
    }
    if path.suffix not in readers:
        raise MscaleError(f"{path}: unknown kind of table {path.suffix!r}; expected .parquet, .csv or .jsonl")
    try:
        # keep_default_na stays on; `_as_text` turns empty language cells back into the code `nan` (Min Nan).
        table = readers[path.suffix](path)
    except Exception as error:  # pandas and pyarrow raise many kinds; all mean the same to the user
        raise MscaleError(f"{path}: this table cannot be read ({error}); make it again") from error
    return table.set_index(pd.RangeIndex(1, len(table) + 1))


def table_file(folder: Path, name: str) -> Path | None:
    """The file of a table in a folder, Parquet before CSV before JSON lines; None where there is none."""
    files = (folder / f"{name}{kind}" for kind in (".parquet", ".csv", ".jsonl"))
    return next((file for file in files if file.exists()), None)


def observations_file(path: Path) -> Path:
    """The observations of a study's folder; a file is returned unchanged.

    Raises:
      MscaleError: the folder has none.
    """
    found = table_file(path, "observations") if path.is_dir() else path
    if found is None:
        raise MscaleError(f"{path}: no observations.parquet or observations.csv; run `mscale sweep` first")
    return found


def read_study(*paths: str | Path, truth: str | Path | None = None) -> StudyTables:
    """Reads a study's folder (observations.parquet or .csv, exposure beside it) or an observations file.

    Args:
      paths: folders that `mscale sweep` collects into, or observations files. Several are read as one study; rows that
        two of them share count once.
      truth: a `truth.json` of a generated corpus; the one beside the first observations where not given.

    Raises:
      MscaleError: nothing to read, a table that breaks the contract, or rows of one run that differ between folders.
    """
    if len(paths) > 1:
        parts = [read_study(paths[0], truth=truth), *map(read_study, paths[1:])]
        where = " and ".join(map(str, paths))
        rows = pd.concat([part.observations for part in parts], ignore_index=True)
        observations, notes = drop_duplicates(rows, where)
        exposure = pd.concat([part.exposure for part in parts]).drop_duplicates(ignore_index=True)
        return StudyTables(
            observations,
            exposure,
            parts[0].truth,
            tuple(dict.fromkeys([*(note for part in parts for note in part.notes), *notes])),
            tuple(exclusion for part in parts for exclusion in part.exclusions),
        )
    (path,) = paths
    path = observations_file(Path(path))
    folder = path.parent
    observations, notes, exclusions = validate_observations(read_table(path), str(path))
    exposure_path = table_file(folder, "exposure")
    if exposure_path is not None:
        exposure = validate_exposure(read_table(exposure_path), str(exposure_path))
    else:
        exposure = exposure_of(observations)
        notes.append(Remark("no_exposure" if exposure.empty else "exposure_from_observations"))
    truth_path = Path(truth) if truth is not None else folder / "truth.json"
    planted = None
    if truth_path.exists():
        planted = json.loads(truth_path.read_text(encoding="utf-8"))
    elif truth is not None:
        raise MscaleError(f"{truth_path}: no such truth.json")
    return StudyTables(observations, exposure, planted, tuple(notes), tuple(exclusions))


def validate_observations(
    frame: pd.DataFrame, source: str = "observations"
) -> tuple[pd.DataFrame, list[Remark], list[Remark]]:
    """Checks an observations table and completes the columns a table from elsewhere may leave out.

    Returns:
      The table with all of `mscale.observations.COLUMNS`; notes on what was filled in or looks mixed; and exclusions.

    Raises:
      MscaleError: a required column is missing, or a value is not what its column holds.
    """
    frame, notes = frame.copy(), list[Remark]()
    missing = [name for name in REQUIRED if name not in frame.columns]
    if missing:
        hints = "".join(nearest(name, frame.columns) for name in missing[:1])
        raise MscaleError(
            f"{source}: column {missing[0]!r} is missing{hints} (missing in all: {', '.join(missing)}; needed at "
            f"least: {', '.join(REQUIRED)}). `mscale sweep import` makes such a table of one with other columns"
        )
    if frame.empty:
        raise MscaleError(f"{source}: the table has no rows; run `mscale sweep` first")
    for name in (column for column in _NUMBERS if column in frame.columns):
        frame[name] = numeric_column(frame, name, source)
    if "scale" not in frame.columns:
        sizes = frame["params"].where(frame["params"].between(1, np.inf, inclusive="left"), 1).astype("int64")
        frame["scale"] = sizes.map(scale_names(sizes))
        notes.append(Remark("scale_from_parameters"))
    for name in ("run", "scale", "languages", "language", "phase"):
        frame[name] = _as_text(frame[name])
    refuse_rows(frame, ~frame["phase"].isin(PHASES), "phase", f"one of {', '.join(PHASES)}", source)
    for name, least in (("params", 1), ("tokens", 0)):
        wrong = ~frame[name].between(least, np.inf, inclusive="left")
        refuse_rows(frame, wrong, name, "a positive number", source)
    notes += _fill_missing_columns(frame, source)
    _refuse_impossible(frame, source)
    frame, exclusions = drop_infinite(frame, "loss")
    frame, duplicates = drop_duplicates(frame, source)
    notes += duplicates
    notes += _comparability_notes(frame)
    order = [*COLUMNS, *(name for name in frame.columns if name not in COLUMNS)]
    return frame[order].reset_index(drop=True), notes, exclusions


def validate_exposure(frame: pd.DataFrame, source: str = "exposure") -> pd.DataFrame:
    """The exposure table with language and run as text; raises MscaleError naming the first missing column."""
    missing = [name for name in EXPOSURE_COLUMNS if name not in frame.columns]
    if missing:
        raise MscaleError(
            f"{source}: column {missing[0]!r} is missing; expected {' '.join(EXPOSURE_COLUMNS)}"
        )
    frame = frame.copy()
    for name in ("run", "language"):
        frame[name] = _as_text(frame[name])
    for name in ("step", "tokens", "unique_tokens"):
        frame[name] = numpy_column(frame[name])
    return frame


def exposure_of(observations: pd.DataFrame) -> pd.DataFrame:
    """The exposure derived from observations, if every run is evaluated on all languages of its mixture; else no rows.

    Returns: columns run step language tokens unique_tokens, as the companion table has them.
    """
    rows = observations[observations["tokens"] > 0]
    key = ["run", "step"]
    trained = rows[rows["target_tokens"] > 0].drop_duplicates([*key, "language"])
    steps = rows.drop_duplicates(key).set_index(key)
    evaluated = trained.groupby(key).size().reindex(steps.index).fillna(0)
    if not (evaluated == steps["languages"].str.split("+").map(len)).all():
        trained = trained.head(0)
    table = trained[[*key, "language", "target_tokens", "target_unique"]]
    return table.set_axis(list(EXPOSURE_COLUMNS), axis=1).reset_index(drop=True)


def _as_text(column: pd.Series) -> pd.Series:
    """Values as text. Empty cells become "nan": the language code of Min Nan, which pandas reads as missing."""
    if column.dtype == object:  # 1, True and "1" may stand in one column
        return column.map(lambda value: "nan" if value is None or value != value else str(value))
    codes, values = pd.factorize(column)
    words = np.array([*map(str, values), "nan"], dtype=object)
    return pd.Series(words[codes], index=column.index, name=column.name)


def _fill_missing_columns(frame: pd.DataFrame, source: str) -> list[Remark]:
    """Fills, in place, the columns of the contract that the table lacks; returns notes on which and how.

    Raises:
      MscaleError: `target_tokens` is missing and cannot be derived, because a run has three or more languages.
    """
    notes: list[Remark] = []
    if "target_tokens" not in frame.columns:
        trained = frame["languages"].str.split("+")
        if (trained.map(len) > 2).any():
            most = frame.loc[trained.map(len) > 2, "languages"].iloc[0]
            raise MscaleError(
                f"{source}: column 'target_tokens' is missing; without it only runs of one language and of two in "
                f"halves can be read, and there is a run of {most}: add the tokens of the evaluated language that "
                "the run has seen"
            )
        inside = [language in names for language, names in zip(frame["language"], trained, strict=True)]
        frame["target_tokens"] = np.where(inside, frame["tokens"] / trained.map(len), 0)
        notes.append(Remark("halves"))
    fills: dict[str, Any] = {
        **IMPORT_DEFAULTS,
        **DERIVED,
        **dict.fromkeys(NULLABLE, np.nan),
        "loss_se": 0.0,
        "eval_bytes": 0,
    }
    filled = [name for name in COLUMNS if name not in frame.columns]
    for name in filled:
        frame[name] = fills[name](frame) if callable(fills[name]) else fills[name]
    if filled:
        notes.append(Remark("filled_columns", names=tuple(filled)))
    frame["init"] = _as_text(frame["init"].fillna("scratch")).replace("", "scratch")
    frame["group"] = _as_text(frame["group"].fillna(frame["run"]))
    return notes


def _refuse_impossible(frame: pd.DataFrame, source: str) -> None:
    """Raises MscaleError for negative losses, more tokens of a language than of all, and token counts that decrease."""
    expected = (
        "nats per token, never negative; a unigram-normalised loss has a column of its own, "
        "'unigram_normalized_loss'"
    )
    refuse_rows(frame, frame["loss"] < 0, "loss", expected, source)
    expected = "0 to the row's tokens: those of the evaluated language among them"
    wrong = ~frame["target_tokens"].between(0, frame["tokens"] * 1.000001)
    refuse_rows(frame, wrong, "target_tokens", expected, source)
    ordered = frame.sort_values(["run", "step", "tokens"], kind="stable")
    fell = (ordered["tokens"].diff() < 0) & (ordered["run"] == ordered["run"].shift())
    if fell.any():
        at = int(np.flatnonzero(fell.to_numpy())[0])
        before, after = ordered.iloc[at - 1], ordered.iloc[at]
        raise MscaleError(
            f"{source}: run {after['run']!r} has {before['tokens']:,.0f} tokens at step {before['step']:,.0f} and "
            f"{after['tokens']:,.0f} at step {after['step']:,.0f}: tokens must not fall. A counter that began anew on "
            "resuming? Count step × batch × sequence"
        )


def _comparability_notes(frame: pd.DataFrame) -> list[Remark]:
    """Notes on several vocabularies, evaluation sets of different sizes, and implausible units."""
    notes = []
    vocabularies = frame["vocabulary"].nunique()
    if vocabularies > 1:
        notes.append(Remark("vocabularies", numbers=(vocabularies,)))
    sizes = frame.groupby(["vocabulary", "language", "split"])["eval_tokens"].nunique()
    if (sizes > 1).any():
        language = str(sizes[sizes > 1].index[0][1])
        notes.append(Remark("evaluation_sizes", names=(language,), numbers=(int(sizes.max()),)))
    longest = frame.groupby("run")[["tokens", "params"]].max()
    short = longest[longest["tokens"] < _FEW_TOKENS_PER_PARAMETER * longest["params"]]
    if len(short):
        numbers = float(short["tokens"].iloc[0]), float(short["params"].iloc[0])
        notes.append(Remark("few_tokens", names=(str(short.index[0]),), numbers=numbers))
    return notes
