"""Names for SeqIO and T5X: importing this module registers the tasks and mixtures below with SeqIO, lazily.

    import mixtures.registry
    seqio.get_mixture_or_task("madlad400.unimax")

A task or mixture is built when its name is first looked up, so that 420 languages, their pairs and any rates cost
nothing at import. The part after the corpus is mscale's mixture name (`mscale.data.mixture.resolve`) in characters
that SeqIO allows: # for +, a colon for =, and a dot for the hyphen of a language's code.

    madlad400.sw  synthetic.aa  mc4.sw  wiki40b.tr     one language: a task
    madlad400.en#sw                                    uniform over those listed: a mixture
    madlad400.en:0.7#sw:0.3                            explicit rates
    madlad400.uniform  madlad400.temperature5:en#sw    keywords, over all languages or a list; proportional, unimax
                                                       and temperature read sizes in ``corpora.store``, their
                                                       options in gin's ``mixture``
    madlad400.atlas_unimax  madlad400.atlas_8v0        mixtures that ATLAS published
    flores.sw  flores.en:sw                            evaluation; parallel, source and target
    packed.unimax  packed.sw  packed.en:0.7#sw:0.3     the mixture over the token store ``corpora.store`` as one task

The paths of corpora are bound in gin (`mixtures.tasks`). A mixture of SeqIO opens a pipeline for each of its
languages: use ``packed`` for more than about ten.
"""

from collections.abc import Callable, KeysView
from decimal import Decimal
from functools import partial
from typing import Any

import seqio

from mixtures import packed, tasks
from mscale.data import mixture as mixtures

# Corpus → (function that makes the task of one language, function that lists its languages)
_TEXT_CORPORA: dict[str, tuple[Callable[[str, str], seqio.Task], Callable[[], tuple[str, ...]]]] = {
    "madlad400": (tasks.madlad400, lambda: tasks.corpus_languages(tasks.bound_setting("madlad400"))),
    "synthetic": (tasks.synthetic, lambda: tasks.corpus_languages(tasks.bound_setting("synthetic"))),
    "mc4": (tasks.mc4, tasks.mc4_languages),
    "wiki40b": (tasks.wiki40b, tasks.wiki40b_languages),
}
CORPORA = (*_TEXT_CORPORA, "flores", "packed")


def seqio_name(corpus: str, mixture: str) -> str:
    """Returns SeqIO's name of a mixture: ``("madlad400", "en=0.7+sw=0.3")`` → ``madlad400.en:0.7#sw:0.3``."""
    keyword, listed, rates = mixtures.parse_mixture_name(mixture)
    if mixture.startswith(mixtures.ATLAS_PREFIX) and not mixtures.is_keyword(keyword):
        return f"{corpus}.{mixture}"
    codes = [language.replace("-", ".") for language in listed]
    if rates:
        codes = [f"{code}:{Decimal(repr(rate)):f}" for code, rate in zip(codes, rates, strict=True)]
    return f"{corpus}.{keyword}{':' if keyword and codes else ''}{'#'.join(codes)}"


def mixture_name(name: str) -> tuple[str, str] | None:
    """Returns (corpus, name in mscale's grammar) of a SeqIO name, or None where the name is not of this module."""
    corpus, dot, spec = name.partition(".")
    if corpus not in CORPORA or not dot or not spec:
        return None
    keyword, colon, listing = spec.partition(":")
    if mixtures.is_keyword(keyword) or (colon and not listing[:1].isdigit()):
        return corpus, keyword + colon + listing.replace("#", "+").replace(".", "-")
    parts = [part.partition(":") for part in spec.split("#")]
    return corpus, "+".join(
        language.replace(".", "-") + (f"={rate}" if colon else "") for language, colon, rate in parts
    )


class _LazyRegistry(dict):
    """A registry of SeqIO that builds this module's tasks and mixtures when they are looked up.

    They are built at every look-up and not stored, since gin bindings may have changed in between.
    """

    def __init__(self, registered: dict[str, Any], build: Callable[[str], Any]):
        super().__init__(registered)
        self._build = build

    def __contains__(self, name: object) -> bool:
        return super().__contains__(name) or (isinstance(name, str) and self._build(name) is not None)

    def __missing__(self, name: str) -> Any:
        provider = self._build(name)
        if provider is None:
            raise KeyError(name)
        return provider()

    def keys(self) -> KeysView:  # type: ignore[override]
        return KeysView(self)  # dict's own view does not call __contains__


def install() -> None:
    """Registers the names with SeqIO. Importing this module does so; ``TaskRegistry.reset()`` undoes it."""
    for registry, build in ((seqio.TaskRegistry, _task_builder), (seqio.MixtureRegistry, _mixture_builder)):
        registered = registry._REGISTRY
        if not isinstance(registered, _LazyRegistry):
            registry._REGISTRY = _LazyRegistry(registered, build)


def _task_builder(name: str) -> Callable[[], seqio.Task] | None:
    parsed = mixture_name(name)
    if parsed is None:
        return None
    corpus, spec = parsed
    if corpus == "packed":
        return partial(packed.packed_task, name, spec)
    if corpus == "flores":
        source, pair, target = name.partition(".")[2].replace(".", "-").partition(":")
        return partial(
            tasks.flores, name, {"inputs": source, "targets": target} if pair else {"targets": spec}
        )
    if any(character in spec for character in "+=:") or mixtures.is_keyword(spec) or _is_atlas(spec):
        return None
    return partial(_TEXT_CORPORA[corpus][0], name, spec)


def _mixture_builder(name: str) -> Callable[[], seqio.Mixture] | None:
    parsed = mixture_name(name)
    if parsed is None or parsed[0] not in _TEXT_CORPORA or _task_builder(name) is not None:
        return None
    return partial(_seqio_mixture, name, *parsed)


def _seqio_mixture(name: str, corpus: str, spec: str) -> seqio.Mixture:
    make, languages = _TEXT_CORPORA[corpus]
    keyword, listed, _ = mixtures.parse_mixture_name(spec)
    sized = keyword.startswith(("proportional", "temperature", "unimax"))
    sizes = tasks.bound_store() if sized else _EqualSizes(tuple(listed) or languages())
    resolved = mixtures.resolve(spec, sizes, 1, options=mixtures.gin_sampling_options())
    return seqio.Mixture(
        name,
        [
            (make(seqio_name(corpus, language), language), rate)
            for language, rate in zip(resolved.languages, resolved.rates, strict=True)
            if rate > 0
        ],
    )


class _EqualSizes:
    """Languages of equal size, for mixtures whose rates do not depend on sizes."""

    def __init__(self, languages: tuple[str, ...]):
        self.languages = languages

    def windows(self, language: str, sequence_length: int) -> int:
        return 1

    def train_tokens(self, language: str) -> int:
        return 1


def _is_atlas(spec: str) -> bool:
    return spec.startswith(mixtures.ATLAS_PREFIX)


install()
