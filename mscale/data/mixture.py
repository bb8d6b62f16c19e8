"""Mixtures: which languages, at which rates, and how many unique windows of each a run may see."""

import difflib
import math
import re
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import gin
import numpy as np

from mscale import languages as inventory
from mscale import sampling
from mscale.errors import MscaleError, nearest

KEYWORDS = ("uniform", "proportional", "temperature", "unimax", "atlas_unimax")
ATLAS_PREFIX = "atlas_"  # and the name of a capacity mixture, such as atlas_8v0
_SUM_TOLERANCE = 1e-6


class Sizes(Protocol):
    """What ``resolve`` asks of a store."""

    @property
    def languages(self) -> tuple[str, ...]: ...
    def windows(self, language: str, sequence_length: int) -> int: ...
    def train_tokens(self, language: str) -> int: ...


@dataclass(frozen=True)
class Mixture:
    """Languages with their rates (summing to 1) and their unique windows of ``sequence_length`` tokens.

    Raises:
      MscaleError: no language, one twice, rates that do not fit the languages, are negative, not finite, or
        do not sum to 1 (to 1e-6), or a language with a rate but no window.
    """

    name: str
    languages: tuple[str, ...]
    rates: tuple[float, ...]
    unique_windows: tuple[int, ...]
    sequence_length: int

    def __post_init__(self) -> None:
        check_rates(self.name, self.languages, self.rates)
        if len(self.unique_windows) != len(self.languages):
            raise MscaleError(
                f"mixture {self.name!r}: {len(self.unique_windows)} window counts for "
                f"{len(self.languages)} languages"
            )
        for language, rate, windows in zip(self.languages, self.rates, self.unique_windows, strict=True):
            if windows < 1 and rate > 0:
                raise MscaleError(
                    f"mixture {self.name!r}: {language} has rate {rate:g} but no window of text"
                )

    @property
    def unique_tokens(self) -> dict[str, int]:
        """U of each language: the unique tokens a run on this mixture can see (whole windows)."""
        return {
            language: windows * self.sequence_length
            for language, windows in zip(self.languages, self.unique_windows, strict=True)
        }


def check_rates(name: str, languages: Sequence[str], rates: Sequence[float]) -> None:
    """Raises a MscaleError naming ``name`` unless ``rates`` fit ``languages``, are ≥ 0 and sum to 1."""
    if not languages:
        raise MscaleError(f"mixture {name!r}: no language; expected at least one")
    twice = sorted({language for language in languages if list(languages).count(language) > 1})
    if twice:
        raise MscaleError(f"mixture {name!r}: {', '.join(twice)} named more than once")
    if len(rates) != len(languages):
        raise MscaleError(
            f"mixture {name!r}: {len(rates)} rates for {len(languages)} languages; expected one for each"
        )
    bad = [
        f"{language}={rate}" for language, rate in zip(languages, rates, strict=True) if not 0 <= rate <= 1
    ]
    if bad:
        raise MscaleError(f"mixture {name!r}: rates {', '.join(bad)}; expected numbers from 0 to 1")
    total = math.fsum(rates)
    if abs(total - 1) > _SUM_TOLERANCE:
        raise MscaleError(f"mixture {name!r}: the rates sum to {total:.9g}, expected 1")


@gin.configurable("mixture")  # type: ignore[attr-defined]  # mypy takes the folder gin/ for it
def _bound(
    budget_tokens: float | None = None,
    max_epochs: float = 1.0,
    temperature: float | None = None,
    caps: Mapping[str, float] | None = None,
    drop_short: bool = False,
) -> dict[str, Any]:
    """What gin files and ``--gin.mixture.NAME=VALUE`` say; apart, as gin adds to the messages of what it
    wraps."""
    return dict(locals())


def resolve(
    name: str,
    store: Sizes,
    sequence_length: int,
    unique_tokens: Mapping[str, int] | None = None,
    budget_tokens: float | None = None,
    max_epochs: float | None = None,
    temperature: float | None = None,
    caps: Mapping[str, float] | None = None,
    drop_short: bool | None = None,
) -> Mixture:
    """Returns the mixture that ``name`` stands for over the languages of ``store``.

    Names: ``en`` alone · ``en+fr`` uniform over those listed · ``en=0.7+fr=0.3`` explicit rates (summing to
    1) · ``uniform``, ``proportional``, ``temperature``, ``unimax`` over the whole store, or over a list:
    ``unimax:en+fr+sw`` · ``temperature5`` with its T · ``atlas_unimax``, the rates that ATLAS publishes for
    419 languages (Table B.4), or those of a list, divided by their sum · ``atlas_4v0`` to ``atlas_50v0``, its
    capacity mixtures (Table B.5). A language is found by any of its codes (``he`` where the store has
    ``iw``).

    What is None below is taken from gin's ``mixture`` (``--gin.mixture.temperature=5``).

    Args:
      name: the name, as above.
      store: the token store (or anything with its ``languages``, ``windows`` and ``train_tokens``).
      sequence_length: S, tokens of a window.
      unique_tokens: limits a language to its first U tokens (a multiple of S), for runs that repeat data.
      budget_tokens: tokens of the whole run; UniMax needs it.
      max_epochs: UniMax's limit on repetition (Chung et al. 2023; 1 unless set).
      temperature: T of temperature sampling, rate ∝ tokens^(1/T).
      caps: UniMax's largest rates, as ``{"en": 0.05}``.
      drop_short: leave out languages with less than one window (of a keyword without a list; of
        ``atlas_unimax`` also those that the store does not have) instead of failing.

    Raises:
      MscaleError: unknown languages (with the nearest), unusable rates, languages with less than one window
        (all of them, in one message), a limit that is no multiple of S or more than there is, a missing
        option.
    """
    if sequence_length < 1:
        raise MscaleError(f"sequence length is {sequence_length}, expected at least 1")
    given = {
        "budget_tokens": budget_tokens,
        "max_epochs": max_epochs,
        "temperature": temperature,
        "caps": caps,
        "drop_short": drop_short,
    }
    options = {**_bound(), **{key: value for key, value in given.items() if value is not None}}
    keyword, listed, explicit = parse_mixture_name(name)
    keyword, T = _temperature(name, keyword, options["temperature"])
    rates: Sequence[float] | np.ndarray
    asked = listed
    if keyword == "atlas_unimax" and not listed:
        asked = [
            language
            for language in inventory.codes()
            if not options["drop_short"] or inventory.find(language, store.languages)
        ]
    asked = _as_in(store, asked)
    _check_known(f"mixture {name!r}", asked, store.languages)
    languages = tuple(asked) or tuple(store.languages)
    unique_tokens = dict(zip(_as_in(store, unique_tokens or {}), (unique_tokens or {}).values(), strict=True))
    caps = dict(zip(_as_in(store, options["caps"] or {}), (options["caps"] or {}).values(), strict=True))
    windows = {language: store.windows(language, sequence_length) for language in languages}
    short = [language for language in languages if windows[language] < 1]
    if short and options["drop_short"] and not listed:
        languages = tuple(language for language in languages if language not in set(short))
        short = []
        if not languages:
            raise MscaleError(
                f"mixture {name!r}: no language of the store has {sequence_length} tokens of train text; "
                "take a shorter sequence length or pack more text"
            )
    if short:
        raise MscaleError(_short_message(name, short, store, sequence_length, bool(listed)))
    for language, tokens in unique_tokens.items():
        windows[language] = _limited(name, language, tokens, windows, sequence_length)

    sizes = np.array([windows[language] for language in languages], np.float64) * sequence_length
    if caps and keyword != "unimax":
        raise MscaleError(
            f"mixture {name!r}: caps are of UniMax only, expected a name that starts with 'unimax'"
        )
    if keyword == "temperature":
        if T is None:
            raise MscaleError(
                f"mixture {name!r}: no temperature T given; write temperature5, or set "
                "--gin.mixture.temperature (1: proportional, inf: uniform)"
            )
        rates = sampling.temperature(sizes, T)
    elif keyword == "proportional":
        rates = sampling.proportional(sizes)
    elif keyword == "unimax":
        if options["budget_tokens"] is None:
            raise MscaleError(
                f"mixture {name!r}: UniMax needs the tokens of the run; set --gin.mixture.budget_tokens"
            )
        _check_known(f"caps of mixture {name!r}", list(caps), languages)
        limits = [caps.get(language, 1.0) for language in languages]
        rates = sampling.unimax(sizes, options["budget_tokens"], options["max_epochs"], limits)
    elif keyword == "atlas_unimax":
        published = inventory.published_rates()
        _check_known(f"rates of mixture {name!r}", [inventory.canonical(one) for one in languages], published)
        rates = sampling.proportional([published[inventory.canonical(language)] for language in languages])
    else:
        rates = explicit or sampling.uniform(len(languages))
    return Mixture(
        name=name,
        languages=languages,
        rates=tuple(float(rate) for rate in rates),
        unique_windows=tuple(windows[language] for language in languages),
        sequence_length=sequence_length,
    )


def is_keyword(word: str) -> bool:
    """Whether ``word`` is a kind of mixture, such as ``unimax`` or ``temperature5``."""
    return word in KEYWORDS or _TEMPERATURE.fullmatch(word) is not None


def parse_mixture_name(name: str) -> tuple[str, list[str], list[float] | None]:
    """Splits a mixture's name into (keyword or "", languages listed, explicit rates or None).

    Raises:
      MscaleError: an empty part, a rate that is no number, or rates for only some of the languages.
    """
    keyword, colon, rest = name.strip().partition(":")
    capacity = inventory.capacity_mixtures()
    if not colon and keyword.removeprefix(ATLAS_PREFIX) in capacity and keyword.startswith(ATLAS_PREFIX):
        return "", list(capacity[keyword.removeprefix(ATLAS_PREFIX)]), None
    if not is_keyword(keyword) and (colon or keyword.startswith(ATLAS_PREFIX)):
        names = [*KEYWORDS, *(ATLAS_PREFIX + one for one in capacity)]
        raise MscaleError(
            f"mixture {name!r}: {keyword!r} is no kind of mixture; expected one of "
            f"{', '.join(names)}{nearest(keyword, names)}"
        )
    if not colon and is_keyword(keyword):
        return keyword, [], None
    keyword, listing = (keyword, rest) if colon else ("", name)
    languages, rates = [], []
    for part in listing.split("+"):
        language, equals, rate = (piece.strip() for piece in part.partition("="))
        if not language:
            raise MscaleError(
                f"mixture {name!r}: a part names no language; write en, en+fr, en=0.7+fr=0.3 or one "
                f"of {', '.join(KEYWORDS)}"
            )
        languages.append(language)
        if equals:
            try:
                rates.append(float(rate))
            except ValueError:
                raise MscaleError(
                    f"mixture {name!r}: the rate of {language} is {rate!r}, expected a number"
                ) from None
    if rates and keyword:
        raise MscaleError(
            f"mixture {name!r}: {keyword} works out the rates itself; list languages only, or drop "
            f"'{keyword}:'"
        )
    if rates:
        check_rates(name, languages, rates)
    else:
        check_rates(name, languages, [1 / len(languages)] * len(languages))
    return keyword, languages, rates or None


_TEMPERATURE = re.compile(r"temperature(\d+(?:\.\d+)?|inf)")


def _temperature(name: str, keyword: str, bound: float | None) -> tuple[str, float | None]:
    """The keyword without its number, and T: of the name, or what was bound."""
    match = _TEMPERATURE.fullmatch(keyword)
    if not match:
        return keyword, bound
    if bound is not None and bound != float(match[1]):
        raise MscaleError(
            f"mixture {name!r}: T is {match[1]} by its name, but temperature={bound:g} is given"
        )
    return "temperature", float(match[1])


def _as_in(store: Sizes, languages: Iterable[str]) -> list[str]:
    """The codes by which the store has them; those that it has not stay as they are."""
    return [inventory.find(language, store.languages) or language for language in languages]


def _check_known(what: str, asked: Sequence[str], known: Collection[str]) -> None:
    missing = [language for language in asked if language not in set(known)]
    if missing:
        hints = "; ".join(f"{language} is not there{_near(language, known)}" for language in missing)
        shown = ", ".join(list(known)[:20]) + (f" and {len(known) - 20} more" if len(known) > 20 else "")
        raise MscaleError(f"{what}: {hints}. There are: {shown}")


def _near(language: str, known: Collection[str]) -> str:
    # Codes are short: one letter off is a ratio of 0.5.
    found = difflib.get_close_matches(language, list(known), n=3, cutoff=0.5)
    return " (did you mean " + " or ".join(map(repr, found)) + "?)" if found else ""


def _limited(name: str, language: str, tokens: int, windows: Mapping[str, int], sequence_length: int) -> int:
    _check_known(f"unique_tokens for mixture {name!r}", [language], list(windows))
    if tokens <= 0 or tokens % sequence_length:
        below = max(tokens // sequence_length, 1) * sequence_length
        raise MscaleError(
            f"unique_tokens for mixture {name!r}: {language} is limited to {tokens:,} tokens, "
            "expected a multiple of "
            f"the sequence length {sequence_length:,} above 0, such as {below:,}"
        )
    limited = int(tokens) // sequence_length
    if limited > windows[language]:
        raise MscaleError(
            f"unique_tokens for mixture {name!r}: {language} is limited to {tokens:,} tokens but the "
            "store has only "
            f"{windows[language] * sequence_length:,} in whole windows; lower the limit or pack more text"
        )
    return limited


def _short_message(name: str, short: Sequence[str], store: Sizes, sequence_length: int, listed: bool) -> str:
    found = ", ".join(f"{language} ({store.train_tokens(language):,})" for language in short)
    remedy = "leave them out of the mixture" if listed else "drop them with --gin.mixture.drop_short=True"
    return (
        f"mixture {name!r}: {len(short)} language(s) have less train text than one window of "
        f"{sequence_length:,} "
        f"tokens: {found}. Take a shorter sequence length, pack more text, or {remedy}"
    )
