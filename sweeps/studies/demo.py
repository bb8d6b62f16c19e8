"""The demo study: nano runs on two CPU cores in minutes, chosen so that the laws are identified.

What each law needs and which cells give it:

- Chinchilla, α and β shared: two anchor languages alone at five scales that span a factor of 20 in N, each with
  three token budgets.
- ATLAS: every language alone, and in 50/50 pairs with three others (fewer where there are fewer), inside its
  family and across, both at two scales, so that the laws stay identified without either; mixtures of 4 and 6; for λ
  one language repeated for 4 and 16 epochs.
- Capacity: one, two, four and six languages, uniform, at three scales or more.
- Transfer: pairs with 2.5 times the reference tokens, so that the monolingual loss is reached within the budget even
  with a source of negative transfer.
- Pretrain or continue: a UniMax run, runs that continue its checkpoint on one language, and those languages
  from scratch (and adaptation scores, as they are evaluated on all languages).
- Noise: the anchors again with another seed at the middle scale.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import combinations
from typing import Any

from mscale.data.mixture import SamplingOptions, Sizes, resolve
from mscale.data.store import Store
from mscale.errors import MscaleError, nearest
from sweeps.build import Recipe, build_study
from sweeps.study import Cell, Study

DEMO_SCALES = ("nano0", "nano1", "nano2", "nano3", "nano4")
_MIDDLE_SCALE = "nano2"
_PAIR_SCALES = ("nano1", "nano2")
_CAPACITY_SCALES = ("nano1", "nano2", "nano3")
_CAPACITY_COUNTS = (2, 4, 6)
_SEQUENCE_LENGTH = 128
_BATCH_SIZE = 4
_WARMUP_STEPS = 20
_LEARNING_RATE = 0.005
DEMO_TOKENS = 327_680  # largest monolingual budget


@dataclass
class _Budgets:
    """Rounds token budgets to whole steps, and reduces those that would repeat a language unintentionally.

    Attributes:
      reduced: language to the smallest factor by which its budgets were reduced.
    """

    store: Sizes
    step_tokens: int
    reduced: dict[str, float] = field(default_factory=dict)

    def fit(self, wanted: Sequence[float], rates: Mapping[str, float]) -> tuple[int, ...]:
        """Budgets of a mixture in whole steps, all scaled down so that no language repeats; empty if too small."""
        available = {
            language: self.store.windows(language, _SEQUENCE_LENGTH) * _SEQUENCE_LENGTH / rate
            for language, rate in rates.items()
        }
        scarcest = min(available, key=lambda language: available[language])
        # Eight windows less: the schedule's count of a language may exceed rate × windows by up to eight.
        factor = min(1.0, (available[scarcest] - 8 * _SEQUENCE_LENGTH) / max(wanted))
        if factor < 1:
            self.reduced[scarcest] = min(factor, self.reduced.get(scarcest, 1.0))
        steps = {int(factor * tokens / self.step_tokens + 1e-9) for tokens in wanted}
        min_steps = _WARMUP_STEPS + 4
        return tuple(sorted(step * self.step_tokens for step in steps if step >= min_steps))


def demo_study(
    store: Store,
    *,
    languages: Sequence[str] | None = None,
    families: Mapping[str, str] | None = None,
    seed: int = 0,
    tokens: int = DEMO_TOKENS,
) -> Study:
    """Returns the demo study over a packed token store.

    Args:
      store: an open store; ``families`` maps a language to its family where that is known (the generated
        corpus says so in its truth.json), to choose pairs inside and across families.
      languages: at least two of the store's; all by default.
      seed: of the first of the two seeds.
      tokens: the largest monolingual budget; the others are fixed parts and multiples of it.

    Raises:
      MscaleError: fewer than two languages, an unknown one, or too few tokens to train on.
    """
    chosen = _languages(store, languages, tokens)
    notes = []
    if left_out := [name for name in (languages or store.languages) if name not in chosen]:
        notes.append(
            f"{', '.join(left_out)} left out: less than {_min_tokens(tokens):,} tokens of text, too few to train on"
        )
    anchors, order = _anchors(store, chosen, families or {})
    budgets = _Budgets(store, _BATCH_SIZE * _SEQUENCE_LENGTH)
    cells: list[Cell] = []

    def add(
        tag: str, scale: str, mixture: Sequence[str], wanted: Sequence[float], **fields: Any
    ) -> Cell | None:
        rates = dict.fromkeys(mixture, 1 / len(mixture))
        fitted = budgets.fit(wanted, rates)
        if not fitted:
            return None
        cells.append(Cell(tag, scale, "+".join(mixture), fitted, fields.pop("at_seed", seed), **fields))
        return cells[-1]

    # Languages alone
    for scale in DEMO_SCALES:
        for language in anchors:
            add("mono", scale, [language], (tokens / 4, tokens / 2, tokens))
    for language in chosen:
        if language not in anchors:
            for scale in _PAIR_SCALES:
                add("mono", scale, [language], (tokens / 2, tokens))
    for language in anchors:
        add("seeds", _MIDDLE_SCALE, [language], (tokens / 4, tokens / 2, tokens), at_seed=seed + 1)

    # Pairs
    for pair in choose_pairs(order, families or {}):
        for scale in _PAIR_SCALES:
            add("pairs", scale, pair, (0.625 * tokens, 1.25 * tokens))

    # Uniform mixtures
    counts = [count for count in _CAPACITY_COUNTS if count <= len(order)]
    if len(counts) < len(_CAPACITY_COUNTS):
        notes.append(
            f"uniform mixtures of {' and '.join(map(str, counts))} languages only: there are {len(order)}"
        )
    for count in counts:
        wanted = [0.625 * tokens, 1.25 * tokens] if count == 2 else [0.75 * tokens, 1.5 * tokens]
        for scale in _CAPACITY_SCALES:
            add("capacity", scale, order[:count], wanted)

    # One language, repeated
    repeated = anchors[0]
    for epochs in (4, 16):
        unique = max(1, round(tokens / epochs / _SEQUENCE_LENGTH)) * _SEQUENCE_LENGTH
        if unique <= store.windows(repeated, _SEQUENCE_LENGTH) * _SEQUENCE_LENGTH:
            whole = round(tokens / budgets.step_tokens) * budgets.step_tokens
            half = round(tokens / 2 / budgets.step_tokens) * budgets.step_tokens
            limit = ((repeated, unique),)
            cells.append(Cell("repeat", _MIDDLE_SCALE, repeated, (half, whole), seed, unique_tokens=limit))

    # A multilingual checkpoint, and runs that continue it
    budget = 2 * tokens
    name = "unimax:" + "+".join(order)
    rates = resolve(name, store, _SEQUENCE_LENGTH, options=SamplingOptions(budget_tokens=budget))
    unimax = Cell(
        "unimax",
        _MIDDLE_SCALE,
        name,
        budgets.fit((budget,), dict(zip(rates.languages, rates.rates, strict=True))),
        seed,
        evaluate=tuple(order),
    )
    if unimax.tokens:
        cells.append(unimax)
        for index, language in enumerate(order[:4]):
            wanted = [tokens / 2, tokens] if index == 0 else [tokens / 2]
            add("continue", _MIDDLE_SCALE, [language], wanted, init=unimax, evaluate=tuple(order))

    for language, factor in budgets.reduced.items():
        notes.append(
            f"budgets with {language} reduced to as little as {factor:.0%}: the store holds "
            f"{store.train_tokens(language):,} tokens of it, and it is not to be repeated"
        )
    recipe = Recipe(
        sequence_length=_SEQUENCE_LENGTH,
        batch_size=_BATCH_SIZE,
        learning_rate=_LEARNING_RATE,
        warmup_steps=_WARMUP_STEPS,
        evaluations=16,
        unimax_budget=budget,
        bindings={"EVAL_TOKENS": 8192, "LOG_EVERY": 25, "PROGRESS": False},
    )
    return build_study("demo", cells, recipe, store, notes)


def _min_tokens(tokens: int) -> int:
    return max(tokens // 8, (_WARMUP_STEPS + 12) * _BATCH_SIZE * _SEQUENCE_LENGTH)


def _languages(store: Store, languages: Sequence[str] | None, tokens: int) -> list[str]:
    """The languages asked for (all of the store by default) that have enough text."""
    asked = list(dict.fromkeys(languages or store.languages))
    for language in asked:
        if language not in store.languages:
            raise MscaleError(
                f"language {language!r} is not in the token store {store.path}, which has "
                f"{', '.join(store.languages[:12])}{nearest(language, store.languages)}"
            )
    if tokens < 8 * (_WARMUP_STEPS + 4) * _BATCH_SIZE * _SEQUENCE_LENGTH:
        raise MscaleError(
            f"the demo's largest budget is {tokens:,} tokens: expected at least "
            f"{8 * (_WARMUP_STEPS + 4) * _BATCH_SIZE * _SEQUENCE_LENGTH:,}"
        )
    enough = [language for language in asked if store.train_tokens(language) >= _min_tokens(tokens)]
    if len(enough) < 2:
        raise MscaleError(
            f"{store.path}: {len(enough)} of {len(asked)} languages have {_min_tokens(tokens):,} tokens of text; the "
            "demo needs two. Add text, or choose other languages"
        )
    return enough


def _anchors(
    store: Store, languages: Sequence[str], families: Mapping[str, str]
) -> tuple[list[str], list[str]]:
    """The two anchors, of two families where there are two, and all languages with the anchors first."""
    rich = sorted(languages, key=lambda language: -min(store.train_tokens(language), 2 * DEMO_TOKENS))
    first = rich[0]
    others = [one for one in rich[1:] if families.get(one) != families.get(first) or not families]
    anchors = [first, (others or rich[1:])[0]]
    # Families alternate, so that a mixture of four is not of one family alone.
    rest = [one for one in rich if one not in anchors]
    order = list(anchors)
    while rest:
        counts = {
            families.get(one): sum(families.get(two) == families.get(one) for two in order) for one in rest
        }
        following = min(rest, key=lambda one: counts[families.get(one)])
        rest.remove(following)
        order.append(following)
    return anchors, order


def choose_pairs(languages: Sequence[str], families: Mapping[str, str]) -> list[tuple[str, str]]:
    """Pairs to train 50/50: a near-regular graph over the languages.

    Each language is paired with three others (two from nine languages on, one from thirteen), a few with one more.
    The first two languages are a pair. Where families are known, up to half of a language's pairs, rounded up, are
    inside its family and the others across families. Otherwise a ring connects all languages.
    """
    degree = 3 if len(languages) <= 8 else 2 if len(languages) <= 12 else 1
    count = dict.fromkeys(languages, 0)
    chosen: list[tuple[str, str]] = []
    rank = {language: index for index, language in enumerate(languages)}

    def related(pair: tuple[str, str]) -> bool:
        return bool(families) and families.get(pair[0]) == families.get(pair[1])

    def fill(candidates: list[tuple[str, str]], most: int) -> None:
        while open_ := [
            pair
            for pair in candidates
            if pair not in chosen and count[pair[0]] < most and count[pair[1]] < most
        ]:
            take(min(open_, key=lambda pair: (count[pair[0]] + count[pair[1]], rank[pair[0]], rank[pair[1]])))

    def take(pair: tuple[str, str]) -> None:
        chosen.append(pair)
        count[pair[0]] += 1
        count[pair[1]] += 1

    every = list(combinations(languages, 2))
    take(every[0])
    if families:
        fill([pair for pair in every if related(pair)], (degree + 1) // 2 + (degree > 1))
    elif degree > 1:
        fill([pair for pair in every if rank[pair[1]] - rank[pair[0]] in (1, len(languages) - 1)], 2)
    fill([pair for pair in every if not related(pair)], degree)
    fill(every, degree)
    for language in languages:  # those that still lack partners
        while count[language] < min(degree, len(languages) - 1):
            open_ = [pair for pair in every if language in pair and pair not in chosen]
            take(min(open_, key=lambda pair: count[pair[0]] + count[pair[1]]))
    return chosen
