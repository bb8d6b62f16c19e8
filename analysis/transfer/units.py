"""Transfer scores per byte and per content, since a token is not the same amount of text in every language.

A token of the source is worth τ tokens of the target. Per unit of content it is worth τ' = τ·c_t/c_s, where c is the
content of a token: bytes, or bytes divided by the byte premium of parallel text (Arnett et al. 2024). The score is then
2τ'/(1 + τ'), that of a run with equal content of both languages (ATLAS law without repeated data).
"""

from collections.abc import Mapping

import numpy as np
import pandas as pd

from analysis.tables.remarks import Remark
from analysis.transfer.matrix import effective_transfer
from mscale.errors import MscaleError

# The score goes to −∞ as τ goes to −1, and below −1 a run with equal content never reaches the loss: scores below this
# become bounds.
MIN_SCORE = -9.0


def convert_units(matrix: pd.DataFrame, content_per_token: Mapping[str, float]) -> pd.DataFrame:
    """Converts scores for equal tokens into scores for equal bytes or equal content; bounds stay bounds.

    Args:
      content_per_token: c of each language: bytes per token; for content divided by the byte premium.

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
        smallest = effective_transfer(MIN_SCORE)
        with np.errstate(divide="ignore", invalid="ignore"):
            changed[column] = np.where(
                tau > smallest, 2 * tau / (1 + tau), np.where(tau.isna(), np.nan, -np.inf)
            )
    changed["tau"] = matrix["tau"] * ratio
    beyond = np.isneginf(changed["score"])
    # A lower bound below the limit holds no information.
    empty = beyond & (changed["bound"] == "at least")
    changed.loc[beyond & ~empty, ["status", "bound"]] = ["bound", "at most"]
    changed.loc[empty, ["status", "bound"]] = ["missing", ""]
    below = pd.Series([Remark("below_the_bound", numbers=(MIN_SCORE,))] * len(changed), index=changed.index)
    changed["reason"] = changed["reason"].where(~empty, below)
    changed.loc[beyond & ~empty, "score"] = MIN_SCORE
    changed.loc[empty, "score"] = np.nan
    changed["low"] = changed["low"].where(~np.isneginf(changed["low"]))
    changed["high"] = changed["high"].replace(-np.inf, MIN_SCORE)
    return changed


def bytes_per_token(observations: pd.DataFrame) -> dict[str, float]:
    """UTF-8 bytes per token of every evaluated language, from the counts of its evaluation sets.

    Without counts it is the ratio of the losses in both units: nats per token / (ln 2 · bits per byte).
    """
    both = observations[(observations["bits_per_byte"] > 0) & (observations["loss"] > 0)]
    ratio = (both["loss"] / (np.log(2) * both["bits_per_byte"])).groupby(both["language"]).median()
    rows = observations[observations["eval_tokens"] > 0]
    sums = rows.groupby("language")[["eval_bytes", "eval_tokens"]].sum()
    counted = sums["eval_bytes"] / sums["eval_tokens"]
    ratio = counted[counted > 0].combine_first(ratio)
    return {str(name): float(value) for name, value in ratio.items()}


def scores_in_all_units(
    matrix: pd.DataFrame,
    observations: pd.DataFrame,
    premiums: Mapping[str, float] | None,
    fertility: Mapping[str, float] | None = None,
) -> tuple[dict[str, pd.DataFrame], dict[str, Remark]]:
    """The matrix per byte and per content, by unit, and for each unit that is unknown the reason.

    Args:
      premiums: byte premium of each language: its UTF-8 bytes over those of a reference language for the same content.
      fertility: bytes per token of languages, in place of those from the observations.
    """
    languages = set(matrix["target"]) | set(matrix["source"])
    content = {**bytes_per_token(observations), **(fertility or {})}
    lacking = sorted(languages - set(content))
    if lacking:
        why = Remark("no_bytes", names=tuple(lacking))
        return {}, {"bytes": why, "content": why}
    converted, reasons = {"bytes": convert_units(matrix, content)}, {}
    lacking = sorted(name for name in languages if not (premiums or {}).get(name, 0) > 0)
    if lacking:
        reasons["content"] = Remark("no_byte_premium", names=tuple(lacking))
    else:
        matched = {name: content[name] / (premiums or {})[name] for name in languages}
        converted["content"] = convert_units(matrix, matched)
    return converted, reasons
