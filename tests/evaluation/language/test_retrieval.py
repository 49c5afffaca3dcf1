"""Asking a model: answers are what generate() gives, whatever the window, side by side or alone."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor

from tsgdn2.errors import ConfigError
from tsgdn2.evaluation.language.needle import Haystack, needles
from tsgdn2.evaluation.language.retrieval import answers, ask
from tsgdn2.language.config import LanguageConfig
from tsgdn2.language.generation import generate
from tsgdn2.language.model import LanguageModel, LanguageState
from tsgdn2.sequence import Sequences

Tiny = Callable[..., LanguageModel]
WORDS = [f"{a}{b}word" for a in "bcdfgh" for b in ("ab", "el", "ip", "on", "ut", "ar", "es", "il", "og", "um")]


class Bytes:
    """A byte is a token."""

    end_of_document = 256
    vocabulary = 257

    def encode(self, text: str) -> np.ndarray[tuple[int], np.dtype[np.int64]]:
        return np.frombuffer(text.encode(), np.uint8).astype(np.int64)

    def decode(self, ids: Sequence[int]) -> str:
        return bytes(one for one in ids if one < 256).decode(errors="replace")


@pytest.mark.parametrize("window", [3, 1000])
def test_answers_are_those_of_generate(tiny: Tiny, window: int) -> None:
    model = tiny(attention_every=2, attention_window=6, attention_heads=2)
    rng = np.random.default_rng(0)
    prompts = [rng.integers(0, 256, size) for size in (9, 1, 14)]
    rooms = [12, 5, 8]
    made = answers(model, prompts, rooms=rooms, end=256, window=window)
    for prompt, room, own in zip(prompts, rooms, made, strict=True):
        (expected,) = generate(model, [torch.from_numpy(prompt)], tokens=room, stop=(256,))
        assert own == [one for one in expected if one != 256]


def test_an_answer_ends_where_it_is_told_to(tiny: Tiny) -> None:
    model, prompts = tiny(), [np.array([3, 4]), np.array([7])]
    (first, second) = answers(model, prompts, rooms=[9, 0], end=256, halted=lambda row, ids: len(ids) == 4)
    assert (len(first), second) == (4, [])
    with pytest.raises(ConfigError, match="a prompt must hold at least one token"):
        answers(model, [np.zeros(0, np.int64)], rooms=[1], end=256)


class Copier(LanguageModel):
    """A model that looks the value up: what it will say is all that its state holds, as ids, one less each step.

    said: what it says of a key and its value.
    """

    said = "{value}."

    def hidden(
        self, tokens: Tensor, at: Sequences, state: LanguageState | None = None, *, keep: bool = True
    ) -> tuple[Tensor, LanguageState]:
        assert state is None
        h, rows = torch.zeros(len(tokens), 1), []
        end = 0
        for length in np.diff(at.offsets).tolist():
            text = bytes(tokens[end : end + length].tolist()).decode()
            end += length
            key = re.findall(r"for (\S+) mentioned", text)[-1]
            value = re.search(rf"for {key} is: (\S+)\.", text)
            assert value is not None
            ids = [*self.said.format(key=key, value=value[1]).encode(), *[256] * 300][:300]
            h[end - 1] = ids[0]
            rows.append(ids[1:])
        return h, replace(self.initial_state(len(rows)), layers=({"ids": torch.tensor(rows)},))

    def step(self, tokens: Tensor, state: LanguageState) -> tuple[Tensor, LanguageState]:
        ids = state.layers[0]["ids"]
        return self.spoken(ids[:, :1]), replace(state, layers=({"ids": ids[:, 1:]},))

    @staticmethod
    def spoken(ids: Tensor) -> Tensor:
        return torch.nn.functional.one_hot(ids[:, 0].long(), 257).double()


class Spoken(torch.nn.Module):
    """The head of a copier."""

    def forward(self, ids: Tensor) -> Tensor:
        return Copier.spoken(ids)


@pytest.mark.parametrize(
    ("said", "answered", "correct"),
    [("{value}.", True, True), ("\n {value}", True, True), ("1234567, {value}", True, False), ("none", False, False),
     ("so\n{value}", False, False), ("-" * 120 + " {value}", False, False), ("-" * 119 + " {value}.", True, True),
     ("-" * 125 + " {value}.", False, False)],
)  # fmt: skip
def test_a_model_that_copies_is_right_and_one_that_babbles_is_not(said: str, answered: bool, correct: bool) -> None:
    model = Copier(LanguageConfig(vocabulary=257, width=24, layers=1, heads=2, key_dim=8, value_dim=8, mlp=32))
    model.head, model.said = Spoken(), said  # type: ignore[assignment]
    haystack = Haystack(" ".join(f"The {word} is here." for word in WORDS))
    made = needles("mk-niah-1", 1200, haystack, Bytes(), samples=5)
    told: list[int] = []
    found = list(ask(model, made, Bytes(), window=2500, tick=told.append))
    assert [one.needle.number for one in found] == list(range(5))
    assert sum(told) == 5
    assert {(one.answered, one.correct) for one in found} == {(answered, correct)}


def test_a_model_that_knows_nothing_answers_nothing_right(tiny: Tiny) -> None:
    haystack = Haystack(" ".join(f"The {word} is here." for word in WORDS))
    made = needles("s-niah-2", 700, haystack, Bytes(), samples=3)
    found = list(ask(tiny(), made, Bytes(), window=100))
    assert [one.needle.number for one in found] == [0, 1, 2]
    assert not any(one.correct for one in found)
