"""Mixture names: their languages, rates and unique windows, and an error for every invalid name or option."""

import gin
import numpy as np
import pytest

from mscale import languages, sampling
from mscale.data.mixture import Mixture, SamplingOptions, gin_sampling_options, parse_mixture_name, resolve
from mscale.errors import MscaleError


class Sizes:
    """A store with the methods that mixtures use."""

    def __init__(self, **tokens):
        self.tokens = tokens
        self.languages = tuple(tokens)

    def train_tokens(self, language):
        return self.tokens[language]

    def windows(self, language, sequence_length):
        return self.tokens[language] // sequence_length


STORE = Sizes(en=10_000, fr=4_000, sw=990)


@pytest.mark.parametrize(
    ("name", "languages", "rates"),
    [
        ("en", ("en",), (1.0,)),
        ("en+fr", ("en", "fr"), (0.5, 0.5)),
        ("fr=0.3 + en=0.7", ("fr", "en"), (0.3, 0.7)),
        ("uniform", ("en", "fr", "sw"), (1 / 3, 1 / 3, 1 / 3)),
        ("uniform:fr+sw", ("fr", "sw"), (0.5, 0.5)),
        ("proportional:en+fr", ("en", "fr"), (10 / 14, 4 / 14)),
    ],
)
def test_names(name, languages, rates):
    mixture = resolve(name, STORE, 100)
    assert mixture.languages == languages
    np.testing.assert_allclose(mixture.rates, rates)
    assert mixture.name == name


def test_rates_follow_whole_windows_and_the_named_sampling():
    c = [10_000, 4_000, 900]  # sw: 9 whole windows of 100
    np.testing.assert_allclose(resolve("proportional", STORE, 100).rates, sampling.proportional(c))
    np.testing.assert_allclose(
        resolve("temperature", STORE, 100, options=SamplingOptions(temperature=5)).rates,
        sampling.temperature(c, 5),
    )
    unimax = resolve(
        "unimax", STORE, 100, options=SamplingOptions(budget_tokens=9_000, max_epochs=2, caps={"en": 0.25})
    )
    np.testing.assert_allclose(unimax.rates, sampling.unimax(c, 9_000, 2, [0.25, 1, 1]))
    assert unimax.rates[0] == pytest.approx(0.25)
    assert unimax.unique_tokens == dict(zip(STORE.languages, c, strict=True))


def test_unique_tokens_limit_windows_and_what_sampling_sees():
    mixture = resolve("proportional:en+fr", STORE, 100, unique_tokens={"en": 2_000})
    assert mixture.unique_windows == (20, 40)
    np.testing.assert_allclose(mixture.rates, (1 / 3, 2 / 3))
    assert mixture.unique_tokens == {"en": 2_000, "fr": 4_000}


def test_temperature_in_the_name():
    expected = sampling.temperature([10_000, 4_000, 900], 5)
    np.testing.assert_allclose(resolve("temperature5", STORE, 100).rates, expected)
    np.testing.assert_allclose(
        resolve("temperature5", STORE, 100, options=SamplingOptions(temperature=5)).rates, expected
    )
    np.testing.assert_allclose(
        resolve("temperature2.5:en+fr", STORE, 100).rates, sampling.temperature([10, 4], 2.5)
    )
    np.testing.assert_allclose(resolve("temperatureinf", STORE, 100).rates, 1 / 3)


def test_what_atlas_publishes():
    everything = Sizes(**{("he" if code == "iw" else code): 1000 for code in languages.codes()})
    published = resolve("atlas_unimax", everything, 100)
    assert published.languages[:2] == ("en", "af")
    assert "he" in published.languages
    assert dict(zip(published.languages, published.rates, strict=True))["he"] == pytest.approx(
        0.0142 / 0.9992524
    )
    assert sum(published.rates) == pytest.approx(1)
    part = resolve("atlas_unimax:sw+en", STORE, 100)
    assert part.rates[1] / part.rates[0] == pytest.approx(5 / 0.719, rel=1e-2)
    assert resolve("atlas_unimax", STORE, 100, options=SamplingOptions(drop_short=True)).languages == (
        "en",
        "fr",
        "sw",
    )
    capacity = resolve("atlas_50v0", everything, 100)
    assert len(capacity.languages) == 50
    assert "he" in capacity.languages
    assert set(capacity.rates) == {0.02}
    assert resolve("atlas_4v1", everything, 100).languages == ("de", "en", "es", "fr")


def test_a_language_is_found_by_any_of_its_codes():
    store = Sizes(en=10_000, iw=4_000)
    mixture = resolve(
        "unimax:en+he",
        store,
        100,
        {"he": 2_000},
        options=SamplingOptions(budget_tokens=4_000, caps={"he": 0.2}),
    )
    assert mixture.languages == ("en", "iw")
    assert mixture.unique_tokens["iw"] == 2_000
    assert mixture.rates == pytest.approx((0.8, 0.2))
    with pytest.raises(MscaleError, match="iw named more than once"):
        resolve("he+iw", store, 100)


def test_languages_with_less_than_a_window_are_listed_together_with_the_flag_that_drops_them():
    store = Sizes(en=10_000, aa=5, bb=0, cc=99)
    with pytest.raises(MscaleError) as raised:
        resolve("uniform", store, 100)
    message = str(raised.value)
    assert all(part in message for part in ("aa (5)", "bb (0)", "cc (99)", "--gin.mixture.drop_short=True"))
    assert resolve("uniform", store, 100, options=SamplingOptions(drop_short=True)).languages == ("en",)
    # What was asked for by name is never dropped.
    with pytest.raises(MscaleError, match=r"cc \(99\).*leave them out"):
        resolve("en+cc", store, 100, options=SamplingOptions(drop_short=True))
    with pytest.raises(MscaleError, match="no language of the store"):
        resolve("uniform", Sizes(aa=5), 100, options=SamplingOptions(drop_short=True))


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("em", {}, "em is not there .did you mean .en.... There are: en, fr, sw"),
        ("en+xx", {}, "xx is not there"),
        ("en=0.5+fr=0.6", {}, "sum to 1.1, expected 1"),
        ("en=-0.5+fr=1.5", {}, "en=-0.5, fr=1.5"),
        ("en=nan+fr=0.5", {}, "en=nan"),
        ("en=0.5+fr", {}, "1 rates for 2 languages"),
        ("en=half+fr=0.5", {}, "'half', expected a number"),
        ("en+en", {}, "en named more than once"),
        ("en++fr", {}, "names no language"),
        ("", {}, "names no language"),
        ("unimaxx:en", {}, "did you mean 'unimax'"),
        ("uniform:en=1", {}, "works out the rates itself"),
        ("temperature", {}, "no temperature"),
        ("unimax", {}, "needs the tokens of the run"),
        ("unimax", {"budget_tokens": 1e3, "caps": {"xx": 0.1}}, "caps of mixture 'unimax': xx is not there"),
        ("atlas_9v9", {}, "did you mean 'atlas_"),
        ("atlas_8v0", {}, "es is not there"),
        ("atlas_8v0:en", {}, "'atlas_8v0' is no kind"),
        ("atlas_unimax", {}, "af is not there"),
        ("temperature0", {}, "temperature is 0"),
        ("temperature5", {"temperature": 3}, "T is 5 by its name, but temperature=3"),
        ("temperature-5", {}, "not there"),
        ("uniform", {"caps": {"en": 0.1}}, "caps are of UniMax only"),
        ("en", {"unique_tokens": {"en": 150}}, "multiple of the sequence length 100 above 0, such as 100"),
        ("en", {"unique_tokens": {"en": 0}}, "above 0, such as 100"),
        ("en", {"unique_tokens": {"en": 20_000}}, "has only 10,000"),
        ("en", {"unique_tokens": {"fr": 100}}, "fr is not there"),
    ],
)
def test_bad_names_and_options_are_named(name, options, message):
    unique_tokens = options.pop("unique_tokens", None)
    with pytest.raises(MscaleError, match=message):
        resolve(name, STORE, 100, unique_tokens, SamplingOptions(**options))


def test_it_reads_no_configuration_and_gin_gives_options_where_they_are_asked_for():
    gin.parse_config("mixture.temperature = 5\nmixture.drop_short = True")
    try:
        with pytest.raises(MscaleError, match="no temperature T given"):
            resolve("temperature", STORE, 100)
        expected = sampling.temperature([10_000, 4_000], 5)
        found = resolve("temperature", STORE, 1000, options=gin_sampling_options())
        np.testing.assert_allclose(found.rates, expected)
    finally:
        gin.clear_config()


def test_a_sequence_longer_than_the_text_and_none_at_all():
    with pytest.raises(MscaleError, match=r"sw \(990\)"):
        resolve("sw", STORE, 991)
    with pytest.raises(MscaleError, match="sequence length is 0"):
        resolve("en", STORE, 0)


def test_a_mixture_made_by_hand_is_checked_too():
    with pytest.raises(MscaleError, match="1 rates for 2 languages"):
        Mixture("m", ("en", "fr"), (1.0,), (1, 1), 10)
    with pytest.raises(MscaleError, match="fr has rate 0.5 but no window"):
        Mixture("m", ("en", "fr"), (0.5, 0.5), (1, 0), 10)
    assert parse_mixture_name("unimax:en+fr") == ("unimax", ["en", "fr"], None)
