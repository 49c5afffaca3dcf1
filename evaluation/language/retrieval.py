"""A model asked for needles: prompts are read packed, long ones in pieces, and the answers decoded side by side.

Reading costs time in proportion to the length and memory in proportion to `window` alone; where attention keeps a ring,
that ring is in the state. Decoding is greedy, as in RULER, and ends at the end of a document, with a whole answer, at
the end of its line or after the room that the sample leaves; what came after would not be judged.
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
from tsgdn2.evaluation.language.judgement import Answer, finished, judge, line_ended
from tsgdn2.evaluation.language.needle import Needle
from tsgdn2.evaluation.language.perplexity import WINDOW
from tsgdn2.language.cost import footprint
from tsgdn2.language.generation import choose, prefill
from tsgdn2.language.model import LanguageModel, LanguageState

BATCH: Final = 64
"""Most samples that are decoded side by side."""
STATES: Final = 2**31
"""Bytes of states that are held together, unless those of one sample are more."""


class Decoder(Protocol):
    """A tokenizer's way back."""

    @property
    def end_of_document(self) -> int:
        """Id that ends a document."""

    @property
    def vocabulary(self) -> int:
        """Number of ids; a model may have more, to fill up its head."""

    def decode(self, ids: Sequence[int]) -> str:
        """Ids -> text, ends of documents left out."""


def ask(
    model: LanguageModel, needles: Sequence[Needle], tokenizer: Decoder, *, window: int = WINDOW,
    tick: Callable[[int], None] = lambda samples: None,  # noqa: ARG005
) -> Iterator[Answer]:  # fmt: skip
    """Answers in the order of the needles; tick is told how many came since it was told last."""
    if window < 1:
        raise ConfigError(f"window: must be at least 1, got {window}")
    side = max(1, min(BATCH, STATES // max(1, footprint(model.config).state_bytes)))
    for begin in range(0, len(needles), side):
        group = needles[begin : begin + side]

        def halted(row: int, ids: Sequence[int], group: Sequence[Needle] = group) -> bool:
            text = tokenizer.decode(ids)
            return line_ended(text) or finished(group[row], text) is not None

        made = answers(model, [needle.tokens for needle in group], rooms=[needle.room for needle in group],
                       end=tokenizer.end_of_document, window=window, halted=halted,
                       vocabulary=tokenizer.vocabulary)  # fmt: skip
        for needle, ids in zip(group, made, strict=True):
            yield judge(needle, tokenizer.decode(ids), cut=len(ids) >= needle.room)
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
    choosers: Sequence[Callable[[Tensor], Tensor]] | None = None, vocabulary: int | None = None,
) -> list[list[int]]:  # fmt: skip
    """Go on from prompts [B], each a row of its own, decoded side by side.

    rooms [B]: most tokens of each answer. end: the id that ends a document, and an answer, which does not keep it.
    halted: told a row and its tokens so far, says whether it is done. choosers [B]: each takes the logits [1,V] of its
    row and gives the token [1]; None is greedy. vocabulary: ids from there on are never given.
    """
    read = [_read(model, group, window) for group in _packed(prompts, window)]
    logits, state = torch.cat([one for one, _ in read]), joined([one for _, one in read])
    made: list[list[int]] = [[] for _ in prompts]
    ended = [room < 1 for room in rooms]
    while not all(ended):
        logits = logits[:, :vocabulary]
        token = choose(logits)
        for row, chooser in enumerate(choosers or ()):
            token[row] = chooser(logits[row : row + 1])[0]
        for row, value in enumerate(token.tolist()):
            if ended[row]:
                continue
            if value != end:
                made[row].append(value)
            ended[row] = value == end or len(made[row]) >= rooms[row] or halted(row, made[row])
        if not all(ended):
            logits, state = model.step(token, state)
    return made


def _packed(prompts: Sequence[NDArray[np.int64]], window: int) -> Iterator[list[NDArray[np.int64]]]:
    """Prompts in order, as many together as `window` holds; one that is longer stands alone."""
    if any(not len(prompt) for prompt in prompts):
        raise ConfigError("needles: a prompt must hold at least one token, got none")
    group: list[NDArray[np.int64]] = []
    for prompt in prompts:
        if group and sum(map(len, group)) + len(prompt) > window:
            yield group
            group = []
        group.append(prompt)
    if group:
        yield group


def _read(model: LanguageModel, prompts: Sequence[NDArray[np.int64]], window: int) -> tuple[Tensor, LanguageState]:
    """Read prompts that fit in one pass, or one that does not in pieces."""
    if len(prompts) > 1:
        return prefill(model, [torch.from_numpy(prompt) for prompt in prompts])
    (tokens,) = prompts
    logits, state = prefill(model, [torch.from_numpy(tokens[:window])])
    for begin in range(window, len(tokens), window):
        logits, state = prefill(model, [torch.from_numpy(tokens[begin : begin + window])], state)
    return logits, state
