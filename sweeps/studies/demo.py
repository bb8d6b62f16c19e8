"""The demo study: nano runs on two CPU cores in minutes, chosen so that the laws are identified.

What each law needs (ATLAS.md) and which cells give it:

- Chinchilla, α and β shared: two anchor languages alone, five scales over 20×, three cooled budgets.
- ATLAS: every language alone, and in 50/50 pairs with three others (fewer where there are fewer), inside its
  family and across, both at two scales, so that the laws survive the loss of either; mixtures of 4 and 6; for λ one
  language repeated for 4 and 16 epochs.
- Capacity: one, two, four and six languages, uniform, at three scales or more.
- Transfer: pairs with 2.5 times the reference tokens, so that even a source that harms is seen to reach the
  monolingual loss.
- Pretrain or continue: a UniMax run, runs that continue its checkpoint on one language, and those languages
  from scratch (and adaptation scores, as they are evaluated on all languages).
- Noise: the anchors again with another seed at the middle scale.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import combinations

from mscale.data.mixture import Sizes, resolve
from mscale.errors import MscaleError, nearest
from sweeps import spec
from sweeps.build import Recipe, build
from sweeps.study import Cell, Study

SCALES = ("nano0", "nano1", "nano2", "nano3", "nano4")
MIDDLE = "nano2"
PAIR_SCALES = ("nano1", "nano2")
CAPACITY_SCALES = ("nano1", "nano2", "nano3")
CAPACITY_K = (2, 4, 6)
SEQUENCE_LENGTH = 128
BATCH_SIZE = 4
WARMUP_STEPS = 20
LEARNING_RATE = 0.005
TOKENS = 327_680  # largest monolingual budget


@dataclass
class _Budgets:
    """Rounds budgets to whole steps, and keeps a language from repeating where that is not meant."""

    store: Sizes
    step_tokens: int
    reduced: dict[str, float] = field(default_factory=dict)

    def fit(self, wanted: Sequence[float], rates: Mapping[str, float]) -> tuple[int, ...]:
        """Budgets of a mixture, all scaled down where its scarcest language would repeat; empty if too small."""
        room = {
            language: self.store.windows(language, SEQUENCE_LENGTH) * SEQUENCE_LENGTH / rate
            for language, rate in rates.items()
        }
        scarcest = min(room, key=lambda language: room[language])
        # Eight windows less: a language's count may be above rate × rows by a few.
        factor = min(1.0, (room[scarcest] - 8 * SEQUENCE_LENGTH) / max(wanted))
        if factor < 1:
            self.reduced[scarcest] = min(factor, self.reduced.get(scarcest, 1.0))
        steps = {int(factor * tokens / self.step_tokens + 1e-9) for tokens in wanted}
        least = WARMUP_STEPS + 4
        return tuple(sorted(step * self.step_tokens for step in steps if step >= least))


def demo(
    store,
    *,
    languages: Sequence[str] | None = None,
    families: Mapping[str, str] | None = None,
    seed: int = 0,
    tokens: int = TOKENS,
    fingerprint: str | None = None,
) -> Study:
    """Returns the demo study over a packed token store.

    Args:
      store: an open store; ``families`` maps a language to its family where that is known (the generated
        corpus says so in its truth.json), to choose pairs inside and across families.
      languages: at least two of the store's; all by default.
      seed: of the first of the two seeds.
      tokens: the largest monolingual budget; the others are fixed parts and multiples of it.
      fingerprint: of the store, where it is known already.

    Raises:
      MscaleError: fewer than two languages, an unknown one, or too few tokens to train on.
    """
    chosen = _languages(store, languages, tokens)
    notes = []
    if left_out := [name for name in (languages or store.languages) if name not in chosen]:
        notes.append(
            f"{', '.join(left_out)} left out: less than {_least(tokens):,} tokens of text, too few to train on"
        )
    anchors, order = _anchors(store, chosen, families or {})
    budgets = _Budgets(store, BATCH_SIZE * SEQUENCE_LENGTH)
    cells: list[Cell] = []

    def add(tag: str, scale: str, mixture: Sequence[str], wanted: Sequence[float], **more) -> Cell | None:
        rates = dict.fromkeys(mixture, 1 / len(mixture))
        fitted = budgets.fit(wanted, rates)
        if not fitted:
            return None
        cells.append(Cell(tag, scale, "+".join(mixture), fitted, more.pop("at_seed", seed), **more))
        return cells[-1]

    # Languages alone
    for scale in SCALES:
        for language in anchors:
            add("mono", scale, [language], (tokens / 4, tokens / 2, tokens))
    for language in chosen:
        if language not in anchors:
            for scale in PAIR_SCALES:
                add("mono", scale, [language], (tokens / 2, tokens))
    for language in anchors:
        add("seeds", MIDDLE, [language], (tokens / 4, tokens / 2, tokens), at_seed=seed + 1)

    # Pairs
    for pair in choose_pairs(order, families or {}):
        for scale in PAIR_SCALES:
            add("pairs", scale, pair, (0.625 * tokens, 1.25 * tokens))

    # Uniform mixtures
    counts = [count for count in CAPACITY_K if count <= len(order)]
    if len(counts) < len(CAPACITY_K):
        notes.append(
            f"uniform mixtures of {' and '.join(map(str, counts))} languages only: there are {len(order)}"
        )
    for count in counts:
        wanted = [0.625 * tokens, 1.25 * tokens] if count == 2 else [0.75 * tokens, 1.5 * tokens]
        for scale in CAPACITY_SCALES:
            add("capacity", scale, order[:count], wanted)

    # One language again and again
    repeated = anchors[0]
    for epochs in (4, 16):
        unique = max(1, round(tokens / epochs / SEQUENCE_LENGTH)) * SEQUENCE_LENGTH
        if unique <= store.windows(repeated, SEQUENCE_LENGTH) * SEQUENCE_LENGTH:
            whole = round(tokens / budgets.step_tokens) * budgets.step_tokens
            half = round(tokens / 2 / budgets.step_tokens) * budgets.step_tokens
            limit = ((repeated, unique),)
            cells.append(Cell("repeat", MIDDLE, repeated, (half, whole), seed, unique_tokens=limit))

    # A multilingual checkpoint, and what comes of continuing it
    budget = 2 * tokens
    name = "unimax:" + "+".join(order)
    rates = resolve(name, store, SEQUENCE_LENGTH, budget_tokens=budget)
    unimax = Cell(
        "unimax",
        MIDDLE,
        name,
        budgets.fit((budget,), dict(zip(rates.languages, rates.rates, strict=True))),
        seed,
        evaluate=tuple(order),
    )
    if unimax.tokens:
        cells.append(unimax)
        for index, language in enumerate(order[:4]):
            wanted = [tokens / 2, tokens] if index == 0 else [tokens / 2]
            add("continue", MIDDLE, [language], wanted, init=unimax, evaluate=tuple(order))

    for language, factor in budgets.reduced.items():
        notes.append(
            f"budgets with {language} reduced to as little as {factor:.0%}: the store holds "
            f"{store.train_tokens(language):,} tokens of it, and it is not to be repeated"
        )
    recipe = Recipe(
        store=str(store.path),
        fingerprint=fingerprint or spec.store_fingerprint(store),
        vocabulary_size=int(store.vocabulary["size"]),
        sequence_length=SEQUENCE_LENGTH,
        batch_size=BATCH_SIZE,
        learning_rate=LEARNING_RATE,
        warmup_steps=WARMUP_STEPS,
        evaluations=16,
        unimax_budget=budget,
        bindings={"EVAL_TOKENS": 8192, "LOG_EVERY": 25, "PROGRESS": False},
    )
    return build("demo", cells, recipe, store, notes)


def _least(tokens: int) -> int:
    return max(tokens // 8, (WARMUP_STEPS + 12) * BATCH_SIZE * SEQUENCE_LENGTH)


def _languages(store, languages: Sequence[str] | None, tokens: int) -> list[str]:
    """The store's or the given languages that have enough text."""
    asked = list(dict.fromkeys(languages or store.languages))
    for language in asked:
        if language not in store.languages:
            raise MscaleError(
                f"language {language!r} is not in the token store {store.path}, which has "
                f"{', '.join(store.languages[:12])}{nearest(language, store.languages)}"
            )
    if tokens < 8 * (WARMUP_STEPS + 4) * BATCH_SIZE * SEQUENCE_LENGTH:
        raise MscaleError(
            f"the demo's largest budget is {tokens:,} tokens: expected at least "
            f"{8 * (WARMUP_STEPS + 4) * BATCH_SIZE * SEQUENCE_LENGTH:,}"
        )
    enough = [language for language in asked if store.train_tokens(language) >= _least(tokens)]
    if len(enough) < 2:
        raise MscaleError(
            f"{store.path}: {len(enough)} of {len(asked)} languages have {_least(tokens):,} tokens of text; the "
            "demo needs two. Add text, or choose other languages"
        )
    return enough


def _anchors(store, languages: Sequence[str], families: Mapping[str, str]) -> tuple[list[str], list[str]]:
    """Two languages to study at all scales, of two families where there are, and all with these first."""
    rich = sorted(languages, key=lambda language: -min(store.train_tokens(language), 2 * TOKENS))
    first = rich[0]
    others = [one for one in rich[1:] if families.get(one) != families.get(first) or not families]
    anchors = [first, (others or rich[1:])[0]]
    # Families in turn, so that a mixture of four does not hold one family alone.
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
    """Pairs to train 50/50: each language with three others (two from nine languages on, one from thirteen),
    a few with one more.

    The first two languages are a pair. Where families are known, up to half of a language's pairs, rounded
    up, are inside its family; the others are across families. Else a ring links all languages.
    """
    degree = 3 if len(languages) <= 8 else 2 if len(languages) <= 12 else 1
    count = dict.fromkeys(languages, 0)
    chosen: list[tuple[str, str]] = []
    place = {language: index for index, language in enumerate(languages)}

    def related(pair: tuple[str, str]) -> bool:
        return bool(families) and families.get(pair[0]) == families.get(pair[1])

    def fill(candidates: list[tuple[str, str]], most: int) -> None:
        while open_ := [
            pair
            for pair in candidates
            if pair not in chosen and count[pair[0]] < most and count[pair[1]] < most
        ]:
            take(
                min(open_, key=lambda pair: (count[pair[0]] + count[pair[1]], place[pair[0]], place[pair[1]]))
            )

    def take(pair: tuple[str, str]) -> None:
        chosen.append(pair)
        count[pair[0]] += 1
        count[pair[1]] += 1

    every = list(combinations(languages, 2))
    take(every[0])
    if families:
        fill([pair for pair in every if related(pair)], (degree + 1) // 2 + (degree > 1))
    elif degree > 1:
        fill([pair for pair in every if place[pair[1]] - place[pair[0]] in (1, len(languages) - 1)], 2)
    fill([pair for pair in every if not related(pair)], degree)
    fill(every, degree)
    for language in languages:  # those whose partners were all taken
        while count[language] < min(degree, len(languages) - 1):
            open_ = [pair for pair in every if language in pair and pair not in chosen]
            take(min(open_, key=lambda pair: count[pair[0]] + count[pair[1]]))
    return chosen
