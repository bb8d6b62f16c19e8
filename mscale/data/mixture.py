"""Mixtures: languages, their sampling rates, and how many unique windows of each a run may train on."""

import difflib
import math
import re
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Annotated, Protocol, TypeVar

import gin
import numpy as np
from msgspec import Meta

from mscale import languages as inventory
from mscale import sampling
from mscale.errors import MscaleError, nearest

KEYWORDS = ("uniform", "proportional", "temperature", "unimax", "atlas_unimax")
ATLAS_PREFIX = "atlas_"  # before the name of one of ATLAS's capacity mixtures, as in atlas_8v0
_SUM_TOLERANCE = 1e-6
_V = TypeVar("_V")


class Sizes(Protocol):
    """The part of a token store that ``resolve`` uses."""

    @property
    def languages(self) -> tuple[str, ...]: ...
    def windows(self, language: str, sequence_length: int) -> int: ...
    def train_tokens(self, language: str) -> int: ...


@dataclass(frozen=True)
class Mixture:
    """Languages with their rates and unique windows.

    Attributes:
      name: as the user wrote it.
      languages: codes in the store.
      rates: of each language, summing to 1.
      unique_windows: number of different windows of each language that a run may use.
      sequence_length: S, tokens of a window.

    Raises:
      MscaleError: there is no language, one occurs twice, the rates do not fit the languages, are negative, not
        finite, or do not sum to 1 (to 1e-6), or a language has a rate but no window.
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
        """U of each language: the unique tokens (in whole windows) that a run on this mixture can train on."""
        return {
            language: windows * self.sequence_length
            for language, windows in zip(self.languages, self.unique_windows, strict=True)
        }


def check_rates(name: str, languages: Sequence[str], rates: Sequence[float]) -> None:
    """Checks the rates of the mixture ``name``.

    Raises:
      MscaleError: ``rates`` do not fit ``languages``, are not in [0, 1], or do not sum to 1; or there is no
        language, or one twice.
    """
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


@dataclass(frozen=True)
class SamplingOptions:
    """Options of the kinds of sampling; gin's ``mixture`` (``--gin.mixture.temperature=5``).

    Attributes:
      budget_tokens: tokens of the whole run; UniMax needs it.
      max_epochs: UniMax's limit on repetition (Chung et al. 2023).
      temperature: T of temperature sampling, rate ∝ tokens^(1/T).
      caps: UniMax's largest rates, as ``{"en": 0.05}``.
      drop_short: leave out languages with less than one window instead of failing. It applies to a keyword without
        a list; for ``atlas_unimax`` also to languages that the store does not have.
    """

    budget_tokens: Annotated[float, Meta(gt=0)] | None = None
    max_epochs: Annotated[float, Meta(gt=0)] = 1.0
    temperature: Annotated[float, Meta(gt=0)] | None = None
    caps: Mapping[str, float] | None = None
    drop_short: bool = False


# Call it once where a program reads its settings: ``resolve`` itself reads no configuration.
gin_sampling_options = gin.external_configurable(SamplingOptions, "mixture", module="mscale")


def resolve(
    name: str,
    store: Sizes,
    sequence_length: int,
    unique_tokens: Mapping[str, int] | None = None,
    options: SamplingOptions = SamplingOptions(),  # immutable
) -> Mixture:
    """Returns the mixture that ``name`` stands for over the languages of ``store``; a pure function.

    Names: ``en`` alone · ``en+fr`` uniform over those listed · ``en=0.7+fr=0.3`` explicit rates (summing to
    1) · ``uniform``, ``proportional``, ``temperature``, ``unimax`` over the whole store, or over a list:
    ``unimax:en+fr+sw`` · ``temperature5`` with its T · ``atlas_unimax``, the rates that ATLAS publishes for
    419 languages (Table B.4), or those of a list, divided by their sum · ``atlas_4v0`` to ``atlas_50v0``, its
    capacity mixtures (Table B.5). A language is found by any of its codes (``he`` if the store has ``iw``).

    Args:
      name: the name, as above.
      store: the token store (or anything with its ``languages``, ``windows`` and ``train_tokens``).
      sequence_length: S, tokens of a window.
      unique_tokens: limits a language to its first U tokens (a multiple of S), for runs that repeat data.
      options: of the kind of sampling.

    Raises:
      MscaleError: unknown languages (with the nearest), unusable rates, languages with less than one window
        (all of them, in one message), a limit that is no multiple of S or above the available tokens, a missing
        option.
    """
    if sequence_length < 1:
        raise MscaleError(f"sequence length is {sequence_length}, expected at least 1")
    keyword, listed, explicit_rates = parse_mixture_name(name)
    keyword, T = _temperature(name, keyword, options.temperature)
    languages = _requested_languages(name, keyword, listed, store, options.drop_short)
    windows = {language: store.windows(language, sequence_length) for language in languages}
    short = [language for language in languages if windows[language] < 1]
    if short and options.drop_short and not listed:
        languages = tuple(language for language in languages if language not in set(short))
        short = []
        if not languages:
            raise MscaleError(
                f"mixture {name!r}: no language of the store has {sequence_length} tokens of train text; "
                "take a shorter sequence length or pack more text"
            )
    if short:
        raise MscaleError(_short_message(name, short, store, sequence_length, bool(listed)))
    for language, tokens in _by_store_code(store, unique_tokens).items():
        windows[language] = _limited_windows(name, language, tokens, windows, sequence_length)
    sizes = np.array([windows[language] for language in languages], np.float64) * sequence_length
    caps = _by_store_code(store, options.caps)
    if caps and keyword != "unimax":
        raise MscaleError(
            f"mixture {name!r}: caps are of UniMax only, expected a name that starts with 'unimax'"
        )
    if explicit_rates:
        rates: Sequence[float] | np.ndarray = explicit_rates
    else:
        options = replace(options, temperature=T, caps=caps)
        rates = _rates_of_keyword(name, keyword, languages, sizes, options)
    return Mixture(
        name=name,
        languages=languages,
        rates=tuple(float(rate) for rate in rates),
        unique_windows=tuple(windows[language] for language in languages),
        sequence_length=sequence_length,
    )


def _requested_languages(
    name: str, keyword: str, listed: Sequence[str], store: Sizes, drop_short: bool
) -> tuple[str, ...]:
    """Codes in the store of the languages that a mixture's name asks for.

    Raises:
      MscaleError: the store does not have one of them.
    """
    requested: Sequence[str] = listed
    if keyword == "atlas_unimax" and not listed:
        requested = [
            language
            for language in inventory.codes()
            if not drop_short or inventory.find(language, store.languages)
        ]
    codes = _store_codes(store, requested)
    _check_known(f"mixture {name!r}", codes, store.languages)
    return tuple(codes) or tuple(store.languages)


def _rates_of_keyword(
    name: str,
    keyword: str,
    languages: Sequence[str],
    sizes: np.ndarray,
    options: SamplingOptions,
) -> np.ndarray:
    """Rates of a kind of sampling, (languages,); without a keyword they are uniform.

    Args:
      name: of the mixture, for errors.
      keyword: one of ``KEYWORDS``, or "".
      languages: codes in the store.
      sizes: tokens of each language.
      options: with the store's codes as keys of ``caps``.

    Raises:
      MscaleError: an option is missing, or a cap is of an unknown language.
    """
    if keyword == "temperature":
        if options.temperature is None:
            raise MscaleError(
                f"mixture {name!r}: no temperature T given; write temperature5, or set "
                "--gin.mixture.temperature (1: proportional, inf: uniform)"
            )
        return sampling.temperature(sizes, options.temperature)
    if keyword == "proportional":
        return sampling.proportional(sizes)
    if keyword == "unimax":
        if options.budget_tokens is None:
            raise MscaleError(
                f"mixture {name!r}: UniMax needs the tokens of the run; set --gin.mixture.budget_tokens"
            )
        caps = options.caps or {}
        _check_known(f"caps of mixture {name!r}", list(caps), languages)
        limits = [caps.get(language, 1.0) for language in languages]
        return sampling.unimax(sizes, options.budget_tokens, options.max_epochs, limits)
    if keyword == "atlas_unimax":
        published = inventory.published_rates()
        _check_known(f"rates of mixture {name!r}", [inventory.canonical(one) for one in languages], published)
        return sampling.proportional([published[inventory.canonical(language)] for language in languages])
    return sampling.uniform(len(languages))


def is_keyword(word: str) -> bool:
    """Whether ``word`` is a kind of mixture, such as ``unimax`` or ``temperature5``."""
    return word in KEYWORDS or _TEMPERATURE.fullmatch(word) is not None


def unnameable(codes: Iterable[str]) -> list[str]:
    """Returns the codes of languages that no mixture can name: those with + = : or a blank in them, and keywords."""

    def means_itself(code: str) -> bool:
        try:
            return parse_mixture_name(code) == ("", [code], None)
        except MscaleError:
            return False

    return [code for code in codes if " " in code or not code.isprintable() or not means_itself(code)]


def parse_mixture_name(name: str) -> tuple[str, list[str], list[float] | None]:
    """Splits a mixture's name into (keyword or "", languages listed, explicit rates or None).

    Raises:
      MscaleError: a part is empty, a rate is not a number, or only some of the languages have rates.
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
    check_rates(name, languages, rates or [1 / len(languages)] * len(languages))
    return keyword, languages, rates or None


_TEMPERATURE = re.compile(r"temperature(\d+(?:\.\d+)?|inf)")


def _temperature(name: str, keyword: str, option: float | None) -> tuple[str, float | None]:
    """The keyword without its number, and T from that number, else from the option."""
    match = _TEMPERATURE.fullmatch(keyword)
    if not match:
        return keyword, option
    if option is not None and option != float(match[1]):
        raise MscaleError(
            f"mixture {name!r}: T is {match[1]} by its name, but temperature={option:g} is given"
        )
    return "temperature", float(match[1])


def _store_codes(store: Sizes, languages: Iterable[str]) -> list[str]:
    """The store's codes for these languages; a language that it does not have keeps its code."""
    return [inventory.find(language, store.languages) or language for language in languages]


def _by_store_code(store: Sizes, values: Mapping[str, _V] | None) -> dict[str, _V]:
    """``values`` with the store's codes as keys; None is empty."""
    return dict(zip(_store_codes(store, values or {}), (values or {}).values(), strict=True))


def _check_known(what: str, requested: Sequence[str], known: Collection[str]) -> None:
    """Raises an error that names the languages of ``requested`` that are not in ``known``, and the nearest ones."""
    missing = [language for language in requested if language not in set(known)]
    if missing:
        hints = "; ".join(f"{language} is not there{_near(language, known)}" for language in missing)
        shown = ", ".join(list(known)[:20]) + (f" and {len(known) - 20} more" if len(known) > 20 else "")
        raise MscaleError(f"{what}: {hints}. There are: {shown}")


def _near(language: str, known: Collection[str]) -> str:
    # Language codes have two or three letters: with one wrong letter the similarity ratio is 0.5.
    found = difflib.get_close_matches(language, list(known), n=3, cutoff=0.5)
    return " (did you mean " + " or ".join(map(repr, found)) + "?)" if found else ""


def _limited_windows(
    name: str, language: str, tokens: int, windows: Mapping[str, int], sequence_length: int
) -> int:
    """Windows of a language that is limited to ``tokens`` unique tokens."""
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
