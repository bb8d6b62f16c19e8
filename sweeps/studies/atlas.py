"""ATLAS's own study, Table B.1 of Longpre et al. 2026 (arXiv 2510.22037): 774 printed cells and their shared runs.

Where the printed table is inconsistent, and what this study does:

- Multi, Pairs scaled and Capacity count ten scales, but S_part lists eleven. Ten are run: all of S_min, at which
  the finetunes are compared, and all others but scale 20, whose omission leaves the smallest gap in log N.
- L_target counts 15 pairs and names 14 (en with the nine others of L_pairs, es-pt, fr-zh, hi-ru, de-ja, hi-vi).
  The fifteenth, ten cells, is counted and listed, not run.
- Pairs count 90, the ordered pairs of ten languages: 45 mixtures are trained.
- L_eval is not listed: the fifty languages of mixture 50v0 are used.
- UniMax is said to hold 420 languages; 419 rates are printed (Table B.4). They are used as printed, for the whole
  study, and enter the id of every run on them.
- Cells at scale 34 occur in several tags and are trained once: monolingual runs of Multi in Pairs' monolingual
  side, pairs in Pairs scaled, continued runs in both of the finetunes' rows.
- Scale 52's printed parameter count is a misprint; the study does not use it.

Token budgets are not printed. We assume the stated minimum of 30,000 steps at the batch of Table B.2, with further
decayed models at a quarter and a half of it: the laws need three final losses a training, and a shared trunk gives
them for 7.5% more compute.
"""

from collections.abc import Mapping, Sequence
from itertools import combinations
from typing import Any

from mscale import languages as inventory
from mscale import scales
from mscale.data.store import Store
from mscale.errors import MscaleError
from sweeps.build import PlannedStore, Recipe, build_study
from sweeps.studies import assumed_sizes
from sweeps.study import Cell, Study

S_FULL = (0, 1, 2, 4, 6, 8, 12, 14, 16, 18, 20, 22, 24, 26, 28, 30, 32, 34, 42, 46)
S_PART = (0, 4, 8, 12, 16, 20, 24, 28, 34, 42, 46)
S_MIN = (0, 8, 16, 24, 34, 42, 46)
_OMITTED_SCALE = 20  # of S_PART, since ten are counted
_PAIRS_SCALE = 34

L_MONO = ("en", "fr", "ru", "zh", "hi", "sw", "yo")
L_PAIRS = ("en", "fr", "ru", "zh", "hi", "de", "es", "pt", "ja", "vi")
L_TARGET = (
    *(("en", other) for other in L_PAIRS[1:]),
    ("es", "pt"),
    ("fr", "zh"),
    ("hi", "ru"),
    ("de", "ja"),
    ("hi", "vi"),
)

PRINTED_CELLS = {
    "Mono": 140,
    "Unimax": 20,
    "Multi": 70,
    "Pairs, mono side": 50,
    "Pairs": 90,
    "Pairs, scaled": 150,
    "Capacity": 120,
    "Finetunes": 50,
    "Finetunes, scaled": 84,
}
"""Cells of each tag as Table B.1 prints them: 774."""

UNNAMED_CELLS = {"Pairs, scaled": 10}
"""Cells that Table B.1 counts but does not name: the fifteenth pair of L_target at ten scales."""

_STEPS = 30_000
_BUDGET_FRACTIONS = (0.25, 0.5, 1.0)
_SEQUENCE_LENGTH = 2048
_WARMUP_STEPS = 1000
_LEARNING_RATE = 2e-4


def atlas_study(
    store: Store | None = None,
    *,
    own_stores: Mapping[str, PlannedStore] | None = None,
    fractions: Sequence[float] = _BUDGET_FRACTIONS,
    steps: int = _STEPS,
    seed: int = 0,
) -> Study:
    """Returns the study; without stores it can be planned but not run.

    Args:
      store: an open token store with the multilingual vocabulary; None plans with ``assumed_sizes.AssumedSizes``.
      own_stores: language to the token store with its own vocabulary, for each of ``L_MONO``.
      fractions: of ``steps`` at which a cooled model is wanted, the largest 1; ``(1.0,)`` is the bare minimum.
      steps: of every run, at the batch of Table B.2.
      seed: of all runs.

    Raises:
      MscaleError: a language of the study is not in the store, or a monolingual store is not given.
    """
    if not fractions or max(fractions) != 1 or min(fractions) <= 0:
        raise MscaleError(f"fractions are {tuple(fractions)}: expected numbers above 0 whose largest is 1")
    sizes: PlannedStore = assumed_sizes.AssumedSizes() if store is None else store
    step_tokens = {
        scale: _SEQUENCE_LENGTH
        * scales.atlas_batch_size(scales.parameter_count(scales.get(scale), scales.ATLAS_VOCABULARY))
        for scale in S_FULL
    }

    def cell(tag: str, scale: int, mixture: str, **fields: Any) -> Cell:
        budgets = tuple(round(fraction * steps) * step_tokens[scale] for fraction in fractions)
        return Cell(tag, scale, mixture, budgets, seed, **fields)

    s_part = tuple(scale for scale in S_PART if scale != _OMITTED_SCALE)
    l_eval = inventory.capacity_mixtures()["50v0"]
    pairs = ["+".join(pair) for pair in combinations(L_PAIRS, 2)]
    order = {language: index for index, language in enumerate(L_PAIRS)}
    target = ["+".join(sorted(pair, key=order.__getitem__)) for pair in L_TARGET]
    unimax = {scale: cell("Unimax", scale, "atlas_unimax", evaluate=l_eval) for scale in S_FULL}
    cells = [cell("Mono", scale, one, vocabulary=f"own-{one}") for one in L_MONO for scale in S_FULL]
    cells += unimax.values()
    cells += [cell("Multi", scale, one) for one in L_MONO for scale in s_part]
    cells += [cell("Pairs, mono side", _PAIRS_SCALE, one) for one in l_eval]
    cells += [cell("Pairs", _PAIRS_SCALE, pair) for pair in pairs for _ in range(2)]
    cells += [cell("Pairs, scaled", scale, pair) for pair in target for scale in s_part]
    cells += [
        cell("Capacity", scale, f"atlas_{name}") for name in inventory.capacity_mixtures() for scale in s_part
    ]
    cells += [
        cell("Finetunes", _PAIRS_SCALE, one, init=unimax[_PAIRS_SCALE], evaluate=l_eval) for one in l_eval
    ]
    cells += [
        cell("Finetunes, scaled", scale, one, init=unimax[scale], evaluate=l_eval)
        for one in dict.fromkeys((*L_MONO, *L_PAIRS))
        for scale in S_MIN
    ]
    recipe = Recipe(
        sequence_length=_SEQUENCE_LENGTH,
        batch_size=256,
        learning_rate=_LEARNING_RATE,
        warmup_steps=_WARMUP_STEPS,
        gin_files=("gin/train/atlas.gin",),
        evaluations=24,
        per_scale={str(s): {"BATCH_SIZE": tokens // _SEQUENCE_LENGTH} for s, tokens in step_tokens.items()},
        sources=_own_sources(store, own_stores),
    )
    return build_study("atlas", cells, recipe, sizes, _notes(store, fractions, steps))


def _own_sources(
    store: Store | None, own_stores: Mapping[str, PlannedStore] | None
) -> dict[str, PlannedStore]:
    if store is not None:
        if missing := [language for language in L_MONO if language not in (own_stores or {})]:
            raise MscaleError(
                f"study atlas: no token store with its own vocabulary for {', '.join(missing)}; pack one for each of "
                "them and give them as own_stores to sweeps.studies.atlas.atlas_study (Python), or plan without --store"
            )
        return {f"own-{language}": source for language, source in (own_stores or {}).items()}
    return {
        f"own-{language}": assumed_sizes.AssumedSizes(
            f"{assumed_sizes.PLACEHOLDER_STORE}-{language}", f"own vocabulary of {language}"
        )
        for language in L_MONO
    }


def _notes(store: Store | None, fractions: Sequence[float], steps: int) -> list[str]:
    cooled = ", ".join(f"{fraction:.0%}" for fraction in sorted(fractions))
    notes = [
        f"token budgets are an assumption, the paper prints none: {steps:,} steps (its stated minimum is 30,000) "
        f"at the batch of Table B.2, cooled at {cooled} of them, each finetune as long again",
        f"S_part lists eleven scales where ten are counted: scale {_OMITTED_SCALE} is left out",
        f"{sum(UNNAMED_CELLS.values())} of the printed cells are not named (a fifteenth pair of L_target): counted, "
        "not run",
        "90 printed pairs are ordered: 45 mixtures are trained; L_eval is taken to be mixture 50v0",
        "UniMax uses the 419 rates of Table B.4 (420 languages are printed), divided by their sum",
    ]
    if store is None:
        notes.append(
            "planned without a token store: languages below UniMax's common rate have the tokens their rate says, "
            "others never repeat; give a store to run it"
        )
    return notes
