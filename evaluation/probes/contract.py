"""What a memory probe is: streams of numbers with questions whose answers are known, and a score in [0, 1].

    tokens x_0 .. x_{N-1}      a question after token i is a query token; it reads and leaves nothing behind
    score of real answers      1 - sum (answer - y)^2 / sum (answer - mean)^2, at least 0      1 exact, 0 the mean
    score of classes           share of right answers                                      1 all right
    floor                      the larger of two scores that tell nothing apart:
      chance(tokens)           the best answer that knows the question and nothing of the stream
      pooled                   the mean of what a stream would answer to all its things, 1/things; 0 where it has one

Two axes beside length: `gap` is the share of tokens before which time passes (8 to 32 periods), `missing` the share of
tokens that never arrive; a token on which an answer rests (`vital`) always does, so every answer stays known.

B streams, N tokens, M questions, F features of a token, O outputs.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import ClassVar, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from tsgdn2.errors import ConfigError
from tsgdn2.mixers.contract import Commits, Queries
from tsgdn2.sequence import Sequences

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]
Bools = NDArray[np.bool_]

GAP = (8.0, 32.0)
"""Shortest and longest time of a gap, in periods."""


class Episodes(NamedTuple):
    """Drawn streams: tokens [B,N,F], vital [B,N]; asked [B,M,F] after token `after` [B,M] and `wait` [B,M] periods."""

    tokens: Floats
    vital: Bools
    asked: Floats
    after: Ints
    wait: Floats
    answer: Floats
    """[B,M,O]; the number of the class in [B,M,1] where answers are classes."""
    part: Ints
    """[B,M]: which part of the score the question belongs to."""


class Drawn(NamedTuple):
    """Episodes as a model takes them, with answer [B*M,O] and part [B*M] of each query."""

    commits: Commits
    queries: Queries
    answer: Tensor
    part: Tensor


class Probe(ABC):
    """One question about memory; a level says how hard it is."""

    name: ClassVar[str]
    asks: ClassVar[str]
    """What is asked, in one sentence."""
    one: ClassVar[str]
    """What a score of 1 means."""
    guess: ClassVar[str] = "the mean of all answers"
    """The best answer that knows nothing of the stream."""
    levels: ClassVar[tuple[int, ...]]
    """Difficulties, easiest first."""
    level_is: ClassVar[str]
    """What a level counts."""
    length: ClassVar[int] = 32
    """Tokens of a stream in training, T."""
    classes: ClassVar[int] = 0
    """Number of classes of an answer; 0 where answers are real numbers."""
    features: int
    outputs: int

    def __init__(self, level: int) -> None:
        if level not in self.levels:
            raise ConfigError(f"level: must be one of {self.levels} ({self.level_is}), got {level}")
        self.level = level

    @property
    def things(self) -> int:
        """Things of a stream that an answer must tell apart; 1 where there is one, or none."""
        return self.level

    @property
    def pooled(self) -> float:
        """Score of the mean over a stream's own things, which remembers them and tells none apart."""
        return 1 / self.things if self.things > 1 else 0.0

    def chance(self, tokens: int) -> float:  # noqa: ARG002
        """Score of `guess` on streams of `tokens` tokens."""
        return 0.0

    def floor(self, tokens: int) -> float:
        """What a score must exceed to speak for a memory that tells things apart."""
        return max(self.chance(tokens), self.pooled)

    @abstractmethod
    def draw(self, rng: np.random.Generator, streams: int, tokens: int) -> Episodes:
        """Draw `streams` streams of `tokens` tokens, at least `length`."""

    def score(self, y: Floats, answer: Floats, part: Ints) -> Mapping[str, float]:  # noqa: ARG002
        """`score` in [0, 1] and what it is made of, from outputs y [n,O], answers [n,O or 1] and parts [n] in order."""
        if self.classes:
            return {"score": float((y.argmax(-1) == answer[:, 0]).mean())}
        return {"score": explained(y, answer)}


def explained(y: Floats, answer: Floats, *, about: float | None = None) -> float:
    """1 - squared error / squared distance of the answers from their mean (or from `about`), at least 0."""
    centre = answer.mean(0) if about is None else about
    spread = float(np.square(answer - centre).sum())
    return max(0.0, 1.0 - float(np.square(y - answer).sum()) / spread) if spread > 0 else 0.0


def packed(episodes: Episodes, rng: np.random.Generator, *, gap: float = 0.0, missing: float = 0.0) -> Drawn:
    """Let time pass and tokens get lost, and pack what arrives."""
    streams, count = episodes.vital.shape
    passed = 1.0 + (rng.random((streams, count)) < gap) * rng.uniform(*GAP, (streams, count))
    times = np.cumsum(passed, 1)
    kept = episodes.vital | (rng.random((streams, count)) >= missing)
    kept[:, 0] = True  # a stream begins with something
    lengths = kept.sum(1)
    offsets = np.concatenate(([0], np.cumsum(lengths)))
    elapsed = np.diff(times[kept], prepend=0.0)
    elapsed[offsets[:-1]] = 1.0
    seen = np.cumsum(kept, 1)
    row = np.arange(streams)[:, None]
    place = offsets[:-1][:, None] + seen[row, episodes.after] - 1
    wait = times[row, episodes.after] - times[kept][place] + episodes.wait
    asked = episodes.after.shape[1]
    at = Sequences(lengths, np.zeros(streams, np.int64), place.reshape(-1), np.repeat(np.arange(streams), asked))
    commits = Commits(
        torch.from_numpy(episodes.tokens[kept]).float(), torch.ones(int(offsets[-1])),
        torch.from_numpy(elapsed).float(), at,
    )  # fmt: skip
    queries = Queries(
        torch.from_numpy(episodes.asked.reshape(streams * asked, -1)).float(),
        torch.from_numpy(wait.reshape(-1)).float(),
    )
    answer = torch.from_numpy(episodes.answer.reshape(streams * asked, -1))
    return Drawn(commits, queries, answer, torch.from_numpy(episodes.part.reshape(-1)))


def one_hot(ids: Ints, size: int) -> Floats:
    """Ids [..] as rows [.., size]; an id of -1 is all zero."""
    return np.asarray(ids[..., None] == np.arange(size), np.float64)


def some(rng: np.random.Generator, streams: int, of: int, count: int) -> Ints:
    """`count` different numbers below `of` for every stream, in random order: [B, count]."""
    return np.argsort(rng.random((streams, of)), 1)[:, :count]


def end(streams: int, asked: int, tokens: int) -> Ints:
    """Every question after the last token: [B,M]."""
    return np.full((streams, asked), tokens - 1)
