"""A mixture over a token store as one SeqIO task: the windows of `mscale.data.schedule`, in its order, from any step.

A SeqIO mixture keeps a pipeline and a shuffle buffer for each of its tasks. This is a single pipeline that looks
windows up, so its cost does not grow with the number of languages. Row g of the task is row g mod B of the batch at
step g div B of `mscale.data.feed`, so a batch of B examples is the batch of that feed. Host i of n gets the rows
i, i + n, …
"""

import tempfile
from collections.abc import Mapping
from typing import Any

import gin
import numpy as np
import seqio
import tensorflow as tf

from mixtures import tasks
from mscale.data.mixture import gin_sampling_options, resolve
from mscale.data.schedule import MAX_RUN_ROWS, Schedule, single
from mscale.data.store import Store
from mscale.data.verification import verify_store
from mscale.remote import Url, connect

_ROWS_AT_ONCE = 64


@gin.configurable("packed")  # type: ignore[attr-defined]
def _first_row(start_step: int = 0, batch_size: int = 1) -> int:
    """The first row, ``packed.start_step`` × ``packed.batch_size`` as bound in gin, for a run that resumes."""
    return start_step * batch_size


class PackedSource(seqio.DataSource):
    """Row numbers (split train, endless) or numbers of held-out windows (validation), with the schedule's seed."""

    def __init__(self) -> None:
        super().__init__(splits=("train", "validation"), caching_permitted=False)

    @property
    def supports_arbitrary_sharding(self) -> bool:
        return True

    @property
    def performs_internal_shuffling(self) -> bool:
        return True

    def list_shards(self, split: str) -> list[str]:
        return [split]

    def get_dataset(  # type: ignore[override]
        self,
        split: str = "train",
        shuffle: bool = True,
        seed: int | None = None,
        shard_info: seqio.ShardInfo | None = None,
        **_: Any,
    ) -> tf.data.Dataset:
        """Yields ``{"row": int64, "seed": int64, "held_out": bool}``; ``shuffle`` has no effect, as the schedule
        determines the order."""
        index, shards = (shard_info.index, shard_info.num_shards) if shard_info else (0, 1)
        first = _first_row() if split == "train" else 0
        rows = tf.data.Dataset.range(first + index, MAX_RUN_ROWS, shards)
        schedule_seed = tf.constant(0 if seed is None else seed, tf.int64)
        held_out = split == "validation"
        return rows.map(lambda row: {"row": row, "seed": schedule_seed, "held_out": held_out})


def packed_task(name: str, mixture: str) -> seqio.Task:
    """The mixture ``mixture`` (a name of `mscale.data.mixture.resolve`) over the token store ``corpora.store``.

    Each example's ``targets`` has exactly the requested sequence length. The schedule's seed is the one given to
    ``seqio.get_dataset`` (0 for None). Options of the mixture, such as UniMax's budget, come from gin's ``mixture``.
    The validation split holds each language's held-out text once, cut into windows; the last window of a language is
    padded with 0.

    Raises:
      MscaleError: ``corpora.store`` is not set or is no store; an invalid mixture, when the first dataset is made.
    """
    store = tasks.bound_store()

    def windows(dataset: tf.data.Dataset, sequence_length: Mapping[str, int]) -> tf.data.Dataset:
        length = sequence_length["targets"]
        resolved = resolve(mixture, store, length, options=gin_sampling_options())
        verify_store(store, resolved.languages, resolved.languages)
        schedules: dict[int, Schedule] = {}
        ends = np.cumsum([-(-store.valid_tokens(one) // length) for one in resolved.languages])

        def look_up(rows: np.ndarray, seeds: np.ndarray, held_out: np.ndarray) -> np.ndarray:
            if held_out[0]:
                return _valid_windows(store, resolved.languages, ends, rows, length)
            schedule = schedules.setdefault(int(seeds[0]), single(resolved, 1, int(seeds[0])))
            ids, windows = schedule.rows(rows)
            return store.gather_windows([schedule.languages[one] for one in ids], windows.tolist(), length)

        def targets(rows: Mapping[str, tf.Tensor]) -> dict[str, tf.Tensor]:
            found = tf.numpy_function(
                look_up, [rows["row"], rows["seed"], rows["held_out"]], tf.int32, stateful=False
            )
            return {"targets": tf.ensure_shape(found, (None, length))}

        last = int(ends[-1])
        dataset = dataset.take_while(lambda one: not one["held_out"] or one["row"] < last)
        return dataset.batch(_ROWS_AT_ONCE).map(targets).unbatch()

    feature = seqio.Feature(_vocabulary(store), add_eos=False, dtype=tf.int32)
    return seqio.Task(
        name, PackedSource(), {"targets": feature}, preprocessors=[windows], shuffle_buffer_size=None
    )


def _valid_windows(
    store: Store, languages: tuple[str, ...], ends: np.ndarray, rows: np.ndarray, sequence_length: int
) -> np.ndarray:
    batch = np.full((len(rows), sequence_length), store.vocabulary["pad_id"], np.int32)
    for at, row in enumerate(rows):
        language = int(np.searchsorted(ends, row, side="right"))
        first = (int(row) - (int(ends[language - 1]) if language else 0)) * sequence_length
        tokens = store.valid(languages[language], first, first + sequence_length)
        batch[at, : len(tokens)] = tokens
    return batch


def _vocabulary(store: Store) -> seqio.Vocabulary:
    """SeqIO's form of the vocabulary that is stored with the token store."""
    if store.vocabulary["kind"] == "bytes":
        return seqio.ByteVocabulary()
    if not isinstance(store.path, Url):
        return tasks.seqio_vocabulary(str(store.path))
    system, remote = connect(store.path)
    with tempfile.TemporaryDirectory(prefix="mscale-") as folder:
        system.get_file(f"{remote.rstrip('/')}/vocabulary.model", f"{folder}/vocabulary.model")
        return tasks.seqio_vocabulary(f"{folder}/vocabulary.model")
