"""The baseline that a language model must beat: an interpolated trigram model of bytes.

    p(c | a b) = l3 N(a b c) / N(a b) + l2 N(b c) / N(b) + l1 N(c) / N + l0 / 257
    l = l[bucket of N(a b)] >= 0, sum l = 1                     chosen by EM on held-out parts of the training text

Jelinek and Mercer's form: how far a context is trusted depends on how often it was seen, and the weights are those
under which text that was not counted is most likely. Every symbol has a probability above zero, because l0 has a floor.
The symbols are 256 bytes and the end of a document, which is also what stands before the first byte, so that the model
codes whole documents as perplexity.py does. Its tables are 140 MB while it is fitted, whatever the size of the text.

a, b, c symbols in 0 .. 256, E = 256 the end; N counts; K buckets.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import chain, islice
from typing import Final

import numpy as np
from numpy.typing import NDArray

from tsgdn2.errors import ConfigError
from tsgdn2.evaluation.language.perplexity import Score

Array = NDArray[np.float64]
Ints = NDArray[np.int64]

SYMBOLS: Final = 257
END: Final = 256
BUCKETS: Final = 24
"""Bucket 0 holds contexts that were never seen, bucket n those with N(a b) in [2^(n-1), 2^n)."""
FLOOR: Final = 1e-6
"""Least weight of the uniform distribution."""
_PIECE = 1 << 22
_ROUNDS = 50
_PRIOR = 1.0
"""Symbols that each weight of a bucket is given before EM: a bucket of few held-out symbols stays near the mean."""


class Trigram:
    """Counts and weights; `fit` makes one."""

    def __init__(self, counts: NDArray[np.uint32], weights: Array) -> None:
        """counts [257,257,257] by a, b, c; weights [BUCKETS,4] of the orders 0 .. 3, each row summing to one."""
        self.counts, self.weights = counts, weights
        self._pairs = counts.sum(0, dtype=np.int64)
        self._contexts = counts.sum(2, dtype=np.int64)
        self._before = self._pairs.sum(1)
        self._alone = self._pairs.sum(0)

    @classmethod
    def fit(cls, documents: Iterable[bytes], *, held_out_every: int = 10) -> Trigram:
        """Count documents; every `held_out_every`-th is first kept back to choose the weights, then counted too.

        Of fewer documents than that as large a part of their symbols is kept back, at the end. Errors: ConfigError when
        there are fewer than `held_out_every` symbols.
        """
        if held_out_every < 2:
            raise ConfigError(f"held_out_every: must be at least 2, got {held_out_every}")
        counts = np.zeros(SYMBOLS**3, np.uint32)
        kept_back = np.zeros(SYMBOLS**3, np.uint32)
        rest = iter(documents)
        first = list(islice(rest, held_out_every))
        if len(first) < held_out_every:
            _count_stretch(first, held_out_every, counts, kept_back)
        else:
            for number, document in enumerate(chain(first, rest), 1):
                for codes in _codes(document):
                    _count(codes, kept_back if number % held_out_every == 0 else counts)
        shape = (SYMBOLS, SYMBOLS, SYMBOLS)
        model = cls(counts.reshape(shape), np.full((BUCKETS, 4), 0.25))
        seen = np.flatnonzero(kept_back)
        weights = model._chosen(seen, kept_back[seen].astype(np.float64))
        counts += kept_back
        return cls(counts.reshape(shape), weights)

    def probabilities(self, codes: Ints) -> Array:
        """p(c | a b) of codes (a 257 + b) 257 + c, [n]; those of all c sum to one."""
        parts, bucket = self._parts(codes)
        found: Array = np.einsum("no,no->n", parts, self.weights[bucket])
        return found

    def nats(self, document: bytes) -> float:
        """-log p of a document and of its end, in nats."""
        return sum(float(-np.log(self.probabilities(codes)).sum()) for codes in _codes(document))

    def score(self, documents: Iterable[bytes]) -> Score:
        """Score documents; every symbol counts as predicted, the first one of a document too."""
        total = Score()
        for document in documents:
            nats, size = self.nats(document), len(document)
            total += Score(nats=nats, predicted_nats=nats, predicted=size + 1, documents=1, text_bytes=size)
        return total

    def _parts(self, codes: Ints) -> tuple[Array, Ints]:
        """What each order gives to the symbols of the codes, [n,4], and the buckets of their contexts, [n]."""
        ab, c = np.divmod(codes, SYMBOLS)
        a, b = np.divmod(ab, SYMBOLS)
        context, before = self._contexts[a, b], self._before[b]
        uniform = np.full(len(codes), 1 / SYMBOLS)
        single = self._alone[c] / max(1, self._alone.sum())
        double = np.where(before > 0, self._pairs[b, c] / np.maximum(before, 1), single)
        triple = np.where(context > 0, self.counts[a, b, c] / np.maximum(context, 1), double)
        # An order that was never seen hands its weight to the one below, so that the sum stays one.
        bucket = np.where(context > 0, np.log2(np.maximum(context, 1)).astype(np.int64) + 1, 0)
        return np.stack([uniform, single, double, triple], 1), np.minimum(bucket, BUCKETS - 1)

    def _chosen(self, codes: Ints, often: Array) -> Array:
        """Weights by EM over held-out trigrams, `often` each; the prior is what EM gives without buckets."""
        parts, bucket = self._parts(codes)
        alone = _em(parts, np.zeros(len(codes), np.int64), often, np.full((1, 4), 0.25), 0.0)
        return _em(parts, bucket, often, np.repeat(alone, BUCKETS, 0), _PRIOR)


def _em(parts: Array, bucket: Ints, often: Array, start: Array, prior: float) -> Array:
    weights = start.copy()
    for _ in range(_ROUNDS):
        shares = parts * weights[bucket]
        shares *= (often / shares.sum(1))[:, None]
        summed = np.stack([np.bincount(bucket, column, len(weights)) for column in shares.T], 1) + prior * start
        weights = np.where(summed.sum(1, keepdims=True) > 0, summed, start)
        weights = np.maximum(weights / weights.sum(1, keepdims=True), [FLOOR, 0.0, 0.0, 0.0])
        weights /= weights.sum(1, keepdims=True)
    return weights


def _codes(document: bytes) -> Iterable[Ints]:
    """(a 257 + b) 257 + c of every symbol of a document and of its end, in pieces."""
    for begin in range(0, len(document) + 1, _PIECE):
        end = min(begin + _PIECE, len(document) + 1)
        first = max(0, begin - 2)
        symbols = np.full(end - begin + 2, END, np.int64)
        text = np.frombuffer(document, np.uint8, min(end, len(document)) - first, first)
        symbols[2 - (begin - first) : 2 - (begin - first) + len(text)] = text
        yield (symbols[:-2] * SYMBOLS + symbols[1:-1]) * SYMBOLS + symbols[2:]


def _count(codes: Ints, into: NDArray[np.uint32]) -> None:
    found, often = np.unique(codes, return_counts=True)
    into[found] += often.astype(np.uint32)


def _count_stretch(
    documents: Sequence[bytes], every: int, counts: NDArray[np.uint32], kept_back: NDArray[np.uint32]
) -> None:
    """Count the last of `every` equal stretches of the text apart; long ones, for a text repeats itself nearby."""
    total = sum(len(document) + 1 for document in documents)
    if total < every:
        raise ConfigError(f"documents: must hold at least {every} symbols, so that some are held out, got {total}")
    first_held = total - total // every
    at = 0
    for document in documents:
        for codes in _codes(document):
            held = np.arange(at, at + len(codes)) >= first_held
            at += len(codes)
            _count(codes[~held], counts)
            _count(codes[held], kept_back)
