"""Transfer counted in bytes and in content: equal tokens are not equal text, since fertility differs.

A token of the source is worth τ tokens of the target; per unit of content it is worth τ·c_t/c_s, c the content of
a token (bytes, or bytes over the byte premium of parallel text: Arnett et al. 2024), and the score of that is
2τ/(1+τ), what a run with equal content of both would have (ATLAS.md's law, without repetition).
"""

from collections.abc import Mapping

import numpy as np
import pandas as pd

from analysis.text import few
from analysis.transfer.matrix import effective_transfer
from mscale.errors import MscaleError

# Scores fall without limit as τ nears −1, and beyond it equal content would never reach the loss at all: below
# this a score is a bound.
LEAST_SCORE = -9.0
UNITS = ("tokens", "bytes", "content")


def in_units(matrix: pd.DataFrame, content_per_token: Mapping[str, float]) -> pd.DataFrame:
    """The matrix for equal bytes or equal content in place of equal tokens; bounds stay bounds.

    Args:
      content_per_token: c of each language: bytes per token, divided by the language's byte premium for
        content-matched scores.

    Raises:
      MscaleError: a language of the matrix has no entry.
    """
    for language in sorted(set(matrix["target"]) | set(matrix["source"])):
        if not content_per_token.get(language, 0) > 0:
            raise MscaleError(
                f"no content per token for {language!r}: give bytes per token (and byte premium)"
            )
    ratio = matrix["target"].map(content_per_token) / matrix["source"].map(content_per_token)
    changed = matrix.copy()
    for column in ("score", "low", "high"):
        tau = effective_transfer(matrix[column].astype(float)) * ratio
        edge = effective_transfer(LEAST_SCORE)
        with np.errstate(divide="ignore", invalid="ignore"):
            changed[column] = np.where(tau > edge, 2 * tau / (1 + tau), np.where(tau.isna(), np.nan, -np.inf))
    changed["tau"] = matrix["tau"] * ratio
    beyond = np.isneginf(changed["score"])
    # A lower bound that far down says nothing any more.
    empty = beyond & (changed["bound"] == "at least")
    changed.loc[beyond & ~empty, ["status", "bound"]] = ["bound", "at most"]
    changed.loc[empty, ["status", "bound"]] = ["missing", ""]
    changed.loc[empty, "reason"] = f"in these units the bound lies below {LEAST_SCORE:g}: it says nothing"
    changed.loc[beyond & ~empty, "score"] = LEAST_SCORE
    changed.loc[empty, "score"] = np.nan
    changed["low"] = changed["low"].where(~np.isneginf(changed["low"]))
    changed["high"] = changed["high"].replace(-np.inf, LEAST_SCORE)
    return changed


def bytes_per_token(observations: pd.DataFrame) -> dict[str, float]:
    """UTF-8 bytes per token of every evaluated language, from its evaluation sets.

    Where a table does not count those, from losses given in both units: nats per token / (ln 2 · bits per byte).
    """
    both = observations[(observations["bits_per_byte"] > 0) & (observations["loss"] > 0)]
    ratio = (both["loss"] / (np.log(2) * both["bits_per_byte"])).groupby(both["language"]).median()
    rows = observations[observations["eval_tokens"] > 0]
    sums = rows.groupby("language")[["eval_bytes", "eval_tokens"]].sum()
    counted = sums["eval_bytes"] / sums["eval_tokens"]
    ratio = counted[counted > 0].combine_first(ratio)
    return {str(name): float(value) for name, value in ratio.items()}


def all_units(
    matrix: pd.DataFrame,
    observations: pd.DataFrame,
    premiums: Mapping[str, float] | None,
    fertility: Mapping[str, float] | None = None,
) -> tuple[dict[str, pd.DataFrame], dict[str, str]]:
    """The matrix in bytes and content-matched, where the study tells enough; and the reason where not.

    Args:
      premiums: byte premium of each language, its UTF-8 bytes over those of one reference for the same content.
      fertility: bytes per token of each language, in place of those the observations tell.
    """
    languages = set(matrix["target"]) | set(matrix["source"])
    content = {**bytes_per_token(observations), **(fertility or {})}
    lacking = sorted(languages - set(content))
    if lacking:
        why = f"the observations hold neither eval_bytes and eval_tokens nor bits_per_byte of {few(lacking)}"
        return {}, {"bytes": why, "content": why}
    made, reasons = {"bytes": in_units(matrix, content)}, {}
    lacking = sorted(name for name in languages if not (premiums or {}).get(name, 0) > 0)
    if lacking:
        reasons["content"] = f"no byte premium of {few(lacking)}: give parallel text (mscale fit --parallel)"
    else:
        matched = {name: content[name] / (premiums or {})[name] for name in languages}
        made["content"] = in_units(matrix, matched)
    return made, reasons
