"""Buckets of positions hold the loss of exactly those positions, with the state carried from the first token on."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise

import numpy as np
import pytest

from tsgdn2.datasets.errors import DataError as TextError
from tsgdn2.errors import ConfigError, DataError
from tsgdn2.evaluation.language.extrapolation import edges, extrapolate
from tsgdn2.evaluation.language.perplexity import losses
from tsgdn2.language.model import LanguageModel

Tiny = Callable[..., LanguageModel]


class Corpus:
    """Random bytes as a stream of documents, the first of which is longer than a window of training."""

    def __init__(self, tokens: int) -> None:
        self.tokens = tokens
        self.borders = np.array([21, 22, 40, 41, 47, 90, 172, 173, 260, 299, 300])
        self.all = np.random.default_rng(2).integers(0, 257, tokens)

    def read(self, start: int, stop: int) -> np.ndarray[tuple[int], np.dtype[np.int64]]:
        if not 0 <= start <= stop <= self.tokens:
            raise TextError("outside")
        return self.all[start:stop]

    def ends(self, start: int, stop: int) -> np.ndarray[tuple[int], np.dtype[np.int64]]:
        return self.borders[(self.borders > start) & (self.borders <= stop)]


def test_edges_double_up_to_sixteen_windows() -> None:
    assert edges(8, 16) == [0, 2, 4, 8, 16, 32, 64, 128]
    assert edges(8, 3) == [0, 2, 4, 8, 16, 24]
    assert edges(8, 1) == [0, 2, 4, 8]
    with pytest.raises(ConfigError, match="length, factor"):
        edges(3, 16)


@pytest.mark.parametrize("window", [7, 64, 100_000])
def test_one_row_per_bucket_holds_the_loss_of_its_positions(tiny: Tiny, window: int) -> None:
    model, corpus = tiny(), Corpus(300)
    found = extrapolate(model, corpus, length=8, factor=16, streams=4, window=window)
    assert [(one.first, one.last) for one in found] == [
        (0, 2), (2, 4), (4, 8), (8, 16), (16, 32), (32, 64), (64, 128),
    ]  # fmt: skip
    starts = [0, 172]  # two streams of 128 fit, spread over the corpus
    by_position = np.zeros(128)
    for start in starts:
        by_position[1:] += losses(model, corpus.read(start, start + 128), [128]).nats.numpy()[:-1]
    for one in found:
        assert one.tokens == 2 * (one.last - max(1, one.first))
        assert one.nats == pytest.approx(by_position[one.first : one.last].sum(), abs=1e-9)


@pytest.mark.parametrize("window", [7, 30, 100_000])
def test_reset_beside_carried_is_every_document_alone_on_the_tokens_that_both_predict(tiny: Tiny, window: int) -> None:
    model, corpus = tiny(), Corpus(300)
    found = extrapolate(model, corpus, length=8, factor=16, streams=4, window=window)
    carried, reset, inside = np.zeros((2, 128)), np.zeros((2, 128)), np.zeros((2, 128), np.bool_)
    for row, start in enumerate((0, 172)):
        stream = corpus.read(start, start + 128)
        carried[row, 1:] = losses(model, stream, [128]).nats.numpy()[:-1]
        borders = [0, *(int(end) - start for end in corpus.ends(start, start + 127)), 128]
        for begin, end in pairwise(borders):
            alone = losses(model, stream[begin:end], [end - begin]).nats.numpy()[:-1]
            reset[row, begin + 1 : end] = alone
            inside[row, begin + 1 : end] = True
    for one in found:
        part = slice(one.first, one.last)
        assert one.inside == inside[:, part].sum() < one.tokens or one.last <= 16
        assert one.inside_nats == pytest.approx(carried[:, part][inside[:, part]].sum(), abs=1e-9)
        assert one.reset_nats == pytest.approx(reset[:, part].sum(), abs=1e-9)
    # The first stream begins with a document of 21 tokens, the second with one of 1: until then the two are the same.
    assert found[-1].reset_loss != pytest.approx(found[-1].inside_loss, abs=1e-6)


def test_a_corpus_shorter_than_the_longest_stream_gives_the_buckets_that_it_reaches(tiny: Tiny) -> None:
    found = extrapolate(tiny(), Corpus(21), length=8, factor=16)
    assert [(one.first, one.last) for one in found] == [(0, 2), (2, 4), (4, 8), (8, 16), (16, 21)]
    assert sum(one.tokens for one in found) == 20
    with pytest.raises(DataError, match="at least 8 tokens to score one window, got 5"):
        extrapolate(tiny(), Corpus(5), length=8)
