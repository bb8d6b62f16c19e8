"""Two studies that a user can afford: one GPU for a day, and sixteen TPU v5e chips for a week.

Both ask ATLAS's questions of fewer languages, sizes and tokens, on its vocabulary. Their budgets follow from the
compute: the largest that keeps the whole study within it. What each identifies is computed, not claimed: see
``sweeps.cost.identification.statement``, which `plan` prints. In short: both identify the Chinchilla, ATLAS and
capacity laws and transfer scores; only the week has continued runs at three scales, so the day cannot give the
crossover's power law.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from mscale import scales
from mscale.chips import ACCELERATORS
from mscale.data.mixture import Sizes
from mscale.errors import MscaleError
from sweeps import spec
from sweeps.build import Recipe, build
from sweeps.cost.bill import plan
from sweeps.studies import assumed
from sweeps.studies.demo import choose_pairs
from sweeps.study import Cell, Study

FAMILIES = {
    "en": "Germanic",
    "de": "Germanic",
    "fr": "Romance",
    "es": "Romance",
    "ru": "Slavic",
    "hi": "Indic",
    "zh": "Sinitic",
    "sw": "Bantu",
}
WARMUP_STEPS = 200
LEARNING_RATE = 2e-4
MFU = 0.4


@dataclass(frozen=True)
class Size:
    """What a study of this form is made of.

    Attributes:
      flops: compute that the whole study may take.
      scales: of the anchors, five or more over a factor of 20; middle: of pairs and single languages.
      capacity: scales of the uniform mixtures; continued: scales of the multilingual checkpoints.
      languages: the first two are the anchors.
    """

    flops: float
    scales: tuple[int, ...]
    middle: int
    capacity: tuple[int, ...]
    continued: tuple[int, ...]
    languages: tuple[str, ...]
    batch_size: int
    sequence_length: int

    @property
    def step_tokens(self) -> int:
        """Tokens of one step."""
        return self.batch_size * self.sequence_length


GPU_DAY = Size(
    flops=3e19,  # one H200 at 40% of its peak for 21 hours
    scales=(0, 2, 4, 8, 12),
    middle=4,
    capacity=(2, 4, 8),
    continued=(4,),
    languages=("en", "ru", "fr", "de", "hi", "sw"),
    batch_size=64,
    sequence_length=1024,
)
TPU_WEEK = Size(
    flops=16 * 7 * 86_400 * ACCELERATORS["v5e"] * MFU,
    scales=(0, 4, 8, 12, 16, 20),
    middle=12,
    capacity=(4, 8, 12),
    continued=(4, 8, 12),
    languages=("en", "ru", "fr", "de", "hi", "es", "zh", "sw"),
    batch_size=256,
    sequence_length=2048,
)


def gpu_day(store=None, *, seed: int = 0, fingerprint: str | None = None) -> Study:
    """One day of one GPU: about 3e19 FLOP, 40% of an H200's peak. See ``affordable``."""
    return affordable("gpu-day", GPU_DAY, store, seed=seed, fingerprint=fingerprint)


def tpu_week(store=None, *, seed: int = 0, fingerprint: str | None = None) -> Study:
    """One week of 16 TPU v5e chips at 40% of their peak: 7.6e20 FLOP. See ``affordable``."""
    return affordable("tpu-week", TPU_WEEK, store, seed=seed, fingerprint=fingerprint)


def affordable(name: str, size: Size, store=None, *, seed: int = 0, fingerprint: str | None = None) -> Study:
    """Returns the study whose budgets are the largest that stay within ``size.flops``.

    Args:
      store: an open token store with the languages; None plans with ``assumed.AssumedSizes``.

    Raises:
      MscaleError: the compute is too little for the warmup, or a language is not in the store.
    """
    sizes: Sizes = assumed.AssumedSizes() if store is None else store
    if fingerprint is None:
        fingerprint = assumed.FINGERPRINT if store is None else spec.store_fingerprint(store)

    def of(units: int) -> Study:
        """The study whose largest monolingual budget is ``units`` × 16 steps."""
        recipe = Recipe(
            store=str(store.path) if store is not None else assumed.STORE,
            fingerprint=fingerprint,
            vocabulary_size=int(store.vocabulary["size"]) if store is not None else scales.ATLAS_VOCABULARY,
            sequence_length=size.sequence_length,
            batch_size=size.batch_size,
            learning_rate=LEARNING_RATE,
            warmup_steps=WARMUP_STEPS,
            gin_files=("gin/train/atlas.gin",),
            evaluations=24,
            unimax_budget=2 * 16 * units * size.step_tokens,
        )
        return build(
            name, _cells(size, 16 * units * size.step_tokens, seed, sizes), recipe, sizes, _notes(size, store)
        )

    return of(_largest(name, size, of))


def _largest(name: str, size: Size, of: Callable[[int], Study]) -> int:
    """The most units of 16 steps within the compute, by proportion: the bill is linear in the budget."""
    probe = 1024
    units = int(probe * size.flops / plan(of(probe)).total.flops)
    if 16 * units // 4 < 2 * WARMUP_STEPS:
        raise MscaleError(
            f"study {name}: {size.flops:.3g} FLOP allow {16 * units} steps for its largest budget, too few for "
            f"{WARMUP_STEPS} of warmup in a quarter of it; give more compute or fewer scales"
        )
    while units > 1 and plan(of(units)).total.flops > size.flops:
        units -= 1
    return units


def _cells(size: Size, tokens: int, seed: int, sizes: Sizes) -> list[Cell]:
    first, second, *_ = size.languages

    def budgets(*parts: float) -> tuple[int, ...]:
        return tuple(round(part * tokens / size.step_tokens) * size.step_tokens for part in parts)

    cells = [
        Cell("mono", scale, one, budgets(0.25, 0.5, 1), seed)
        for one in (first, second)
        for scale in size.scales
    ]
    cells += [Cell("mono", size.middle, one, budgets(0.5, 1), seed) for one in size.languages[2:]]
    cells.append(Cell("seeds", size.middle, first, budgets(0.25, 0.5, 1), seed + 1))
    for pair in choose_pairs(size.languages, FAMILIES):
        cells.append(Cell("pairs", size.middle, "+".join(pair), budgets(0.625, 1.25), seed))
    for count in (2, 4, len(size.languages)):
        mixture = "+".join(size.languages[:count])
        cells += [Cell("capacity", scale, mixture, budgets(0.75, 1.5), seed) for scale in size.capacity]
    for epochs in (4, 16):
        windows = round(tokens / epochs / size.sequence_length)
        limit = ((first, min(windows, sizes.windows(first, size.sequence_length)) * size.sequence_length),)
        cells.append(Cell("repeat", size.middle, first, budgets(0.5, 1), seed, unique_tokens=limit))
    for scale in size.continued:
        name = "unimax:" + "+".join(size.languages)
        unimax = Cell("unimax", scale, name, budgets(2), seed, evaluate=size.languages)
        cells.append(unimax)
        for one in size.languages[: 4 if len(size.continued) == 1 else 3]:
            wanted = budgets(0.25, 0.5, 1) if one == first else budgets(0.5)
            cells.append(Cell("continue", scale, one, wanted, seed, init=unimax, evaluate=size.languages))
            if scale != size.middle and one not in (first, second):
                cells.append(Cell("continue", scale, one, budgets(0.5, 1), seed))
    return cells


def _notes(size: Size, store) -> Sequence[str]:
    notes = [
        f"within {size.flops:.3g} FLOP; batches of {size.batch_size} × {size.sequence_length} tokens and a warmup of "
        f"{WARMUP_STEPS} steps, smaller than Table B.2's, since the budgets are smaller"
    ]
    if store is None:
        notes.append("planned without a token store, from published rates; give a store to run it")
    return notes
