"""Names for SeqIO and T5X: importing this module makes every task and mixture below known to SeqIO, lazily.

    import mixtures.registry
    seqio.get_mixture_or_task("madlad400.unimax")

Nothing is built until its name is asked for, so that 420 languages, their pairs and any rates cost nothing at
import. What stands after the corpus is mscale's grammar of mixtures (`mscale.data.mixture.resolve`) in characters that
SeqIO allows: # for +, a colon for =, and a dot for the hyphen of a language's code.

    madlad400.sw  synthetic.aa  mc4.sw  wiki40b.tr     one language: a task
    madlad400.en#sw                                    uniform over those listed: a mixture
    madlad400.en:0.7#sw:0.3                            explicit rates
    madlad400.uniform  madlad400.temperature5:en#sw    keywords, over all languages or a list; proportional, unimax
                                                       and temperature read sizes in ``corpora.store``, their
                                                       options in gin's ``mixture``
    madlad400.atlas_unimax  madlad400.atlas_8v0        what ATLAS published
    flores.sw  flores.en:sw                            evaluation; parallel, source and target
    packed.unimax  packed.sw  packed.en:0.7#sw:0.3     the mixture over the token store ``corpora.store`` as one task

Where corpora are is bound in gin (`mixtures.tasks`). A mixture of SeqIO opens a pipeline for each of its languages:
take ``packed`` beyond about ten.
"""

from collections.abc import Callable, KeysView
from decimal import Decimal
from functools import partial
from typing import Any

import seqio

from mixtures import packed, tasks
from mscale.data import mixture as mixtures

# Corpus → (one language as a task, its languages)
_TEXT: dict[str, tuple[Callable[[str, str], seqio.Task], Callable[[], tuple[str, ...]]]] = {
    "madlad400": (tasks.madlad400, lambda: tasks.corpus_languages(tasks.bound_setting("madlad400"))),
    "synthetic": (tasks.synthetic, lambda: tasks.corpus_languages(tasks.bound_setting("synthetic"))),
    "mc4": (tasks.mc4, tasks.mc4_languages),
    "wiki40b": (tasks.wiki40b, tasks.wiki40b_languages),
}
CORPORA = (*_TEXT, "flores", "packed")


def seqio_name(corpus: str, mixture: str) -> str:
    """Returns SeqIO's name of a mixture: ``("madlad400", "en=0.7+sw=0.3")`` → ``madlad400.en:0.7#sw:0.3``."""
    keyword, listed, rates = mixtures.parse(mixture)
    if mixture.startswith(mixtures.ATLAS) and not mixtures.is_keyword(keyword):
        return f"{corpus}.{mixture}"
    codes = [language.replace("-", ".") for language in listed]
    if rates:
        codes = [f"{code}:{Decimal(repr(rate)):f}" for code, rate in zip(codes, rates, strict=True)]
    return f"{corpus}.{keyword}{':' if keyword and codes else ''}{'#'.join(codes)}"


def mixture_name(name: str) -> tuple[str, str] | None:
    """Returns (corpus, name in mscale's grammar) of a SeqIO name, or None if it is not one of ours."""
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


class _Lazy(dict):
    """A registry of SeqIO that builds a provider of ours when its name is first looked up.

    Names that depend on what gin binds are built at every look-up: bindings may have changed.
    """

    def __init__(self, kept: dict[str, Any], build: Callable[[str], Any]):
        super().__init__(kept)
        self._build = build

    def __contains__(self, name: object) -> bool:
        return super().__contains__(name) or (isinstance(name, str) and self._build(name) is not None)

    def __missing__(self, name: str) -> Any:
        provider = self._build(name)
        if provider is None:
            raise KeyError(name)
        return provider()

    def keys(self) -> KeysView:  # type: ignore[override]
        return KeysView(self)  # dict's own would not ask __contains__


def install() -> None:
    """Makes the names known to SeqIO; importing the module does, and ``TaskRegistry.reset()`` undoes it."""
    for registry, build in ((seqio.TaskRegistry, _task), (seqio.MixtureRegistry, _mixture)):
        kept = registry._REGISTRY
        if not isinstance(kept, _Lazy):
            registry._REGISTRY = _Lazy(kept, build)


def _task(name: str) -> Callable[[], seqio.Task] | None:
    ours = mixture_name(name)
    if ours is None:
        return None
    corpus, spec = ours
    if corpus == "packed":
        return partial(packed.packed_task, name, spec)
    if corpus == "flores":
        source, pair, target = name.partition(".")[2].replace(".", "-").partition(":")
        return (
            partial(tasks.flores_parallel, name, source, target)
            if pair
            else partial(tasks.flores, name, spec)
        )
    if any(character in spec for character in "+=:") or mixtures.is_keyword(spec) or _is_atlas(spec):
        return None
    return partial(_TEXT[corpus][0], name, spec)


def _mixture(name: str) -> Callable[[], seqio.Mixture] | None:
    ours = mixture_name(name)
    if ours is None or ours[0] not in _TEXT or _task(name) is not None:
        return None
    return partial(_seqio_mixture, name, *ours)


def _seqio_mixture(name: str, corpus: str, spec: str) -> seqio.Mixture:
    make, languages = _TEXT[corpus]
    keyword, listed, _ = mixtures.parse(spec)
    sized = keyword.startswith(("proportional", "temperature", "unimax"))
    sizes = tasks.bound_store() if sized else _Unsized(tuple(listed) or languages())
    resolved = mixtures.resolve(spec, sizes, 1)
    return seqio.Mixture(
        name,
        [
            (make(seqio_name(corpus, language), language), rate)
            for language, rate in zip(resolved.languages, resolved.rates, strict=True)
            if rate > 0
        ],
    )


class _Unsized:
    """Languages whose sizes do not matter for the rates."""

    def __init__(self, languages: tuple[str, ...]):
        self.languages = languages

    def windows(self, language: str, sequence_length: int) -> int:
        return 1

    def train_tokens(self, language: str) -> int:
        return 1


def _is_atlas(spec: str) -> bool:
    return spec.startswith(mixtures.ATLAS)


install()
