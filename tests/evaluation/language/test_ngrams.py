"""The trigram baseline is honest: a distribution everywhere, weights from held-out text, better than its parts."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tsgdn2.errors import ConfigError
from tsgdn2.evaluation.language.ngrams import BUCKETS, END, FLOOR, SYMBOLS, Trigram

ANIMALS = ["bird", "cat", "dog", "horse", "mouse", "fish", "cow", "goat", "hen", "fox"]
TEXT = [
    f"the {word} said: {word} and the other {word} went {n} times away.".encode() * 3
    for n, word in enumerate(ANIMALS * 3)
]


@pytest.fixture(scope="module")
def fitted() -> Trigram:
    return Trigram.fit(TEXT)


@given(a=st.integers(0, END), b=st.integers(0, END))
@settings(max_examples=50, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_every_context_gives_every_symbol_some_probability_and_one_in_all(fitted: Trigram, a: int, b: int) -> None:
    p = fitted.probabilities(a, b)
    assert p.shape == (SYMBOLS,)
    assert p.min() >= 0.9 * FLOOR / SYMBOLS
    assert p.sum() == pytest.approx(1, abs=1e-12)


def test_seen_contexts_sum_to_one_too(fitted: Trigram) -> None:
    for a, b in [(ord("t"), ord("h")), (END, END), (END, ord("t")), (ord("."), ord("t"))]:
        assert fitted.probabilities(a, b).sum() == pytest.approx(1, abs=1e-12)
    assert fitted.probabilities(ord("t"), ord("h")).argmax() == ord("e")


def test_the_code_of_a_document_is_the_product_of_its_symbols(fitted: Trigram) -> None:
    for document in (b"", b"t", b"the cat", bytes(range(256))):
        symbols = [END, END, *document, END]
        expected = -sum(math.log(fitted.probabilities(a, b)[c]) for a, b, c in zip(symbols, symbols[1:], symbols[2:],
                                                                                   strict=False))  # fmt: skip
        assert fitted.nats(document) == pytest.approx(expected, rel=1e-12)


def test_weights_are_those_of_held_out_text_and_better_than_any_order_alone(fitted: Trigram) -> None:
    assert fitted.weights.shape == (BUCKETS, 4)
    np.testing.assert_allclose(fitted.weights.sum(1), 1, atol=1e-12)
    assert (fitted.weights[:, 0] >= 0.9 * FLOOR).all()
    new = [b"the bee said: bee and the other bee went 77 times away."]
    ours = fitted.score(new).bits_per_byte
    for order in range(4):
        only = np.full((BUCKETS, 4), 1e-6)
        only[:, order] = 1 - 3e-6
        assert ours < Trigram(fitted.counts, only).score(new).bits_per_byte
    assert ours < math.log2(SYMBOLS)


def test_held_out_documents_are_counted_in_the_end(fitted: Trigram) -> None:
    assert int(fitted.counts.sum()) == sum(len(text) + 1 for text in TEXT)
    score = fitted.score(TEXT[:2])
    assert (score.documents, score.text_bytes) == (2, sum(map(len, TEXT[:2])))
    assert score.predicted == score.text_bytes + 2


def test_random_bytes_cost_about_eight_bits_each() -> None:
    rng = np.random.default_rng(0)
    model = Trigram.fit(rng.bytes(500) for _ in range(40))
    assert 7.9 < model.score([rng.bytes(5000)]).bits_per_byte < 8.3


def test_too_few_documents_to_hold_one_out_are_an_error() -> None:
    with pytest.raises(ConfigError, match="documents: must be at least 10, so that one is held out, got 3"):
        Trigram.fit([b"abc"] * 3)
    with pytest.raises(ConfigError, match="held_out_every"):
        Trigram.fit([], held_out_every=1)
