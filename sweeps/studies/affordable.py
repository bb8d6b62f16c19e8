"""Two studies that a user can afford: one GPU for a day, and sixteen TPU v5e chips for a week.

Both ask ATLAS's questions with fewer languages, sizes and tokens, on its vocabulary. Token budgets are the largest
that keep the whole study within its compute. Which laws each identifies is printed by `mscale sweep plan`: both
identify the Chinchilla, ATLAS and capacity laws and transfer scores. Only the week has continued runs at three
scales, so the day does not identify the power law of the pretrain-or-continue crossover.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from mscale.chips import CHIPS
from mscale.data.mixture import Sizes
from mscale.data.store import Store
from mscale.errors import MscaleError
from sweeps.build import PlannedStore, Recipe, build_study
from sweeps.cost.bill import study_bill
from sweeps.studies import assumed_sizes
from sweeps.studies.demo import choose_pairs
from sweeps.study import Cell, Study

_FAMILIES = {
    "en": "Germanic",
    "de": "Germanic",
    "fr": "Romance",
    "es": "Romance",
    "ru": "Slavic",
    "hi": "Indic",
    "zh": "Sinitic",
    "sw": "Bantu",
}
_WARMUP_STEPS = 200
_LEARNING_RATE = 2e-4
_MFU = 0.4


@dataclass(frozen=True)
class StudyDesign:
    """Compute, scales and languages of one of these studies.

    Attributes:
      flops: compute that the whole study may take.
      scales: of the two anchor languages, five or more whose parameters span a factor of 20.
      middle: scale of the pairs and of the other languages alone.
      capacity: scales of the uniform mixtures; continued: scales of the multilingual checkpoints.
      languages: the first two are the anchors.
      batch_size: sequences of a step; sequence_length: tokens of a sequence.
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


GPU_DAY = StudyDesign(
    flops=3e19,  # one H200 at 40% of its peak for 21 hours
    scales=(0, 2, 4, 8, 12),
    middle=4,
    capacity=(2, 4, 8),
    continued=(4,),
    languages=("en", "ru", "fr", "de", "hi", "sw"),
    batch_size=64,
    sequence_length=1024,
)
TPU_WEEK = StudyDesign(
    flops=16 * 7 * 86_400 * CHIPS["v5e"].peak_flops * _MFU,
    scales=(0, 4, 8, 12, 16, 20),
    middle=12,
    capacity=(4, 8, 12),
    continued=(4, 8, 12),
    languages=("en", "ru", "fr", "de", "hi", "es", "zh", "sw"),
    batch_size=256,
    sequence_length=2048,
)


def gpu_day_study(store: Store | None = None, *, seed: int = 0) -> Study:
    """One day of one GPU: about 3e19 FLOP, 40% of an H200's peak. See ``affordable_study``."""
    return affordable_study("gpu-day", GPU_DAY, store, seed=seed)


def tpu_week_study(store: Store | None = None, *, seed: int = 0) -> Study:
    """One week of 16 TPU v5e chips at 40% of their peak: 7.6e20 FLOP. See ``affordable_study``."""
    return affordable_study("tpu-week", TPU_WEEK, store, seed=seed)


def affordable_study(
    name: str,
    design: StudyDesign,
    store: Store | None = None,
    *,
    seed: int = 0,
) -> Study:
    """Returns the study whose budgets are the largest that stay within ``design.flops``.

    Args:
      store: an open token store with the languages; None plans with ``assumed_sizes.AssumedSizes``.

    Raises:
      MscaleError: the compute is too little for the warmup, or a language is not in the store.
    """
    sizes: PlannedStore = assumed_sizes.AssumedSizes() if store is None else store
    if store is not None and (missing := [one for one in design.languages if one not in store.languages]):
        raise MscaleError(
            f"study {name}: it trains on {', '.join(design.languages)}, and {store.path} does not have "
            f"{', '.join(missing)}; pack a corpus with these languages, plan without --store, or write a study of "
            "your own languages as gin/studies/pairs.gin does"
        )

    def study_of(units: int) -> Study:
        """The study whose largest monolingual budget is ``units`` × 16 steps."""
        recipe = Recipe(
            sequence_length=design.sequence_length,
            batch_size=design.batch_size,
            learning_rate=_LEARNING_RATE,
            warmup_steps=_WARMUP_STEPS,
            gin_files=("gin/train/atlas.gin",),
            evaluations=24,
            unimax_budget=2 * 16 * units * design.step_tokens,
        )
        return build_study(
            name,
            _cells(design, 16 * units * design.step_tokens, seed, sizes),
            recipe,
            sizes,
            _notes(design, store),
        )

    return study_of(_largest_budget(name, design, study_of))


def _largest_budget(name: str, design: StudyDesign, study_of: Callable[[int], Study]) -> int:
    """The most units of 16 steps whose study stays within ``design.flops``; the bill is linear in the budget."""
    probe = 1024
    units = int(probe * design.flops / study_bill(study_of(probe)).total.flops)
    if 16 * units // 4 < 2 * _WARMUP_STEPS:
        raise MscaleError(
            f"study {name}: {design.flops:.3g} FLOP allow {16 * units} steps for its largest budget, too few for "
            f"{_WARMUP_STEPS} of warmup in a quarter of it; give more compute or fewer scales"
        )
    while units > 1 and study_bill(study_of(units)).total.flops > design.flops:
        units -= 1
    return units


def _cells(design: StudyDesign, tokens: int, seed: int, sizes: Sizes) -> list[Cell]:
    first, second, *_ = design.languages

    def budgets(*parts: float) -> tuple[int, ...]:
        return tuple(round(part * tokens / design.step_tokens) * design.step_tokens for part in parts)

    cells = [
        Cell("mono", scale, one, budgets(0.25, 0.5, 1), seed)
        for one in (first, second)
        for scale in design.scales
    ]
    cells += [Cell("mono", design.middle, one, budgets(0.5, 1), seed) for one in design.languages[2:]]
    cells.append(Cell("seeds", design.middle, first, budgets(0.25, 0.5, 1), seed + 1))
    for pair in choose_pairs(design.languages, _FAMILIES):
        cells.append(Cell("pairs", design.middle, "+".join(pair), budgets(0.625, 1.25), seed))
    for count in (2, 4, len(design.languages)):
        mixture = "+".join(design.languages[:count])
        cells += [Cell("capacity", scale, mixture, budgets(0.75, 1.5), seed) for scale in design.capacity]
    for epochs in (4, 16):
        windows = round(tokens / epochs / design.sequence_length)
        limit = (
            (first, min(windows, sizes.windows(first, design.sequence_length)) * design.sequence_length),
        )
        cells.append(Cell("repeat", design.middle, first, budgets(0.5, 1), seed, unique_tokens=limit))
    for scale in design.continued:
        name = "unimax:" + "+".join(design.languages)
        unimax = Cell("unimax", scale, name, budgets(2), seed, evaluate=design.languages)
        cells.append(unimax)
        for one in design.languages[: 4 if len(design.continued) == 1 else 3]:
            wanted = budgets(0.25, 0.5, 1) if one == first else budgets(0.5)
            cells.append(Cell("continue", scale, one, wanted, seed, init=unimax, evaluate=design.languages))
            if scale != design.middle and one not in (first, second):
                cells.append(Cell("continue", scale, one, budgets(0.5, 1), seed))
    return cells


def _notes(design: StudyDesign, store: Store | None) -> Sequence[str]:
    notes = [
        f"within {design.flops:.3g} FLOP; batches of {design.batch_size} × {design.sequence_length} tokens and a "
        f"warmup of {_WARMUP_STEPS} steps, smaller than Table B.2's, since the budgets are smaller"
    ]
    if store is None:
        notes.append("planned without a token store, from published rates; give a store to run it")
    return notes
