"""The trigram baseline is honest: a distribution everywhere, weights from held-out text, better than its parts."""

from __future__ import annotations

import math
import sysconfig
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tsgdn2.errors import ConfigError
from tsgdn2.evaluation.language.ngrams import BUCKETS, END, FLOOR, SYMBOLS, Array, Trigram

ANIMALS = ["bird", "cat", "dog", "horse", "mouse", "fish", "cow", "goat", "hen", "fox"]
TEXT = [
    f"the {word} said: {word} and the other {word} went {n} times away.".encode() * 3
    for n, word in enumerate(ANIMALS * 3)
]


def after(model: Trigram, a: int, b: int) -> Array:
    """p(c | a b) of every symbol c, [257]."""
    return model.probabilities((a * SYMBOLS + b) * SYMBOLS + np.arange(SYMBOLS))


@pytest.fixture(scope="module")
def fitted() -> Trigram:
    return Trigram.fit(TEXT)


@given(a=st.integers(0, END), b=st.integers(0, END))
@settings(max_examples=50, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_every_context_gives_every_symbol_some_probability_and_one_in_all(fitted: Trigram, a: int, b: int) -> None:
    p = after(fitted, a, b)
    assert p.shape == (SYMBOLS,)
    assert p.min() >= 0.9 * FLOOR / SYMBOLS
    assert p.sum() == pytest.approx(1, abs=1e-12)


def test_seen_contexts_sum_to_one_too(fitted: Trigram) -> None:
    for a, b in [(ord("t"), ord("h")), (END, END), (END, ord("t")), (ord("."), ord("t"))]:
        assert after(fitted, a, b).sum() == pytest.approx(1, abs=1e-12)
    assert after(fitted, ord("t"), ord("h")).argmax() == ord("e")


def test_the_code_of_a_document_is_the_product_of_its_symbols(fitted: Trigram) -> None:
    for document in (b"", b"t", b"the cat", bytes(range(256))):
        symbols = [END, END, *document, END]
        expected = -sum(math.log(after(fitted, a, b)[c]) for a, b, c in zip(symbols, symbols[1:], symbols[2:],
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


@pytest.mark.parametrize("pieces", [1, 3, 9])
def test_of_few_documents_the_last_bytes_are_held_out(pieces: int) -> None:
    folder = Path(sysconfig.get_paths()["stdlib"])
    whole, new = ((folder / name).read_bytes() for name in ("textwrap.py", "shlex.py"))
    size = -(-len(whole) // pieces)
    few = [whole[begin : begin + size] for begin in range(0, len(whole), size)]
    many = [whole[begin : begin + 400] for begin in range(0, len(whole), 400)]
    model = Trigram.fit(few)
    assert int(model.counts.sum()) == sum(len(text) + 1 for text in few)
    assert model.score([new]).bits_per_byte < 1.05 * Trigram.fit(many).score([new]).bits_per_byte


def test_too_little_text_to_hold_some_out_is_an_error() -> None:
    with pytest.raises(ConfigError, match="documents: must hold at least 10 symbols, so that some are held out, got 8"):
        Trigram.fit([b"abc"] * 2)
    with pytest.raises(ConfigError, match="held_out_every"):
        Trigram.fit([], held_out_every=1)
