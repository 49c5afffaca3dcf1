"""A model asked for needles: every prompt is read in pieces on its state, and the answers are decoded side by side.

Reading costs time in proportion to the length and memory in proportion to `window` alone; where attention keeps a ring,
that ring is in the state. Decoding is greedy, as in RULER, and ends at the end of a document, at the end of a line or
after the room that the sample leaves.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import Final, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from tsgdn2.errors import ConfigError
from tsgdn2.evaluation.language.needle import Answer, Needle, judge
from tsgdn2.evaluation.language.perplexity import WINDOW
from tsgdn2.language.generation import choose, prefill
from tsgdn2.language.model import LanguageModel, LanguageState

BATCH: Final = 16
"""Samples that are decoded side by side; their states are held together."""


class Decoder(Protocol):
    """A tokenizer's way back."""

    @property
    def end_of_document(self) -> int:
        """Id that ends a document."""

    def decode(self, ids: Sequence[int]) -> str:
        """Ids -> text, ends of documents left out."""


def ask(
    model: LanguageModel, needles: Sequence[Needle], tokenizer: Decoder, *, window: int = WINDOW,
    tick: Callable[[int], None] = lambda samples: None,  # noqa: ARG005
) -> Iterator[Answer]:  # fmt: skip
    """Answers in the order of the needles; tick is told how many came since it was told last."""
    if window < 1:
        raise ConfigError(f"window: must be at least 1, got {window}")
    for begin in range(0, len(needles), BATCH):
        group = needles[begin : begin + BATCH]
        made = answers(model, [needle.tokens for needle in group], rooms=[needle.room for needle in group],
                       end=tokenizer.end_of_document, window=window)  # fmt: skip
        for needle, ids in zip(group, made, strict=True):
            yield judge(needle, tokenizer.decode(ids).strip().split("\n")[0])
        tick(len(group))


def joined(states: Sequence[LanguageState]) -> LanguageState:
    """The state of all rows of several states of one model."""
    first = states[0]
    layers = tuple(
        {name: torch.cat([state.layers[n][name] for state in states]) for name in layer}
        for n, layer in enumerate(first.layers)
    )
    return replace(first, layers=layers, count=torch.cat([state.count for state in states]))


@torch.no_grad()
def answers(
    model: LanguageModel, prompts: Sequence[NDArray[np.int64]], *, rooms: Sequence[int], end: int, window: int = WINDOW,
    halted: Callable[[int, Sequence[int]], bool] = lambda row, ids: False,  # noqa: ARG005
    temperatures: Sequence[float] | None = None,
) -> list[list[int]]:  # fmt: skip
    """Go on from prompts [B], each a row of its own, decoded side by side.

    rooms [B]: most tokens of each answer. end: the id that ends a document, and an answer, which does not keep it.
    halted: told a row and its tokens so far, says whether it is done. temperatures [B]: 0, the default, is greedy.
    """
    read = [_read(model, prompt, window) for prompt in prompts]
    logits, state = torch.cat([one for one, _ in read]), joined([one for _, one in read])
    heat = list(temperatures or [0.0] * len(prompts))
    made: list[list[int]] = [[] for _ in prompts]
    ended = [room < 1 for room in rooms]
    while not all(ended):
        token = choose(logits)
        for row in (n for n, own in enumerate(heat) if own > 0):
            token[row] = choose(logits[row : row + 1], temperature=heat[row])[0]
        for row, value in enumerate(token.tolist()):
            if ended[row]:
                continue
            if value != end:
                made[row].append(value)
            ended[row] = value == end or len(made[row]) >= rooms[row] or halted(row, made[row])
        if not all(ended):
            logits, state = model.step(token, state)
    return made


def _read(model: LanguageModel, tokens: NDArray[np.int64], window: int) -> tuple[Tensor, LanguageState]:
    logits, state = None, None
    for begin in range(0, len(tokens), window):
        logits, state = prefill(model, [torch.from_numpy(tokens[begin : begin + window])], state)
    if logits is None or state is None:
        raise ConfigError("needles: a prompt must hold at least one token, got none")
    return logits, state
