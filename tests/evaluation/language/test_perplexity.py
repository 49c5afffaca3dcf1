"""Scores of packed documents are those of each document alone, whatever the window; sums add up as they must."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tsgdn2.datasets.tokens import Document
from tsgdn2.errors import ConfigError
from tsgdn2.evaluation.language.perplexity import Score, losses, score, stream_losses
from tsgdn2.language.model import LanguageModel

EXACT = 1e-10
Tiny = Callable[..., LanguageModel]
Make = Callable[[Sequence[int]], list[Document]]


def alone(model: LanguageModel, document: Document) -> float:
    """Nats of a document's code by the whole log-softmax of one forward over it alone."""
    tokens = torch.from_numpy(document.tokens)
    with torch.no_grad():
        logits, _ = model(tokens, model.documents([len(tokens)]))
    likelihood = torch.log_softmax(logits[:-1], -1).gather(1, tokens[1:, None]).sum()
    return math.log(model.config.vocabulary) - float(likelihood)


@given(sizes=st.lists(st.integers(0, 40), min_size=1, max_size=6), window=st.integers(2, 70))
@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_packed_documents_score_as_each_alone(tiny: Tiny, documents: Make, sizes: list[int], window: int) -> None:
    model, texts = tiny(), documents(sizes)
    found = score(model, texts, window=window)
    expected = sum(alone(model, text) for text in texts)
    assert found.nats == pytest.approx(expected, abs=EXACT * max(1.0, expected))
    assert found.predicted == sum(sizes)
    assert (found.documents, found.text_bytes) == (len(sizes), sum(sizes))
    parts = sum((score(model, [text], window=window) for text in texts), Score())
    assert parts.nats == pytest.approx(found.nats, rel=EXACT)
    if sum(sizes):
        assert found.perplexity == pytest.approx(math.exp(found.predicted_nats / sum(sizes)), rel=EXACT)
        assert found.bits_per_byte == pytest.approx(expected / math.log(2) / sum(sizes), rel=EXACT)
        assert parts.bits_per_byte == pytest.approx(found.bits_per_byte, rel=EXACT)


def test_a_hybrid_with_attention_scores_packed_documents_as_alone_too(tiny: Tiny, documents: Make) -> None:
    model, texts = tiny(attention_every=2, attention_window=5, attention_heads=2), documents([13, 1, 30, 0, 7])
    expected = sum(alone(model, text) for text in texts)
    for window in (11, 1000):
        assert score(model, texts, window=window).nats == pytest.approx(expected, rel=EXACT)


def test_a_model_that_knows_nothing_needs_the_bits_of_its_vocabulary(tiny: Tiny, documents: Make) -> None:
    model = tiny()
    torch.nn.init.zeros_(model.head.weight)
    found = score(model, documents([9, 4]))
    assert found.nats == pytest.approx(15 * math.log(257))
    assert found.perplexity == pytest.approx(257)


def test_an_empty_text_has_no_score_but_an_empty_one(tiny: Tiny) -> None:
    found = score(tiny(), [])
    assert found == Score()
    assert math.isnan(found.loss)
    assert math.isnan(found.bits_per_byte)


def test_a_stream_in_pieces_is_the_stream_at_once_and_greedy_is_the_likeliest(tiny: Tiny) -> None:
    model = tiny()
    streams = np.random.default_rng(1).integers(0, 257, (3, 23))
    with torch.no_grad():
        best = model(torch.from_numpy(streams.reshape(-1)), model.documents([23] * 3))[0].argmax(-1).reshape(3, 23)
    streams[1, 8] = best[1, 7]  # one token that is greedy, if the ones behind it are not looked at
    (whole,) = stream_losses(model, streams, 10_000)
    parts = list(stream_losses(model, streams, 12))
    assert len(parts) > 3
    torch.testing.assert_close(torch.cat([part.nats for part in parts], 1), whole.nats, rtol=0, atol=EXACT)
    torch.testing.assert_close(torch.cat([part.greedy for part in parts], 1), whole.greedy)
    assert bool(whole.greedy[1, 7])
    assert whole.nats.shape == (3, 22)


def test_a_token_that_the_model_does_not_have_is_named(tiny: Tiny) -> None:
    model = tiny()
    with pytest.raises(ConfigError, match=r"tokens: must be within 0 \.\. 256, got 3 \.\. 257"):
        losses(model, np.array([3, 257]), [2])
    with pytest.raises(ConfigError, match="window: must be at least 2"):
        score(model, [], window=1)
