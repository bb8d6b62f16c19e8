"""Evaluation of every language in one compiled program, on fixed held-out whole documents.

Documents of a language are concatenated (each with its EOS), cut into windows of S tokens and padded at the end.
The model sees a window as in training, after a BOS. The device returns the sum of nats of each window; counting is
exact, on the host. EOS counts as a token, not as a byte; bytes are those of the documents' text.
"""

import functools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from mscale.data.store import Store
from mscale.errors import MscaleError
from mscale.models import loss
from mscale.models.decoder import ModelConfig, Params
from mscale.models.loss import shift_right
from mscale.models.partitioning import constrain


@dataclass(frozen=True)
class LanguageWindows:
    """The windows of one language.

    Attributes:
      name: its code.
      first, last: its windows are numbers ``first`` to ``last - 1`` of the evaluation.
      tokens: predicted tokens, EOS included.
      bytes: UTF-8 bytes of their text.
      unigram: nats per token of the unigram model of the train part with add-one smoothing.
    """

    name: str
    first: int
    last: int
    tokens: int
    bytes: int
    unigram: float


@dataclass(frozen=True)
class HeldOut:
    """Evaluation windows of all languages, on the device, in batches.

    Attributes:
      languages: which windows belong to which language.
      batches: of each batch, int32 targets (B, S) and int32 lengths (B,), the tokens before the padding.
      lengths: tokens of every window, on the host, (windows,), without the empty windows of the last batch.
    """

    languages: tuple[LanguageWindows, ...]
    batches: tuple[tuple[jax.Array, jax.Array], ...]
    lengths: np.ndarray


def choose_documents(index: np.ndarray, tokens: int) -> list[int]:
    """Chooses whole documents with at most ``tokens`` tokens in total, in the order of the valid part.

    A document that is longer than the remaining tokens is skipped. If all are too long, the shortest is taken.

    Args:
      index: (documents, 3) of offset, tokens and bytes, as in the store.
      tokens: most tokens in total.

    Returns:
      Document numbers, ascending.
    """
    chosen, remaining = [], tokens
    for document, length in enumerate(index[:, 1].tolist()):
        if 0 < length <= remaining:
            chosen.append(document)
            remaining -= length
        if remaining <= 0:
            break
    if not chosen and len(index):
        chosen = [int(np.argmin(np.where(index[:, 1] > 0, index[:, 1], np.iinfo(np.int64).max)))]
    return chosen


@functools.lru_cache(maxsize=16)
def held_out_windows(
    store: Store,
    languages: tuple[str, ...],
    sequence_length: int,
    batch_size: int,
    tokens: int,
    *,
    sharding: jax.sharding.NamedSharding | None = None,
) -> HeldOut:
    """Puts the evaluation windows on the device; cached, so that runs in one process share them.

    Args:
      store: the token store.
      languages: codes of the languages to evaluate.
      sequence_length: S.
      batch_size: windows evaluated at once.
      tokens: most tokens per language (one document may be longer, see ``choose_documents``).
      sharding: of a (B, S) batch, or None on one device.

    Raises:
      MscaleError: a language the store does not have, or some without held-out documents, which are all named.
    """
    S = sequence_length
    if without := [name for name in languages if not store.valid_tokens(name)]:
        raise MscaleError(
            f"{store.path}: {len(without)} language(s) have no held-out document: {', '.join(without)}; pack them with "
            "more text or leave them out of EVAL_LANGUAGES"
        )
    windows: list[np.ndarray] = []
    lengths: list[int] = []
    windows_of_languages = []
    for name in languages:
        index = store.valid_index(name)
        chosen = choose_documents(index, tokens)
        documents = [store.valid(name, start, start + length) for start, length, _ in index[chosen].tolist()]
        ids = np.concatenate(documents).astype(np.int32)
        first = len(windows)
        for start in range(0, len(ids), S):
            piece = ids[start : start + S]
            windows.append(np.pad(piece, (0, S - len(piece))))
            lengths.append(len(piece))
        nats = -store.unigram_log_probabilities(name)
        windows_of_languages.append(
            LanguageWindows(
                name, first, len(windows), len(ids), int(index[chosen, 2].sum()), float(nats[ids].mean())
            )
        )
    empty_windows = -len(windows) % batch_size  # fill the last batch
    targets = np.stack(windows + [np.zeros(S, np.int32)] * empty_windows).reshape(-1, batch_size, S)
    padded = np.array(lengths + [0] * empty_windows, np.int32).reshape(-1, batch_size)
    row_sharding = sharding
    if sharding is not None:
        rows = jax.sharding.PartitionSpec(sharding.spec[0])
        row_sharding = jax.sharding.NamedSharding(sharding.mesh, rows)
    batches = tuple((_put(t, sharding), _put(n, row_sharding)) for t, n in zip(targets, padded, strict=True))
    return HeldOut(tuple(windows_of_languages), batches, np.array(lengths, np.int64))


def _put(array: np.ndarray, sharding: jax.sharding.NamedSharding | None) -> jax.Array:
    if sharding is None:
        return jax.device_put(array)
    return jax.make_array_from_callback(array.shape, sharding, lambda index: array[index])


@functools.partial(jax.jit, static_argnums=0)
def window_nats(
    config: ModelConfig, params: Params, targets_BxS: jax.Array, lengths_B: jax.Array
) -> jax.Array:
    """Sum of the token losses of each window, without its padding: (B,) float32 nats."""
    inputs_BxS = shift_right(targets_BxS)
    losses_BxS = loss.token_losses(config, params, inputs_BxS, targets_BxS)
    real_BxS = jnp.arange(targets_BxS.shape[1]) < lengths_B[:, None]
    # Replicated, so that on a mesh every host can read all sums.
    return constrain(jnp.sum(jnp.where(real_BxS, losses_BxS, 0), axis=1), (None,))


def dispatch_evaluation(config: ModelConfig, params: Params, data: HeldOut) -> list[jax.Array]:
    """Starts an evaluation without waiting for it; returns the nats of each batch's windows, (B,) each."""
    return [window_nats(config, params, targets, lengths) for targets, lengths in data.batches]


def language_losses(nats: Sequence[Any], data: HeldOut) -> dict[str, dict[str, Any]]:
    """Losses of each language, with the column names of observations.

    ``loss`` is nats per token. ``loss_se`` is its standard error over windows as a ratio estimator (Cochran 1977,
    section 2.11), None for one window. ``bits_per_byte`` is the sum of nats over ln 2 and the bytes, None without
    bytes. ``unigram_normalized_loss`` is the loss minus that of the unigram model (Tao et al. 2024, arXiv
    2407.13623, eq. 4); it is negative once the model uses context.

    Args:
      nats: results of ``dispatch_evaluation``, on the device or fetched.
      data: the windows that were evaluated.
    """
    sums = np.concatenate([np.asarray(part, np.float64) for part in nats])
    result = {}
    for language in data.languages:
        x = sums[language.first : language.last]
        n = data.lengths[language.first : language.last].astype(np.float64)
        value = float(x.sum() / language.tokens)
        error = None
        if len(x) > 1:
            spread = np.square(x - value * n).sum() * len(x) / (len(x) - 1)
            error = math.sqrt(spread) / language.tokens
        result[language.name] = {
            "loss": value,
            "loss_se": error,
            "bits_per_byte": float(x.sum() / (math.log(2) * language.bytes)) if language.bytes else None,
            "unigram_normalized_loss": value - language.unigram,
            "eval_tokens": language.tokens,
            "eval_bytes": language.bytes,
        }
    return result
