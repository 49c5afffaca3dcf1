"""Perplexity and bits per byte of whole documents: packed together, read once, each as if it were alone.

    nats         -log p(t_1) - sum_{i>1} log p(t_i | t_1 .. t_{i-1})        the end of the document among them
    perplexity   exp(nats of predicted tokens / predicted tokens)
    bits/byte    nats / (ln 2 * bytes of UTF-8)

Nothing stands before a document, so the model can not predict its first token: it is charged as one of V equally likely
ones, and the sum is the length of a code from which the text can be had back. Bits per byte therefore compare models of
any tokenizer, n-grams among them. A document longer than `window` is read in pieces with its state carried, so its
length costs time and no memory.

N tokens of B documents end to end, V vocabulary.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Final, NamedTuple, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.functional import cross_entropy

from tsgdn2.errors import ConfigError
from tsgdn2.language.model import LOSS_TOKENS, LanguageModel, LanguageState

Ints = NDArray[np.int64]
WINDOW: Final = 16_384
"""Tokens that are read at a time."""


class Text(Protocol):
    """A document of datasets/tokens.py, or anything like it."""

    @property
    def tokens(self) -> Ints:
        """Tokens [n], its end of document last."""

    @property
    def text_bytes(self) -> int:
        """Bytes of UTF-8 that it was."""


@dataclass(frozen=True, kw_only=True)
class Score:
    """What a model makes of a text; scores of parts add up."""

    nats: float = 0.0
    """Length of the code, first tokens included."""
    predicted_nats: float = 0.0
    """-log p of predicted tokens alone."""
    predicted: int = 0
    """Tokens that have one before them in their document."""
    documents: int = 0
    text_bytes: int = 0

    def __add__(self, other: Score) -> Score:
        """The score of both texts."""
        return Score(
            nats=self.nats + other.nats,
            predicted_nats=self.predicted_nats + other.predicted_nats,
            predicted=self.predicted + other.predicted,
            documents=self.documents + other.documents,
            text_bytes=self.text_bytes + other.text_bytes,
        )

    @property
    def loss(self) -> float:
        """Nats per predicted token; NaN where nothing was predicted."""
        return self.predicted_nats / self.predicted if self.predicted else math.nan

    @property
    def perplexity(self) -> float:
        """Perplexity per predicted token, inf beyond the range of a float."""
        return math.exp(self.loss) if not self.loss > 709 else math.inf

    @property
    def bits_per_byte(self) -> float:
        """Bits of the code per byte of UTF-8; NaN of an empty text."""
        return self.nats / (math.log(2) * self.text_bytes) if self.text_bytes else math.nan


@dataclass
class _Batch:
    """Whole documents that are read in one pass."""

    documents: list[Text] = field(default_factory=list)
    tokens: int = 0

    def add(self, document: Text) -> None:
        self.documents.append(document)
        self.tokens += len(document.tokens)


@torch.no_grad()
def score(
    model: LanguageModel, documents: Iterable[Text], *, window: int = WINDOW,
    tick: Callable[[int], None] = lambda tokens: None,  # noqa: ARG005
) -> Score:  # fmt: skip
    """Score documents as they come; at most `window` tokens and one document are held at a time.

    tick: told the tokens read since it was told last. Errors: ConfigError for the window or a token that the model does
    not have.
    """
    if window < 2:
        raise ConfigError(f"window: must be at least 2 tokens, got {window}")
    total = Score()
    for batch in _batches(documents, window):
        total += _score_of(model, batch.documents, window)
        tick(batch.tokens)
    return total


def _batches(documents: Iterable[Text], window: int) -> Iterator[_Batch]:
    batch = _Batch()
    for document in documents:
        if batch.documents and batch.tokens + len(document.tokens) > window:
            yield batch
            batch = _Batch()
        batch.add(document)
    if batch.documents:
        yield batch


def _score_of(model: LanguageModel, documents: Sequence[Text], window: int) -> Score:
    """Documents that fit together, or one that is longer than the window."""
    read = [document for document in documents if len(document.tokens)]
    predicted_nats = 0.0
    if read and sum(len(document.tokens) for document in read) <= window:
        tokens, lengths = np.concatenate([one.tokens for one in read]), [len(one.tokens) for one in read]
        predicted_nats = float(losses(model, tokens, lengths).nats.sum())
    elif read:
        pieces = stream_losses(model, read[0].tokens[None], window)
        predicted_nats = sum(float(piece.nats.sum()) for piece in pieces)
    return Score(
        nats=predicted_nats + len(read) * math.log(model.config.vocabulary),
        predicted_nats=predicted_nats,
        predicted=sum(len(one.tokens) - 1 for one in read),
        documents=len(documents),
        text_bytes=sum(one.text_bytes for one in documents),
    )


class Losses(NamedTuple):
    """What was made of tokens: of each, that is, of the one behind it."""

    nats: Tensor
    """-log p of the token after each of N, float64 [N]; 0 behind the last one of a document."""
    greedy: Tensor
    """bool [N]: no token was likelier than that one; true where there is none."""
    state: LanguageState


@torch.no_grad()
def losses(
    model: LanguageModel, tokens: Ints, lengths: Sequence[int], state: LanguageState | None = None,
    next_tokens: Ints | None = None,
) -> Losses:  # fmt: skip
    """Read tokens [N] of B documents end to end and score what comes next; the logits are made LOSS_TOKENS at a time.

    lengths [B] of the documents; state: of what was read of them before; next_tokens [B]: what comes behind this piece
    of each, which is then scored too.
    """
    given = _on(model, tokens)
    ends = np.cumsum(np.asarray(lengths, np.int64)) - 1
    following = np.append(tokens[1:], -1).astype(np.int64)
    following[ends] = -1 if next_tokens is None else next_tokens
    targets = torch.from_numpy(following).to(model.device)
    h, after = model.hidden(given, model.documents(list(lengths), state), state)
    nats = h.new_zeros(len(h), dtype=torch.float64 if h.dtype == torch.float64 else torch.float32)
    greedy = torch.ones(len(h), dtype=torch.bool, device=h.device)
    for begin in range(0, len(h), LOSS_TOKENS):
        part = slice(begin, begin + LOSS_TOKENS)
        logits, wanted = model.head(h[part]).to(nats.dtype), targets[part]
        nats[part] = cross_entropy(logits, wanted, ignore_index=-1, reduction="none")
        greedy[part] = (logits.argmax(-1) == wanted) | (wanted == -1)
    return Losses(nats.double().cpu(), greedy.cpu(), after)


def stream_losses(model: LanguageModel, streams: Ints, window: int) -> Iterator[Losses]:
    """Score tokens 1 .. T-1 of streams [S,T] given all before, piece by piece: nats and greedy [S,n], T - 1 in all.

    At most about `window` tokens are read at a time, and the state is carried: the cost in memory does not grow with T.
    """
    count, length = streams.shape
    each, state = max(1, window // count), None
    for begin in range(0, length - 1, each):
        end = min(begin + each, length - 1)
        piece = np.ascontiguousarray(streams[:, begin:end]).reshape(-1)
        found = losses(model, piece, [end - begin] * count, state, streams[:, end])
        state, shape = found.state, (count, end - begin)
        yield Losses(found.nats.reshape(shape), found.greedy.reshape(shape), state)


def document_losses(model: LanguageModel, tokens: Ints, lengths: Sequence[int], window: int) -> NDArray[np.float64]:
    """-log p of the token after each of N, every document for itself: [N], 0 behind the last one of a document.

    As many whole documents are read together as `window` holds; one that is longer is read in pieces.
    """
    found = np.zeros(len(tokens))
    begin, group = 0, list[int]()
    for number, length in enumerate(lengths):
        group.append(length)
        end = begin + sum(group)
        if number + 1 < len(lengths) and end - begin + lengths[number + 1] <= window:
            continue
        if end - begin <= window:
            found[begin:end] = losses(model, tokens[begin:end], group).nats.numpy()
        else:
            pieces = stream_losses(model, tokens[None, begin:end], window)
            found[begin : end - 1] = np.concatenate([piece.nats[0].numpy() for piece in pieces])
        begin, group = end, []
    return found


def _on(model: LanguageModel, tokens: Ints) -> Tensor:
    if len(tokens) and not 0 <= tokens.min() <= tokens.max() < model.config.vocabulary:
        raise ConfigError(
            f"tokens: must be within 0 .. {model.config.vocabulary - 1}, got {tokens.min()} .. {tokens.max()}; "
            "score with the tokenizer that the model was trained with"
        )
    return torch.from_numpy(np.ascontiguousarray(tokens, np.int64)).to(model.device)
