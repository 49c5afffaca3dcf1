"""Length extrapolation: what a model loses, or gains, as it reads on past the length that it was trained at.

    streams   documents end to end, their ends included, S streams of factor * T tokens that do not overlap
    bucket    positions [a, b) of every stream; the edges are 0, T/4, T/2, T, 2T, 4T, .. factor * T
    carried   the state is never reset, as training always does it where a document begins
    reset     the same streams, every document for itself; a document's first token is then not predicted

A later bucket of `carried` shows whether a state that has read much still serves. Two things differ there from
training: the length, and what lies before a document. `reset` beside it, on the tokens that both predict, takes the
second one away: where only `carried` rises with the position, the state of other documents does the harm. Documents are
as long as they are: a loss that stays level past T says that the state does no harm, not that it uses what lies so far
back; the needles say that. Streams are read side by side in pieces, with the state carried.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from itertools import pairwise
from typing import NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from tsgdn2.errors import ConfigError, DataError
from tsgdn2.evaluation.language.perplexity import WINDOW, document_losses, stream_losses
from tsgdn2.language.model import LanguageModel

Ints = NDArray[np.int64]


class Stream(Protocol):
    """All tokens of a corpus end to end, as datasets/tokens.py has them."""

    tokens: int

    def read(self, start: int, stop: int) -> Ints:
        """Tokens start .. stop - 1, int64."""

    def ends(self, start: int, stop: int) -> Ints:
        """Where documents end (exclusive) in start + 1 .. stop, ascending."""


class Bucket(NamedTuple):
    """Positions first .. last - 1 of the streams: how many predicted tokens lie there, and their nats together."""

    first: int
    last: int
    tokens: int
    nats: float
    """Carried."""
    inside: int
    """Those of the tokens that are not the first of their document."""
    inside_nats: float
    """Carried, of these."""
    reset_nats: float
    """Reset, of these."""

    @property
    def loss(self) -> float:
        """Nats per token, carried."""
        return self.nats / self.tokens if self.tokens else math.nan

    @property
    def inside_loss(self) -> float:
        """Nats per token inside documents, carried."""
        return self.inside_nats / self.inside if self.inside else math.nan

    @property
    def reset_loss(self) -> float:
        """Nats per token inside documents, reset."""
        return self.reset_nats / self.inside if self.inside else math.nan

    @property
    def perplexity(self) -> float:
        """Perplexity per token."""
        return math.exp(self.loss)


def edges(length: int, factor: int) -> list[int]:
    """Edges of the buckets for a training length and the largest multiple of it; see the module."""
    if length < 4 or factor < 1:
        raise ConfigError(f"length, factor: must be at least 4 and 1, got {length} and {factor}")
    found, edge = [0, length // 4, length // 2], length
    while edge < length * factor:
        found.append(edge)
        edge *= 2
    return [*found, length * factor]


def extrapolate(
    model: LanguageModel, corpus: Stream, *, length: int, factor: int = 16, streams: int = 8, window: int = WINDOW,
    tick: Callable[[int], None] = lambda tokens: None,  # noqa: ARG005
) -> list[Bucket]:  # fmt: skip
    """Loss per bucket of positions up to factor * length, over as many streams as the corpus has, at most `streams`.

    length: tokens of a training window. A corpus shorter than one stream gives the buckets that it reaches, and a
    DataError if that is not even one of training length. tick: told the tokens read since it was told last; all are
    read twice.
    """
    if streams < 1 or window < 1:
        raise ConfigError(f"streams, window: must be at least 1, got {streams} and {window}")
    if corpus.tokens < length:
        raise DataError(f"corpus: must hold at least {length:,} tokens to score one window, got {corpus.tokens:,}")
    each = min(length * factor, corpus.tokens)
    count = min(streams, corpus.tokens // each)
    # Spread over the corpus, so that neighbours do not share a document.
    starts = [int(start) for start in np.linspace(0, corpus.tokens - each, count).astype(np.int64)]
    table = np.stack([corpus.read(start, start + each) for start in starts])
    carried = np.zeros((count, each))
    at = 1
    for piece in stream_losses(model, table, window):
        size = piece.nats.shape[1]
        carried[:, at : at + size] = piece.nats.numpy()
        at += size
        tick(piece.nats.numel())
    reset, inside = np.zeros((count, each)), np.zeros((count, each), np.bool_)
    for number, start in enumerate(starts):
        ends = np.append(corpus.ends(start, start + each) - start, each)
        bounds = np.unique(np.concatenate(([0], ends)))
        reset[number, 1:] = document_losses(model, table[number], np.diff(bounds).tolist(), window)[:-1]
        inside[number, 1:] = True
        inside[number, bounds[:-1]] = False
        tick(each - 1)
    marks = [edge for edge in edges(length, factor) if edge < each] + [each]
    return [
        Bucket(
            first, last, count * (last - max(first, 1)), float(carried[:, first:last].sum()),
            int(inside[:, first:last].sum()), float((carried * inside)[:, first:last].sum()),
            float((reset * inside)[:, first:last].sum()),
        ) for first, last in pairwise(marks)
    ]  # fmt: skip
