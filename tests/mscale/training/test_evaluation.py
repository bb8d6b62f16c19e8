"""Evaluation: whole documents, exact counts, and losses equal to a direct computation."""

import math

import jax
import numpy as np
import pytest
import tiny_store
from hypothesis import given
from hypothesis import strategies as st

from mscale import scales
from mscale.data.store import open_store
from mscale.errors import MscaleError
from mscale.models import decoder, loss
from mscale.models import loss as loss_
from mscale.training import evaluation

B, S, V = 4, 16, 259
CONFIG = decoder.ModelConfig(scales.get("nano0"), V)


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    return tiny_store.write(tmp_path_factory.mktemp("tiny") / "store")


@pytest.fixture(scope="module")
def params():
    return decoder.init_params(CONFIG, jax.random.key(0))


@given(
    lengths=st.lists(st.integers(0, 50), min_size=1, max_size=30),
    tokens=st.integers(1, 300),
)
def test_chosen_documents_are_whole_and_within_the_limit(lengths, tokens):
    lengths = np.array(lengths)
    index = np.stack([np.cumsum(lengths) - lengths, lengths, lengths], axis=1)
    chosen = evaluation.choose_documents(index, tokens)
    assert sorted(set(chosen)) == chosen
    total = lengths[chosen].sum()
    if len(chosen) > 1 or total <= tokens:
        assert total <= tokens
        # No document that would still fit was left out.
        left_out = [n for d, n in enumerate(lengths) if n and d not in chosen]
        assert all(n > tokens - total for n in left_out)
    else:
        assert total == min(n for n in lengths if n) > tokens


def test_losses_and_counts_equal_a_direct_computation(store, params):
    """Each window is computed alone, without padding or batches, from the documents."""
    data = evaluation.held_out_windows(store, ("fr", "en"), S, B, 300)
    measured = evaluation.language_losses(evaluation.dispatch_evaluation(CONFIG, params, data), data)
    direct = jax.jit(loss.token_losses, static_argnums=0)
    for language in ("fr", "en"):
        flat, index = store.valid(language), store.valid_index(language)
        chosen = evaluation.choose_documents(index, 300)
        ids = np.concatenate([flat[a : a + n] for a, n, _ in index[chosen]]).astype(np.int32)
        nats, tokens = [], []
        for start in range(0, len(ids), S):
            window = ids[start : start + S]
            inputs = np.concatenate([[0], window[:-1]])
            losses = direct(CONFIG, params, inputs[None], window[None])
            nats.append(float(losses.sum()))
            tokens.append(len(window))
        result = measured[language]
        assert result["eval_tokens"] == len(ids) == sum(tokens)
        # Bytes: one per token of the byte vocabulary, and EOS is none.
        assert result["eval_bytes"] == (ids != tiny_store.EOS).sum() == len(ids) - len(chosen)
        assert result["loss"] == pytest.approx(sum(nats) / len(ids), rel=1e-5)
        assert result["bits_per_byte"] == pytest.approx(
            sum(nats) / math.log(2) / result["eval_bytes"], rel=1e-5
        )
        counts = store.unigram(language) + 1
        unigram = -np.log(counts[ids] / counts.sum()).mean()
        assert result["unigram_normalized_loss"] == pytest.approx(sum(nats) / len(ids) - unigram, rel=1e-5)
        n, x = np.array(tokens, float), np.array(nats)
        residual = x - x.sum() / n.sum() * n
        expected = math.sqrt((residual**2).sum() / (len(n) - 1) * len(n)) / n.sum()
        assert result["loss_se"] == pytest.approx(expected, rel=1e-4)


def test_standard_error_is_the_spread_of_repeated_draws():
    """The ratio estimator against a simulation: the standard deviation of the loss over repeated draws of windows."""
    rng = np.random.default_rng(0)
    draws, errors = [], []
    for _ in range(400):
        lengths = np.append(np.full(39, 64), rng.integers(1, 64))
        sums = rng.normal(3.0, 0.4, 40) * lengths
        language = evaluation.LanguageWindows("en", 0, 40, int(lengths.sum()), 1, 0.0)
        result = evaluation.language_losses([sums], evaluation.HeldOut((language,), (), lengths))["en"]
        draws.append(result["loss"])
        errors.append(result["loss_se"])
    assert np.mean(errors) == pytest.approx(np.std(draws), rel=0.1)


def test_one_window_has_no_standard_error(store, params):
    data = evaluation.held_out_windows(store, ("en",), 512, 1, 64)
    assert (
        evaluation.language_losses(evaluation.dispatch_evaluation(CONFIG, params, data), data)["en"][
            "loss_se"
        ]
        is None
    )


def test_other_languages_do_not_change_a_language(store, params):
    alone = evaluation.held_out_windows(store, ("sw",), S, B, 200)
    among = evaluation.held_out_windows(store, ("en", "fr", "sw"), S, B, 200)
    one = evaluation.language_losses(evaluation.dispatch_evaluation(CONFIG, params, alone), alone)["sw"]
    three = evaluation.language_losses(evaluation.dispatch_evaluation(CONFIG, params, among), among)["sw"]
    assert one == pytest.approx(three, rel=1e-6)


def test_all_languages_share_one_program_and_one_copy(store, params):
    first = evaluation.held_out_windows(store, ("en", "fr"), S, B, 200)
    evaluation.dispatch_evaluation(CONFIG, params, first)
    programs = evaluation.window_nats._cache_size()
    evaluation.dispatch_evaluation(
        CONFIG, params, evaluation.held_out_windows(store, ("en", "fr", "sw"), S, B, 200)
    )
    assert evaluation.window_nats._cache_size() == programs
    assert evaluation.held_out_windows(open_store(store.path), ("en", "fr"), S, B, 200) is first


def test_a_store_packed_anew_is_not_taken_from_the_cache(tmp_path):
    path = tmp_path / "store"
    first = evaluation.held_out_windows(tiny_store.write(path, ("en",)), ("en",), S, B, 200)
    import os
    import shutil

    shutil.rmtree(path)
    again = tiny_store.write(path, ("en",), seed=1)
    os.utime(path / "store.json", ns=(1, 1))
    assert evaluation.held_out_windows(again, ("en",), S, B, 200) is not first


def test_all_languages_without_held_out_text_are_named(tmp_path):
    store = tiny_store.write(tmp_path / "store", ("en", "fr"), valid_tokens=0)
    with pytest.raises(MscaleError, match=r"2 language\(s\) have no held-out document: en, fr;"):
        evaluation.held_out_windows(store, ("en", "fr"), S, B, 100)


def test_shift_right_begins_with_the_padding_id():
    assert loss_.shift_right(np.array([[5, 6, 7]])).tolist() == [[0, 5, 6]]
